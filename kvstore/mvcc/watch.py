"""The watch hub: which watcher gets which changes, live or from history; no sockets, clock, tasks.

A watcher is in one of three states:

    synced      it has everything up to the hub's revision; `notify` serves it
    behind      it misses changes from its `next` on; `catch_up` serves it from the store, unless
                its stream is full, then it waits for `writable`
    ahead       it starts at a future revision; it becomes synced or behind when that comes

A full stream makes its watchers fall behind: what is unsent is bounded by the stream, what is
missing is in the store, so nothing is lost and no queue grows with a slow reader.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstore.mvcc import watch_encode
from kvstore.mvcc.watch_encode import Piece, WatchEvent, pack
from kvstore.mvcc.watch_match import Matcher
from kvstore.mvcc.watch_progress import Progress
from kvstore.mvcc.watch_state import Group, Watcher, WatchSource
from kvstore.mvcc.watch_stream import WatchStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvstore.mvcc.events import Revision
    from kvstore.pb import rpc_pb2

PROGRESS_INTERVAL_NS: Final = 600 * 1_000_000_000
"""etcd's default of --watch-progress-notify-interval."""

FRAGMENT_BYTES: Final = 2 * 1024 * 1024
"""Request limit plus 512 KiB of overhead, as etcd."""

REVISIONS_MAX: Final = 1000
LIVE_BATCH_BYTES: Final = 15_000
"""Messages of one stream that are handed over together: with the last one still one DATA frame of
the size that every HTTP/2 client takes (16 KiB), if they are as short as most are."""

_WATCHERS_MAX: Final = 512
_EVENTS_MAX: Final = 4000
_EVENTS_READ: Final = 128
_BYTES_MAX: Final = 4 << 20
"""Bounds of one slice of catching up: it must not hold the loop for more than some milliseconds."""


class Statistics(NamedTuple):
    """Numbers for the metrics page."""

    streams: int
    watchers: int
    behind: int
    events_sent: int
    """Events delivered, counted once for each watcher."""
    revisions_pending: int
    """What watchers behind have yet to be shown: not more events than these revisions have."""


class WatchHub:
    """Joins the store's changes to the watchers of all streams.

    Args:
        store: Where history comes from.
        header: Returns the encoded ResponseHeader for a revision.
        fragment_bytes: Response size from which watchers with `fragment` get fragments.
        progress_interval_ns: Between periodic progress notifications of a stream.
        jitter: Returns a number in [0, n), so that streams opened together do not all notify
            together; `Random.randrange` from 0 fits.
    """

    def __init__(
        self,
        store: WatchSource,
        header: Callable[[int], bytes],
        *,
        fragment_bytes: int = FRAGMENT_BYTES,
        progress_interval_ns: int = PROGRESS_INTERVAL_NS,
        jitter: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self.store = store
        store.watched = False

        self.revision = store.revision
        """Revision up to which changes were taken. Synced watchers have everything up to it."""

        self._header = header
        self._fragment_bytes = fragment_bytes
        self._progress = Progress(self, progress_interval_ns, jitter)
        self._matcher: Matcher[Group] = Matcher()
        self._streams: dict[WatchStream, None] = {}

        self._ready: dict[Watcher, None] = {}
        """Behind, and their streams can take more; first in, first served."""

        self._ahead: dict[Watcher, None] = {}
        self._ahead_from = 0
        """Least start of those ahead; meaningless when there are none."""

        self._behind: dict[Watcher, None] = {}
        self._events_sent = 0

    # the node's side

    def open(
        self,
        send: Callable[[bytes], bool],
        send_all: Callable[[Sequence[bytes]], bool],
        authorize: Callable[[bytes, bytes | None], str | None] | None = None,
    ) -> WatchStream:
        """Serve one Watch RPC.

        Args:
            send: Queues one WatchResponse; False when the stream has more unsent than it should.
                The message is queued then too, but watchers get nothing until `writable`.
            send_all: As `send`, for several at once, at least one.
            authorize: Asked for each new watcher with start and end (empty: single key, None: no
                end). Returns None to permit, or the complete gRPC status text.
        """
        stream = WatchStream(self, send, send_all, authorize)
        self._streams[stream] = None
        return stream

    def notify(self, changes: Sequence[Revision]) -> None:
        """Take the changes of an applied entry, in order of revision, and serve synced watchers.

        Without watchers the store may leave changes out (`WatchSource.watched`).
        """
        if not self._matcher:
            self.revision = self.store.revision
        elif changes:
            first = changes[0][0]
            assert first > self.revision
            match = self._matcher.match
            touched: dict[Group, list[WatchEvent]] = {}
            for _, events in changes:
                for event in events:
                    shared = None
                    for group in match(event.key):
                        if group.synced:
                            if shared is None:
                                shared = WatchEvent(event)
                            if group in touched:
                                touched[group].append(shared)
                            else:
                                touched[group] = [shared]
            self.revision = changes[-1][0]
            for group, matched in touched.items():
                self._deliver_live(group, matched, first)
            if self._ahead and self._ahead_from <= self.revision + 1:
                self._admit_ahead()
        self._progress.answer()

    def catch_up(self, revisions_max: int = REVISIONS_MAX) -> bool:
        """Serve watchers that are behind, for one slice of work.

        Args:
            revisions_max: Revisions to read from the store at most.

        Returns:
            Whether there is more to do now.
        """
        ready = self._ready
        first = self._settle_ready()
        if first:
            last = min(first + revisions_max - 1, self.revision)
            chosen: dict[Group, dict[tuple[int, int], list[Watcher]]] = {}
            for watcher in islice(ready, _WATCHERS_MAX):
                if first <= watcher.next <= last:
                    kinds = chosen.setdefault(watcher.group, {})
                    kinds.setdefault((watcher.options, watcher.next), []).append(watcher)
            last, matched = self._read(first, last, chosen)
            head = self.head(self.revision)
            for group, kinds in chosen.items():
                events = matched.get(group, [])
                for (options, start), watchers in kinds.items():
                    if start <= last:
                        missing = [event for event in events if event.revision >= start]
                        pieces = self._pack(missing, options)
                        for watcher in watchers:
                            self._deliver_history(watcher, head, pieces, last)
        self._progress.answer()
        return bool(ready)

    @property
    def has_work(self) -> bool:
        """Whether `catch_up` has anything to do."""
        return bool(self._ready)

    def compacted(self, revision: int) -> None:
        """Cancel the watchers that need what a compaction at `revision` has taken away."""
        for watcher in [watcher for watcher in self._behind if watcher.next < revision]:
            if watcher.behind:  # not closed by the send of another
                self.cancel_compacted(watcher, revision)
        self._progress.answer()

    def restored(self, store: WatchSource) -> None:
        """Go on with a store that a snapshot has replaced: what it skipped comes from history.

        Watchers whose next revision the snapshot does not hold any more are cancelled.
        """
        next_revision = self.revision + 1
        self.store = store
        store.watched = bool(self._matcher)
        self.revision = store.revision
        for stream in list(self._streams):
            for watcher in stream.watchers.values():
                if watcher.synced:
                    self._fall_behind(watcher, next_revision)
        if self._ahead:
            self._admit_ahead()
        self.compacted(store.compacted)

    def progress(self, now_ns: int) -> None:
        """Send the periodic progress notifications that are due; call it every second or so.

        Args:
            now_ns: Monotonic time.
        """
        self._progress.tick(now_ns)

    def statistics(self) -> Statistics:
        """Return the current numbers."""
        watchers = sum(len(stream.watchers) for stream in self._streams)
        pending = sum(max(0, self.revision + 1 - watcher.next) for watcher in self._behind)
        return Statistics(
            len(self._streams), watchers, len(self._behind), self._events_sent, pending
        )

    # the streams' side

    def head(self, revision: int) -> bytes:
        """Return the header field of a response."""
        return watch_encode.head(self._header(revision))

    def add(
        self,
        stream: WatchStream,
        request: rpc_pb2.WatchCreateRequest,
        watch_id: int,
        start: bytes,
        end: bytes | None,
    ) -> Watcher:
        """Place a new watcher; range and id are checked already."""
        group = self._matcher.get(start, end)
        if group is None:
            group = Group(start, end)
            self._matcher.add(start, end, group)
            self.store.watched = True
        group.size += 1
        watcher = stream.watchers[watch_id] = Watcher(stream, group, request, watch_id)
        if watcher.progress_notify:
            self._progress.want(stream)
        next_revision = self.revision + 1
        if watcher.start > next_revision:
            if not self._ahead or watcher.start < self._ahead_from:
                self._ahead_from = watcher.start
            self._ahead[watcher] = None
        elif watcher.start in (0, next_revision) and not stream.full:
            self._become_synced(watcher)
        else:
            watcher.next = watcher.start or next_revision
            self._become_behind(watcher)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher, in whatever state it is."""
        group = watcher.group
        if watcher.synced:
            watcher.synced = False
            del group.synced[watcher]
        elif watcher.behind:
            watcher.behind = False
            del self._behind[watcher]
            self._ready.pop(watcher, None)
        else:
            del self._ahead[watcher]
        del watcher.stream.watchers[watcher.id]
        if not watcher.stream.watchers:
            self._progress.drop(watcher.stream)
        group.size -= 1
        if not group.size:
            self._matcher.remove(group.start, group.end)
            self.store.watched = bool(self._matcher)

    def close(self, stream: WatchStream) -> None:
        """Forget a stream and its watchers."""
        for watcher in list(stream.watchers.values()):
            self.remove(watcher)
        self._streams.pop(stream, None)
        self._progress.forget(stream)

    def cancel(self, watcher: Watcher) -> None:
        """End a watcher as its client asked."""
        self.remove(watcher)
        watcher.stream.post(self.head(self.revision) + watcher.tag + watch_encode.CANCELED)
        self._progress.answer()  # it may have been the last one that was behind

    def cancel_compacted(self, watcher: Watcher, compacted: int) -> None:
        """End a watcher that needs a compacted revision."""
        self.remove(watcher)
        # etcd leaves the revision out of this one header.
        message = self.head(0) + watcher.tag + watch_encode.compacted(compacted)
        watcher.stream.post(message)

    def filled(self, stream: WatchStream, first: int | None = None) -> None:
        """Let a stream's watchers fall behind, as it took its last message for now.

        Args:
            stream: The stream.
            first: First revision that a synced watcher may not have got, while a round of
                `notify` goes on; each watcher that got more says so itself in `next`.
        """
        stream.full = True
        next_revision = self.revision + 1 if first is None else first
        for watcher in stream.watchers.values():
            if watcher.synced:
                self._fall_behind(watcher, max(watcher.next, next_revision))
            elif watcher.behind:
                self._ready.pop(watcher, None)

    def emptied(self, stream: WatchStream) -> None:
        """Go on with a stream that can take more."""
        stream.full = False
        for watcher in stream.watchers.values():
            if watcher.behind:
                self._ready[watcher] = None

    def ask_progress(self, stream: WatchStream) -> None:
        """Tell a stream's progress as soon as all its watchers have got everything."""
        self._progress.ask(stream)

    # states

    def _become_synced(self, watcher: Watcher) -> None:
        watcher.synced = True
        watcher.group.synced[watcher] = None

    def _become_behind(self, watcher: Watcher) -> None:
        watcher.behind = True
        self._behind[watcher] = None
        if not watcher.stream.full:
            self._ready[watcher] = None

    def _fall_behind(self, watcher: Watcher, next_revision: int) -> None:
        watcher.synced = False
        del watcher.group.synced[watcher]
        watcher.next = next_revision
        self._become_behind(watcher)

    def _caught_up(self, watcher: Watcher) -> None:
        watcher.behind = False
        del self._behind[watcher]
        self._ready.pop(watcher, None)
        self._become_synced(watcher)

    def _admit_ahead(self) -> None:
        """Place those whose start is the next revision, or was passed by in a batch."""
        due = [watcher for watcher in self._ahead if watcher.start <= self.revision + 1]
        for watcher in due:
            del self._ahead[watcher]
            watcher.next = watcher.start
            if watcher.start > self.revision and not watcher.stream.full:
                self._become_synced(watcher)
            else:
                self._become_behind(watcher)
        self._ahead_from = min((watcher.start for watcher in self._ahead), default=0)

    # delivery

    def _pack(self, events: Iterable[WatchEvent], options: int) -> list[Piece]:
        return pack(events, options, self.store.prev_kv, self._fragment_bytes)

    def _deliver_live(self, group: Group, events: list[WatchEvent], first: int) -> None:
        packed: dict[int, list[tuple[Piece, bytes]]] = {}
        sent = 0
        stream: WatchStream | None = None
        batch: list[bytes] = []
        room_bytes = 0
        # A copy, as a stream that fills up takes its watchers out of the group.
        for watcher in tuple(group.synced):
            if watcher.stream is not stream or room_bytes <= 0:
                if batch and stream is not None:
                    self._send_live(stream, batch, first)
                stream, batch, room_bytes = watcher.stream, [], LIVE_BATCH_BYTES
            if not watcher.synced:
                continue
            pieces = packed.get(watcher.options)
            if pieces is None:
                # A live response's header has the revision of its last event.
                pieces = packed[watcher.options] = [
                    (piece, self.head(piece.last)) for piece in self._pack(events, watcher.options)
                ]
            for (last, count, rests), head in pieces:
                watcher.next = last + 1
                watcher.quiet = False
                sent += count
                for rest in rests:
                    message = head + watcher.tag + rest
                    batch.append(message)
                    room_bytes -= len(message)
                if room_bytes <= 0:
                    has_room = self._send_live(watcher.stream, batch, first)
                    batch, room_bytes = [], LIVE_BATCH_BYTES
                    if not has_room:
                        break
        if batch and stream is not None:
            self._send_live(stream, batch, first)
        self._events_sent += sent

    def _send_live(self, stream: WatchStream, batch: list[bytes], first: int) -> bool:
        if stream.send_all(batch):
            return True
        self.filled(stream, first)
        return False

    def _deliver_history(
        self, watcher: Watcher, head: bytes, pieces: list[Piece], last: int
    ) -> None:
        """Bring a watcher that is behind up to `last`, as far as its stream has room."""
        for piece in pieces:
            if watcher.stream.full or not watcher.behind:
                return
            watcher.next = piece.last + 1
            watcher.quiet = False
            self._events_sent += piece.events
            room = True
            for rest in piece.rests:
                room = watcher.send(head + watcher.tag + rest)
            if not room:
                self.filled(watcher.stream)
                return
        if watcher.stream.full or not watcher.behind:
            return
        watcher.next = last + 1
        # To the end of the queue, or out of it: others get their slice before this one's next.
        del self._ready[watcher]
        if watcher.next > self.revision:
            self._caught_up(watcher)
        else:
            self._ready[watcher] = None

    def _settle_ready(self) -> int:
        """Move those on that need nothing read, and return the next revision of the first other.

        0 when there is none within one slice.
        """
        compacted = self.store.compacted
        for watcher in list(islice(self._ready, _WATCHERS_MAX)):
            if watcher.next > self.revision:
                self._caught_up(watcher)
            elif watcher.next < compacted:
                self.cancel_compacted(watcher, compacted)
            elif not watcher.stream.full:
                return watcher.next
        return 0

    def _read(
        self, first: int, last: int, groups: dict[Group, dict[tuple[int, int], list[Watcher]]]
    ) -> tuple[int, dict[Group, list[WatchEvent]]]:
        """Return the events of some groups, and up to which revision they are complete."""
        matched: dict[Group, list[WatchEvent]] = {}
        match = self._matcher.match
        events_left = _EVENTS_MAX
        bytes_left = _BYTES_MAX
        position = first
        while position <= last and events_left > 0 and bytes_left > 0:
            # Little by little, as only the number of events is bounded in a call, not their size.
            revisions, position = self.store.events_between(position, last, _EVENTS_READ)
            for _, events in revisions:
                events_left -= len(events)
                for event in events:
                    bytes_left -= len(event.kv)
                    shared = None
                    for group in match(event.key):
                        if group in groups:
                            shared = shared or WatchEvent(event)
                            matched.setdefault(group, []).append(shared)
        return position - 1, matched
