"""Turns samples into a table, JSON and markdown; measures nothing, decides no exit status."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.table import Table

from bench.clusters import COMPILED, ETCD, KVSTORE
from bench.measure import Sample
from bench.workloads import BUDGET_SLACK, Workload

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    *("workload", "system", "op/s", "spread", "p50 ms", "p99 ms"),
    *("leader us/op", "follower us/op", "driver op/s", "verdict"),
)


class Measured(Protocol):
    """A sample of any benchmark."""

    command: str


S = TypeVar("S", bound=Measured)


@dataclass
class Report(Generic[S]):
    """Everything one run found."""

    facts: dict[str, str | int | float]
    command: str
    samples: list[S] = field(default_factory=list)
    scenarios: list[dict[str, object]] = field(default_factory=list)
    """What gate, failover and the others returned: name, system and figures."""

    notes: list[str] = field(default_factory=list)


def rows(report: Report[Sample], workloads: Sequence[Workload]) -> list[tuple[str, ...]]:
    """Return the table's rows: medians over the rounds."""
    result = []
    for workload in workloads:
        systems = {
            kind: [s for s in report.samples if s.workload == workload.name and s.system == kind]
            for kind in (KVSTORE, COMPILED, ETCD)
        }
        for kind, samples in systems.items():
            if samples:
                other = systems[ETCD] if kind != ETCD else []
                result.append(_row(workload, kind, samples, other))
    return result


def _row(
    workload: Workload, kind: str, samples: list[Sample], etcd: list[Sample]
) -> tuple[str, ...]:
    rate, p50, p99, leader, follower, driver = (
        _median(samples, name)
        for name in ("rate", "p50_ms", "p99_ms", "leader_us", "follower_us", "driver_rate")
    )
    low, high = min(s.rate for s in samples), max(s.rate for s in samples)
    verdicts = []
    if etcd:
        ratio, wait = rate / _median(etcd, "rate"), p50 / (_median(etcd, "p50_ms") or 1.0)
        if workload.p50_max:
            verdicts.append(_judge(f"{wait:.2f}x p50", wait <= workload.p50_max, workload.p50_max))
        else:
            good = ratio >= workload.rate_min
            verdicts.append(_judge(f"{ratio:.2f}x", good, workload.rate_min))
    if kind != ETCD:
        verdicts += over_budget(workload, leader, follower)
    verdicts += sorted({problem for sample in samples for problem in sample.problems})
    return (
        f"{workload.name}: {workload.title}",
        kind,
        f"{rate:,.0f}",
        f"{low:,.0f} to {high:,.0f}",
        f"{p50:.2f}",
        f"{p99:.2f}",
        f"{leader:.1f}",
        f"{follower:.1f}",
        f"{driver:,.0f}",
        "; ".join(verdicts),
    )


def _median(samples: Sequence[Sample], name: str) -> float:
    return float(statistics.median(getattr(sample, name) for sample in samples))


def _judge(text: str, good: bool, target: float) -> str:
    if not target:
        return text
    return f"{text} ({'reaches' if good else 'MISSES'} {target}x)"


def over_budget(workload: Workload, leader_us: float, follower_us: float) -> list[str]:
    """Return a flag for each CPU budget that is exceeded by more than a fifth."""
    found = []
    for name, cost, budget in (
        ("leader", leader_us, workload.leader_us_max),
        ("follower", follower_us, workload.follower_us_max),
    ):
        if budget and cost > budget * BUDGET_SLACK:
            found.append(f"OVER BUDGET: {name} {cost:.1f} us, budget {budget:.0f}")
    return found


def show(
    report: Report[S], table_rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS
) -> None:
    """Print the tables."""
    console = Console(width=200, highlight=False)
    console.print(", ".join(f"{name}: {value}" for name, value in report.facts.items()))
    table = Table(*columns)
    for row in table_rows:
        table.add_row(*row)
    if report.samples:
        console.print(table)
    for scenario in report.scenarios:
        console.print(_line(scenario))
    for note in report.notes:
        console.print(f"note: {note}")


def _line(scenario: dict[str, object]) -> str:
    rest = ", ".join(
        f"{name} {value:,.2f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in scenario.items()
        if name not in ("scenario", "system")
    )
    return f"{scenario['scenario']} / {scenario['system']}: {rest}"


def write(
    report: Report[S],
    table_rows: Sequence[Sequence[str]],
    name: str,
    columns: Sequence[str] = COLUMNS,
) -> Path:
    """Write NAME.json and NAME.md into bench/results; return the latter's path."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    lines = [f"# {name}", "", f"`{report.command}`", "", "| | |", "|---|---|"]
    lines += [f"| {fact} | {value} |" for fact, value in report.facts.items()]
    if report.samples:
        lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table_rows]
    if report.scenarios:
        lines += ["", *(f"- {_line(scenario)}" for scenario in report.scenarios)]
    if report.notes:
        lines += ["", *(f"Note: {note}" for note in report.notes)]
    commands = dict.fromkeys(s.command for s in report.samples if s.command)
    if commands:
        lines += ["", "Commands (ports differ per run):", "", "```", *commands, "```"]
    page = RESULTS / f"{name}.md"
    page.write_text("\n".join(lines) + "\n")
    return page
