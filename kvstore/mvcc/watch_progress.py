"""Progress notifications, periodic and asked for; when watchers are synced is the hub's matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.mvcc import watch_encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.mvcc.watch import WatchHub
    from kvstore.mvcc.watch_stream import WatchStream

_ALL = watch_encode.tag(-1)
"""Watch id of a progress that holds for all watchers of the stream."""


class Progress:
    """Who is to be told that everything up to a revision was delivered.

    Args:
        hub: Says what was delivered.
        interval_ns: Between periodic notifications of a stream.
        jitter: Returns a number in [0, n).
    """

    def __init__(self, hub: WatchHub, interval_ns: int, jitter: Callable[[int], int]) -> None:
        self._hub = hub
        self._interval_ns = interval_ns
        self._jitter = jitter

        self._asking: dict[WatchStream, None] = {}
        """Streams that asked while it could not be told."""

        self._due: dict[WatchStream, int] = {}
        """Streams with watchers that want it periodically, and when; 0: not scheduled yet."""

    def want(self, stream: WatchStream) -> None:
        """Note that a watcher of the stream wants periodic notifications."""
        self._due.setdefault(stream, 0)

    def forget(self, stream: WatchStream) -> None:
        """Drop a stream that has ended."""
        self._asking.pop(stream, None)
        self._due.pop(stream, None)

    def drop(self, stream: WatchStream) -> None:
        """Forget that a stream asked: it has no watchers left."""
        self._asking.pop(stream, None)

    def ask(self, stream: WatchStream) -> None:
        """Tell a stream's progress as soon as all its watchers have got everything.

        A stream without watchers gets no answer, as with etcd.
        """
        if stream.watchers and not self._tell_all(stream):
            self._asking[stream] = None

    def answer(self) -> None:
        """Tell those who asked, where it can be told now."""
        for stream in list(self._asking):
            if self._tell_all(stream):
                self._asking.pop(stream, None)

    def tick(self, now_ns: int) -> None:
        """Send the periodic notifications that are due."""
        for stream, due_ns in list(self._due.items()):
            if due_ns > now_ns:
                continue
            if due_ns:
                self._tell_each(stream)
            if stream in self._due:
                jitter_ns = self._jitter(max(1, self._interval_ns // 10))
                self._due[stream] = now_ns + self._interval_ns + jitter_ns

    def _tell_all(self, stream: WatchStream) -> bool:
        revision = self._hub.revision
        for watcher in stream.watchers.values():
            # A progress before a watcher's start would let its client resume too early.
            if not watcher.synced or watcher.start > revision:
                return False
        stream.post(self._hub.head(revision) + _ALL)
        return True

    def _tell_each(self, stream: WatchStream) -> None:
        wanted = False
        revision = self._hub.revision
        for watcher in list(stream.watchers.values()):
            if watcher.progress_notify:
                wanted = True
                if watcher.quiet and watcher.synced and watcher.start <= revision:
                    stream.post(self._hub.head(revision) + watcher.tag)
                watcher.quiet = True
        if not wanted:
            self._due.pop(stream, None)
