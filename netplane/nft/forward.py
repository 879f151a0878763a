"""Two accept rules in iptables' chain of forwarded packets: kept there, and taken away again.

They are all that we touch outside of our table. What is said and where they go is in `chains`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from netplane.netlink.heals import Heals
from netplane.netlink.monitor import Overrun
from netplane.netlink.namespace import inside
from netplane.netlink.objects import Identity
from netplane.nft import iptables
from netplane.nft.chains import (
    DOCKER,
    FIREWALLD,
    FORWARD,
    OURS,
    Pair,
    Placing,
    forward_chains,
    has_chain,
    in_the_way,
    iptables_of,
    legacy_commands,
    names_network,
    nft_commands,
    nft_lines,
    place,
    with_comments,
)
from netplane.nft.fate import Chain, Does, Line
from netplane.nft.iptables import IptablesError
from netplane.nft.library import Nft
from netplane.nft.monitor import TableChange
from netplane.nft.rules import NftError, family_of

Result = TypeVar("Result")

INTERVAL_S = 30.0
SETTLE_S = 0.01
"""What belongs together comes as several notifications."""
PAUSE_S = 0.2
PAUSE_FACTOR = 20
"""Between two looks, at least, and by how long the last one took: others may write all the time,
and have so many chains that to look takes long. Never longer than the interval."""
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class ForwardReport:
    """What one look at the chains found and did."""

    cause: str
    """`desired`, `change`, `timer`, or `retry`."""
    written: int = 0
    removed: int = 0
    healed: bool = False
    """Rules that were right before had to be written again."""
    problem: str = ""
    """What could not be read or written."""
    drops: tuple[str, ...] = ()
    """Chains that drop what our rules would accept, and what helps."""
    found: bool = False
    """Healed, or left waiting as contested; what waited before is not found again."""


@dataclass(frozen=True, slots=True)
class Sight:
    """How the chains are, for who only looks."""

    missing: tuple[str, ...]
    """Rules of ours that are not where they belong, in words."""
    kept: tuple[str, ...]
    """Chains that have them."""
    drops: tuple[str, ...]
    problem: str
    unsure: tuple[str, ...] = ()
    """What cannot be told from the chains, in words."""


@dataclass(slots=True)
class _Pass:
    problems: list[str]
    written: int = 0
    removed: int = 0
    healed: bool = False
    waits: bool = False


class ForwardRules:
    """Keeps the pair of rules in front of iptables' chain, of either kind, where there is one.

    Nothing is written before `apply`, and no chain is ever made.

    Args:
        pair: the rules.
        wanted: without it they are removed, and chains that drop are only named.
        namespace: a path; None is the one we are in.
        interval_s: how often the chains are read though no change was told. What iptables keep
            themselves is never told.
        on_report: called with the report of every pass, those of `apply` too.
    """

    def __init__(
        self,
        pair: Pair,
        *,
        wanted: bool = True,
        namespace: str | None = None,
        interval_s: float = INTERVAL_S,
        on_report: Callable[[ForwardReport], None] | None = None,
    ) -> None:
        self._pair = pair
        self._wanted = wanted
        self._names_drops = True
        self._namespace = namespace
        self._interval_s = interval_s
        self._on_report = on_report
        self._nft = Nft(namespace)
        self._heals = Heals()
        self._right: set[str] = set()
        """Chains that were as they should be at the end of the last pass."""
        self._waits = False
        """What others changed was left as it is in the last pass."""
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()

    def close(self) -> None:
        """Give thread and sockets back; the rules stay."""
        self._nft.close()

    async def apply(self) -> ForwardReport:
        """Have the rules where they belong, or nowhere if they are not wanted."""
        return await self._pass("desired")

    async def clear(self) -> ForwardReport:
        """Take the rules away."""
        self._wanted, self._names_drops = False, False
        return await self._pass("desired")

    def hear(self, change: TableChange | Overrun) -> None:
        """Take note of a change of nftables."""
        # What is written into our own tables has nothing to do with this.
        if isinstance(change, Overrun) or not OURS.match(f"{change.table}: "):
            self._wake.set()

    async def run(self) -> None:
        """Heal on changes that are heard and on the timer, until cancelled."""
        retry_s = RETRY_S
        report = ForwardReport("")
        while True:
            due_s = self._heals.due_s(time.monotonic())
            if report.problem and due_s is None:
                due_s, retry_s = retry_s, min(2 * retry_s, self._interval_s)
            elif not report.problem:
                retry_s = RETRY_S
            try:
                async with asyncio.timeout(min(self._interval_s, due_s or self._interval_s)):
                    await self._wake.wait()
                await asyncio.sleep(SETTLE_S)
                cause = "change"
            except TimeoutError:
                cause = "timer" if due_s is None else "retry"
            self._wake.clear()
            started = time.monotonic()
            report = await self._pass(cause)
            pause_s = max(PAUSE_S, PAUSE_FACTOR * (time.monotonic() - started))
            await asyncio.sleep(min(pause_s, self._interval_s))

    async def read(self) -> Sight:
        """Look, and change nothing."""
        chains, problems = await self._look()
        missing, kept = [], []
        for chain in chains:
            if not chain.is_iptables:
                continue
            placing = place(chain, self._pair, wanted=self._wanted)
            if placing.write:
                missing.append(
                    f"the rules that accept {self._pair.network} are not in front of chain"
                    f" {_place_name(chain, placing)}"
                )
            elif self._wanted:
                kept.append(_place_name(chain, placing))
        drops, unsure = in_the_way(chains, self._pair, wanted=self._wanted)
        problem = "; ".join(problems)
        return Sight(tuple(missing), tuple(kept), tuple(drops), problem, tuple(unsure))

    async def _pass(self, cause: str) -> ForwardReport:
        async with self._lock:
            chains, problems = await self._look()
            if problems:
                # A chain may have gone between the list of chains and that of its rules.
                chains, problems = await self._look()
            done = _Pass(problems)
            for chain in chains:
                if chain.is_iptables:
                    await self._keep(chain, done)
            self._heals.forget(time.monotonic())
            if done.written or done.removed:
                chains, _ = await self._look()
            drops: list[str] = []
            if self._names_drops:
                drops, _ = in_the_way(chains, self._pair, wanted=self._wanted)
            problem = "; ".join(dict.fromkeys(done.problems))
            found = (done.healed or done.waits) and not self._waits
            self._waits = done.waits
            report = ForwardReport(
                cause, done.written, done.removed, done.healed, problem, tuple(drops), found
            )
        if self._on_report is not None:
            self._on_report(report)
        return report

    async def _keep(self, chain: Chain, done: _Pass) -> None:
        """Have the pair where it belongs in one chain, or not at all."""
        placing = place(chain, self._pair, wanted=self._wanted)
        if not placing.is_done:
            key = Identity("forward", chain.name)
            if self._heals.held(key, time.monotonic()):
                done.waits = True
                done.problems.append(
                    f"chain {chain.name} is changed again and again by somebody, and put right"
                    f" every {self._heals.PAUSE_S:g} s only: find who does it"
                )
                return
            try:
                await self._write(chain, placing)
            except (NftError, IptablesError) as error:
                done.problems.append(str(error))
                return
            done.written += 2 * placing.write
            done.removed += len(placing.stale)
            if chain.name in self._right:
                done.healed = True
                self._heals.note(key, time.monotonic())
        self._right.add(chain.name)

    async def _look(self) -> tuple[list[Chain], list[str]]:
        """Return the base chains of forwarded packets, and what could not be read."""
        chains: list[Chain] = []
        problems: list[str] = []
        try:
            listed = await self._nft.ask("list chains")
        except NftError as error:
            problems.append(str(error))
        else:
            for name in forward_chains(listed, family_of(self._pair.network)):
                try:
                    chains.append(await self._look_at_nft(listed, *name))
                except (NftError, IptablesError) as error:
                    problems.append(str(error))
        try:
            chains += await self._inside(partial(iptables.look_at_legacy, self._pair))
        except IptablesError as error:
            problems.append(str(error))
        # One that is gone, or is there again as another, was not right.
        self._right &= {chain.name for chain in chains}
        return chains, problems

    async def _look_at_nft(
        self, listed: dict[str, Any], family: str, table: str, name: str, policy: str
    ) -> Chain:
        named = f"{family} {table} {name}"
        # Its chains ask zone after zone: whether it knows the network is all that can be seen.
        if table == FIREWALLD and names_network(
            await self._nft.ask(f"list table {family} {table}"), self._pair
        ):
            return Chain(named, policy, [Line("", does=Does.UNKNOWN)])
        is_iptables = (family, table, name) == iptables_of(self._pair.network)
        others = {}
        if is_iptables and has_chain(listed, family, table, DOCKER):
            others[DOCKER] = await self._lines(family, table, DOCKER)
        own = await self._lines(family, table, name)
        chain = Chain(named, policy, own, others, is_iptables)
        while unread := chain.fate().unread:
            for one in unread:
                others[one] = await self._lines(family, table, one)
        return chain

    async def _lines(self, family: str, table: str, name: str) -> list[Line]:
        pair = self._pair
        lines = nft_lines(await self._nft.ask(f"list chain {family} {table} {name}"), pair)
        is_ours = name in {FORWARD, DOCKER} and (family, table) == iptables_of(pair.network)[:2]
        if is_ours and any(line.accepts and line.hides_comment for line in lines):
            # They may be ours, saved by iptables and restored.
            printed = await self._inside(partial(iptables.print_chain, name, pair.network))
            lines = with_comments(lines, printed, name, pair)
        return lines

    async def _write(self, chain: Chain, placing: Placing) -> None:
        if chain.command:
            commands = legacy_commands(placing, self._pair)
            await self._inside(partial(iptables.write_legacy, commands, self._pair.network))
        else:
            await self._nft.run(nft_commands(placing, self._pair))

    async def _inside(self, action: Callable[[], Result]) -> Result:
        return await asyncio.to_thread(inside, self._namespace, action)


def _place_name(chain: Chain, placing: Placing) -> str:
    return chain.name.replace(FORWARD, placing.place)
