"""Each invariant against facts that break it: a check that cannot fail checks nothing."""

from __future__ import annotations

import pytest

from kvstore.raft.membership import Configuration
from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    AppendWork,
    Entry,
    HardState,
    SnapshotMeta,
    VoteRequest,
    VoteResponse,
)
from tests.sim.disk import Disk, DiskOptions
from tests.sim.invariants import (
    DURABLE_FIRST,
    ELECTION_SAFETY,
    LEADER_COMPLETENESS,
    LOG_MATCHING,
    MONOTONIC,
    NO_TRUNCATION,
    ONCE,
    REAL_TIME,
    REFUSED,
    STATE_MACHINE_SAFETY,
    Invariants,
    LogView,
    Violation,
)
from tests.sim.machine import Image
from tests.sim.world import World


def log(*terms: int, commit: int = 0) -> LogView:
    entries = [Entry(i, term, 0, b"") for i, term in enumerate(terms, start=1)]
    return LogView(0, 0, entries, commit)


def work(first: int, *terms: int, data: bytes = b"") -> AppendWork:
    entries = [Entry(i, term, 0, data) for i, term in enumerate(terms, start=first)]
    return AppendWork(entries, None, None, must_sync=True, messages=[])


def disk(term: int = 0, vote: int = 0, entries: int = 0) -> Disk:
    made = Disk(World(1), DiskOptions(1, 1), Image())
    made.hard_state = HardState(term, vote, 0)
    made.entries = [Entry(i, term, 0, b"") for i in range(1, entries + 1)]
    return made


def test_two_leaders_in_one_term() -> None:
    facts = Invariants()
    facts.became_leader(1, 5, log())
    facts.became_leader(1, 5, log())
    with pytest.raises(Violation, match=ELECTION_SAFETY):
        facts.became_leader(2, 5, log())


def test_a_leader_without_a_committed_entry() -> None:
    facts = Invariants()
    facts.committed_to(1, 3, 2, log(1, 3))
    facts.became_leader(2, 4, log(1, 3))
    with pytest.raises(Violation, match=LEADER_COMPLETENESS):
        facts.became_leader(3, 5, log(1))
    with pytest.raises(Violation, match=LEADER_COMPLETENESS):
        facts.became_leader(3, 6, log(1, 2))


def test_a_leader_of_a_term_that_is_over_owes_nothing() -> None:
    # Its votes were on their way while others went on; it can commit nothing any more.
    facts = Invariants()
    facts.committed_to(1, 3, 2, log(1, 3))
    facts.became_leader(2, 2, log(1))


def test_one_index_and_term_with_two_contents() -> None:
    facts = Invariants()
    facts.appended(1, work(1, 1, data=b"a"), log())
    with pytest.raises(Violation, match=LOG_MATCHING):
        facts.appended(2, work(1, 1, data=b"b"), log())


def test_one_index_and_term_after_two_pasts() -> None:
    facts = Invariants()
    facts.appended(1, work(2, 3), log(1))
    with pytest.raises(Violation, match=LOG_MATCHING):
        facts.appended(2, work(2, 3), log(2))


def test_a_hole_in_a_log() -> None:
    with pytest.raises(Violation, match=LOG_MATCHING):
        Invariants().appended(1, work(3, 1), log(1))


def test_a_committed_entry_is_rewritten() -> None:
    facts = Invariants()
    assert facts.appended(1, work(2, 2), log(1, 1, commit=1))
    with pytest.raises(Violation, match=NO_TRUNCATION):
        facts.appended(1, work(1, 2), log(1, 1, commit=1))


def test_a_snapshot_of_another_history() -> None:
    facts = Invariants()
    facts.committed_to(1, 1, 2, log(1, 1))
    meta = SnapshotMeta(2, 2, Configuration((1,)))
    with pytest.raises(Violation, match=STATE_MACHINE_SAFETY):
        facts.appended(2, AppendWork([], None, meta, must_sync=True, messages=[]), log())


def test_two_members_commit_different_entries() -> None:
    facts = Invariants()
    facts.committed_to(1, 1, 2, log(1, 1))
    facts.committed_to(2, 1, 1, log(1, 2))
    with pytest.raises(Violation, match=STATE_MACHINE_SAFETY):
        facts.committed_to(3, 2, 2, log(1, 2))


def test_commit_goes_back_or_beyond_the_log() -> None:
    with pytest.raises(Violation, match=MONOTONIC):
        Invariants().committed_to(1, 1, 1, log(1, 1, commit=2))
    with pytest.raises(Violation, match=MONOTONIC):
        Invariants().committed_to(1, 1, 3, log(1, 1))


def test_an_entry_is_skipped_or_applied_twice() -> None:
    for index in (1, 3):
        facts = Invariants()
        facts.applied(1, Entry(1, 1, 0, b"a"), 0, 7)
        with pytest.raises(Violation, match=MONOTONIC):
            facts.applied(1, Entry(index, 1, 0, b"a"), 1, 7)


def test_two_members_apply_different_data_or_reach_different_states() -> None:
    facts = Invariants()
    facts.applied(1, Entry(1, 1, 0, b"a"), 0, 7)
    facts.applied(2, Entry(1, 1, 0, b"a"), 0, 7)
    with pytest.raises(Violation, match=STATE_MACHINE_SAFETY):
        facts.applied(3, Entry(1, 1, 0, b"b"), 0, 7)
    with pytest.raises(Violation, match=STATE_MACHINE_SAFETY):
        facts.applied(3, Entry(1, 1, 0, b"a"), 0, 8)


def test_a_batch_is_there_twice() -> None:
    facts = Invariants()
    facts.first_applied((1, 1, 5), 10)
    with pytest.raises(Violation, match=ONCE):
        facts.first_applied((1, 1, 5), 11)


def test_a_refused_batch_is_applied_before_or_after_the_refusal() -> None:
    facts = Invariants()
    facts.first_applied((1, 1, 5), 10)
    with pytest.raises(Violation, match=REFUSED):
        facts.was_refused((1, 1, 5))
    facts.was_refused((1, 1, 6))
    with pytest.raises(Violation, match=REFUSED):
        facts.first_applied((1, 1, 6), 12)


def test_an_operation_shows_less_than_was_shown_before_its_call() -> None:
    facts = Invariants()
    facts.completed(0, 10, "one")
    facts.completed(0, 9, "one that began before the other ended")
    with pytest.raises(Violation, match=REAL_TIME):
        facts.completed(facts.floor, 9, "one that began later")


def test_an_answer_before_its_entries_or_its_term_are_durable() -> None:
    facts = Invariants()
    answer = AppendResponse(2, 1, 3, 5, None)
    facts.leaving(answer, disk(term=3, entries=5))
    for kept in (disk(term=3, entries=4), disk(term=2, entries=5)):
        with pytest.raises(Violation, match=DURABLE_FIRST):
            facts.leaving(answer, kept)
    facts.leaving(AppendResponse(2, 1, 3, 5, (4, 2)), disk())  # a rejection promises nothing
    facts.leaving(answer, disk(term=4, entries=3))  # replaced since, by a leader of term 4


def test_a_vote_before_it_is_durable() -> None:
    facts = Invariants()
    vote, request = VoteResponse(2, 1, 3, granted=True), VoteRequest(2, 1, 3, 0, 0, transfer=False)
    facts.leaving(vote, disk(term=3, vote=1))
    facts.leaving(request, disk(term=3, vote=2))
    facts.leaving(vote, disk(term=4))
    facts.leaving(VoteResponse(2, 1, 3, granted=False), disk())
    for message, kept in (
        (vote, disk(term=3)),
        (vote, disk(term=3, vote=4)),
        (vote, disk(term=2, vote=1)),
        (request, disk(term=2, vote=2)),
    ):
        with pytest.raises(Violation, match=DURABLE_FIRST):
            facts.leaving(message, kept)


def test_a_leader_of_a_term_that_it_could_forget() -> None:
    with pytest.raises(Violation, match=DURABLE_FIRST):
        Invariants().leaving(AppendRequest(1, 2, 3, 0, 0, 0, []), disk(term=2))
