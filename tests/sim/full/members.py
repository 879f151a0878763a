"""Who is a member, as the log has it, and what must hold of every change (consensus A1.15, A3).

Written by the first member that applies a change; every other one, every snapshot and every
restart must agree with it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import CHANGE, AppendWork, Configuration, Entry, Role
from kvstore.server.cluster import Cluster, decode_urls
from kvstore.server.startup import RemovedError
from tests.sim.invariants import Invariants

if TYPE_CHECKING:
    from tests.sim.full.machine import Process, WatchedRaft

ONE_CHANGE = "one membership change at a time"
CONFIGURATION = "equal configuration at equal applied index"
VOTERS_LEAD = "only a voter leads"
IN_SYNC = "only a learner that holds the log is promoted"
REMOVED = "only who was removed stops for it"
READY_RATIO = 0.9

Listing = tuple[tuple[int, tuple[str, ...], bool], ...]
"""Id, peer URLs and whether it is a learner, by id."""


def listing_of(cluster: Cluster) -> Listing:
    """Return the members that a member knows."""
    return tuple((one.id, one.peer_urls, one.is_learner) for one in cluster.list_plain())


class MemberBook:
    """One run's facts about membership."""

    def __init__(self, invariants: Invariants, founders: Listing) -> None:
        self._invariants = invariants
        self.indexes = [0]
        self.listings: list[Listing] = [founders]
        self.configurations = [Configuration(tuple(one[0] for one in founders))]
        self.urls: dict[str, int] = {}
        """Peer URLs that a change of the log gave to somebody, and the version that did."""
        self.floor = 0
        """Newest version that a client was shown."""

    @property
    def configuration(self) -> Configuration:
        """As of the newest change that anybody has applied."""
        return self.configurations[-1]

    @property
    def version(self) -> int:
        """Counts the changes."""
        return len(self.listings) - 1

    def _fail(self, name: str, text: str) -> None:
        self._invariants.fail(name, text)

    # what the log does

    def changed(self, process: Process, entry: Entry, configuration: Configuration | None) -> None:
        """A member has applied a change: None when it had no effect."""
        if entry.index > self.indexes[-1]:
            self._first(entry)
        product = process.product
        now = configuration or product.raft.configuration
        self.compare(process, entry.index, now, listing_of(product.cluster))

    def _first(self, entry: Entry) -> None:
        """Follow the change by the rules, not by what the member made of it."""
        change = Change.decode(entry.data)
        known = {one[0]: one for one in self.listings[-1]}
        before = self.configuration
        member, kind = change.member, change.kind
        old = known.get(member)
        removed = before.removed
        if kind is ChangeKind.ADD_VOTER and old is not None and old[2]:
            known[member] = (member, old[1], False)
        elif kind in (ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER):
            if old is None and member not in removed:
                is_learner = kind is ChangeKind.ADD_LEARNER
                known[member] = (member, decode_urls(change.context), is_learner)
        elif old is not None and kind is ChangeKind.UPDATE:
            known[member] = (member, decode_urls(change.context), old[2])
        elif old is not None and before.voters != (member,):
            del known[member]
            removed = tuple(sorted((*removed, member)))
        # Else it makes no sense, and has no effect on anybody.
        self.indexes.append(entry.index)
        self.listings.append(tuple(known[one] for one in sorted(known)))
        self.configurations.append(
            Configuration(
                voters=tuple(one for one, _, is_learner in self.listings[-1] if not is_learner),
                learners=tuple(one for one, _, is_learner in self.listings[-1] if is_learner),
                removed=removed,
            )
        )
        for _, urls, _ in self.listings[-1]:
            for url in urls:
                self.urls.setdefault(url, self.version)

    def compare(
        self, process: Process, index: int, configuration: Configuration, listing: Listing
    ) -> None:
        """Hold what a member has at an applied index against the book."""
        position = bisect_right(self.indexes, index) - 1
        wanted = self.configurations[position]
        if (configuration.voters, configuration.learners, configuration.removed) != (
            wanted.voters,
            wanted.learners,
            wanted.removed,
        ):
            self._fail(
                CONFIGURATION,
                f"member {process.id} has {configuration} at index {index} and not {wanted}",
            )
        if listing != self.listings[position]:
            self._fail(
                CONFIGURATION,
                f"member {process.id} lists {listing} at index {index} "
                f"and not {self.listings[position]}",
            )

    def opened(self, process: Process, index: int) -> None:
        """Check what a process finds in its store, or what a snapshot brought."""
        cluster = process.product.cluster
        if not cluster.is_joining:
            self.compare(process, index, cluster.configuration(), listing_of(cluster))

    # what a core does

    def appended(self, process: Process, core: WatchedRaft, role: Role, work: AppendWork) -> None:
        """Look for changes in what a core appends."""
        changes = [entry for entry in work.entries if entry.kind == CHANGE]
        if not changes:
            return
        if role is Role.LEADER:
            self._led(process, core, changes)
        process.world.mark("membership change appended")
        process.point("change appended")

    def _led(self, process: Process, core: WatchedRaft, changes: list[Entry]) -> None:
        first = changes[0].index
        log = core.log
        unapplied = [
            entry.index
            for entry in log.entries[log.applied - log.offset :]
            if entry.kind == CHANGE and entry.index < first
        ]
        if unapplied or len(changes) > 1:
            self._fail(
                ONE_CHANGE,
                f"leader {process.id} appends {[one.index for one in changes]}, {unapplied} wait",
            )
        if log.term(log.committed) != core.term:
            self._fail(
                ONE_CHANGE,
                f"leader {process.id} appends change {first} before it committed in {core.term}",
            )
        change = Change.decode(changes[0].data)
        if change.kind is ChangeKind.ADD_VOTER and change.member in core.configuration.learners:
            host = process.cluster.by_member_id[change.member]
            holds = host.durable.last_index
            # A machine whose disk is taken out by mistake holds nothing, and gets it back.
            if host.restore is None and holds < READY_RATIO * (first - 1):
                self._fail(
                    IN_SYNC, f"{change.member:x} is promoted at {first} and holds up to {holds}"
                )

    def leads(self, process: Process, core: WatchedRaft) -> None:
        """Check that a new leader may be one."""
        if core.id not in core.configuration.voters:
            self._fail(VOTERS_LEAD, f"{core.id:x} leads term {core.term} in {core.configuration}")

    def stopped(self, process: Process, error: RemovedError) -> None:
        """A process ends because its member was removed."""
        process.world.mark("removed member stopped")
        if process.product.id not in self.configuration.removed:
            self._fail(REMOVED, f"member {process.id} ends: {error}")
