"""Leadership transfer and forwarded proposals (page A1, 16 and 17)."""

from __future__ import annotations

import pytest

from kvstore.raft.errors import NotLeader, Overloaded, TransferRefused, Transferring
from kvstore.raft.messages import (
    NORMAL,
    AppendResponse,
    Forward,
    ForwardRefused,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Role,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from kvstore.raft.raft import Raft
from tests.raft.network import Network, core, drain, lead


def ready_leader(**changes: object) -> Raft:
    """A leader of three in term 1, everybody in step."""
    raft = core(1, **changes)  # type: ignore[arg-type]
    lead(raft)
    for member in (2, 3):
        raft.step(AppendResponse(member, 1, 1, 1, None))
    drain(raft)
    return raft


def handovers(messages: list[Message]) -> list[int]:
    return [message.target for message in messages if isinstance(message, TimeoutNow)]


# --- transfer ---


def test_a_member_in_step_is_told_at_once() -> None:
    raft = ready_leader()
    raft.transfer_leadership(3)
    assert handovers(drain(raft)) == [3]


def test_a_member_behind_first_gets_the_log() -> None:
    raft = ready_leader()
    raft.propose(b"x")
    raft.transfer_leadership(3)
    assert handovers(drain(raft)) == []
    raft.step(AppendResponse(2, 1, 1, 2, None))
    assert handovers(drain(raft)) == []
    raft.step(AppendResponse(3, 1, 1, 2, None))
    assert handovers(drain(raft)) == [3]


def test_proposals_are_refused_meanwhile() -> None:
    # Writes during a transfer would move the goal away from the target (hashicorp, before 1.6.1).
    raft = ready_leader()
    raft.transfer_leadership(3)
    with pytest.raises(Transferring) as refused:
        raft.propose(b"x")
    assert refused.value.target == 3
    assert raft.log.last_index == 1


def test_a_transfer_ends_after_one_election_timeout() -> None:
    raft = ready_leader()
    for _ in range(7):  # not aligned with the quorum check
        raft.tick()
    raft.transfer_leadership(3)
    assert handovers(drain(raft)) == [3]
    for _ in range(raft.config.election_ticks - 1):
        raft.step(HeartbeatResponse(2, 1, 1, 0))
        raft.tick()
    with pytest.raises(Transferring):
        raft.propose(b"x")
    raft.tick()
    raft.propose(b"x")
    raft.step(AppendResponse(3, 1, 1, 2, None))
    assert handovers(drain(raft)) == []  # given up for good


def test_another_target_replaces_the_first() -> None:
    raft = ready_leader()
    raft.propose(b"x")
    raft.transfer_leadership(3)
    drain(raft)
    raft.transfer_leadership(2)
    raft.step(AppendResponse(3, 1, 1, 2, None))
    assert handovers(drain(raft)) == []
    raft.step(AppendResponse(2, 1, 1, 2, None))
    assert handovers(drain(raft)) == [2]


def test_to_itself_nothing_happens() -> None:
    raft = ready_leader()
    raft.transfer_leadership(1)
    assert drain(raft) == []
    raft.propose(b"x")


@pytest.mark.parametrize("target", [4, 9])
def test_only_voters_can_lead(target: int) -> None:
    raft = core(1, learners=(4,))
    lead(raft)
    with pytest.raises(TransferRefused):
        raft.transfer_leadership(target)


def test_only_a_leader_can_hand_over() -> None:
    raft = core(1, term=1)
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    with pytest.raises(NotLeader) as refused:
        raft.transfer_leadership(3)
    assert refused.value.leader == 2


def test_the_target_campaigns_without_pre_vote_and_against_the_lease() -> None:
    raft = core(1, term=1)
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    drain(raft)
    raft.step(TimeoutNow(2, 1, 1))
    assert (raft.role, raft.term) == (Role.CANDIDATE, 2)
    assert drain(raft) == [VoteRequest(1, other, 2, 0, 0, transfer=True) for other in (2, 3)]


def test_a_learner_does_not_obey() -> None:
    raft = core(1, term=1, voters=(2, 3), learners=(1,))
    raft.step(TimeoutNow(2, 1, 1))
    assert raft.role is Role.FOLLOWER


def test_an_old_order_is_not_obeyed() -> None:
    raft = core(1, term=5)
    raft.step(TimeoutNow(2, 1, 4))
    assert (raft.role, raft.term) == (Role.FOLLOWER, 5)


def test_a_transfer_loses_nothing() -> None:
    network = Network.of(5)
    network.elect(1)
    written = []
    for turn in range(20):
        [leader] = network.leaders()
        data = b"%d" % turn
        network.propose(leader, data)
        written.append(data)
        network[leader].transfer_leadership(turn % 5 + 1)
        network.run()
        assert network.leaders() == [turn % 5 + 1]
    assert all(network.machine(member) == written for member in network.nodes)


# --- forwarding ---


def follower() -> Raft:
    raft = core(1, term=1)
    raft.step(Heartbeat(2, 1, 1, 0, 0))
    drain(raft)
    return raft


def test_a_follower_sends_it_once() -> None:
    raft = follower()
    assert raft.forward(b"x", 7) is None
    assert drain(raft) == [Forward(1, 2, 1, 7, NORMAL, b"x")]
    for _ in range(9):
        raft.tick()
    assert drain(raft) == []


def test_a_leader_appends_it() -> None:
    raft = ready_leader()
    assert raft.forward(b"x", 7) == (2, 1)


def test_without_a_leader_it_is_refused_at_once() -> None:
    for raft in (core(1), core(1)):
        with pytest.raises(NotLeader):
            raft.forward(b"x", 7)
        raft.campaign()
        with pytest.raises(NotLeader):
            raft.forward(b"x", 7)


def test_a_leader_takes_what_is_forwarded() -> None:
    raft = ready_leader()
    raft.step(Forward(2, 1, 1, 7, NORMAL, b"x"))
    assert raft.log.entries[-1].data == b"x"


@pytest.mark.parametrize("reason", ["overloaded", "transferring", "not the leader", "new term"])
def test_what_is_not_appended_is_refused_aloud(reason: str) -> None:
    # The origin may tell its client "certainly not applied".
    raft = ready_leader(uncommitted_bytes_max=50)
    term = 1
    if reason == "overloaded":
        raft.propose(b"x" * 60)
    elif reason == "transferring":
        raft.transfer_leadership(3)
    elif reason == "not the leader":
        raft.step_down()
    else:
        raft.step_down()
        raft.campaign(transfer=True)
        raft.step(_granted(raft))
        term = 2
    drain(raft)
    if reason == "new term":
        raft.step(_granted(raft))
        drain(raft)
        assert raft.role is Role.LEADER
    last = raft.log.last_index
    raft.step(Forward(2, 1, 1, 7, NORMAL, b"y"))
    assert raft.log.last_index == last
    assert ForwardRefused(1, 2, term, 7) in drain(raft)


def _granted(raft: Raft) -> Message:
    return VoteResponse(2, 1, raft.term, granted=True)


def test_a_refusal_reaches_the_node() -> None:
    raft = follower()
    raft.forward(b"x", 7)
    drain(raft)
    raft.step(ForwardRefused(2, 1, 1, 7))
    ready = raft.take()
    assert ready is not None
    assert ready.refused == [7]


@pytest.mark.parametrize("term", [0, 1, 5])
def test_a_refusal_counts_in_any_term(term: int) -> None:
    # "Was not appended" is a fact, whoever leads by now.
    raft = follower()
    raft.step(ForwardRefused(2, 1, term, 7))
    ready = raft.take()
    assert ready is not None
    assert ready.refused == [7]


def test_a_copy_is_neither_appended_nor_refused() -> None:
    raft = ready_leader()
    forward = Forward(2, 1, 1, 7, NORMAL, b"x")
    raft.step(forward)
    drain(raft)
    raft.step(forward)
    raft.step(Forward(2, 1, 1, 6, NORMAL, b"w"))  # ids ascend: an older one is late
    assert raft.log.last_index == 2
    raft.step_down()
    raft.step(forward)
    assert not [m for m in drain(raft) if isinstance(m, ForwardRefused)]


def test_copies_are_told_apart_by_sender() -> None:
    raft = ready_leader()
    raft.step(Forward(2, 1, 1, 7, NORMAL, b"x"))
    raft.step(Forward(3, 1, 1, 7, NORMAL, b"y"))
    assert raft.log.last_index == 3


def test_after_a_restart_old_terms_are_not_refused() -> None:
    # We may have led them: a copy of what we appended then must not be called "not applied".
    raft = core(1, term=4)
    raft.step(Forward(2, 1, 4, 7, NORMAL, b"x"))
    raft.step(Forward(2, 1, 3, 8, NORMAL, b"x"))
    assert drain(raft) == []
    raft.step(Heartbeat(3, 1, 5, 0, 0))
    drain(raft)
    raft.step(Forward(2, 1, 5, 9, NORMAL, b"x"))
    assert drain(raft) == [ForwardRefused(1, 2, 5, 9)]


def test_overload_is_raised_where_it_happens() -> None:
    raft = ready_leader(uncommitted_bytes_max=50)
    raft.propose(b"x" * 60)
    with pytest.raises(Overloaded):
        raft.forward(b"y", 7)


def test_every_follower_can_write() -> None:
    network = Network.of(5)
    network.elect(3)
    for member in network.nodes:
        network[member].forward(b"%d" % member, 1)
        network.run()
    expected = [b"1", b"2", b"3", b"4", b"5"]
    assert all(network.machine(member) == expected for member in network.nodes)
