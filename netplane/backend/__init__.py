"""How packets travel between hosts: a backend turns peers into kernel objects, and writes none."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Protocol

from netplane.backend.versions import SetVersion
from netplane.netlink.objects import BLACKHOLE, LAST, METRIC6, KernelObject, Route, Sysctl
from netplane.subnet.family import VERSION6, Address, Subnet
from netplane.subnet.lease import Lease

FORWARDING = Sysctl("ipv4/ip_forward", "1")
FORWARDING6 = Sysctl("ipv6/conf/all/forwarding", "1")
"""What every backend needs: without it no packet of a container leaves its host."""


ToldPeer = tuple[str, str, int, str]
"""Subnet, host, port, and key or nothing."""


class BackendError(Exception):
    """The configuration asks for what this backend cannot do; the text says what to change."""


@dataclass(frozen=True, slots=True)
class External:
    """The interface to the other hosts."""

    name: str
    address: IPv4Interface | IPv6Interface
    """With its prefix: peers inside it are on the same link."""
    mtu: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Which objects in the kernel are ours: all else is foreign and stays as it is.

    On our own link everything permanent is ours. On the external interface, routes of our
    protocol number into the network are.
    """

    link: str
    """Empty: there is no device of ours."""
    external: str
    networks: tuple[tuple[bytes, int], ...]
    """Packed addresses and prefix lengths."""
    adopts: str = ""
    """A device of Flannel's that becomes our link, with all that is on it."""
    adopts_routes: int = 0
    """Prefix length of the routes that Flannel has made through the external interface and that
    become ours; 0: none do."""


Objects = SetVersion[KernelObject]


@dataclass(frozen=True, slots=True)
class Step:
    """From an earlier plan to the next: told, as to find it out takes longer than to write it."""

    since: Objects
    objects: Objects
    """What the next plan is."""
    came: AbstractSet[KernelObject]
    gone: AbstractSet[KernelObject]

    @classmethod
    def of(
        cls, since: Objects, before: AbstractSet[KernelObject], after: AbstractSet[KernelObject]
    ) -> Step:
        """Return the step to the plan in which these objects have become those."""
        came, gone = after - before, before - after
        return cls(since, since.next(came, gone), came, gone)


@dataclass(frozen=True, slots=True)
class Planned:
    """What the peers come to."""

    objects: Objects
    refused: dict[str, str]
    """Subnet to reason, for peers that cannot be served; the others are."""
    vteps: frozenset[Address] = frozenset()
    """Hosts whose packets may come in. A peer that cannot be served may yet send to us.
    Empty where nothing tells the packets of other hosts from those of others."""
    step: Step | None = field(default=None, compare=False)
    """How it comes from the plan before, where the backend knows."""
    told: tuple[ToldPeer, ...] | None = None
    """What a process that moves packets is told of the peers; None: there is none."""


def blackhole_of(subnet: Subnet) -> Route:
    """Return the route that ends packets to addresses of our subnet that no container has."""
    packed, length = subnet.network_address.packed, subnet.prefixlen
    return Route("", packed, length, b"", metric=LAST, kind=BLACKHOLE)


def forwarding_over(link: str) -> Sysctl:
    """Return the setting that packets of IPv4 need to go on from a link that they came in over.

    FORWARDING sets it of all links, but only when it changes itself. IPv6 has none that counts.
    """
    return Sysctl(f"ipv4/conf/{link}/forwarding", "1")


def forwarding_of(network: Subnet, external: External, *links: str) -> frozenset[Sysctl]:
    """Return the settings that every backend needs for networks of this family.

    Args:
        network: or a subnet of it.
        external: the interface to the other hosts.
        links: over which their packets for containers come in.
    """
    if network.version != VERSION6:
        return frozenset({FORWARDING, *map(forwarding_over, links)})
    # A host that forwards listens to no router, and forgets the default route that it has of one,
    # unless it is told to by 2. Where 0 is set, nobody has listened before either.
    listens = Sysctl(f"ipv6/conf/{external.name}/accept_ra", "2", also="0")
    return frozenset({FORWARDING6, listens})


def metric_of(network: Subnet) -> int:
    """Return the metric of the routes to subnets, as the kernel shows it."""
    return METRIC6 if network.version == VERSION6 else 0


def other_backend(peer: Lease, own: str) -> str:
    """Say that a peer cannot be served as its backend is not ours; "" where it is."""
    theirs = peer.backend_type or "udp"  # Flannel leaves that out
    return "" if theirs == own else f"its backend is {theirs}, ours {own}"


class Backend(Protocol):
    """What the agent needs from a backend."""

    type: str
    """As in a lease's BackendType."""
    mtu: int
    """Of the overlay: what containers may send."""
    scope: Scope

    def lease_data(self) -> dict[str, object] | None:
        """Return the BackendData of our own lease."""

    def plan(self, subnet: Subnet, peers: Mapping[Subnet, Lease]) -> Planned:
        """Return all objects that serve these peers, our own link and address among them.

        Pure: the same arguments give the same plan. `subnet` is our own.
        """
