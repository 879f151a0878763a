"""Objects to netlink requests: pure, bytes out. What the kernel sends is read in `decode`.

Layouts: linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h, linux/if_link.h. All is in the
machine's byte order but the vxlan port.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from netplane.netlink.objects import (
    PROTOCOL,
    UNICAST,
    Address,
    FdbEntry,
    Neighbour,
    Route,
    VxlanLink,
)

NetObject = VxlanLink | Address | Neighbour | FdbEntry | Route

AF_BRIDGE = 7
IPV4_BYTES, IPV6_BYTES, MAC_BYTES = 4, 16, 6
AF_OF_LENGTH = {IPV4_BYTES: 2, IPV6_BYTES: 10}

ACK, DUMP, REQUEST = 0x4, 0x300, 0x1
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
NESTED = 0x8000
"""Of an attribute that holds attributes."""

NUD_FAILED, NUD_PERMANENT = 0x20, 0x80
NTF_SELF = 0x02
IFA_F_NODAD = 0x02
RTNH_F_ONLINK = 4
RTM_F_FIB_MATCH = 0x2000
"""The entry of the table, not what becomes of it for one destination."""
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
ANY_PROTOCOL = 0
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
IFF_UP = 1
SKIP_STATISTICS = 8


class Type(IntEnum):
    """Message types that we send or read."""

    ERROR = 2
    DONE = 3
    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
    NEWADDR = 20
    DELADDR = 21
    GETADDR = 22
    NEWROUTE = 24
    DELROUTE = 25
    GETROUTE = 26
    NEWNEIGH = 28
    DELNEIGH = 29
    GETNEIGH = 30
    NEWNETCONF = 80


HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
LINK = struct.Struct("=BxHiII")  # family, hardware type, index, flags, changed flags
ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
ATTRIBUTE = struct.Struct("=HH")
U32 = struct.Struct("=I")


class Request(NamedTuple):
    """A request without its sequence number, which the socket gives."""

    type: int
    flags: int
    body: bytes

    def encode(self, sequence: int, *, quiet: bool = False) -> bytes:
        """Return the whole message. A quiet one is answered only when it is refused."""
        flags = self.flags & ~ACK | REQUEST if quiet else self.flags | REQUEST
        return HEADER.pack(16 + len(self.body), self.type, flags, sequence, 0) + self.body


def attribute(kind: int, payload: bytes) -> bytes:
    """Return a netlink attribute, padded to 4 bytes; the length leaves the padding out."""
    size = len(payload)
    return ATTRIBUTE.pack(size + 4, kind) + payload + b"\0" * (-size & 3)


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that holds a number of 32 bits."""
    return attribute(kind, U32.pack(value))


def add(item: NetObject, index: int, *, replace: bool = False) -> Request:
    """Return the request that makes an object on the link of this index.

    For a `VxlanLink` the index is that of its parent. Without `replace` an object that is there
    already is an error: it may be somebody else's.
    """
    how = ACK | CREATE
    match item:
        case Route():
            return Request(
                Type.NEWROUTE, how | (REPLACE if replace else EXCLUSIVE), _route(item, index)
            )
        case Neighbour():
            # Everything on a link of ours is for us to write.
            return Request(Type.NEWNEIGH, how | REPLACE, _neighbour(item, index))
        case FdbEntry():
            return Request(Type.NEWNEIGH, how | REPLACE, _fdb_entry(item, index))
        case Address():
            return Request(Type.NEWADDR, how | EXCLUSIVE, _address(item, index))
        case VxlanLink():
            return Request(Type.NEWLINK, how | EXCLUSIVE, _vxlan(item, index))


def remove(item: NetObject, index: int) -> Request:
    """Return the request that removes an object from the link of this index (or that link)."""
    match item:
        case Route():
            # The protocol is compared too: a foreign route in the same place is left alone.
            return Request(Type.DELROUTE, ACK, _route(item, index))
        case Neighbour():
            return Request(Type.DELNEIGH, ACK, _neighbour(item, index))
        case FdbEntry():
            return Request(Type.DELNEIGH, ACK, _fdb_entry(item, index))
        case Address():
            return Request(Type.DELADDR, ACK, _address(item, index))
        case VxlanLink():
            return Request(Type.DELLINK, ACK, LINK.pack(0, 0, index, 0, 0))


def set_link(item: VxlanLink, index: int, *, mac: bool = True) -> Request:
    """Return the request that gives a link its MTU, and its MAC if asked to, and takes it up."""
    body = LINK.pack(0, 0, index, IFF_UP, IFF_UP) + u32(4, item.mtu)
    if mac:
        body += attribute(1, item.mac)
    return Request(Type.NEWLINK, ACK, body)


def rename_link(name: str, index: int) -> Request:
    """Return the request that gives a link a name."""
    body = LINK.pack(0, 0, index, 0, 0) + attribute(3, name.encode() + b"\0")
    return Request(Type.NEWLINK, ACK, body)


def take_link(index: int, *, up: bool) -> Request:
    """Return the request that takes a link up or down."""
    return Request(Type.NEWLINK, ACK, LINK.pack(0, 0, index, IFF_UP if up else 0, IFF_UP))


def get_link(name: str) -> Request:
    """Return the request for one link by its name."""
    body = LINK.pack(0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0") + u32(29, SKIP_STATISTICS)
    return Request(Type.GETLINK, ACK, body)


def dump_vxlan_links() -> Request:
    """Return the request for all vxlan devices."""
    kind = attribute(18, attribute(1, b"vxlan\0"))
    return Request(Type.GETLINK, DUMP, LINK.pack(0, 0, 0, 0, 0) + u32(29, SKIP_STATISTICS) + kind)


def dump_links() -> Request:
    """Return the request for all links."""
    return Request(Type.GETLINK, DUMP, LINK.pack(0, 0, 0, 0, 0) + u32(29, SKIP_STATISTICS))


def get_route(address: bytes) -> Request:
    """Return the request for the route that a packet of this host to an address takes."""
    family, bits = AF_OF_LENGTH[len(address)], len(address) * 8
    body = ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH) + attribute(1, address)
    return Request(Type.GETROUTE, ACK, body)


def dump_addresses(family: int, index: int) -> Request:
    """Return the request for a link's addresses."""
    return Request(Type.GETADDR, DUMP, ADDRESS.pack(family, 0, 0, 0, index))


def dump_neighbours(family: int, index: int) -> Request:
    """Return the request for a link's neighbours."""
    return Request(Type.GETNEIGH, DUMP, NEIGHBOUR.pack(family, 0, 0, 0, 0) + u32(8, index))


def dump_fdb(index: int) -> Request:
    """Return the request for a link's forwarding entries."""
    return Request(Type.GETNEIGH, DUMP, NEIGHBOUR.pack(AF_BRIDGE, index, 0, 0, 0))


def dump_routes(family: int, protocol: int = PROTOCOL, table: int = RT_TABLE_MAIN) -> Request:
    """Return the request for a table's routes of one protocol."""
    body = ROUTE.pack(family, 0, 0, 0, table, protocol, 0, 0, 0)
    return Request(Type.GETROUTE, DUMP, body + u32(15, table))


# What a peer of the usual kind comes to, whole: made of its parts it takes four times as long.
# One for each length of address; the attributes are those that the functions below name.
_VIA, _NEIGHBOUR, _FDB = (
    {size: struct.Struct(layout.replace("?s", f"{size}s")) for size in AF_OF_LENGTH}
    for layout in (
        f"{ROUTE.format} HH?s HHI HH?s",
        f"{NEIGHBOUR.format} HH?s HH6sxx HHBxxx",
        f"{NEIGHBOUR.format} HH6sxx HH?s",
    )
)


def _route(item: Route, index: int) -> bytes:
    size = len(item.destination)
    scope = RT_SCOPE_UNIVERSE if item.gateway or item.kind != UNICAST else RT_SCOPE_LINK
    flags = RTNH_F_ONLINK if item.onlink else 0
    head = (
        AF_OF_LENGTH[size], item.prefix_len, 0, item.tos, RT_TABLE_MAIN, item.protocol, scope,
        item.kind, flags,
    )  # fmt: skip
    if index and len(item.gateway) == size:
        body = _VIA[size].pack(
            *head, size + 4, 1, item.destination, 8, 4, index, size + 4, 5, item.gateway
        )
    else:
        body = ROUTE.pack(*head) + attribute(1, item.destination)
        if index:
            body += u32(4, index)
        if item.gateway:
            body += attribute(5, item.gateway)
    if item.metric:
        body += u32(6, item.metric)
    return body


def _neighbour(item: Neighbour, index: int) -> bytes:
    size = len(item.address)
    head = AF_OF_LENGTH[size], index, NUD_PERMANENT, 0, 0
    if len(item.mac) == MAC_BYTES:
        return _NEIGHBOUR[size].pack(
            *head, size + 4, 1, item.address, MAC_BYTES + 4, 2, item.mac, 5, 12, item.protocol
        )
    body = NEIGHBOUR.pack(*head) + attribute(1, item.address) + attribute(2, item.mac)
    return body + attribute(12, bytes([item.protocol]))


def _fdb_entry(item: FdbEntry, index: int) -> bytes:
    size = len(item.destination)
    head = AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0
    if len(item.mac) == MAC_BYTES and size in _FDB:
        return _FDB[size].pack(*head, MAC_BYTES + 4, 2, item.mac, size + 4, 1, item.destination)
    return NEIGHBOUR.pack(*head) + attribute(2, item.mac) + attribute(1, item.destination)


def _address(item: Address, index: int) -> bytes:
    family = AF_OF_LENGTH[len(item.address)]
    # Nobody else has an address of ours; to look for others who do would keep it unusable at first.
    flags = IFA_F_NODAD if len(item.address) == IPV6_BYTES else 0
    head = ADDRESS.pack(family, item.prefix_len, flags, RT_SCOPE_UNIVERSE, index)
    return head + attribute(2, item.address) + attribute(1, item.address)


def _vxlan(item: VxlanLink, parent: int) -> bytes:
    data = u32(1, item.vni) + u32(3, parent)
    data += attribute(4 if len(item.local) == 4 else 17, item.local)
    data += attribute(7, bytes([item.learning])) + attribute(15, struct.pack("!H", item.port))
    if item.gbp:
        data += attribute(23, b"")
    # The MAC in the creating message: set later, udev would have drawn another one meanwhile.
    return (
        LINK.pack(0, 0, 0, IFF_UP, IFF_UP)
        + attribute(3, item.name.encode() + b"\0")
        + attribute(1, item.mac)
        + u32(4, item.mtu)
        + attribute(18, attribute(1, b"vxlan\0") + attribute(2, data))
    )
