"""Log replication: sentences of the Raft paper, figure 2 and sections 5.3, 5.4.2 and 8.

A quoted sentence is the paper's (extended version).
"""

from __future__ import annotations

import pytest

from kvstore.raft.errors import NotLeader
from kvstore.raft.messages import (
    NORMAL,
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Entry,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Role,
)
from kvstore.raft.raft import Raft
from tests.raft.network import Network, core, drain, entries, finish, lead


def append(
    term: int, prev: tuple[int, int], terms: list[int], commit: int = 0, sender: int = 2
) -> AppendRequest:
    """A leader's request to member 1: entries of these terms after `prev`."""
    return AppendRequest(sender, 1, term, *prev, commit, entries(*terms, first=prev[0] + 1))


def terms(raft: Raft) -> list[int]:
    return [entry.term for entry in raft.log.entries]


def appends(messages: list[Message]) -> list[AppendRequest]:
    return [message for message in messages if isinstance(message, AppendRequest)]


# --- figure 2, AppendEntries, receiver; 5.3 ---


@pytest.mark.parametrize(
    ("prev", "accepted"),
    [((0, 0), True), ((1, 1), True), ((2, 2), True), ((2, 1), False), ((3, 2), False)],
)
def test_the_consistency_check(prev: tuple[int, int], accepted: bool) -> None:
    # Figure 2, 2: "Reply false if log doesn't contain an entry at prevLogIndex whose term matches
    # prevLogTerm".
    raft = core(1, log=[1, 2])
    raft.step(append(3, prev, []))
    [answer] = drain(raft)
    assert isinstance(answer, AppendResponse)
    assert (answer.hint is None) is accepted
    assert answer.index == prev[0]


def test_conflicting_entries_are_removed_with_all_that_follow() -> None:
    # Figure 2, 3: "If an existing entry conflicts with a new one (same index but different terms),
    # delete the existing entry and all that follow it".
    raft = core(1, log=[1, 1, 2, 2, 2])
    raft.step(append(3, (2, 1), [3]))
    assert terms(raft) == [1, 1, 3]
    assert drain(raft) == [AppendResponse(1, 2, 3, 3, None)]


def test_entries_that_are_there_are_not_removed() -> None:
    # Figure 2, 4: "Append any new entries not already in the log": an old message must not cut
    # what a newer one brought.
    raft = core(1, log=[1, 1, 2, 2])
    raft.step(append(2, (0, 0), [1, 1]))
    assert terms(raft) == [1, 1, 2, 2]
    assert drain(raft) == [AppendResponse(1, 2, 2, 2, None)]


def test_overlapping_entries_add_only_the_rest() -> None:
    raft = core(1, log=[1, 1])
    raft.step(append(2, (1, 1), [1, 2, 2]))
    assert terms(raft) == [1, 1, 2, 2]
    ready = raft.take()
    assert ready is not None
    assert ready.append is not None
    assert [entry.index for entry in ready.append.entries] == [3, 4]


@pytest.mark.parametrize(("commit", "expected"), [(0, 0), (1, 1), (2, 2), (3, 2), (9, 2)])
def test_the_commit_index_stops_at_the_last_new_entry(commit: int, expected: int) -> None:
    # Figure 2, 5: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last
    # new entry)": what follows in our log may be a dead leader's.
    raft = core(1, log=[1, 1, 1, 1])
    raft.step(append(2, (1, 1), [1], commit=commit))
    assert raft.log.committed == expected


def test_the_commit_index_never_goes_back() -> None:
    raft = core(1, log=[1, 1, 1], commit=3)
    raft.step(append(2, (1, 1), [1], commit=1))
    raft.step(Heartbeat(2, 1, 2, 0, 0))
    raft.step(CommitNotice(2, 1, 2, 1))
    assert raft.log.committed == 3


def test_a_committed_entry_is_never_replaced() -> None:
    # 5.4.3, state machine safety. A leader that wants that is no leader: stop, do not obey.
    raft = core(1, log=[1, 1], commit=2)
    raft.log.applied = raft.log.applying = 0
    with pytest.raises(AssertionError, match="committed"):
        raft.log._truncate(2)


def test_a_late_probe_below_the_commit_index_is_answered_from_there() -> None:
    # Its entries are settled (leader completeness) and may be compacted away here.
    raft = core(1, compacted=(5, 1), log=[1, 1], commit=7, applied=5)
    raft.step(append(1, (3, 1), [1]))
    assert drain(raft) == [AppendResponse(1, 2, 1, 7, None)]
    raft.step(append(2, (3, 1), [1, 1, 1, 1, 2]))
    assert drain(raft) == [AppendResponse(1, 2, 2, 8, None)]
    assert terms(raft) == [1, 1, 2]


def test_entries_are_applied_in_log_order_and_once() -> None:
    # 5.3: "Once a follower learns that a log entry is committed, it applies the entry to its local
    # state machine (in log order)."
    raft = core(1, apply_bytes_max=1)
    raft.step(append(1, (0, 0), [1, 1, 1], commit=3))
    applied = []
    while (ready := raft.take()) is not None:
        finish(raft, ready)
        applied += [entry.index for entry in ready.apply]
        assert len(ready.apply) <= 1
    assert applied == [1, 2, 3]


def test_append_answers_wait_for_the_disk() -> None:
    # Figure 2: log[] is persistent, "updated on stable storage before responding to RPCs".
    raft = core(1)
    raft.step(append(1, (0, 0), [1]))
    ready = raft.take()
    assert ready is not None
    assert ready.messages == []
    assert ready.append is not None
    assert ready.append.must_sync
    assert ready.append.messages == [AppendResponse(1, 2, 1, 1, None)]


def test_answers_of_one_turn_are_one() -> None:
    # A follower drains its inbox, writes once and answers once with the highest index.
    raft = core(1)
    for index in range(5):
        raft.step(append(1, (index, 1 if index else 0), [1]))
    ready = raft.take()
    assert ready is not None
    assert ready.append is not None
    assert [entry.index for entry in ready.append.entries] == [1, 2, 3, 4, 5]
    assert ready.append.messages == [AppendResponse(1, 2, 1, 5, None)]


def test_a_rejection_names_where_the_logs_may_agree() -> None:
    # 5.3: "the follower can include the term of the conflicting entry and the first index it stores
    # for that term"; ours names the newest entry whose term is not above the probe's.
    raft = core(1, log=[1, 2, 2, 4, 4, 4])
    raft.step(append(5, (8, 3), []))
    assert drain(raft) == [AppendResponse(1, 2, 5, 8, (3, 2))]


def test_heartbeats_move_the_commit_index() -> None:
    raft = core(1, log=[1, 1, 1])
    raft.step(Heartbeat(2, 1, 1, 2, 7))
    assert raft.log.committed == 2
    [answer] = [m for m in drain(raft) if isinstance(m, HeartbeatResponse)]
    assert answer == HeartbeatResponse(1, 2, 1, 7)


def test_a_notice_commits_only_entries_of_its_term() -> None:
    # Entry 2 is another leader's, whatever the notice's leader has there.
    raft = core(1, log=[1, 1], term=2)
    raft.step(CommitNotice(2, 1, 2, 2))
    assert raft.log.committed == 0
    raft.step(append(2, (1, 1), [2]))
    assert raft.log.committed == 2  # the notice came first and counts now


# --- leader, 5.3 ---


def test_only_the_leader_appends() -> None:
    raft = core(1, term=1)
    with pytest.raises(NotLeader) as refused:
        raft.propose(b"x")
    assert refused.value.leader == 0
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    with pytest.raises(NotLeader) as refused:
        raft.propose(b"x")
    assert refused.value.leader == 2


def test_a_proposal_is_appended_and_sent_in_parallel() -> None:
    # 5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries RPCs
    # in parallel to each of the other servers". Before its own disk has it.
    network = Network.of(3)
    leader = network.elect(1)
    assert leader.propose(b"x") == (2, 1)
    ready = leader.take()
    assert ready is not None
    assert [(m.target, m.prev_index, m.prev_term) for m in appends(ready.messages)] == [
        (2, 1, 1),
        (3, 1, 1),
    ]
    assert appends(ready.messages)[0].entries == [Entry(2, 1, NORMAL, b"x")]
    assert ready.append is not None
    assert ready.append.entries == [Entry(2, 1, NORMAL, b"x")]
    assert ready.apply == []


def test_several_proposals_of_a_turn_travel_together() -> None:
    network = Network.of(3)
    leader = network.elect(1)
    for data in (b"a", b"b", b"c"):
        leader.propose(data)
    ready = leader.take()
    assert ready is not None
    assert [len(message.entries) for message in appends(ready.messages)] == [3, 3]


@pytest.mark.parametrize(
    ("size", "others", "own", "committed"),
    [
        (1, 0, True, True),
        (1, 0, False, False),
        (3, 0, True, False),
        (3, 1, True, True),
        (3, 1, False, False),
        (3, 2, False, True),
        (5, 1, True, False),
        (5, 2, True, True),
        (5, 2, False, False),
        (5, 3, False, True),
    ],
)
def test_committed_when_a_majority_has_it_on_disk(
    size: int, others: int, own: bool, committed: bool
) -> None:
    # 5.3: "A log entry is committed once the leader that created the entry has replicated it on a
    # majority of the servers". The leader's own disk counts when its write is done.
    network = Network.of(size)
    leader = network.elect(1)
    leader.propose(b"x")
    ready = leader.take()
    assert ready is not None
    assert ready.append is not None
    if own:
        leader.appended(ready.append)
    for member in range(2, 2 + others):
        leader.step(AppendResponse(member, 1, 1, 2, None))
    assert (leader.log.committed == 2) is committed


def test_learners_do_not_commit() -> None:
    leader = core(1, voters=(1, 2), learners=(3, 4))
    lead(leader)
    for learner in (3, 4):
        leader.step(AppendResponse(learner, 1, 1, 1, None))
    assert leader.log.committed == 0
    leader.step(AppendResponse(2, 1, 1, 1, None))
    assert leader.log.committed == 1


def test_committing_commits_all_before() -> None:
    # 5.3: "This also commits all preceding entries in the leader's log, including entries created
    # by previous leaders."
    leader = core(1, log=[1, 1, 2])
    lead(leader)
    leader.step(AppendResponse(2, 1, 3, 4, None))
    assert leader.log.committed == 4
    ready = leader.take()
    assert ready is not None
    assert [entry.index for entry in ready.apply] == [1, 2, 3, 4]


def test_old_terms_are_not_committed_by_counting() -> None:
    # 5.4.2: "Raft never commits log entries from previous terms by counting replicas. Only log
    # entries from the leader's current term are committed by counting replicas".
    leader = core(1, log=[1, 2], message_entries_max=1)
    lead(leader)
    for member in (2, 3):
        leader.step(AppendResponse(member, 1, 3, 2, None))
    assert leader.log.committed == 0
    leader.step(AppendResponse(2, 1, 3, 3, None))
    assert leader.log.committed == 3


def test_followers_learn_the_commit_index() -> None:
    # 5.3: "The leader keeps track of the highest index it knows to be committed, and it includes
    # that index in future AppendEntries RPCs (including heartbeats)". Ours says so at once.
    network = Network.of(3)
    network.elect(1)
    network.propose(1, b"x")
    assert [network[member].log.committed for member in (1, 2, 3)] == [2, 2, 2]


def test_the_leader_never_rewrites_its_log() -> None:
    # Figure 3, leader append-only: "a leader never overwrites or deletes entries in its log".
    leader = core(1, log=[1, 1])
    lead(leader)
    before = terms(leader)
    leader.step(AppendResponse(2, 1, 2, 2, (1, 1)))
    drain(leader)
    assert terms(leader) == before


def test_next_starts_behind_the_own_log() -> None:
    # 5.3: "When a leader first comes to power, it initializes all nextIndex values to the index
    # just after the last one in its log".
    leader = core(1, log=[1, 1, 1])
    sent = appends(lead(leader))
    assert [(message.prev_index, message.prev_term) for message in sent] == [(3, 1), (3, 1)]


def test_next_falls_until_the_logs_agree() -> None:
    # 5.3: "After a rejection, the leader decrements nextIndex and retries the AppendEntries RPC.
    # Eventually nextIndex will reach a point where the leader and follower logs match."
    leader = core(1, log=[1, 1, 3, 3])
    lead(leader)
    leader.step(AppendResponse(2, 1, 4, 4, (4, 2)))  # its entries 3 and 4 are of term 2
    [probe] = appends(drain(leader))
    assert (probe.prev_index, probe.prev_term) == (2, 1)


@pytest.mark.parametrize(
    ("leader_log", "follower_log"),
    [
        # Figure 7, cases a to f.
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 4, 4]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ],
    ids="abcdef",
)
def test_the_leader_brings_followers_in_line(
    leader_log: list[int], follower_log: list[int]
) -> None:
    # Figure 7; 5.3: "the leader handles inconsistencies by forcing the followers' logs to duplicate
    # its own".
    network = Network(
        [
            core(1, log=leader_log, term=7),
            core(2, log=follower_log, term=7),
            core(3, log=leader_log, term=7),  # its vote makes 1 the leader
        ]
    )
    leader = network.elect(1)
    assert terms(network[2]) == [*leader_log, leader.term]
    assert network[2].log.committed == len(leader_log) + 1
    assert network.machine(2) == network.machine(1)


def test_a_lost_append_is_repeated() -> None:
    # 5.3: "the leader retries AppendEntries RPCs indefinitely ... until all followers eventually
    # store all log entries".
    network = Network.of(3)
    network.elect(1)
    network.drop = lambda message: isinstance(message, AppendRequest) and message.target == 3
    network.propose(1, b"x")
    assert network.machine(3) == []
    network.drop = lambda message: False
    network.tick(1, count=2)
    assert network.machine(3) == [b"x"]


@pytest.mark.parametrize("kind", [AppendRequest, AppendResponse, CommitNotice, HeartbeatResponse])
def test_any_single_loss_is_repaired_by_heartbeats(kind: type) -> None:
    network = Network.of(3)
    network.elect(1)
    network.drop = lambda message: isinstance(message, kind)
    for data in (b"a", b"b"):
        network.propose(1, data)
    network.tick(1)
    network.drop = lambda message: False
    network.tick(1, count=3)
    assert [network.machine(member) for member in (1, 2, 3)] == [[b"a", b"b"]] * 3


def test_appends_are_idempotent() -> None:
    # 5.5: "Raft RPCs are idempotent": a copy, or an old message that comes late, changes nothing.
    network = Network.of(3)
    network.elect(1)
    for data in (b"a", b"b", b"c"):
        network.propose(1, data)
    old = [message for message in network.delivered if message.target == 2]
    before = (terms(network[2]), network[2].log.committed, network.machine(2))
    for message in [*reversed(old), *old]:
        network[2].step(message)
        network.collect(2)
    assert (terms(network[2]), network[2].log.committed, network.machine(2)) == before


# --- 8: clients, and the no-op ---


def test_a_new_leader_commits_a_no_op() -> None:
    # 8: "each leader commit a blank no-op entry into the log at the start of its term".
    leader = core(1, log=[1, 1])
    lead(leader)
    assert leader.log.entries[-1] == Entry(3, 2, NORMAL, b"")


def test_the_no_op_is_let_in_when_the_tail_is_full() -> None:
    leader = core(1, log=[1] * 50, uncommitted_bytes_max=10)
    lead(leader)
    assert leader.role is Role.LEADER
    assert leader.log.last_index == 51


def test_state_is_restored_after_a_crash() -> None:
    # 5.5 and figure 2: term, vote and log survive; commit index and applied are learned again.
    network = Network.of(3)
    network.elect(1)
    network.propose(1, b"x")
    raft = network.restart(2)
    assert (raft.term, raft.role, raft.log.last_index) == (1, Role.FOLLOWER, 2)
    network.tick(1)
    assert raft.log.committed == 2
    assert network.machine(2) == [b"x"]


def test_a_commit_index_ahead_of_the_log_is_clamped() -> None:
    # It can survive a crash that took the log's tail (PySyncObj issue 197: a start-up deadlock).
    raft = core(1, log=[1, 1], commit=9)
    assert raft.log.committed == 2


def test_a_whole_cluster_restarts_without_loss() -> None:
    network = Network.of(3)
    network.elect(1)
    for number in range(20):
        network.propose(1, b"%d" % number)
    before = network.machine(1)
    for member in (1, 2, 3):
        network.restart(member)
    network.wire.clear()
    network.elect(2)
    assert [network.machine(member) for member in (1, 2, 3)] == [before] * 3
