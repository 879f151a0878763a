"""Networks of both families, and of IPv6 alone: real agents, kernels and packets."""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from tests.net.overlay import DUAL, ONLY_IPV6, AgentProcess, Overlay, until
from tests.net.packets import ping
from tests.net.rig import Host
from tests.net.test_inspection import inspect, words_of, wrong

pytestmark = pytest.mark.net

HEALED_WITHIN_S = 1.0
MTU = 1430
"""IPv6 takes 70 of 1500; by Flannel's 50 the first of the largest packets would be lost."""


@pytest.fixture(scope="module", params=[DUAL, ONLY_IPV6], ids=["dual", "only-ipv6"])
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    # What heals does so because it was heard of, not by the timer.
    flags = ("--ip-masq", "--ip-blackhole-route", "--heal-interval", "1h")
    # Hosts without IPv4 reach the registry over IPv6, too.
    with Overlay(3, network=request.param, flags=flags) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def second(overlay: Overlay, number: int) -> str:
    """Return the IPv6 address of the container of a host."""
    container = overlay.rig.containers[number]
    return container.address6 or container.address


def test_the_largest_packets_pass_and_are_those_that_containers_are_told(overlay: Overlay) -> None:
    assert {agent.mtu for agent in overlay.agents} == {MTU}
    sender = overlay.rig.containers[0]
    assert ping(sender, second(overlay, 1), size=MTU - 48) is not None


def test_check_and_trace_find_all_of_both_families_right(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    # Their exit codes say whether anything is wrong.
    said = agent.ctl("check")
    assert "np6.1" in said
    assert "ipv6/conf/all/forwarding = 1" in said
    sender = overlay.rig.containers[0]
    said = agent.ctl("trace", sender.address6 or sender.address, second(overlay, 1))
    assert "np6.1 onlink" in said
    assert overlay.rig.hosts[1].address6 in said
    hosts = overlay.rig.hosts
    said = agent.ctl("trace", hosts[0].address6, hosts[1].address6)
    assert f"{hosts[1].address6} is outside of IPv6Network fd00:" in said
    # Not as if the agent did not know its network, where that has one family only.
    said = agent.ctl("trace", "127.0.0.1", "127.0.0.2")
    assert ("its network has no IPv4" in said) is not overlay.rig.ipv4


DAMAGE = {
    "route": ("ip -6 route flush dev np6.1 proto 181", {"route", "objects"}),
    "blackhole": ("ip -6 route del blackhole {subnet} proto 181", {"objects"}),
    "neighbour": ("ip -6 neigh flush dev np6.1 nud permanent", {"neighbour", "objects"}),
    "forwarding entry": ("bridge fdb del {mac} dev np6.1", {"forwarding-entry", "objects"}),
    "address": ("ip -6 addr flush dev np6.1 scope global", {"objects"}),
    "device down": ("ip link set np6.1 down", {"device"}),
    "device": ("ip link del np6.1", {"device"}),
    "forwarding": ("sysctl -qw net.ipv6.conf.all.forwarding=0", {"forwarding", "settings"}),
    "table": ("nft delete table ip6 netplane", set()),
    "ruleset": ("nft flush ruleset", set()),
}
"""What others may do, and what `trace` and `check` call it. Of the firewall the agent tells."""


@pytest.mark.alone
def test_what_others_take_away_of_ipv6_is_named_and_put_back(overlay: Overlay) -> None:
    agent, sender = overlay.agents[0], overlay.rig.containers[0]
    state = what_there_is(agent.host)
    subnet = agent.subnets.second or agent.subnets.first
    assert any(f"blackhole {subnet}" in line for line in state)
    [mac] = [
        entry["mac"]
        for entry in agent.host.namespace.json("bridge", "-j", "fdb", "show", "dev", "np6.1")
        if entry.get("dst") == overlay.rig.hosts[1].address6
    ]
    way = sender.address6 or sender.address, second(overlay, 1)
    with words_of(agent) as folder:
        for what, (command, names) in DAMAGE.items():
            agent.pause()
            try:
                agent.host.namespace.run(*command.format(mac=mac, subnet=subnet).split())
                assert what_there_is(agent.host) != state, what
                found = wrong(inspect(agent, "check", folder=folder)[1])
                found += wrong(inspect(agent, "trace", *way, folder=folder)[1])
                assert names <= {subject for subject, _ in found}, found
            finally:
                agent.resume()
            until(lambda: what_there_is(agent.host) == state, HEALED_WITHIN_S, f"{what} is back")
    until(overlay.everybody_answers, 10, "every container answers every other")


def what_there_is(host: Host) -> list[str]:
    """Return all of IPv6 that an agent keeps on a host, without what changes by itself."""
    namespace = host.namespace
    commands = (
        "ip -6 route show proto 181",
        "ip -6 neigh show nud permanent",
        "ip -6 -o addr show scope global",
        "nft --stateless list tables",
        "sysctl net.ipv6.conf.all.forwarding",
    )
    found = [namespace.run(*command.split()) for command in commands]
    links = {link["ifname"]: link["flags"] for link in namespace.json("ip", "-j", "link")}
    if "np6.1" in links:
        found.append(namespace.run(*["bridge", "fdb", "show", "dev", "np6.1"]))
        found.append(str("UP" in links["np6.1"]))
    # Devices that were made anew are numbered otherwise.
    return sorted(line.partition(": ")[2] or line for one in found for line in one.splitlines())


def test_chains_of_ip6tables_that_drop_are_seen_to(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    agent.host.namespace.run("nft", "-f", "-", text=FORWARD_CHAIN)

    def is_kept() -> bool:
        said = agent.host.namespace.run(*["nft", "list", "chain", "ip6", "filter", "FORWARD"])
        return said.count('comment "netplane: ') == 2

    until(is_kept, 10, "two rules in front of the chain")
    assert ping(overlay.rig.containers[0], second(overlay, 1)) is not None
    assert "ip6 filter FORWARD" in agent.ctl("check")


FORWARD_CHAIN = """
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
    }
}
"""


def test_outside_of_the_overlay_packets_have_the_source_of_their_host(overlay: Overlay) -> None:
    # Who is outside has no way to a container's own address.
    assert ping(overlay.rig.containers[1], "fd77::ffff") is not None


def test_overlay_packets_of_strangers_are_dropped(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    before = agent.status()["firewall"]["dropped"]
    number = struct.pack("!II", 1 << 27, 1 << 8)  # vxlan: the number is valid, and it is 1
    with overlay.rig.underlay.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:
        for _ in range(3):
            stranger.sendto(number + bytes(60), (agent.host.address6, 8472))
    until(lambda: agent.status()["firewall"]["dropped"] == before + 3, 10, "three are dropped")


def test_a_restart_and_a_kill_lose_no_packet(overlay: Overlay) -> None:
    agent, sender = overlay.agents[0], overlay.rig.containers[0]
    before = what_there_is(agent.host)
    agent.kill()
    agent.start()
    while not_ready(agent):
        assert ping(sender, second(overlay, 2)) is not None
    agent.wait_ready()
    assert what_there_is(agent.host) == before


def not_ready(agent: AgentProcess) -> bool:
    try:
        return agent.missing().startswith("ok") is False
    except OSError:
        return True


def test_the_leases_are_as_flannel_writes_them(overlay: Overlay) -> None:
    is_dual = overlay.agents[0].subnets.second is not None
    for key, value in overlay.registered().items():
        lease = json.loads(value)
        assert "&fd00:5:" in key
        assert key.startswith("/coreos.com/network/subnets/0.0.0.0-0&") is not is_dual
        assert lease["PublicIPv6"].startswith("fd77::")
        assert lease["BackendV6Data"]["VNI"] == 1
        assert ("BackendData" in lease) is is_dual


def test_an_address_that_comes_beside_ours_does_not_move_the_host(overlay: Overlay) -> None:
    # One that floats between hosts: the kernel lists it before the host's own.
    agent = overlay.agents[1]
    namespace = agent.host.namespace
    before = overlay.registered()
    namespace.ip("addr add fd77::f1/64 dev eth0 nodad")
    try:
        for mtu in (1480, 1500):  # when this is followed, the interface has been looked at
            namespace.ip(f"link set eth0 mtu {mtu}")
            until(lambda mtu=mtu: agent.mtu == mtu - 70, 20, "the MTU is taken")
            assert agent.status()["interface"]["address6"] == f"{agent.host.address6}/64"
        agent.kill()
        agent.start()
        agent.wait_ready()
    finally:
        namespace.ip("addr del fd77::f1/64 dev eth0")
    assert overlay.registered() == before
    until(overlay.everybody_answers, 10, "every container answers every other")


def test_a_host_that_gets_another_ipv6_address_is_followed(overlay: Overlay) -> None:
    host, other = overlay.rig.hosts[1], overlay.rig.hosts[0]
    host.namespace.ip("addr add fd77::20/64 dev eth0 nodad", "addr del fd77::2/64 dev eth0")

    def is_followed() -> bool:
        return "dst fd77::20" in other.namespace.run(*["bridge", "fdb", "show", "dev", "np6.1"])

    # A connection to the registry that has lost its address has to be given up first.
    until(is_followed, 60, "the others send to the new address")
    until(overlay.everybody_answers, 20, "every container answers every other")


def test_a_host_that_is_given_up_is_as_it_was(overlay: Overlay) -> None:
    # Last, as it takes a host out. Before the agent forwards, the interface has to be told to go
    # on listening to routers; cleanup knows how both were.
    agent = overlay.agents[2]
    namespace = agent.host.namespace
    assert namespace.sysctl("ipv6/conf/all/forwarding") == "1"
    assert namespace.sysctl("ipv6/conf/eth0/accept_ra") == "2"
    agent.kill()
    namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )
    assert namespace.sysctl("ipv6/conf/all/forwarding") == "0"
    assert namespace.sysctl("ipv6/conf/eth0/accept_ra") == "1"
    assert namespace.run(*["ip", "-6", "route", "show", "proto", "181"]) == ""
    assert "np6.1" not in namespace.run("ip", "link")
    assert "netplane" not in namespace.run("nft", "list", "tables")
