"""Requests about bridges and pairs of virtual devices: pure, bytes out, as in `messages`."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netplane.netlink.messages import (
    ACK,
    CREATE,
    EXCLUSIVE,
    IFF_UP,
    LINK,
    Request,
    Type,
    attribute,
    u32,
)

ADDRESS, NAME, MTU, MASTER, LINKINFO, ALIAS, NAMESPACE = 1, 3, 4, 10, 18, 20, 28
KIND, DATA, SLAVE_KIND, SLAVE_DATA = 1, 2, 4, 5
PEER = 1
HAIRPIN = 4
ALIAS_BYTES_MAX = 255


@dataclass(frozen=True, slots=True)
class Veth:
    """A pair of devices: one a port of a bridge, the other in a container."""

    name: str
    """Of the port."""
    mac: bytes
    peer: str
    """Of the container's end."""
    peer_mac: bytes
    mtu: int


def make_bridge(name: str, mac: bytes, mtu: int) -> Request:
    """Return the request for a bridge that is up.

    With a MAC of its own, or it would take that of the lowest port, and change it with them.
    """
    info = attribute(LINKINFO, attribute(KIND, b"bridge"))
    head = LINK.pack(0, 0, 0, IFF_UP, IFF_UP)
    body = head + _name(name) + attribute(ADDRESS, mac) + u32(MTU, mtu) + info
    return Request(Type.NEWLINK, ACK | CREATE | EXCLUSIVE, body)


def make_veth(pair: Veth, bridge: int, namespace: int) -> Request:
    """Return the request for a pair: the port is up, the other end in a namespace, and down.

    Args:
        pair: what it is to be.
        bridge: its index.
        namespace: a descriptor of this process.
    """
    there = LINK.pack(0, 0, 0, 0, 0) + _end(pair.peer, pair.peer_mac, pair.mtu)
    peer = attribute(PEER, there + u32(NAMESPACE, namespace))
    info = attribute(LINKINFO, attribute(KIND, b"veth") + attribute(DATA, peer))
    here = LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + _end(pair.name, pair.mac, pair.mtu)
    body = here + u32(MASTER, bridge) + info
    return Request(Type.NEWLINK, ACK | CREATE | EXCLUSIVE, body)


def make_port(index: int, bridge: int) -> Request:
    """Return the request that makes a link a port of a bridge and takes it up."""
    return Request(Type.NEWLINK, ACK, LINK.pack(0, 0, index, IFF_UP, IFF_UP) + u32(MASTER, bridge))


def set_port(name: str, alias: str) -> Request:
    """Return the request that lets a port's packets return through it, and says whose it is.

    Without the first a container cannot reach itself by a port that the host publishes.
    """
    hairpin = attribute(HAIRPIN, struct.pack("B", 1))
    info = attribute(SLAVE_KIND, b"bridge") + attribute(SLAVE_DATA, hairpin)
    body = LINK.pack(0, 0, 0, 0, 0) + _name(name)
    body += attribute(ALIAS, alias.encode()) + attribute(LINKINFO, info)
    return Request(Type.NEWLINK, ACK, body)


def set_link(index: int, mac: bytes, mtu: int) -> Request:
    """Return the request that gives a link its MAC and MTU and takes it up."""
    body = LINK.pack(0, 0, index, IFF_UP, IFF_UP) + attribute(ADDRESS, mac) + u32(MTU, mtu)
    return Request(Type.NEWLINK, ACK, body)


def remove_link(name: str) -> Request:
    """Return the request that removes a link by its name; with one of a pair goes the other."""
    return Request(Type.DELLINK, ACK, LINK.pack(0, 0, 0, 0, 0) + _name(name))


def _end(name: str, mac: bytes, mtu: int) -> bytes:
    # The MAC in the creating message: set later, udev would have drawn another one meanwhile.
    return _name(name) + attribute(ADDRESS, mac) + u32(MTU, mtu)


def _name(name: str) -> bytes:
    return attribute(NAME, name.encode() + b"\0")
