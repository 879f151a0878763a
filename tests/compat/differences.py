"""Where etcd 3.4 and we are meant to differ, each with its reason; nothing else is excused.

Our anchor is etcd 3.6. What the normaliser replaces (the version among it) need not be here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """One intended difference in one command: a line of etcd's, and what ours must match."""

    name: str
    reason: str
    command: str
    etcd: str
    """A line, as normalised, that only etcd prints."""

    ours: str
    """A regular expression that the line in its place must match whole."""

    def excuses(self, command: str, etcd: list[str], ours: list[str]) -> bool:
        """Tell whether the two outputs differ in exactly this."""
        if command != self.command or len(etcd) != len(ours):
            return False
        differing = [(left, right) for left, right in zip(etcd, ours, strict=True) if left != right]
        return bool(differing) and all(
            left == self.etcd and re.fullmatch(self.ours, right) for left, right in differing
        )


KNOWN: list[Known] = [
    Known(
        name="header of alarms",
        reason="etcd 3.4 leaves the header of an Alarm reply empty; 3.6 fills it",
        command="alarm list -w json",
        etcd="out: {}",
        ours=r'out: \{"header": \{"cluster_id": \d+, "member_id": \d+, "revision": \d+, '
        r'"raft_term": "<raft term>"\}\}',
    ),
]
