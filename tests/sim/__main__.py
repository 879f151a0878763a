"""Command line: replay one seed, or try fresh seeds for some minutes on all cores.

Two simulators: of the core (default with `--seed`), and with `--full` of whole members.
"""

# ruff: noqa: T201 (a command line prints)

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from tests.sim import cluster
from tests.sim.full import cluster as full
from tests.sim.full import profile as full_profile
from tests.sim.profile import PROFILES

EVENTS = 20_000
FULL_EVENTS = 5_000


class Run(NamedTuple):
    """What to run."""

    is_full: bool
    seed: int
    profile: str
    events: int


class Outcome(NamedTuple):
    """What a run came to."""

    run: Run
    events: int
    cpu_s: float
    marks: dict[str, int]
    failure: str


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when nothing was found, 1 when something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed (else fresh ones)")
    parser.add_argument("--full", action="store_true", help="whole members, not the core alone")
    parser.add_argument("--core", action="store_true", help="fresh seeds for the core alone")
    parser.add_argument("--profile", help="default: swarm; without --seed: each in turn")
    parser.add_argument("--events", type=int, default=0, help="events of the first phase")
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to try fresh seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; all cores")
    options = parser.parse_args(arguments)
    known = full_profile.PROFILES if options.full else PROFILES
    if options.profile and options.profile not in known:
        parser.error(f"--profile: choose from {', '.join(known)}")
    events = options.events or (FULL_EVENTS if options.full else EVENTS)
    if options.seed is not None:
        run = Run(options.full, options.seed, options.profile or "swarm", events)
        return replay(run, trace=options.trace)
    return search(options.minutes, plans(options), options.jobs)


def plans(options: argparse.Namespace) -> list[tuple[bool, str, int]]:
    """Return which simulator, profile and length come in turn."""
    if options.profile:
        events = options.events or (FULL_EVENTS if options.full else EVENTS)
        return [(options.full, options.profile, events)]
    core = [
        (False, name, options.events or EVENTS)
        for name in PROFILES
        if name not in ("calm", "script")
    ]
    whole = [
        (True, name, options.events or FULL_EVENTS)
        for name in full_profile.PROFILES
        if name != "calm"
    ]
    return (core if not options.full else []) + (whole if not options.core else [])


def replay(run: Run, *, trace: bool) -> int:
    """Run one seed and say what happened."""
    print(f"seed {run.seed}, profile {run.profile}, commit {cluster.commit()}", flush=True)
    started = time.process_time()
    simulate = full.run if run.is_full else cluster.run
    result = simulate(run.seed, run.profile, run.events, trace=print if trace else None)
    summary(result.events, time.process_time() - started, Counter(result.marks))
    print(result)
    return int(result.failure is not None)


def perform(run: Run) -> Outcome:
    """Run one seed, in a process of a pool."""
    started = time.process_time()
    simulate = full.run if run.is_full else cluster.run
    result = simulate(run.seed, run.profile, run.events)
    failure = "" if result.failure is None else str(result)
    return Outcome(run, result.events, time.process_time() - started, result.marks, failure)


def search(minutes: float, turns: list[tuple[bool, str, int]], jobs: int) -> int:
    """Try fresh seeds until the time is over or something is found."""
    # The only randomness that does not come from a seed: which seeds to try. It is printed.
    first = int.from_bytes(os.urandom(5), "big")
    names = " ".join(f"{'full/' if is_full else ''}{name}" for is_full, name, _ in turns)
    print(f"seeds from {first}, {jobs} processes, profiles {names}, commit {cluster.commit()}")
    end = time.monotonic() + 60 * minutes
    totals: dict[bool, list[float]] = {False: [0, 0.0], True: [0, 0.0]}
    marks: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    runs = 0
    failed: Outcome | None = None
    pending: set[Future[Outcome]] = set()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        number = 0
        while failed is None and (pending or time.monotonic() < end):
            while len(pending) < 2 * jobs and time.monotonic() < end:
                is_full, name, events = turns[number % len(turns)]
                pending.add(pool.submit(perform, Run(is_full, first + number, name, events)))
                number += 1
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                runs += 1
                total = totals[outcome.run.is_full]
                total[0] += outcome.events
                total[1] += outcome.cpu_s
                marks[outcome.run.is_full].update(outcome.marks)
                if outcome.failure and failed is None:
                    failed = outcome
        for future in pending:
            future.cancel()
    for is_full, (events, cpu_s) in totals.items():
        if events:
            print("whole members:" if is_full else "core:")
            summary(int(events), cpu_s, marks[is_full])
    if failed is not None:
        print(failed.failure)
        return 1
    print(f"{runs} runs passed")
    return 0


def summary(events: int, seconds: float, marks: Counter[str]) -> None:
    """Print speed and coverage."""
    print(
        f"{events:,} events in {seconds:.2f} s of CPU: {events / max(seconds, 1e-9):,.0f} events/s"
    )
    for name, count in sorted(marks.items()):
        print(f"  {count:>9,}  {name}")


if __name__ == "__main__":
    sys.exit(main())
