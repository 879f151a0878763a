"""What the kernel sends to values: pure, bytes in. Requests are in `messages`.

A message that is cut short or does not add up is a `NetlinkFormatError`, never a guess.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netplane.netlink.messages import (
    ADDRESS,
    AF_BRIDGE,
    ATTRIBUTE,
    HEADER,
    IFF_UP,
    LINK,
    NEIGHBOUR,
    NTF_SELF,
    NUD_FAILED,
    NUD_PERMANENT,
    ROUTE,
    RT_TABLE_MAIN,
    RTNH_F_ONLINK,
    U32,
    Type,
)
from netplane.netlink.objects import BLACKHOLE, Address, FdbEntry, Neighbour, Route

DUMP_INTERRUPTED = 0x10
CAPPED = 0x100
ACK_TLVS = 0x200
KIND_MASK = 0x3FFF
"""The two bits above say how an attribute is to be read, not which it is."""

FAMILIES = {2, 10}

OPERATIONAL = b"\6"
"""IF_OPER_UP of RFC 2863."""


class NetlinkFormatError(Exception):
    """The bytes are no netlink message, or not of the layout that its type has."""


class Message(NamedTuple):
    """A message as it came."""

    type: int
    flags: int
    sequence: int
    port: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended."""

    code: int
    """0, or the errno."""
    text: str
    """In the kernel's words where it has some."""


SUCCESS = Outcome(0, "")
_CODE = struct.Struct("=i")
_ACK = struct.Struct(f"{HEADER.format}i16x")
"""A header, the code, and of the request its header only, as NETLINK_CAP_ACK asks for."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: bytes
    kind: str = ""
    """Empty: hardware."""
    vxlan: VxlanData | None = None
    master: int = 0
    """The index of the bridge that it is a port of; 0: of none."""
    alias: str = ""
    running: bool = False
    """Whether it is told that its cable is in: packets pass. Of bridges and pairs of devices."""
    hairpin: bool = False
    """Whether a bridge lets the packets of this port of it return through it."""


@dataclass(frozen=True, slots=True)
class VxlanData:
    """What only a vxlan device has."""

    vni: int
    parent: int
    local: bytes
    port: int
    learning: bool
    gbp: bool
    group: bytes = b""
    """The default remote, if any; we want none."""


class Resolved(NamedTuple):
    """What a link knows of a neighbour, found out or told."""

    address: bytes
    mac: bytes
    """Empty: it has not answered yet."""
    has_failed: bool
    """It did not answer."""


def messages(data: bytes, *, but_of_port: int | None = None) -> Iterator[Message]:
    """Split what one read gave; without the messages that carry a port, if one is given."""
    offset, size = 0, len(data)
    while offset < size:
        if size - offset < 16:
            raise NetlinkFormatError(f"{size - offset} bytes where a header of 16 begins")
        length, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if not 16 <= length <= size - offset:
            raise NetlinkFormatError(f"length {length} in {size - offset} bytes")
        if port != but_of_port:
            yield Message(kind, flags, sequence, port, data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from an offset on; of one that comes twice, the last."""
    found = {}
    size = len(data)
    unpack = ATTRIBUTE.unpack_from
    while offset + 4 <= size:
        length, kind = unpack(data, offset)
        if length < 4 or offset + length > size:
            raise NetlinkFormatError(f"attribute {kind & KIND_MASK} of length {length}")
        found[kind & KIND_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def is_success(data: bytes, number: int) -> bool:
    """Tell whether a read gave nothing but word of success, of this request: as nearly all do."""
    if len(data) != _ACK.size:
        return False
    _, kind, flags, sequence, _, code = _ACK.unpack_from(data)
    is_plain = kind == Type.ERROR and flags & (CAPPED | ACK_TLVS) == CAPPED
    return is_plain and sequence == number and not code


def outcome(message: Message) -> Outcome:
    """Read an acknowledgement, or the end of a dump."""
    body = message.body
    if len(body) < 4:
        raise NetlinkFormatError(f"an outcome of {len(body)} bytes")
    code: int = -_CODE.unpack_from(body)[0]
    if not code and not message.flags & ACK_TLVS:
        return SUCCESS
    offset = 4
    if message.type == Type.ERROR:
        # Behind the code stands the request, or only its header when it is capped.
        offset += 16
        if not message.flags & CAPPED and len(body) >= 20:
            offset = 4 + ((HEADER.unpack_from(body, 4)[0] + 3) & ~3)
    text = os.strerror(code) if code else ""
    if message.flags & ACK_TLVS:
        said = attributes(body, offset).get(1, b"").rstrip(b"\0")
        if said:
            text = said.decode(errors="replace")
            if code:
                text += f" ({errno.errorcode.get(code, code)})"
    return Outcome(code, text)


def link(body: bytes) -> Link:
    """Read RTM_NEWLINK or RTM_DELLINK."""
    _check(body, LINK)
    _, _, index, flags, _ = LINK.unpack_from(body)
    found = attributes(body, LINK.size)
    info = attributes(found.get(18, b""))
    kind = _name(info.get(1))
    return Link(
        index=index,
        name=_name(found.get(3)),
        up=bool(flags & IFF_UP),
        mtu=_u32(found.get(4)),
        mac=found.get(1, b""),
        kind=kind,
        vxlan=_vxlan(attributes(info.get(2, b""))) if kind == "vxlan" else None,
        master=_u32(found.get(10)),
        alias=_name(found.get(20)),
        running=found.get(16) == OPERATIONAL,
        hairpin=_name(info.get(4)) == "bridge" and attributes(info.get(5, b"")).get(4) == b"\1",
    )


def _vxlan(data: dict[int, bytes]) -> VxlanData:
    return VxlanData(
        vni=_u32(data.get(1)),
        parent=_u32(data.get(3)),
        local=data.get(4, b"") or data.get(17, b""),
        port=int.from_bytes(data.get(15, b"")),
        learning=data.get(7, b"\0") != b"\0",
        gbp=23 in data,
        group=data.get(2, b"") or data.get(16, b""),
    )


def address(body: bytes, names: Mapping[int, str]) -> Address | None:
    """Read RTM_NEWADDR or RTM_DELADDR; None: on a link that we do not know."""
    _check(body, ADDRESS)
    _, prefix_len, _, _, index = ADDRESS.unpack_from(body)
    if index not in names:
        return None
    found = attributes(body, ADDRESS.size)
    # On IPv4 the local one; IPv6 has only the other.
    packed = found.get(2) or found.get(1, b"")
    return Address(names[index], packed, prefix_len)


def is_permanent(body: bytes) -> bool:
    """Tell whether an RTM_NEWNEIGH stays until somebody removes it; all that we write does."""
    _check(body, NEIGHBOUR)
    return bool(NEIGHBOUR.unpack_from(body)[2] & NUD_PERMANENT)


def resolved(body: bytes) -> Resolved:
    """Read RTM_NEWNEIGH of whatever state."""
    _check(body, NEIGHBOUR)
    state = NEIGHBOUR.unpack_from(body)[2]
    found = attributes(body, NEIGHBOUR.size)
    return Resolved(found.get(1, b""), found.get(2, b""), bool(state & NUD_FAILED))


def neighbour(body: bytes, names: Mapping[int, str]) -> Neighbour | FdbEntry | None:
    """Read RTM_NEWNEIGH or RTM_DELNEIGH; None: on a link or of a family unknown to us."""
    _check(body, NEIGHBOUR)
    family, index, _, flags, _ = NEIGHBOUR.unpack_from(body)
    if index not in names:
        return None
    found = attributes(body, NEIGHBOUR.size)
    if family == AF_BRIDGE:
        # What the bridge above knows is not what the device knows.
        if not flags & NTF_SELF:
            return None
        return FdbEntry(names[index], found.get(2, b""), found.get(1, b""))
    if family not in FAMILIES:
        return None
    protocol = (found.get(12) or b"\0")[0]
    return Neighbour(names[index], found.get(1, b""), found.get(2, b""), protocol)


def route(body: bytes, names: Mapping[int, str], *, any_table: bool = False) -> Route | None:
    """Read RTM_NEWROUTE or RTM_DELROUTE; None: of another table or family.

    Through a link that we do not know, several, or none: `link` is empty.
    """
    _check(body, ROUTE)
    family, prefix_len, _, tos, table, protocol, _, kind, flags = ROUTE.unpack_from(body)
    if (table != RT_TABLE_MAIN and not any_table) or family not in FAMILIES:
        return None
    found = attributes(body, ROUTE.size)
    # The kernel puts a blackhole of IPv6 on the loopback, where nobody has asked for it.
    link = "" if kind == BLACKHOLE else names.get(_u32(found.get(4)), "")
    return Route(
        link=link,
        destination=found.get(1, b"\0" * (4 if family == 2 else 16)),
        prefix_len=prefix_len,
        gateway=found.get(5, b""),
        onlink=bool(flags & RTNH_F_ONLINK),
        metric=_u32(found.get(6)),
        tos=tos,
        kind=kind,
        protocol=protocol,
    )


def _check(body: bytes, layout: struct.Struct) -> None:
    if len(body) < layout.size:
        raise NetlinkFormatError(f"{len(body)} bytes where {layout.size} are the least")


def _name(payload: bytes | None) -> str:
    # The kernel takes any bytes for a name but a slash, a colon and spaces.
    return (payload or b"").rstrip(b"\0").decode(errors="replace")


def _u32(payload: bytes | None) -> int:
    if payload is None:
        return 0
    if len(payload) != 4:
        raise NetlinkFormatError(f"a number of {len(payload)} bytes where 4 are meant")
    number: int = U32.unpack(payload)[0]
    return number
