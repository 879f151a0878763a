"""Keeps one table of ours as told: writes, hears of changes, compares, heals.

What it says is not known here: `firewall` and `portmap` say it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netplane.netlink.heals import Heals
from netplane.netlink.monitor import Overrun
from netplane.netlink.objects import Identity
from netplane.nft import listing
from netplane.nft.library import Nft
from netplane.nft.listing import Listing
from netplane.nft.monitor import FAMILIES, NftMonitor, TableChange
from netplane.nft.rules import (
    COMMENT,
    SET_IN_RULE,
    NftError,
    check_table,
    elements,
    removal,
)

log = logging.getLogger(__name__)

INTERVAL_S = 30.0
RETRY_FIRST_S = 1.0

ABSENT = os.strerror(errno.ENOENT)
LACKS_A_PART = (
    "the kernel lacks a part of nf_tables that this needs: modprobe -a nf_tables nft_chain_nat"
    " nft_masq nft_nat nft_ct nft_fib_ipv4 nft_fib_ipv6"
)

Members = Mapping[str, frozenset[Hashable]]
"""What is in each set or map. Texts, or what `str` makes texts of, in nft's words.

Only those that come or go are made texts of: of a thousand that would take a millisecond.
"""


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """What one pass over a table did."""

    cause: str
    """`desired`, `changed`, `removed`, `overrun`, `start`, `timer`, `retry` or `cleared`."""
    written: int
    """Objects, and members of sets."""
    removed: int
    """Members of sets; of a table that is cleared, 1."""
    healed: bool
    """Somebody had changed what was right."""
    problem: str
    """Why the table is not as told, in nft's words and with the remedy; empty: it is."""
    milliseconds: float
    contested: str = ""
    """That somebody else keeps changing the table, and who; it is put right every 10 s only."""
    found: bool = False
    """Healed, or left waiting as contested; what waited before is not found again."""


@dataclass(slots=True)
class _Pass:
    cause: str
    started: float = field(default_factory=time.perf_counter)
    written: int = 0
    removed: int = 0
    healed: bool = False
    waits: bool = False


class KeptTable:
    """One table. Nothing of anybody else's is touched.

    Nothing is opened or written before the first call. Whoever ends us: the table stays.

    Args:
        table: its name; see `rules.check_table`.
        family: its family, `ip` or `ip6`.
        namespace: a path, as `/run/netns/a`; None is the one we are in.
        listen: whether `run` listens for changes; without it only the timer heals.
        interval_s: how often the table is read though no change was told.
        on_report: called with the report of every pass.
        on_other: called with the changes that are none of this table, and when any may be lost.
    """

    def __init__(
        self,
        table: str,
        *,
        family: str = "ip",
        namespace: str | None = None,
        listen: bool = True,
        interval_s: float = INTERVAL_S,
        on_report: Callable[[FirewallReport], None] | None = None,
        on_other: Callable[[TableChange | Overrun], None] = lambda _: None,
    ) -> None:
        check_table(table)
        self.table = table
        self._name = f"{family} {table}"
        self._family = FAMILIES[family]
        self._namespace = namespace
        self._listens = listen
        self._interval_s = interval_s
        self._on_report = on_report
        self._on_other = on_other
        self._nft = Nft(namespace)
        self._key = Identity("table", self._name)
        self._text = ""
        """What there should be, but for members; empty: nobody has said yet, or it was cleared."""
        self._members: Members = {}
        self._written = ""
        """The text that was written last; empty: it is not known what is there."""
        self._written_members: Members | None = None
        """None: it is not known which are there."""
        self._shown: tuple[str, ...] = ()
        """How nft shows `_shown_text` when it has just been written; see `listing`."""
        self._shown_text = ""
        self._problem = ""
        self._waits = False
        """What others changed was left as it is in the last pass."""
        self._retry_s = RETRY_FIRST_S
        self._heals = Heals()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._cause = ""

    def close(self) -> None:
        """Give thread and sockets back. The kernel stays as it is."""
        self._nft.close()

    async def keep(self, text: str, members: Members) -> FirewallReport:
        """Make the table say this, and keep it so from now on. One transaction.

        Only members that came or went are written when the text is the same. What others have
        changed meanwhile is then left to `run`.

        Args:
            text: what is in the table, without the members of its sets.
            members: of each set that the text has.
        """
        async with self._lock:
            self._text, self._members = text, members
            report = await self._pass("desired", look=False)
        if report.problem:
            self._note("retry")  # `run` is to wait less long than until its timer
        return report

    async def clear(self) -> FirewallReport:
        """Remove the table, whoever has made it, and keep it no longer."""
        async with self._lock:
            self._text = self._written = self._problem = ""
            done = _Pass("cleared")
            try:
                if await self._list(terse=True) is not None:
                    await self._nft.run(removal(self._name))
                    done.removed = 1
            except NftError as error:
                self._problem = str(error)
            return self._report(done)

    async def read(self) -> list[str]:
        """Say what is missing, left over or other than it was told. Changes nothing."""
        async with self._lock:
            if not self._written:
                return [self._problem] if self._problem else []
            try:
                return self._differences(await self._list())
            except NftError as error:
                return [f"table {self._name} cannot be read: {error}"]

    async def run(self) -> None:
        """Heal on changes, lost notifications and the timer, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._listens:
                tasks.create_task(self._listen())
            tasks.create_task(self._heal())

    async def _ask(self, command: str, kind: str) -> list[dict[str, Any]]:
        """Return what there is of a kind in the answer to a command that lists; NftError."""
        answer = await self._nft.ask(command)
        return [entry[kind] for entry in answer["nftables"] if kind in entry]

    # hearing

    def _quiet_port(self) -> int | None:
        """Return the port of a socket whose changes are not to be heard. Raises OSError."""
        return None

    async def _listen(self) -> None:
        said = ""
        while True:
            try:
                monitor = NftMonitor(self._namespace, but_of_port=self._quiet_port())
                with contextlib.closing(monitor):
                    said = ""
                    self._note("start")  # what came before was not heard
                    self._on_other(Overrun())
                    while True:
                        for change in await monitor.read(self._nft.port):
                            self._hear(change)
                        await asyncio.sleep(0)  # in a storm the next read has something at once
            except OSError as error:
                reason = error.strerror or str(error)
                if reason != said:
                    log.warning("changes of nftables cannot be heard: %s", reason)
                    said = reason
                await asyncio.sleep(self._interval_s)

    def _hear(self, change: TableChange | Overrun) -> None:
        if isinstance(change, Overrun):
            self._note("overrun")
        elif (change.family, change.table) == (self._family, self.table):
            self._heals.writers[self._key] = change.writer
            self._note("removed" if change.removed else "changed")
            return
        self._on_other(change)

    def _note(self, cause: str) -> None:
        self._cause = cause
        self._wake.set()

    async def _heal(self) -> None:
        while True:
            cause = await self._next_cause()
            async with self._lock:
                if self._text:
                    await self._pass(cause, look=True)

    async def _next_cause(self) -> str:
        paused = False
        while (pause_s := self._heals.due_s(time.monotonic())) is not None:
            # Nothing would be written before that, so what is heard meanwhile is looked at then.
            await asyncio.sleep(pause_s)
            paused = True
        if paused:
            self._wake.clear()
            return "retry"
        fails = bool(self._problem)
        wait_s = min(self._retry_s, self._interval_s) if fails else self._interval_s
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
            cause = self._cause
        except TimeoutError:
            cause = "retry" if fails else "timer"
        self._wake.clear()
        return cause

    # one pass

    async def _pass(self, cause: str, *, look: bool) -> FirewallReport:
        done = _Pass(cause)
        try:
            await self._make(done, look=look)
        except NftError as error:
            self._written = ""
            self._problem = str(error)
            if ABSENT in error.text and error.asked:
                self._problem += f": {LACKS_A_PART}"
            self._retry_s = min(2 * self._retry_s, self._interval_s)
        else:
            self._problem = ""
            self._retry_s = RETRY_FIRST_S
        now = time.monotonic()
        if done.healed and self._heals.note(self._key, now):
            log.warning("%s", self._contested())
        self._heals.forget(now)
        return self._report(done)

    async def _make(self, done: _Pass, *, look: bool) -> None:
        if self._written != self._text:
            await self._write_whole(done)
        elif look or self._written_members is None:
            # Who changes it while it is read is told, and leads to another pass.
            found = await self._list()
            if self._differences(found):
                await self._put_right(done, is_there=found is not None)
            else:
                self._written_members = self._members
        elif self._members != self._written_members:
            try:
                await self._write_members(self._written_members, done)
            except NftError:
                # The table is not as we left it, or nothing works; then this says why.
                await self._put_right(done)

    async def _put_right(self, done: _Pass, *, is_there: bool = True) -> None:
        if self._heals.held(self._key, time.monotonic()):
            done.waits = True
        else:
            await self._write_whole(done, is_there=is_there)
            done.healed = True

    async def _write_members(self, before: Members, done: _Pass) -> None:
        text, written, removed = "", 0, 0
        for name, wanted in self._members.items():
            came, gone = wanted - before[name], before[name] - wanted
            # What goes makes room for what comes: of a map there is one member to a key.
            text += elements("delete", self._name, name, gone)
            text += elements("add", self._name, name, came)
            written += len(came)
            removed += len(gone)
        self._written_members = None  # until it is known what became of it; we may be cancelled
        await self._nft.run(text)
        self._written_members = self._members
        done.written, done.removed = written, removed

    async def _write_whole(self, done: _Pass, *, is_there: bool = True) -> None:
        self._written = ""
        text, members = self._text, self._members
        # nft before 1.0.7 has no command that deletes a table whether it is there or not. Where
        # there was none a moment ago it is left out: it took a fifth of such a healing. A table
        # that somebody made in this moment is told of, and leads to another pass.
        parts = [removal(self._name) if is_there else "", f"table {self._name} {{\n{text}}}\n"]
        parts += [elements("add", self._name, name, found) for name, found in members.items()]
        await self._nft.run("".join(parts))
        if self._shown_text != text:
            found = await self._list(terse=True)
            made = text.count(COMMENT) - 1  # all have one, the table too
            if found is None or not found.is_untouched(made, text.count(SET_IN_RULE)):
                raise NftError(f"somebody else changed table {self._name} while it was written")
            self._shown, self._shown_text = found.lines, text
        self._written, self._written_members = text, members
        done.written = self._text.count(COMMENT) + sum(map(len, members.values()))

    async def _list(self, *, terse: bool = False) -> Listing | None:
        """Return what there is of our table; None: nothing."""
        try:
            answer = await self._nft.show(f"list table {self._name}", terse=terse)
        except NftError as error:
            if ABSENT in error.text and error.asked:
                return None
            raise
        return listing.read(answer)

    def _differences(self, found: Listing | None) -> list[str]:
        if found is None:
            return [f"table {self._name} is missing"]
        members = {name: frozenset(map(str, meant)) for name, meant in self._members.items()}
        return listing.differences(Listing(self._shown, members), found)

    def _contested(self) -> str:
        writer = self._heals.writers.get(self._key, "")
        last = f", last by {writer}" if writer else ""
        return (
            f"table {self._name} was changed {self._heals.count(self._key)} times within a"
            f" minute{last}: it is put right every {Heals.PAUSE_S:g} s only"
        )

    def _report(self, done: _Pass) -> FirewallReport:
        waited, self._waits = self._waits, done.waits
        report = FirewallReport(
            cause=done.cause,
            written=done.written,
            removed=done.removed,
            healed=done.healed,
            problem=self._problem,
            milliseconds=(time.perf_counter() - done.started) * 1000,
            contested=self._contested() if self._heals.any_contested else "",
            found=(done.healed or done.waits) and not waited,
        )
        if self._on_report is not None:
            self._on_report(report)
        return report
