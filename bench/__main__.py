"""`python -m bench`: runs workloads on both systems in turn and reports; see --help."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import growth, h2load, page, rivals, scenarios
from bench.clusters import COMPILED, KINDS, ClusterError, available
from bench.measure import DriverError
from bench.record import Run
from bench.report import RESULTS
from bench.suite import GROWTH_PREFIX, Settings, Suite, parts_of
from bench.tables import tables, warnings
from bench.workloads import Workload, workloads
from tests import bytecode


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="every target in small, about 10 minutes"
    )
    parser.add_argument("--ci", action="store_true", help="P1 to P3 in about two minutes")
    parser.add_argument("--growth", action="store_true", help="also how costs grow with sizes")
    parser.add_argument(
        "--only",
        default="",
        help="rows, scenarios, rivals, growth-*, comma-separated; P1 means all P1-*",
    )
    parser.add_argument("--rounds", type=int, default=0, help="alternations; default 3")
    parser.add_argument(
        "--scenario-rounds", type=int, default=0, help="of P5 to P8 and gate; default as --rounds"
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="measured time; default 5")
    parser.add_argument(
        "--systems", default="", help="of kvstore, etcd, kvstore-compiled; default the first two"
    )
    parser.add_argument("--data-root", default=None, help="folder on the disk to measure")
    parser.add_argument(
        "--name", default="", help="of the folder of results; default by cores and choice"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where that folder is; default bench/results"
    )
    parser.add_argument("--cpu-list", default=None, help="taskset list for the members")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the scenarios; for a try")
    parser.add_argument("--size-max", type=int, default=10**9, help="of growth; for a try")
    arguments = parser.parse_args(argv)
    if (
        min(arguments.rounds, arguments.scenario_rounds) < 0
        or arguments.seconds < 0
        or arguments.scale <= 0
    ):
        parser.error("--rounds, --scenario-rounds, --seconds and --scale must be positive")
    if arguments.data_root is not None and not os.path.isdir(arguments.data_root):
        parser.error(f"--data-root: there is no folder {arguments.data_root}")
    for kind in split(arguments.systems):
        if kind not in (*KINDS, COMPILED):
            parser.error(f"no such system: {kind}; there are {', '.join((*KINDS, COMPILED))}")
    return arguments


def split(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def systems(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the systems to measure, and by name why others are left out.

    Raises SystemExit when one that was named is not installed, or none is.
    """
    missing = {kind: reason for kind in names or KINDS if (reason := available(kind))}
    found = [kind for kind in names or KINDS if kind not in missing]
    if missing and (names or not found):
        raise SystemExit("; ".join(missing.values()))
    return found, missing


def result_name(arguments: argparse.Namespace) -> str:
    """Return the name of the results: a partial run must not replace the whole one's."""
    kind = "quick" if arguments.quick or arguments.ci else ""
    parts = [f"{os.cpu_count()}-cores", kind, *split(arguments.only)]
    return str(arguments.name) or "-".join(filter(None, parts))


RIVALS = "rivals"


def chosen(arguments: argparse.Namespace) -> tuple[list[Workload], list[str]]:
    """Return the rows, and the names of the scenarios, "rivals" and dimensions of growth to run."""
    brief = arguments.quick or arguments.ci
    seconds = arguments.seconds or (3.0 if arguments.ci else 2.0 if brief else 5.0)
    rows = workloads(seconds, 30_000 if brief else 100_000)
    dimensions = [GROWTH_PREFIX + name.replace(" ", "-") for name in growth.DIMENSIONS]
    others = [*scenarios.SCENARIOS, RIVALS, *dimensions]
    names = split(arguments.only)
    if not names:
        if brief:
            rows = [row for row in rows if row.brief or (arguments.quick and row.name == "P4")]
        if arguments.ci:
            others = []
        left_out = scenarios.ONCE if arguments.quick else ()
        others = [name for name in others if name not in left_out and name not in dimensions]
        return rows, others + dimensions * arguments.growth
    known = [row.name for row in rows] + others
    groups = {name.split("-")[0] for name in known}
    if unknown := [name for name in names if name not in known and name not in groups]:
        raise SystemExit(f"no such workload: {unknown[0]}; there are {', '.join(known)}")

    def wanted(name: str) -> bool:
        asked = arguments.growth and name in dimensions
        return asked or name in names or name.split("-", 1)[0] in names

    return [row for row in rows if wanted(row.name)], [name for name in others if wanted(name)]


def plan(arguments: argparse.Namespace, argv: Sequence[str]) -> tuple[Run, Suite, Path]:
    """Return the run, what executes it, and its folder. Raises SystemExit."""
    brief = arguments.quick or arguments.ci
    rows, others = chosen(arguments)
    named = split(arguments.systems)
    kinds, missing = systems(named)
    beside: list[str] = []
    if RIVALS in others:
        beside = [system for system in rivals.SYSTEMS if not named or system in named]
        missing |= {system: why for system in beside if (why := rivals.missing(system))}
        beside = [system for system in beside if system not in missing]
    if any(row.driver.tool == "h2load" for row in rows) and not h2load.available():
        missing["h2load"] = "h2load is not installed: apt-get install nghttp2-client"
        rows = [row for row in rows if row.driver.tool != "h2load"]
    if not rows and not others:
        raise SystemExit(f"nothing to measure: {'; '.join(missing.values())}")
    rounds = arguments.rounds or (2 if brief else 3)
    settings = Settings(
        kinds=kinds,
        rivals=beside,
        rounds=rounds,
        scenario_rounds=arguments.scenario_rounds or arguments.rounds or (1 if brief else 3),
        seconds=arguments.seconds or (2.0 if brief else 5.0),
        ceiling_s=1.0 if brief else 2.0,
        scale=arguments.scale * (0.05 if arguments.quick else 1.0),
        growth_s=0.5 if brief else growth.SECONDS,
        growth_max=min(arguments.size_max, 100_000 if brief else arguments.size_max),
        data_root=arguments.data_root,
        cpu_list=arguments.cpu_list,
    )
    run = Run(
        name=result_name(arguments),
        command=shlex.join(["python", "-m", "bench", *argv]),
        started_at=dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        settings={
            "systems": kinds,
            "rounds": rounds,
            "scale": settings.scale,
            "is_short": brief or arguments.scale < 1 or settings.seconds < 2,
        },
        missing=missing,
        parts=parts_of(rows, others),
    )
    folder = arguments.results / run.name
    return run, Suite(run, settings, rows, folder), folder


def show(run: Run) -> None:
    """Print the tables and what one must know beside them."""
    console = Console(width=200, highlight=False, markup=False)
    for table in tables(run):
        printed = Table(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
    for warning in warnings(run):
        console.print(f"note: {warning}")


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for.

    Returns 0, also when targets are missed; 1 when a measurement broke.
    """
    arguments = parse(argv)
    bytecode.keep()  # or a member that restarts would compile its sources
    run, suite, folder = plan(arguments, argv)
    try:
        suite.execute()
    except KeyboardInterrupt:
        written = page.render(run, folder)
        print(f"\nstopped; what was measured until then: {written}", file=sys.stderr)
        return 130
    written = page.render(run, folder)
    show(run)
    print(f"written: {written}")
    return 1 if run.failed() else 0


def run(argv: Sequence[str]) -> int:
    """Run `main`; end with one line, and with no process left, when it fails or is stopped."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main(argv)
    except KeyboardInterrupt:
        print("\nstopped; nothing is written", file=sys.stderr)
        return 130
    except (ClusterError, DriverError, h2load.H2loadError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
