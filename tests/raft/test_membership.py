"""Membership: one change at a time, in force when applied, with the guards of page A1, 15."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.raft.errors import (
    ChangePending,
    ChangeRefused,
    MalformedChange,
    NotLeader,
    Transferring,
)
from kvstore.raft.membership import Change, ChangeKind, change_configuration
from kvstore.raft.messages import (
    CHANGE,
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Configuration,
    Entry,
    InstallSnapshot,
    Role,
    VoteResponse,
)
from kvstore.raft.raft import Raft
from tests.raft.network import Network, core, drain, lead

ADD, LEARN, REMOVE, UPDATE = (
    ChangeKind.ADD_VOTER,
    ChangeKind.ADD_LEARNER,
    ChangeKind.REMOVE,
    ChangeKind.UPDATE,
)
THREE = Configuration((1, 2, 3))


def ready_leader(**changes: object) -> Raft:
    """A leader of three with its no-op committed and applied."""
    raft = core(1, **changes)  # type: ignore[arg-type]
    lead(raft)
    raft.step(AppendResponse(2, 1, raft.term, raft.log.last_index, None))
    drain(raft)
    return raft


# --- the functions ---


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change(ADD, 4), Configuration((1, 2, 3, 4), learners=(5,))),
        (Change(ADD, 5), Configuration((1, 2, 3, 5))),
        (Change(LEARN, 4), Configuration((1, 2, 3), learners=(4, 5))),
        (Change(REMOVE, 2), Configuration((1, 3), learners=(5,), removed=(2,))),
        (Change(REMOVE, 5), Configuration((1, 2, 3), removed=(5,))),
        (Change(UPDATE, 2), Configuration((1, 2, 3), learners=(5,))),
    ],
)
def test_change_configuration(change: Change, expected: Configuration) -> None:
    before = Configuration((1, 2, 3), learners=(5,))
    assert change_configuration(before, change) == expected


@pytest.mark.parametrize(
    ("configuration", "change", "reason"),
    [
        (THREE, Change(ADD, 2), "voter already"),
        (THREE, Change(LEARN, 2), "exists already"),
        (Configuration((1,), learners=(2,)), Change(LEARN, 2), "exists already"),
        (THREE, Change(REMOVE, 9), "not in the configuration"),
        (THREE, Change(UPDATE, 9), "not in the configuration"),
        (Configuration((1,)), Change(REMOVE, 1), "last voter"),
        (THREE, Change(ADD, 0), "reserved"),
        (Configuration((1, 2), removed=(3,)), Change(ADD, 3), "never used again"),
        (Configuration((1, 2), removed=(3,)), Change(LEARN, 3), "never used again"),
        (Configuration((1, 2), outgoing=(1,)), Change(ADD, 3), "joint"),
        (Configuration(()), Change(ADD, 3), "does not know"),
    ],
)
def test_senseless_changes_are_refused(
    configuration: Configuration, change: Change, reason: str
) -> None:
    with pytest.raises(ChangeRefused, match=reason):
        change_configuration(configuration, change)


@given(st.lists(st.tuples(st.sampled_from(list(ChangeKind)), st.integers(1, 6)), max_size=30))
def test_configurations_stay_well_formed(changes: list[tuple[ChangeKind, int]]) -> None:
    configuration = THREE
    for kind, member in changes:
        before = configuration
        try:
            configuration = change_configuration(configuration, Change(kind, member))
        except ChangeRefused:
            continue
        groups = (configuration.voters, configuration.learners, configuration.removed)
        everyone = [each for group in groups for each in group]
        assert len(everyone) == len(set(everyone))
        assert all(list(group) == sorted(group) for group in groups)
        assert configuration.voters
        assert set(before.removed) <= set(configuration.removed)
        # One at a time: old and new majorities always share a member.
        assert len(set(before.voters) ^ set(configuration.voters)) <= 1


@given(st.sampled_from(list(ChangeKind)), st.integers(0, 2**64 - 1), st.binary())
def test_changes_survive_their_encoding(kind: ChangeKind, member: int, context: bytes) -> None:
    change = Change(kind, member, context)
    assert Change.decode(change.encode()) == change


@given(st.binary(max_size=30))
def test_whatever_is_no_change_is_malformed(data: bytes) -> None:
    try:
        change = Change.decode(data)
    except MalformedChange:
        return
    assert change.encode() == data


def test_a_change_of_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(MalformedChange, match="upgrade"):
        Change.decode(b"\x02" + Change(ADD, 1).encode()[1:])


# --- proposing ---


def test_only_a_leader_takes_changes() -> None:
    with pytest.raises(NotLeader):
        core(1).propose_change(Change(ADD, 4))


def test_one_change_at_a_time() -> None:
    raft = ready_leader()
    index, _ = raft.propose_change(Change(LEARN, 4))
    drain_without_apply(raft)
    with pytest.raises(ChangePending):
        raft.propose_change(Change(LEARN, 5))
    raft.step(AppendResponse(2, 1, 1, index, None))
    assert raft.log.committed == index
    with pytest.raises(ChangePending):  # committed is not applied
        raft.propose_change(Change(LEARN, 5))
    raft.take()
    raft.applied(index, Configuration((1, 2, 3), learners=(4,)))
    raft.propose_change(Change(LEARN, 5))


def drain_without_apply(raft: Raft) -> None:
    while (ready := raft.take()) is not None:
        if ready.append is not None:
            raft.appended(ready.append)


def test_a_new_leader_assumes_that_one_is_pending() -> None:
    # There may be one among the entries it inherited and has not applied.
    raft = core(1, log=[1, 1], term=1)
    lead(raft)
    with pytest.raises(ChangePending):
        raft.propose_change(Change(LEARN, 4))


def test_an_inherited_change_must_be_applied_first() -> None:
    # Committed together with our no-op, handed out, not applied yet.
    raft = core(1, log=[1], term=1)
    raft.log.extend([Entry(2, 1, CHANGE, Change(LEARN, 4).encode())])
    lead(raft)
    raft.step(AppendResponse(2, 1, 2, 3, None))
    drain_without_apply(raft)
    assert raft.log.committed == 3
    with pytest.raises(ChangePending):
        raft.propose_change(Change(LEARN, 5))
    raft.applied(2, Configuration((1, 2, 3), learners=(4,)))
    raft.applied(3)
    raft.propose_change(Change(LEARN, 5))


def test_no_change_before_the_first_commit_of_the_term() -> None:
    # One-at-a-time changes are unsafe else (Ongaro, raft-dev, July 2015).
    raft = core(1)
    lead(raft)
    with pytest.raises(ChangePending, match="term"):
        raft.propose_change(Change(LEARN, 4))
    raft.step(AppendResponse(2, 1, 1, 1, None))
    drain(raft)
    raft.propose_change(Change(LEARN, 4))


def test_a_refused_change_leaves_room_for_the_next() -> None:
    raft = ready_leader()
    last = raft.log.last_index
    with pytest.raises(ChangeRefused):
        raft.propose_change(Change(ADD, 2))
    assert raft.log.last_index == last
    raft.propose_change(Change(LEARN, 4))


def test_no_change_during_a_transfer() -> None:
    raft = ready_leader()
    raft.transfer_leadership(3)
    with pytest.raises(Transferring):
        raft.propose_change(Change(LEARN, 4))
    raft.state.transfer_target = 0  # type: ignore[attr-defined]
    raft.propose_change(Change(LEARN, 4))  # it was not noted as pending


def test_a_follower_forwards_changes() -> None:
    network = Network.of(3)
    network.elect(1)
    network[2].forward(Change(LEARN, 4).encode(), 1, CHANGE)
    network.run()
    assert network[3].configuration.learners == (4,)
    network[2].forward(Change(ADD, 1).encode(), 2, CHANGE)  # senseless
    network[2].forward(b"junk", 3, CHANGE)
    network.run()
    assert network.nodes[2].refused == [2, 3]


# --- applying ---


def test_a_change_is_in_force_when_applied() -> None:
    raft = ready_leader()
    index, _ = raft.propose_change(Change(REMOVE, 3))
    drain_without_apply(raft)
    assert raft.configuration == THREE
    raft.step(AppendResponse(2, 1, 1, index, None))
    raft.take()
    raft.applied(index, Configuration((1, 2), removed=(3,)))
    assert [peer.member for peer in raft.status().peers] == [2]
    # Two of two now, no longer two of three.
    raft.propose(b"x")
    drain(raft)
    assert raft.log.committed == index
    raft.step(AppendResponse(3, 1, 1, index + 1, None))  # a stranger now
    assert raft.log.committed == index
    raft.step(AppendResponse(2, 1, 1, index + 1, None))
    assert raft.log.committed == index + 1


def test_a_smaller_quorum_commits_what_waited() -> None:
    raft = core(1, voters=(1, 2))
    lead(raft)
    raft.step(AppendResponse(2, 1, 1, 1, None))
    drain(raft)
    index, _ = raft.propose_change(Change(REMOVE, 2))
    raft.propose(b"x")
    drain_without_apply(raft)
    raft.step(AppendResponse(2, 1, 1, index, None))
    raft.take()
    assert raft.log.committed == index
    raft.applied(index, Configuration((1,), removed=(2,)))
    assert raft.log.committed == index + 1


def test_a_smaller_quorum_finishes_reads() -> None:
    raft = core(1, voters=(1, 2))
    lead(raft)
    raft.step(AppendResponse(2, 1, 1, 1, None))
    drain(raft)
    index, _ = raft.propose_change(Change(REMOVE, 2))
    drain_without_apply(raft)
    raft.step(AppendResponse(2, 1, 1, index, None))
    raft.read(7)
    raft.take()
    raft.applied(index, Configuration((1,), removed=(2,)))
    ready = raft.take()
    assert ready is not None
    assert [read.read_id for read in ready.reads] == [7]


def test_a_removed_leader_tells_and_steps_down() -> None:
    raft = ready_leader()
    index, _ = raft.propose_change(Change(REMOVE, 1))
    drain_without_apply(raft)
    raft.step(AppendResponse(2, 1, 1, index, None))
    ready = raft.take()
    assert ready is not None
    assert CommitNotice(1, 2, 1, index) in ready.messages  # before it goes
    raft.applied(index, Configuration((2, 3), removed=(1,)))
    assert raft.role is Role.FOLLOWER
    raft.campaign()
    assert raft.role is Role.FOLLOWER  # and does not come back


def test_a_removed_member_is_told_also_while_it_is_probed() -> None:
    # It has not answered a new leader yet, so nothing but this notice would tell it: its client,
    # who asked it for the removal, would wait for an answer until it is refused and ends.
    raft = ready_leader()
    index, _ = raft.propose_change(Change(REMOVE, 3))
    drain_without_apply(raft)
    raft.step(AppendResponse(2, 1, 1, index, None))
    ready = raft.take()
    assert ready is not None
    assert CommitNotice(1, 3, 1, index) not in ready.messages
    raft.applied(index, Configuration((1, 2), removed=(3,)))
    ready = raft.take()
    assert ready is not None
    assert CommitNotice(1, 3, 1, index) in ready.messages


def test_a_member_that_joins_gets_a_snapshot() -> None:
    # It does not know the first configuration, which is in no entry: replaying the log from index 1
    # it would count itself as the only voter.
    network = Network([*[core(member) for member in (1, 2, 3)], core(4, voters=())])
    network.elect(1)
    network.propose(1, b"a")
    network[1].propose_change(Change(LEARN, 4))
    network.run()
    assert network[4].configuration == Configuration((1, 2, 3), learners=(4,))
    assert any(isinstance(m, InstallSnapshot) and m.target == 4 for m in network.delivered)
    network.tick(4, count=100)
    assert network[4].role is Role.FOLLOWER


def test_a_member_without_configuration_takes_no_entries() -> None:
    raft = core(4, voters=())
    raft.step(AppendRequest(1, 4, 1, 0, 0, 1, [Entry(1, 1, CHANGE, Change(ADD, 4).encode())]))
    assert raft.log.last_index == 0
    assert drain(raft) == [AppendResponse(4, 1, 1, 0, (0, 0))]


def test_a_new_peer_is_not_counted_out_at_once() -> None:
    # It had no chance to be heard yet when the quorum is checked.
    raft = core(1, voters=(1,))
    raft.campaign()
    drain(raft)
    index, _ = raft.propose_change(Change(ADD, 2))
    drain_without_apply(raft)
    raft.applied(index, Configuration((1, 2)))
    raft.tick()
    for _ in range(raft.config.election_ticks - 1):
        raft.tick()
    assert raft.role is Role.LEADER


def test_promotion_of_a_learner() -> None:
    network = Network([core(1, voters=(1,), learners=(2,)), core(2, voters=(1,), learners=(2,))])
    network.elect(1)
    network[1].propose_change(Change(ADD, 2))
    network.run()
    assert network[2].configuration.voters == (1, 2)
    network.isolate(2)
    network[1].propose(b"x")
    network.run()
    assert network.machine(1) == []  # it takes two now


def test_growing_and_shrinking_a_cluster() -> None:
    network = Network([core(1, voters=(1,)), *[core(m, voters=()) for m in (2, 3, 4, 5)]])
    network.elect(1)
    for member in (2, 3, 4, 5):
        network[1].propose_change(Change(LEARN, member))
        network.run()
        network.tick(count=2)
        network[1].propose_change(Change(ADD, member))
        network.run()
    network.propose(1, b"all")
    assert [network.machine(member)[-1:] for member in (1, 2, 3, 4, 5)] == [[b"all"]] * 5
    for member in (5, 4, 3):
        network[1].propose_change(Change(REMOVE, member))
        network.run()
    network.propose(1, b"two")
    assert network[2].configuration == Configuration((1, 2), removed=(3, 4, 5))
    assert network.machine(2)[-1] == b"two"
    assert network.machine(5)[-1] == b"all"


def test_an_outvoted_transfer_target_is_dropped() -> None:
    raft = ready_leader()
    index, _ = raft.propose_change(Change(REMOVE, 3))
    drain_without_apply(raft)
    raft.transfer_leadership(3)
    raft.step(AppendResponse(2, 1, 1, index, None))
    raft.take()
    raft.applied(index, Configuration((1, 2), removed=(3,)))
    assert raft.status().transfer_target == 0
    raft.propose(b"x")


def test_joint_configurations_need_both_majorities() -> None:
    # Nothing proposes them today; every decision is ready for them.
    raft = core(1, voters=(1, 2, 3))
    raft.configuration = Configuration((1, 2, 3), outgoing=(1, 4, 5))
    raft.campaign(transfer=True)
    drain(raft)
    for voter in (2, 3):
        raft.step(VoteResponse(voter, 1, 1, granted=True))
    assert raft.role is Role.CANDIDATE
    raft.step(VoteResponse(4, 1, 1, granted=True))
    assert raft.role is Role.LEADER
    drain(raft)
    for member in (2, 3):
        raft.step(AppendResponse(member, 1, 1, 1, None))
    assert raft.log.committed == 0
    raft.step(AppendResponse(5, 1, 1, 1, None))
    assert raft.log.committed == 1


# --- who was removed lets the others know ---


def removed_and_cut_off() -> tuple[Network, int, int]:
    """Of two, leader 1 commits its own removal, and 2 holds the entry and does not know that."""
    network = Network.of(2)
    network.elect(1)
    network.drop = lambda message: message.sender == 1 and isinstance(message, CommitNotice)
    index, term = network[1].propose_change(Change(REMOVE, 1))
    network.run()
    assert network[1].configuration == Configuration((2,), removed=(1,))
    assert network[2].log.matches(index, term)
    network.isolate(1)
    return network, index, term


def test_the_last_voter_needs_word_of_the_removal() -> None:
    # It counts two voters, and the other one is gone: etcd's members wait for ever.
    network, index, term = removed_and_cut_off()
    network.tick(2, count=50)
    assert network.leaders() == []

    network[2].hear_committed(index, term)
    network.run()
    network.tick(2, count=50)
    assert network[2].configuration == Configuration((2,), removed=(1,))
    assert network.leaders() == [2]


def test_word_of_an_entry_that_is_not_there_is_worth_nothing() -> None:
    network, index, term = removed_and_cut_off()
    committed = network[2].log.committed
    for said in ((index + 1, term), (index, term + 1), (index, term - 1), (2**63, term)):
        network[2].hear_committed(*said)
    assert network[2].log.committed == committed


def test_a_leader_finds_out_by_itself_what_is_committed() -> None:
    # What it commits is subtracted from what waits for a quorum; by hearsay it would not be.
    raft = ready_leader()
    index, term = raft.propose(b"x")
    raft.hear_committed(index, term)
    assert raft.log.committed < index
