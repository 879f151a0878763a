"""The least that an agent in Python can be: what `bench.overlay --bare` compares ours with.

It puts its lease, lists and watches the others' with grpcio, and gives the kernel a route, a
neighbour and a forwarding entry for each. It believes everything, looks at nothing twice, heals
nothing, and has no firewall, no state and nobody to report to.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grpc

from bench import messages

# linux/netlink.h, rtnetlink.h, neighbour.h
REQUEST, ACK, REPLACE, CREATE = 0x1, 0x4, 0x100, 0x400
NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH = 24, 25, 28, 29
PROTOCOL, MAIN, UNICAST, ONLINK = 181, 254, 1, 4
AF_BRIDGE, PERMANENT, SELF = 7, 0x80, 2
DESTINATION, LINK_ADDRESS, INTERFACE, GATEWAY = 1, 2, 4, 5
READ_BYTES = 1 << 18


class Peer(NamedTuple):
    """Another host."""

    subnet: bytes
    """The first address; a /24."""
    address: bytes
    mac: bytes


Part = tuple[int, int, bytes]
"""A message: its type, its flags, and what comes after the header."""


class Kernel:
    """Writes peers by one device."""

    def __init__(self, link: str) -> None:
        self._index = socket.if_nametoindex(link)
        self._out = attribute(INTERFACE, struct.pack("=I", self._index))
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._number = 0

    def write(self, parts: Sequence[Part]) -> None:
        """Send all at once. Raises OSError."""
        messages = []
        for place, (kind, flags, body) in enumerate(parts, 1):
            self._number += 1
            asked = flags | REQUEST | (ACK if place == len(parts) else 0)
            head = struct.pack("=IHHII", 16 + len(body), kind, asked, self._number, 0)
            messages.append(head + body)
        self._socket.send(b"".join(messages))
        [code] = struct.unpack_from("=i", self._socket.recv(READ_BYTES), 16)
        if code:
            raise OSError(-code, "the kernel refuses a peer")

    def came(self, peer: Peer) -> list[Part]:
        """Return what makes a peer reachable, whatever there was."""
        return [
            (NEWNEIGH, CREATE | REPLACE, self._neighbour(peer)),
            (NEWNEIGH, CREATE | REPLACE, self._entry(peer)),
            (NEWROUTE, CREATE | REPLACE, self._route(peer)),
        ]

    def moved(self, before: Peer, after: Peer) -> list[Part]:
        """Return what makes a peer reachable that had another MAC."""
        return [*self.came(after), (DELNEIGH, 0, self._entry(before))]

    def went(self, peer: Peer) -> list[Part]:
        """Return what takes a peer away."""
        return [
            (DELROUTE, 0, self._route(peer)),
            (DELNEIGH, 0, self._entry(peer)),
            (DELNEIGH, 0, self._neighbour(peer)),
        ]

    def _neighbour(self, peer: Peer) -> bytes:
        head = struct.pack("=BxxxiHBB", socket.AF_INET, self._index, PERMANENT, 0, 0)
        return head + attribute(DESTINATION, peer.subnet) + attribute(LINK_ADDRESS, peer.mac)

    def _entry(self, peer: Peer) -> bytes:
        head = struct.pack("=BxxxiHBB", AF_BRIDGE, self._index, PERMANENT, SELF, 0)
        return head + attribute(DESTINATION, peer.address) + attribute(LINK_ADDRESS, peer.mac)

    def _route(self, peer: Peer) -> bytes:
        head = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 24, 0, 0, MAIN, PROTOCOL, 0, UNICAST, ONLINK
        )
        to = attribute(DESTINATION, peer.subnet)
        return head + to + attribute(GATEWAY, peer.subnet) + self._out


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def peer_of(key: bytes, value: bytes) -> Peer:
    fields = json.loads(value)
    subnet = key.rpartition(b"/")[2].partition(b"-")[0].decode()
    mac = bytes.fromhex(fields["BackendData"]["VtepMAC"].replace(":", ""))
    return Peer(socket.inet_aton(subnet), socket.inet_aton(fields["PublicIP"]), mac)


def run(endpoint: str, key: bytes, value: bytes, link: str) -> None:
    """Keep the kernel as the registry says, until killed."""
    channel = grpc.insecure_channel(endpoint)
    put = channel.unary_unary(messages.PUT)
    list_ = channel.unary_unary(messages.RANGE)
    watch = channel.stream_stream(messages.WATCH)
    prefix = key[: key.rindex(b"/") + 1]
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    kernel = Kernel(link)
    put(messages.put(key, value), wait_for_ready=True)
    listed = messages.range_reply(list_(messages.range_(prefix, end)))
    there = {name: peer_of(name, found) for name, found in listed.pairs if name != key}
    if there:
        kernel.write([part for peer in there.values() for part in kernel.came(peer)])

    def requests() -> Iterator[bytes]:
        yield messages.watch_create(prefix, end, listed.revision + 1)
        threading.Event().wait()

    for response in watch(requests()):
        for name, found in messages.watch_events(response):
            if name == key:
                continue
            before = there.pop(name, None)
            if found is None:
                if before is not None:
                    kernel.write(kernel.went(before))
                continue
            there[name] = after = peer_of(name, found)
            kernel.write(kernel.came(after) if before is None else kernel.moved(before, after))


if __name__ == "__main__":
    endpoint, key, value, link = sys.argv[1:]
    run(endpoint, key.encode(), value.encode(), link)
