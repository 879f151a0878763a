"""Elections: the sentences of the Raft paper, figure 2 and sections 5.1, 5.2 and 5.4.1, one by one.

A quoted sentence is the paper's ("In Search of an Understandable Consensus Algorithm", extended
version). Where we differ on purpose (pre-vote, leases) the test says so.
"""

from __future__ import annotations

import random

import pytest

from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    PreVoteRequest,
    PreVoteResponse,
    Role,
    SnapshotMeta,
    VoteRequest,
    VoteResponse,
)
from kvstore.raft.raft import Raft
from tests.raft.network import Network, candidate, core, drain, lead, snapshot_of


def of_role(role: Role) -> Raft:
    """Member 1 in a role, in term 3."""
    raft = core(1, term=2, log=[1, 2])
    if role is Role.FOLLOWER:
        raft.step(Heartbeat(2, 1, 3, 0, 0))
    elif role is Role.PRE_CANDIDATE:
        raft = core(1, term=3, log=[1, 2])
        raft.campaign()
    elif role is Role.CANDIDATE:
        raft = candidate(term=2, log=[1, 2])
    else:
        lead(raft)
    drain(raft)
    assert (raft.role, raft.term) == (role, 3)
    return raft


# --- 5.1: terms ---


def from_newer_term(term: int) -> list[Message]:
    snapshot = snapshot_of(core(2, log=[1, 2], applied=2))
    return [
        VoteRequest(2, 1, term, 9, 9, transfer=True),
        VoteResponse(2, 1, term, granted=False),
        PreVoteResponse(2, 1, term, granted=False),
        AppendRequest(2, 1, term, 0, 0, 0, []),
        AppendResponse(2, 1, term, 0, None),
        Heartbeat(2, 1, term, 0, 0),
        HeartbeatResponse(2, 1, term, 0),
        CommitNotice(2, 1, term, 0),
        InstallSnapshot(2, 1, term, snapshot),
    ]


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
@pytest.mark.parametrize("index", range(9))
def test_newer_term_makes_a_follower(role: Role, index: int) -> None:
    # 5.1: "If a candidate or leader discovers that its term is out of date, it immediately reverts
    # to follower state." Figure 2, all servers: "If RPC request or response contains term
    # T > currentTerm: set currentTerm = T, convert to follower".
    raft = of_role(role)
    message = from_newer_term(7)[index]

    raft.step(message)

    assert (raft.role, raft.term) == (Role.FOLLOWER, 7)
    # Only who speaks as a leader is followed.
    leads = isinstance(message, AppendRequest | Heartbeat | CommitNotice | InstallSnapshot)
    assert raft.leader == (2 if leads else 0)


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name)
@pytest.mark.parametrize("index", range(9))
def test_older_term_changes_nothing(role: Role, index: int) -> None:
    # 5.1: "If a server receives a request with a stale term number, it rejects the request."
    raft = of_role(role)
    before = (raft.role, raft.term, raft.vote, raft.leader, raft.log.last_index)

    raft.step(from_newer_term(2)[index])

    assert (raft.role, raft.term, raft.vote, raft.leader, raft.log.last_index) == before
    answers = drain(raft)
    # A leader of the past hears of the new term, or it could never agree with us again.
    told = isinstance(from_newer_term(2)[index], AppendRequest | Heartbeat | InstallSnapshot)
    assert answers == ([HeartbeatResponse(1, 2, 3, 0)] if told else [])


def test_a_new_term_forgets_the_vote() -> None:
    # Figure 2: votedFor is the "candidateId that received vote in current term".
    raft = core(1, term=2, vote=3)
    raft.step(Heartbeat(2, 1, 3, 0, 0))
    assert raft.vote == 0


# --- 5.2: leader election ---


def test_starts_as_follower() -> None:
    # 5.2: "When servers start up, they begin as followers."
    raft = core(1, term=4, log=[1, 4])
    assert (raft.role, raft.leader) == (Role.FOLLOWER, 0)


@pytest.mark.parametrize(
    "message",
    [AppendRequest(2, 1, 1, 0, 0, 0, []), Heartbeat(2, 1, 1, 0, 0), CommitNotice(2, 1, 1, 0)],
    ids=lambda message: type(message).__name__,
)
def test_stays_follower_while_the_leader_is_heard(message: Message) -> None:
    # 5.2: "A server remains in follower state as long as it receives valid RPCs from a leader".
    raft = core(1, term=1)
    for _ in range(100):
        raft.step(message)
        for _ in range(raft.config.election_ticks - 1):
            raft.tick()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, 2)


def test_a_silent_follower_asks_for_pre_votes() -> None:
    # 5.2: "If a follower receives no communication over a period of time called the election
    # timeout, then it assumes there is no viable leader and begins an election". With pre-vote it
    # first asks, and changes neither term nor vote.
    raft = core(1, term=1, log=[1, 1])
    for _ in range(raft.timeout - 1):
        raft.tick()
    assert raft.role is Role.FOLLOWER
    raft.tick()
    assert (raft.role, raft.term, raft.vote) == (Role.PRE_CANDIDATE, 1, 0)
    assert drain(raft) == [PreVoteRequest(1, other, 2, 2, 1) for other in (2, 3)]


def test_an_election_increments_the_term_and_votes_for_itself() -> None:
    # 5.2: "a follower increments its current term and transitions to candidate state. It then votes
    # for itself and issues RequestVote RPCs in parallel to each of the other servers".
    raft = core(1, term=1, log=[1, 1])
    raft.campaign()
    drain(raft)
    raft.step(PreVoteResponse(2, 1, 2, granted=True))
    assert (raft.role, raft.term, raft.vote) == (Role.CANDIDATE, 2, 1)
    assert drain(raft) == [VoteRequest(1, other, 2, 2, 1, transfer=False) for other in (2, 3)]


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_timeouts_are_drawn_from_a_fixed_interval(role: Role) -> None:
    # 5.2: "election timeouts are chosen randomly from a fixed interval"; "each candidate restarts
    # its randomized election timeout at the start of an election".
    draw = random.Random(1)
    seen = set()
    raft = core(1, draw_timeout=draw.randrange)
    for _ in range(300):
        if role is Role.FOLLOWER:
            raft.become_follower(raft.term)
        elif role is Role.PRE_CANDIDATE:
            raft.become_pre_candidate()
        else:
            raft.become_candidate(transfer=False)
        seen.add(raft.timeout)
    assert seen == set(range(10, 20))


@pytest.mark.parametrize(
    ("size", "granted", "role"),
    [
        (1, [], Role.LEADER),
        (3, [2], Role.LEADER),
        (3, [2, 3], Role.LEADER),
        (3, [], Role.CANDIDATE),
        (5, [2], Role.CANDIDATE),
        (5, [2, 3], Role.LEADER),
        (4, [2], Role.CANDIDATE),
        (4, [2, 3], Role.LEADER),
    ],
)
def test_a_majority_wins(size: int, granted: list[int], role: Role) -> None:
    # 5.2: "A candidate wins an election if it receives votes from a majority of the servers in the
    # full cluster for the same term."
    raft = core(1, voters=range(1, size + 1))
    raft.become_candidate(transfer=False)
    drain(raft)
    for voter in granted:
        raft.step(VoteResponse(voter, 1, 1, granted=True))
    assert raft.role is role


def test_a_vote_is_counted_once() -> None:
    # 5.2: "Each server will vote for at most one candidate in a given term": a copy is no vote.
    raft = core(1, voters=range(1, 6))
    raft.become_candidate(transfer=False)
    drain(raft)
    for _ in range(5):
        raft.step(VoteResponse(2, 1, 1, granted=True))
    assert raft.role is Role.CANDIDATE


def test_a_vote_of_another_term_is_not_counted() -> None:
    # 5.2: "... for the same term".
    raft = candidate(term=3)
    raft.step(VoteResponse(2, 1, 3, granted=True))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 4)


def test_a_vote_of_a_stranger_is_not_counted() -> None:
    raft = candidate()
    raft.step(VoteResponse(9, 1, 1, granted=True))
    assert raft.role is Role.CANDIDATE


def test_a_majority_of_refusals_ends_the_candidature() -> None:
    # Waiting longer cannot help; the next attempt starts with a pre-vote after a new timeout.
    raft = candidate()
    raft.step(VoteResponse(2, 1, 1, granted=False))
    assert raft.role is Role.CANDIDATE
    raft.step(VoteResponse(3, 1, 1, granted=False))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 1)


def test_first_come_first_served() -> None:
    # 5.2: "Each server will vote for at most one candidate in a given term, on a
    # first-come-first-served basis". Figure 2: "If votedFor is null or candidateId ... grant vote".
    raft = core(1)
    raft.step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    raft.step(VoteRequest(3, 1, 1, 0, 0, transfer=False))
    raft.step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    answers = sorted(drain(raft), key=lambda m: (m.target, type(m).__name__))
    assert answers == [
        VoteResponse(1, 2, 1, granted=True),
        VoteResponse(1, 2, 1, granted=True),
        VoteResponse(1, 3, 1, granted=False),
    ]


def test_the_vote_survives_a_restart() -> None:
    # Figure 2: votedFor is persistent, "updated on stable storage before responding to RPCs".
    network = Network.of(3)
    network[1].step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    network.collect(1)
    raft = network.restart(1)
    assert (raft.term, raft.vote) == (1, 2)
    raft.step(VoteRequest(3, 1, 1, 0, 0, transfer=False))
    assert drain(raft) == [VoteResponse(1, 3, 1, granted=False)]


def test_no_vote_once_a_leader_is_known() -> None:
    # Whoever leads the term has won it: another candidate of the term is late.
    raft = core(1, term=1)
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    drain(raft)
    raft.step(VoteRequest(3, 1, 1, 9, 9, transfer=False))
    assert drain(raft) == [VoteResponse(1, 3, 1, granted=False)]


def test_the_first_answer_of_a_voter_counts() -> None:
    raft = core(1, voters=range(1, 6))
    raft.become_candidate(transfer=False)
    drain(raft)
    raft.step(VoteResponse(2, 1, 1, granted=True))
    raft.step(VoteResponse(2, 1, 1, granted=False))
    raft.step(VoteResponse(3, 1, 1, granted=True))
    assert raft.role is Role.LEADER


@pytest.mark.parametrize("term", [0, 1])
def test_a_granted_vote_restarts_the_timeout(term: int) -> None:
    # Figure 2, followers: "If election timeout elapses without receiving AppendEntries RPC from
    # current leader or granting vote to candidate: convert to candidate". In the same term as well
    # as when the request brings a new one.
    raft = core(1, term=term)
    for _ in range(raft.timeout - 1):
        raft.tick()
    raft.step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    for _ in range(raft.timeout - 1):
        raft.tick()
    assert raft.role is Role.FOLLOWER


def test_a_refused_vote_does_not_restart_the_timeout() -> None:
    # Else a candidate that cannot win could keep all others from trying.
    raft = core(1, log=[1], term=1, vote=1)
    for _ in range(raft.timeout - 1):
        raft.tick()
    raft.step(VoteRequest(2, 1, 1, 0, 0, transfer=False))
    raft.tick()
    assert raft.role is Role.PRE_CANDIDATE


def test_a_new_leader_asserts_itself_at_once() -> None:
    # 5.2: "It then sends heartbeat messages to all of the other servers to establish its authority
    # and prevent new elections." Ours are the appends of its no-op.
    messages = lead(core(1))
    assert [type(message) for message in messages] == [AppendRequest, AppendRequest]
    assert {message.target for message in messages} == {2, 3}


def test_heartbeats_are_sent_while_idle() -> None:
    # Figure 2, leaders: "repeat during idle periods to prevent election timeouts".
    raft = core(1, heartbeat_ticks=2)
    lead(raft)
    sent = []
    for _ in range(6):
        raft.tick()
        sent.append(sum(isinstance(message, Heartbeat) for message in drain(raft)))
    assert sent == [0, 2, 0, 2, 0, 2]


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
@pytest.mark.parametrize("kind", [AppendRequest, Heartbeat, InstallSnapshot])
def test_a_candidate_follows_the_leader_of_its_term(role: Role, kind: type) -> None:
    # 5.2: "If the leader's term ... is at least as large as the candidate's current term, then the
    # candidate recognizes the leader as legitimate and returns to follower state."
    raft = of_role(role)
    message: Message = {
        AppendRequest: AppendRequest(2, 1, 3, 2, 2, 0, []),
        Heartbeat: Heartbeat(2, 1, 3, 0, 0),
        InstallSnapshot: InstallSnapshot(2, 1, 3, SnapshotMeta(2, 2, raft.configuration)),
    }[kind]
    raft.step(message)
    assert (raft.role, raft.leader, raft.term) == (Role.FOLLOWER, 2, 3)
    # The message itself was handled too, not only its sender noted.
    assert len(drain(raft)) == 1


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_a_split_vote_times_out_and_starts_again(role: Role) -> None:
    # 5.2: "each candidate will time out and start a new election by incrementing its term and
    # initiating another round of RequestVote RPCs"; ours asks for pre-votes first.
    raft = of_role(role)
    for _ in range(raft.timeout):
        raft.tick()
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 3)
    assert {type(message) for message in drain(raft)} == {PreVoteRequest}


def test_at_most_one_leader_per_term() -> None:
    # 5.2, election safety: two candidates of one term cannot both win.
    network = Network.of(3)
    network[1].become_candidate(transfer=False)
    network[2].become_candidate(transfer=False)
    network.run()
    assert len(network.leaders()) == 1


# --- 5.4.1: election restriction ---


@pytest.mark.parametrize("request_kind", [VoteRequest, PreVoteRequest])
@pytest.mark.parametrize(
    ("log", "last", "granted"),
    [
        # "If the logs have last entries with different terms, then the log with the later term is
        # more up-to-date."
        ([1, 1], (1, 2), True),
        ([1, 2], (9, 1), False),
        # "If the logs end with the same term, then whichever log is longer is more up-to-date."
        ([1, 1], (3, 1), True),
        ([1, 1], (2, 1), True),
        ([1, 1], (1, 1), False),
        ([], (0, 0), True),
        ([1], (0, 0), False),
    ],
)
def test_no_vote_for_an_older_log(
    request_kind: type, log: list[int], last: tuple[int, int], granted: bool
) -> None:
    # 5.4.1: "the voter denies its vote if its own log is more up-to-date than that of the
    # candidate."
    raft = core(1, log=log, term=2)
    if request_kind is VoteRequest:
        raft.step(VoteRequest(2, 1, 3, *last, transfer=False))
        assert drain(raft) == [VoteResponse(1, 2, 3, granted=granted)]
        assert raft.vote == (2 if granted else 0)
    else:
        raft.step(PreVoteRequest(2, 1, 3, *last))
        # A grant carries the term asked about, a refusal our own.
        assert drain(raft) == [PreVoteResponse(1, 2, 3 if granted else 2, granted=granted)]


def test_the_log_end_survives_compaction() -> None:
    # An emptied log still knows index and term of its last entry.
    raft = core(1, compacted=(5, 2), term=2)
    raft.step(VoteRequest(2, 1, 3, 4, 2, transfer=False))
    assert drain(raft) == [VoteResponse(1, 2, 3, granted=False)]


# --- pre-vote and leases (thesis 9.6, 6.2; consensus page A1, 1 and 2) ---


def test_a_pre_vote_changes_nothing_at_the_voter() -> None:
    raft = core(1, term=1)
    for _ in range(5):
        raft.tick()
    before = (raft.term, raft.vote, raft.leader, raft.elapsed)
    raft.step(PreVoteRequest(2, 1, 2, 0, 0))
    assert (raft.term, raft.vote, raft.leader, raft.elapsed) == before
    ready = raft.take()
    assert ready is not None
    assert ready.append is None  # nor does it touch the disk
    assert ready.messages == [PreVoteResponse(1, 2, 2, granted=True)]


def test_many_may_get_the_same_pre_vote() -> None:
    # Unlike a vote it binds nobody.
    raft = core(1, term=1)
    raft.step(PreVoteRequest(2, 1, 2, 0, 0))
    raft.step(PreVoteRequest(3, 1, 2, 0, 0))
    assert [message.granted for message in drain(raft)] == [True, True]  # type: ignore[attr-defined]


def test_a_pre_vote_of_an_older_term_is_refused_aloud() -> None:
    # Silence would leave the sender a candidate of the past for ever (mixed clusters locked up).
    raft = core(1, term=5)
    raft.step(PreVoteRequest(2, 1, 4, 9, 4))
    assert drain(raft) == [PreVoteResponse(1, 2, 5, granted=False)]


def test_a_pre_candidate_learns_the_newer_term_from_a_refusal() -> None:
    raft = core(1, term=1)
    raft.campaign()
    raft.step(PreVoteResponse(2, 1, 5, granted=False))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 5)


def test_a_pre_candidate_forgets_leader_and_old_tally() -> None:
    # Two bugs of raft-rs 0.3.1.
    raft = core(1, term=1, voters=range(1, 6))
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    raft.campaign()
    assert raft.leader == 0
    raft.step(PreVoteResponse(3, 1, 2, granted=True))
    raft.campaign()
    raft.step(PreVoteResponse(4, 1, 2, granted=True))
    assert raft.role is Role.PRE_CANDIDATE  # 1 and 4, not 1, 3 and 4


def test_a_grant_of_an_earlier_pre_election_is_not_counted() -> None:
    raft = core(1, term=3)
    raft.campaign()
    raft.step(PreVoteResponse(2, 1, 3, granted=True))  # asked when our term was 2
    assert (raft.role, raft.term) == (Role.PRE_CANDIDATE, 3)


@pytest.mark.parametrize("kind", [VoteRequest, PreVoteRequest])
@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.LEADER])
def test_candidates_are_ignored_while_a_leader_is_heard(role: Role, kind: type) -> None:
    # 6: "if a server receives a RequestVote RPC within the minimum election timeout of hearing from
    # a current leader, it does not update its term or grant its vote".
    raft = of_role(role)
    request: Message = (
        VoteRequest(3, 1, 9, 9, 9, transfer=False)
        if kind is VoteRequest
        else PreVoteRequest(3, 1, 9, 9, 9)
    )
    raft.step(request)
    assert (raft.role, raft.term) == (role, 3)
    assert drain(raft) == []


@pytest.mark.parametrize("kind", [VoteRequest, PreVoteRequest])
def test_candidates_are_heard_when_the_lease_is_over(kind: type) -> None:
    raft = of_role(Role.FOLLOWER)
    raft.elapsed = raft.config.election_ticks
    request: Message = (
        VoteRequest(3, 1, 9, 9, 9, transfer=False)
        if kind is VoteRequest
        else PreVoteRequest(3, 1, 9, 9, 9)
    )
    raft.step(request)
    [answer] = drain(raft)
    assert answer.granted  # type: ignore[attr-defined]


def test_a_transfer_overrides_the_lease() -> None:
    raft = of_role(Role.FOLLOWER)
    raft.step(VoteRequest(3, 1, 4, 9, 3, transfer=True))
    assert drain(raft) == [VoteResponse(1, 3, 4, granted=True)]


def test_a_follower_that_may_not_campaign_forgets_a_silent_leader() -> None:
    # A learner, perhaps promoted unknowingly, must not refuse its vote for a leader that is dead.
    raft = core(1, term=3, voters=(2, 3), learners=(1,))
    raft.step(Heartbeat(2, 1, 3, 0, 0))
    for _ in range(raft.timeout):
        raft.tick()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, 0)
    drain(raft)
    raft.step(VoteRequest(3, 1, 4, 0, 0, transfer=False))
    assert drain(raft) == [VoteResponse(1, 3, 4, granted=True)]


# --- check-quorum (thesis 6.2) ---


def test_a_leader_without_a_majority_steps_down() -> None:
    raft = core(1, voters=range(1, 6))
    lead(raft)
    # Everybody counts as heard at the start; the first check only clears that.
    for _ in range(raft.config.election_ticks):
        raft.tick()
    raft.step(HeartbeatResponse(2, 1, raft.term, 0))  # two of five
    for _ in range(raft.config.election_ticks - 1):
        raft.tick()
        assert raft.role is Role.LEADER
    raft.tick()
    assert (raft.role, raft.leader, raft.term) == (Role.FOLLOWER, 0, 1)


def test_a_leader_with_a_majority_stays() -> None:
    raft = core(1, voters=range(1, 6))
    lead(raft)
    for _ in range(20):
        raft.step(HeartbeatResponse(2, 1, raft.term, 0))
        raft.step(AppendResponse(3, 1, raft.term, 0, (0, 0)))
        for _ in range(raft.config.election_ticks):
            raft.tick()
    assert raft.role is Role.LEADER


def test_learners_do_not_count_for_the_quorum_check() -> None:
    raft = core(1, voters=(1, 2, 3), learners=(4, 5))
    lead(raft)
    for _ in range(2 * raft.config.election_ticks):
        raft.step(HeartbeatResponse(4, 1, raft.term, 0))
        raft.step(HeartbeatResponse(5, 1, raft.term, 0))
        raft.tick()
    assert raft.role is Role.FOLLOWER


def test_step_down_keeps_the_term() -> None:
    raft = core(1)
    lead(raft)
    raft.step_down()
    assert (raft.role, raft.term, raft.vote, raft.leader) == (Role.FOLLOWER, 1, 1, 0)
    raft.step_down()  # twice is once


def test_two_leaders_of_one_term_stop_the_process() -> None:
    # Election safety is broken: going on would only spread the damage.
    raft = core(1, term=1)
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    with pytest.raises(AssertionError, match="two leaders"):
        raft.step(Heartbeat(3, 1, 1, 0, 0))
