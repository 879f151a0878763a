"""Flow control: probe, replicate and snapshot states, windows, bounded tail (page A1, 5, 6, 9)."""

from __future__ import annotations

import pytest

from kvstore.raft.errors import Overloaded
from kvstore.raft.log import ENTRY_OVERHEAD_BYTES
from kvstore.raft.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
)
from kvstore.raft.progress import Progress, ProgressState
from kvstore.raft.raft import Raft
from tests.raft.network import Network, core, drain, lead


def leader_of_two(**changes: object) -> Raft:
    """A leader with its no-op committed; member 2 in step, member 3 never heard."""
    raft = core(1, **changes)  # type: ignore[arg-type]
    lead(raft)
    raft.step(AppendResponse(2, 1, raft.term, raft.log.last_index, None))
    drain(raft)
    return raft


def sent(raft: Raft, target: int = 2) -> list[tuple[int, int]]:
    """Index before and count of the entries of each append to `target`."""
    return [
        (message.prev_index, len(message.entries))
        for message in drain(raft)
        if isinstance(message, AppendRequest) and message.target == target
    ]


def peer(raft: Raft, member: int = 2) -> object:
    [status] = [each for each in raft.status().peers if each.member == member]
    return (status.state, status.match, status.next, status.inflight_messages)


# --- states ---


def test_a_new_leader_probes_everybody() -> None:
    raft = core(1, log=[1, 1])
    lead(raft)
    assert peer(raft) == ("PROBE", 0, 3, 0)


def test_a_probe_is_one_message_until_answered() -> None:
    raft = core(1)
    lead(raft)
    raft.propose(b"a")
    raft.propose(b"b")
    assert sent(raft) == []
    raft.step(AppendResponse(2, 1, 1, 1, None))
    assert sent(raft) == [(1, 2)]


def test_a_probe_is_repeated_after_a_heartbeat_answer() -> None:
    raft = core(1)
    lead(raft)
    raft.tick()
    drain(raft)
    raft.step(HeartbeatResponse(2, 1, 1, 0))
    assert sent(raft) == [(0, 1)]
    raft.step(HeartbeatResponse(2, 1, 1, 0))  # a copy draws nothing
    assert sent(raft) == []


def test_success_starts_the_pipeline() -> None:
    raft = leader_of_two()
    assert peer(raft) == ("REPLICATE", 1, 2, 0)
    for number in range(3):
        raft.propose(b"x")
        assert sent(raft) == [(1 + number, 1)]
    assert peer(raft) == ("REPLICATE", 1, 5, 3)


def test_an_acknowledgement_equal_to_match_still_lifts_a_probe() -> None:
    # Else a follower that became idle while probed would stay in the slow state.
    raft = leader_of_two()
    raft.unreachable(2)
    assert peer(raft) == ("PROBE", 1, 2, 0)
    raft.step(AppendResponse(2, 1, 1, 1, None))
    assert peer(raft) == ("REPLICATE", 1, 2, 0)


def test_a_rejection_returns_to_probe() -> None:
    raft = leader_of_two()
    for _ in range(3):
        raft.propose(b"x")
        drain(raft)
    raft.step(AppendResponse(2, 1, 1, 3, (1, 1)))
    assert sent(raft) == [(1, 3)]
    assert peer(raft)[0] == "PROBE"  # type: ignore[index]


def test_a_stale_rejection_moves_nothing() -> None:
    # A1, 5: it must not move `next` to or below `match`.
    raft = leader_of_two()
    raft.propose(b"x")
    drain(raft)
    raft.step(AppendResponse(2, 1, 1, 2, None))
    before = peer(raft)
    raft.step(AppendResponse(2, 1, 1, 1, (0, 0)))
    raft.step(AppendResponse(2, 1, 1, 2, (0, 0)))
    assert peer(raft) == before
    progress = Progress(10)
    progress.acknowledge(4)
    progress.become_probe()
    assert not progress.reject(7, 3)  # answers no probe of ours: that was after 4
    assert progress.reject(4, 1)
    assert (progress.match, progress.next) == (4, 5)


def test_a_broken_connection_returns_to_probe() -> None:
    raft = leader_of_two()
    raft.propose(b"x")
    drain(raft)
    raft.unreachable(2)
    assert sent(raft) == [(1, 1)]


def test_a_heartbeat_carries_no_more_than_the_member_holds() -> None:
    # The follower may hold a dead leader's entries where ours are committed.
    raft = leader_of_two()
    raft.tick()
    commits = {m.target: m.commit for m in drain(raft) if isinstance(m, Heartbeat)}
    assert commits == {2: 1, 3: 0}


def test_headway_needs_no_repair() -> None:
    # An empty append after every heartbeat would overtake bulk entries of a busy member.
    raft = leader_of_two()
    raft.propose(b"x")
    raft.propose(b"y")
    raft.tick()
    drain(raft)
    raft.step(AppendResponse(2, 1, 1, 2, None))
    raft.step(HeartbeatResponse(2, 1, 1, 0))
    assert sent(raft) == []


# --- window ---


def test_the_window_is_bounded_by_count() -> None:
    raft = leader_of_two(inflight_messages_max=2, message_entries_max=1)
    for _ in range(5):
        raft.propose(b"x")
    assert sent(raft) == [(1, 1), (2, 1)]
    raft.step(AppendResponse(2, 1, 1, 2, None))
    assert sent(raft) == [(3, 1)]
    raft.step(AppendResponse(2, 1, 1, 4, None))  # one answer frees several
    assert sent(raft) == [(4, 1), (5, 1)]


def test_the_window_is_bounded_by_bytes() -> None:
    size = 100 + ENTRY_OVERHEAD_BYTES
    raft = leader_of_two(inflight_bytes_max=2 * size, message_entries_max=1)
    for _ in range(5):
        raft.propose(b"x" * 100)
    assert sent(raft) == [(1, 1), (2, 1)]
    raft.step(AppendResponse(2, 1, 1, 2, None))
    assert sent(raft) == [(3, 1)]


def test_a_message_is_bounded_by_bytes() -> None:
    size = 100 + ENTRY_OVERHEAD_BYTES
    raft = leader_of_two(message_bytes_max=2 * size)
    for _ in range(5):
        raft.propose(b"x" * 100)
    assert sent(raft) == [(1, 2), (3, 2), (5, 1)]


def test_a_full_window_that_was_lost_recovers() -> None:
    # A1, 6: if everything in a full window was lost, nothing would ever move again, did not an
    # empty append leave after a heartbeat's answer.
    raft = leader_of_two(inflight_messages_max=2, message_entries_max=1)
    for _ in range(4):
        raft.propose(b"x")
    assert sent(raft) == [(1, 1), (2, 1)]  # both are lost
    raft.tick()
    drain(raft)
    raft.step(HeartbeatResponse(2, 1, 1, 0))
    assert sent(raft) == [(3, 0)]
    raft.step(AppendResponse(2, 1, 1, 3, (1, 1)))
    assert sent(raft) == [(1, 1)]
    raft.step(AppendResponse(2, 1, 1, 2, None))
    assert sent(raft) == [(2, 1), (3, 1)]


def test_a_lost_acknowledgement_recovers() -> None:
    network = Network.of(3, inflight_messages_max=1)
    network.elect(1)
    network.drop = lambda message: isinstance(message, AppendResponse) and message.sender == 3
    for _ in range(5):
        network.propose(1, b"x")
    network.drop = lambda message: False
    network.tick(1, count=3)
    assert len(network.machine(3)) == 5


# --- bounded tail ---


def test_the_uncommitted_tail_is_bounded() -> None:
    # A1, 9: without a quorum the leader must not grow its log until it dies.
    raft = leader_of_two(uncommitted_bytes_max=300)
    size = 100 + ENTRY_OVERHEAD_BYTES
    raft.propose(b"x" * 100)
    raft.propose(b"x" * 100)
    with pytest.raises(Overloaded) as refused:
        raft.propose(b"x" * 100)
    assert refused.value.uncommitted_bytes == 2 * size
    assert refused.value.uncommitted_bytes_max == 300
    drain(raft)
    raft.step(AppendResponse(2, 1, 1, 3, None))
    assert raft.status().uncommitted_bytes == 0
    raft.propose(b"x" * 100)


def test_one_large_entry_is_let_in() -> None:
    raft = leader_of_two(uncommitted_bytes_max=10)
    raft.propose(b"x" * 1000)
    with pytest.raises(Overloaded):
        raft.propose(b"y")


def test_an_empty_entry_is_never_refused() -> None:
    raft = leader_of_two(uncommitted_bytes_max=10)
    raft.propose(b"x" * 1000)
    raft.propose(b"")


def test_a_new_leader_counts_the_tail_it_inherits() -> None:
    raft = core(1, log=[1] * 10, uncommitted_bytes_max=300)
    lead(raft)
    assert raft.status().uncommitted_bytes > 300
    with pytest.raises(Overloaded):
        raft.propose(b"x")


# --- snapshots ---


def needs_snapshot(**changes: object) -> Raft:
    """A leader whose log starts behind what member 3 needs; it just said so."""
    raft = core(1, compacted=(5, 1), log=[1, 1], commit=7, term=1, **changes)  # type: ignore[arg-type]
    lead(raft)
    raft.step(AppendResponse(2, 1, 2, 8, None))
    raft.step(AppendResponse(3, 1, 2, 7, (2, 1)))
    return raft


def snapshots(messages: list[Message]) -> list[InstallSnapshot]:
    return [message for message in messages if isinstance(message, InstallSnapshot)]


def test_a_snapshot_replaces_compacted_entries() -> None:
    raft = needs_snapshot()
    [install] = snapshots(drain(raft))
    # What the state machine had when it was asked for, with the term of that entry.
    assert (install.target, install.snapshot.index, install.snapshot.term) == (3, 7, 1)
    assert install.snapshot.configuration == raft.configuration
    assert peer(raft, 3)[0] == "SNAPSHOT"  # type: ignore[index]


def test_a_snapshot_pauses_everything_else() -> None:
    raft = needs_snapshot()
    drain(raft)
    raft.propose(b"x")
    for _ in range(5):
        raft.tick()
        raft.step(HeartbeatResponse(3, 1, 2, 0))
        assert sent(raft, 3) == []


def test_any_snapshot_that_lets_the_log_continue_is_good() -> None:
    # A1, 12: not only the one that was asked for.
    raft = needs_snapshot()
    drain(raft)
    raft.step(AppendResponse(3, 1, 2, 6, None))  # not 7
    assert sent(raft, 3) == [(6, 2)]
    assert peer(raft, 3)[0] == "REPLICATE"  # type: ignore[index]


def test_a_reported_snapshot_is_probed_behind() -> None:
    raft = needs_snapshot()
    drain(raft)
    raft.snapshot_sent(3, ok=True)
    assert sent(raft, 3) == []  # its answer comes, or a heartbeat's
    raft.tick()
    drain(raft)
    raft.step(HeartbeatResponse(3, 1, 2, 0))
    assert sent(raft, 3) == [(7, 1)]


def test_a_failed_snapshot_is_sent_again() -> None:
    raft = needs_snapshot()
    drain(raft)
    raft.snapshot_sent(3, ok=False)
    assert drain(raft) == []
    raft.tick()
    drain(raft)
    raft.step(HeartbeatResponse(3, 1, 2, 0))
    assert len(snapshots(drain(raft))) == 1


def test_no_snapshot_for_a_member_that_is_away() -> None:
    raft = needs_snapshot()
    drain(raft)
    raft.snapshot_sent(3, ok=False)
    assert isinstance(raft.state.peers[3], Progress)  # type: ignore[attr-defined]
    raft.state.peers[3].active = False  # type: ignore[attr-defined]
    raft.state.peers[3].paused = False  # type: ignore[attr-defined]
    assert snapshots(drain(raft)) == []
    raft.tick()
    drain(raft)
    raft.step(HeartbeatResponse(3, 1, 2, 0))  # back
    assert len(snapshots(drain(raft))) == 1


def test_a_late_report_does_not_disturb() -> None:
    raft = needs_snapshot()
    drain(raft)
    raft.step(AppendResponse(3, 1, 2, 7, None))
    before = peer(raft, 3)
    raft.snapshot_sent(3, ok=False)
    assert peer(raft, 3) == before


@pytest.mark.parametrize("state", list(ProgressState))
def test_match_stays_below_next(state: ProgressState) -> None:
    progress = Progress(8)
    progress.acknowledge(3)
    if state is ProgressState.REPLICATE:
        progress.become_replicate()
    elif state is ProgressState.SNAPSHOT:
        progress.become_snapshot(6)
    for index in (0, 3, 9, 2, 12):
        progress.acknowledge(index)
        assert progress.match < progress.next
        progress.reject(index, 0)
        assert progress.match < progress.next
