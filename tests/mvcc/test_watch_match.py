"""The matcher against a list that is searched through, and its cost."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.mvcc.watch_match import Matcher

KEYS = st.binary(min_size=0, max_size=3).map(lambda key: bytes(byte & 3 for byte in key))


def contains(start: bytes, end: bytes | None, key: bytes) -> bool:
    if end == b"":
        return key == start
    return start <= key and (end is None or key < end)


class MatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.matcher: Matcher[object] = Matcher()
        self.ranges: dict[tuple[bytes, bytes | None], object] = {}

    @rule(start=KEYS, end=st.one_of(st.none(), KEYS))
    def add_or_remove(self, start: bytes, end: bytes | None) -> None:
        if end and end <= start:
            start, end = end, start + b"\x00"
        if (start, end) in self.ranges:
            self.matcher.remove(start, end)
            del self.ranges[start, end]
        else:
            self.ranges[start, end] = item = (start, end)
            self.matcher.add(start, end, item)

    @rule(key=KEYS)
    def match(self, key: bytes) -> None:
        expected = {place for place in self.ranges if contains(*place, key)}
        found = self.matcher.match(key)
        assert len(found) == len(expected)  # each once
        assert set(found) == expected

    @invariant()
    def knows_its_ranges(self) -> None:
        assert len(self.matcher) == len(self.ranges)
        for place, item in self.ranges.items():
            assert self.matcher.get(*place) is item


TestMatcherMachine = MatcherMachine.TestCase


def depth(node: object) -> int:
    return 0 if node is None else 1 + max(depth(node.left), depth(node.right))  # type: ignore[attr-defined]


def test_ascending_ranges_make_no_deep_tree() -> None:
    # Watchers of numbered prefixes come in order; recursion must not run out on them.
    matcher: Matcher[int] = Matcher()
    for number in range(20_000):
        matcher.add(b"/%08d/" % number, b"/%08d0" % number, number)

    assert depth(matcher._tree) < 60 < sys.getrecursionlimit()
    assert matcher.match(b"/00012345/x") == [12345]

    for number in range(20_000):
        matcher.remove(b"/%08d/" % number, b"/%08d0" % number)
    assert matcher._tree is None


@given(st.integers(1, 300))
def test_a_match_visits_few_of_disjoint_ranges(seed: int) -> None:
    # Counts comparisons instead of time: O(log n) for a key in one of many disjoint ranges.
    class Counted(bytes):
        compared = 0

        def __lt__(self, other: bytes) -> bool:
            Counted.compared += 1
            return super().__lt__(other)

        def __ge__(self, other: bytes) -> bool:
            Counted.compared += 1
            return super().__ge__(other)

    matcher: Matcher[int] = MATCHER
    Counted.compared = 0
    assert matcher.match(Counted(b"/%08d/x" % seed)) == [seed]
    assert Counted.compared < 150


MATCHER: Matcher[int] = Matcher()
for _number in range(4096):
    MATCHER.add(b"/%08d/" % _number, b"/%08d0" % _number, _number)
