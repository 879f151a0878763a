"""How soon a member inside a Python process is up: `python -m bench.embed`.

Each sample is a process of its own. It imports `kvstore.embed`, then starts a member twice: from
the call to the answer of the first put. The first start also makes what a process makes once
(gRPC's threads, for example).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

from bench import machine

SAMPLE = """
import json, sys, time
marks = [time.perf_counter()]
from kvstore import embed
marks.append(time.perf_counter())
for _ in range(2):
    with embed(fsync=sys.argv[1] == "fsync") as member:
        member.client().put(b"k", b"v")
        marks.append(time.perf_counter())
    marks.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(marks, marks[1:])]))
"""
STEPS = ("import", "first start to first put", "stop", "second start to first put", "stop")


def sample(mode: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, mode], check=True, capture_output=True, text=True
    )
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.embed")
    parser.add_argument("--times", type=int, default=20)
    times = max(2, parser.parse_args().times)
    facts = machine.facts(None)
    for name in ("cpu", "cores usable", "load before", "data on", "kernel", "python", "commit"):
        print(f"{name}: {facts[name]}")
    print(f"{'milliseconds, of ' + str(times):<42}{'median':>8}{'least':>8}{'most':>8}")
    for mode in ("fsync", "no fsync"):
        samples = [sample(mode) for _ in range(times)]
        for number, step in enumerate(STEPS):
            values = [each[number] for each in samples]
            figures = (statistics.median(values), min(values), max(values))
            print(f"{mode + ': ' + step:<42}" + "".join(f"{1e3 * each:>8.0f}" for each in figures))


if __name__ == "__main__":
    main()
