"""Linearizability over all keys: real time against revisions, and every answer against the replay.

The revisions in the answers give the order of all changes, so nothing is searched. That they are to
be trusted is checked besides on single keys without them (`registers`), by the simulator's search.
"""

from __future__ import annotations

from tests.sim.linear import PUT, READ, Operation, linearizable
from tests.validate.history import (
    OK,
    REFUSED,
    UNKNOWN,
    History,
    Kv,
    Read,
    Violation,
    Write,
    covers,
)
from tests.validate.timeline import Timeline


def check(history: History, timeline: Timeline) -> None:
    """Check the order against real time, then every answer against the store at its revision."""
    _real_time(history)
    for write in history.writes:
        if write.outcome == OK:
            _check_write(write, timeline)
    for read in history.reads:
        _check_read(read, timeline)


def _real_time(history: History) -> None:
    """What returned before another was called has no higher revision than that.

    So no answer shows a write that had not been called yet, either.
    """
    marks: list[tuple[int, int, Write | Read, bool]] = []
    for write in history.writes:
        if write.outcome != REFUSED and write.revision:
            marks.append((write.call, 0, write, True))
            if write.outcome == OK:
                marks.append((write.back, 1, write, True))
    for read in history.reads:
        if not read.serializable and not read.at:
            marks.append((read.call, 0, read, False))
        marks.append((read.back, 1, read, False))
    newest: Write | Read | None = None
    floor = 0
    for _, is_back, operation, is_write in sorted(marks, key=lambda mark: mark[:2]):
        revision = operation.revision
        if not is_back:
            changes = is_write and isinstance(operation, Write) and _changes(operation)
            if revision < floor or (changes and revision == floor):
                raise Violation(f"back in time:\n  first: {newest}\n  then: {operation}")
        elif revision > floor:
            floor, newest = revision, operation


def _changes(write: Write) -> bool:
    return write.succeeded and (
        any(change.value is not None for change in write.changes) or bool(write.deleted)
    )


def _check_write(write: Write, timeline: Timeline) -> None:
    before = write.revision - 1 if _changes(write) else write.revision
    held = all(
        (kv.mod if (kv := timeline.at(key, before)) else 0) == mod for key, mod in write.compares
    )
    if held != write.succeeded:
        raise Violation(f"the compares {'held' if held else 'did not hold'}: {write}")
    if not write.succeeded:
        return
    for key, previous in (write.previous or {}).items():
        expected = timeline.at(key, before)
        if previous != expected:
            raise Violation(f"{key!r} was {expected} before, answered {previous}: {write}")
    if write.deleted is not None:
        there = sum(
            timeline.at(change.key, before) is not None
            for change in write.changes
            if change.value is None
        )
        if there != write.deleted:
            raise Violation(f"{there} keys were there, {write.deleted} deleted: {write}")


def _check_read(read: Read, timeline: Timeline) -> None:
    revision = read.at or read.revision
    expected = range_at(timeline, read.start, read.end, revision)
    if list(read.kvs) != expected:
        wrong = sorted(set(read.kvs) ^ set(expected))
        raise Violation(f"{read}: the store at {revision} differs in {wrong[:6]}")


def range_at(timeline: Timeline, start: bytes, end: bytes, revision: int) -> list[Kv]:
    """Return what a range holds at a revision."""
    keys = [start] if not end else [key for key in timeline.versions if covers(start, end, key)]
    return sorted(kv for key in keys if (kv := timeline.at(key, revision)) is not None)


def check_registers(history: History, prefix: bytes) -> int:
    """Check single keys by search, blind to revisions; return how many operations that were.

    The keys below `prefix` are only ever put (with the previous value asked for) and read alone.
    """
    by_key: dict[bytes, list[Operation]] = {}
    numbers: dict[bytes, int] = {}

    def number(value: bytes) -> int:
        return numbers.setdefault(value, len(numbers) + 1)

    for write in history.writes:
        [first, *more] = write.changes
        if not first.key.startswith(prefix) or write.outcome == REFUSED:
            continue
        assert not more
        assert first.value is not None
        operation = Operation(0, PUT, number(first.value), write.call)
        if write.outcome != UNKNOWN:
            assert write.previous is not None
            kv = write.previous[first.key]
            operation.back = write.back
            operation.result = (number(kv.value),) if kv else ()
        by_key.setdefault(first.key, []).append(operation)
    for read in history.reads:
        if read.start.startswith(prefix) and not read.end and not read.serializable and not read.at:
            result = tuple(number(kv.value) for kv in read.kvs)
            operation = Operation(0, READ, 0, read.call, read.back, result)
            by_key.setdefault(read.start, []).append(operation)
    for key, operations in by_key.items():
        if not linearizable(operations):
            text = "\n".join(f"    {operation}" for operation in operations)
            raise Violation(f"no order explains the operations on {key!r}:\n{text}")
    return sum(map(len, by_key.values()))
