"""Agents race for few subnets under faults; what is wrong with that must be found.

A failure replays by its seed: `run(SEED, EVENTS)` of `tests.netplane.subnet.sim`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

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
    "agent: killed",
    "agent: has a subnet",
    "agent: SubnetMisfitError",  # the last, as a network that gets IPv6 is none
)
"""States without which the runs prove nothing."""


def check_seeds(first: int, count: int, *, settle: bool = True, **options: Any) -> None:
    marks: Counter[str] = Counter()
    for seed in range(first, first + count):
        result = sim.run(seed, EVENTS, settle=settle, **options)
        assert result.failure is None, str(result)
        marks.update(result.marks)
    reached = REACHED if settle else REACHED[:-1]
    assert [name for name in reached if not marks[name]] == []


def test_racing_agents_never_share_or_overlap_a_subnet() -> None:
    check_seeds(1, 6)


def test_racing_agents_never_share_or_overlap_a_subnet_of_either_family() -> None:
    check_seeds(5, 3, configs=sim.BOTH)


def test_racing_agents_share_nothing_while_their_network_gets_and_loses_ipv6() -> None:
    check_seeds(1, 3, settle=False, configs=sim.MIXED)


def test_a_run_is_a_function_of_its_seed() -> None:
    # In another process a set of str or bytes has another order, and so has one of objects.
    program = (
        "from tests.netplane.subnet import sim;"
        f"run = sim.run(5, {EVENTS}, configs=sim.BOTH);"
        "print(run.events, sorted(run.marks.items()))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1
    assert "agent: has a subnet" in said.pop()


@pytest.mark.slow
@pytest.mark.parametrize(("configs", "settle"), [(sim.BOTH, True), (sim.MIXED, False)])
def test_racing_agents_share_nothing_of_either_family_in_many_runs(
    configs: tuple[bytes, ...], settle: bool
) -> None:
    check_seeds(1_000, 12, settle=settle, configs=configs)


@pytest.mark.slow
def test_racing_agents_never_share_or_overlap_a_subnet_in_many_runs() -> None:
    check_seeds(1_000, 25)


@pytest.mark.parametrize("first_seed", [1_000, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("bug", "configs", "found", "events_max"),
    [
        (sim.Careless, sim.CONFIGS, sim.STOLEN, 60_000),
        (sim.Forgetful, sim.CONFIGS, sim.OVERLAP, 200_000),
        (sim.Unmarked, sim.BOTH, sim.OVERLAP, 100_000),
    ],
)
def test_a_compare_left_out_of_the_transaction_is_found(
    bug: Callable[..., EtcdRegistry],
    configs: tuple[bytes, ...],
    found: str,
    events_max: int,
    first_seed: int,
) -> None:
    # If this fails the product is fine, the simulator has gone blind.
    events, seed = 0, first_seed
    while events < events_max:
        result = sim.run(seed, 4_000, bug, settle=False, configs=configs)
        if result.failure is not None:
            break
        events += result.events
        seed += 1
    assert result.failure is not None, f"it survived {events:,} events"
    assert result.failure.name == found
    # The unmodified product passes the seed that showed it.
    right = sim.run(seed, 4_000, settle=False, configs=configs)
    assert right.failure is None, str(right)
