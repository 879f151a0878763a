"""Joint majorities: one computation serves commit, votes, check-quorum and reads.

A configuration is two sets of voters, the second usually empty; an empty set agrees to everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from itertools import repeat

from kvstore.raft.messages import MemberId

NO_LIMIT = 2**64
"""What an empty set of voters has acknowledged: it never holds the other set back."""


_ZEROS = repeat(0)


class Verdict(IntEnum):
    """State of an election."""

    PENDING = 0
    WON = 1
    LOST = 2


def majority_acknowledged(voters: Sequence[MemberId], acknowledged: Mapping[MemberId, int]) -> int:
    """Return the highest number that a majority of `voters` has reached; absent means 0."""
    count = len(voters)
    if count == 0:
        return NO_LIMIT
    numbers = sorted(map(acknowledged.get, voters, _ZEROS))
    # Ascending: the last (count // 2 + 1) of them are at or above this one.
    return numbers[(count - 1) // 2]


def joint_acknowledged(
    voters: Sequence[MemberId],
    outgoing: Sequence[MemberId],
    acknowledged: Mapping[MemberId, int],
) -> int:
    """Return the highest number that a majority of both sets has reached.

    Log indexes for the commit rule, ReadIndex rounds for reads.
    """
    reached = majority_acknowledged(voters, acknowledged)
    if outgoing:
        reached = min(reached, majority_acknowledged(outgoing, acknowledged))
    return reached


def majority_verdict(voters: Collection[MemberId], votes: Mapping[MemberId, bool]) -> Verdict:
    """Return how an election among `voters` stands; a voter absent from `votes` may still vote."""
    needed = len(voters) // 2 + 1
    if not voters:
        return Verdict.WON
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= needed:
        return Verdict.WON
    if granted + (len(voters) - granted - refused) < needed:
        return Verdict.LOST
    return Verdict.PENDING


def joint_verdict(
    voters: Collection[MemberId], outgoing: Collection[MemberId], votes: Mapping[MemberId, bool]
) -> Verdict:
    """Return how an election stands that must be won in both sets."""
    first = majority_verdict(voters, votes)
    second = majority_verdict(outgoing, votes)
    if first is second:
        return first
    if Verdict.LOST in (first, second):
        return Verdict.LOST
    return Verdict.PENDING
