"""Fuzz: python -m tests.fuzz [--target NAME] [--seconds N] [--input FILE] [--engine random].

Without a target, each gets its share of the seconds. An input that breaks its target is kept in
tests/fuzz/found, and the line that runs it again is printed. With atheris installed (the extra
`fuzz`) new paths through kvstore and netplane guide the search; without it,
inputs are mutated at random.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.fuzz.mutate import INPUT_BYTES_MAX, mutated

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FOUND = HERE / "found"
NAMES = (
    "rpc",
    "hpack",
    "messages",
    "requests",
    "peer",
    "member",
    "wal",
    "snapshot",
    "session",
    "client",
    "channel",
    "packets",
    "sealed",
    "control",
)


def say(line: str) -> None:
    """Print a line at once: whoever reads it may not wait for the end."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def corpus(name: str) -> list[bytes]:
    """Return the kept inputs of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def keep(name: str, data: bytes) -> None:
    """Keep an input that broke its target, and say how to run it again."""
    from tests.fuzz.targets import fingerprint  # noqa: PLC0415  # atheris instruments it first

    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{fingerprint(data)}"
    path.write_bytes(data)
    say(f"again: python -m tests.fuzz --target {name} --input {path}")


def fuzz_at_random(name: str, seconds: float, seed: int) -> None:
    """Mutate until the time is over; an exception of the target ends the process."""
    from tests.fuzz.oddities import Oddities  # noqa: PLC0415
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    target, inputs = TARGETS[name], corpus(name)
    draw = random.Random(seed)
    oddities = Oddities(draw)
    executions = 0
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        is_odd = name == "member" and executions % 2
        data = oddities.input() if is_odd else mutated(draw, inputs)
        try:
            target(data)
        except Exception:
            keep(name, data)
            raise
        executions += 1
    say(f"stat::number_of_executed_units: {executions}")


def fuzz_by_coverage(name: str, seconds: float, seed: int) -> NoReturn:
    """Let atheris search; it ends the process itself."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=["kvstore", "netplane"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415

    target = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            target(data)
        except Exception:
            keep(name, data)
            raise

    with tempfile.TemporaryDirectory(prefix="kvstore-fuzz-") as folder:
        atheris.Setup(
            [
                *(sys.argv[0], folder, str(CORPUS / name), f"-max_total_time={int(seconds)}"),
                *(f"-max_len={INPUT_BYTES_MAX}", "-print_final_stats=1", "-timeout=20"),
                f"-seed={seed}",
                f"-artifact_prefix={folder}/",
            ],
            one,
        )
        atheris.Fuzz()
        raise AssertionError("atheris ends the process")


def run(name: str, seconds: float, engine: str, seed: int) -> bool:
    """Fuzz one target in a process of its own; tell whether it held, and print its line."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", "--target", name]
    began_s = time.monotonic()
    done = subprocess.run(
        [*command, "--seconds", str(seconds), "--engine", engine, "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    counted = re.search(r"number_of_executed_units: +(\d+)", output)
    executions = int(counted[1]) if counted else 0
    taken_s = time.monotonic() - began_s
    verdict = "held" if done.returncode == 0 else "BROKEN"
    say(f"{name:10} {executions:>10,} executions {executions / taken_s:>8,.0f}/s  {verdict}")
    if done.returncode:
        say(output[-4000:])
    return done.returncode == 0


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--input", type=Path, help="run this input once")
    parser.add_argument("--engine", choices=("atheris", "random"))
    parser.add_argument("--seed", type=int, help="of the mutations; a fresh one by default")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.input is not None:
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415

        TARGETS[options.target](options.input.read_bytes())
        return 0
    engine = options.engine
    if engine is None:
        engine = "random" if importlib.util.find_spec("atheris") is None else "atheris"
    if options.child:
        (fuzz_by_coverage if engine == "atheris" else fuzz_at_random)(
            options.target, options.seconds, options.seed
        )
        return 0
    names = NAMES if options.target is None else (options.target,)
    seed = random.SystemRandom().randrange(1, 2**31) if options.seed is None else options.seed
    say(f"fuzzing by {engine}, seed {seed}")
    held = [run(name, options.seconds / len(names), engine, seed) for name in names]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
