"""Planted bugs of watches."""

from __future__ import annotations

from typing import Any

from kvstore.mvcc import watch_encode, watch_progress
from kvstore.mvcc.store import Store
from kvstore.mvcc.watch import WatchHub
from tests.sim.full.planted.bug import FullBug


def loses_on_full(self: WatchHub, stream: Any, first: int | None = None) -> None:
    """Go on after a full stream from now, not from what was missed."""
    stream.full = True
    for watcher in stream.watchers.values():
        if watcher.synced:
            self._fall_behind(watcher, self.revision + 1)
        elif watcher.behind:
            self._ready.pop(watcher, None)


def splits_revisions(self: Store, start: int, end: int, limit: int) -> Any:
    """Stop catching up at the limit, in the middle of a revision."""
    revisions, following = real_events_between(self, start, end, limit)
    if revisions and len(revisions[-1][1]) > limit:
        revisions[-1] = (revisions[-1][0], revisions[-1][1][:limit])
    return revisions, following


real_events_between = Store.events_between


def restored_in_sync(self: WatchHub, store: Any) -> None:
    """Call watchers synced after a snapshot, as if nothing had been skipped."""
    self.store = store
    self.revision = store.revision
    if self._ahead:
        self._admit_ahead()


def restored_from_the_start(self: WatchHub, store: Any) -> None:
    """Let watchers begin again where they were created."""
    self.store = store
    self.revision = store.revision
    for stream in list(self._streams):
        for watcher in stream.watchers.values():
            if watcher.synced:
                self._fall_behind(watcher, max(watcher.start, store.compacted, 1))


def progress_of_the_store(self: Any, stream: Any) -> bool:
    """Tell the store's revision, whether the watchers have got it or not."""
    stream.post(self._hub.head(self._hub.revision) + watch_progress._ALL)
    return True


def compaction_unnoticed(self: WatchHub) -> int:
    """Let watchers that need compacted revisions go on behind them."""
    compacted = self.store.compacted
    for watcher in self._ready:
        if watcher.next < compacted:
            watcher.next = compacted
    return int(real_settle_ready(self))


real_settle_ready = WatchHub._settle_ready


def history_unfiltered(self: WatchHub, events: Any, options: int) -> Any:
    """Forget the filters."""
    return real_pack(self, events, options & ~(watch_encode.NOPUT | watch_encode.NODELETE))


real_pack = WatchHub._pack


def previous_is_current(self: Store, event: Any) -> bytes | None:
    """Show the newest value as the previous one."""
    current = self.index.current(event.key)
    return None if current is None else self.buffer.record(current)


BUGS = (
    FullBug(
        "a slow watcher skips what it missed",
        "watch",
        "Xline #677, #491: events lost under load",
        ((WatchHub, "filled", loses_on_full),),
        "watch",
        20_000,
    ),
    FullBug(
        "catching up splits a revision",
        "watch",
        "etcd's robustness tests: a revision's events in two responses",
        ((Store, "events_between", splits_revisions),),
        "watch",
        20_000,
    ),
    FullBug(
        "a snapshot is not told to watchers",
        "watch",
        "etcd #19179 and kin: events skipped by a snapshot are lost",
        ((WatchHub, "restored", restored_in_sync),),
        "snapshot",
        140_000,
    ),
    FullBug(
        "a watch goes back in time after a snapshot",
        "watch",
        "etcd #15271: watch going back in time",
        ((WatchHub, "restored", restored_from_the_start),),
        "snapshot",
        140_000,
    ),
    FullBug(
        "progress is told to watchers that are behind",
        "watch",
        "etcd's robustness tests: a bookmark ahead of the events",
        ((watch_progress.Progress, "_tell_all", progress_of_the_store),),
        "watch",
        20_000,
    ),
    FullBug(
        "watchers jump over a compaction in silence",
        "watch",
        "etcd #18089: events lost at compaction",
        (
            (WatchHub, "_settle_ready", compaction_unnoticed),
            (WatchHub, "compacted", lambda self, revision: None),
        ),
        "watch",
        150_000,
    ),
    FullBug(
        "the previous value is the newest one",
        "watch",
        "etcd's robustness tests: prev_kv of another revision",
        ((Store, "prev_kv", previous_is_current),),
        "watch",
        20_000,
    ),
    FullBug(
        "filters are forgotten",
        "watch",
        "kine #100 and kin: options of a request ignored",
        ((WatchHub, "_pack", history_unfiltered),),
        "watch",
        20_000,
    ),
)
