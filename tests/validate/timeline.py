"""The order of all changes, put together from what is certain: the base of the other judges."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.validate.history import OK, REFUSED, UNKNOWN, History, Kv, Violation, Write


@dataclass(slots=True)
class Timeline:
    """Which change made which revision, and the store at every revision."""

    changes: dict[int, dict[bytes, Kv | None]] = field(default_factory=dict)
    """By revision: the keys that it changed, with what they became (None: deleted)."""
    writers: dict[int, Write] = field(default_factory=dict)
    versions: dict[bytes, list[tuple[int, Kv | None]]] = field(default_factory=dict)
    """By key: its states, ascending by revision."""
    last: int = 1

    def at(self, key: bytes, revision: int) -> Kv | None:
        """Return the key as it was at a revision."""
        states = self.versions.get(key, ())
        low, high = 0, len(states)
        while low < high:
            middle = (low + high) // 2
            if states[middle][0] <= revision:
                low = middle + 1
            else:
                high = middle
        return states[low - 1][1] if low else None


def build(history: History) -> Timeline:
    """Place every write that took effect, known or found by its unique value, and replay them.

    What no client is known to have written must be the end of a lease (keys of leases deleted) or
    a write whose outcome is unknown.

    Raises:
        Violation: Two changes at one revision, a change that nobody asked for, a refused write
            that shows, a write in the store at two revisions.
    """
    by_value = _by_value(history)
    seen = _observed(history)
    placed: dict[int, Write] = {}
    for write in history.writes:
        if write.outcome == OK and _has_effect(write):
            other = placed.setdefault(write.revision, write)
            if other is not write:
                raise Violation(f"two writes at revision {write.revision}:\n  {other}\n  {write}")
    for revision, changed in sorted(seen.items()):
        for key, kv in changed.items():
            if kv is None:
                continue
            write = by_value.get(kv.value)
            if write is None:
                raise Violation(f"{key!r} has at {revision} a value nobody wrote: {kv}")
            if write.outcome == REFUSED:
                raise Violation(f"refused, and yet there at revision {revision}: {write}")
            if write.outcome == UNKNOWN and not write.revision:
                write.revision = revision
            if write.revision != revision:
                raise Violation(f"shows at revision {revision}, made at another: {write}")
            other = placed.setdefault(revision, write)
            if other is not write:
                raise Violation(f"two writes at revision {revision}:\n  {other}\n  {write}")
    _place_unknown_deletes(history, placed, seen)
    return _replay(history, placed, seen)


def _has_effect(write: Write) -> bool:
    if not write.succeeded:
        return False
    return any(change.value is not None for change in write.changes) or bool(write.deleted)


def _by_value(history: History) -> dict[bytes, Write]:
    by_value: dict[bytes, Write] = {}
    for write in history.writes:
        for change in write.changes:
            if change.value is not None:
                assert change.value not in by_value, "values must be unique"
                by_value[change.value] = write
    return by_value


def _observed(history: History) -> dict[int, dict[bytes, Kv | None]]:
    """Return by revision what anybody saw of it: watch events and the results of reads."""
    seen: dict[int, dict[bytes, Kv | None]] = {}

    def note(revision: int, key: bytes, kv: Kv | None, who: str) -> None:
        changed = seen.setdefault(revision, {})
        if changed.setdefault(key, kv) != kv:
            raise Violation(f"{key!r} at {revision} is {changed[key]}, but {who} saw {kv}")

    for watch in history.watches:
        for batch in watch.batches:
            for event in batch.events:
                note(event.kv.mod, event.kv.key, event.kv if event.is_put else None, watch.who)
                if event.previous is not None:
                    note(event.previous.mod, event.kv.key, event.previous, watch.who)
    for read in history.reads:
        for kv in read.kvs:
            note(kv.mod, kv.key, kv, read.who)
    for write in history.writes:
        for key, previous in (write.previous or {}).items():
            if previous is not None:
                note(previous.mod, key, previous, write.who)
    return seen


def _place_unknown_deletes(
    history: History, placed: dict[int, Write], seen: dict[int, dict[bytes, Kv | None]]
) -> None:
    """Give each deletion nobody is known to have made to an unknown delete that can have made it.

    A delete can have taken effect at any time after its call. So, going up in revisions, each
    deletion takes the open delete of its keys that was called first; if that one was called too
    late, all others were, too. No search is needed.
    """
    open_deletes: dict[tuple[bytes, ...], list[Write]] = {}
    for write in sorted(history.writes, key=lambda write: write.call):
        if write.outcome == UNKNOWN and all(change.value is None for change in write.changes):
            keys = tuple(sorted(change.key for change in write.changes))
            open_deletes.setdefault(keys, []).append(write)
    for revision in sorted(seen):
        changed = seen[revision]
        if revision in placed or any(kv is not None for kv in changed.values()):
            continue
        keys = tuple(sorted(changed))
        if open_deletes.get(keys):
            write = open_deletes[keys].pop(0)
            write.revision = revision
            placed[revision] = write


def _replay(
    history: History, placed: dict[int, Write], seen: dict[int, dict[bytes, Kv | None]]
) -> Timeline:
    timeline = Timeline(writers=placed)
    state: dict[bytes, Kv] = {}
    for revision in sorted(set(placed) | set(seen)):
        changed: dict[bytes, Kv | None] = {}
        write = placed.get(revision)
        if write is not None:
            for change in write.changes:
                old = state.get(change.key)
                if change.value is None:
                    if old is not None:
                        changed[change.key] = None
                    continue
                changed[change.key] = Kv(
                    change.key,
                    change.value,
                    old.create if old else revision,
                    revision,
                    old.version + 1 if old else 1,
                    change.lease,
                )
        else:
            changed = dict.fromkeys(seen[revision])
            gone = [state.get(key) for key in changed]
            leases = {kv.lease if kv else 0 for kv in gone}
            if len(leases) != 1 or leases == {0}:
                raise Violation(f"nobody asked for the changes at revision {revision}: {changed}")
            # The end of a lease. Whether all its keys went is for the judge of leases.
        for key, kv in seen.get(revision, {}).items():
            if key not in changed or changed[key] != kv:
                raise Violation(
                    f"{key!r} at {revision} should be {changed.get(key, 'unchanged')}, "
                    f"but {kv} was seen; written by {write}"
                )
        for key, kv in changed.items():
            timeline.versions.setdefault(key, []).append((revision, kv))
            if kv is None:
                del state[key]
            else:
                state[key] = kv
        timeline.changes[revision] = changed
        timeline.last = revision
    if timeline.changes:
        gaps = set(range(2, timeline.last)) - set(timeline.changes)
        if gaps:
            # Somebody watches everything from the first revision on, so each one was seen.
            raise Violation(f"nothing is known of the revisions {sorted(gaps)[:20]}")
    return timeline
