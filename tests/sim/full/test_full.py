"""Whole members under faults: profiles pass, states are reached, planted bugs are found.

A failure prints the command that replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.full import cluster, planted, profile
from tests.sim.full.planted import BUGS, FullBug

# The time is CPU; on a machine that is busy with other things it takes a multiple.
pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
PROFILES = tuple(name for name in profile.PROFILES if name != "calm")

REACHED_MIN = 3
SEEDS = {"rot": 7, "lmdb": 7, "members": 32, "client": 6}
"""How many of each profile in the quick suite, else 4. The disks of one run in ten fail, the power
seldom goes in the middle of a batch, and members have many states."""

REACHED = (
    "change refused: URL exists",
    "change refused: asked a learner",
    "change refused: lagging learner",
    "change refused: no such member",
    "change refused: unhealthy",
    "change with unknown outcome",
    "client gave up",
    "compacted by a client",
    "compaction under way",
    "crash inside a round of the disk thread",
    "crash at: change appended",
    "disk failed: Input/output error",
    "disk failed: No space left on device",
    "empty disk refused",
    "forwarded proposal refused",
    "isolate at: change appended",
    "leader elected",
    "leader stepped down",
    "lease expired",
    "lease granted",
    "lease renewed",
    "lease revoked by its client",
    "library: NoLeaderError",
    "library: OutcomeUnknownError",
    "library: answered",
    "library: clogged",
    "library: lease granted",
    "library: watch resumed",
    "liveness with a dead minority",
    "liveness with a deaf minority",
    "log compacted",
    "log rotted",
    "log truncated",
    "machine given to a new member",
    "member add",
    "member add learner",
    "member moved",
    "member promoted",
    "member removed",
    "membership change appended",
    "outcome unknown",
    "power cut",
    "power cut lost writes",
    "power cut with names not synced",
    "process killed",
    "read confirmed",
    "read refused",
    "refused, compacted",
    "refused, not applied",
    "removed member stopped",
    "restart with a store",
    "rotten log refused",
    "segment released",
    "segment rotated",
    "snapshot installed",
    "snapshot stream broken",
    "snapshot wanted",
    "start refused, disk full or failed",
    "states compared",
    "store committed",
    "torn tail repaired",
    "transfer asked",
    "watch cancelled by compaction",
    "watch client moved on",
    "watch client stalled",
    "watch events delivered",
    "watch progress",
)
"""States that the quick suite must have been in, several times so that a small change of the
product does not lose one by chance. A run that never gets there proves nothing."""


def test_every_profile_passes_and_every_state_is_reached() -> None:
    marks: Counter[str] = Counter()
    for name in PROFILES:
        for seed in range(10, 10 + SEEDS.get(name, 4)):
            result = cluster.run(seed, name, 2_000)
            assert result.failure is None, str(result)
            marks.update(result.marks)
    assert {name: marks[name] for name in REACHED if marks[name] < REACHED_MIN} == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROFILES)
def test_long_runs_pass(name: str) -> None:
    for seed in range(1_000, 1_004):  # `make sim` runs as many as there is time for
        result = cluster.run(seed, name, 20_000)
        assert result.failure is None, str(result)


def check_bug(bug: FullBug, seeds: tuple[int, ...]) -> None:
    for first_seed in seeds:
        hunt = planted.hunt(bug, first_seed)
        # If this fails the product is fine, the simulator has gone blind.
        assert hunt.found is not None, f"{bug.name} survived {bug.budget:,} events"
        # The unmodified product passes the seed that showed it.
        result = cluster.run(
            first_seed + hunt.runs - 1, bug.profile, bug.run_events, liveness=bug.liveness
        )
        assert result.failure is None, str(result)


def test_the_documentation_lists_the_planted_bugs() -> None:
    page = (ROOT / "docs" / "simulation.md").read_text()
    rows = [f"| {bug.name}{' (slow)' if bug.slow else ''} |" for bug in BUGS]
    assert [row for row in rows if row not in page] == []
    assert f"| {len(BUGS)} known bugs" in page


@pytest.mark.parametrize("bug", [bug for bug in BUGS if not bug.slow], ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: FullBug) -> None:
    check_bug(bug, bug.seeds[:1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "bug", [bug for bug in BUGS if bug.slow or bug.seeds[1:]], ids=lambda bug: bug.name
)
def test_a_planted_bug_is_found_from_anywhere(bug: FullBug) -> None:
    check_bug(bug, bug.seeds if bug.slow else bug.seeds[1:])  # the first is in the quick suite


def test_the_list_of_planted_bugs_covers_every_layer() -> None:
    layers = {bug.layer for bug in BUGS}
    assert layers == {
        "client",
        "compaction",
        "leases",
        "log",
        "membership",
        "peer codec",
        "proposals",
        "reads",
        "recovery",
        "snapshot",
        "store",
        "watch",
    }
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 25
    assert all(bug.imitates for bug in BUGS)


def test_a_run_is_a_function_of_its_seed() -> None:
    # The order of a set of str or bytes depends on PYTHONHASHSEED; nothing may depend on it.
    command = [
        sys.executable, "-m", "tests.sim", "--full", "--seed", "3", "--profile", "swarm",
        "--events", "1500", "--trace",
    ]  # fmt: skip
    stories = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [line for line in done.stdout.splitlines() if "s of CPU" not in line]
        stories.append(lines)
    assert len(stories[0]) > 500
    assert stories[0] == stories[1]
