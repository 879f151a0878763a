"""A histogram of durations with bounded memory and under 1 % error; does no timing itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

_STEP_BITS = 7
_STEPS = 1 << _STEP_BITS
"""Buckets in one doubling: a value is at most 1/128 below its bucket's upper edge."""


class Histogram:
    """Counts durations in buckets that grow with the value, as HdrHistogram does."""

    __slots__ = ("_counts", "count", "max_s", "min_s", "sum_s")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.sum_s = 0.0
        self.min_s = math.inf
        self.max_s = 0.0

    def record(self, duration_s: float) -> None:
        """Count one duration; below a nanosecond is a nanosecond."""
        assert duration_s >= 0
        value = max(int(duration_s * 1e9), 1)
        shift = max(value.bit_length() - _STEP_BITS - 1, 0)
        index = (shift << _STEP_BITS) + (value >> shift)
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1
        self.count += 1
        self.sum_s += duration_s
        self.min_s = min(self.min_s, duration_s)
        self.max_s = max(self.max_s, duration_s)

    def add(self, other: Histogram) -> None:
        """Count everything that the other one has counted."""
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self.count += other.count
        self.sum_s += other.sum_s
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)

    @property
    def mean_s(self) -> float:
        """The exact mean; 0 when nothing was counted."""
        return self.sum_s / self.count if self.count else 0.0

    def percentile_s(self, percent: float) -> float:
        """Return a duration that `percent` of all do not exceed; 0 when nothing was counted."""
        rank = max(math.ceil(self.count * percent / 100), 1)
        for edge_s, _, below in self._cumulative():
            if below >= rank:
                return min(edge_s, self.max_s)
        return self.max_s

    def buckets(self) -> list[tuple[float, int]]:
        """Return upper edge in seconds and count of each bucket that is not empty, ascending."""
        return [(edge_s, count) for edge_s, count, _ in self._cumulative()]

    def doublings(self) -> list[tuple[float, int]]:
        """Return the counts by powers of two of a microsecond: few rows, for people."""
        if not self.count:
            return []
        counts: dict[int, int] = {}
        for edge_s, count, _ in self._cumulative():
            power = max(math.ceil(math.log2(min(edge_s, self.max_s) * 1e6)), 0)
            counts[power] = counts.get(power, 0) + count
        span = range(min(counts), max(counts) + 1)
        return [(2.0**power / 1e6, counts.get(power, 0)) for power in span]

    def _cumulative(self) -> Iterator[tuple[float, int, int]]:
        below = 0
        for index in sorted(self._counts):
            count = self._counts[index]
            below += count
            yield _edge_s(index), count, below


def _edge_s(index: int) -> float:
    """Return the upper edge of a bucket."""
    shift = max((index >> _STEP_BITS) - 1, 0)
    value = index - (shift << _STEP_BITS)
    return ((value + 1) << shift) / 1e9
