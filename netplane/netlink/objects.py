"""What we keep in the kernel, as values that compare and hash in C; no bytes of messages here.

Addresses are packed, 4 bytes or 16, so that both families are the same to who compares them.
Links go by name: an index changes when a device is made anew, a name does not.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

PROTOCOL = 181
"""The route protocol of all that we write; no other routing daemon is known to use it."""

BOOT = 3
"""The route protocol of whoever gives none, as Flannel."""

UNICAST, LOCAL, BLACKHOLE = 1, 2, 6

METRIC6 = 1024
"""What the kernel makes of no metric in a route of IPv6; in one of IPv4 it stays 0."""

LAST = 2**32 - 1
"""The metric of a route that every other one to the same place goes before."""


class VxlanLink(NamedTuple):
    """A vxlan device, up."""

    name: str
    vni: int
    parent: str
    """The interface that the outer packets leave through."""
    local: bytes
    """The outer source; must be an address of this host, or the packets are lost."""
    port: int
    mtu: int
    mac: bytes
    learning: bool = False
    gbp: bool = False
    up: bool = True

    def __str__(self) -> str:
        return f"link {self.name} (vxlan {self.vni} port {self.port} dev {self.parent})"


class Address(NamedTuple):
    """An address of a link."""

    link: str
    address: bytes
    prefix_len: int

    def __str__(self) -> str:
        return f"address {_text(self.address)}/{self.prefix_len} dev {self.link}"


class Neighbour(NamedTuple):
    """A permanent neighbour."""

    link: str
    address: bytes
    mac: bytes
    protocol: int = PROTOCOL

    def __str__(self) -> str:
        return f"neighbour {_text(self.address)} lladdr {self.mac.hex(':')} dev {self.link}"


class FdbEntry(NamedTuple):
    """Where a vxlan device sends frames for a MAC."""

    link: str
    mac: bytes
    destination: bytes

    def __str__(self) -> str:
        return f"fdb {self.mac.hex(':')} dst {_text(self.destination)} dev {self.link}"


class Route(NamedTuple):
    """A route of the main table."""

    link: str
    """Empty: it leads over none, or over one that we do not know."""
    destination: bytes
    prefix_len: int
    gateway: bytes
    """Empty: none."""
    onlink: bool = False
    metric: int = 0
    tos: int = 0
    kind: int = UNICAST
    protocol: int = PROTOCOL

    def __str__(self) -> str:
        if self.kind == BLACKHOLE:
            return f"route blackhole {_text(self.destination)}/{self.prefix_len}"
        via = f" via {_text(self.gateway)}" if self.gateway else ""
        dev = f" dev {self.link}" if self.link else ""
        onlink = " onlink" if self.onlink else ""
        return f"route {_text(self.destination)}/{self.prefix_len}{via}{dev}{onlink}"


class Uplink(NamedTuple):
    """What the interface to the other hosts has to be: up, with this address.

    It is not ours to write, so it is looked at only.
    """

    name: str
    address: bytes

    def __str__(self) -> str:
        return f"interface {self.name} with {_text(self.address)}"


class Sysctl(NamedTuple):
    """A setting below /proc/sys/net, as `ipv4/ip_forward`."""

    name: str
    value: str
    also: str = ""
    """Another value that is as good and stays."""

    def is_met_by(self, value: str | None) -> bool:
        """Tell whether a value is as it should be."""
        return value == self.value or (value is not None and value == self.also)

    def __str__(self) -> str:
        return f"sysctl net/{self.name} = {self.value}"


KernelObject = VxlanLink | Address | Neighbour | FdbEntry | Route | Sysctl | Uplink
# Tuples of different classes compare equal when their items do. Here none can: they differ in
# length, or in the lengths of the packed fields at one place, or in the types.


class Identity(NamedTuple):
    """What the kernel takes for the same object, whatever its other properties."""

    kind: str
    where: str
    what: bytes = b""
    more: tuple[int, ...] = ()


def identity(item: KernelObject) -> Identity:
    """Return under what the kernel files an object: two with one identity replace each other."""
    match item:
        case Route():
            # Not the link: a route that moves to another one is the same route.
            key = (item.prefix_len, item.metric, item.tos)
            return Identity("route", "", item.destination, key)
        case Neighbour():
            return Identity("neighbour", item.link, item.address)
        case FdbEntry():
            return Identity("fdb", item.link, item.mac)
        case Address():
            return Identity("address", item.link, item.address, (item.prefix_len,))
        case VxlanLink():
            return Identity("link", item.name)
        case Sysctl():
            return Identity("sysctl", item.name)
        case Uplink():
            return Identity("uplink", item.name)


def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))
