"""The histogram of kvctl bench, against the exact values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.cli.bench.histogram import Histogram

durations = st.lists(st.floats(1e-9, 1000.0), min_size=1, max_size=200)


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(durations, st.sampled_from([0.0, 50.0, 90.0, 99.0, 99.9, 100.0]))
def test_percentiles_are_off_by_less_than_a_percent(values: list[float], percent: float) -> None:
    exact = sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]
    found = filled(values).percentile_s(percent)
    # Times are counted in whole nanoseconds.
    assert exact - 1e-9 <= found <= max(exact * 1.008 + 2e-9, exact)


@given(durations, durations)
def test_adding_is_recording_both(left: list[float], right: list[float]) -> None:
    both = filled(left)
    both.add(filled(right))
    assert both.buckets() == filled(left + right).buckets()
    assert (both.count, both.max_s, both.min_s) == (
        len(left + right),
        max(left + right),
        min(left + right),
    )


@given(durations)
def test_every_duration_is_in_one_bucket_and_one_row(values: list[float]) -> None:
    histogram = filled(values)
    assert sum(count for _, count in histogram.buckets()) == len(values)
    rows = histogram.doublings()
    assert sum(count for _, count in rows) == len(values)
    assert rows[-1][0] >= max(values) * 0.99
    edges = [edge for edge, _ in histogram.buckets()]
    assert edges == sorted(set(edges))


def test_nothing_counted() -> None:
    empty = Histogram()
    assert (empty.mean_s, empty.percentile_s(99), empty.buckets(), empty.doublings()) == (
        0.0,
        0.0,
        [],
        [],
    )


def test_memory_is_bounded() -> None:
    histogram = filled([number * 1e-6 for number in range(1, 1_000_000, 7)])
    assert len(histogram.buckets()) < 128 * 21
    assert histogram.mean_s == pytest.approx(0.5, rel=0.001)
