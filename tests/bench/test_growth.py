"""Growth series: what counts as growing, and that each dimension measures what it names."""

from __future__ import annotations

import asyncio

import pytest

from bench import growth
from bench.growth import DIMENSIONS, Series, Table, fitting


def series(flat: bool, *costs_us: float) -> Series:
    sizes = (10, 100, 1000)
    return Series("keys", "put", flat, dict(zip(sizes, costs_us, strict=False)))


@pytest.mark.parametrize(
    ("flat", "costs", "growth", "grows"),
    [
        (True, (20.0, 21.0, 22.0), 0.02, False),
        (True, (20.0, 60.0, 200.0), 0.5, True),
        (False, (20.0, 200.0, 2000.0), 1.0, False),
        (False, (20.0, 2000.0, 200_000.0), 2.0, True),
        (True, (20.0,), 0.0, False),
    ],
)
def test_growth_is_the_exponent_over_the_whole_range(
    flat: bool, costs: tuple[float, ...], growth: float, grows: bool
) -> None:
    measured = series(flat, *costs)
    assert measured.growth == pytest.approx(growth, abs=0.01)
    assert ("GROWS" in measured.row()[-1]) is grows


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("name", DIMENSIONS)
def test_each_dimension_measures_every_size(name: str) -> None:
    dimension, _ = DIMENSIONS[name]
    table = Table(name)
    asyncio.run(dimension(table, (16, 32), 0.05))
    assert table.series
    for measured in table.series.values():
        assert list(measured.costs_us) == [16, 32]
        assert all(cost > 0 for cost in measured.costs_us.values())


def test_sizes_that_do_not_fit_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(growth, "QUOTA_BYTES", 2 << 30)
    monkeypatch.setattr(growth, "affordable", lambda wanted: min(wanted, 5000))

    keys, left_out = fitting("keys")
    clients, too_many = fitting("clients")
    few, asked = fitting("leases", 1000)

    assert keys == [10_000, 100_000, 1_000_000]
    assert left_out == [
        "growth, 5,000,000 keys left out: they want 4.8 GiB of quota, 2.0 are there"
    ]
    assert clients == [1, 10, 100, 1000]
    assert "5,000 clients left out: this process may open 5,000 connections" in too_many[0]
    assert few == [1000]
    assert len(asked) == 2
