"""Draws programs with hypothesis until something differs, and makes that program small."""

from __future__ import annotations

import base64
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import FlakyFailure

from tests.compat.random.run import ProgramError
from tests.compat.random.steps import Step, dump, load
from tests.compat.random.strategies import programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.compat.random.members import Members

PROGRAMS_A_ROUND = 60
"""Programs of one hypothesis run, each from a seed of its own; between them the members restart."""

RESTART_ROUNDS = 4


@dataclass
class Found:
    """A program that shows a difference, as small as hypothesis could make it."""

    program: list[Step]
    text: str
    """Where they differ, and in what."""

    flaky: bool = False
    """It did not show it again; then `program` is as it was drawn."""

    def replay(self) -> str:
        """Return the command line that runs it again."""
        packed = base64.urlsafe_b64encode(zlib.compress(dump(self.program).encode(), 9))
        return f"python -m tests.compat.random --program {packed.decode()}"


def unpacked(text: str) -> list[Step]:
    """Return the program of a replay line."""
    return load(zlib.decompress(base64.urlsafe_b64decode(text)).decode())


def search(
    members: Members,
    operations: int,
    seed_number: int,
    tell: Callable[[int, float], None] = lambda compared, elapsed_s: None,
) -> Found | None:
    """Compare so many operations; return the first program that differs, or None.

    Args:
        members: To run on.
        operations: Steps to compare at least.
        seed_number: The same draws the same programs.
        tell: Called now and then with the steps compared and the seconds it took.
    """
    begin = time.monotonic()
    number = 0
    first = members.compared
    while members.compared - first < operations:
        left = operations - (members.compared - first)
        found = _round(members, (seed_number << 20) + number, first + operations)
        if found is not None:
            return found
        number += 1
        if number % RESTART_ROUNDS == 0 and left > 0:
            members.restart()
        tell(members.compared - first, time.monotonic() - begin)
    return None


def _round(members: Members, seed_number: int, until: int) -> Found | None:
    failed: list[tuple[list[Step], ProgramError]] = []

    @seed(seed_number)
    @settings(
        max_examples=PROGRAMS_A_ROUND,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(programs())
    def run(program: list[Step]) -> None:
        if members.compared >= until and not failed:
            return
        try:
            members.run(program)
        except ProgramError as error:
            failed.append((program, error))
            raise

    try:
        run()
    except ProgramError:
        program, error = failed[-1]
        return without_idle_steps(members, program, error)
    except FlakyFailure:
        program, error = failed[0]
        return Found(program, str(error), flaky=True)
    return None


def without_idle_steps(members: Members, program: list[Step], error: ProgramError) -> Found:
    """Return the program without the steps that it does not need to differ.

    hypothesis gives up after 200 tries without success, which leaves some now and then.
    """
    number = len(program) - 1
    while number >= 0:
        shorter = program[:number] + program[number + 1 :]
        try:
            members.run(shorter)
        except ProgramError as again:
            program, error = shorter, again
        number -= 1
    return Found(program, str(error))
