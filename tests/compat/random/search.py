"""Draws programs with hypothesis until something differs, and makes that program small.

The last part is not hypothesis's: a try costs a whole program on two servers, and its shrinker,
which knows nothing of steps, had not taken one away after 100 tries. Halving needs 20.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.compat.random.minimise import Found, smallest
from tests.compat.random.run import ProgramError
from tests.compat.random.strategies import programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.compat.random.members import Members
    from tests.compat.random.steps import Step

PROGRAMS_A_ROUND = 60
"""Programs of one hypothesis run, each from a seed of its own; between them the members restart."""

RESTART_ROUNDS = 4


def search(
    members: Members,
    operations: int,
    seed_number: int,
    tell: Callable[[int, float], None] = lambda compared, elapsed_s: None,
    note: Callable[[str], None] = lambda text: None,
) -> Found | None:
    """Compare so many operations; return the first program that differs, or None.

    Args:
        members: To run on.
        operations: Steps to compare at least.
        seed_number: The same draws the same programs.
        tell: Called now and then with the steps compared and the seconds it took.
        note: Called with the text of the first difference, before it is made small.
    """
    begin = time.monotonic()
    number = 0
    first = members.compared
    while members.compared - first < operations:
        left = operations - (members.compared - first)
        found = _round(members, (seed_number << 20) + number, first + operations, note)
        if found is not None:
            return found
        number += 1
        if number % RESTART_ROUNDS == 0 and left > 0:
            members.restart()
        tell(members.compared - first, time.monotonic() - begin)
    return None


def _round(
    members: Members, seed_number: int, until: int, note: Callable[[str], None]
) -> Found | None:
    failed: list[tuple[list[Step], ProgramError]] = []

    @seed(seed_number)
    @settings(
        max_examples=PROGRAMS_A_ROUND,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
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
            if not failed:
                note(f"{error}\nfound; making it small")
            failed.append((program, error))
            raise

    try:
        run()
    except ProgramError:
        return smallest(members, *failed[0])
    return None
