"""Which interface and address the other hosts are reached by; reads the kernel, changes nothing.

In Flannel's order: `--iface`, `--iface-regex`, the interface of the default route. What Flannel
leaves to chance (two default routes of one metric, a pattern that several interfaces match) is an
error here that names the candidates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, ip_address
from typing import Any

from netplane.agent.errors import InterfaceError

# linux/if_addr.h, linux/rtnetlink.h, linux/if.h
IFA_F_SECONDARY = 0x01
IFA_F_DEPRECATED = 0x20
IFA_F_PERMANENT = 0x80
RT_SCOPE_UNIVERSE = 0
RT_TABLE_MAIN = 254
RTN_UNICAST = 1
IFF_UP = 0x1
IFF_LOOPBACK = 0x8

OVERLAY_KINDS = {"vxlan", "geneve"}
OVERLAY_NAMES = ("np.", "flannel")
"""Flannel's device may also be a tunnel, or WireGuard's."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link, as the kernel has it."""

    at: IPv4Interface
    """With the prefix of its network."""
    scope: int = RT_SCOPE_UNIVERSE
    flags: int = IFA_F_PERMANENT

    @property
    def is_usable(self) -> bool:
        """Whether other hosts can be told to use it."""
        return not (self.flags & IFA_F_DEPRECATED or self.at.ip.is_loopback)

    def rank(self) -> tuple[bool, int, bool, bool]:
        """Sort key: what reaches farthest and stays longest first."""
        return (
            self.at.ip.is_link_local,
            self.scope,
            not self.flags & IFA_F_PERMANENT,
            bool(self.flags & IFA_F_SECONDARY),
        )


@dataclass(frozen=True, slots=True)
class Link:
    """An interface and its IPv4 addresses in the kernel's order."""

    index: int
    name: str
    mtu: int
    flags: int = IFF_UP
    addresses: tuple[Address, ...] = ()
    kind: str = ""
    """Of a device that software made, as `ip -d link` has it."""

    @property
    def is_overlay(self) -> bool:
        """Whether it is a device of an overlay, ours or another: it leads to no host."""
        return self.kind in OVERLAY_KINDS or self.name.startswith(OVERLAY_NAMES)

    def best_address(self) -> IPv4Interface | None:
        """Return the address that other hosts should use; None without a usable one."""
        usable = sorted((each for each in self.addresses if each.is_usable), key=Address.rank)
        return usable[0].at if usable else None


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table, one for each next hop."""

    index: int
    metric: int


@dataclass(frozen=True, slots=True)
class Host:
    """What the choice depends on."""

    links: tuple[Link, ...]
    default_routes: tuple[DefaultRoute, ...] = ()


@dataclass(frozen=True, slots=True)
class ExternalInterface:
    """The interface that carries the overlay's packets."""

    index: int
    name: str
    mtu: int
    address: IPv4Interface
    """With its prefix: hosts inside it are on the same link."""


def choose(
    host: Host, iface: Sequence[str] = (), iface_regex: Sequence[str] = ()
) -> ExternalInterface:
    """Return the interface that the flags, or else the default route, name.

    Args:
        host: Links and routes of now.
        iface: Names or addresses in order of preference; those that are not there are passed over.
        iface_regex: Patterns tried after them, searched for in names and usable addresses.

    Raises:
        InterfaceError: None, several, or one without an IPv4 address.
    """
    for wanted in iface:
        found = _named(host, wanted)
        if found is not None:
            return found
    for pattern in iface_regex:
        matching = _matching(host, pattern)
        if len(matching) > 1:
            raise InterfaceError(
                f"--iface-regex {pattern!r} matches {_names(matching)}",
                "make it more exact, or name one with --iface",
            )
        if matching:
            return _external(matching[0])
    if iface or iface_regex:
        tried = [f"--iface {name}" for name in iface]
        tried += [f"--iface-regex {pattern!r}" for pattern in iface_regex]
        raise InterfaceError(
            f"no interface for {' or '.join(tried)}", f"there are: {_names(host.links) or 'none'}"
        )
    return _external(_of_default_route(host))


def _named(host: Host, wanted: str) -> ExternalInterface | None:
    try:
        address = ip_address(wanted)
    except ValueError:
        for link in host.links:
            if link.name == wanted:
                return _external(link)
        return None
    for link in host.links:
        for each in link.addresses:
            if each.at.ip == address:
                return _external(link, each.at)
    return None


def _matching(host: Host, pattern: str) -> list[Link]:
    search = re.compile(pattern).search
    return [
        link
        for link in host.links
        # After a restart a pattern would match our own device as well, which has an address, too.
        if not (link.flags & IFF_LOOPBACK or link.is_overlay)
        and (
            search(link.name)
            or any(each.is_usable and search(str(each.at.ip)) for each in link.addresses)
        )
    ]


def _of_default_route(host: Host) -> Link:
    if not host.default_routes:
        raise InterfaceError(
            "there is no default route that would tell the interface to the other hosts",
            f"name it with --iface; there are: {_names(host.links) or 'none'}",
        )
    metric = min(route.metric for route in host.default_routes)
    indexes = {route.index for route in host.default_routes if route.metric == metric}
    links = [link for link in host.links if link.index in indexes]
    if len(links) != 1:
        raise InterfaceError(
            f"the default route leads over {_names(links) or 'an interface that is gone'}",
            "name the interface to the other hosts with --iface",
        )
    return links[0]


def _external(link: Link, wanted: IPv4Interface | None = None) -> ExternalInterface:
    if link.is_overlay:
        raise InterfaceError(
            f"{link.name} is a device of an overlay itself, and leads to no host",
            "name the interface below it with --iface",
        )
    address = wanted or link.best_address()
    if address is None:
        raise InterfaceError(
            f"interface {link.name} has no IPv4 address that other hosts could use",
            "give it one, or name another with --iface",
        )
    return ExternalInterface(link.index, link.name, link.mtu, address)


def _names(links: Sequence[Link]) -> str:
    return ", ".join(
        f"{link.name} ({link.best_address() or 'no IPv4 address'})"
        for link in links
        if not (link.flags & IFF_LOOPBACK or link.is_overlay)
    )


async def read_host() -> Host:
    """Ask the kernel for links, addresses and default routes of this network namespace."""
    from pyroute2 import AsyncIPRoute  # noqa: PLC0415 (0.16 s: only agents need it)

    async with AsyncIPRoute() as kernel:
        links = [message async for message in await kernel.get_links()]
        addresses = [message async for message in await kernel.get_addr(family=2)]
        routes = [
            message async for message in await kernel.get_routes(family=2, table=RT_TABLE_MAIN)
        ]
    by_index: dict[int, list[Address]] = {}
    for message in addresses:
        # IFA_LOCAL is ours; on a point-to-point link IFA_ADDRESS is the other end's.
        text = message.get("local") or message.get("address")
        flags = message.get("flags") or 0
        by_index.setdefault(message["index"], []).append(
            Address(IPv4Interface((text, message["prefixlen"])), message["scope"], flags)
        )
    return Host(
        tuple(
            Link(
                message["index"],
                message.get("ifname"),
                message.get("mtu"),
                message["flags"],
                tuple(by_index.get(message["index"], ())),
                message.get(("linkinfo", "kind")) or "",
            )
            for message in links
        ),
        tuple(
            DefaultRoute(index, message.get("priority") or 0)
            for message in routes
            if message["dst_len"] == 0 and message["type"] == RTN_UNICAST
            for index in _next_hops(message)
        ),
    )


def _next_hops(route: Any) -> list[int]:
    if route.get("multipath"):
        return [hop["oif"] for hop in route.get("multipath")]
    index = route.get("oif")
    return [] if index is None else [index]
