"""Turns samples into a table, JSON and markdown; measures nothing, decides no exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


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
    notes: list[str] = field(default_factory=list)


def show(report: Report[S], table_rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Print the tables."""
    console = Console(width=200, highlight=False)
    console.print(", ".join(f"{name}: {value}" for name, value in report.facts.items()))
    table = Table(*columns)
    for row in table_rows:
        table.add_row(*row)
    if report.samples:
        console.print(table)
    for note in report.notes:
        console.print(f"note: {note}")


def write(
    report: Report[S],
    table_rows: Sequence[Sequence[str]],
    name: str,
    columns: Sequence[str],
) -> Path:
    """Write NAME.json and NAME.md into bench/results; return the latter's path."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    lines = [f"# {name}", "", f"`{report.command}`", "", "| | |", "|---|---|"]
    lines += [f"| {fact} | {value} |" for fact, value in report.facts.items()]
    if report.samples:
        lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table_rows]
    if report.notes:
        lines += ["", *(f"Note: {note}" for note in report.notes)]
    commands = dict.fromkeys(s.command for s in report.samples if s.command)
    if commands:
        lines += ["", "Commands (ports differ per run):", "", "```", *commands, "```"]
    page = RESULTS / f"{name}.md"
    page.write_text("\n".join(lines) + "\n")
    return page
