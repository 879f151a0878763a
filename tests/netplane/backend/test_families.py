"""The same plans for IPv6: what differs is what the kernel and the wire want otherwise."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Interface, IPv6Network

import pytest

from netplane.backend import Backend, BackendError, External, choose
from netplane.backend.vxlan import second_mac
from netplane.netlink.objects import (
    METRIC6,
    Address,
    FdbEntry,
    Neighbour,
    Route,
    Sysctl,
    VxlanLink,
)
from netplane.subnet.config import parse_config
from netplane.subnet.lease import Lease, packed_mac

MAC = "02:00:00:00:00:01"
SUBNET = IPv6Network("fd00:5:0:1::/64")
PEER = Lease(
    IPv6Network("fd00:5:0:2::/64"),
    IPv6Address("fd77::2"),
    "vxlan",
    {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"},
)
SETTINGS = {
    Sysctl("ipv6/conf/all/forwarding", "1"),
    Sysctl("ipv6/conf/eth0/accept_ra", "2", also="0"),
}


def backend(kind: str, mtu: int = 1500, more: str = "") -> Backend:
    value = (
        '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48",'
        f'"Backend":{{"Type":"{kind}"{more}}}}}'
    )
    external = External("eth0", IPv6Interface("fd77::1/64"), mtu)
    return choose.make(parse_config(value.encode()), external=external, mac=MAC)


def test_a_peer_is_three_objects_beside_our_own() -> None:
    mac, gateway = bytes.fromhex("020000000002"), PEER.subnet.network_address.packed
    own = bytes.fromhex("020000000001")
    made = backend("vxlan")
    assert made.plan(SUBNET, {PEER.subnet: PEER}).objects == {
        VxlanLink("np6.1", 1, "eth0", IPv6Address("fd77::1").packed, 8472, 1430, own),
        Address("np6.1", SUBNET.network_address.packed, 128),
        Neighbour("np6.1", gateway, mac),
        FdbEntry("np6.1", mac, IPv6Address("fd77::2").packed),
        Route("np6.1", gateway, 64, gateway, onlink=True, metric=METRIC6),
        Sysctl("ipv6/conf/np6.1/disable_ipv6", "0"),
        Sysctl("ipv6/conf/np6.1/accept_ra", "0"),
        *SETTINGS,
    }
    assert made.mtu == 1430


def test_a_peer_on_the_link_is_one_route_where_that_is_wanted() -> None:
    gateway = PEER.subnet.network_address.packed
    direct = Route("eth0", gateway, 64, PEER.public_ip.packed, metric=METRIC6)
    for made in (backend("vxlan", more=',"DirectRouting":true'), backend("host-gw")):
        peer = Lease(PEER.subnet, PEER.public_ip, made.type, PEER.backend_data)
        plan = made.plan(SUBNET, {peer.subnet: peer})
        assert [item for item in plan.objects if isinstance(item, Route)] == [direct]
        assert plan.objects >= SETTINGS


def test_what_is_too_small_for_ipv6_is_refused() -> None:
    # With less than 1280 bytes the kernel would take IPv6 off the device.
    assert backend("vxlan", mtu=1350).mtu == 1280
    with pytest.raises(BackendError, match="at least 1350 are needed"):
        backend("vxlan", mtu=1349)


def test_the_device_for_ipv6_has_a_mac_of_its_own_that_stays() -> None:
    found = second_mac(MAC)
    assert found == second_mac(MAC)
    assert found != MAC
    assert packed_mac(found) is not None
    assert second_mac("02:00:00:00:00:03") != found
