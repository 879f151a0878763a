"""Addresses and subnets of either family, alone or in pairs: what `ipaddress` keeps apart."""

from __future__ import annotations

import socket
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)
from typing import Literal, NamedTuple, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Subnet: TypeAlias = IPv4Network | IPv6Network
Interface: TypeAlias = IPv4Interface | IPv6Interface
VERSION4, VERSION6 = 4, 6


class LeasedSubnet(IPv4Network):
    """A subnet of a lease's key, which is asked for the same again with every change of any lease.

    `ipaddress` works hash and length out anew each time, in four calls and two.
    """

    version: Literal[4] = 4
    max_prefixlen: Literal[32] = 32
    prefixlen = 0

    def __init__(self, address: object, strict: bool = True) -> None:
        super().__init__(address, strict)
        self.prefixlen = super().prefixlen
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        """Return its parent's, as it is equal to one of its parent's kind."""
        return self._hash


class Pair(NamedTuple):
    """What one host has: a subnet of each family that the network has."""

    first: Subnet
    """IPv4, unless there is only IPv6."""
    second: IPv6Network | None = None

    def of(self, version: int) -> Subnet | None:
        """Return the subnet of a family; None: there is none of it."""
        if self.first.version == version:
            return self.first
        return self.second if version == VERSION6 else None

    def overlaps(self, other: Pair) -> bool:
        """Tell whether the two touch in either family."""
        if self.second is None and other.second is None:  # as in most networks
            return overlap(self.first, other.first)
        return any(overlap(one, another) for one in self.all() for another in other.all())

    def all(self) -> tuple[Subnet, ...]:
        """Return what there is of both."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def __str__(self) -> str:
        """Name it for an operator."""
        return " with ".join(map(str, self.all()))


def is_same(one: Subnet, other: Subnet) -> bool:
    """Tell whether two are equal, at once where they are one object: `==` compares all parts."""
    return one is other or one == other


def is_within(inner: Subnet, outer: Subnet) -> bool:
    """Tell whether one is inside of the other: never across families, where `subnet_of` raises."""
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def overlap(one: Subnet, other: Subnet) -> bool:
    """Tell whether two touch, as `ipaddress` does in ten times the time; never across families."""
    if one.version != other.version:
        return False
    rest = one.max_prefixlen - min(one.prefixlen, other.prefixlen)
    return int(one.network_address) >> rest == int(other.network_address) >> rest


def last_of(subnet: Subnet) -> int:
    """Return the number of a subnet's last address, for which `ipaddress` makes two objects."""
    return int(subnet.network_address) | (1 << (subnet.max_prefixlen - subnet.prefixlen)) - 1


def by_address(subnet: Subnet) -> tuple[int, int, int]:
    """Sort key for subnets of any family, which do not compare with each other."""
    return (subnet.version, int(subnet.network_address), subnet.prefixlen)


def subnet_from(like: Subnet, address: int, length: int) -> Subnet:
    """Return the subnet of the family of another that begins at an address."""
    if isinstance(like, IPv4Network):
        return IPv4Network((address, length))
    return IPv6Network((address, length))


def parse_address(text: str) -> Address:
    """Read an address of either family. Raises ValueError."""
    return ipv6_address(text) if ":" in text else ipv4_address(text)


def parse_subnet(text: str, *, strict: bool = True) -> Subnet:
    """Read a subnet of either family. Raises ValueError."""
    return ipv6_network(text, strict=strict) if ":" in text else IPv4Network(text, strict=strict)


def parse_interface(text: str) -> Interface:
    """Read an address of either family with the length of its subnet. Raises ValueError."""
    return ip_interface(_unscoped(text))


def ipv4_address(text: str) -> IPv4Address:
    """Read an IPv4 address. Raises ValueError."""
    try:
        return IPv4Address(socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        return IPv4Address(text)  # which takes three times as long, and says what is wrong


def ipv6_address(text: str) -> IPv6Address:
    """Read an IPv6 address. Raises ValueError, also where it names the interface that it is on."""
    return IPv6Address(_unscoped(text))


def ipv6_network(text: str, *, strict: bool = True) -> IPv6Network:
    """Read an IPv6 network; as `ipv6_address`."""
    return IPv6Network(_unscoped(text), strict=strict)


def _unscoped(text: str) -> str:
    if "%" in text:
        raise ValueError(f"{text!r} names an interface")
    return text
