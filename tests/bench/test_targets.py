"""Verdicts: what counts as reached, what as missed, and that faults are never hidden by them."""

from __future__ import annotations

import pytest

from bench.clusters import ETCD, KVSTORE
from bench.record import RUNNING, Part
from bench.targets import FIRST, GOAL, MISSED, OPEN, REACHED, TARGETS, Verdict, judge
from tests.bench.runs import row, run_of, scenario


def verdict(what: str, *parts: Part, missing: dict[str, str] | None = None) -> Verdict:
    """Return the one verdict with that text in its description."""
    run = run_of(*parts, missing=missing or {})
    [found] = [each for each in judge(run, KVSTORE) if what in each.target.what]
    return found


RATE = "put, 10 k keys, 10 x 50: rate"


def uniform(ours: list[float], theirs: list[float]) -> Part:
    return row("P1-uniform", {KVSTORE: ours, ETCD: theirs})


@pytest.mark.parametrize(
    ("rate", "state", "words"),
    [
        (119.0, MISSED, "MISSED"),
        (120.0, FIRST, "first reached, goal missed"),
        (199.0, FIRST, "first reached, goal missed"),
        (200.0, GOAL, "goal reached"),
    ],
)
def test_a_rate_is_judged_by_the_first_figure_and_the_goal(
    rate: float, state: str, words: str
) -> None:
    found = verdict(RATE, uniform([rate], [100.0]))

    assert (found.state, found.words) == (state, words)
    assert found.target.wanted() == "≥ 1.2x first, ≥ 2x goal"


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    found = verdict(RATE, uniform([100.0, 300.0, 900.0], [100.0, 100.0, 300.0]))

    assert (found.figure, found.spread) == ("3x", "1 to 3")
    assert (found.ours, found.theirs) == ("300 /s", "100 /s")


def test_latency_should_be_less() -> None:
    part = row("P2", {KVSTORE: [1.0], ETCD: [1.0]})
    for sample in part.of(KVSTORE):
        sample["p50_ms"] = 0.85

    assert verdict("put, 1 x 1: p50", part).state == FIRST


def test_of_a_promise_the_worst_round_counts() -> None:
    # 19 of 20 kills within the bound do not make "at most".
    rounds = [{"p50": 1.0, "max": longest} for longest in (1.5, 2.3, 1.5)]
    part = scenario("P8", {KVSTORE: rounds})

    found = verdict("writes resume, longest", part)

    assert (found.state, found.figure) == (MISSED, "2.3")
    assert verdict("writes resume, p50", part).state == REACHED


@pytest.mark.parametrize(("lost", "state"), [(0, REACHED), (1, MISSED)])
def test_a_lost_write_is_a_miss(lost: int, state: str) -> None:
    rounds = [{"acknowledged but lost": 0}, {"acknowledged but lost": lost}]

    found = verdict("writes that were lost", scenario("P8", {KVSTORE: rounds}))

    assert (found.state, found.target.wanted()) == (state, "none")


def test_events_out_of_order_are_a_miss_and_named() -> None:
    figures = {"1 x 1,000 events/s": 10, "1 x 1,000 problems": "299 events instead of 300"}
    part = scenario("P5", {KVSTORE: [figures], ETCD: [{"1 x 1,000 events/s": 5}]})

    found = verdict("missed an event", part)

    assert found.state == MISSED
    assert "299 events instead of 300" in found.remarks[0]
    assert verdict("1 x 1,000 (streams x watchers): events", part).words.endswith("WITH PROBLEMS")


def test_figures_of_members_and_calls_are_taken_together() -> None:
    ours = {"leader anonymous MiB": 100, "follower 1 anonymous MiB": 50, "count stall ms": 3.0}
    ours["HashKV stall ms"] = 101.0
    theirs = {"leader anonymous MiB": 200, "follower 1 anonymous MiB": 100}
    part = scenario("P6", {KVSTORE: [ours], ETCD: [theirs]})

    assert verdict("anonymous memory", part).figure == "0.5x"
    assert verdict("longest stall", part).state == MISSED


def test_a_share_that_rounds_up_to_the_target_is_still_a_miss() -> None:
    part = scenario("P6", {KVSTORE: [{"put/s at 10000": 1000, "put/s at 1000000": 796}]})

    found = verdict("put rate over our own", part)

    assert (found.state, found.figure) == (MISSED, "0.796")


def test_a_reached_figure_with_problems_says_so() -> None:
    part = row("P1-uniform", {KVSTORE: [300.0], ETCD: [100.0]}, problems=["an election"])

    found = verdict(RATE, part)

    assert found.words == "goal reached, WITH PROBLEMS"
    assert found.remarks == ("an election", "etcd: an election")


def test_without_a_figure_the_reason_is_given() -> None:
    alone = row("P1-uniform", {KVSTORE: [300.0]})
    gone = verdict(RATE, alone, missing={ETCD: "not installed: apt-get install etcd-server"})
    broken = Part("P1-uniform", "P1", "", "row", "failed")
    broken.failures = [{"system": KVSTORE, "round": 1, "error": "ClusterError: no leader"}]

    assert (gone.state, gone.ours) == (OPEN, "300 /s")
    assert gone.remarks == ("not installed: apt-get install etcd-server",)
    assert verdict(RATE, broken).remarks == ("round 1: ClusterError: no leader",)
    assert verdict(RATE, Part("P1-uniform", "P1", "", "row", RUNNING)).remarks == (
        "the run was broken off meanwhile",
    )
    assert verdict(RATE).remarks == ("not part of this run",)
    h2load = {"h2load": "apt-get install nghttp2-client"}
    assert verdict("one key, 10 x 50: rate", missing=h2load).remarks == tuple(h2load.values())


def test_budgets_are_flagged_at_a_fifth_above() -> None:
    states = []
    for leader_us in (30.0, 36.0, 36.1):
        part = row("P1-uniform", {KVSTORE: [1.0]}, leader_us=leader_us)
        states.append(verdict("10 k keys, 10 x 50: leader", part).state)

    assert states == [GOAL, FIRST, MISSED]


def test_every_target_of_the_design_has_a_figure() -> None:
    names = [target.name for target in TARGETS]

    assert list(dict.fromkeys(names)) == [*(f"P{n}" for n in range(1, 9)), "gate", "CPU"]
