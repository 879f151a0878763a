"""Agents race for few subnets under faults; what is wrong with that must be found.

A failure replays by its seed: `run(SEED, EVENTS)` of `tests.netplane.subnet.sim`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from netplane.subnet.etcd import EtcdRegistry
from tests.netplane.subnet import sim

# The time is CPU; on a machine that is busy with other things it takes a multiple.
pytestmark = [pytest.mark.sim, pytest.mark.pure_python, pytest.mark.timeout(600)]

EVENTS = 6_000
REACHED = (
    "agent: OutcomeUnknownError",
    "agent: UnavailableError",
    "agent: ConfigError",
    "agent: SubnetMisfitError",
    "agent: killed",
    "agent: has a subnet",
)
"""States without which the runs prove nothing."""


def check_seeds(first: int, count: int) -> None:
    marks: Counter[str] = Counter()
    for seed in range(first, first + count):
        result = sim.run(seed, EVENTS)
        assert result.failure is None, str(result)
        marks.update(result.marks)
    assert [name for name in REACHED if not marks[name]] == []


def test_racing_agents_never_share_or_overlap_a_subnet() -> None:
    check_seeds(1, 10)


@pytest.mark.slow
def test_racing_agents_never_share_or_overlap_a_subnet_in_many_runs() -> None:
    check_seeds(1_000, 100)


@pytest.mark.parametrize("first_seed", [1, 100, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("bug", "found", "events_max"),
    [(sim.Careless, sim.STOLEN, 20_000), (sim.Forgetful, sim.OVERLAP, 200_000)],
)
def test_a_compare_left_out_of_the_transaction_is_found(
    bug: Callable[..., EtcdRegistry], found: str, events_max: int, first_seed: int
) -> None:
    # If this fails the product is fine, the simulator has gone blind.
    events, seed = 0, first_seed
    while events < events_max:
        result = sim.run(seed, 4_000, bug, settle=False)
        if result.failure is not None:
            break
        events += result.events
        seed += 1
    assert result.failure is not None, f"it survived {events:,} events"
    assert result.failure.name == found
    # The unmodified product passes the seed that showed it.
    right = sim.run(seed, 4_000, settle=False)
    assert right.failure is None, str(right)
