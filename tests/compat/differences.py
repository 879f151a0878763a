"""Where etcd 3.4 and we are meant to differ, each with its reason; nothing else is excused.

Our anchor is etcd 3.6. What the normaliser replaces (the version among it) need not be here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One intended difference: exact lines on both sides, of one command."""

    name: str
    reason: str
    command: str
    etcd: str
    """A line, as normalised, that only etcd prints; "" for none."""

    ours: str
    """The line in its place; "" for none."""

    def excuses(self, command: str, etcd: list[str], ours: list[str]) -> bool:
        """Tell whether the two outputs differ in exactly this."""
        if command != self.command:
            return False
        return _replaced(etcd, self.etcd, self.ours) == ours


def _replaced(lines: list[str], old: str, new: str) -> list[str]:
    if not old:
        return [*lines, new]
    return [new if line == old else line for line in lines if line != old or new]


KNOWN: list[Known] = []
