"""Keeps the kernel as desired: reads what is there, writes the difference, hears of changes.

What there should be is handed in; the comparison itself is pure and in `desired`.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile
from types import TracebackType
from typing import Self

from netplane.agent.desired import (
    Desired,
    Item,
    is_drift,
    is_flannels,
    is_ours,
    is_rival,
    leads_nowhere,
)
from netplane.agent.device import LinkKeeper
from netplane.agent.report import (
    LINES_MAX,
    Contest,
    Failure,
    PassLog,
    Report,
    warn,
    writer_name,
)
from netplane.agent.sysctls import Sysctls
from netplane.backend import Scope, Step
from netplane.netlink import monitor as events
from netplane.netlink.connection import Connection, NetlinkError, NetlinkLostError
from netplane.netlink.decode import NetlinkFormatError
from netplane.netlink.heals import Heals
from netplane.netlink.kernel import Change, Kernel, Refusal
from netplane.netlink.messages import IPV6_BYTES, NetObject
from netplane.netlink.monitor import Monitor
from netplane.netlink.objects import (
    Identity,
    KernelObject,
    Route,
    Sysctl,
    identity,
)

__all__ = ["Contest", "Failure", "Reconciler", "Report"]

INTERVAL_S = 30.0
SETTLE_S = 0.005
"""A flush of many objects comes as many notifications: a few may gather before a pass."""

RETRY_S = 1.0
"""After a pass that could not learn what is there, or what became of a write."""


class Reconciler:
    """Keeps the objects of one scope in one network namespace as desired.

    Nothing is written before the first `apply`: what looks like a leftover may belong to a peer
    that we have not heard of yet. Use as `async with Reconciler(scope) as reconciler`.

    Args:
        scope: which objects are ours.
        namespace: a path, as `/run/netns/a`; None is the one we are in.
        interval_s: how often the kernel is read though no change was told.
        listen: whether changes are listened for; without it only the timer heals.
        on_report: called with the report of every pass, those of `apply` too.
        previous_sysctls: as an earlier reconciler had them at its end.
    """

    def __init__(
        self,
        scope: Scope,
        *,
        namespace: str | None = None,
        interval_s: float = INTERVAL_S,
        listen: bool = True,
        on_report: Callable[[Report], None] | None = None,
        previous_sysctls: Mapping[str, str] | None = None,
    ) -> None:
        self._sysctls = Sysctls(scope.link, namespace, previous_sysctls or {})
        self._scope = scope
        self._namespace = namespace
        self._interval_s = interval_s
        self._on_report = on_report
        # Before anything is read, or a change right behind the reading is not told.
        is_ipv6 = len(scope.networks[0][0]) == IPV6_BYTES
        groups = events.GROUPS6 if is_ipv6 else events.GROUPS
        self._monitor = Monitor(namespace, groups=groups) if listen else None
        self._connection = Connection(namespace)
        if self._monitor is not None:
            self._monitor.leave_out(self._connection.port)
        self._kernel = Kernel(self._connection)
        self._links = LinkKeeper(scope, self._kernel)
        self._desired: Desired | None = None
        self._remove = False
        self._known: AbstractSet[Item] | None = None
        """What was there at the end of the last pass; None: there was none yet."""
        self._lost: frozenset[Item] = frozenset()
        """What was there and somebody took away or replaced, until it is back."""
        self._stale = True
        """What is there has to be read before anything is written."""
        self._adopting = bool(scope.adopts or scope.adopts_routes)
        """Some of it may be Flannel's yet, also when we were killed in between."""
        self._heals = Heals()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._cause = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def previous_sysctls(self) -> dict[str, str]:
        """What each setting was before we first changed it, for `clear`."""
        return self._sysctls.previous

    @property
    def kept_sysctls(self) -> Sequence[Sysctl]:
        """What settings are kept as."""
        return () if self._desired is None else self._desired.sysctls

    def close(self) -> None:
        """Give the sockets back. The kernel stays as it is: traffic goes on without us."""
        self._connection.close()
        if self._monitor is not None:
            self._monitor.close()

    async def apply(
        self,
        desired: AbstractSet[KernelObject],
        *,
        remove: bool = True,
        step: Step | None = None,
        gate: asyncio.Event | None = None,
    ) -> Report:
        """Make the kernel as desired, and keep it so from now on.

        Without `remove`, what is ours and not desired stays, until an `apply` with it: for a view
        that may be too old to take anything away.

        One object that fails stops no other. What others have changed meanwhile is left to `run`
        when only peers differ from the last time: then the kernel is not read, just written.
        With the `step` that led to it the difference to the last time is not searched for.
        A link that is not desired goes, and settings that are not get their earlier values.
        Until the `gate` is set no packet is led to where none was before: what is new on our link
        is written, and no route.
        """
        async with self._lock:
            before, self._desired = self._desired, Desired(desired, self._desired, step)
            self._remove = remove
            if before is not None and (
                (before.link, before.sysctls, before.uplink)
                != (self._desired.link, self._desired.sysctls, self._desired.uplink)
            ):
                self._stale = True
            report = await self._pass("desired", read=self._stale, gate=gate)
        if self._stale:
            self._note("retry")
        return report

    async def run(self) -> None:
        """Heal on changes, lost notifications and the timer, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._monitor is not None:
                tasks.create_task(self._listen(self._monitor))
            tasks.create_task(self._heal())

    async def clear(self) -> Report:
        """Remove everything that is ours, and set back the settings that we changed."""
        return await self.apply(frozenset())

    # hearing

    async def _listen(self, monitor: Monitor) -> None:
        while True:
            self._hear(await monitor.read(self._links.names, self._connection.port))
            await asyncio.sleep(0)  # in a storm the next read has something at once

    def _hear(self, changes: list[events.Change]) -> None:
        for change in changes:
            cause = self._cause_of(change)
            if cause:
                self._note(cause)

    def _note(self, cause: str) -> None:
        self._cause = cause
        self._wake.set()

    def _cause_of(self, change: events.Change) -> str:
        """Return why a change calls for a pass, or ""."""
        if self._desired is None:
            return ""
        match change:
            case events.Overrun():
                return "overrun"
            case events.LinkChange(link, removed, port):
                if not self._links.may_have_taken(link, self._desired.link, removed=removed):
                    return ""
                name = self._links.names.get(link.index, link.name)  # it may have another now
                self._note_writer(Identity("link", name), port)
                return "link"
            case events.SettingsChange():
                return "sysctl" if self._sysctls.wrong(self._desired.sysctls) else ""
            case events.ObjectChange(item, _, port):
                if not is_drift(change, self._desired, self._scope):
                    return ""
                self._note_writer(identity(item), port)
                return type(item).__name__.lower()

    def _note_writer(self, key: Identity, port: int) -> None:
        # To find out who it is takes a while, and at first nobody asks.
        if self._heals.is_near_fight(key):
            self._heals.writers[key] = writer_name(port, self._namespace)

    async def _heal(self) -> None:
        said: tuple[Failure, ...] = ()
        while True:
            due_s = self._heals.due_s(time.monotonic())
            if self._stale and self._desired is not None:
                due_s = min(RETRY_S, due_s or RETRY_S)
            try:
                async with asyncio.timeout(min(self._interval_s, due_s or self._interval_s)):
                    await self._wake.wait()
                await asyncio.sleep(SETTLE_S)
                cause = self._cause
            except TimeoutError:
                cause = "timer" if due_s is None else "retry"
            self._wake.clear()
            async with self._lock:
                if self._desired is None:
                    continue
                report = await self._pass(cause, read=True)
            if report.failed != said:
                warn([str(failure) for failure in report.failed])
                said = report.failed

    # one pass

    async def _pass(self, cause: str, *, read: bool, gate: asyncio.Event | None = None) -> Report:
        assert self._desired is not None
        done = PassLog(cause, self._heals)
        try:
            if not read:
                assert self._known is not None
                await self._keep_items(self._desired, self._known, done, gate)
            else:
                self._stale = True
                wanted = self._desired
                if await self._links.keep(
                    wanted.link, done, remove=self._remove, uplink=wanted.uplink
                ):
                    self._sysctls.keep(wanted.sysctls, done, remove=self._remove)
                    found = await self._read(wanted)
                    others = await self._in_place_of_ours(wanted, found)
                    self._stale = False
                    await self._keep_items(wanted, found, done, gate, others)
                    if self._remove and not (done.failed or done.contested):
                        self._adopting = False
        except (NetlinkError, NetlinkLostError, NetlinkFormatError) as error:
            self._stale = True
            done.failed.append(Failure(None, f"cannot read the kernel's objects: {error}"))
        done.failed += self._links.troubles
        self._stale = self._stale or done.lost
        warn(done.fights)
        self._heals.forget(time.monotonic())
        report = done.report()  # the time until the last answer; what follows delays no packet
        if self._monitor is not None:
            # Echoes of what was just written, against what is desired now. Later, when something
            # else is, they would look like somebody else's work: not all carry our port.
            self._hear(self._monitor.pending(self._links.names, self._connection.port))
        if self._on_report is not None:
            self._on_report(report)
        return report

    async def _read(self, desired: Desired) -> frozenset[Item]:
        """Return what is there of ours, and of what is desired."""
        found: list[Item] = []
        name = self._scope.link
        index = self._links.indices.get(name)
        if index is not None:
            found += await self._kernel.on_link(self._links.family, index, name)
        found += await self._kernel.routes(
            self._links.family, self._links.names, any_writer=self._adopting
        )
        wanted = desired.items.whole()
        return frozenset(
            item
            for item in found
            if item in wanted
            or is_ours(item, self._scope)
            or (self._adopting and is_flannels(item, self._scope))
        )

    async def _in_place_of_ours(self, desired: Desired, found: frozenset[Item]) -> frozenset[Item]:
        """Return the routes of others that are where ours were at the end of the last pass.

        Where ours never were they stay: a host may have them for a reason.
        """
        wanted = desired.items.whole()
        self._lost = frozenset(wanted & self._lost.union(self._known or ())) - found
        places = {identity(item) for item in self._lost if isinstance(item, Route)}
        if not places:
            return frozenset()
        routes = await self._kernel.routes(self._links.family, self._links.names, any_writer=True)
        return frozenset(route for route in routes if identity(route) in places)

    async def _keep_items(
        self,
        desired: Desired,
        found: AbstractSet[Item],
        done: PassLog,
        gate: asyncio.Event | None,
        others: frozenset[Item] = frozenset(),
    ) -> None:
        """Write the difference between what was found and what is desired.

        `others` give way to what is desired, and are not ours to remove when nothing is.
        """
        before, self._known = self._known, found
        changes = desired.changes(others.union(found) if others else found, remove=self._remove)
        if self._heals.any_contested:
            changes = [change for change in changes if not done.must_wait(change.item)]
        if not changes:
            if found == desired.items:
                self._known = desired.items
            return
        self._stale = True  # until it is known what became of them; we may be cancelled
        refusals = await self._write(changes, gate)
        self._stale = False
        ended = changes
        if refusals:
            failed = {id(refusal.change) for refusal in refusals}
            ended = [change for change in changes if id(change) not in failed]
            rivals = await self._rivals(refusals)
            for refusal in refusals:
                done.note_refusal(refusal, rivals.get(refusal.change.item))
        for change in ended:
            (done.removed if change.removed else done.written).append(change.item)
        self._note_heals(ended, None if found is before else before, others, done)
        if len(ended) == len(changes) and not done.contested and self._remove:
            # As desired. By the very set, so that the next change is not looked for in all of it.
            self._known = desired.items
            return
        written = {change.item for change in ended if not change.removed}
        wanted, found = desired.items.whole(), frozenset(found)
        known = (found & wanted) | written
        left = found - wanted
        if left:
            settled = {identity(change.item) for change in ended}
            known |= {item for item in left if identity(item) not in settled}
        self._known = known  # type: ignore[assignment]  # links are written apart

    def _note_heals(
        self,
        ended: list[Change],
        before: AbstractSet[Item] | None,
        others: frozenset[Item],
        done: PassLog,
    ) -> None:
        """Note what was right before and was not now; or was not there before, nor wanted now.

        `before` is None where nothing was known yet, or nothing was read now.
        """
        if before is None and not self._lost:
            return
        for change in ended:
            item = change.item
            if change.removed:
                # What made room for ours is told of with that.
                if before is not None and item not in before and item not in others:
                    done.note_heal(item)
            elif item in self._lost:
                done.note_heal(item)
        self._lost = self._lost.difference(change.item for change in ended)

    async def _rivals(self, refusals: Iterable[Refusal]) -> dict[NetObject, Route]:
        """Find out which routes of others are in the way of refused ones; of many, of a few."""
        refused = [
            item
            for (item, *_), code, _ in refusals
            if code in {errno.EEXIST, errno.EINVAL} and isinstance(item, Route)
        ]
        if not refused:
            return {}
        names = {link.index: link.name for link in await self._kernel.links()}
        found: dict[NetObject, Route] = {}
        for item in refused[:LINES_MAX]:
            route = await self._kernel.lookup(item.destination, names)
            if route is not None and is_rival(route, item):
                found[item] = route
        return found

    async def _write(self, changes: list[Change], gate: asyncio.Event | None) -> list[Refusal]:
        """Write changes, as much as may be before the gate is set; see `apply`."""
        if gate is None:
            return await self._kernel.write(changes, self._links.indices)
        free = sum(1 for _ in takewhile(leads_nowhere, changes))
        refusals = await self._kernel.write(changes[:free], self._links.indices)
        await gate.wait()
        return refusals + await self._kernel.write(changes[free:], self._links.indices)
