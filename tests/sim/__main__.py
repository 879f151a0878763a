"""Command line: replay one seed, or try fresh seeds for some minutes."""

# ruff: noqa: T201 (a command line prints)

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

from tests.sim import cluster
from tests.sim.profile import PROFILES


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 when nothing was found, 1 when something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed (else fresh ones)")
    parser.add_argument(
        "--profile", choices=sorted(PROFILES), help="default: swarm; without --seed: each in turn"
    )
    parser.add_argument(
        "--events", type=int, default=20_000, help="events of the first phase of each run"
    )
    parser.add_argument("--trace", action="store_true", help="print every event")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to try fresh seeds")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.profile or "swarm", options.events, trace=options.trace)
    names = (
        [options.profile]
        if options.profile
        else [name for name in PROFILES if name not in ("calm", "script")]
    )
    return search(options.minutes, names, options.events)


def replay(seed: int, profile: str, events: int, *, trace: bool) -> int:
    """Run one seed and say what happened."""
    print(f"seed {seed}, profile {profile}, commit {cluster.commit()}", flush=True)
    started = time.process_time()
    result = cluster.run(seed, profile, events, trace=print if trace else None)
    summary(result.events, time.process_time() - started, Counter(result.marks))
    print(result)
    return int(result.failure is not None)


def search(minutes: float, names: list[str], events: int) -> int:
    """Try fresh seeds until the time is over or something is found."""
    # The only randomness that does not come from a seed: which seeds to try. It is printed.
    seed = int.from_bytes(os.urandom(5), "big")
    print(f"seeds from {seed}, profiles {' '.join(names)}, commit {cluster.commit()}", flush=True)
    end = time.monotonic() + 60 * minutes
    started = time.process_time()
    total = runs = 0
    marks: Counter[str] = Counter()
    while time.monotonic() < end:
        result = cluster.run(seed, names[runs % len(names)], events)
        runs += 1
        total += result.events
        marks.update(result.marks)
        if result.failure is not None:
            summary(total, time.process_time() - started, marks)
            print(result)
            return 1
        seed += 1
    summary(total, time.process_time() - started, marks)
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
