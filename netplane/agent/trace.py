"""The way of a packet from this host, object by object: what `netplane ctl trace` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netplane.agent.inspection import (
    Finding,
    Known,
    State,
    index_of,
    look_at_device,
    look_at_firewall,
    look_at_source_address,
    reading,
    routes_to,
)
from netplane.backend import FORWARDING, FORWARDING6, choose, forwarding_over
from netplane.backend.vxlan import VxlanBackend
from netplane.netlink import sysctl
from netplane.netlink.decode import Link
from netplane.netlink.kernel import Kernel
from netplane.netlink.objects import LOCAL, FdbEntry, Neighbour, Route, identity
from netplane.subnet.family import VERSION6, Address
from netplane.subnet.jsontext import FormatError
from netplane.subnet.lease import Lease, parse_name


async def trace(
    known: Known | None,
    source: Address,
    destination: Address,
    firewall: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Follow a packet from hop to hop until it leaves this host, or would be lost.

    Args:
        known: what its agent means to have; without it there is nothing to compare with.
        source: an address of a container here, or of the host itself.
        destination: any.
        firewall: what the agent has just read of the firewall; None: nothing.

    Raises:
        AgentError: The kernel could not be asked.
    """
    async with reading() as kernel:
        links = await kernel.links()
        return await _Trace(kernel, known, links, firewall).follow(source, destination)


class _Trace:
    def __init__(
        self,
        kernel: Kernel,
        known: Known | None,
        links: Sequence[Link],
        firewall: Mapping[str, Any] | None,
    ) -> None:
        self._kernel = kernel
        self._known = known
        self._links = links
        self._firewall = firewall
        self._is_forwarded = True
        """The source is not this host itself."""
        self._names = {link.index: link.name for link in links}
        self._found: list[Finding] = []

    def _add(self, subject: str, state: State, text: str) -> None:
        self._found.append(Finding(subject, state, text))

    async def follow(self, source: Address, destination: Address) -> list[Finding]:
        if await self._look_at_source(source):
            await self._look_at_destination(destination)
        self._found += look_at_firewall(self._firewall, forwarded=self._is_forwarded)
        text = "single rules of others, and rules that route by source or mark"
        self._add("firewall", State.UNSEEN, text)
        return self._found

    async def _look_at_source(self, source: Address) -> bool:
        """Return whether the packet starts on this host."""
        route = await self._kernel.lookup(source.packed, self._names)
        owner = self._owner(source)
        if owner is not None:
            self._add(
                "source",
                State.WRONG,
                f"{source} is in {owner.subnet} of host {owner.public_ip}: trace it there",
            )
            return False
        if route is not None and route.kind == LOCAL:
            self._is_forwarded = False
            self._add("source", State.OK, f"{source} is this host's")
            return True
        if self._known is not None and source not in self._known.own.subnet:
            text = f"{source} is not in this host's subnet {self._known.own.subnet}"
            self._add("source", State.HINT, text)
        elif route is None or not self._is_towards_container(route):
            text = (
                f"nothing leads to {source}, so replies are lost: make the containers' bridge with"
                " the addresses of subnet.env"
            )
            self._add("source", State.WRONG, text)
        else:
            self._add("source", State.OK, f"{source} is behind {route.link}")
        settings = [FORWARDING]
        if source.version == VERSION6:
            settings = [FORWARDING6]
        elif route is not None and route.link:
            settings.append(forwarding_over(route.link))
        there = sysctl.read([item.name for item in settings])
        off = [item.name for item in settings if there.get(item.name) != item.value]
        if off:
            self._add("forwarding", State.WRONG, f"sysctl net/{off[0]} is 0")
        else:
            self._add("forwarding", State.OK, str(settings[0]))
        return True

    def _is_towards_container(self, route: Route) -> bool:
        known = self._known
        return known is None or route.link not in {
            "", known.backend.scope.link, known.external.name,
        }  # fmt: skip

    def _owner(self, address: Address) -> Lease | None:
        if self._known is None:
            return None
        peers = self._known.peers.items()
        return next((lease for subnet, lease in peers if address in subnet), None)

    async def _look_at_destination(self, destination: Address) -> None:
        route = await self._kernel.lookup(destination.packed, self._names)
        known, owner = self._known, self._owner(destination)
        if known is None:
            self._add("lease", State.UNSEEN, "no agent tells which host has the destination")
            self._add_route(route)
        elif destination in known.own.subnet:
            self._add("lease", State.OK, f"{known.own.subnet} is this host's own")
            self._add_route(route, wants_link=True)
        elif destination not in known.config.network:
            given = known.config.first
            text = f"{destination} is outside of {given.prefix}Network {given.network}"
            if self._is_forwarded:
                text += (
                    ", where this host is seen as the source"
                    if known.masquerade
                    else ", where the source is seen as it is: --ip-masq would hide it"
                )
            self._add("lease", State.HINT, text)
            self._add_route(route)
        elif owner is None:
            self._add("lease", State.WRONG, self._why_nobody_has(destination))
            self._add_route(route)
        else:
            await self._look_at_peer(known, owner, route)

    def _add_route(self, route: Route | None, *, wants_link: bool = False) -> None:
        if route is None:
            self._add("route", State.WRONG, "there is none: the packet is refused")
        elif wants_link and route.kind != LOCAL and not self._is_towards_container(route):
            self._add("route", State.WRONG, f"{route}: no bridge has the destination's subnet")
        else:
            self._add("route", State.OK, str(route))

    def _why_nobody_has(self, destination: Address) -> str:
        assert self._known is not None
        text = f"no host has a subnet with {destination}"
        for key, reason in self._known.quarantined.items():
            try:
                pair = parse_name(key.rpartition("/")[2].encode())
            except FormatError:
                continue  # it names no subnet
            if any(destination in subnet for subnet in pair.all()):
                text += f"; {key} is of no use: {reason}"
        return text

    async def _look_at_peer(self, known: Known, peer: Lease, route: Route | None) -> None:
        reason = known.refused.get(str(peer.subnet), "")
        text = f"{peer.subnet} is of host {peer.public_ip}"
        if reason:
            self._add("lease", State.WRONG, f"{text}, which cannot be served: {reason}")
            return
        self._add("lease", State.OK, text)
        wanted = routes_to(known, [peer.subnet]).get(peer.subnet)
        if wanted is None:
            self._add_route(route)
            text = f"how packets get to host {peer.public_ip}, which others see to"
            self._add("peer", State.UNSEEN, f"{text} with backend {known.backend.type}")
            return
        if route is None:
            self._add("route", State.WRONG, f"{wanted} is missing")
        elif route != wanted:
            self._add("route", State.WRONG, f"{route} is in the way of {wanted}")
        else:
            self._add("route", State.OK, str(route))
        is_wrapped = wanted.link == known.backend.scope.link
        if is_wrapped or not known.backend.scope.link:
            self._found += look_at_device(known, self._links)
        if is_wrapped and isinstance(known.backend, VxlanBackend):
            await self._look_on_device(known, peer, wanted)
        self._found.append(await look_at_source_address(known, self._kernel, self._links))
        if is_wrapped:
            await self._look_at_way_out(known, peer)
        else:
            await self._look_at_neighbour(wanted, peer)

    async def _look_on_device(self, known: Known, peer: Lease, wanted: Route) -> None:
        """Look at neighbour and forwarding entry."""
        name = known.backend.scope.link
        index = index_of(name, self._links)
        if index is None:
            return  # that is told already, and nothing can be on it
        found: list[Neighbour | FdbEntry] = []
        found += await self._kernel.neighbours(known.family, index, name)
        found += await self._kernel.fdb(index, name)
        actual = {identity(item): item for item in found}
        neighbour = next(
            item
            for item in known.desired.items
            if isinstance(item, Neighbour) and item.address == wanted.gateway
        )
        entry = FdbEntry(name, neighbour.mac, peer.public_ip.packed)
        for subject, item in (("neighbour", neighbour), ("forwarding-entry", entry)):
            there = actual.get(identity(item))
            if there == item:
                self._add(subject, State.OK, str(item))
            elif there is None:
                self._add(subject, State.WRONG, f"{item} is missing")
            else:
                self._add(subject, State.WRONG, f"{there} is there instead of {item}")

    async def _look_at_way_out(self, known: Known, peer: Lease) -> None:
        address = peer.public_ip
        route = await self._kernel.lookup(address.packed, self._names)
        if route is None:
            self._add("underlay", State.WRONG, f"no route to host {address}")
        elif route.link == known.backend.scope.link:
            self._add("underlay", State.WRONG, f"{route} leads host {address} into the overlay")
        else:
            self._add("underlay", State.OK, f"host {address} by {route}")
        port = choose.port(known.config)
        self._add(
            "peer",
            State.UNSEEN,
            f"whether UDP port {port} reaches {address}, and what its kernel has: trace the way"
            " back there",
        )

    async def _look_at_neighbour(self, wanted: Route, peer: Lease) -> None:
        """Look whether the next hop is known on the link of the route: it is the host itself."""
        address, link = peer.public_ip, wanted.link
        index = index_of(link, self._links)
        if index is None:
            return  # that is told already
        found = await self._kernel.resolved(wanted.gateway, index)
        if found is None or not (found.mac or found.has_failed):
            text = f"whether host {address} answers on {link}: nothing was sent to it lately"
            self._add("neighbour", State.UNSEEN, text)
        elif found.has_failed:
            text = f"host {address} does not answer on {link}: it is off, or not on this link"
            self._add("neighbour", State.WRONG, text)
        else:
            text = f"host {address} is {found.mac.hex(':')} on {link}"
            self._add("neighbour", State.OK, text)
        self._add(
            "peer",
            State.UNSEEN,
            f"whether what is between lets packets of containers through to {address}, and what its"
            " kernel has: trace the way back there",
        )
