"""Real agents with the backend host-gw: routes to neighbours, and no device to hold on to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import (
    HOST_GW,
    PREFIX,
    AgentProcess,
    Overlay,
    lost_without,
    until,
)
from tests.net.packets import mesh, ping, ping_all
from tests.net.routed import (
    DEFAULT_BACK,
    DRIFTS4,
    HEALED_WITHIN_S,
    drift,
    refused,
    routes,
    wanted,
)
from tests.net.test_inspection import inspect, wrong
from tests.net.witnesses import Ear

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
CONFIG = HOST_GW.replace('"Backend"', '"SubnetMax":"10.5.199.0","Backend"')
"""What is above is leased to nobody, and free for what tests make up."""
FAR = PREFIX + "subnets/10.5.250.0-24"


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    """Agents on the first three of four hosts; each test leaves them as they were."""
    with Overlay(4, flags=("--heal-interval", "1h"), network=CONFIG, agents=3) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def test_every_peer_is_a_route_to_its_host_and_nothing_else_is_made(overlay: Overlay) -> None:
    for agent in overlay.agents:
        assert routes(agent.host) == wanted(overlay, agent)
        links = agent.host.namespace.json("ip", "-j", "link")
        assert {one["ifname"] for one in links} == {"lo", "eth0", "br0", "veth1"}
        assert agent.mtu == 1500
        rules = agent.host.namespace.run("nft", "list", "table", "ip", "netplane")
        assert "chain forward" in rules
        assert "vteps" not in rules
    assert overlay.registered() == {
        f"{PREFIX}subnets/{str(agent.subnet).replace('/', '-')}": (
            f'{{"PublicIP":"{agent.host.address}","PublicIPv6":null,"BackendType":"host-gw"}}'
        ).encode()
        for agent in overlay.agents
    }
    # Packets of the whole size of the wire cross in one piece.
    assert None not in ping_all(mesh(overlay.rig.containers), size=1472)


@pytest.mark.alone
@pytest.mark.parametrize("name", DRIFTS4)
def test_what_is_seen_broken_is_whole_within_a_second(overlay: Overlay, name: str) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    assert ping(here, there.address) is not None
    agent.pause()
    try:
        drift(overlay, agent, *DRIFTS4[name])
        assert routes(agent.host) != wanted(overlay, agent)
        assert ping(here, there.address, timeout_s=0.2) is None
    finally:
        agent.resume()
    until(lambda: routes(agent.host) == wanted(overlay, agent), HEALED_WITHIN_S, "routes are back")
    until(overlay.everybody_answers, 20, "every container answers every other")
    agent.wait_ready()


@pytest.mark.parametrize(
    ("breaking", "mending", "said"),
    [
        ("link set eth0 down", "link set eth0 up", "eth0 is down, and no route leads over it"),
        (
            "addr del {address}/{length} dev eth0", "addr add {address}/{length} dev eth0",
            "is gone, and the others send to it",
        ),
    ],
    ids=["link", "address"],
)  # fmt: skip
def test_what_the_interface_lacks_is_said_until_it_is_back(
    overlay: Overlay, breaking: str, mending: str, said: str
) -> None:
    agent = overlay.agents[0]
    drift(overlay, agent, f"ip {breaking}")
    until(lambda: said in agent.missing(), 20, "it is said")
    assert "kernel: interface eth0 with" in agent.missing()
    code, rows = inspect(agent, "check")
    assert code == 1
    assert "interface" in {subject for subject, _ in wrong(rows)}
    drift(overlay, agent, f"ip {mending}", DEFAULT_BACK)
    agent.wait_ready()
    assert routes(agent.host) == wanted(overlay, agent)
    until(overlay.everybody_answers, 20, "every container answers every other")


@pytest.mark.alone  # a busy machine sends fewer
def test_an_agent_that_is_killed_and_comes_back_costs_no_packet(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    with Ear(agent.host) as ear:
        losses = lost_without(agent, here, there, 1200, agent.kill)
    assert [loss.missing for loss in losses] == [(), ()]
    assert ear.gone() == []
    assert routes(agent.host) == wanted(overlay, agent)


def test_another_mtu_is_followed(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    for mtu in (1400, 1500):
        agent.host.namespace.ip(f"link set eth0 mtu {mtu}")
        until(lambda mtu=mtu: agent.mtu == mtu, 20, "the MTU is taken")
    agent.wait_ready()
    assert routes(agent.host) == wanted(overlay, agent)


def test_cleanup_takes_away_what_a_killed_agent_has_left(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    subnet = agent.subnet
    agent.kill()
    said = agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )
    assert "1 settings set back" in said
    assert routes(agent.host) == set()
    agent.start()
    agent.wait_ready()
    assert agent.subnet == subnet
    assert routes(agent.host) == wanted(overlay, agent)
    assert "hosts are let in" not in agent.ctl("status")


def test_a_host_on_another_link_is_named_and_the_others_are_served(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    here = overlay.rig.containers[0]
    value = '{"PublicIP":"198.51.100.9","PublicIPv6":null,"BackendType":"host-gw"}'
    overlay.put_leased(FAR, value)
    try:
        until(lambda: "10.5.250.0/24" in refused(agent), 20, "it is refused")
        assert refused(agent)["10.5.250.0/24"].startswith(
            f"its host 198.51.100.9 is not on the link of eth0 ({agent.host.address}/16)"
        )
        agent.wait_ready()
        assert "10.5.250.0/24: its host" in agent.missing()  # a note; it is ready
        code, rows = inspect(agent, "check")
        assert code == 1
        assert [text for _, text in wrong(rows) if "10.5.250.0/24 is not served" in text]
        code, rows = inspect(agent, "trace", here.address, "10.5.250.9")
        assert code == 1
        assert [text for _, text in wrong(rows) if "cannot be served: its host" in text]
        assert routes(agent.host) == wanted(overlay, agent)
        assert overlay.everybody_answers()
    finally:
        overlay.kvctl("del", FAR)
    until(lambda: refused(agent) == {}, 20, "nothing is refused")
    assert inspect(agent, "check")[0] == 0


def test_routes_of_others_stay_and_strangers_of_ours_go(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    others, stranger, late_stranger = (f"10.5.{number}.0/24" for number in (201, 202, 203))
    foreign = {(others, "10.77.0.2", "eth0")}
    agent.host.namespace.ip(
        f"route add {others} via 10.77.0.2 proto static",
        f"route add {stranger} via 10.77.0.2 proto 181",
    )
    until(lambda: routes(agent.host) == wanted(overlay, agent), 20, "the stranger goes")
    agent.kill()
    # Over an interface that the agent had before: in the way of what it is to write.
    agent.host.namespace.ip(
        f"route del {overlay.agents[1].subnet}",
        "link add old0 type bridge",
        "addr add 10.78.0.1/24 dev old0",
        "link set old0 up",
        f"route add {overlay.agents[1].subnet} via 10.78.0.2 proto 181",
        f"route add {late_stranger} via 10.78.0.2 proto 181",
    )
    agent.start()
    agent.wait_ready()
    assert routes(agent.host) == wanted(overlay, agent)
    assert routes(agent.host, protocol=4) == foreign
    agent.host.namespace.ip(f"route del {others}", "link del old0")


def test_the_way_is_shown_hop_by_hop(overlay: Overlay) -> None:
    agent, other, _ = overlay.agents
    here, there, _ = overlay.rig.containers
    assert ping(here, there.address) is not None
    code, rows = inspect(agent, "trace", here.address, there.address)
    assert (code, wrong(rows)) == (0, [])
    assert [(subject, state) for subject, state, _ in rows] == [
        ("source", "ok"),
        ("forwarding", "ok"),
        ("lease", "ok"),
        ("route", "ok"),
        ("mtu", "ok"),
        ("interface", "ok"),
        ("neighbour", "ok"),
        ("peer", "unseen"),
        ("firewall", "ok"),
        ("forward", "ok"),
        ("firewall", "unseen"),
    ]
    texts = {subject: text for subject, _, text in rows}
    assert texts["route"] == f"route {other.subnet} via {other.host.address} dev eth0"
    assert texts["mtu"] == "containers 1500, eth0 1500"
    [link] = other.host.namespace.json("ip", "-j", "link", "show", "eth0")
    assert texts["neighbour"] == f"host {other.host.address} is {link['address']} on eth0"
    code, rows = inspect(agent, "check")
    assert (code, wrong(rows)) == (0, [])
    assert ("objects", "ok", "2 as they should be, 2 peers") in rows
    # A host that is off: the kernel has asked, and nobody has answered.
    other.host.cut()
    try:
        agent.host.namespace.ip("neigh flush dev eth0")
        assert ping(here, there.address, timeout_s=0.1) is None
        until(
            lambda: "neighbour" in {subject for subject, _ in wrong(traced(overlay))},
            20, "the neighbour is wrong",
        )  # fmt: skip
    finally:
        other.host.heal()
    until(overlay.everybody_answers, 20, "every container answers every other")


def test_a_subnet_without_a_bridge_is_not_behind_the_default_route(overlay: Overlay) -> None:
    agent, here = overlay.agents[0], overlay.rig.containers[0]
    agent.host.namespace.ip("link set br0 down")
    try:
        inward = wrong(inspect(agent, "trace", agent.host.address, here.address)[1])
        outward = wrong(inspect(agent, "trace", here.address, agent.host.address)[1])
    finally:
        agent.host.namespace.ip("link set br0 up")
    assert [subject for subject, _ in inward] == ["route"]
    assert "no bridge has the destination's subnet" in inward[0][1]
    assert [subject for subject, _ in outward] == ["source"]
    until(overlay.everybody_answers, 20, "every container answers every other")


def traced(overlay: Overlay) -> list[tuple[str, str, str]]:
    here, there, _ = overlay.rig.containers
    return inspect(overlay.agents[0], "trace", here.address, there.address)[1]


def test_an_address_behind_nat_is_refused_at_the_start(overlay: Overlay) -> None:
    agent = AgentProcess(
        overlay.rig.hosts[3], overlay.members.endpoints, overlay.members.folder,
        "--public-ip", "198.51.100.9",
    )  # fmt: skip
    agent.start()
    assert agent.ended() == 1
    assert "--public-ip 198.51.100.9 is not the address of eth0, 10.77.0.4" in agent.log()
    assert "leave it out" in agent.log()
    assert routes(agent.host) == set()
    assert len(overlay.registered()) == 3


def test_a_second_agent_with_the_same_network_takes_nothing_from_the_first(
    overlay: Overlay,
) -> None:
    overlay.ctl("init", HOST_GW, "--etcd-prefix", "/other")
    with Ear(overlay.agents[0].host) as ear:
        said = overlay.second_agent("--etcd-prefix", "/other")
    assert "another agent of this host keeps routes into 10.5.0.0/16" in said
    assert ear.told == []


def test_a_host_that_moves_is_followed_and_one_that_is_drained_leaves_nothing(
    overlay: Overlay,
) -> None:
    # Last: the host is not as it was.
    agent = overlay.agents.pop()
    subnet = agent.subnet
    drift(
        overlay, agent, "ip addr del {address}/{length} dev eth0",
        "ip addr add 10.77.9.9/{length} dev eth0", DEFAULT_BACK,
    )  # fmt: skip
    moved = {(str(subnet), "10.77.9.9", "eth0")}
    # The connection to the registry, which has lost its address, has to be given up first.
    until(
        lambda: all(moved <= routes(other.host) for other in overlay.agents), 60, "it is followed"
    )
    until(overlay.everybody_answers, 20, "every container answers every other")
    agent.wait_ready()
    assert agent.subnet == subnet
    agent.ctl("drain")
    until(lambda: not agent.is_running, 10, "the agent ends")
    assert routes(agent.host) == set()
    assert agent.host.namespace.sysctl("ipv4.ip_forward") == "0"
    for other in overlay.agents:
        until(lambda other=other: routes(other.host) == wanted(overlay, other), 10, "it goes")
    assert subnet not in {IPv4Network(route[0]) for route in routes(overlay.agents[0].host)}
