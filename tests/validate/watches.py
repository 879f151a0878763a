"""What a watch promises, one judge each, against the timeline that the whole history gives."""

from __future__ import annotations

from tests.validate.history import Batch, Event, History, Violation, Watch, covers
from tests.validate.timeline import Timeline


def check(history: History, timeline: Timeline, *, until: int) -> None:
    """Judge every watcher; each must have heard of everything up to revision `until`."""
    for watch in history.watches:
        ordered(watch)
        unique(watch)
        atomic(watch)
        filtered(watch)
        true(watch, timeline)
        reliable(watch, timeline, until)
        bookmarkable(watch)
        resumed(watch)
        previous(watch, timeline, history.compactions)


def ordered(watch: Watch) -> None:
    """Revisions never go back, within a response and from one to the next."""
    newest = 0
    for batch in watch.batches:
        for event in batch.events:
            if event.kv.mod < newest:
                raise Violation(f"{watch.who}: an event of {event.kv.mod} came after {newest}")
            newest = event.kv.mod


def unique(watch: Watch) -> None:
    """No change of a key comes twice, over all streams."""
    seen: set[tuple[int, bytes]] = set()
    for batch in watch.batches:
        for event in batch.events:
            mark = (event.kv.mod, event.kv.key)
            if mark in seen:
                raise Violation(f"{watch.who}: {event.kv.key!r} at {event.kv.mod} came twice")
            seen.add(mark)


def atomic(watch: Watch) -> None:
    """All events of a revision are in one response (nobody asked for fragments)."""
    where: dict[int, int] = {}
    for number, batch in enumerate(watch.batches):
        for event in batch.events:
            if where.setdefault(event.kv.mod, number) != number:
                raise Violation(f"{watch.who}: revision {event.kv.mod} came in two responses")


def filtered(watch: Watch) -> None:
    """Nothing comes of other keys, of kinds that were filtered out, or from before the start."""
    for batch in watch.batches:
        for event in batch.events:
            wanted = watch.puts if event.is_put else watch.deletes
            if not wanted or not covers(watch.start, watch.end, event.kv.key):
                raise Violation(f"{watch.who}: did not ask for {event}")
            if event.kv.mod < watch.first:
                raise Violation(f"{watch.who}: asked from {watch.first} on, got {event}")


def true(watch: Watch, timeline: Timeline) -> None:
    """Every event is a change that took place."""
    for batch in watch.batches:
        for event in batch.events:
            changed = timeline.changes.get(event.kv.mod, {})
            expected = event.kv if event.is_put else None
            if event.kv.key not in changed or changed[event.kv.key] != expected:
                raise Violation(f"{watch.who}: {event} did not take place")


def reliable(watch: Watch, timeline: Timeline, until: int) -> None:
    """No change is missing from the start to `until`, but what the server said is compacted."""
    got = {(event.kv.mod, event.kv.key) for batch in watch.batches for event in batch.events}
    for revision in range(watch.first, until + 1):
        if any(start <= revision < end for start, end in watch.compacted):
            continue
        for key, kv in timeline.changes.get(revision, {}).items():
            if not covers(watch.start, watch.end, key):
                continue
            if (watch.puts if kv is not None else watch.deletes) and (revision, key) not in got:
                raise Violation(f"{watch.who}: never heard of {key!r} at {revision}")


def bookmarkable(watch: Watch) -> None:
    """After a progress mark of revision R comes nothing of R or before."""
    mark = 0
    for batch in watch.batches:
        if not batch.events:
            mark = max(mark, batch.revision)
        for event in batch.events:
            if event.kv.mod <= mark:
                raise Violation(f"{watch.who}: {event} came after the mark of {mark}")


def resumed(watch: Watch) -> None:
    """A stream that began at a revision sends nothing from before it."""
    for number, (position, start) in enumerate(watch.streams):
        following = watch.streams[number + 1][0] if number + 1 < len(watch.streams) else None
        for batch in watch.batches[position:following]:
            early = [event for event in batch.events if event.kv.mod < start]
            if early:
                raise Violation(f"{watch.who}: a stream from {start} on sent {early[0]}")


def previous(watch: Watch, timeline: Timeline, compactions: list[tuple[int, int]]) -> None:
    """The previous value of an event is the one before its revision, or was compacted away."""
    for batch in watch.batches:
        for event in batch.events:
            _check_previous(watch, batch, event, timeline, compactions)


def _check_previous(
    watch: Watch,
    batch: Batch,
    event: Event,
    timeline: Timeline,
    compactions: list[tuple[int, int]],
) -> None:
    expected = timeline.at(event.kv.key, event.kv.mod - 1) if watch.prev_kv else None
    if event.previous == expected:
        return
    if event.previous is None:
        compacted = max((at for order, at in compactions if order < batch.order), default=0)
        if event.kv.mod <= compacted:
            return
    raise Violation(f"{watch.who}: before {event} the key was {expected}")
