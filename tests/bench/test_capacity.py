"""The model of put throughput: what bounds it where."""

from __future__ import annotations

import pytest

from bench.capacity import IN_FLIGHT, Parts, fsync_s, load, round_trip_s

PARTS = Parts(
    fsync_s=300e-6,
    round_trip_s=50e-6,
    leader_s=20e-6,
    follower_s=10e-6,
    driver_s=5e-6,
    single_s=100e-6,
    cores=2,
)


def test_one_put_waits_for_two_round_trips_and_an_fsync() -> None:
    rate, limit = PARTS.predict(1)
    assert rate == pytest.approx(1 / 500e-6)
    assert limit == "waiting"


def test_many_puts_are_bound_by_all_processes_together() -> None:
    rate, limit = PARTS.predict(1000)
    assert rate == pytest.approx(2 / 45e-6)
    assert limit == "CPU of all"


@pytest.mark.parametrize("in_flight", IN_FLIGHT)
def test_a_load_has_that_many_in_flight(in_flight: int) -> None:
    wanted = load(in_flight, 1.0)
    assert wanted.connections * wanted.streams == in_flight


def test_the_parts_are_measured() -> None:
    assert 0 < round_trip_s() < 0.1
    assert 0 < fsync_s(None) < 1
