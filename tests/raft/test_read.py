"""ReadIndex: batched, proven by a quorum after the read came, never answered twice (page A1, 3)."""

from __future__ import annotations

from kvstore.raft.messages import (
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadReady,
    ReadRequest,
    ReadResponse,
    Role,
)
from kvstore.raft.raft import Raft
from tests.raft.network import Network, core, drain, lead


def leader(size: int = 3, **changes: object) -> Raft:
    """A leader of `size` voters with its no-op committed."""
    raft = core(1, voters=range(1, size + 1), **changes)  # type: ignore[arg-type]
    lead(raft)
    for member in range(2, size + 1):
        raft.step(AppendResponse(member, 1, 1, 1, None))
    drain(raft)
    return raft


def take(raft: Raft) -> tuple[list[ReadReady], list[object]]:
    """Answers and messages of one turn."""
    ready = raft.take()
    if ready is None:
        return [], []
    return ready.reads, list(ready.messages)


def follower(**changes: object) -> Raft:
    raft = core(1, term=1, **changes)  # type: ignore[arg-type]
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    drain(raft)
    return raft


def test_a_read_needs_a_quorum_that_answers_after_it_came() -> None:
    raft = leader(5)
    raft.tick()
    drain(raft)
    raft.read(7)
    reads, messages = take(raft)
    assert reads == []
    assert messages == [Heartbeat(1, member, 1, 1, 1) for member in (2, 3, 4, 5)]
    raft.step(HeartbeatResponse(2, 1, 1, 0))  # to the heartbeat of before the read
    raft.step(HeartbeatResponse(3, 1, 1, 0))
    raft.step(HeartbeatResponse(4, 1, 1, 1))
    assert take(raft)[0] == []
    raft.step(HeartbeatResponse(4, 1, 1, 1))  # a copy is no quorum
    assert take(raft)[0] == []
    raft.step(HeartbeatResponse(5, 1, 1, 1))
    assert take(raft)[0] == [ReadReady(7, 1)]


def test_the_index_is_that_of_the_arrival() -> None:
    # (b): later commits need not be waited for.
    raft = leader()
    raft.read(7)
    drain(raft)
    raft.propose(b"x")
    drain(raft)
    raft.step(AppendResponse(2, 1, 1, 2, None))
    raft.step(HeartbeatResponse(2, 1, 1, 1))
    assert take(raft)[0] == [ReadReady(7, 1)]


def test_reads_wait_for_the_first_commit_of_the_term() -> None:
    # (a): before, the leader does not know the commit index of its predecessor.
    raft = core(1, log=[1], commit=1, term=1)
    lead(raft)
    raft.read(7)
    assert take(raft) == ([], [])
    raft.step(AppendResponse(2, 1, 2, 2, None))
    ready = raft.take()
    assert ready is not None
    assert [m.round for m in ready.messages if isinstance(m, Heartbeat)] == [1, 1]
    raft.step(HeartbeatResponse(2, 1, 2, 1))
    assert take(raft)[0] == [ReadReady(7, 2)]


def test_one_round_at_a_time() -> None:
    raft = leader()
    for read_id in (1, 2):
        raft.read(read_id)
    assert len(take(raft)[1]) == 2
    for read_id in (3, 4):
        raft.read(read_id)
    assert take(raft) == ([], [])
    raft.step(HeartbeatResponse(2, 1, 1, 1))
    reads, messages = take(raft)
    assert [read.read_id for read in reads] == [1, 2]
    assert messages == [Heartbeat(1, member, 1, 1, 2) for member in (2, 3)]
    raft.step(HeartbeatResponse(3, 1, 1, 1))  # late, of the first round
    assert take(raft)[0] == []
    raft.step(HeartbeatResponse(3, 1, 1, 2))
    assert [read.read_id for read in take(raft)[0]] == [3, 4]


def test_learners_prove_nothing() -> None:
    raft = core(1, voters=(1, 2, 3), learners=(4, 5))
    lead(raft)
    raft.step(AppendResponse(2, 1, 1, 1, None))
    drain(raft)
    raft.read(7)
    _, messages = take(raft)
    assert {message.target for message in messages} == {2, 3}  # type: ignore[attr-defined]
    raft.step(HeartbeatResponse(4, 1, 1, 1))
    raft.step(HeartbeatResponse(5, 1, 1, 1))
    assert take(raft)[0] == []


def test_a_single_voter_needs_nobody() -> None:
    raft = leader(1)
    raft.read(7)
    assert take(raft)[0] == [ReadReady(7, 1)]


def test_a_lost_round_is_replaced_under_a_new_number() -> None:
    # (e): etcd issue 20418, a reused id gave stale reads.
    raft = leader(read_retry_ticks=3)
    raft.read(7)
    drain(raft)
    raft.read(8)
    for _ in range(3):
        raft.step(HeartbeatResponse(3, 1, 1, 0))
        raft.tick()
    rounds = {m.round for m in drain(raft) if isinstance(m, Heartbeat)}
    assert rounds == {1, 2}
    raft.step(HeartbeatResponse(2, 1, 1, 1))
    assert take(raft)[0] == []
    raft.step(HeartbeatResponse(2, 1, 1, 2))
    assert take(raft)[0] == [ReadReady(7, 1), ReadReady(8, 1)]


def test_a_change_of_leader_refuses_what_waits() -> None:
    # (d).
    raft = leader()
    raft.read(7)
    drain(raft)
    raft.read(8)
    raft.step(Heartbeat(2, 1, 5, 0, 0))
    assert take(raft)[0] == [ReadReady(7, None), ReadReady(8, None)]
    raft.step(HeartbeatResponse(2, 1, 1, 9))
    assert take(raft)[0] == []


def test_too_many_reads_are_refused() -> None:
    for raft in (leader(reads_pending_max=2), follower(reads_pending_max=2)):
        for read_id in range(4):
            raft.read(read_id)
        reads, _ = take(raft)
        assert reads == [ReadReady(2, None), ReadReady(3, None)]
        assert raft.status().reads_pending == 2


def test_a_follower_sends_one_message_for_all() -> None:
    raft = follower(incarnation=3)
    for read_id in range(100):
        raft.read(read_id)
    _, messages = take(raft)
    # The number is unique across restarts: an answer to an earlier start must not fit.
    assert messages == [ReadRequest(1, 2, 1, (3 << 32) + 1)]
    raft.read(100)
    assert take(raft) == ([], [])
    raft.step(ReadResponse(2, 1, 1, (3 << 32) + 1, 5))
    reads, messages = take(raft)
    assert reads == [ReadReady(read_id, 5) for read_id in range(100)]
    assert messages == [ReadRequest(1, 2, 1, (3 << 32) + 2)]


def test_a_follower_ignores_answers_to_rounds_given_up() -> None:
    raft = follower(read_retry_ticks=2)
    raft.read(7)
    drain(raft)
    raft.tick()
    raft.read(8)
    raft.tick()
    [request] = drain(raft)
    assert isinstance(request, ReadRequest)
    raft.step(ReadResponse(2, 1, 1, request.round - 1, 3))
    assert take(raft)[0] == []
    raft.step(ReadResponse(2, 1, 1, request.round, 4))
    assert take(raft)[0] == [ReadReady(7, 4), ReadReady(8, 4)]
    raft.step(ReadResponse(2, 1, 1, request.round, 4))
    assert take(raft)[0] == []


def test_without_a_leader_reads_are_refused_at_once() -> None:
    # (g): silence would leave the asker waiting.
    raft = core(1)
    raft.read(7)
    assert take(raft)[0] == [ReadReady(7, None)]
    raft.campaign()
    raft.read(8)
    assert take(raft)[0] == [ReadReady(8, None)]


def test_a_follower_refuses_when_its_leader_is_gone() -> None:
    raft = follower()
    raft.read(7)
    drain(raft)
    for _ in range(raft.timeout):
        raft.tick()
    assert raft.role is Role.PRE_CANDIDATE
    ready = raft.take()
    assert ready is not None
    # Asked again in between, refused once.
    assert ready.reads == [ReadReady(7, None)]


def test_who_does_not_lead_says_so() -> None:
    raft = core(1, term=1)
    raft.step(ReadRequest(2, 1, 1, 9))
    assert drain(raft) == [ReadResponse(1, 2, 1, 9, None)]
    raft.step(ReadRequest(2, 1, 0, 10))  # the asker's term is old: it learns the new one, too
    assert drain(raft) == [ReadResponse(1, 2, 1, 10, None)]


def test_a_refused_round_is_refused_to_the_reads() -> None:
    raft = follower()
    raft.read(7)
    [request] = drain(raft)
    assert isinstance(request, ReadRequest)
    raft.step(ReadResponse(2, 1, 1, request.round, None))
    assert take(raft)[0] == [ReadReady(7, None)]


def test_the_newest_round_of_a_follower_replaces_its_older_ones() -> None:
    # The follower has given the older one up; the leader's memory stays bounded.
    raft = leader()
    raft.read(1)
    drain(raft)
    for number in range(10):
        raft.step(ReadRequest(2, 1, 1, 100 + number))
    raft.step(HeartbeatResponse(3, 1, 1, 1))
    drain(raft)
    raft.step(HeartbeatResponse(3, 1, 1, 2))
    assert [m for m in take(raft)[1] if isinstance(m, ReadResponse)] == [
        ReadResponse(1, 2, 1, 109, 1)
    ]


def test_a_deposed_leader_serves_no_read() -> None:
    # The heart of the matter: it cannot know of the newer leader, and must not answer.
    network = Network.of(3)
    network.elect(1)
    network.isolate(1)
    network.elect(2)
    network.propose(2, b"new")
    network[1].read(7)
    network.run()
    assert network.nodes[1].reads == {}
    network.heal()
    network.tick(2, count=2)
    assert network.nodes[1].reads == {7: None}


def test_reads_survive_any_single_loss() -> None:
    for kind in (Heartbeat, HeartbeatResponse, ReadRequest, ReadResponse):
        network = Network.of(3)
        network.elect(1)
        lost = []

        def drop(message: object, kind: type = kind, lost: list[object] = lost) -> bool:
            if type(message) is kind and len(lost) < 2:
                lost.append(message)
                return True
            return False

        network.drop = drop
        network[2].read(7)
        network.run()
        network.tick(count=12)
        assert network.nodes[2].reads == {7: 1}, kind
        assert lost
