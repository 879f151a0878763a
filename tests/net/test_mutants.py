"""A named test turns red when the product has the bug that the test is there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import ROOT

MUTANTS = Path(__file__).parent / "mutants"
BUGS = {
    "no-sweep": "tests/net/test_agents.py::"
    "test_what_a_departed_peer_left_is_swept_when_the_agent_comes_back",
    "deaf": "tests/net/test_drift.py::"
    "test_what_is_seen_broken_is_whole_within_a_second[neighbours are flushed]",
    "kernel-before-view": "tests/net/test_agents.py::"
    "test_an_agent_that_ends_and_comes_back_costs_no_packet_and_touches_nothing[SIGKILL]",
    "wrong-fdb": "tests/net/test_registry.py::"
    "test_hosts_of_flannel_and_ours_share_one_network_on_any_registry[kvstore]",
    "regress-unguarded": "tests/net/test_registry.py::"
    "test_a_registry_that_lost_its_memory_costs_no_packet[be_empty]",
    "compaction-ignored": "tests/net/test_registry.py::"
    "test_changes_that_a_compaction_hides_are_not_missed",
    "junk-empties": "tests/net/test_registry.py::test_junk_changes_nothing_and_hides_nobody",
    "nft-deaf": "tests/net/test_firewall.py::"
    "test_a_foreign_flush_of_everything_is_healed_within_a_tenth_of_a_second",
    "vtep-late": "tests/net/test_firewall.py::"
    "test_a_host_is_let_in_before_there_is_a_route_to_it_and_kept_out_after",
    "gate-open": "tests/net/test_firewall.py::"
    "test_an_agent_that_starts_lets_hosts_in_before_there_are_routes_to_them",
    "nothing-remembered": "tests/net/test_agents.py::"
    "test_after_a_reboot_without_a_registry_the_remembered_network_comes_back",
    "clones-welcome": "tests/net/test_refusals.py::"
    "test_a_cloned_machine_id_is_refused_and_nobody_is_disturbed",
    "no-compare": "tests/netplane/subnet/test_claiming.py::"
    "test_a_host_that_comes_to_life_at_the_last_moment_is_not_taken_over[kvstore]",
}
"""Docs/testing.md lists the same."""

ALONE = {"deaf", "kernel-before-view"}
"""Those whose test is: on a busy machine it would fail without a bug."""


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=[pytest.mark.alone] if bug in ALONE else []) for bug in BUGS],
)
def test_a_planted_bug_turns_a_named_test_red(bug: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", BUGS[bug]],
        cwd=ROOT,
        env=os.environ | {"NETPLANE_MUTANT": bug, "PYTHONPATH": f"{MUTANTS}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    # Failed by what it asserts: an error of its set-up would show nothing.
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"FAILED {BUGS[bug]}" in done.stdout, done.stdout
    assert "\n1 failed in" in done.stdout, done.stdout


def test_the_documentation_lists_them() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    for bug, test in BUGS.items():
        name = test.partition("::")[2].partition("[")[0]
        assert f"| {bug} | `{name}`" in page
