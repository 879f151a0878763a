"""The kernel as objects: what is there, and writing lists of changes; no decision is taken here."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from netplane.netlink import decode, messages
from netplane.netlink.connection import Connection, NetlinkError
from netplane.netlink.messages import NetObject, Request
from netplane.netlink.objects import PROTOCOL, Address, FdbEntry, Neighbour, Route, VxlanLink

GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}
"""How removing what is not there ends."""

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""How looking up a route ends where none is, or one that refuses."""

KERNEL_PROTOCOL = 2
"""Of the routes that come with addresses."""

UNKNOWN = {errno.ENOBUFS, errno.ETIMEDOUT}
"""How a request ends whose answer is lost; see `Connection.perform`."""


class Change(NamedTuple):
    """One write."""

    item: NetObject
    removed: bool = False
    replace: bool = False
    """A route of ours is in its place."""


class Refusal(NamedTuple):
    """A write that failed."""

    change: Change
    code: int
    text: str


class Kernel:
    """Typed calls on a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def link(self, name: str) -> decode.Link | None:
        """Return a link by its name."""
        message = await self.connection.get(messages.get_link(name))
        return None if message is None else decode.link(message.body)

    async def links(self) -> list[decode.Link]:
        """Return all links."""
        return [
            decode.link(message.body)
            for message in await self.connection.dump(messages.dump_links())
        ]

    async def lookup(self, address: bytes, names: Mapping[int, str]) -> Route | None:
        """Return the route that packets of this host to an address take; None: they are refused."""
        try:
            message = await self.connection.get(messages.get_route(address))
        except NetlinkError as error:
            if error.code in UNREACHABLE:
                return None
            raise
        return None if message is None else decode.route(message.body, names, any_table=True)

    async def vxlan_links(self) -> list[decode.Link]:
        """Return all vxlan devices."""
        found = await self.connection.dump(messages.dump_vxlan_links())
        links = [decode.link(message.body) for message in found]
        # A kernel that does not know the filter sends all links.
        return [link for link in links if link.vxlan is not None]

    async def addresses(self, family: int, index: int, name: str) -> list[Address]:
        """Return the addresses of a link."""
        found = await self.connection.dump(messages.dump_addresses(family, index))
        read = (decode.address(message.body, {index: name}) for message in found)
        return [item for item in read if item is not None]

    async def neighbours(self, family: int, index: int, name: str) -> list[Neighbour]:
        """Return the permanent neighbours on a link."""
        found = await self._neighbours(messages.dump_neighbours(family, index), index, name)
        return [item for item in found if isinstance(item, Neighbour)]

    async def resolved(self, address: bytes, index: int) -> decode.Resolved | None:
        """Return what a link knows of the neighbour with an address; None: it never asked."""
        family = messages.AF_OF_LENGTH[len(address)]
        found = await self.connection.dump(messages.dump_neighbours(family, index))
        read = (decode.resolved(message.body) for message in found)
        return next((one for one in read if one.address == address), None)

    async def fdb(self, index: int, name: str) -> list[FdbEntry]:
        """Return the permanent forwarding entries of a link."""
        found = await self._neighbours(messages.dump_fdb(index), index, name)
        return [item for item in found if isinstance(item, FdbEntry)]

    async def on_link(
        self, family: int, index: int, name: str
    ) -> list[Address | Neighbour | FdbEntry]:
        """Return all that is on a link: addresses, permanent neighbours and forwarding entries."""
        return [
            *await self.addresses(family, index, name),
            *await self.neighbours(family, index, name),
            *await self.fdb(index, name),
        ]

    async def _neighbours(
        self, request: Request, index: int, name: str
    ) -> list[Neighbour | FdbEntry | None]:
        found = await self.connection.dump(request)
        names = {index: name}
        return [
            decode.neighbour(message.body, names)
            for message in found
            if decode.is_permanent(message.body)
        ]

    async def routes(
        self, family: int, names: Mapping[int, str], *, any_writer: bool = False
    ) -> list[Route]:
        """Return the routes of our protocol number in the main table.

        With `any_writer` those of all others too, but for the kernel's own.
        """
        protocol = messages.ANY_PROTOCOL if any_writer else PROTOCOL
        found = await self.connection.dump(messages.dump_routes(family, protocol))
        read = (decode.route(message.body, names) for message in found)
        return [item for item in read if item is not None and item.protocol != KERNEL_PROTOCOL]

    async def write(self, changes: Sequence[Change], indices: Mapping[str, int]) -> list[Refusal]:
        """Write in order and return what failed; to remove what is gone already is no failure.

        Args:
            indices: of the links that are named. An object on another one fails by itself.
        """
        refusals: list[Refusal] = []
        possible: list[Change] = []
        requests: list[Request] = []
        for change in changes:
            item = change.item
            if isinstance(item, VxlanLink):
                # One is removed by its own index, and made on its parent's.
                index = indices[item.name if change.removed else item.parent]
            elif item.link in indices:
                index = indices[item.link]
            elif not item.link:
                index = 0  # a blackhole is on none
            else:
                text = f"there is no link {item.link}"
                refusals.append(Refusal(change, errno.ENODEV, text))
                continue
            possible.append(change)
            requests.append(
                messages.remove(item, index)
                if change.removed
                else messages.add(item, index, replace=change.replace)
            )
        outcomes = await self.connection.perform(requests)
        for change, outcome in zip(possible, outcomes, strict=True):
            if outcome.code and not (change.removed and outcome.code in GONE):
                refusals.append(Refusal(change, outcome.code, outcome.text))
        return refusals

    async def set_link(self, item: VxlanLink, index: int, *, mac: bool) -> list[Refusal]:
        """Give a link its MTU and take it up; its MAC only where it has another.

        The kernel forgets all neighbours of a link that is given a MAC, were it the same.
        """
        return await self._set(item, [messages.set_link(item, index, mac=mac)])

    async def rename_link(self, item: VxlanLink, index: int) -> list[Refusal]:
        """Give a link the name of this one; where it has to be down for that, it is for a moment.

        Linux before 6.2 renames none that is up; its routes go then and are to be written anew.
        """
        rename = messages.rename_link(item.name, index)
        refusals = await self._set(item, [rename])
        if refusals and refusals[0].code == errno.EBUSY:
            down, up = (messages.take_link(index, up=up) for up in (False, True))
            refusals = await self._set(item, [down, rename, up])
        return refusals

    async def _set(self, item: VxlanLink, requests: Sequence[Request]) -> list[Refusal]:
        outcomes = await self.connection.perform(requests)
        return [Refusal(Change(item), one.code, one.text) for one in outcomes if one.code]
