"""The core under random faults: profiles pass, states are reached, planted bugs are found.

A failure prints the command that replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from kvstore.raft.config import Config, Restored
from kvstore.raft.raft import Raft
from tests.sim import cluster, planted
from tests.sim.cluster import Parts
from tests.sim.invariants import DURABLE_FIRST, LINEARIZABLE, REAL_TIME
from tests.sim.planted import BUGS, PlantedBug
from tests.sim.profile import POINTS

pytestmark = pytest.mark.sim

PROFILES = ("swarm", "election", "disk", "snapshot", "network", "membership", "figure8")

REACHED = (
    "append rejected",
    "client gave up",
    "election lost",
    "forwarded proposal refused",
    "leader elected",
    "leader stepped down",
    "liveness with a dead minority",
    "liveness with a deaf minority",
    "log compacted",
    "log truncated",
    "membership changed",
    "outcome unknown",
    "pre-vote granted",
    "pre-vote refused",
    "proposal forwarded",
    "proposal refused: NotLeader",
    "proposal refused: Overloaded",
    "proposal refused: Transferring",
    "propose_change refused",
    "read forwarded",
    "read refused",
    "read waited for apply",
    "restart",
    "snapshot failed",
    "snapshot installed",
    "snapshot turned away",
    "transfer aborted",
    "transfer asked",
    "vote refused",
)
"""States that the quick suite must have been in. A run that never gets there proves nothing."""


def test_every_profile_passes_and_every_state_is_reached() -> None:
    marks: Counter[str] = Counter()
    for profile in PROFILES:
        for seed in range(14):
            result = cluster.run(seed, profile, 3_000)
            assert result.failure is None, str(result)
            marks.update(result.marks)
    # Each point of a state-triggered fault too: "crash at: vote sent" and so on.
    struck = {name.partition(": ")[2] for name in marks if " at: " in name}
    assert [name for name in REACHED if not marks[name]] == []
    assert [name for name in POINTS if name not in struck] == []


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_long_runs_pass(profile: str) -> None:
    for seed in range(1_000, 1_008):
        result = cluster.run(seed, profile, 60_000)
        assert result.failure is None, str(result)


def check_bug(bug: PlantedBug) -> None:
    for first_seed in bug.seeds:
        hunt = planted.hunt(bug, first_seed)
        # If this fails the product is fine, the simulator has gone blind.
        assert hunt.found is not None, f"{bug.name} survived {bug.budget:,} events"
        # The unmodified core passes the same seeds, with every invariant on.
        for seed in range(first_seed, first_seed + hunt.runs):
            result = cluster.run(seed, bug.profile, bug.run_events, liveness=False)
            assert result.failure is None, str(result)


@pytest.mark.parametrize("bug", [bug for bug in BUGS if not bug.slow], ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: PlantedBug) -> None:
    check_bug(bug)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.slow], ids=lambda bug: bug.name)
def test_a_planted_bug_that_hides_well_is_found(bug: PlantedBug) -> None:
    check_bug(bug)


def named(name: str) -> PlantedBug:
    [bug] = [bug for bug in BUGS if bug.name == name]
    return bug


def test_an_early_answer_is_seen_when_it_leaves() -> None:
    # In the hunts above this invariant is off, because it sees the cause and not the consequence.
    bug = replace(named("append answered before fsync"), off=frozenset(), budget=2_000)
    found = planted.hunt(bug, 1).found
    assert found is not None
    assert found.failure is not None
    assert found.failure.name == DURABLE_FIRST


def test_the_clients_history_alone_convicts_a_stale_read() -> None:
    # Without the invariant that knows log indexes, what the clients saw must be enough.
    bug = replace(named("local read without quorum"), off=frozenset((REAL_TIME,)))
    found = planted.hunt(bug, 4_000).found
    assert found is not None
    assert found.failure is not None
    assert found.failure.name == LINEARIZABLE


def test_entries_of_a_quorum_of_others_may_be_applied_before_the_own_fsync() -> None:
    # Design decision 3. The live state may then run ahead of the own log; it is gone after a
    # crash, back to the durable store, which never does. Every invariant must hold all the same.
    def core(config: Config, restored: Restored) -> Raft:
        return Raft(replace(config, apply_before_durable=True), restored)

    marks: Counter[str] = Counter()
    for profile in ("disk", "election", "swarm", "snapshot"):
        for seed in range(100, 110):
            result = cluster.run(seed, profile, 4_000, parts=Parts(core=core))
            assert result.failure is None, str(result)
            marks.update(result.marks)
    # It did happen, else this test says nothing.
    assert marks["crash with applied entries not durable"] > 20


def test_a_store_ahead_of_its_log_is_found() -> None:
    # The other half of decision 3: the store's commit has to wait for the log.
    def core(config: Config, restored: Restored) -> Raft:
        return Raft(replace(config, apply_before_durable=True), restored)

    parts = Parts(core=core, disk=planted.TrustingDisk, process=planted.CommitsStoreEarly)
    bug = PlantedBug("store ahead of log", parts, "disk", 5_000, 50_000, ())
    assert planted.hunt(bug, 1).found is not None


def replay(seed: int, profile: str, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--seed", str(seed), "--profile", profile]
        + ["--events", "3000", "--trace"],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    # All but the speed, which is the one line that is not a function of the seed.
    return "\n".join(line for line in done.stdout.splitlines() if "events/s" not in line)


@pytest.mark.parametrize(("seed", "profile"), [(3, "membership"), (5, "swarm")])
def test_a_seed_replays_whatever_the_hash_seed(seed: int, profile: str) -> None:
    first, second = replay(seed, profile, "1"), replay(seed, profile, "4711")
    assert "digest" in first
    assert first.count("\n") > 3_000
    assert first == second


def test_seeds_differ() -> None:
    assert len({cluster.run(seed, "calm", 500).digest for seed in range(5)}) == 5


def test_a_failure_says_how_to_replay_it() -> None:
    found = planted.hunt(named("vote without log check"), 1_000).found
    assert found is not None
    text = str(found)
    assert f"python -m tests.sim --seed {found.seed} --profile election --events 5000" in text
    assert "# commit " in text
    assert "FAILED: leader completeness" in text
