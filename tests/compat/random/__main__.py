"""Command line: compare, or run one program again."""

# ruff: noqa: T201 (a command line prints)
from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path

from tests.compat.random.members import Members
from tests.compat.random.minimise import Found, unpacked
from tests.compat.random.run import ProgramError
from tests.compat.random.search import search
from tests.compat.random.steps import Step, dump, load
from tests.servers import Etcd


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat.random", description=__doc__)
    parser.add_argument("--operations", type=int, default=5000, help="steps to compare at least")
    parser.add_argument("--seed", type=int, help="the same draws the same; default: a fresh one")
    parser.add_argument("--program", help="run the program of a replay line instead")
    parser.add_argument("--file", type=Path, help="run the program of a file instead")
    options = parser.parse_args(argv)
    if reason := Etcd.missing():
        print(reason, file=sys.stderr)
        return 2
    with Members() as members:
        if options.program or options.file:
            program = load(options.file.read_text()) if options.file else unpacked(options.program)
            return replay(members, program)
        number = secrets.randbelow(1 << 31) if options.seed is None else options.seed
        return compare(members, options.operations, number)


def compare(members: Members, operations: int, seed: int) -> int:
    print(f"seed {seed}")
    begin = last_told = time.monotonic()

    def tell(compared: int, elapsed_s: float) -> None:
        nonlocal last_told
        if time.monotonic() - last_told > 10:
            last_told = time.monotonic()
            print(f"{compared:,} compared, {compared / elapsed_s:,.0f}/s", flush=True)

    found = search(members, operations, seed, tell, print)
    elapsed_s = time.monotonic() - begin
    for name, count in sorted(members.met.counts.items()):
        print(f"known difference met {count:,} times: {name}")
    print(
        f"{members.compared:,} operations compared in {elapsed_s:,.0f} s "
        f"({members.compared / elapsed_s:,.0f}/s), {0 if found is None else 1} differences"
    )
    if found is None:
        return 0
    show(found)
    return 1


def show(found: Found) -> None:
    if found.flaky:
        print("It did not show again, so it depends on time; the program as it was drawn:")
    print(dump(found.program))
    print(found.text)
    print(f"replay: {found.replay()}")


def replay(members: Members, program: list[Step]) -> int:
    print(dump(program))
    try:
        members.run(program)
    except ProgramError as error:
        print(error)
        return 1
    print("no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
