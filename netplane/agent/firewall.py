"""The firewall of one host: our table, our two rules in the chain of others, what becomes of both.

Routes never wait for it for long: nftables may be missing, or in the hands of who writes thousands
of rules. What cannot be done is told, and tried again by `run`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from netplane.agent.ports import FirewallLook, FirewallReport
from netplane.agent.spread import spread
from netplane.nft.chains import Pair
from netplane.nft.firewall import Firewall
from netplane.nft.firewall import FirewallReport as TableReport
from netplane.nft.forward import ForwardReport, ForwardRules
from netplane.nft.rules import Rules, family_of
from netplane.subnet.family import Address, Subnet, is_same

PATIENCE_S = 2.0
"""How long routes, and who asks, wait."""

LATER_S = 1.0
"""Who goes is shut out by then: with who comes meanwhile, or with others who go. A transaction for
each would be most of what an agent does for a host that goes."""

TELL_S = 5.0
"""By then members that were written are reported."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the firewall is to say, but for our subnet and the peers."""

    table: str
    network: Subnet
    vxlan_port: int
    vni: int
    masquerade: bool = False
    fully_random: bool = True
    forward_rules: bool = True
    devices: tuple[str, ...] = ()
    """What only packets of the network come over."""

    def rules(self, subnet: Subnet) -> Rules:
        """Return the rules of our table."""
        return Rules(
            table=self.table,
            network=self.network,
            subnet=subnet,
            vxlan_port=self.vxlan_port,
            vni=self.vni,
            masquerade=self.masquerade,
            fully_random=self.fully_random,
        )


class HostFirewall:
    """Keeps both as told; touches the kernel from the first `apply` on.

    Args:
        wanted: what it says.
        interval_s: how often it is read though no change was told.
        on_report: called after every look.
    """

    def __init__(
        self, wanted: Wanted, interval_s: float, on_report: Callable[[FirewallReport], None]
    ) -> None:
        self._wanted = wanted
        self._on_report = on_report
        self._last = FirewallReport()
        self._told: tuple[Subnet, frozenset[Address]] | None = None
        self._wanted_vteps: frozenset[Address] = frozenset()
        """Those who were told last, and some who are to go yet."""
        self._leaving = asyncio.Event()
        """Some are."""
        self._steps = 0
        """Members written that are not reported yet."""
        self._reporting: asyncio.TimerHandle | None = None
        self._rules: Rules | None = None
        """Of the subnet that was told last."""
        self.is_placed = False
        """The chains of others have been looked at."""
        self._late: set[asyncio.Task[Any]] = set()
        """What nobody waits for any longer."""
        self._foreign = ForwardRules(
            Pair(wanted.table, wanted.network, wanted.devices),
            wanted=wanted.forward_rules,
            interval_s=interval_s,
            on_report=self._take_foreign,
        )
        self._own = Firewall(
            wanted.table,
            family=family_of(wanted.network),
            interval_s=interval_s,
            on_report=self._take_own,
            on_other=self._foreign.hear,
        )

    async def apply(self, subnet: Subnet, vteps: frozenset[Address]) -> None:
        """Let these hosts in, and before long no others."""
        self._wanted_vteps = vteps
        told = self._told
        if told is None or not is_same(told[0], subnet) or not told[1] >= vteps:
            await self._write(subnet, vteps)
        elif len(told[1]) != len(vteps):
            self._leaving.set()

    async def _write(self, subnet: Subnet, vteps: frozenset[Address]) -> None:
        self._told = subnet, vteps
        if self._rules is None or not is_same(self._rules.subnet, subnet):
            self._rules = self._wanted.rules(subnet)
        written = self._own.step(self._rules, vteps)
        if written is not None:
            self._steps += written
            if self._reporting is None:
                loop = asyncio.get_running_loop()
                self._reporting = loop.call_later(spread(TELL_S), self._report)
        elif not await self._bounded(self._own.apply(self._rules, vteps)):
            self._report(
                problem=f"nftables have not answered within {PATIENCE_S:g} s; somebody may be"
                " writing very many rules"
            )

    async def _see_off(self) -> None:
        """Shut those out who have gone."""
        while True:
            await self._leaving.wait()
            await asyncio.sleep(spread(LATER_S))
            self._leaving.clear()
            if self._told is not None and self._told[1] != self._wanted_vteps:
                await self._write(self._told[0], self._wanted_vteps)

    async def place(self) -> None:
        """Have our rules in the chain of others."""
        self.is_placed = True
        await self._bounded(self._foreign.apply())

    async def run(self) -> None:
        """Heal until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._own.run())
            tasks.create_task(self._foreign.run())
            tasks.create_task(self._see_off())

    async def clear(self) -> None:
        """Take both away; what fails is told as everything is."""
        self._told = None
        await self._own.clear()
        await self._foreign.clear()

    async def look(self) -> FirewallLook:
        """Read both from the kernel, and change nothing."""
        wrong = await self._own.read()
        sight = await self._foreign.read()
        unseen = (sight.problem,) if sight.problem and not wrong else ()
        return FirewallLook((*wrong, *sight.missing), sight.kept, sight.drops, unseen, sight.unsure)

    async def dropped(self) -> int | None:
        """Return the count of packets from unknown hosts; None: it cannot be read now."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._own.dropped()
        except TimeoutError:
            return None  # who is in the middle of writing has told so

    def close(self) -> None:
        """Give sockets and threads back; the kernel stays as it is."""
        for task in self._late:
            task.cancel()
        if self._reporting is not None:
            self._reporting.cancel()
        self._own.close()
        self._foreign.close()

    async def _bounded(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Wait a while, and let it go on by itself if that is not enough.

        Broken off, it would not be known what became of it until the timer looks.
        """
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        for each in done:
            each.result()
        return bool(done)

    def _take_own(self, report: TableReport) -> None:
        self._report(
            written=Counter(firewall=report.written + report.removed),
            healed=Counter(firewall=int(report.healed)),
            found=Counter(firewall=int(report.found)),
            problem=report.problem,
            contested=report.contested,
        )

    def _take_foreign(self, report: ForwardReport) -> None:
        said = list(report.drops)
        if report.problem and not self._last.problem:  # else it is one trouble, and told
            said.append(report.problem)
        self._report(
            written=Counter(forward=report.written + report.removed),
            healed=Counter(forward=int(report.healed)),
            found=Counter(forward=int(report.found)),
            forward="; ".join(said),
        )

    def _report(
        self, *, written: Any = (), healed: Any = (), found: Any = (), **changes: str
    ) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        counts = Counter(written)
        counts["firewall"] += self._steps
        self._steps = 0
        vteps = 0 if self._told is None else len(self._told[1])
        self._last = replace(
            self._last,
            written=+counts,
            healed=+Counter(healed),
            found=+Counter(found),
            vteps=vteps,
            **changes,
        )
        self._on_report(self._last)
