"""Which interface and address the other hosts are reached by; reads the kernel, changes nothing.

In Flannel's order: `--iface`, `--iface-regex`, the interface of the default route. What Flannel
leaves to chance (two default routes of one metric, a pattern that several interfaces match) is an
error here that names the candidates.
"""

from __future__ import annotations

import errno
import re
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address

from netplane.agent.errors import InterfaceError
from netplane.netlink import messages
from netplane.netlink.connection import Connection, NetlinkError, NetlinkLostError
from netplane.netlink.decode import Message, attributes
from netplane.netlink.decode import link as decode_link
from netplane.netlink.objects import UNICAST
from netplane.subnet.family import Address as PublicAddress

# linux/if_addr.h, linux/rtnetlink.h, linux/if.h
IFA_F_SECONDARY = 0x01
"""Of an IPv6 address: it is a temporary one, against being recognised."""
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80
AF_INET, AF_INET6 = 2, 10
RT_SCOPE_UNIVERSE = 0
NEXT_HOP = struct.Struct("=HxxI")  # length, flags, hops, index
IFF_UP = 0x1
IFF_LOOPBACK = 0x8

OVERLAY_KINDS = {"vxlan", "geneve"}
OVERLAY_NAMES = ("np.", "np6.", "flannel")
"""Flannel's device may also be a tunnel, or WireGuard's."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link, as the kernel has it."""

    at: IPv4Interface | IPv6Interface
    """With the prefix of its network."""
    scope: int = RT_SCOPE_UNIVERSE
    flags: int = IFA_F_PERMANENT

    @property
    def is_usable(self) -> bool:
        """Whether other hosts can be told to use it."""
        if self.flags & IFA_F_DEPRECATED or self.at.ip.is_loopback:
            return False
        if isinstance(self.at, IPv4Interface):
            return True
        changes = IFA_F_SECONDARY | IFA_F_DADFAILED | IFA_F_TENTATIVE
        return not (self.flags & changes or self.at.ip.is_link_local)

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
    """An interface and its addresses in the kernel's order."""

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

    def best_address(self, kept: Sequence[PublicAddress] = ()) -> IPv4Interface | None:
        """Return the address that other hosts should use; None without a usable one.

        One that they use already goes before all others, and then what stays longest. Of IPv6 the
        kernel lists the newest first: a floating address would else be taken for the host's own.
        """
        return next((at for at in self._usable(kept) if isinstance(at, IPv4Interface)), None)

    def best_address6(self, kept: Sequence[PublicAddress] = ()) -> IPv6Interface | None:
        """Return the same of IPv6."""
        return next((at for at in self._usable(kept) if isinstance(at, IPv6Interface)), None)

    def _usable(self, kept: Sequence[PublicAddress]) -> list[IPv4Interface | IPv6Interface]:
        usable = sorted(
            (each for each in self.addresses if each.is_usable),
            key=lambda each: (each.at.ip not in kept, each.rank()),
        )
        return [each.at for each in usable]


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
    default_routes6: tuple[DefaultRoute, ...] = ()
    """Looked at where IPv4 has none."""


@dataclass(frozen=True, slots=True)
class ExternalInterface:
    """The interface that carries the overlay's packets."""

    index: int
    name: str
    mtu: int
    address: IPv4Interface | IPv6Interface
    """With its prefix: hosts inside it are on the same link. IPv6 only if there is no IPv4."""
    address6: IPv6Interface | None = None
    """Of the same interface: both families leave by one."""

    def of(self, version: int) -> IPv4Interface | IPv6Interface | None:
        """Return the address of a family; None: it has none."""
        both = (self.address, self.address6)
        return next((one for one in both if one is not None and one.version == version), None)

    @property
    def ips(self) -> tuple[PublicAddress, ...]:
        """What there is of both."""
        return tuple(one.ip for one in (self.address, self.address6) if one is not None)

    def addresses(self) -> str:
        """Name what there is of both, for people."""
        both = dict.fromkeys((self.address, self.address6))
        return " and ".join(str(one) for one in both if one is not None)


def choose(
    host: Host,
    iface: Sequence[str] = (),
    iface_regex: Sequence[str] = (),
    kept: Sequence[PublicAddress] = (),
) -> ExternalInterface:
    """Return the interface that the flags, or else the default route, name.

    Args:
        host: Links and routes of now.
        iface: Names or addresses in order of preference; those that are not there are passed over.
        iface_regex: Patterns tried after them, searched for in names and usable addresses.
        kept: Addresses that are in use already; see `Link.best_address`.

    Raises:
        InterfaceError: None, several, or one without an address.
    """
    for wanted in iface:
        found = _named(host, wanted, kept)
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
            return _external(matching[0], kept)
    if iface or iface_regex:
        tried = [f"--iface {name}" for name in iface]
        tried += [f"--iface-regex {pattern!r}" for pattern in iface_regex]
        raise InterfaceError(
            f"no interface for {' or '.join(tried)}", f"there are: {_names(host.links) or 'none'}"
        )
    return _external(_of_default_route(host), kept)


def _named(host: Host, wanted: str, kept: Sequence[PublicAddress]) -> ExternalInterface | None:
    try:
        address = ip_address(wanted)
    except ValueError:
        for link in host.links:
            if link.name == wanted:
                return _external(link, kept)
        return None
    for link in host.links:
        for each in link.addresses:
            if each.at.ip == address:
                return _external(link, kept, each.at)
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
    routes = host.default_routes or host.default_routes6
    if not routes:
        raise InterfaceError(
            "there is no default route that would tell the interface to the other hosts",
            f"name it with --iface; there are: {_names(host.links) or 'none'}",
        )
    metric = min(route.metric for route in routes)
    indexes = {route.index for route in routes if route.metric == metric}
    links = [link for link in host.links if link.index in indexes]
    if len(links) != 1:
        raise InterfaceError(
            f"the default route leads over {_names(links) or 'an interface that is gone'}",
            "name the interface to the other hosts with --iface",
        )
    return links[0]


def _external(
    link: Link,
    kept: Sequence[PublicAddress],
    wanted: IPv4Interface | IPv6Interface | None = None,
) -> ExternalInterface:
    if link.is_overlay:
        raise InterfaceError(
            f"{link.name} is a device of an overlay itself, and leads to no host",
            "name the interface below it with --iface",
        )
    address6 = wanted if isinstance(wanted, IPv6Interface) else link.best_address6(kept)
    address4 = wanted if isinstance(wanted, IPv4Interface) else link.best_address(kept)
    address = address4 or address6
    if address is None:
        raise InterfaceError(
            f"interface {link.name} has no address that other hosts could use",
            "give it one, or name another with --iface",
        )
    return ExternalInterface(link.index, link.name, link.mtu, address, address6)


def _names(links: Sequence[Link]) -> str:
    return ", ".join(
        f"{link.name} ({link.best_address() or link.best_address6() or 'no address'})"
        for link in links
        if not (link.flags & IFF_LOOPBACK or link.is_overlay)
    )


async def read_host() -> Host:
    """Ask the kernel for links, addresses and default routes of this network namespace.

    Raises InterfaceError when it does not answer.
    """
    try:
        async with Connection() as kernel:
            links = await kernel.dump(messages.dump_links())
            addresses = await kernel.dump(messages.dump_addresses(AF_INET, 0))
            addresses += await kernel.dump(messages.dump_addresses(AF_INET6, 0))
            routes = await _routes(kernel, AF_INET)
            routes6 = await _routes(kernel, AF_INET6)
    except (NetlinkError, NetlinkLostError) as error:
        raise InterfaceError(
            f"cannot read this host's interfaces: {error}", "start the agent again"
        ) from error
    return host_of(
        [message.body for message in links],
        [message.body for message in addresses],
        [message.body for message in routes],
        [message.body for message in routes6],
    )


async def _routes(kernel: Connection, family: int) -> list[Message]:
    try:
        return await kernel.dump(messages.dump_routes(family, messages.ANY_PROTOCOL))
    except NetlinkError as error:
        # Nobody has ever made a route here, so there is no table yet; or there is no such family.
        if error.code in {errno.ENOENT, errno.EOPNOTSUPP}:
            return []
        raise


def host_of(
    links: Sequence[bytes],
    addresses: Sequence[bytes],
    routes: Sequence[bytes],
    routes6: Sequence[bytes] = (),
) -> Host:
    """Read what the kernel has sent: RTM_NEWLINK, RTM_NEWADDR and RTM_NEWROUTE."""
    by_index: dict[int, list[Address]] = {}
    for body in addresses:
        family, prefix_len, flags, scope, index = messages.ADDRESS.unpack_from(body)
        found = attributes(body, messages.ADDRESS.size)
        # IFA_LOCAL is ours; on a point-to-point link IFA_ADDRESS is the other end's.
        packed = found.get(2) or found[1]
        if 8 in found:  # IFA_FLAGS, which has room for all of them
            [flags] = messages.U32.unpack(found[8])
        interface = IPv6Interface if family == AF_INET6 else IPv4Interface
        address = Address(interface((packed, prefix_len)), scope, flags)
        by_index.setdefault(index, []).append(address)
    return Host(
        tuple(_link(body, by_index) for body in links),
        tuple(route for body in routes for route in _default_routes(body)),
        tuple(route for body in routes6 for route in _default_routes(body)),
    )


def _link(body: bytes, addresses: Mapping[int, Sequence[Address]]) -> Link:
    _, _, index, flags, _ = messages.LINK.unpack_from(body)
    link = decode_link(body)
    there = tuple(addresses.get(index, ()))
    return Link(index, link.name, link.mtu, flags, there, link.kind)


def _default_routes(body: bytes) -> Iterator[DefaultRoute]:
    _, prefix_len, _, _, _, _, _, kind, _ = messages.ROUTE.unpack_from(body)
    if prefix_len or kind != UNICAST:
        return
    found = attributes(body, messages.ROUTE.size)
    metric = int.from_bytes(found.get(6, b""), sys.byteorder)
    if 4 in found:
        yield DefaultRoute(int.from_bytes(found[4], sys.byteorder), metric)
    hops = found.get(9, b"")
    while hops:
        length, index = NEXT_HOP.unpack_from(hops)
        yield DefaultRoute(index, metric)
        hops = hops[(length + 3) & ~3 :]
