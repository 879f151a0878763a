"""What a kernel has and what it tells, seen without a line of netplane; asserts nothing."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from tests.net.overlay import until
from tests.net.packets import SO_RCVBUFFORCE
from tests.net.rig import Host

LINK = "np.1"
PROTOCOL = 181

# linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h
NEWLINK, DELLINK, NEWADDR, DELADDR, NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH = (
    16, 17, 20, 21, 24, 25, 28, 29,
)  # fmt: skip
GROUPS = 0x1 | 0x4 | 0x10 | 0x40
"""Links, neighbours (forwarding entries too), IPv4 addresses, IPv4 routes."""
AF_BRIDGE = 7
IFF_UP = 0x1
PERMANENT = 0x80
ATTRIBUTE_NAME, ATTRIBUTE_FIRST, ATTRIBUTE_SECOND = 3, 1, 2


def kernel_of(host: Host, device: str = LINK) -> dict[str, Any]:
    """Return everything of ours in a host's kernel, as `ip` and `bridge` see it."""
    namespace = host.namespace
    links = [found for found in namespace.json("ip", "-j", "link") if found["ifname"] == device]
    if not links:
        return {}
    return {
        "index": links[0]["ifindex"],
        "mac": links[0]["address"],
        "up": "UP" in links[0]["flags"],
        "routes": sorted(
            (found["dst"], found["gateway"], found["dev"])
            for found in namespace.json("ip", "-j", "route", "show", "proto", str(PROTOCOL))
        ),
        "neighbours": sorted(
            (found["dst"], found["lladdr"])
            for found in namespace.json("ip", "-j", "neigh", "show", "dev", device)
            if "PERMANENT" in found["state"]
        ),
        "fdb": sorted(
            (found["mac"], found["dst"])
            for found in namespace.json("bridge", "-j", "fdb", "show", "dev", device)
            if found.get("state") == "permanent"
        ),
    }


def vteps_of(host: Host) -> set[str]:
    """Return the hosts whose overlay packets a host takes, as `nft` sees them."""
    found = host.namespace.json("nft", "-j", "list", "set", "ip", "netplane", "vteps")
    [members] = [entry["set"] for entry in found["nftables"] if "set" in entry]
    return set(members.get("elem", ()))


def routes_of(host: Host) -> set[str]:
    """Return the subnets that a host has routes of ours to."""
    return {route[0] for route in kernel_of(host).get("routes", ())}


class Told(NamedTuple):
    """One thing that the kernel said about an object."""

    at: float
    is_there: bool
    kind: str
    name: str


class Ear:
    """Hears what a host's kernel says about our objects, from its construction on."""

    def __init__(self, host: Host) -> None:
        self.told: list[Told] = []
        self._links = {
            found["ifindex"]
            for found in host.namespace.json("ip", "-j", "link")
            if found["ifname"] == LINK
        }
        self._socket = host.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((0, GROUPS))
        self._socket.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ear")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hear what was said until now, and no more."""
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def gone(self) -> list[Told]:
        """Return what was said about objects that went."""
        return [told for told in self.told if not told.is_there]

    def healing_s(self, wanted: set[tuple[str, str]], timeout_s: float) -> float:
        """Wait until objects are back; return the seconds since the first thing that went.

        `wanted` are kinds and names. Raises AssertionError when nothing goes, or not all come.
        """

        def is_over() -> bool:
            gone = self.gone()
            if not gone:
                return False
            said = [told for told in self.told if told.at >= gone[0].at]
            back = {(told.kind, told.name) for told in said if told.is_there}
            lost = {(told.kind, told.name) for told in said if not told.is_there}
            last = {(told.kind, told.name): told.is_there for told in said}
            return wanted <= back and all(last[key] for key in lost & last.keys())

        until(is_over, timeout_s, f"the kernel says that {sorted(wanted)} go and come back")
        return self.told[-1].at - self.gone()[0].at

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            now = time.monotonic()
            for kind, body in _messages(data):
                self.told += [Told(now, *what) for what in self._read(kind, body)]

    def _read(self, kind: int, body: bytes) -> Iterator[tuple[bool, str, str]]:
        if kind in (NEWLINK, DELLINK):
            family, _, index, flags = struct.unpack_from("=BxHiI", body)
            name = _attributes(body[16:]).get(ATTRIBUTE_NAME, b"").rstrip(b"\0").decode()
            if name == LINK and family != AF_BRIDGE:
                self._links.add(index)
                yield kind == NEWLINK and bool(flags & IFF_UP), "link", name
        elif kind in (NEWADDR, DELADDR):
            length, index = struct.unpack_from("=xBxxI", body)
            if index in self._links:
                address = socket.inet_ntoa(_attributes(body[8:])[ATTRIBUTE_FIRST])
                yield kind == NEWADDR, "address", f"{address}/{length}"
        elif kind in (NEWROUTE, DELROUTE):
            length, protocol = struct.unpack_from("=xBxxxB", body)
            if protocol == PROTOCOL:
                destination = socket.inet_ntoa(_attributes(body[12:])[ATTRIBUTE_FIRST])
                yield kind == NEWROUTE, "route", f"{destination}/{length}"
        elif kind in (NEWNEIGH, DELNEIGH):
            family, index, state = struct.unpack_from("=BxxxiH", body)
            if index not in self._links:
                return
            attributes = _attributes(body[12:])
            is_there = kind == NEWNEIGH and bool(state & PERMANENT)
            if family == AF_BRIDGE:
                yield is_there, "fdb", attributes[ATTRIBUTE_SECOND].hex(":")
            elif family == socket.AF_INET:
                yield is_there, "neighbour", socket.inet_ntoa(attributes[ATTRIBUTE_FIRST])


def objects_of(state: dict[str, Any]) -> dict[str, set[tuple[str, str]]]:
    """Return kinds and names, as an ear says them, of what `kernel_of` has found."""
    return {
        "link": {("link", LINK)},
        "route": {("route", destination) for destination, *_ in state["routes"]},
        "neighbour": {("neighbour", address) for address, _ in state["neighbours"]},
        "fdb": {("fdb", mac) for mac, _ in state["fdb"]},
    }


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        yield kind, data[16:length]
        data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found
