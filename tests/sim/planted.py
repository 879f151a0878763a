"""Known bugs, planted by replacing a part of the cluster: the simulator must find each.

None is a flag of the product. Each replaces a class or a method of the real core, its disk or its
node. Where a bug breaks an invariant that looks at the very place it is planted in (a vote that is
not on disk is seen when it leaves), that invariant is switched off for the hunt, so that the
consequence must be found, not the cause.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvstore.raft.config import Config, Restored
from kvstore.raft.leader import Leader
from kvstore.raft.log import RaftLog, entries_bytes
from kvstore.raft.messages import AppendResponse, HardState, ReadReady, Ready, Role
from kvstore.raft.quorum import joint_acknowledged
from kvstore.raft.raft import Raft
from tests.pure import demand_pure_python
from tests.sim.cluster import Parts, Result, run
from tests.sim.disk import Disk, Recovered
from tests.sim.invariants import DURABLE_FIRST, MONOTONIC
from tests.sim.machine import Image
from tests.sim.node import Process

demand_pure_python()


class ForgetsTermAndVote(Disk):
    """Restarts with the term of the newest entry and no vote."""

    def start(self, durable) -> Recovered:  # type: ignore[no-untyped-def]
        recovered = super().start(durable)
        entries = recovered.entries
        term = entries[-1].term if entries else recovered.compacted_term
        recovered.hard_state = HardState(term, 0, recovered.hard_state.commit)
        return recovered


class ForgetsVote(Disk):
    """Restarts in the right term, ready to vote in it once more."""

    def start(self, durable) -> Recovered:  # type: ignore[no-untyped-def]
        recovered = super().start(durable)
        recovered.hard_state.vote = 0
        return recovered


class AnswersEarly(Process):
    """Acknowledges entries while their fsync is still to come."""

    def _handle(self, ready: Ready) -> None:
        work = ready.append
        early = []
        if work is not None:
            early = [message for message in work.messages if type(message) is AppendResponse]
            work.messages = [
                message for message in work.messages if type(message) is not AppendResponse
            ]
        super()._handle(ready)
        self.send(early)


class GullibleLog(RaftLog):
    """Calls every other log up to date."""

    __slots__ = ()

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        return True


def gullible(config: Config, restored: Restored) -> Raft:
    raft = Raft(config, restored)
    raft.log.__class__ = GullibleLog
    return raft


class ReadsLocally(Raft):
    """A leader that answers reads without asking whether it still leads."""

    def read(self, read_id: int) -> None:
        if self.role is Role.LEADER:
            self._dirty = True
            self.reads_ready.append(ReadReady(read_id, self.log.committed))
        else:
            super().read(read_id)


class EagerLeader(Leader):
    """Commits whatever a majority has, also entries of older terms (paper figure 8)."""

    def _maybe_commit(self) -> bool:
        log = self.raft.log
        configuration = self.raft.configuration
        index = joint_acknowledged(configuration.voters, configuration.outgoing, self.matched)
        if index <= log.committed:
            return False
        base = log.offset
        self.uncommitted_bytes -= entries_bytes(log.entries[log.committed - base : index - base])
        log.commit_to(index)
        return True


class CommitsOldTerms(Raft):
    """Leads as `EagerLeader`."""

    def become_leader(self) -> None:
        super().become_leader()
        self.state.__class__ = EagerLeader


class SelfishLeader(Leader):
    """Counts itself for entries that its own disk does not have yet."""

    def _append(self, data: bytes, kind: int) -> tuple[int, int]:
        index, term = super()._append(data, kind)
        self.matched[self.raft.id] = index
        return index, term


class CountsItselfEarly(Raft):
    """Leads as `SelfishLeader`, and applies as soon as a quorum is thought to have an entry."""

    def __init__(self, config: Config, restored: Restored) -> None:
        super().__init__(replace(config, apply_before_durable=True), restored)

    def become_leader(self) -> None:
        super().become_leader()
        self.state.__class__ = SelfishLeader


@dataclass(frozen=True)
class PlantedBug:
    """One bug and what finding it may cost."""

    name: str
    parts: Parts
    profile: str
    run_events: int
    """Length of each run of a hunt: short ones see more profiles, long ones deeper states."""

    budget: int
    """Events within which each of the hunts must succeed."""

    seeds: tuple[int, ...]
    """First seeds of five unrelated hunts."""

    off: frozenset[str] = frozenset()
    slow: bool = False


BUGS = (
    PlantedBug(
        "term and vote not persisted",
        Parts(disk=ForgetsTermAndVote),
        "election",
        5_000,
        60_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
        frozenset((MONOTONIC,)),
    ),
    PlantedBug(
        "vote not persisted",
        Parts(disk=ForgetsVote),
        "election",
        5_000,
        300_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
    ),
    PlantedBug(
        "append answered before fsync",
        Parts(process=AnswersEarly),
        "disk",
        5_000,
        15_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
        frozenset((DURABLE_FIRST,)),
    ),
    PlantedBug(
        "vote without log check",
        Parts(core=gullible),
        "election",
        5_000,
        30_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
    ),
    PlantedBug(
        "local read without quorum",
        Parts(core=ReadsLocally),
        "network",
        5_000,
        250_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
    ),
    PlantedBug(
        # Not one of the six: the rule on which design decision 3 rests.
        "leader counts itself before fsync",
        Parts(core=CountsItselfEarly),
        "disk",
        5_000,
        600_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
    ),
    PlantedBug(
        "commit of an older term",
        Parts(core=CommitsOldTerms),
        "figure8",
        20_000,
        1_500_000,
        (1_000, 2_000, 3_000, 4_000, 5_000),
        slow=True,
    ),
)


@dataclass
class Hunt:
    """What a hunt came to."""

    found: Result | None
    events: int
    runs: int


def hunt(bug: PlantedBug, first_seed: int, events_max: int | None = None) -> Hunt:
    """Run seeds from `first_seed` on against a planted bug until one fails, within the budget."""
    events = runs = 0
    while events < (events_max or bug.budget):
        result = run(
            first_seed + runs,
            bug.profile,
            bug.run_events,
            parts=bug.parts,
            off=bug.off,
            liveness=False,
        )
        events += result.events
        runs += 1
        if result.failure is not None:
            return Hunt(result, events, runs)
    return Hunt(None, events, runs)


class TrustingDisk(Disk):
    """Lets the store go ahead of the log."""

    def commit_store(self, image: Image) -> None:
        self.store = image


class CommitsStoreEarly(Process):
    """Makes the state durable as soon as it is applied, wherever the own log ends."""

    def _commit_store(self) -> None:
        image, self.sealed = self.sealed, None
        if image is not None and not self.installing:
            self.disk.commit_store(image)
