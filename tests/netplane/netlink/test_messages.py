"""Requests byte by byte: against fixtures, and against an independent encoder."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netplane.netlink import messages
from netplane.netlink.messages import Request
from netplane.netlink.objects import (
    BLACKHOLE,
    LAST,
    METRIC6,
    Address,
    FdbEntry,
    Neighbour,
    Route,
    VxlanLink,
)

MAC = bytes.fromhex("02aabbccddee")
ROUTE = Route("np.1", packed := bytes([10, 5, 7, 0]), 24, packed, onlink=True)
NEIGHBOUR = Neighbour("np.1", packed, MAC)
FDB = FdbEntry("np.1", MAC, bytes([192, 0, 2, 7]))
ADDRESS = Address("np.1", packed, 32)
LINK = VxlanLink("np.1", 1, "eth0", bytes([192, 0, 2, 1]), 8472, 1450, MAC)


def other_encoder(
    kind: Callable[[], Any], type_: int, how: int, sequence: int, **fields: object
) -> bytes:
    message = kind()
    message["header"] = {"type": type_, "flags": how, "sequence_number": sequence, "pid": 0}
    for name, value in fields.items():
        message[name] = value
    message.encode()
    return bytes(message.data)


def test_a_route_is_these_bytes() -> None:
    # The onlink route of one peer, as the kernel gets it from us 1,000 times at a start.
    assert messages.add(ROUTE, 7).encode(3).hex(" ", 4) == (
        "34000000 18000506 03000000 00000000"  # 52 bytes, new, create and exclusive and ack
        " 02180000 feb50001 04000000"  # IPv4 /24, main table, 181, universe, unicast, onlink
        " 08000100 0a050700"  # destination
        " 08000400 07000000"  # link
        " 08000500 0a050700"  # gateway
    )


def test_a_neighbour_is_these_bytes() -> None:
    assert messages.add(NEIGHBOUR, 7).encode(4).hex(" ", 4) == (
        "38000000 1c000505 04000000 00000000"
        " 02000000 07000000 80000000"
        " 08000100 0a050700"
        " 0a000200 02aabbcc ddee0000"
        " 05000c00 b5000000"
    )


def test_a_forwarding_entry_is_these_bytes() -> None:
    assert messages.add(FDB, 7).encode(5).hex(" ", 4) == (
        "30000000 1c000505 05000000 00000000"
        " 07000000 07000000 80000200"
        " 0a000200 02aabbcc ddee0000"
        " 08000100 c0000207"
    )


@pytest.mark.parametrize("metric", [0, 30])
@pytest.mark.parametrize("replace", [False, True])
def test_routes_agree_with_another_encoder(metric: int, *, replace: bool) -> None:
    item = ROUTE._replace(metric=metric)
    attributes = [("RTA_DST", "10.5.7.0"), ("RTA_OIF", 7), ("RTA_GATEWAY", "10.5.7.0")]
    if metric:
        attributes.append(("RTA_PRIORITY", metric))
    assert messages.add(item, 7, replace=replace).encode(9) == other_encoder(
        rtmsg, 24, 0x5 | 0x400 | (0x100 if replace else 0x200), 9,
        family=2, dst_len=24, table=254, proto=181, scope=0, type=1, flags=4, attrs=attributes,
    )  # fmt: skip


BLACK = Route("", packed, 24, b"", metric=LAST, kind=BLACKHOLE)


def test_a_blackhole_is_these_bytes() -> None:
    # On no link: the kernel refuses one that names any.
    assert messages.add(BLACK, 0).encode(6).hex(" ", 4) == (
        "2c000000 18000506 06000000 00000000"
        " 02180000 feb50006 00000000"  # IPv4 /24, main table, 181, universe, blackhole
        " 08000100 0a050700"
        " 08000600 ffffffff"  # the last of all metrics
    )
    assert messages.remove(BLACK, 0).encode(9) == other_encoder(
        rtmsg, 25, 0x5, 9,
        family=2, dst_len=24, table=254, proto=181, scope=0, type=6, flags=0,
        attrs=[("RTA_DST", "10.5.7.0"), ("RTA_PRIORITY", LAST)],
    )  # fmt: skip
    assert str(BLACK) == "route blackhole 10.5.7.0/24"


def test_a_route_on_the_link_agrees_with_another_encoder() -> None:
    item = Route("eth0", packed, 24, b"")
    assert messages.remove(item, 2).encode(9) == other_encoder(
        rtmsg, 25, 0x5, 9,
        family=2, dst_len=24, table=254, proto=181, scope=253, type=1, flags=0,
        attrs=[("RTA_DST", "10.5.7.0"), ("RTA_OIF", 2)],
    )  # fmt: skip


@pytest.mark.parametrize(("request_", "type_", "flags"), [
    (messages.add(NEIGHBOUR, 7), 28, 0x505), (messages.remove(NEIGHBOUR, 7), 29, 0x5),
])  # fmt: skip
def test_neighbours_agree_with_another_encoder(request_: Request, type_: int, flags: int) -> None:
    assert request_.encode(9) == other_encoder(
        ndmsg, type_, flags, 9,
        family=2, ifindex=7, state=0x80, flags=0, ndm_type=0,
        attrs=[
            ("NDA_DST", "10.5.7.0"), ("NDA_LLADDR", MAC.hex(":")), ("NDA_PROTOCOL", 181),
        ],
    )  # fmt: skip


@pytest.mark.parametrize(("request_", "type_", "flags"), [
    (messages.add(FDB, 7), 28, 0x505), (messages.remove(FDB, 7), 29, 0x5),
])  # fmt: skip
def test_forwarding_entries_agree_with_another_encoder(
    request_: Request, type_: int, flags: int
) -> None:
    assert request_.encode(9) == other_encoder(
        ndmsg, type_, flags, 9,
        family=7, ifindex=7, state=0x80, flags=0x2, ndm_type=0,
        attrs=[("NDA_LLADDR", MAC.hex(":")), ("NDA_DST", "192.0.2.7")],
    )  # fmt: skip


def test_addresses_agree_with_another_encoder() -> None:
    assert messages.add(ADDRESS, 7).encode(9) == other_encoder(
        ifaddrmsg, 20, 0x605, 9,
        family=2, prefixlen=32, flags=0, scope=0, index=7,
        attrs=[("IFA_LOCAL", "10.5.7.0"), ("IFA_ADDRESS", "10.5.7.0")],
    )  # fmt: skip


@pytest.mark.parametrize("gbp", [False, True])
def test_a_vxlan_link_agrees_with_another_encoder(*, gbp: bool) -> None:
    data: list[tuple[str, object]] = [
        ("IFLA_VXLAN_ID", 1), ("IFLA_VXLAN_LINK", 2), ("IFLA_VXLAN_LOCAL", "192.0.2.1"),
        ("IFLA_VXLAN_LEARNING", 0), ("IFLA_VXLAN_PORT", 8472),
    ]  # fmt: skip
    if gbp:
        data.append(("IFLA_VXLAN_GBP", b""))
    assert messages.add(LINK._replace(gbp=gbp), 2).encode(9) == other_encoder(
        ifinfmsg, 16, 0x605, 9,
        family=0, ifi_type=0, index=0, flags=1, change=1,
        attrs=[
            ("IFLA_IFNAME", "np.1"), ("IFLA_ADDRESS", MAC.hex(":")), ("IFLA_MTU", 1450),
            ("IFLA_LINKINFO", {"attrs": [
                ("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data}),
            ]}),
        ],
    )  # fmt: skip


def test_the_other_family_is_told_by_the_length() -> None:
    address = bytes.fromhex("fd00" + "00" * 13 + "07")
    route = Route("np6", address, 64, address, onlink=True, metric=METRIC6)
    assert messages.add(route, 7).encode(9) == other_encoder(
        rtmsg, 24, 0x605, 9,
        family=10, dst_len=64, table=254, proto=181, scope=0, type=1, flags=4,
        attrs=[
            ("RTA_DST", "fd00::7"), ("RTA_OIF", 7), ("RTA_GATEWAY", "fd00::7"),
            ("RTA_PRIORITY", 1024),
        ],
    )  # fmt: skip
    # Flag 2: usable at once, nobody else is asked whether he has it.
    assert messages.add(Address("np6", address, 128), 7).encode(9) == other_encoder(
        ifaddrmsg, 20, 0x605, 9,
        family=10, prefixlen=128, flags=2, scope=0, index=7,
        attrs=[("IFA_LOCAL", "fd00::7"), ("IFA_ADDRESS", "fd00::7")],
    )  # fmt: skip
    assert messages.add(Neighbour("np6", address, MAC), 7).encode(9) == other_encoder(
        ndmsg, 28, 0x505, 9,
        family=10, ifindex=7, state=0x80, flags=0, ndm_type=0,
        attrs=[("NDA_DST", "fd00::7"), ("NDA_LLADDR", MAC.hex(":")), ("NDA_PROTOCOL", 181)],
    )  # fmt: skip
    assert messages.add(FdbEntry("np6", MAC, address), 7).encode(9) == other_encoder(
        ndmsg, 28, 0x505, 9,
        family=7, ifindex=7, state=0x80, flags=0x2, ndm_type=0,
        attrs=[("NDA_LLADDR", MAC.hex(":")), ("NDA_DST", "fd00::7")],
    )  # fmt: skip


def test_a_vxlan_link_over_ipv6_agrees_with_another_encoder() -> None:
    # Without a word on checksums: outer ones are made and wanted, as `ip link` has it.
    local = bytes.fromhex("fd77" + "00" * 13 + "01")
    assert messages.add(LINK._replace(local=local), 2).encode(9) == other_encoder(
        ifinfmsg, 16, 0x605, 9,
        family=0, ifi_type=0, index=0, flags=1, change=1,
        attrs=[
            ("IFLA_IFNAME", "np.1"), ("IFLA_ADDRESS", MAC.hex(":")), ("IFLA_MTU", 1450),
            ("IFLA_LINKINFO", {"attrs": [
                ("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": [
                    ("IFLA_VXLAN_ID", 1), ("IFLA_VXLAN_LINK", 2), ("IFLA_VXLAN_LOCAL6", "fd77::1"),
                    ("IFLA_VXLAN_LEARNING", 0), ("IFLA_VXLAN_PORT", 8472),
                ]}),
            ]}),
        ],
    )  # fmt: skip


def test_names_fit_the_kernels_limit() -> None:
    assert len(f"np.{2**24 - 1}") <= 15
    assert len(f"np6.{2**24 - 1}") <= 15
    assert str(ROUTE) == "route 10.5.7.0/24 via 10.5.7.0 dev np.1 onlink"
    assert str(IPv4Address(FDB.destination)) in str(FDB)


@pytest.mark.parametrize("mac", [b"", b"\x02", bytes(8), bytes(20)], ids=len)
@pytest.mark.parametrize("size", [4, 16])
def test_what_is_on_a_link_is_removed_whatever_its_mac_is(mac: bytes, size: int) -> None:
    # The kernel may tell of a neighbour without one, or of one of another kind of link.
    neighbour = Neighbour("np.1", address := bytes(range(1, size + 1)), mac, 3)
    assert messages.remove(neighbour, 7).body == (
        messages.NEIGHBOUR.pack(2 if size == 4 else 10, 7, 0x80, 0, 0)
        + messages.attribute(1, address)
        + messages.attribute(2, mac)
        + messages.attribute(12, b"\3")
    )
    # A default remote has an entry without a destination.
    for destination in (address, b""):
        assert messages.remove(FdbEntry("np.1", mac, destination), 7).body == (
            messages.NEIGHBOUR.pack(7, 7, 0x80, 2, 0)
            + messages.attribute(2, mac)
            + messages.attribute(1, destination)
        )
