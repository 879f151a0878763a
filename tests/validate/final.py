"""What must hold when the faults are over: all members equal, and acknowledged writes there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.validate.history import Kv, Violation
from tests.validate.linearizable import range_at
from tests.validate.timeline import Timeline


def check(
    contents: Mapping[str, tuple[int, Sequence[Kv]]],
    hashes: Mapping[str, tuple[int, int, int]],
    timeline: Timeline,
) -> None:
    """Compare what each member holds.

    Args:
        contents: By member: revision and all keys.
        hashes: By member: HashKV's hash, compact revision and hashed revision.
        timeline: Acknowledged writes and what else was seen; nothing else may be in a store.
    """
    for member, (revision, kvs) in contents.items():
        if revision != timeline.last:
            raise Violation(f"{member} ends at revision {revision}, the history at {timeline.last}")
        expected = range_at(timeline, b"\0", b"\0", revision)
        if list(kvs) != expected:
            wrong = sorted(set(kvs) ^ set(expected))
            raise Violation(f"{member} differs from the history in {wrong[:6]}")
    if len(set(hashes.values())) != 1:
        raise Violation(f"the members' hashes differ: {dict(hashes)}")
