"""Compares two transcripts after normalising them; starts nothing and excuses only listed cases."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.compat.normalise import Normaliser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.differences import Known
    from tests.compat.runner import Transcript


@dataclass(frozen=True)
class Difference:
    """One command that two clusters answered differently."""

    number: int
    command: str
    left: list[str]
    right: list[str]

    def __str__(self) -> str:
        diff = difflib.unified_diff(self.left, self.right, lineterm="", n=1)
        body = "\n".join(line[:400] for line in list(diff)[2:])
        return f"#{self.number} {self.command}\n{body}"


def compare(
    left: Transcript, right: Transcript, known: Sequence[Known] = ()
) -> tuple[list[Difference], set[str]]:
    """Return the differences, and the names of the known ones that were met.

    A known difference excuses a command only when both sides read exactly as it says.
    """
    if [output.case for output in left.outputs] != [output.case for output in right.outputs]:
        raise ValueError("the transcripts are of different command lists")
    left_lines, right_lines = Normaliser(left.leases), Normaliser(right.leases)
    found: list[Difference] = []
    met: set[str] = set()
    pairs = zip(left.outputs, right.outputs, strict=True)
    for number, (a, b) in enumerate(pairs, 1):
        one, other = left_lines.lines(a), right_lines.lines(b)
        if one == other:
            continue
        excuse = next(
            (entry for entry in known if entry.excuses(a.case.name, one, other)),
            None,
        )
        if excuse is not None:
            met.add(excuse.name)
        else:
            found.append(Difference(number, a.case.name, one, other))
    return found, met


def report(differences: Sequence[Difference]) -> str:
    """Return the differences as a text for an assertion."""
    return f"{len(differences)} commands differ\n" + "\n\n".join(map(str, differences))
