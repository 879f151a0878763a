"""The kernel's half of a network of both families: one for each, and what both say as one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from netplane.agent.ports import Dataplane, FirewallLook, FirewallReport, Report
from netplane.netlink.objects import Sysctl
from netplane.subnet.family import Subnet
from netplane.subnet.lease import Lease, Peers


class DualDataplane:
    """`Dataplane` of two, the first of IPv4. Each keeps its own device, routes and table."""

    def __init__(self, first: Dataplane, second: Dataplane) -> None:
        self.mtu = min(first.mtu, second.mtu)
        self.on_report: Callable[[Report], None] = lambda _: None
        self.on_firewall: Callable[[FirewallReport], None] = lambda _: None
        self._planes = first, second
        self._reports = [Report(), Report()]
        """The newest of each."""
        self._firewalls = [FirewallReport(), FirewallReport()]
        self._leases: Mapping[Subnet, Lease] = {}
        """Of those that were applied last."""
        self._halves = Peers({})
        """Their second halves."""
        first.on_report = lambda report: self._take(0, report)
        second.on_report = lambda report: self._take(1, report)
        first.on_firewall = lambda report: self._take_firewall(0, report)
        second.on_firewall = lambda report: self._take_firewall(1, report)

    @property
    def scopes(self) -> frozenset[Hashable]:
        """As `Dataplane.scopes`."""
        first, second = self._planes
        return first.scopes | second.scopes

    @property
    def sysctls(self) -> dict[str, str]:
        """As `Dataplane.sysctls`."""
        first, second = self._planes
        return first.sysctls | second.sysctls

    @property
    def kept_sysctls(self) -> Sequence[Sysctl]:
        """As `Dataplane.kept_sysctls`."""
        first, second = self._planes
        return (*first.kept_sysctls, *second.kept_sysctls)

    def lease_data(self) -> object:
        """As `Dataplane.lease_data`."""
        return self._planes[0].lease_data()

    def lease_data6(self) -> object:
        """As `Dataplane.lease_data6`."""
        return self._planes[1].lease_data()

    async def apply(self, own: Lease, peers: Mapping[Subnet, Lease], *, remove: bool) -> None:
        """As `Dataplane.apply`."""
        first, second = self._planes
        own6, peers6 = own.second(), self._second_halves(peers)
        # Of one that was remembered from before the network had IPv6 there is none yet.
        halves = [first.apply(own, peers, remove=remove)]
        if own6 is not None:
            halves.append(second.apply(own6, peers6, remove=remove))
        await asyncio.gather(*halves)

    def _second_halves(self, peers: Mapping[Subnet, Lease]) -> Peers:
        """Return them as what came and what is gone since the last, so that a plan goes on."""
        came, gone = Peers.changed(self._leases, peers)
        self._leases = peers
        if came or gone:
            halves = dict(self._halves)
            left = [halves.pop(lease.subnet6) for lease in gone if lease.subnet6 in halves]
            new = [half for lease in came if (half := lease.second()) is not None]
            halves.update((half.subnet, half) for half in new)
            self._halves = Peers(halves, self._halves, new, left)
        return self._halves

    async def run(self) -> None:
        """As `Dataplane.run`."""
        async with asyncio.TaskGroup() as tasks:
            for plane in self._planes:
                tasks.create_task(plane.run())

    async def look(self) -> FirewallLook:
        """As `Dataplane.look`."""
        one, other = [await plane.look() for plane in self._planes]
        return FirewallLook(
            one.wrong + other.wrong,
            one.accepted_in + other.accepted_in,
            one.drops + other.drops,
            one.unseen + other.unseen,
            one.unsure + other.unsure,
        )

    async def counters(self) -> dict[str, Any] | None:
        """As `Dataplane.counters`: both halves are the kernel's."""
        return None

    async def dropped(self) -> int | None:
        """As `Dataplane.dropped`."""
        counts = [count for plane in self._planes if (count := await plane.dropped()) is not None]
        return sum(counts) if counts else None

    async def leave(self) -> None:
        """As `Dataplane.leave`."""
        for plane in self._planes:
            await plane.leave()

    async def clear(self, kept: frozenset[Hashable] = frozenset()) -> None:
        """As `Dataplane.clear`."""
        self._leases, self._halves = {}, Peers({})
        for plane in self._planes:
            await plane.clear(kept)

    def close(self) -> None:
        """As `Dataplane.close`."""
        for plane in self._planes:
            plane.close()

    def _take(self, index: int, report: Report) -> None:
        self._reports[index] = report
        other = self._reports[1 - index]
        if other.failed or other.broken or other.contested:
            # Always in this order: in that of the reports each would be news, and be logged.
            both = self._reports
            report = replace(
                report,
                failed=(*both[0].failed, *both[1].failed),
                broken=_joined(one.broken for one in both),
                contested=_joined(one.contested for one in both),
            )
        self.on_report(report)

    def _take_firewall(self, index: int, report: FirewallReport) -> None:
        self._firewalls[index] = report
        both: Sequence[FirewallReport] = self._firewalls
        self.on_firewall(
            FirewallReport(
                Counter(report.written),
                Counter(report.healed),
                _joined(one.problem for one in both),
                _joined(one.contested for one in both),
                _joined(one.forward for one in both),
                max(one.vteps for one in both),
                Counter(report.found),
            )
        )


def _joined(texts: Iterable[str]) -> str:
    # What both lack, as nftables, is said once.
    return "; ".join(dict.fromkeys(filter(None, texts)))
