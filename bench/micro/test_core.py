"""The consensus core: one leader's round of propose, append, acknowledge, commit, apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import (
    AppendResponse,
    Configuration,
    HardState,
    PreVoteResponse,
    Role,
    VoteResponse,
)
from kvstore.raft.raft import Raft

DATA = b"x" * 20_000
"""An entry of about 64 puts."""


def leader_of_three() -> Raft:
    """Return a core that has won its election; its no-op is committed and applied."""
    raft = Raft(
        Config(id=1, draw_timeout=lambda start, _: start),
        Restored(
            hard_state=HardState(0, 0, 0),
            entries=[],
            compacted=(0, 0),
            configuration=Configuration((1, 2, 3)),
            applied=0,
        ),
    )
    raft.campaign()
    work(raft)
    raft.step(PreVoteResponse(2, 1, raft.term + 1, granted=True))
    work(raft)
    raft.step(VoteResponse(2, 1, raft.term, granted=True))
    work(raft)
    assert raft.role is Role.LEADER
    acknowledge(raft)
    return raft


def work(raft: Raft) -> int:
    """Do what the core asks for with an instant disk and store; return the entries applied."""
    applied = 0
    while (ready := raft.take()) is not None:
        if ready.append is not None:
            raft.appended(ready.append)
        if ready.apply:
            applied += len(ready.apply)
            raft.applied(ready.apply[-1].index)
    return applied


def acknowledge(raft: Raft) -> int:
    """Let both followers confirm everything; return the entries applied by that."""
    last = raft.log.last_index
    for follower in (2, 3):
        raft.step(AppendResponse(follower, 1, raft.term, last, None))
    return work(raft)


def test_one_round(per_operation: Callable[..., Any]) -> None:
    """One entry from proposal to applied: the core's cost per batch, not per put."""
    raft = leader_of_three()

    def one_round() -> int:
        raft.propose(DATA)
        applied = work(raft) + acknowledge(raft)
        raft.compact(raft.log.applied)
        return applied

    assert per_operation(one_round, 1, tuple) == 1


def test_sixteen_entries_in_flight(per_operation: Callable[..., Any]) -> None:
    """Sixteen proposals, one acknowledgement of each follower for all of them."""
    raft = leader_of_three()

    def one_round() -> int:
        applied = 0
        for _ in range(16):
            raft.propose(DATA)
            applied += work(raft)
        applied += acknowledge(raft)
        raft.compact(raft.log.applied)
        return applied

    assert per_operation(one_round, 16, tuple) == 16
