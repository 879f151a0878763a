"""Routes to neighbours over IPv6: host-gw beside IPv4 and alone, and vxlan with DirectRouting."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import DUAL, ONLY_IPV6, PREFIX, AgentProcess, Overlay, until
from tests.net.packets import mesh, mesh6, ping, ping_all
from tests.net.routed import (
    ADDRESS_BACK,
    DEFAULT_BACK,
    DRIFTS,
    HEALED_WITHIN_S,
    drift,
    refused,
    routes,
    subnet_of,
    wanted,
)
from tests.net.test_inspection import inspect, wrong

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
BELOW = '"IPv6SubnetMax":"fd00:5:0:efff::","Backend"'
"""What is above is leased to nobody, and free for what tests make up."""
NETWORKS = {
    name: network.replace('"Backend"', BELOW).replace("vxlan", "host-gw")
    for name, network in (("dual", DUAL), ("only-ipv6", ONLY_IPV6))
}
FAR = "fd00:5:0:fff0::"


@pytest.fixture(scope="module", params=NETWORKS)
def overlay(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    flags = ("--heal-interval", "1h", "--ip-blackhole-route")
    with Overlay(3, flags=flags, network=NETWORKS[request.param]) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def whole(overlay: Overlay, agent: AgentProcess) -> set[tuple[str, str, str]]:
    """Return all routes of ours that there should be."""
    return {(subnet_of(agent, 6), "blackhole", "lo"), *wanted(overlay, agent, 6)}


def test_every_peer_is_a_route_to_its_host_and_nothing_else_is_made(overlay: Overlay) -> None:
    for agent in overlay.agents:
        assert routes(agent.host, 6) == whole(overlay, agent)
        links = agent.host.namespace.json("ip", "-j", "link")
        assert {one["ifname"] for one in links} == {"lo", "eth0", "br0", "veth1"}
        assert agent.mtu == 1500
    for value in overlay.registered().values():
        lease = json.loads(value)
        assert lease["BackendType"] == "host-gw"
        assert not {"BackendData", "BackendV6Data"} & lease.keys()
    # Packets of the whole size of the wire cross in one piece.
    containers = overlay.rig.containers
    pairs = mesh6(containers) or mesh(containers)
    assert None not in ping_all(pairs, size=1452)


@pytest.mark.alone
def test_what_is_broken_is_whole_within_a_second(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    for name, commands in DRIFTS.items():
        agent.pause()
        try:
            drift(overlay, agent, *commands, version=6)
            assert routes(agent.host, 6) != whole(overlay, agent), name
        finally:
            agent.resume()
        until(lambda: routes(agent.host, 6) == whole(overlay, agent), HEALED_WITHIN_S, name)
    until(overlay.everybody_answers, 20, "every container answers every other")
    agent.wait_ready()


def test_what_the_interface_lacks_is_said_until_it_is_back(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    drift(overlay, agent, "ip link set eth0 down")
    until(lambda: "eth0 is down" in agent.missing(), 20, "that it is down is said")
    drift(overlay, agent, "ip link set eth0 up")
    lacks = f"address {agent.host.address6}/128 dev eth0 is gone, and the others send to it"
    until(lambda: lacks in agent.missing(), 20, "that its address is gone is said")
    code, rows = inspect(agent, "check")
    assert code == 1
    assert "interface" in {subject for subject, _ in wrong(rows)}
    drift(overlay, agent, ADDRESS_BACK, DEFAULT_BACK, version=6)
    if agent.subnets.second is not None:
        drift(overlay, agent, DEFAULT_BACK)
    agent.wait_ready()
    assert routes(agent.host, 6) == whole(overlay, agent)
    until(overlay.everybody_answers, 20, "every container answers every other")


def test_check_and_trace_tell_of_ipv6(overlay: Overlay) -> None:
    agent, other, _ = overlay.agents
    here, there, _ = overlay.rig.containers
    way = (here.address6, there.address6) if here.address6 else (here.address, there.address)
    assert ping(here, way[1]) is not None
    code, rows = inspect(agent, "trace", *way)
    assert (code, wrong(rows)) == (0, [])
    texts = {subject: text for subject, _, text in rows}
    assert texts["route"] == f"route {subnet_of(other, 6)} via {other.host.address6} dev eth0"
    [link] = other.host.namespace.json("ip", "-j", "link", "show", "eth0")
    assert texts["neighbour"] == f"host {other.host.address6} is {link['address']} on eth0"
    code, rows = inspect(agent, "check")
    assert (code, wrong(rows)) == (0, [])
    assert {text for subject, _, text in rows if subject == "objects"} == {
        "3 as they should be, 2 peers"
    }


def test_a_host_on_another_link_is_named_and_the_others_are_served(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    is_dual = agent.subnets.second is not None
    key = f"{PREFIX}subnets/{'10.5.254.0-24' if is_dual else '0.0.0.0-0'}&{FAR}-64"
    public = "10.77.0.99" if is_dual else "0.0.0.0"
    overlay.put_leased(
        key, f'{{"PublicIP":"{public}","PublicIPv6":"2001:db8::9","BackendType":"host-gw"}}'
    )
    try:
        until(lambda: f"{FAR}/64" in refused(agent), 20, "it is refused")
        assert refused(agent)[f"{FAR}/64"].startswith(
            f"its host 2001:db8::9 is not on the link of eth0 ({agent.host.address6}/64)"
        )
        assert routes(agent.host, 6) == whole(overlay, agent)
        assert overlay.everybody_answers()
    finally:
        overlay.kvctl("del", key)
    until(lambda: refused(agent) == {}, 20, "nothing is refused")


def test_cleanup_leaves_nothing(overlay: Overlay) -> None:
    agent = overlay.agents.pop()
    agent.kill()
    agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )
    assert routes(agent.host, 6) == set()
    assert agent.host.namespace.sysctl("ipv6/conf/all/forwarding") == "0"
    assert agent.host.namespace.sysctl("ipv6/conf/eth0/accept_ra") == "1"
    assert "netplane" not in agent.host.namespace.run("nft", "list", "tables")


def test_direct_routes_are_taken_to_hosts_on_the_link_and_to_no_others() -> None:
    direct = '"Backend":{"DirectRouting":true,'
    network = ONLY_IPV6.replace('"Backend"', BELOW).replace('"Backend":{', direct)
    with Overlay(2, flags=("--heal-interval", "1h"), network=network) as overlay:
        overlay.add_containers(1)
        far = f"{PREFIX}subnets/0.0.0.0-0&{FAR}-64"
        overlay.put_leased(
            far,
            '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::9","BackendType":"vxlan",'
            '"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}',
        )
        agent, other = overlay.agents
        expected = {
            (subnet_of(other, 6), other.host.address6, "eth0"),
            (f"{FAR}/64", FAR, "np6.1"),
        }
        until(lambda: routes(agent.host, 6) == expected, 20, "both are reached")
        until(overlay.everybody_answers, 20, "every container answers every other")
        for name in ("routes are flushed", "the interface goes down and up"):
            agent.pause()
            try:
                drift(overlay, agent, *DRIFTS[name], version=6)
                assert routes(agent.host, 6) != expected
            finally:
                agent.resume()
            until(lambda: routes(agent.host, 6) == expected, 20, name)
        here, there = overlay.rig.containers
        code, rows = inspect(agent, "trace", here.address, there.address)
        assert (code, wrong(rows)) == (0, [])
        assert f"via {other.host.address6} dev eth0" in str(rows)
