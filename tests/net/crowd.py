"""What the kernels of many hosts say, heard by one thread; without a line of netplane.

A thread for each of a hundred hosts would take longer to be woken than what it hears took.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import NamedTuple, Self

from tests.net.packets import SO_RCVBUFFORCE
from tests.net.rig import Host

# linux/rtnetlink.h, linux/neighbour.h
NEWROUTE, DELROUTE, NEWNEIGH = 24, 25, 28
NEIGHBOURS, ROUTES = 0x4, 0x40
"""Groups of notifications, the second those of IPv4."""
PROTOCOL = 181
PERMANENT = 0x80
DESTINATION, MAC = 1, 2
"""RTA_DST and NDA_DST are one number; NDA_LLADDR."""
BUFFER_BYTES = 4 << 20


class Said(NamedTuple):
    """One thing that a kernel says of an object of ours."""

    kind: int
    destination: bytes
    """Of a route; or the address of a neighbour."""
    mac: bytes = b""
    """Of a neighbour."""


def route_came(subnet: IPv4Network) -> Said:
    """Return what a kernel says when there is a route to a subnet."""
    return Said(NEWROUTE, subnet.network_address.packed)


def route_went(subnet: IPv4Network) -> Said:
    """Return what a kernel says when there is none any more."""
    return Said(DELROUTE, subnet.network_address.packed)


def peer_is(subnet: IPv4Network, mac: str) -> Said:
    """Return what a kernel says when the subnet's host has a MAC, the first or another."""
    return Said(NEWNEIGH, subnet.network_address.packed, bytes.fromhex(mac.replace(":", "")))


class Crowd:
    """Hears every host's kernel from its construction on."""

    def __init__(self, hosts: Sequence[Host], groups: int = NEIGHBOURS | ROUTES) -> None:
        self.heard: dict[Said, dict[int, float]] = {}
        """What was said, and when each host first said it; hosts by their place."""
        self.routes = 0
        """That there are now, on all hosts together."""
        self._there: set[tuple[int, bytes]] = set()
        self._sockets: dict[int, tuple[int, socket.socket]] = {}
        self._poll = select.epoll()
        self._ended, self._ending = socket.socketpair()
        self._poll.register(self._ended, select.EPOLLIN)
        for place, host in enumerate(hosts):
            opened = host.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
            opened.setblocking(False)
            opened.bind((0, groups))
            self._sockets[opened.fileno()] = place, opened
            self._poll.register(opened, select.EPOLLIN)
        self._thread = threading.Thread(target=self._listen, name="crowd")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.send(b"\0")
        self._thread.join()
        for _, opened in self._sockets.values():
            opened.close()
        self._poll.close()
        self._ended.close()
        self._ending.close()

    @property
    def is_mesh(self) -> bool:
        """Whether every host has a route to every other, if nobody else is registered."""
        count = len(self._sockets)
        return self.routes == count * (count - 1)

    def all_said(self, said: Said) -> bool:
        """Tell whether every host's kernel has said it."""
        return len(self.heard.get(said, ())) == len(self._sockets)

    def last_s(self, said: Said) -> float | None:
        """Return when the last host's kernel said it; None while one has not."""
        return max(self.heard[said].values()) if self.all_said(said) else None

    def _listen(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._ended.fileno():
                    return
                place, opened = self._sockets[descriptor]
                # An overrun (ENOBUFS) ends the thread, and so the test: what is lost is not heard.
                data = opened.recv(1 << 18)
                now_s = time.monotonic()
                for said in _read(data):
                    self.heard.setdefault(said, {}).setdefault(place, now_s)
                    self._count(place, said)

    def _count(self, place: int, said: Said) -> None:
        route = place, said.destination
        if said.kind == NEWROUTE:
            self._there.add(route)
        elif said.kind == DELROUTE:
            self._there.discard(route)
        self.routes = len(self._there)


def _read(data: bytes) -> Iterator[Said]:
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        body, end = offset + 16, offset + length
        if kind in (NEWROUTE, DELROUTE):
            # family, prefix length, source length, tos, table, protocol ...
            if data[body + 5] == PROTOCOL:
                yield Said(kind, _attributes(data, body + 12, end)[DESTINATION])
        elif kind == NEWNEIGH:
            family, state = struct.unpack_from("=B7xH", data, body)
            if family == socket.AF_INET and state & PERMANENT:
                found = _attributes(data, body + 12, end)
                yield Said(kind, found[DESTINATION], found[MAC])
        offset += (length + 3) & ~3


def _attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    found = {}
    while offset < end:
        length, kind = struct.unpack_from("=HH", data, offset)
        found[kind] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
