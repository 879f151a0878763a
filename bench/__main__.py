"""`python -m bench`: runs workloads on both systems in turn and reports; see --help."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from bench import h2load, scenarios
from bench.clusters import COMPILED, ETCD, KINDS, Cluster, ClusterError, available
from bench.machine import facts
from bench.measure import Ceilings, DriverError, Sample, measure, preload
from bench.report import Report, show, write
from bench.report import rows as table
from bench.workloads import KEYS, Workload, workloads


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line's settings."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows, 2 rounds of 2 s")
    parser.add_argument("--ci", action="store_true", help="P1 and the CPU budgets in about 75 s")
    parser.add_argument(
        "--only", default="", help="rows or scenarios, comma-separated; P1 means all P1-*"
    )
    parser.add_argument("--rounds", type=int, default=0, help="alternations; default 3")
    parser.add_argument("--seconds", type=float, default=0.0, help="measured time; default 5")
    parser.add_argument(
        "--systems", default="", help="of kvstore, etcd, kvstore-compiled; default the first two"
    )
    parser.add_argument("--data-root", default=None, help="folder on the disk to measure")
    parser.add_argument(
        "--name", default="", help="of the result files; default by cores and choice"
    )
    parser.add_argument("--cpu-list", default=None, help="taskset list for the members")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the scenarios; for a try")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 0 or arguments.seconds < 0 or arguments.scale <= 0:
        parser.error("--rounds, --seconds and --scale must be positive")
    if arguments.data_root is not None and not os.path.isdir(arguments.data_root):
        parser.error(f"--data-root: there is no folder {arguments.data_root}")
    for kind in split(arguments.systems):
        if kind not in (*KINDS, COMPILED):
            parser.error(f"no such system: {kind}; there are {', '.join((*KINDS, COMPILED))}")
    return arguments


def split(text: str) -> list[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def systems(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the systems to measure, and notes on those left out.

    Raises SystemExit when one that was named is not installed, or none is.
    """
    missing = {kind: reason for kind in names or KINDS if (reason := available(kind))}
    found = [kind for kind in names or KINDS if kind not in missing]
    if missing and (names or not found):
        raise SystemExit("; ".join(missing.values()))
    return found, [f"{kind} not measured: {reason}" for kind, reason in missing.items()]


def result_name(arguments: argparse.Namespace) -> str:
    """Return the result files' name: a partial run must not replace the whole one's."""
    kind = "quick" if arguments.quick or arguments.ci else ""
    parts = [f"{os.cpu_count()}-cores", kind, *split(arguments.only)]
    return str(arguments.name) or "-".join(filter(None, parts))


def chosen(arguments: argparse.Namespace) -> tuple[list[Workload], list[str]]:
    """Return the rows and the scenarios to run."""
    brief = arguments.quick or arguments.ci
    seconds = arguments.seconds or (3.0 if arguments.ci else 2.0 if brief else 5.0)
    rows = workloads(seconds, 30_000 if brief else 100_000)
    names = split(arguments.only)
    if not names:
        return ([row for row in rows if row.brief], []) if brief else (rows, [*scenarios.SCENARIOS])
    known = [row.name for row in rows] + list(scenarios.SCENARIOS)
    groups = {row.name.split("-")[0] for row in rows}
    if unknown := [name for name in names if name not in known and name not in groups]:
        raise SystemExit(f"no such workload: {unknown[0]}; there are {', '.join(known)}")
    rows = [row for row in rows if row.name in names or row.name.split("-")[0] in names]
    return rows, [name for name in scenarios.SCENARIOS if name in names]


def run_rows(
    rows: Sequence[Workload],
    kinds: Sequence[str],
    arguments: argparse.Namespace,
    report: Report[Sample],
) -> None:
    """Run the rows; the systems alternate within each, and the idle one is frozen."""
    rounds = arguments.rounds or (2 if arguments.quick or arguments.ci else 3)
    ceilings = Ceilings(1.0 if arguments.ci else 2.0)
    with ExitStack() as stack:
        clusters = []
        for kind in kinds:
            cluster = stack.enter_context(
                Cluster(kind, data_root=arguments.data_root, cpu_list=arguments.cpu_list)
            )
            report.notes.append(f"{kind} reports version {cluster.version()}")
            if any(row.reads for row in rows):
                preload(cluster, KEYS)
            cluster.freeze()
            clusters.append(cluster)
        for row in rows:
            for number in range(rounds):
                # Neither is always the first: the machine's speed drifts.
                for cluster in clusters if number % 2 == 0 else reversed(clusters):
                    with cluster.awake():
                        sample = measure(row.name, cluster, row.driver, ceilings, number)
                    report.samples.append(sample)
                    print(
                        f"{row.name} {cluster.kind} round {number + 1}: {sample.rate:,.0f}/s, "
                        f"p50 {sample.p50_ms:.2f} ms, p99 {sample.p99_ms:.2f} ms, "
                        f"{sample.leader_us:.1f} us leader, {sample.follower_us:.1f} us follower"
                        + "".join(f" [{problem}]" for problem in sample.problems),
                        flush=True,
                    )


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for. Returns 0, also when targets are missed."""
    arguments = parse(argv)
    rows, others = chosen(arguments)
    kinds, notes = systems(split(arguments.systems))
    if not h2load.available():
        notes.append("h2load rows left out: Debian package nghttp2-client is not installed")
        rows = [row for row in rows if row.driver.tool != "h2load"]
    if not rows and not others:
        raise SystemExit(f"nothing to measure: {'; '.join(notes)}")
    command = shlex.join(["python", "-m", "bench", *argv])
    report: Report[Sample] = Report(facts(arguments.data_root), command, notes=notes)
    if rows:
        run_rows(rows, kinds, arguments, report)
    for name in others:
        for kind in kinds:
            found = scenarios.SCENARIOS[name](
                kind, data_root=arguments.data_root, scale=arguments.scale
            )
            report.scenarios.append({"scenario": name, "system": kind, **found})
            print(name, kind, found, flush=True)
    if ETCD not in kinds:
        report.notes.append("there are no ratios without etcd")
    lines = table(report, rows)
    show(report, lines)
    if not arguments.ci or arguments.name:
        page = write(report, lines, result_name(arguments))
        print(f"written: {page.name} and its JSON in bench/results")
    return 0


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
