"""`python -m bench.engine`: kvstore.rpc beside grpcio on a trivial unary call; see --help.

The same handler (Put with a fixed reply, bytes in and out) on each engine, every server a process
of its own on one core, the drivers on the others. No store, no Raft: what docs/decisions/0001
rests on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from bench import h2load, process
from bench.load import Load, Outcome
from bench.machine import facts
from bench.measure import Driver, DriverError, too_slow
from bench.report import Report, show, write

OURS, NULL = "kvstore.rpc", "null"
ENGINES = (OURS, "grpcio-aio", "grpcio-sync")
H2LOAD, GENERATOR = "h2load", "generator"
TOOLS = (H2LOAD, GENERATOR)
CONNECTIONS, STREAMS = 10, 50
WARMUP_S = 0.5
COLUMNS = (
    *("driver", "engine", "calls/s", "spread", "p50 ms", "p99 ms"),
    *("CPU us/call", "driver calls/s", "kvstore.rpc is", "problems"),
)


@dataclass
class Run:
    """One driver against one engine, once."""

    tool: str
    engine: str
    round: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """CPU microseconds of the server's process per call."""

    driver_rate: float
    """The same driver against a server that answers without looking."""

    problems: list[str] = field(default_factory=list)
    command: str = ""
    outcome: dict[str, object] = field(default_factory=dict)


class Server:
    """The process of one engine."""

    def __init__(self, engine: str, cpu: int) -> None:
        command = [sys.executable, "-m", "bench.micro.unary_server", engine, "--cpu", str(cpu)]
        # Ctrl-C is ours to handle. The end of its input ends the server, also when we are killed.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self.end()
            raise DriverError(f"the server on {engine} did not start; its error is above")
        self.target = f"127.0.0.1:{port}"

    def end(self) -> int:
        """End the process; return how many calls its handler saw, 0 when it did not say."""
        text, _ = self._process.communicate(timeout=30)
        return int(text.strip() or 0)

    def kill(self) -> None:
        """End the process at once, if it still runs."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def cores() -> Iterator[int]:
    """Keep this process and its drivers off one core, and yield that core for the server."""
    usable = os.sched_getaffinity(0)
    server = max(usable)
    os.sched_setaffinity(0, usable - {server} or usable)
    try:
        yield server
    finally:
        os.sched_setaffinity(0, usable)


def drive(tool: str, engine: str, number: int, cpu: int, seconds: float) -> Run:
    """Start the engine, warm it up, measure, and compare the calls answered with those handled.

    Raises DriverError, H2loadError.
    """
    load = Load(
        targets=[],
        connections=CONNECTIONS,
        streams=STREAMS,
        seconds=WARMUP_S,
        warmup_s=WARMUP_S,
        distribution="one",
    )
    server = Server(engine, cpu)
    try:
        # The generator looks into every answer, so this also shows that the engine works.
        warm, _ = Driver(GENERATOR, load).run([server.target], engine)
        requests = max(CONNECTIONS * STREAMS, round(warm.rate * seconds)) if tool == H2LOAD else 0
        driver = Driver(tool, replace(load, seconds=seconds, requests=requests))
        before = process.cpu_s(server.pid)
        outcome, command = driver.run([server.target], engine)
        cpu_s = process.cpu_s(server.pid) - before
        handled = server.end()
    finally:
        server.kill()
    return Run(
        tool=tool,
        engine=engine,
        round=number,
        rate=outcome.rate,
        p50_ms=outcome.put_ms.get("p50", 0.0),
        p99_ms=outcome.put_ms.get("p99", 0.0),
        # Warm-up and end of the generator's run are in both.
        cpu_us=1e6 * cpu_s / max(1, outcome.acknowledged),
        driver_rate=0.0,
        problems=problems_of(engine, [warm, outcome], handled),
        command=command,
        outcome=asdict(outcome),
    )


def problems_of(engine: str, outcomes: Sequence[Outcome], handled: int) -> list[str]:
    """Return what was not as it should be; empty for a clean run."""
    found = [problem for outcome in outcomes for problem in outcome.problems()]
    answered = sum(outcome.acknowledged for outcome in outcomes)
    if engine != NULL and handled != answered:
        found.append(f"{answered} calls answered, the handler saw {handled}")
    return found


def run_all(
    engines: Sequence[str], tools: Sequence[str], rounds: int, seconds: float
) -> Iterator[Run]:
    """Measure; the engines alternate within each round, and neither is always the first."""
    with cores() as cpu:
        for tool in tools:
            for number in range(rounds):
                ceiling = drive(tool, NULL, number, cpu, min(seconds, 2.0)).rate
                for engine in engines if number % 2 == 0 else reversed(engines):
                    run = drive(tool, engine, number, cpu, seconds)
                    run.driver_rate = ceiling
                    yield run


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return the table's rows: medians over the rounds."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.tool, run.engine), []).append(run)
    rows: list[tuple[str, ...]] = []
    for (tool, engine), group in groups.items():
        rate, cpu = _median(group, "rate"), _median(group, "cpu_us")
        ceiling = _median(group, "driver_rate")
        problems = {problem for run in group for problem in run.problems}
        ours = groups.get((tool, OURS))
        beside = ""
        if ours and engine != OURS:
            beside = (
                f"{_median(ours, 'rate') / rate:.1f}x as fast, "
                f"{cpu / _median(ours, 'cpu_us'):.1f}x less CPU"
            )
        rows.append(
            (
                tool,
                engine,
                f"{rate:,.0f}",
                f"{min(run.rate for run in group):,.0f} to {max(run.rate for run in group):,.0f}",
                f"{_median(group, 'p50_ms'):.2f}",
                f"{_median(group, 'p99_ms'):.2f}",
                f"{cpu:.1f}",
                f"{ceiling:,.0f}",
                beside,
                "; ".join([*sorted(problems), *too_slow(ceiling, rate)]),
            )
        )
    return rows


def _median(runs: Sequence[Run], name: str) -> float:
    return float(statistics.median(getattr(run, name) for run in runs))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line's settings; `engines` and `tools` are lists."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description=(__doc__ or "").partition(": ")[2].replace("; see --help", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help="default %(default)s")
    parser.add_argument("--tools", default="", help="h2load,generator; default both, if installed")
    parser.add_argument("--rounds", type=int, default=3, help="alternations; default 3")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time; default 3")
    parser.add_argument("--name", default="", help="of the result files; default N-cores-engine")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if "h2load" in arguments.tools.split(",") and not h2load.available():
        parser.error(
            "h2load is not installed (Debian package nghttp2-client); "
            "--tools generator measures without it"
        )
    for option, known in (("engines", ENGINES), ("tools", TOOLS)):
        names = [name.strip() for name in getattr(arguments, option).split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no such {option[:-1]}: {unknown[0]}; there are {', '.join(known)}")
        setattr(arguments, option, names or list(known))
    if not h2load.available():
        arguments.tools = [GENERATOR]
    return arguments


def main(argv: Sequence[str]) -> int:
    """Measure what the command line asks for and write the result."""
    arguments = parse(argv)
    report: Report[Run] = Report(facts(None), shlex.join(["python", "-m", "bench.engine", *argv]))
    if not h2load.available():
        report.notes.append("not driven by h2load: Debian package nghttp2-client is not installed")
    if len(os.sched_getaffinity(0)) == 1:
        report.notes.append("one core only: the driver shares it with the server")
    report.notes.append(
        f"{CONNECTIONS} connections x {STREAMS} streams; server on one core, driver on the others"
    )
    for run in run_all(arguments.engines, arguments.tools, arguments.rounds, arguments.seconds):
        report.samples.append(run)
        print(
            f"{run.tool} {run.engine} round {run.round + 1}: {run.rate:,.0f}/s, "
            f"{run.cpu_us:.1f} us CPU" + "".join(f" [{problem}]" for problem in run.problems),
            flush=True,
        )
    rows = table(report.samples)
    show(report, rows, COLUMNS)
    name = arguments.name or f"{os.cpu_count()}-cores-engine"
    print(f"written: {write(report, rows, name, COLUMNS).name} and its JSON in bench/results")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
