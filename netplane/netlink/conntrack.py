"""Connections that the kernel tracks, and forgetting some; which ones is not decided here.

Layout: linux/netfilter/nfnetlink_conntrack.h. Numbers are in network byte order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from netplane.netlink import decode
from netplane.netlink.connection import Connection, NetlinkError
from netplane.netlink.kernel import GONE
from netplane.netlink.messages import ACK, AF_OF_LENGTH, DUMP, NESTED, Request, attribute, u32

GET, DELETE = 0x101, 0x102  # subsystem 1 in the upper byte
AF_INET = 2

ORIGINAL, ID, ZONE, FILTER = 1, 12, 18, 25
IP, PROTOCOL = 1, 2
IP_DESTINATION, IP6_DESTINATION = 2, 4
PROTOCOL_NUMBER, PROTOCOL_DESTINATION_PORT = 1, 3
FILTER_ORIGINAL = 1
BY_NUMBER, BY_DESTINATION_PORT = 1 << 3, 1 << 5


class Flow(NamedTuple):
    """One connection, in the direction of its first packet."""

    protocol: int
    destination: bytes
    destination_port: int
    handle: bytes
    """What names it to the kernel."""


def dump_flows(protocol: int, port: int = 0, family: int = AF_INET) -> Request:
    """Return the request for a family's connections of one protocol, and to one port if given.

    Linux before 5.9 sends all there are.
    """
    by = BY_NUMBER
    what = attribute(PROTOCOL_NUMBER, bytes([protocol]))
    if port:
        by |= BY_DESTINATION_PORT
        what += attribute(PROTOCOL_DESTINATION_PORT, port.to_bytes(2))
    direction = attribute(PROTOCOL | NESTED, what)
    body = attribute(ORIGINAL | NESTED, direction) + attribute(
        FILTER | NESTED, u32(FILTER_ORIGINAL, by)
    )
    return Request(GET, DUMP, _header(family) + body)


def flow(body: bytes) -> Flow | None:
    """Read a tracked connection; None: of a protocol without ports."""
    found = decode.attributes(body, len(_header(AF_INET)))
    direction = decode.attributes(found.get(ORIGINAL, b""))
    ip = decode.attributes(direction.get(IP, b""))
    protocol = decode.attributes(direction.get(PROTOCOL, b""))
    if PROTOCOL_DESTINATION_PORT not in protocol:
        return None
    handle = attribute(ORIGINAL | NESTED, found[ORIGINAL])
    # By its number as well: meanwhile another may have begun between the same two.
    handle += b"".join(attribute(kind, found[kind]) for kind in (ID, ZONE) if kind in found)
    return Flow(
        int.from_bytes(protocol.get(PROTOCOL_NUMBER, b"")),
        ip.get(IP_DESTINATION) or ip.get(IP6_DESTINATION, b""),
        int.from_bytes(protocol[PROTOCOL_DESTINATION_PORT]),
        handle,
    )


def forget_flow(item: Flow) -> Request:
    """Return the request that lets the kernel forget a connection."""
    family = AF_OF_LENGTH.get(len(item.destination), AF_INET)
    return Request(DELETE, ACK, _header(family) + item.handle)


def _header(family: int) -> bytes:
    return bytes([family, 0, 0, 0])  # family, version, resource id


async def forget(connection: Connection, asked: Request, which: Callable[[Flow], bool]) -> int:
    """Let the kernel forget connections and return how many; their next packet begins a new one.

    Args:
        connection: of the protocol NETLINK_NETFILTER.
        asked: as `dump_flows` makes it.
        which: says whether one of those that come is to be forgotten; there may be too many.

    Raises:
        NetlinkError: the kernel refused.
        NetlinkLostError: no answer.
    """
    found = (flow(message.body) for message in await connection.dump(asked))
    chosen = [item for item in found if item is not None and which(item)]
    outcomes = await connection.perform([forget_flow(item) for item in chosen])
    for one in outcomes:
        if one.code and one.code not in GONE:
            raise NetlinkError(one.code, one.text)
    return sum(not one.code for one in outcomes)
