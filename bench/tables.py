"""A run as tables of texts, for the terminal, the markdown report and the page alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import rivals
from bench.growth import COLUMNS as GROWTH_COLUMNS
from bench.growth import Series
from bench.record import GROWTH, RIVALS, ROW, SCENARIO, Part, Run, values
from bench.targets import MISSED, OPEN, Verdict, judge, number

IN_WORDS = {"waiting": "not run", "running": "broken off", "stopped": "broken off"}


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and rows of as many texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(run: Run) -> list[Table]:
    """Return everything; tables without rows are left out."""
    every = [
        *(verdict_table(run, ours) for ours in run.ours()),
        rows_table(run),
        *(scenario_table(run, part) for part in run.of_kind(SCENARIO)),
        *(rivals_table(run, part) for part in run.parts if part.kind == RIVALS),
        growth_table(run),
        Table("Machine", ("", ""), pairs(run.machine)),
        Table("Versions", ("", ""), pairs(run.versions)),
        parts_table(run),
    ]
    return [table for table in every if table.rows]


def pairs(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values as texts."""
    return [(name, str(value)) for name, value in found.items()]


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return how many of the targets are reached, missed and open."""
    missed = sum(verdict.state == MISSED for verdict in verdicts)
    still_open = sum(verdict.state == OPEN for verdict in verdicts)
    faulty = sum(bool(verdict.remarks) and verdict.state != OPEN for verdict in verdicts)
    reached = len(verdicts) - missed - still_open
    text = f"{reached} of {len(verdicts)} figures reached, {missed} missed"
    text += f", {still_open} not measured" if still_open else ""
    return text + (f", {faulty} with problems" if faulty else "")


def verdict_table(run: Run, ours: str) -> Table:
    """Return the targets with figure, spread and verdict."""
    verdicts = judge(run, ours)
    rows = [
        (
            verdict.target.name,
            verdict.target.what,
            verdict.target.wanted(),
            verdict.figure,
            verdict.spread,
            verdict.ours,
            verdict.theirs,
            "; ".join((verdict.words, *verdict.remarks)),
        )
        for verdict in verdicts
    ]
    columns = ("", "work", "wanted (x: of etcd's)", "figure", "spread", ours, "etcd", "verdict")
    return Table(f"Targets: {ours}, {summary(verdicts)}", columns, rows)


def median(samples: Sequence[dict[str, Any]], name: str) -> float:
    """Return the median over the rounds. There must be a sample."""
    return float(statistics.median(sample[name] for sample in samples))


def rows_table(run: Run) -> Table:
    """Return rates, latencies and CPU of the rows: medians over the rounds."""
    rows = []
    for part in run.of_kind(ROW):
        for system in run.systems():
            if samples := part.of(system):
                rates = values(samples, "rate")
                rows.append(
                    (
                        f"{part.name}: {part.title}",
                        system,
                        f"{statistics.median(rates):,.0f}",
                        f"{min(rates):,.0f} to {max(rates):,.0f}",
                        f"{median(samples, 'p50_ms'):.2f}",
                        f"{median(samples, 'p99_ms'):.2f}",
                        f"{median(samples, 'leader_us'):.1f}",
                        f"{median(samples, 'follower_us'):.1f}",
                        f"{median(samples, 'driver_rate'):,.0f}",
                        "; ".join(part.problems(system)),
                    )
                )
    columns = (
        *("workload", "system", "op/s", "spread", "p50 ms", "p99 ms"),
        *("leader us/op", "follower us/op", "driver op/s", "problems"),
    )
    return Table("Workloads", columns, rows)


def scenario_table(run: Run, part: Part) -> Table:
    """Return every figure of a scenario: median, and the smallest and largest of the rounds."""
    names: dict[str, None] = {}
    for sample in part.samples:
        names |= dict.fromkeys(sample["figures"])
    systems = [system for system in run.systems() if part.of(system)]
    rows = [
        (name, *(_figure(part.of(system), name) for system in systems))
        for name in names
        if name != "target" and not name.endswith("problems") and name != "gaps"
    ]
    rows += [("problems", *("; ".join(part.problems(system)) for system in systems))] * any(
        part.problems(system) for system in systems
    )
    return Table(f"{part.name}: {part.title}", ("", *systems), rows)


def _figure(samples: Sequence[dict[str, Any]], name: str) -> str:
    numbers = values(samples, name)
    if not numbers:
        texts = dict.fromkeys(str(sample["figures"].get(name, "")) for sample in samples)
        return ", ".join(filter(None, texts))
    middle = number(statistics.median(numbers))
    if min(numbers) == max(numbers):
        return middle
    return f"{middle} ({number(min(numbers))} to {number(max(numbers))})"


def rivals_table(run: Run, part: Part) -> Table:
    """Return the other systems' rates beside ours, with a row for those that have none."""
    rows = [
        (*row[:-1], "; ".join(filter(None, (*part.problems(row[0]), row[-1]))))
        for row in rivals.rows([rivals.Sample.of(sample) for sample in part.samples])
    ]
    for system in rivals.SYSTEMS:
        why = "; ".join(part.problems(system)) or run.missing.get(system)
        if why and not part.of(system):
            rows.append((system, *[""] * (len(rivals.COLUMNS) - 2), why))
    return Table(f"{part.name}: {part.title}", rivals.COLUMNS, rows)


def growth_table(run: Run) -> Table:
    """Return how costs grow."""
    rows = [Series.of(sample).row() for part in run.of_kind(GROWTH) for sample in part.samples]
    return Table("Growth", GROWTH_COLUMNS, rows)


def parts_table(run: Run) -> Table:
    """Return how each part ended."""
    rows = [
        (
            part.name,
            IN_WORDS.get(part.state, part.state),
            f"{part.took_s:,.0f} s" if part.took_s else "",
            "; ".join(
                f"{failure['system']}, round {failure['round']}: {failure['error']}"
                for failure in part.failures
            ),
        )
        for part in run.parts
    ]
    return Table("Parts", ("part", "ended", "took", "failures"), rows)


def warnings(run: Run) -> list[str]:
    """Return what a reader must know before any figure."""
    found = [f"{name} was not measured: {why}" for name, why in run.missing.items()]
    if failed := run.failed():
        names = ", ".join(part.name for part in failed)
        found.append(f"Measurements failed in: {names}. The others ran.")
    if unfinished := run.unfinished():
        names = ", ".join(part.name for part in unfinished)
        found.append(f"The run was broken off; without or only in part: {names}.")
    if run.settings["is_short"]:
        found.append("A short run, to see that everything works: its figures are worth little.")
    return found + run.notes


def markdown(run: Run) -> str:
    """Return the whole run as markdown."""
    lines = [f"# {run.name}", "", f"`{run.command}`, {run.started_at}", ""]
    lines += [f"- {warning}" for warning in warnings(run)]
    for table in tables(run):
        lines += ["", f"## {table.title}", ""]
        lines.append("| " + " | ".join(table.columns) + " |")
        lines.append("|---" * len(table.columns) + "|")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    commands = dict.fromkeys(
        sample["command"] for part in run.of_kind(ROW) for sample in part.samples
    )
    if commands:
        lines += ["", "Commands (ports differ per run):", "", "```", *commands, "```"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
