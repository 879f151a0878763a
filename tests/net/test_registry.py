"""Agents whose registry dies, forgets, or is full of junk: the network must not notice."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network

import pytest

from tests.net.handmade import FlannelHost, flannel_value
from tests.net.namespaces import missing
from tests.net.overlay import PREFIX, AgentProcess, Overlay, patience, until
from tests.net.packets import UDP_PORT, Flow, ping_all
from tests.net.rig import Container
from tests.net.witnesses import Ear, kernel_of, routes_of
from tests.servers import Etcd

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
NETWORK = '{"Network":"10.5.0.0/16","SubnetMax":"10.5.19.0","Backend":{"Type":"vxlan"}}'
"""What is written by hand lies above what agents draw."""

SUBNET = IPv4Network("10.5.255.0/24")
MAC = "c6:d2:32:6f:8f:44"
RATE = 1000
HOUR = ("--heal-interval", "1h")


def make_flannel_host(overlay: Overlay, number: int) -> tuple[FlannelHost, Container]:
    """Make a host of Flannel's with a container; its lease is still to be written."""
    flannel = FlannelHost(overlay.rig.hosts[number], SUBNET, MAC)
    flannel.make(overlay.peers())
    return flannel, flannel.host.add_container(SUBNET, mtu=1450)


@pytest.fixture
def mixed() -> Iterator[tuple[Overlay, FlannelHost]]:
    """Two hosts with agents and one of Flannel's, which never puts its own lease back."""
    with Overlay(3, agents=2, flags=HOUR, network=NETWORK) as overlay:
        overlay.add_containers(1)
        flannel, _ = make_flannel_host(overlay, 2)
        yield overlay, flannel


def join(overlay: Overlay, flannel: FlannelHost) -> None:
    """Write its lease and wait until packets pass."""
    overlay.put_leased(flannel.key, flannel.value)
    until(overlay.everybody_answers, 10, "every container answers every other")


def all_have(overlay: Overlay, subnet: str) -> bool:
    """Tell whether every agent's kernel has a route to a subnet."""
    return all(subnet in routes_of(agent.host) for agent in overlay.agents)


def nobody_has(overlay: Overlay, subnet: str) -> bool:
    """Tell whether no agent's kernel has a route to a subnet."""
    return all(subnet not in routes_of(agent.host) for agent in overlay.agents)


@pytest.mark.parametrize(
    "server",
    [
        "kvstore",
        pytest.param(
            "etcd",
            marks=[
                pytest.mark.etcd,
                pytest.mark.slow,
                pytest.mark.skipif(Etcd.missing() is not None, reason=str(Etcd.missing())),
            ],
        ),
    ],
)
def test_hosts_of_flannel_and_ours_share_one_network_on_any_registry(server: str) -> None:
    with Overlay(3, agents=2, server=server, network=NETWORK) as overlay:
        one, two = overlay.agents
        # Key and value are those that Flannel would write for such a host, to the byte.
        registered = overlay.registered()
        assert registered == {
            PREFIX + f"subnets/{agent.subnet.network_address}-24": flannel_value(
                agent.host.address, kernel_of(agent.host)["mac"]
            ).encode()
            for agent in overlay.agents
        }
        for key in registered:
            [kv] = json.loads(overlay.kvctl("get", key, "-w", "json"))["kvs"]
            told = overlay.kvctl("lease", "timetolive", f"{kv['lease']:x}", "-w", "json")
            assert json.loads(told)["granted-ttl"] == 86_400

        overlay.add_containers(1)
        flannel, _ = make_flannel_host(overlay, 2)
        overlay.put_leased(flannel.key, flannel.value)
        until(lambda: all_have(overlay, str(SUBNET)), 10, "Flannel's host is programmed")
        for agent, other in ((one, two), (two, one)):
            peer = kernel_of(other.host)["mac"]
            found = kernel_of(agent.host)
            zeros = [str(subnet.network_address) for subnet in (other.subnet, SUBNET)]
            assert found["routes"] == sorted((f"{zero}/24", zero, "np.1") for zero in zeros)
            assert found["neighbours"] == sorted(zip(zeros, [peer, MAC], strict=True))
            addresses = [other.host.address, flannel.host.address]
            assert found["fdb"] == sorted(zip([peer, MAC], addresses, strict=True))
        until(overlay.everybody_answers, 10, "every container answers every other")

        # It leaves as Flannel's hosts do: the key goes with its lease.
        overlay.kvctl("del", flannel.key)
        until(lambda: nobody_has(overlay, str(SUBNET)), 10, "Flannel's host is gone")


def be_empty(overlay: Overlay, rejoin: Callable[[], None]) -> None:
    rejoin()
    overlay.members.kill(0)
    shutil.rmtree(overlay.members.folder / "e1")


def be_older(overlay: Overlay, rejoin: Callable[[], None]) -> None:
    """Go back to a copy from before Flannel's host came."""
    data = overlay.members.folder / "e1"
    overlay.members.kill(0)
    shutil.copytree(data, overlay.members.folder / "copy")
    overlay.members.restart(0)
    rejoin()
    overlay.members.kill(0)
    shutil.rmtree(data)
    (overlay.members.folder / "copy").rename(data)


def be_another(overlay: Overlay, rejoin: Callable[[], None]) -> None:
    be_empty(overlay, rejoin)
    overlay.members.flags = ("--initial-cluster-token", "another")


def send_on(flows: Sequence[Flow]) -> None:
    """Return when each has sent some hundred packets more."""
    mark = [flow.sent for flow in flows]
    until(
        lambda: all(flow.sent > sent + 500 for flow, sent in zip(flows, mark, strict=True)),
        30, "packets are sent",
    )  # fmt: skip


def has_noticed(agent: AgentProcess) -> bool:
    """Tell whether an agent says that the registry lost its memory, or believes it."""
    return "registry-regressed" in agent.missing() or str(SUBNET) not in routes_of(agent.host)


@pytest.mark.parametrize(
    "happen",
    [
        be_empty,
        *(pytest.param(happen, marks=pytest.mark.slow) for happen in (be_older, be_another)),
    ],
)
def test_a_registry_that_lost_its_memory_costs_no_packet(
    mixed: tuple[Overlay, FlannelHost], happen: Callable[[Overlay, Callable[[], None]], None]
) -> None:
    # What it yields is complete, valid and lacks a peer: the most dangerous view there is.
    overlay, flannel = mixed
    here, there, beyond = overlay.rig.containers
    happen(overlay, lambda: join(overlay, flannel))
    subnets = [agent.subnet for agent in overlay.agents]
    before = [kernel_of(agent.host) for agent in overlay.agents]
    pairs = [(here, there), (there, here), (here, beyond), (beyond, here)]
    with Ear(overlay.agents[0].host) as ear, ExitStack() as stack:
        flows = [
            stack.enter_context(Flow(source, target, RATE, port=UDP_PORT + index))
            for index, (source, target) in enumerate(pairs)
        ]
        overlay.members.restart(0)
        assert flannel.key not in overlay.registered()
        overlay.ctl("init", NETWORK)
        # The agents find it, and put their own leases back.
        until(lambda: len(overlay.registered()) == 2, 60, "the agents' leases are back")
        until(lambda: all(map(has_noticed, overlay.agents)), 60, "all agents have noticed")
        send_on(flows)
        losses = [flow.stop() for flow in flows]
    assert [loss.missing for loss in losses] == [()] * 4
    assert ear.gone() == []
    for agent in overlay.agents:
        assert "registry-regressed" in agent.missing()
    assert [kernel_of(agent.host) for agent in overlay.agents] == before
    assert [agent.subnet for agent in overlay.agents] == subnets
    # An operator says that it is as it should be.
    for agent in overlay.agents:
        agent.ctl("accept-view")
    until(lambda: nobody_has(overlay, str(SUBNET)), 10, "who is gone is removed")
    for agent in overlay.agents:
        agent.wait_ready()
    assert None not in ping_all([(here, there.address), (there, here.address)])


def test_another_network_of_a_registry_that_lost_its_memory_waits_for_an_operator() -> None:
    # Also for an agent that starts: it must not take everything away and call that ready.
    with Overlay(2, flags=HOUR, network=NETWORK) as overlay:
        here, there = overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent, other = overlay.agents
        before = kernel_of(agent.host)
        with (
            Ear(agent.host) as ear,
            Flow(here, there, RATE) as out,
            Flow(there, here, RATE) as back,
        ):
            flows = out, back
            until(lambda: min(flow.received for flow in flows) > 500, 20, "packets arrive")
            agent.terminate()
            be_another(overlay, lambda: None)
            overlay.members.restart(0)
            overlay.ctl("init", NETWORK.replace('"vxlan"', '"vxlan","VNI":7'))
            agent.start()
            until(agent.socket.exists, 20, "it answers")
            until(lambda: "Its network is another" in agent.missing(), 60, "it has noticed")
            # It is kept, too: by what is remembered, as soon as the registry has had its time.
            until(lambda: agent.status()["own"] is not None, 20, "it is programmed")
            agent.host.namespace.run("ip", "route", "flush", "proto", "181")
            until(lambda: kernel_of(agent.host) == before, 10, "it is put right")
            send_on(flows)
            losses = [flow.stop() for flow in flows]
        assert losses[1].missing == ()
        assert {told.kind for told in ear.gone()} == {"route"}
        # An operator says that it is as it should be.
        agent.ctl("accept-view")
        agent.wait_ready()
        assert agent.host.namespace.json("ip", "-j", "link", "show", "np.7")
        assert "np.1" not in agent.host.namespace.run("ip", "link")
        assert "np.1" in other.host.namespace.run("ip", "link")


def test_changes_that_a_compaction_hides_are_not_missed(
    mixed: tuple[Overlay, FlannelHost],
) -> None:
    # While nobody watched, one peer came, one went, and one has another MAC and address on the
    # same subnet; what told of it is compacted away. Flannel misses the third for ever.
    overlay, flannel = mixed
    agents = overlay.agents
    values = {
        number: flannel_value(f"10.77.0.{number}", f"02:00:00:00:01:{number}")
        for number in (21, 22)
    }
    keys = {number: PREFIX + f"subnets/10.5.{number}.0-24" for number in (21, 22)}
    join(overlay, flannel)
    overlay.put_leased(keys[21], values[21])
    until(lambda: all_have(overlay, "10.5.21.0/24"), 10, "all have heard of it")
    for agent in agents:
        agent.pause()
    try:
        # So that every watch has to be made anew, from a revision that is gone.
        overlay.members.kill(0)
        overlay.members.restart(0)
        overlay.kvctl("del", keys[21])
        overlay.put_leased(keys[22], values[22])
        moved = flannel_value("10.77.0.33", "02:00:00:00:01:33")
        overlay.put_leased(flannel.key, moved)
        told = json.loads(overlay.kvctl("get", flannel.key, "-w", "json"))
        overlay.kvctl("compaction", str(told["header"]["revision"]))
    finally:
        for agent in agents:
            agent.resume()
    fdb = {
        ("02:00:00:00:01:22", "10.77.0.22"),
        ("02:00:00:00:01:33", "10.77.0.33"),
    }

    def is_known() -> bool:
        return all(fdb < set(kernel_of(agent.host)["fdb"]) for agent in agents)

    until(is_known, patience(30), "who came and who moved are known")
    until(lambda: nobody_has(overlay, "10.5.21.0/24"), 10, "who went is gone")
    for agent, other in zip(agents, reversed(agents), strict=True):
        found = kernel_of(agent.host)
        assert set(found["fdb"]) - fdb == {(kernel_of(other.host)["mac"], other.host.address)}
        assert (str(SUBNET.network_address), "02:00:00:00:01:33") in found["neighbours"]
        assert routes_of(agent.host) == {"10.5.22.0/24", str(SUBNET), str(other.subnet)}
        assert len(found["neighbours"]) == 3


@pytest.mark.slow
def test_whichever_member_dies_agents_hear_of_peers_from_another() -> None:
    with Overlay(3, members=3, flags=HOUR, network=NETWORK) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 10, "every container answers every other")
        here, there, _ = overlay.rig.containers
        with Flow(here, there, RATE) as flow:
            # One of these is the leader, and one is where each agent watches.
            for number in range(3):
                overlay.members.kill(number)
                overlay.put_leased(
                    PREFIX + f"subnets/10.5.{50 + number}.0-24",
                    flannel_value(f"10.77.0.{50 + number}", f"02:00:00:00:03:{50 + number}"),
                )
                wanted = f"10.5.{50 + number}.0/24"
                until(functools.partial(all_have, overlay, wanted), 30, "all have heard of it")
                overlay.members.restart(number)
            loss = flow.stop()
        assert loss.missing == (), str(loss)


JUNK = {
    "subnets/": "{}",
    "subnets/hello": "{}",
    "subnets/10.5.77.0-24": "no JSON",
    "subnets/10.5.78.0-24": '{"PublicIP":"0.0.0.0"}',
    "subnets/10.5.79.1-24": flannel_value("10.77.0.79", "02:00:00:00:02:79"),
    "subnets/10.5.80.0-24": flannel_value("127.0.0.1", "02:00:00:00:02:80"),
    "subnets/10.5.81.0-24": flannel_value("10.77.0.81", "ff:ff:ff:ff:ff:ff"),
    "subnets/10.6.0.0-24": flannel_value("10.77.0.82", "02:00:00:00:02:82"),
    "subnets/10.5.0.0-16": flannel_value("10.77.0.83", "02:00:00:00:02:83"),
    "subnets/10.5.84.0-24": flannel_value("10.77.0.84", MAC),
    "subnets/0.0.0.0-0&fc00:0:0:8::-64": flannel_value("0.0.0.0", "02:00:00:00:02:85"),
    "subnets/10.5.255.128-25": flannel_value("10.77.0.86", "02:00:00:00:02:86"),
    "subnetsx": "{}",
    "netplane/hosts/x": "{",
    "netplane/alive/x": "[",
    "netplane/other": "",
}
"""Below the prefix, in a network that has Flannel's host at 10.5.255.0/24."""


def test_junk_changes_nothing_and_hides_nobody(mixed: tuple[Overlay, FlannelHost]) -> None:
    overlay, flannel = mixed
    join(overlay, flannel)
    here, _, beyond = overlay.rig.containers
    before = [kernel_of(agent.host) for agent in overlay.agents]
    with Ear(overlay.agents[0].host) as ear, Flow(here, beyond, RATE) as flow:
        for key, value in JUNK.items():
            overlay.kvctl("put", PREFIX + key, value)
        # A peer's own key, too: its last good state stays.
        overlay.kvctl("put", flannel.key, "junk")
        # All of it has been seen when what was written after it is programmed.
        overlay.put_leased(
            PREFIX + "subnets/10.5.99.0-24", flannel_value("10.77.0.99", "02:00:00:00:02:99")
        )
        until(lambda: all_have(overlay, "10.5.99.0/24"), 10, "the honest peer is there")
        loss = flow.stop()
    assert loss.missing == (), str(loss)
    assert ear.gone() == []
    for agent, was in zip(overlay.agents, before, strict=True):
        now = kernel_of(agent.host)
        assert {kind: len(now[kind]) for kind in ("routes", "neighbours", "fdb")} == {
            kind: len(was[kind]) + 1 for kind in ("routes", "neighbours", "fdb")
        }
        assert all(set(was[kind]) < set(now[kind]) for kind in ("routes", "neighbours", "fdb"))
        said = agent.ctl("status", "-w", "json")
        for key in JUNK:
            if key.startswith("subnets/") or key.endswith("hosts/x"):
                assert PREFIX + key in said
        agent.wait_ready()
    # An agent that starts among all that finds its way as well.
    agent = overlay.agents[0]
    others = [other.subnet for other in overlay.agents[1:]]
    until(lambda: agent.remembers(*others), 10, "whose key is junk now is on disk")
    agent.kill()
    agent.start()
    agent.wait_ready()
    after = kernel_of(agent.host)
    assert set(before[0]["routes"]) < set(after["routes"])
