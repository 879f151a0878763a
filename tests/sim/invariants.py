"""What must hold after every event, each check O(1) per entry or message.

Independent of the core's own bookkeeping: it sees what the core hands out (`Ready`, `AppendWork`)
and what the disk holds. Names are those of `Violation.name`; planted bugs switch single ones off.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    AppendWork,
    Entry,
    HardState,
    Heartbeat,
    Message,
    VoteRequest,
    VoteResponse,
)

if TYPE_CHECKING:
    from tests.sim.disk import Disk
    from tests.sim.machine import Origin

ELECTION_SAFETY = "election safety"
LOG_MATCHING = "log matching"
LEADER_COMPLETENESS = "leader completeness"
STATE_MACHINE_SAFETY = "state machine safety"
MONOTONIC = "monotonic state"
NO_TRUNCATION = "no truncation at or below commit"
DURABLE_FIRST = "nothing acknowledged before durable"
REFUSED = "a refused proposal is never applied"
ONCE = "a proposal is applied at most once"
REAL_TIME = "real-time order"
LINEARIZABLE = "linearizability"
LIVENESS = "liveness"

ALL = (
    ELECTION_SAFETY,
    LOG_MATCHING,
    LEADER_COMPLETENESS,
    STATE_MACHINE_SAFETY,
    MONOTONIC,
    NO_TRUNCATION,
    DURABLE_FIRST,
    REFUSED,
    ONCE,
    REAL_TIME,
    LINEARIZABLE,
    LIVENESS,
)


PROMISES = frozenset((AppendRequest, AppendResponse, Heartbeat, VoteRequest, VoteResponse))
"""Messages that `Invariants.leaving` looks at."""


class Violation(AssertionError):  # noqa: N818 (a finding, the simulator works)
    """A promise was broken."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class LogView:
    """The terms of one process's log, rebuilt from the works that it hands to its disk."""

    __slots__ = ("base", "commit", "terms")

    def __init__(self, base: int, base_term: int, entries: list[Entry], commit: int) -> None:
        self.base = base
        self.terms = [base_term, *(entry.term for entry in entries)]
        """terms[0] belongs to the entry at `base`, which may be compacted away."""
        self.commit = commit

    @property
    def last(self) -> int:
        """Index of the newest entry."""
        return self.base + len(self.terms) - 1

    def term_at(self, index: int) -> int | None:
        """Term of an entry; None outside of what is known."""
        if self.base <= index <= self.last:
            return self.terms[index - self.base]
        return None


class Invariants:
    """The facts of one run and the checks against them."""

    def __init__(self, off: frozenset[str] = frozenset()) -> None:
        self.off = off
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        """(index, term) to (term of the entry before, data): holds for whole logs by induction."""
        self.committed: list[int] = [0]
        """Term of each committed entry by index."""
        self.committed_in: list[int] = [0]
        """Term of the member that first called it committed: the leader, in whose term it was."""
        self.applied_data: list[bytes | None] = [None]
        self.digests: list[int] = [0]
        """Digest of the state machine after each applied index."""
        self.origins: dict[Origin, int] = {}
        self.refused: set[Origin] = set()
        self.floor = 0
        """Newest index that a completed client operation has shown."""

    def fail(self, name: str, text: str) -> None:
        """Report a broken promise, unless this run ignores that kind."""
        if name not in self.off:
            raise Violation(name, text)

    # --- elections ---

    def became_leader(self, member: int, term: int, log: LogView) -> None:
        """Check election safety (paper 5.2) and leader completeness (5.4)."""
        other = self.leaders.setdefault(term, member)
        if other != member:
            self.fail(ELECTION_SAFETY, f"members {other} and {member} both lead in term {term}")
        # Entries committed in earlier terms must be there. In later ones, too, some may be
        # committed: a vote can be on its way for so long that its term is long over. Log matching
        # makes the newest entry stand for all before it.
        index = bisect_left(self.committed_in, term) - 1
        if index > log.base and log.term_at(index) != self.committed[index]:
            self.fail(
                LEADER_COMPLETENESS,
                f"leader {member} of term {term} has term {log.term_at(index)} at index {index}, "
                f"where term {self.committed[index]} is committed",
            )

    # --- logs ---

    def appended(self, member: int, work: AppendWork, log: LogView) -> bool:
        """Check a work's entries and bring `log` up to date; tell whether it truncated."""
        snapshot = work.snapshot
        if snapshot is not None:
            if snapshot.index < log.commit:
                self.fail(MONOTONIC, f"member {member} installs a snapshot below its commit")
            self._check_committed(member, snapshot.index, snapshot.term)
            log.base = snapshot.index
            log.terms = [snapshot.term]
            log.commit = max(log.commit, snapshot.index)
        added = work.entries
        if not added:
            return False
        first = added[0].index
        terms = log.terms
        position = first - log.base
        truncated = position < len(terms)
        if first <= log.commit:
            self.fail(
                NO_TRUNCATION,
                f"member {member} rewrites index {first}, committed up to {log.commit}",
            )
        if not 0 < position <= len(terms):
            self.fail(LOG_MATCHING, f"member {member} leaves a hole before index {first}")
        del terms[position:]
        term = terms[-1]
        known = self.entries
        for entry in added:
            key = (entry.index, entry.term)
            fact = (term, entry.data)
            if known.setdefault(key, fact) != fact:
                self.fail(
                    LOG_MATCHING,
                    f"member {member} has another entry {entry.index} of term {entry.term}: "
                    f"{fact} and not {known[key]}",
                )
            if entry.term < term or entry.index != log.base + len(terms):
                self.fail(LOG_MATCHING, f"member {member}: terms or indexes out of order at {key}")
            term = entry.term
            terms.append(term)
        return truncated

    def committed_to(self, member: int, member_term: int, commit: int, log: LogView) -> None:
        """Check that what a member calls committed is what everybody calls committed."""
        before = log.commit
        if commit < before:
            self.fail(MONOTONIC, f"member {member} moves commit from {before} to {commit}")
        log.commit = commit
        terms = self.committed
        base, mine = log.base, log.terms
        if commit - base >= len(mine):
            self.fail(MONOTONIC, f"member {member} commits {commit} beyond its log {log.last}")
        for index in range(max(before, base) + 1, commit + 1):
            term = mine[index - base]
            if index < len(terms):
                if terms[index] != term:
                    self._differs(member, index, term)
            else:
                # A member knows everything below its commit, so nothing is skipped, except by
                # one that recovered a commit nobody reported; then its log has the entries.
                for gap in range(len(terms), index):
                    terms.append(mine[gap - base])
                    self.committed_in.append(member_term)
                terms.append(term)
                self.committed_in.append(member_term)

    def _check_committed(self, member: int, index: int, term: int) -> None:
        if index < len(self.committed) and self.committed[index] != term:
            self._differs(member, index, term)

    def _differs(self, member: int, index: int, term: int) -> None:
        self.fail(
            STATE_MACHINE_SAFETY,
            f"member {member} commits term {term} at index {index}, "
            f"others term {self.committed[index]}",
        )

    # --- state machine ---

    def applied(self, member: int, entry: Entry, previous: int, digest: int) -> None:
        """Check one entry that a member has applied after `previous`, and the state it has now."""
        index = entry.index
        if index != previous + 1:
            self.fail(MONOTONIC, f"member {member} applies {index} after {previous}")
        if index < len(self.committed) and self.committed[index] != entry.term:
            self._differs(member, index, entry.term)
        facts, digests = self.applied_data, self.digests
        if index == len(facts):
            facts.append(entry.data)
            digests.append(digest)
        elif facts[index] != entry.data or digests[index] != digest:
            self.fail(STATE_MACHINE_SAFETY, f"member {member} has another state at index {index}")

    def first_applied(self, origin: Origin, index: int) -> None:
        """Check an origin the first time that its entry is applied anywhere."""
        earlier = self.origins.setdefault(origin, index)
        if earlier != index:
            self.fail(ONCE, f"the batch {origin} is at {earlier} and {index}")
        if origin in self.refused:
            self.fail(REFUSED, f"the batch {origin} was refused and is at {index}")

    def was_refused(self, origin: Origin) -> None:
        """Note a promise: this batch will never be applied."""
        self.refused.add(origin)
        if origin in self.origins:
            self.fail(REFUSED, f"the batch {origin} was refused, it is at {self.origins[origin]}")

    # --- clients ---

    def completed(self, floor: int, index: int, operation: object) -> None:
        """Check that an operation saw all that had completed before it began.

        `floor`: `self.floor` at its call; `index`: of the log entry it made or the state it read.
        Stricter than linearizability by key, and it points at the very event.
        """
        if index < floor:
            self.fail(
                REAL_TIME, f"{operation} shows index {index}, {floor} was shown before its call"
            )
        self.floor = max(self.floor, index)

    # --- messages that leave ---

    def leads(self, message: Message, disk: Disk) -> None:
        """Check that nobody leads in a term that it could forget."""
        if disk.hard_state.term < message.term:
            self.fail(DURABLE_FIRST, f"{message} leaves, the disk has term {disk.hard_state.term}")

    def leaving(self, message: Message, disk: Disk) -> None:
        """Check that what a message promises is already durable (paper figure 2)."""
        kind = type(message)
        state = disk.hard_state
        if kind is AppendRequest or kind is Heartbeat:
            self.leads(message, disk)
        elif kind is AppendResponse:
            assert isinstance(message, AppendResponse)
            # A rejection promises nothing. If the disk is in a later term already, one fsync served
            # this answer's entries and those of the next leader, which may replace them: the same
            # as an answer that was long on its way. Within a term nothing is replaced.
            if message.hint is None and (
                state.term < message.term
                or (state.term == message.term and disk.last_index < message.index)
            ):
                self.fail(
                    DURABLE_FIRST,
                    f"{message} leaves, the disk ends at {disk.last_index} in term {state.term}",
                )
        elif kind is VoteResponse:
            assert isinstance(message, VoteResponse)
            if message.granted and not self._voted(state, message.term, message.target):
                self.fail(DURABLE_FIRST, f"{message} leaves, the disk has {state}")
        elif kind is VoteRequest and not self._voted(state, message.term, message.sender):
            self.fail(DURABLE_FIRST, f"{message} leaves, the disk has {state}")

    @staticmethod
    def _voted(state: HardState, term: int, vote: int) -> bool:
        return state.term > term or (state.term == term and state.vote == vote)
