"""Makes the store durable behind the log: seals batches and commits them on a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from kvstore.mvcc.marks import AppliedMark
from kvstore.mvcc.store import Batch, Store
from kvstore.ports import Backend

INTERVAL_S = 0.1
"""Between commits, as etcd: one commit serves all changes of that time."""

BUFFER_BYTES = 32 << 20
BUFFER_RECORDS = 20_000
"""A buffer beyond either is committed at once."""

PURGE_RECORDS = 500
"""Compacted records removed per turn; a thousand take about 3 ms."""

PURGE_BUFFER_RECORDS = 10_000
"""The purge waits while the buffer holds this many: its deletions are records too."""

TRAILING_BYTES = 32 << 20
"""Entry bytes kept in the log for followers, whatever --snapshot-count says."""


class Storage:
    """The commit loop of one member."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        *,
        mark: Callable[[], AppliedMark],
        durable_index: Callable[[], int],
        committed: Callable[[AppliedMark, float], None],
        purged: Callable[[float, float | None], None],
        fatal: Callable[[BaseException], NoReturn],
    ) -> None:
        """Join the parts.

        Args:
            store: Whose buffer is sealed.
            backend: Commits on a thread of its own.
            mark: Returns the log position that the store is at.
            durable_index: Returns up to where our own log is on disk.
            committed: Told of each mark that became durable, and the seconds it took.
            purged: Told of each slice of a purge how many seconds it held the loop, and of the
                last one what the whole purge took.
            fatal: Ends the process.
        """
        self.store = store
        self.backend = backend
        self.commits = 0
        self.lock = asyncio.Lock()
        """Held while a batch is under way; whoever replaces the store holds it meanwhile."""

        self._mark = mark
        self._durable_index = durable_index
        self._committed = committed
        self._purged = purged
        self._purge_started_s: float | None = None
        self._fatal = fatal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._wake = asyncio.Event()
        self._log_moved = asyncio.Event()
        self._stopping = False
        self.held = False
        """Nothing more is committed: what is applied from now on stays in the log alone."""

        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def applied(self) -> None:
        """Look whether the buffer is full; called after entries were applied."""
        store = self.store
        if store.buffered_bytes >= BUFFER_BYTES or store.buffered_records >= BUFFER_RECORDS:
            self._wake.set()

    def log_saved(self) -> None:
        """Our own log moved: a batch may have waited for it."""
        self._log_moved.set()

    async def barrier(self) -> None:
        """Wait until everything applied so far is committed."""
        index = self._mark().index
        while self.store.applied.index < index or self.store.sealed_bytes:
            self._wake.set()
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Commit what is applied and durable in the log, then end."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def abandon(self) -> None:
        """End without a commit, after a failure: what is not committed is in the log."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._stopping:
                timer = loop.call_later(INTERVAL_S, self._wake.set)
                await self._wake.wait()
                timer.cancel()
                self._wake.clear()
                async with self.lock:
                    await self._commit()
                    await self._purge()
            async with self.lock:
                await self._commit()
        except Exception as error:  # noqa: BLE001 (whatever it is, nothing would be committed again)
            self._fatal(error)

    async def _commit(self) -> None:
        batch = None if self.held else self.store.seal(self._mark())
        if batch is None:
            return
        # Entries can be applied before our own disk has them (a quorum of others does). The store
        # must not get ahead of the log, or a crash would leave it with a future the log denies.
        while self._durable_index() < batch.applied.index:
            self._log_moved.clear()
            await self._log_moved.wait()
        start = time.perf_counter()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        self.store.committed(batch)
        self.commits += 1
        self._committed(batch.applied, time.perf_counter() - start)

    def _write(self, batch: Batch) -> None:
        try:
            self.backend.commit(batch.changes(), batch.puts)
        except Exception as error:  # noqa: BLE001 (every failure of the store's disk ends the process)
            self._fatal(error)

    async def _purge(self) -> None:
        store = self.store
        while not self._stopping and store.buffered_records < PURGE_BUFFER_RECORDS:
            if not store.purging:
                return
            start_s = time.perf_counter()
            if self._purge_started_s is None:
                self._purge_started_s = start_s
            removed = store.purged_records
            more = store.purge(PURGE_RECORDS)
            end_s = time.perf_counter()
            if not more:
                self._purged(end_s - start_s, end_s - self._purge_started_s)
                self._purge_started_s = None
                return
            if store.purged_records != removed:  # else it waits for a reader
                self._purged(end_s - start_s, None)
            await asyncio.sleep(0)
