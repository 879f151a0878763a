"""The targets P1 to P8, the gate, the CPU budgets, and what a run says of each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.clusters import ETCD
from bench.fanout import SHAPES
from bench.gate import PUT_P99_MAX_MS
from bench.record import STOPPED, WAITING, Part, Run
from bench.workloads import BUDGET_SLACK, workloads

GOAL, FIRST, REACHED, MISSED, OPEN = "goal", "first", "reached", "missed", "open"
"""Verdicts. FIRST: the first figure is reached, the goal is not. REACHED: there is one figure only.
OPEN: nothing to judge."""

WORDS = {
    GOAL: "goal reached",
    FIRST: "first reached, goal missed",
    REACHED: "reached",
    MISSED: "MISSED",
    OPEN: "not measured",
}

Read = Callable[[dict[str, Any]], float | None]
"""Returns the figure of one sample, None when it has none."""


@dataclass(frozen=True)
class Target:
    """One figure that is wanted."""

    name: str
    """P1 to P8, gate, CPU."""

    part: str
    """Which part of a run measures it."""

    what: str
    read: Read
    first: float
    goal: float | None = None
    unit: str = ""
    is_ratio: bool = True
    """Over etcd's figure in the same run; else of our figure alone."""

    is_least: bool = False
    """The figure should be at least that much; else at most."""

    is_promise: bool = False
    """It must hold always: the worst round counts, not the median."""

    def wanted(self) -> str:
        """Return the target as text: first, then the goal."""
        if self.first == 0:
            return "none"
        sign = "≥" if self.is_least else "≤"
        first, *goal = (f"{sign} {number(bound)}{self.suffix}" for bound in self._bounds)
        return f"{first} first, {goal[0]} goal" if goal else first

    @property
    def suffix(self) -> str:
        """What stands behind a figure: x is a ratio to etcd's."""
        return "x" if self.is_ratio else f" {self.unit}".rstrip()

    @property
    def _bounds(self) -> list[float]:
        return [self.first] if self.goal in (None, self.first) else [self.first, self.goal]

    def state(self, figure: float) -> str:
        """Return how a figure stands to the target."""

        def holds(bound: float) -> bool:
            return figure >= bound if self.is_least else figure <= bound

        if self.goal is None or self.goal == self.first:
            return REACHED if holds(self.first) else MISSED
        return GOAL if holds(self.goal) else FIRST if holds(self.first) else MISSED


@dataclass(frozen=True)
class Verdict:
    """What a run says of a target, as texts; empty where there is nothing to say."""

    target: Target
    state: str
    figure: str = ""
    spread: str = ""
    ours: str = ""
    theirs: str = ""
    remarks: tuple[str, ...] = ()
    """Why there is no figure, or what was wrong with the measurements behind it."""

    @property
    def words(self) -> str:
        """The verdict in words: a figure from faulty measurements is not simply reached."""
        faulty = self.remarks and self.state not in (MISSED, OPEN)
        return WORDS[self.state] + (", WITH PROBLEMS" if faulty else "")


def number(value: float) -> str:
    """Return a figure with three digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def judge(run: Run, ours: str) -> list[Verdict]:
    """Return the verdict on every target for one of our forms."""
    return [_judge(run, target, ours) for target in TARGETS]


def _judge(run: Run, target: Target, ours: str) -> Verdict:
    part = run.part(target.part)
    if part is None:
        tool = target.part.partition("-")[2]
        why = run.missing.get(tool, "not part of this run")
        return Verdict(target, OPEN, remarks=(why,))
    mine, theirs = _by_round(part, ours, target.read), _by_round(part, ETCD, target.read)
    problems = part.problems(ours)
    if target.is_ratio:
        problems += [f"etcd: {problem}" for problem in part.problems(ETCD)]
    our_text, their_text = (
        f"{number(statistics.median(found.values()))} {target.unit}".rstrip() if found else ""
        for found in (mine, theirs)
    )
    if not mine or (target.is_ratio and not theirs):
        why = _why(run, part, ours if not mine else ETCD)
        remarks = tuple(problems) or (why,)
        return Verdict(target, OPEN, ours=our_text, theirs=their_text, remarks=remarks)
    if not target.is_ratio:
        found = list(mine.values())
        worst = min(found) if target.is_least else max(found)
        figure = worst if target.is_promise else statistics.median(found)
    else:
        base = statistics.median(theirs.values())
        if base <= 0:
            return Verdict(target, OPEN, ours=our_text, remarks=("etcd's figure is 0",))
        figure = statistics.median(mine.values()) / base
        found = [mine[key] / theirs[key] for key in mine if theirs.get(key)]
    spread = f"{number(min(found))} to {number(max(found))}" if len(found) > 1 else ""
    return Verdict(
        target,
        target.state(figure),
        figure=f"{number(figure)}{target.suffix}",
        spread=spread,
        ours=our_text,
        theirs=their_text,
        remarks=tuple(problems),
    )


def _by_round(part: Part, system: str, read: Read) -> dict[int, float]:
    found = {sample["round"]: read(sample) for sample in part.of(system)}
    return {key: value for key, value in found.items() if value is not None}


def _why(run: Run, part: Part, system: str) -> str:
    """Return why a part has no figure of a system."""
    if system in run.missing:
        return run.missing[system]
    if part.state == WAITING:
        return "the run was broken off before"
    if part.state == STOPPED or part in run.unfinished():
        return "the run was broken off meanwhile"
    return f"{system} was not measured"


def _field(name: str) -> Read:
    return lambda sample: sample.get(name)


def _figure(name: str) -> Read:
    return lambda sample: sample["figures"].get(name)


def _over(choose: Callable[[list[float]], float], wanted: Callable[[str], bool]) -> Read:
    """Return what takes all figures with certain names together; none without any."""

    def read(sample: dict[str, Any]) -> float | None:
        found = [value for name, value in sample["figures"].items() if wanted(name)]
        return choose(found) if found else None

    return read


def _kept_share(what: str) -> Read:
    """Return what finds the rate with many keys over that with few; figures are in that order."""

    def read(sample: dict[str, Any]) -> float | None:
        figures = sample["figures"]
        rates = [figures[name] for name in figures if name.startswith(f"{what}/s at ")]
        return rates[1] / rates[0] if len(rates) == 2 else None

    return read


def _count_problems(sample: dict[str, Any]) -> int:
    return sum(name.endswith("problems") for name in sample["figures"])


def _rows() -> list[Target]:
    found = []
    for row in workloads(1.0, 1):
        name = row.name.split("-")[0]
        if row.rate_min:
            found.append(
                Target(
                    *(name, row.name, f"{row.title}: rate", _field("rate"), row.rate_min),
                    goal=row.rate_goal or None,
                    unit="/s",
                    is_least=True,
                )
            )
        for field, first, goal in (("p50", row.p50_max, row.p50_goal), ("p99", row.p99_max, 0)):
            if first:
                read = _field(f"{field}_ms")
                title = f"{row.title}: {field}"
                found.append(Target(name, row.name, title, read, first, goal or None, unit="ms"))
    return found


def _budgets() -> list[Target]:
    return [
        Target(
            *("CPU", row.name, f"{row.title}: {who}, per operation", _field(f"{who}_us")),
            first=round(budget * BUDGET_SLACK, 1),
            goal=budget,
            unit="us",
            is_ratio=False,
        )
        for row in workloads(1.0, 1)
        for who, budget in (("leader", row.leader_us_max), ("follower", row.follower_us_max))
        if budget
    ]


def _fanout() -> list[Target]:
    found = []
    for shape in SHAPES:
        events, delivery = _figure(f"{shape} events/s"), _figure(f"{shape} delivery p50 ms")
        title = f"watchers, {shape} (streams x watchers)"
        found += [
            Target("P5", "P5", f"{title}: events", events, 1.0, unit="/s", is_least=True),
            Target("P5", "P5", f"{title}: delivery p50", delivery, 1.0, unit="ms"),
        ]
    return found


def _promise(name: str, what: str, read: Read, most: float, unit: str = "") -> Target:
    return Target(name, name, what, read, most, unit=unit, is_ratio=False, is_promise=True)


TARGETS: tuple[Target, ...] = (
    *_rows(),
    *_fanout(),
    _promise("P5", "watchers that missed an event or the order", _count_problems, 0),
    Target(
        *("P6", "P6", "a million keys: anonymous memory of all members"),
        _over(sum, lambda name: name.endswith("anonymous MiB")),
        first=0.6,
        unit="MiB",
    ),
    Target(
        "P6",
        "P6",
        "a million keys: restart of one member to serving",
        _figure("one member restart s"),
        0.7,
        unit="s",
    ),
    Target(
        "P6",
        "P6",
        "a million keys: restart of the cluster to serving",
        _figure("cluster restart s"),
        0.7,
        unit="s",
    ),
    *(
        Target(
            *(
                "P6",
                "P6",
                f"a million keys: {what} rate over our own with 10 k keys",
                _kept_share(what),
                0.8,
            ),
            is_ratio=False,
            is_least=True,
        )
        for what in ("put", "range")
    ),
    _promise(
        "P6",
        "a million keys: longest stall of others by calls that touch all",
        _over(max, lambda name: name.endswith("stall ms")),
        100.0,
        "ms",
    ),
    Target(
        "P7",
        "P7",
        "10,000 leases: CPU of all members",
        _figure("all CPU ms per s"),
        1.0,
        unit="ms/s",
    ),
    _promise("P7", "10,000 leases: log entries in steady state", _figure("log entries"), 0),
    Target(
        *(
            "P8",
            "P8",
            "leader killed: election timeouts until writes resume, p50",
            _figure("p50"),
            1.4,
        ),
        is_ratio=False,
    ),
    _promise(
        "P8", "leader killed: election timeouts until writes resume, longest", _figure("max"), 2.2
    ),
    _promise("P8", "acknowledged writes that were lost", _figure("acknowledged but lost"), 0),
    _promise("P8", "refused writes that appeared", _figure("refused but present"), 0),
    _promise(
        "gate",
        "reads saturate a member: put p99",
        _over(max, lambda name: name.endswith(": put p99 ms")),
        PUT_P99_MAX_MS,
        "ms",
    ),
    _promise(
        "gate",
        "reads saturate a member: elections",
        _over(sum, lambda name: name.endswith(": elections")),
        0,
    ),
    *_budgets(),
)
