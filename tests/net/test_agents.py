"""Real agents on simulated hosts: what packets and kernels say when something happens to them."""

from __future__ import annotations

import json
import socket
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import (
    PREFIX,
    AgentProcess,
    Overlay,
    lost_without,
    patience,
    until,
    until_on_time,
)
from tests.net.packets import Flow, ping_all
from tests.net.rig import Host
from tests.net.witnesses import LINK, Ear, kernel_of, routes_of

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
RATE = 1200
"""Packets a second, a little above what is promised."""


@pytest.mark.alone  # a busy machine sends fewer
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_an_agent_that_ends_and_comes_back_costs_no_packet_and_touches_nothing(
    overlay: Overlay, how: str
) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    before = kernel_of(agent.host)
    assert len(before["routes"]) == len(before["neighbours"]) == len(before["fdb"]) == 2
    with (
        Ear(agent.host) as ear,
        Flow(here, there, RATE) as out,
        Flow(there, here, RATE) as back,
    ):
        flows = out, back
        until(lambda: min(flow.received for flow in flows) > 1500, 20, "packets arrive")
        if how == "SIGKILL":
            agent.kill()
        else:
            assert agent.terminate() == 0
        mark = flows[0].sent
        until(lambda: flows[0].sent > mark + 1500, 20, "packets are sent without an agent")
        agent.start()
        agent.wait_ready()
        until(lambda: min(flow.sent for flow in flows) > 5000, 20, "packets are sent")
        until_on_time(flows)
        losses = [flow.stop() for flow in flows]
    assert [loss.missing for loss in losses] == [(), ()]
    assert min(loss.per_second for loss in losses) >= 1000
    assert ear.gone() == []
    assert kernel_of(agent.host) == before


@pytest.mark.alone  # a busy machine sends fewer
@pytest.mark.parametrize("harm", ["lost", "cut", "later"])
def test_an_agent_whose_state_file_is_of_no_use_costs_no_packet(
    overlay: Overlay, harm: str
) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    before, leases = kernel_of(agent.host), overlay.registered()
    path = agent.folder / "default.json"

    def end() -> None:
        agent.terminate()
        text = path.read_text()
        path.unlink()
        if harm == "cut":
            path.write_text(text[:-30])
        elif harm == "later":
            path.write_text(json.dumps({**json.loads(text), "of_a_later_version": 1}))

    losses = lost_without(agent, here, there, RATE, end)
    assert [loss.missing for loss in losses] == [(), ()]
    assert kernel_of(agent.host) == before
    assert overlay.registered() == leases
    assert ("state-file" in agent.missing()) == (harm == "cut")


def test_after_a_reboot_without_a_registry_the_remembered_network_comes_back(
    overlay: Overlay,
) -> None:
    agent = overlay.agents[0]
    before = kernel_of(agent.host)
    environment = agent.subnet_file.read_text()
    others = [other.subnet for other in overlay.agents[1:]]
    until(lambda: agent.remembers(*others), 10, "what is to come back is on disk")
    overlay.members.kill(0)
    agent.kill()
    # What a reboot does to the kernel, and to /run.
    agent.host.namespace.ip(f"link del {LINK}")
    agent.host.namespace.sysctl("ipv4.ip_forward", "0")
    agent.subnet_file.unlink()
    agent.socket.unlink()
    assert kernel_of(agent.host) == {}
    assert ping_all([(overlay.rig.containers[0], overlay.rig.containers[1].address)]) == [None]
    agent.start()
    until(overlay.everybody_answers, patience(30), "the remembered network works")
    after = kernel_of(agent.host)
    assert after.pop("index") != before.pop("index")
    assert after == before
    assert agent.subnet_file.read_text() == environment
    overlay.members.restart(0)
    agent.wait_ready()
    assert kernel_of(agent.host)["routes"] == before["routes"]


def test_a_drained_host_goes_from_the_others_and_leaves_nothing(overlay: Overlay) -> None:
    agent, *rest = overlay.agents
    subnet = agent.subnet
    give_forward_chain(agent)
    agent.ctl("drain")
    until(lambda: not agent.is_running, 10, "the agent ends")
    assert kernel_of(agent.host) == {}
    assert firewall_of(agent.host) == FORWARD_CHAIN
    assert agent.host.namespace.sysctl("ipv4.ip_forward") == "0"
    assert not (agent.folder / "subnet.env").exists()

    def others() -> set[IPv4Network]:
        return {
            IPv4Network(route[0]) for other in rest for route in kernel_of(other.host)["routes"]
        }

    until(lambda: subnet not in others(), 10, "the others remove it")
    assert len(others()) == 2
    leases = json.loads(overlay.ctl("leases", "-w", "json"))["leases"]
    assert str(subnet) not in {lease["subnet"] for lease in leases}


def test_a_host_that_finds_its_subnet_taken_has_a_route_to_who_has_it(overlay: Overlay) -> None:
    # One without containers of ours, which takes another at its start.
    agent = overlay.agents[0]
    before = agent.subnet
    key = f"{PREFIX}subnets/{str(before).replace('/', '-')}"
    theirs = overlay.registered()[key].decode().replace(agent.host.address, "10.77.0.77")
    agent.terminate()
    agent.host.namespace.run("ip", "link", "del", "br0")  # where there were containers
    overlay.kvctl("del", key)
    overlay.kvctl("put", key, theirs.replace(kernel_of(agent.host)["mac"], "02:00:00:00:00:77"))
    agent.start()
    agent.wait_ready()
    assert agent.subnet != before
    assert str(before) in {subnet for subnet, *_ in kernel_of(agent.host)["routes"]}
    assert "kernel-refused" not in agent.missing()
    overlay.kvctl("del", key)
    until(lambda: str(before) not in routes_of(agent.host), 10, "who is gone is removed")


@pytest.mark.parametrize("lost", ["", "default route", "address"])
def test_cleanup_after_a_killed_agent_leaves_a_kernel_as_it_was(
    overlay: Overlay, lost: str
) -> None:
    agent = overlay.agents[0]
    give_forward_chain(agent)
    agent.kill()
    namespace = agent.host.namespace
    addresses = namespace.json("ip", "-j", "-4", "addr", "show", "dev", "eth0")[0]["addr_info"]
    routes = namespace.run("ip", "route", "show", "default").split()
    if lost:
        namespace.run("ip", "route", "del", "default")
    if lost == "address":
        namespace.run("ip", "-4", "addr", "flush", "dev", "eth0")
    said = agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )
    assert "1 settings set back" in said
    assert kernel_of(agent.host) == {}
    assert firewall_of(agent.host) == FORWARD_CHAIN
    assert agent.host.namespace.sysctl("ipv4.ip_forward") == "0"
    # ... and the next agent has the same subnet and MAC.
    if lost == "address":
        [one] = addresses
        namespace.run("ip", "addr", "add", f"{one['local']}/{one['prefixlen']}", "dev", "eth0")
    if lost:
        namespace.run("ip", "route", "add", *routes)
    before = agent.subnet
    agent.start()
    agent.wait_ready()
    assert agent.subnet == before
    until(overlay.everybody_answers, 20, "every container answers every other")


def test_cleanup_in_another_boot_leaves_what_others_have_set(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    path = agent.folder / "default.json"
    until(lambda: json.loads(path.read_text())["sysctls"] != {}, 5, "it is remembered")
    agent.kill()
    remembered = json.loads(path.read_text())
    path.write_text(json.dumps({**remembered, "boot_id": "another"}))
    agent.start()  # and finds forwarding on, as by a sysctl.d of somebody else
    agent.wait_ready()
    agent.terminate()
    said = agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )
    assert "0 settings set back" in said
    assert agent.host.namespace.sysctl("ipv4.ip_forward") == "1"


FORWARD_CHAIN = """\
table ip filter {
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
"""


def firewall_of(host: Host) -> str:
    return host.namespace.run("nft", "--stateless", "list", "ruleset")


def give_forward_chain(agent: AgentProcess) -> None:
    """Make iptables' chain of forwarded packets, and wait for our rules in it."""
    agent.host.namespace.run("nft", "-f", "-", text=FORWARD_CHAIN)
    until(lambda: "netplane: from" in firewall_of(agent.host), 20, "our rules are in the chain")
    assert "table ip netplane {" in firewall_of(agent.host)


def test_what_a_departed_peer_left_is_swept_when_the_agent_comes_back(overlay: Overlay) -> None:
    # The complaint of Flannel's users: routes of who left while the daemon was down stay for ever.
    agent, other, leaving = overlay.agents
    agent.kill()
    subnet, kept = str(leaving.subnet), str(other.subnet)
    leaving.ctl("drain")
    until(lambda: routes_of(other.host) == {str(agent.subnet)}, 10, "who runs removes it")
    assert routes_of(agent.host) == {subnet, kept}
    with Ear(agent.host) as ear:
        agent.start()
        agent.wait_ready()
        after = kernel_of(agent.host)
    assert [len(after[kind]) for kind in ("routes", "neighbours", "fdb")] == [1, 1, 1]
    assert routes_of(agent.host) == {kept}
    # Nothing of the peer that stayed was touched.
    assert kept not in {told.name for told in ear.told}


def test_a_peer_joins_and_a_peer_whose_lease_ends_goes() -> None:
    with Overlay(4, flags=("--heal-interval", "1h"), agents=3) as overlay:
        joining = overlay.add_agent(overlay.rig.hosts[3])
        joining.start()
        joining.wait_ready()
        first, *_ = overlay.agents
        subnet = str(joining.subnet)
        others = overlay.agents[:3]
        until(
            lambda: all(subnet in routes_of(agent.host) for agent in others),
            10, "all have a route to who joined",
        )  # fmt: skip
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")

        # The same key, by any etcd client, on a lease that ends soon: as a host that is gone.
        joining.kill()
        key = PREFIX + f"subnets/{subnet.replace('/', '-')}"
        value = overlay.registered()[key].decode()
        with Ear(first.host) as ear:
            overlay.put_leased(key, value, ttl_s=5)
            assert subnet in routes_of(first.host)
            until(
                lambda: all(subnet not in routes_of(agent.host) for agent in others),
                30, "all remove the route of who is gone",
            )  # fmt: skip
            assert key not in overlay.registered()
        # ... and nothing else.
        assert {told.name for told in ear.gone() if told.kind == "route"} == {subnet}
        here, there, _, gone = overlay.rig.containers
        assert None not in ping_all([(here, there.address), (there, here.address)])
        assert ping_all([(here, gone.address)], timeout_s=0.2) == [None]

        # It comes back to its containers' subnet.
        joining.start()
        joining.wait_ready()
        assert str(joining.subnet) == subnet
        until(overlay.everybody_answers, 10, "every container answers every other")


def test_a_packet_of_the_containers_mtu_crosses_whole(overlay: Overlay) -> None:
    here, there, _ = overlay.rig.containers
    assert [agent.mtu for agent in overlay.agents] == [1450] * 3
    payload = overlay.agents[0].mtu - 28
    with (
        here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        there.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((there.address, 0))
        receiver.settimeout(5)
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sender.sendto(bytes(payload), receiver.getsockname())
        assert receiver.recv(65536) == bytes(payload)
        with pytest.raises(OSError, match="Message too long"):
            sender.sendto(bytes(payload + 1), receiver.getsockname())
    # Nor did the hosts cut what went between them.
    for agent in overlay.agents:
        assert fragments(agent.host) == 0


def fragments(host: Host) -> int:
    """Return how many packets a host has cut, or was to put together."""
    lines = host.namespace.within(Path("/proc/thread-self/net/snmp").read_text).splitlines()
    names, values = (line.split() for line in lines[:2])
    counts = dict(zip(names, values, strict=True))
    return int(counts["FragCreates"]) + int(counts["ReasmReqds"])
