"""The asynchronous storage contract: what waits for the disk, what is durable, slow disks."""

from __future__ import annotations

import pytest

from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    AppendWork,
    Configuration,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Role,
    SnapshotMeta,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from kvstore.raft.raft import Raft
from tests.raft.network import Network, candidate, core, drain, entries, lead


def work_of(raft: Raft) -> AppendWork:
    ready = raft.take()
    assert ready is not None
    assert ready.append is not None
    return ready.append


def follower(**state: object) -> Raft:
    """Member 1, following member 2 in term 1; nothing waits."""
    raft = core(1, term=1, **state)  # type: ignore[arg-type]
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    drain(raft)
    return raft


def test_nothing_to_do_is_none() -> None:
    raft = core(1)
    assert raft.take() is None
    raft.tick()
    assert raft.take() is None


def test_a_vote_waits_for_the_disk() -> None:
    raft = core(1)
    raft.step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    ready = raft.take()
    assert ready is not None
    assert ready.messages == []
    work = ready.append
    assert work is not None
    assert work.must_sync
    assert work.hard_state is not None
    assert (work.hard_state.term, work.hard_state.vote) == (1, 2)
    assert work.messages == [VoteResponse(1, 2, 1, granted=True)]


def test_a_vote_in_a_term_that_is_on_disk_waits_too() -> None:
    raft = core(1, term=1)
    raft.step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    work = work_of(raft)
    assert work.must_sync
    assert work.hard_state is not None
    assert (work.hard_state.term, work.hard_state.vote) == (1, 2)
    assert work.messages == [VoteResponse(1, 2, 1, granted=True)]


def test_a_refusal_does_not_wait() -> None:
    raft = core(1, log=[1], term=1)
    raft.step(VoteRequest(2, 1, 2, 0, 0, transfer=False))
    ready = raft.take()
    assert ready is not None
    assert ready.messages == [VoteResponse(1, 2, 2, granted=False)]


def test_vote_requests_wait_for_the_disk() -> None:
    # A crash between would take back term and log tail; a second candidature in the same term with
    # a shorter log could then collect a vote that was given to the longer one.
    raft = core(1)
    raft.become_candidate(transfer=False)
    ready = raft.take()
    assert ready is not None
    assert ready.messages == []
    assert ready.append is not None
    assert {type(message) for message in ready.append.messages} == {VoteRequest}


def test_the_own_vote_counts_when_it_is_on_disk() -> None:
    raft = core(1)
    raft.become_candidate(transfer=False)
    work = work_of(raft)
    raft.step(VoteResponse(2, 1, 1, granted=True))
    assert raft.role is Role.CANDIDATE
    raft.appended(work)
    assert raft.role is Role.LEADER


def test_an_own_vote_of_an_earlier_term_does_not_count() -> None:
    raft = core(1)
    raft.become_candidate(transfer=False)
    first = work_of(raft)
    raft.become_candidate(transfer=False)
    raft.step(VoteResponse(2, 1, 2, granted=True))
    raft.appended(first)
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)


def test_an_answer_about_durable_entries_leaves_at_once() -> None:
    raft = follower(log=[1])
    raft.step(AppendRequest(2, 1, 1, 1, 1, 0, []))
    ready = raft.take()
    assert ready is not None
    assert ready.append is None
    assert ready.messages == [AppendResponse(1, 2, 1, 1, None)]


def test_an_answer_about_entries_under_way_waits_for_them() -> None:
    # A copy of the request must not be answered before the first write is done.
    raft = follower()
    request = AppendRequest(2, 1, 1, 0, 0, 0, entries(1))
    raft.step(request)
    first = work_of(raft)
    raft.step(request)
    ready = raft.take()
    assert ready is not None
    assert ready.messages == []
    second = ready.append
    assert second is not None
    assert (second.entries, second.must_sync) == ([], False)
    assert second.messages == [AppendResponse(1, 2, 1, 1, None)]
    raft.appended(first)
    raft.appended(second)


def test_a_moved_commit_index_alone_is_not_written() -> None:
    raft = follower(log=[1, 1])
    raft.step(Heartbeat(2, 1, 1, 2, 0))
    ready = raft.take()
    assert ready is not None
    assert ready.append is None
    raft.applied(2)
    raft.step(AppendRequest(2, 1, 1, 2, 1, 2, entries(1, first=3)))
    hard_state = work_of(raft).hard_state  # with the next entries it is
    assert hard_state is not None
    assert hard_state.commit == 2


def test_an_unchanged_hard_state_is_not_repeated() -> None:
    raft = follower()
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, entries(1)))
    assert work_of(raft).hard_state is None


def test_promises_of_an_old_term_are_dropped_with_it() -> None:
    # The entries were replaced before they were ever written: an answer would tell of what was
    # never on disk.
    raft = follower()
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, entries(1)))
    raft.step(AppendRequest(3, 1, 2, 0, 0, 0, entries(2)))
    ready = raft.take()
    assert ready is not None
    assert ready.messages == []
    assert ready.append is not None
    assert ready.append.messages == [AppendResponse(1, 3, 2, 1, None)]


def test_promises_at_the_disk_are_kept_by_a_new_term() -> None:
    # They were written: the old leader may count them.
    raft = follower()
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, entries(1)))
    work = work_of(raft)
    raft.step(Heartbeat(3, 1, 2, 0, 0))
    assert work.messages == [AppendResponse(1, 2, 1, 1, None)]


def test_only_durable_entries_are_applied() -> None:
    raft = follower()
    raft.step(AppendRequest(2, 1, 1, 0, 0, 2, entries(1, 1)))
    ready = raft.take()
    assert ready is not None
    assert ready.apply == []
    assert ready.append is not None
    raft.appended(ready.append)
    ready = raft.take()
    assert ready is not None
    assert [entry.index for entry in ready.apply] == [1, 2]


def test_apply_before_durable_hands_out_at_once() -> None:
    raft = follower(apply_before_durable=True)
    raft.step(AppendRequest(2, 1, 1, 0, 0, 2, entries(1, 1)))
    ready = raft.take()
    assert ready is not None
    assert [entry.index for entry in ready.apply] == [1, 2]


def test_applied_must_have_been_handed_out() -> None:
    raft = follower(log=[1, 1])
    with pytest.raises(AssertionError, match="not handed out"):
        raft.applied(1)


def test_a_leader_whose_log_was_not_durable_yet_counts_it_later() -> None:
    # Elected while entries of an earlier leader are still being written here.
    raft = core(1, voters=(1, 2, 3))
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, entries(1)))
    under_way = work_of(raft)
    raft.campaign(transfer=True)
    vote = work_of(raft)
    raft.step(VoteResponse(2, 1, 2, granted=True))
    raft.step(VoteResponse(3, 1, 2, granted=True))
    assert raft.role is Role.LEADER
    no_op = work_of(raft)
    raft.step(AppendResponse(2, 1, 2, 2, None))
    assert raft.log.committed == 0
    raft.appended(under_way)
    raft.appended(vote)
    assert raft.log.committed == 0  # entry 1 alone is of an old term
    raft.appended(no_op)
    assert raft.log.committed == 2


# --- slow disk ---


def stalled_leader(ticks: int) -> Raft:
    """A leader whose disk has not finished a job for so many ticks; the others answer."""
    raft = core(1)
    lead(raft)
    for member in (2, 3):
        raft.step(AppendResponse(member, 1, 1, 1, None))
    drain(raft)
    raft.propose(b"x")
    raft.take()
    raft.step(AppendResponse(3, 1, 1, 2, None))
    for _ in range(ticks):
        for member in (2, 3):
            raft.step(HeartbeatResponse(member, 1, 1, 0))
        raft.tick()
    return raft


def test_a_leader_with_a_stalled_disk_hands_over() -> None:
    # design.md, section 5: its oldest unfinished fsync exceeds one election timeout.
    raft = stalled_leader(9)
    assert raft.status().transfer_target == 0
    raft = stalled_leader(10)
    assert raft.status().transfer_target == 3  # it has most of the log
    ready = raft.take()
    assert ready is not None
    assert TimeoutNow(1, 3, 1) in ready.messages


def test_a_leader_with_a_stalled_disk_steps_down_in_the_end() -> None:
    raft = stalled_leader(19)
    assert raft.role is Role.LEADER
    raft = stalled_leader(20)
    assert raft.role is Role.FOLLOWER


def test_a_member_with_a_stalled_disk_does_not_campaign() -> None:
    raft = follower()
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, entries(1)))
    work = work_of(raft)
    for _ in range(50):
        raft.tick()
    assert raft.role is Role.FOLLOWER
    raft.appended(work)
    for _ in range(raft.timeout):
        raft.tick()
    assert raft.role is Role.PRE_CANDIDATE


def test_a_single_voter_keeps_leading_with_a_stalled_disk() -> None:
    # Nobody else could.
    raft = core(1, voters=(1,))
    raft.campaign()
    drain(raft)
    raft.propose(b"x")
    raft.take()
    for _ in range(50):
        raft.tick()
    assert raft.role is Role.LEADER


# --- a snapshot from the leader ---


def install(raft: Raft, index: int, term: int = 1, voters: tuple[int, ...] = (1, 2, 3)) -> None:
    snapshot = SnapshotMeta(index, term, Configuration(voters))
    raft.step(InstallSnapshot(2, 1, raft.term, snapshot))


def test_a_snapshot_replaces_the_log() -> None:
    raft = follower(log=[1, 1])
    install(raft, 9, voters=(1, 2, 3, 4))
    assert (raft.log.offset, raft.log.last_index, raft.log.committed) == (9, 9, 9)
    assert raft.configuration.voters == (1, 2, 3, 4)
    work = work_of(raft)
    assert work.snapshot is not None
    assert work.snapshot.index == 9
    assert work.must_sync
    assert work.messages == [AppendResponse(1, 2, 1, 9, None)]


def test_nothing_is_applied_until_the_snapshot_is_in_place() -> None:
    raft = follower()
    install(raft, 9)
    work = work_of(raft)
    raft.step(AppendRequest(2, 1, 1, 9, 1, 10, entries(1, first=10)))
    entry_work = work_of(raft)
    assert raft.take() is None
    raft.appended(work)
    assert raft.take() is None  # committed, not durable
    raft.appended(entry_work)
    ready = raft.take()
    assert ready is not None
    assert [entry.index for entry in ready.apply] == [10]


def test_nothing_is_applied_early_before_the_snapshot_is_in_place() -> None:
    # apply_before_durable must not hand entries to a state that is being replaced.
    raft = follower(apply_before_durable=True)
    install(raft, 9)
    work = work_of(raft)
    raft.step(AppendRequest(2, 1, 1, 9, 1, 10, entries(1, first=10)))
    work_of(raft)
    raft.appended(work)
    ready = raft.take()
    assert ready is not None
    assert [entry.index for entry in ready.apply] == [10]


def test_a_snapshot_of_the_past_is_ignored() -> None:
    # A1, 12: at or below the commit index.
    raft = follower(log=[1, 1, 1], commit=2)
    assert not raft.wants_snapshot(SnapshotMeta(2, 1, raft.configuration))
    install(raft, 2)
    assert raft.log.last_index == 3
    ready = raft.take()
    assert ready is not None
    assert ready.append is None
    assert ready.messages == [AppendResponse(1, 2, 1, 2, None)]


def test_a_snapshot_that_the_log_contains_only_commits() -> None:
    raft = follower(log=[1, 1, 1])
    assert not raft.wants_snapshot(SnapshotMeta(2, 1, raft.configuration))
    install(raft, 2)
    assert (raft.log.last_index, raft.log.committed, raft.log.offset) == (3, 2, 0)


def test_a_snapshot_with_another_term_replaces_even_a_longer_log() -> None:
    raft = core(1, term=2, log=[1, 1, 1])
    raft.step(Heartbeat(2, 1, 2, 0, 0))
    drain(raft)
    assert raft.wants_snapshot(SnapshotMeta(2, 2, raft.configuration))
    install(raft, 2, term=2)
    assert (raft.log.last_index, raft.log.offset) == (2, 2)


def test_a_second_snapshot_waits_for_the_first() -> None:
    # etcd issue 18055: two close together crashed it. One slot.
    raft = follower()
    install(raft, 9)
    assert not raft.wants_snapshot(SnapshotMeta(12, 1, raft.configuration))
    install(raft, 12)
    assert raft.log.offset == 9
    raft.appended(work_of(raft))
    install(raft, 12)
    assert raft.log.offset == 12


def test_no_campaign_while_a_snapshot_is_written() -> None:
    raft = follower()
    install(raft, 9)
    raft.campaign()
    assert raft.role is Role.FOLLOWER


def test_applies_of_before_the_snapshot_do_not_count() -> None:
    # The node was still applying; neither index nor configuration may go back.
    raft = core(1, term=1, log=[1, 1], commit=2)
    ready = raft.take()
    assert ready is not None
    assert [entry.index for entry in ready.apply] == [1, 2]
    install(raft, 9, voters=(1, 2, 3, 4))
    raft.applied(2, Configuration((1, 2)))
    assert raft.log.applied == 9
    assert raft.configuration.voters == (1, 2, 3, 4)


def test_writes_of_before_the_snapshot_prove_nothing() -> None:
    raft = follower()
    raft.step(AppendRequest(2, 1, 1, 0, 0, 0, entries(*[1] * 20)))
    before = work_of(raft)
    install(raft, 9)  # the leader compacted meanwhile; entry 9 matches, so nothing is replaced
    assert raft.log.last_index == 20
    install(raft, 30)
    snapshot = work_of(raft)
    raft.appended(before)
    assert raft.log.durable == 30
    assert raft.log.snapshot_outstanding
    raft.appended(snapshot)
    assert not raft.log.snapshot_outstanding


def test_a_restart_in_the_middle_of_everything() -> None:
    network = Network.of(3)
    network.elect(1)
    network.nodes[2].disk_held = True
    network.propose(1, b"a")
    assert network.nodes[2].jobs
    raft = network.restart(2)  # the write was lost
    assert raft.log.last_index == 1
    network.tick(1, count=3)
    assert network.machine(2) == [b"a"]


def test_candidates_promise_nothing_of_their_old_term() -> None:
    raft = candidate()
    assert raft.promises == []
