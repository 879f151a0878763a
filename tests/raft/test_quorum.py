"""Joint majorities against a naive model that tries every set of members."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.raft.quorum import (
    NO_LIMIT,
    Verdict,
    joint_acknowledged,
    joint_verdict,
    majority_acknowledged,
    majority_verdict,
)

MEMBERS = st.lists(st.integers(1, 9), unique=True, max_size=7).map(lambda ids: tuple(sorted(ids)))
NUMBERS = st.dictionaries(st.integers(1, 9), st.integers(0, 12))
VOTES = st.dictionaries(st.integers(1, 9), st.booleans())


def majorities(voters: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every smallest majority, written out."""
    return list(combinations(voters, len(voters) // 2 + 1))


def naive_acknowledged(voters: tuple[int, ...], numbers: dict[int, int]) -> int:
    if not voters:
        return NO_LIMIT
    return max(min(numbers.get(voter, 0) for voter in some) for some in majorities(voters))


def naive_verdict(voters: tuple[int, ...], votes: dict[int, bool]) -> Verdict:
    if not voters or any(all(votes.get(v) for v in some) for some in majorities(voters)):
        return Verdict.WON
    if any(all(votes.get(v, True) for v in some) for some in majorities(voters)):
        return Verdict.PENDING
    return Verdict.LOST


@given(MEMBERS, NUMBERS)
def test_majority_acknowledged(voters: tuple[int, ...], numbers: dict[int, int]) -> None:
    assert majority_acknowledged(voters, numbers) == naive_acknowledged(voters, numbers)


@given(MEMBERS, MEMBERS, NUMBERS)
def test_joint_acknowledged(
    voters: tuple[int, ...], outgoing: tuple[int, ...], numbers: dict[int, int]
) -> None:
    expected = min(naive_acknowledged(voters, numbers), naive_acknowledged(outgoing, numbers))
    assert joint_acknowledged(voters, outgoing, numbers) == expected


@given(MEMBERS, VOTES)
def test_majority_verdict(voters: tuple[int, ...], votes: dict[int, bool]) -> None:
    assert majority_verdict(voters, votes) is naive_verdict(voters, votes)


@given(MEMBERS, MEMBERS, VOTES)
def test_joint_verdict(
    voters: tuple[int, ...], outgoing: tuple[int, ...], votes: dict[int, bool]
) -> None:
    verdicts = {naive_verdict(voters, votes), naive_verdict(outgoing, votes)}
    if Verdict.LOST in verdicts:
        expected = Verdict.LOST
    elif verdicts == {Verdict.WON}:
        expected = Verdict.WON
    else:
        expected = Verdict.PENDING
    assert joint_verdict(voters, outgoing, votes) is expected


@given(MEMBERS, MEMBERS, VOTES, VOTES)
def test_two_candidates_never_both_win(
    voters: tuple[int, ...],
    outgoing: tuple[int, ...],
    first: dict[int, bool],
    second: dict[int, bool],
) -> None:
    # The reason for quorums: a member grants one of the two at most.
    second = {voter: granted and not first.get(voter) for voter, granted in second.items()}
    if voters:
        assert (
            joint_verdict(voters, outgoing, first) is not Verdict.WON
            or joint_verdict(voters, outgoing, second) is not Verdict.WON
        )


@given(MEMBERS, MEMBERS, NUMBERS, st.integers(1, 9), st.integers(0, 5))
def test_an_acknowledgement_never_takes_back(
    voters: tuple[int, ...], outgoing: tuple[int, ...], numbers: dict[int, int], who: int, more: int
) -> None:
    before = joint_acknowledged(voters, outgoing, numbers)
    numbers = {**numbers, who: numbers.get(who, 0) + more}
    assert joint_acknowledged(voters, outgoing, numbers) >= before


@given(MEMBERS, NUMBERS)
def test_strangers_do_not_count(voters: tuple[int, ...], numbers: dict[int, int]) -> None:
    only_voters = {voter: number for voter, number in numbers.items() if voter in voters}
    assert majority_acknowledged(voters, numbers) == majority_acknowledged(voters, only_voters)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([5], 5), ([5, 4], 4), ([5, 4, 3], 4), ([5, 4, 3, 2], 3), ([5, 4, 3, 2, 1], 3)],
)
def test_known_sizes(numbers: list[int], expected: int) -> None:
    # Written out once by hand, so that model and code cannot be wrong together.
    voters = tuple(range(1, len(numbers) + 1))
    assert majority_acknowledged(voters, dict(zip(voters, numbers, strict=True))) == expected
