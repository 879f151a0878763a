"""host-gw: a peer is one route, if its host is a neighbour; one that is not is named."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.backend import FORWARDING, External, blackhole_of, forwarding_over
from netplane.backend.host_gw import HostGwBackend
from netplane.netlink.objects import Route, Uplink
from netplane.subnet.lease import Lease, encode_value

NETWORK = IPv4Network("10.5.0.0/16")
SUBNET = IPv4Network("10.5.1.0/24")
PEER = Lease(IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2"), "host-gw", create_revision=5)
OWN = {
    FORWARDING,
    forwarding_over("eth0"),
    Uplink("eth0", IPv4Address("192.0.2.1").packed),
}


def backend(
    address: str = "192.0.2.1/24", *, adopts_flannel: bool = False, blackhole: bool = False
) -> HostGwBackend:
    return HostGwBackend(
        network=NETWORK,
        subnet_len=24,
        external=External("eth0", IPv4Interface(address), 1500),
        adopts_flannel=adopts_flannel,
        blackhole=blackhole,
    )


def route(peer: Lease) -> Route:
    length = peer.subnet.prefixlen
    return Route("eth0", peer.subnet.network_address.packed, length, peer.public_ip.packed)


def test_a_peer_is_one_route_to_its_host() -> None:
    plan = backend().plan(SUBNET, {PEER.subnet: PEER})
    assert plan.objects == OWN | {route(PEER)}
    assert (plan.refused, plan.vteps) == ({}, frozenset())


def test_nothing_is_around_a_packet_and_no_device_is_ours() -> None:
    assert backend().mtu == 1500
    assert backend().scope.link == backend().scope.adopts == ""


def test_the_lease_is_byte_for_byte_as_flannels() -> None:
    here = backend()
    value = encode_value(IPv4Address("192.0.2.1"), here.type, here.lease_data())
    assert value == b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'


def test_routes_of_flannel_are_adopted_only_if_asked_for() -> None:
    assert backend().scope.adopts_routes == 0
    assert backend(adopts_flannel=True).scope.adopts_routes == 24


def test_a_blackhole_ends_what_no_container_takes() -> None:
    here = backend(blackhole=True)
    assert here.plan(SUBNET, {}).objects == OWN | {blackhole_of(SUBNET)}
    other = IPv4Network("10.5.9.0/24")
    assert here.plan(other, {}).objects == OWN | {blackhole_of(other)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"public_ip": IPv4Address("198.51.100.3")},
            "its host 198.51.100.3 is not on the link of eth0 (192.0.2.1/24)",
        ),
        ({"backend_type": "vxlan"}, "its backend is vxlan, ours host-gw"),
        ({"backend_type": ""}, "its backend is udp, ours host-gw"),
    ],
)
def test_a_peer_that_cannot_be_served_is_refused_and_the_others_served(
    changes: dict[str, object], reason: str
) -> None:
    bad = replace(PEER, subnet=IPv4Network("10.5.3.0/24"), **changes)  # type: ignore[arg-type]
    plan = backend().plan(SUBNET, {PEER.subnet: PEER, bad.subnet: bad})
    assert plan.refused.keys() == {"10.5.3.0/24"}
    assert plan.refused["10.5.3.0/24"].startswith(reason)
    assert plan.objects == OWN | {route(PEER)}


def test_with_a_lone_address_the_kernel_judges_who_is_a_neighbour() -> None:
    # As clouds give them: what is on the link is said by routes.
    plan = backend("192.0.2.1/32").plan(SUBNET, {PEER.subnet: PEER})
    assert plan.refused == {}
    assert route(PEER) in plan.objects


@given(st.data())
def test_of_whatever_peers_each_is_served_or_refused_and_a_plan_goes_on_from_the_last(
    data: st.DataObject,
) -> None:
    lasting = backend()
    peers: dict[IPv4Network, Lease] = {}
    before = None
    for revision in range(1, data.draw(st.integers(2, 10))):
        subnet = IPv4Network(f"10.5.{data.draw(st.integers(2, 5))}.0/24")
        peers = peers.copy()
        if data.draw(st.booleans()):
            host = f"{data.draw(st.sampled_from(['192.0.2', '198.51.100']))}.2"
            kind = data.draw(st.sampled_from(["host-gw", "host-gw", "vxlan"]))
            peers[subnet] = Lease(subnet, IPv4Address(host), kind, create_revision=revision)
        else:
            peers.pop(subnet, None)
        ours = data.draw(st.sampled_from([SUBNET, SUBNET, IPv4Network("10.5.9.0/24")]))
        plan = lasting.plan(ours, peers)
        assert plan == backend().plan(ours, peers)
        served = {item for item in plan.objects if isinstance(item, Route)}
        assert served == {
            route(peer) for peer in peers.values() if str(peer.subnet) not in plan.refused
        }
        assert plan.refused.keys() <= {str(subnet) for subnet in peers}
        assert plan.step is not None
        assert plan.step.since - plan.step.gone | plan.step.came == plan.objects
        if before is not None and before[0] == ours:
            assert plan.step.since is before[1].objects
        before = ours, plan
