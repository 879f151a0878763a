"""The kernel's half of one family: plan, reconciler, firewall, and the process of udp."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from netplane.agent import report as kernel
from netplane.agent.firewall import HostFirewall, Wanted
from netplane.agent.ports import (
    FirewallLook,
    FirewallReport,
    Peers,
    Report,
)
from netplane.agent.reconcile import Reconciler
from netplane.agent.settings import Settings
from netplane.agent.spread import spread
from netplane.agent.udp import ProcessKeeper, key_of_running
from netplane.backend import Backend, Planned
from netplane.backend.udp import SealedUdpBackend, UdpBackend
from netplane.netlink.objects import (
    Identity,
    KernelObject,
    Sysctl,
    Uplink,
    VxlanLink,
    identity,
)
from netplane.subnet.family import Address, Subnet
from netplane.subnet.lease import Lease
from netplane.udp.control import Config
from netplane.udp.path import FOREIGN

TELL_S = 5.0
"""By then, rounds without trouble are told of, many at once: counts and pages can wait, and each
costs as much as a third of the round."""

_TURNS_TO_NFT = 2
"""Of the loop, until its thread has the first command: it is to work while this one writes."""


class RealDataplane:
    """`Dataplane` of one family on a reconciler, which opens its sockets when first needed."""

    def __init__(
        self,
        backend: Backend,
        firewall: Wanted,
        settings: Settings,
        sysctls: Mapping[str, str],
    ) -> None:
        self.mtu = backend.mtu
        self.scopes: frozenset[Hashable] = frozenset({backend.scope})
        self.on_report: Callable[[Report], None] = lambda _: None
        self.on_firewall: Callable[[FirewallReport], None] = lambda _: None
        self._backend = backend
        self._settings = settings
        self._wanted = firewall
        self._wall: HostFirewall | None = None
        self._vteps: frozenset[Address] = frozenset()
        self._before = dict(sysctls)
        self._made: Reconciler | None = None
        self._refused: dict[str, str] = {}
        self._report = Report()
        """The newest of the kernel's objects."""
        self._waiting: frozenset[Identity] = frozenset()
        """Of objects that were contested in the last round."""
        self._process: ProcessKeeper | None = None
        """That moves packets; None: the kernel does."""
        self._restarts = self._hangs = 0
        """Of it, as far as they were told."""
        self._untold: list[kernel.Report] = []
        """Of rounds without any trouble; see `TELL_S`."""
        self._telling: asyncio.TimerHandle | None = None
        self._is_quiet = False
        """Nothing was out of the ordinary in the last round."""

    @property
    def sysctls(self) -> dict[str, str]:
        """As `Dataplane.sysctls`."""
        return self._before if self._made is None else self._made.previous_sysctls

    @property
    def kept_sysctls(self) -> Sequence[Sysctl]:
        """As `Dataplane.kept_sysctls`."""
        return () if self._made is None else self._made.kept_sysctls

    def lease_data(self) -> object:
        """As `Dataplane.lease_data`."""
        if not isinstance(self._backend, SealedUdpBackend):
            return self._backend.lease_data()
        process = self._process
        key = key_of_running(self._settings.udp_socket) if process is None else process.key
        return {"PublicKey": key}

    def lease_data6(self) -> object:
        """As `Dataplane.lease_data6`: there is one family only."""
        return None

    async def apply(self, own: Lease, peers: Peers, *, remove: bool) -> None:
        """As `Dataplane.apply`."""
        plan = self._backend.plan(own.subnet, peers)
        self._refused = plan.refused
        if plan.told is not None:
            # Before routes lead to its device, which it makes.
            keeper, config = self._keeper(), self._process_config(str(own.subnet))
            await keeper.apply(config, plan.told, remove=remove)
        wall, before = self._firewall(), self._vteps
        either = plan.vteps if before <= plan.vteps else before | plan.vteps
        self._vteps = plan.vteps if remove else either
        # Who comes may send as soon as they are told of us, and who goes is still sent answers.
        if wall.is_placed:
            await wall.apply(own.subnet, either)
            await self._reconciler().apply(plan.objects, remove=remove, step=plan.step)
        else:
            await self._begin(own.subnet, plan, either, remove=remove)
        if len(self._vteps) != len(either):
            await wall.apply(own.subnet, self._vteps)

    async def _begin(
        self, subnet: Subnet, plan: Planned, vteps: frozenset[Address], *, remove: bool
    ) -> None:
        """Write everything for the first time: nft, in its thread, beside what waits for nothing.

        To let in a thousand hosts takes it as long as the kernel takes for as many routes.
        """
        wall, are_let_in = self._firewall(), asyncio.Event()

        async def let_in() -> None:
            await wall.apply(subnet, vteps)
            are_let_in.set()
            await wall.place()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(let_in())
            for _ in range(_TURNS_TO_NFT):
                await asyncio.sleep(0)
            await self._reconciler().apply(plan.objects, remove=remove, gate=are_let_in)

    async def run(self) -> None:
        """As `Dataplane.run`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconciler().run())
            tasks.create_task(self._firewall().run())
            if self._process is not None:
                tasks.create_task(self._process.run())

    async def look(self) -> FirewallLook:
        """As `Dataplane.look`."""
        return await self._firewall().look()

    async def dropped(self) -> int | None:
        """As `Dataplane.dropped`."""
        if self._process is None:
            return await self._firewall().dropped()
        told = await self._process.counters()
        return None if told is None else sum(told["dropped"].get(name, 0) for name in FOREIGN)

    async def counters(self) -> dict[str, Any] | None:
        """As `Dataplane.counters`."""
        return None if self._process is None else await self._process.counters()

    async def leave(self) -> None:
        """As `Dataplane.leave`."""
        # A process has nothing there but the address that it sends from, and is followed by one
        # that has another, and the same key.
        if not isinstance(self._backend, UdpBackend):
            await self.clear()

    async def clear(self, kept: frozenset[Hashable] = frozenset()) -> None:
        """As `Dataplane.clear`."""
        if self.scopes <= kept:
            return
        self._refused = {}
        self._vteps = frozenset()
        await self._reconciler().clear()
        await self._firewall().clear()
        if isinstance(self._backend, UdpBackend):
            await self._keeper().clear()

    def close(self) -> None:
        """As `Dataplane.close`."""
        if self._made is not None:
            self._made.close()
        if self._wall is not None:
            self._wall.close()
        if self._process is not None:
            self._process.close()
        self._tell()

    def _firewall(self) -> HostFirewall:
        if self._wall is None:
            self._wall = HostFirewall(
                self._wanted,
                self._settings.firewall_interval_s,
                self._take_firewall,
            )
        return self._wall

    def _keeper(self) -> ProcessKeeper:
        if self._process is None:
            path = self._settings.udp_socket
            self._process = ProcessKeeper(self._process_config(""), path, self._take_process)
        return self._process

    def _process_config(self, subnet: str) -> Config:
        backend = self._backend
        assert isinstance(backend, UdpBackend)
        sealed = isinstance(backend, SealedUdpBackend)
        return Config(backend.link, backend.mtu, backend.address, backend.port, subnet, sealed)

    def _reconciler(self) -> Reconciler:
        if self._made is None:
            self._made = Reconciler(
                self._backend.scope,
                interval_s=self._settings.heal_interval_s,
                on_report=self._take,
                previous_sysctls=self._before,
            )
        return self._made

    def _take_firewall(self, report: FirewallReport) -> None:
        self.on_firewall(report)

    def _take(self, report: kernel.Report) -> None:
        self._untold.append(report)
        was_quiet = self._is_quiet
        self._is_quiet = report.cause == "desired" and not (
            report.failed or report.healed or report.contested or self._refused
        )
        if not (was_quiet and self._is_quiet):
            self._tell()
        elif self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(spread(TELL_S), self._tell)

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        untold, self._untold = self._untold, []
        if untold:
            self.on_report(self._told(untold))

    def _told(self, reports: Sequence[kernel.Report]) -> Report:
        """Tell of rounds, all but the last of which were without trouble."""
        report = reports[-1]
        broken = [
            str(failure)
            for failure in report.failed
            if failure.item is None or self._is_hosts_own(failure.item)
        ]
        waiting = [contest.item for contest in report.contested]
        drift = [one for one in (*report.healed, *waiting) if identity(one) not in self._waiting]
        self._waiting = frozenset(map(identity, waiting))
        self._report = Report(
            _kinds(chain(*(chain(one.written, one.removed) for one in reports))),
            _kinds(report.healed),
            (
                *self._refused.items(),
                *(
                    (str(failure.item), failure.text)
                    for failure in report.failed
                    if failure.item is not None and not self._is_hosts_own(failure.item)
                ),
            ),
            "; ".join(broken),
            "; ".join(
                f"{contest.item} was changed {contest.heals} times in a minute by "
                f"{contest.writer or 'somebody'}"
                for contest in report.contested
            ),
            bool(broken) or report.cause in {"link", "address", "overrun"},
            tuple(one.milliseconds for one in reports),
            _kinds(drift),
        )
        return self._with_process(self._report)

    def _is_hosts_own(self, item: KernelObject) -> bool:
        """Tell whether no peer is reached without an object, and not only one."""
        if isinstance(item, VxlanLink | Sysctl | Uplink):
            return True
        # Behind a process all are, by one route; what is on no link is for none of them.
        return self._process is not None and bool(item.link)

    def _take_process(self) -> None:
        """Tell what became of the process since a round; the objects are as they were then."""
        assert self._process is not None
        process = self._process
        healed = Counter(
            {
                "process": process.restarts - self._restarts,
                "hung-process": process.hangs - self._hangs,
            }
        )
        self._restarts, self._hangs = process.restarts, process.hangs
        told = replace(
            self._report, written=Counter(), healed=+healed, milliseconds=(), found=+healed
        )
        self.on_report(self._with_process(told))

    def _with_process(self, report: Report) -> Report:
        trouble = "" if self._process is None else self._process.trouble
        return replace(report, broken="; ".join(filter(None, (trouble, report.broken))))


def _kinds(items: Iterable[KernelObject]) -> Counter[str]:
    return Counter({kind.__name__.lower(): n for kind, n in Counter(map(type, items)).items()})
