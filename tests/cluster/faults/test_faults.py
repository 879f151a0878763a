"""The matrix of faults, a run for each cell; `python -m tests.cluster.faults` runs single ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.faults.cells import CELLS
from tests.cluster.faults.namespaces import Namespaces, missing
from tests.cluster.faults.planted import BUGS
from tests.cluster.faults.proxies import Proxies
from tests.cluster.faults.run import Report
from tests.conftest import TABLE

SEED = 1
"""Of what is drawn; the times are the machine's, so no two runs are the same."""

HUNT_RUNS = 3
"""A planted bug must show within as many runs: on a slow machine one run has few operations."""

QUICK = ("cut-leader",)
"""Of the quick suite: an election, clients on both sides, and the whole machinery."""

WITHOUT_ROOT = (
    "kill-leader", "cut-leader-in", "cut-follower-out", "minority-leader-of-five",
    "replace-through-learner",
)  # fmt: skip
"""Cells that root runs through the proxies as well, so that these do not rot."""

RUN_TIMEOUT_S = 400

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(RUN_TIMEOUT_S + 20)]


def start(
    name: str, network: str, logs: Path, *more: str, seed: int = SEED
) -> subprocess.CompletedProcess[str]:
    """Run a cell in a process of its own."""
    if network == Namespaces.kind or CELLS[name].needs_root:
        reason = missing()
        if reason is not None:
            pytest.skip(reason)
    return subprocess.run(
        [
            sys.executable, "-m", "tests.cluster.faults",
            "--cell", name, "--seed", str(seed), "--network", network, "--logs", str(logs), *more,
        ],
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip


def usual_network() -> str:
    return Namespaces.kind if missing() is None else Proxies.kind


def cells() -> list[object]:
    """Return each cell with the network it has here, and some through the proxies."""
    usual = usual_network()
    found: list[object] = []
    for name in CELLS:
        marks = [] if name in QUICK else [pytest.mark.slow]
        found.append(pytest.param(name, usual, marks=marks, id=name))
    if usual == Namespaces.kind:
        found.extend(
            pytest.param(name, Proxies.kind, marks=pytest.mark.slow, id=f"{name}-proxy")
            for name in WITHOUT_ROOT
        )
    return found


@pytest.mark.parametrize(("name", "network"), cells())
def test_promises_hold_under(
    name: str,
    network: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    done = start(name, network, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}\nlogs: {tmp_path}"
    record_property(TABLE + "faults", [Report.HEAD, done.stdout.splitlines()[2]])


@pytest.mark.slow
@pytest.mark.timeout(HUNT_RUNS * RUN_TIMEOUT_S + 20)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    # If this fails the product is fine, the runs have gone blind.
    for seed in range(SEED, SEED + HUNT_RUNS):
        done = start(BUGS[bug].cell, usual_network(), tmp_path, "--bug", bug, seed=seed)
        if done.returncode:
            break
    assert done.returncode == 1, f"{bug} survived:\n{done.stdout}"
    assert re.search(BUGS[bug].shows, done.stdout), done.stdout


def test_every_cell_has_a_name_of_its_own_and_says_what_it_does() -> None:
    assert all(re.fullmatch(r"[a-z-]+", name) for name in CELLS)
    # Two cells with one fault differ in the members; nothing is run twice.
    assert len({(cell.fault, cell.nodes) for cell in CELLS.values()}) == len(CELLS)
