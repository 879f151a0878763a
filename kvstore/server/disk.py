"""The disk thread: saves append work to the log, in order, one fsync for all that waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from kvstore.raft.messages import AppendWork
from kvstore.wal import Wal, fatal

Failed = Callable[[BaseException], object]
Post = Callable[[Callable[[], None]], object]
"""Runs a callable on the loop; `loop.call_soon_threadsafe` fits."""


class DiskThread:
    """Owns the log. `on_saved` runs on the loop with each group, oldest first."""

    def __init__(
        self,
        wal: Wal,
        post: Post,
        on_saved: Callable[[list[AppendWork], float], None],
        failed: Failed = fatal,
    ) -> None:
        """Take the log; `start` starts the thread.

        Args:
            wal: The open log; from now on only the thread touches it.
            post: How to reach the loop.
            on_saved: Takes the saved works and the seconds that write and fsync took.
            failed: Takes any failure, on the thread, which ends with it at the latest.
        """
        self.inflight = 0
        """Works submitted and not yet reported as saved."""

        self._wal = wal
        self._post = post
        self._on_saved = on_saved
        self._failed = failed
        self._queue: queue.SimpleQueue[AppendWork | int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)

    def start(self) -> None:
        """Begin to save."""
        self._thread.start()

    def submit(self, work: AppendWork) -> None:
        """Queue one work; it is saved after all that were submitted before it."""
        self.inflight += 1
        self._queue.put(work)

    def release(self, index: int) -> None:
        """Let the log drop what it holds up to `index`, behind the works already queued."""
        self._queue.put(index)

    def close(self) -> None:
        """Save what is queued, close the log, end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except Exception as error:  # noqa: BLE001 (every failure of the log is fatal)
            self._failed(error)

    def _round(self) -> bool:
        """Do all that is queued, at least one thing; return whether the log is still open."""
        get_nowait = self._queue.get_nowait
        works: list[AppendWork] = []
        release = 0
        closing = False
        item = self._queue.get()
        try:
            while True:
                if item is None:
                    closing = True
                elif isinstance(item, int):
                    release = max(release, item)
                else:
                    works.append(item)
                item = get_nowait()
        except queue.Empty:
            pass
        if works:
            self._save(works)
        if release:
            self._wal.release(release)
        if closing:
            self._wal.close()
        elif self._queue.empty():
            self._wal.prepare()  # the next segment, while nobody waits for us
        return not closing

    def _save(self, works: list[AppendWork]) -> None:
        start = time.perf_counter()
        self._wal.save(works)
        duration_s = time.perf_counter() - start
        self._post(lambda: self._saved(works, duration_s))

    def _saved(self, works: list[AppendWork], duration_s: float) -> None:
        self.inflight -= len(works)
        self._on_saved(works, duration_s)
