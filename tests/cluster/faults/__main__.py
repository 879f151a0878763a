"""Command line: run one cell, or the matrix over and over for some minutes, and print each run."""

# ruff: noqa: T201 (a command line prints)

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import sys
import time
from pathlib import Path

from tests.cluster.faults.cells import CELLS
from tests.cluster.faults.namespaces import Namespaces, isolated, missing
from tests.cluster.faults.planted import BUGS
from tests.cluster.faults.proxies import Proxies
from tests.cluster.faults.run import Report, run_cell

INSIDE = "KVSTORE_FAULTS_INSIDE"


def main(arguments: list[str]) -> int:
    """Run; 0 when every run held."""
    is_root = missing() is None
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.faults", description=__doc__)
    parser.add_argument("--cell", choices=CELLS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, help="of the first run (else a fresh one)")
    parser.add_argument("--minutes", type=float, help="go on for so long (else each cell once)")
    parser.add_argument(
        "--network",
        choices=[Namespaces.kind, Proxies.kind],
        default=Namespaces.kind if is_root else Proxies.kind,
        help="namespaces need root",
    )
    parser.add_argument("--logs", type=Path, help="where a failed run leaves its logs")
    parser.add_argument("--bug", choices=BUGS, default="", help="plant it: the run must fail")
    parser.add_argument("--story", action="store_true", help="print what was done when")
    options = parser.parse_args(arguments)
    if options.network == Namespaces.kind and INSIDE not in os.environ:
        # Namespaces of our own: whatever happens, nothing is left on the machine.
        os.environ[INSIDE] = "1"
        command = isolated([sys.executable, "-m", "tests.cluster.faults", *arguments])
        os.execvp(command[0], command)
    return _runs(options, is_root=is_root)


def _runs(options: argparse.Namespace, *, is_root: bool) -> int:
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    names = options.cell or [name for name in CELLS if is_root or not CELLS[name].needs_root]
    end = time.monotonic() + 60 * (options.minutes or 0)
    if options.minutes:
        random.Random(seed).shuffle(names)  # a short time is not always the same cells'
    print(f"{len(names)} cells, seeds from {seed}\n{Report.HEAD}", flush=True)
    reports: list[Report] = []
    with asyncio.Runner() as runner:
        for name in itertools.cycle(names) if options.minutes else names:
            reports.append(
                run_cell(
                    runner,
                    CELLS[name],
                    seed,
                    options.network,
                    logs=options.logs,
                    bug=options.bug,
                )
            )
            _print(reports[-1], story=options.story)
            seed += 1
            if options.minutes and time.monotonic() > end:
                break
    failed = [report for report in reports if report.failure]
    slowest = min(min(report.before, report.after) for report in reports)
    print(f"{len(reports)} runs, {len(failed)} failed; least throughput {slowest:.0f}/s")
    for report in failed:
        print(f"replay: {report.replay()}")
    return int(bool(failed))


def _print(report: Report, *, story: bool) -> None:
    print(report, flush=True)
    if story or report.failure:
        print("\n".join(f"    {line}" for line in report.story), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
