"""Peers become kernel objects; one that cannot be served is named and no other suffers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.backend import BackendError, External
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.netlink.objects import (
    BLACKHOLE,
    LAST,
    Address,
    FdbEntry,
    Neighbour,
    Route,
    Sysctl,
    VxlanLink,
)
from netplane.subnet.fields import VNI_MAX
from netplane.subnet.lease import Lease

NETWORK = IPv4Network("10.5.0.0/16")
SUBNET = IPv4Network("10.5.1.0/24")
MAC = "02:00:00:00:00:01"
PEER = Lease(
    IPv4Network("10.5.2.0/24"),
    IPv4Address("192.0.2.2"),
    "vxlan",
    {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"},
    create_revision=5,
)


def backend(mtu: int = 1500, **options: Any) -> VxlanBackend:
    return VxlanBackend(
        VxlanConfig(**options),
        network=NETWORK,
        external=External("eth0", IPv4Interface("192.0.2.1/24"), mtu),
        mac=MAC,
    )


def packed(text: str) -> bytes:
    return IPv4Address(text).packed


def test_a_peer_is_three_objects_beside_our_own() -> None:
    mac, gateway = bytes.fromhex("020000000002"), packed("10.5.2.0")
    link = VxlanLink(
        "np.1", 1, "eth0", packed("192.0.2.1"), 8472, 1450, bytes.fromhex("020000000001")
    )
    assert backend().plan(SUBNET, {PEER.subnet: PEER}).objects == {
        link,
        Address("np.1", packed("10.5.1.0"), 32),
        Sysctl("ipv4/ip_forward", "1"),
        Sysctl("ipv4/conf/np.1/forwarding", "1"),
        Sysctl("ipv4/conf/np.1/rp_filter", "2"),
        Neighbour("np.1", gateway, mac),
        FdbEntry("np.1", mac, packed("192.0.2.2")),
        Route("np.1", gateway, 24, gateway, onlink=True),
    }


def test_a_blackhole_ends_what_no_container_takes() -> None:
    made = VxlanBackend(
        VxlanConfig(),
        network=NETWORK,
        external=External("eth0", IPv4Interface("192.0.2.1/24"), 1500),
        mac=MAC,
        blackhole=True,
    )
    extra = made.plan(SUBNET, {}).objects - backend().plan(SUBNET, {}).objects
    assert extra == {Route("", packed("10.5.1.0"), 24, b"", metric=LAST, kind=BLACKHOLE)}
    other = IPv4Network("10.5.9.0/24")
    assert not extra & made.plan(other, {}).objects


def test_packets_may_come_from_all_peers_and_a_host_stays_as_long_as_a_lease_of_it() -> None:
    # Also from one that cannot be served: it may serve us.
    bad = replace(PEER, subnet=IPv4Network("10.5.3.0/24"), public_ip=IPv4Address("192.0.2.3"))
    again = replace(PEER, subnet=IPv4Network("10.5.4.0/24"), backend_data=None)
    here = backend()
    plan = here.plan(SUBNET, {one.subnet: one for one in (PEER, bad, again)})
    assert plan.vteps == {PEER.public_ip, bad.public_ip}
    assert here.plan(SUBNET, {again.subnet: again}).vteps == {PEER.public_ip}
    assert here.plan(SUBNET, {}).vteps == frozenset()


def test_null_leaves_a_field_as_it_is() -> None:
    names = ("vni", "port", "mtu", "learning", "gbp", "directrouting")
    assert VxlanConfig.parse(dict.fromkeys(names)) == VxlanConfig()


def test_the_lease_tells_others_what_flannel_tells() -> None:
    assert backend(vni=7).lease_data() == {"VNI": 7, "VtepMAC": MAC}


def test_the_plan_follows_its_arguments_whatever_was_planned_before() -> None:
    # Leases that stay are not looked at again, so this could go wrong.
    here = backend()
    first = here.plan(SUBNET, {PEER.subnet: PEER})
    moved = replace(PEER, public_ip=IPv4Address("192.0.2.9"))
    assert here.plan(SUBNET, {moved.subnet: moved}) == backend().plan(SUBNET, {moved.subnet: moved})
    assert here.plan(SUBNET, {PEER.subnet: PEER}) == first
    assert here.plan(SUBNET, {}) == backend().plan(SUBNET, {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend_type": "host-gw"}, "its backend is host-gw, ours vxlan"),
        ({"backend_type": ""}, "its backend is udp, ours vxlan"),
        ({"backend_data": None}, "it has no BackendData"),
        ({"backend_data": [1]}, "it has no BackendData"),
        ({"backend_data": {"VNI": 2, "VtepMAC": MAC}}, "its VNI is 2, ours 1"),
        ({"backend_data": {"VNI": 1}}, "its VtepMAC None is no unicast MAC address"),
        ({"backend_data": {"VNI": 1, "VtepMAC": 5}}, "its VtepMAC 5 is no unicast MAC address"),
        (
            {"backend_data": {"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"}},
            "its VtepMAC '01:00:5e:00:00:01' is no unicast MAC address",
        ),
        (
            {"backend_data": {"VNI": 1, "VtepMAC": "00:00:00:00:00:00"}},
            "its VtepMAC '00:00:00:00:00:00' is no unicast MAC address",
        ),
        (
            {"backend_data": {"VNI": 1, "VtepMAC": MAC}},
            "its VtepMAC 02:00:00:00:00:01 is also that of us",
        ),
    ],
)
def test_a_peer_that_cannot_be_served_is_refused_and_the_others_served(
    changes: dict[str, Any], reason: str
) -> None:
    bad = replace(PEER, subnet=IPv4Network("10.5.3.0/24"), create_revision=1, **changes)
    plan = backend().plan(SUBNET, {PEER.subnet: PEER, bad.subnet: bad})
    assert plan.refused == {"10.5.3.0/24": reason}
    assert plan.objects == backend().plan(SUBNET, {PEER.subnet: PEER}).objects


def test_of_two_peers_with_one_mac_the_older_is_served() -> None:
    younger = replace(PEER, subnet=IPv4Network("10.5.0.0/24"), create_revision=6)
    plan = backend().plan(SUBNET, {younger.subnet: younger, PEER.subnet: PEER})
    assert plan.refused == {
        "10.5.0.0/24": "its VtepMAC 02:00:00:00:00:02 is also that of 10.5.2.0/24"
    }
    assert plan.objects == backend().plan(SUBNET, {PEER.subnet: PEER}).objects


def test_what_older_and_other_writers_wrote_is_understood() -> None:
    old = replace(PEER, backend_data={"vtepmac": "02:00:00:00:00:02".upper()})
    plan = backend().plan(SUBNET, {old.subnet: old})
    assert plan == backend().plan(SUBNET, {PEER.subnet: PEER})


def test_direct_routing_is_for_peers_on_the_same_link_only() -> None:
    far = replace(
        PEER,
        subnet=IPv4Network("10.5.3.0/24"),
        public_ip=IPv4Address("198.51.100.3"),
        backend_data={"VNI": 1, "VtepMAC": "02:00:00:00:00:03"},
    )
    objects = (
        backend(direct_routing=True).plan(SUBNET, {PEER.subnet: PEER, far.subnet: far}).objects
    )
    assert {item for item in objects if isinstance(item, Route)} == {
        Route("eth0", packed("10.5.2.0"), 24, packed("192.0.2.2")),
        Route("np.1", packed("10.5.3.0"), 24, packed("10.5.3.0"), onlink=True),
    }
    assert [item.destination for item in objects if isinstance(item, FdbEntry)] == [
        packed("198.51.100.3")
    ]


@given(st.data())
def test_a_plan_that_goes_on_from_the_last_is_as_one_made_anew(data: st.DataObject) -> None:
    direct = data.draw(st.booleans())
    lasting = backend(direct_routing=direct)
    peers: dict[IPv4Network, Lease] = {}
    for revision in range(1, data.draw(st.integers(2, 10))):
        number = data.draw(st.integers(2, 5))
        subnet = IPv4Network(f"10.5.{number}.0/24")
        peers = peers.copy()
        if data.draw(st.booleans()):
            host = data.draw(st.integers(2, 5))
            address = IPv4Address(f"{data.draw(st.sampled_from(['192.0.2', '198.51.100']))}.{host}")
            mac = f"02:00:00:00:00:{data.draw(st.just(number) | st.integers(1, 5)):02x}"
            backend_data = {"VNI": data.draw(st.sampled_from([1, 1, 1, 2])), "VtepMAC": mac}
            peers[subnet] = Lease(subnet, address, "vxlan", backend_data, create_revision=revision)
        else:
            peers.pop(subnet, None)
        ours = data.draw(st.sampled_from([SUBNET, SUBNET, IPv4Network("10.5.9.0/24")]))
        assert lasting.plan(ours, peers) == backend(direct_routing=direct).plan(ours, peers)


def test_the_configuration_is_read_as_flannel_reads_it() -> None:
    assert VxlanConfig.parse({"Type": "vxlan"}) == VxlanConfig()
    found = VxlanConfig.parse(
        {"vni": 9, "PORT": 4789, "MTU": 9000, "learning": True, "GBP": True, "directRouting": True}
    )
    assert found == VxlanConfig(9, 4789, 9000, learning=True, gbp=True, direct_routing=True)
    assert VxlanConfig.parse({"Port": 0}).port == 8472


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"VNI": 0}, "Backend: VNI 0 is not a whole number from 1 to 16777215"),
        ({"VNI": VNI_MAX + 1}, "Backend: VNI 16777216"),
        ({"VNI": True}, "Backend: VNI True"),
        ({"Port": "8472"}, "Backend: Port '8472'"),
        ({"Port": 65536}, "Backend: Port 65536"),
        ({"MTU": -1}, "Backend: MTU -1"),
        ({"DirectRouting": "yes"}, "Backend: DirectRouting is neither true nor false"),
    ],
)
def test_a_wrong_configuration_is_explained(given: dict[str, object], text: str) -> None:
    with pytest.raises(BackendError, match="^" + text):
        VxlanConfig.parse(given)


def test_the_mtu_leaves_room_for_what_is_around_the_packet() -> None:
    assert backend(mtu=9000).mtu == 8950
    assert (
        VxlanBackend(
            VxlanConfig(mtu=1400),
            network=NETWORK,
            external=External("eth0", IPv4Interface("192.0.2.1/24"), 9000),
            mac=MAC,
        ).mtu
        == 1350
    )
    with pytest.raises(BackendError, match="at least 626 are needed"):
        backend(mtu=600)


def test_names_fit_the_kernel_at_the_largest_vni() -> None:
    assert len(backend(vni=VNI_MAX).link) <= 15
