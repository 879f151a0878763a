"""Mirroring a range: its keys at one revision, then every change; again after compaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from kvstore.client.errors import ClosedError, CompactedError, KvError

if TYPE_CHECKING:
    from types import TracebackType

    from kvstore.client.aio import AsyncClient
    from kvstore.client.pages import Pages
    from kvstore.client.types import Event, KeyValue
    from kvstore.client.watch import Watcher


class MirrorBatch(NamedTuple):
    """A piece of a mirror: a page of its snapshot, the changes of one revision, or a mark."""

    revision: int
    """Of a page: the snapshot's, the same for all its pages. Else as of `WatchBatch`."""
    kvs: tuple[KeyValue, ...]
    """A page of the snapshot, in key order; empty otherwise."""
    events: tuple[Event, ...]
    """Changes of this revision; empty otherwise."""
    starts_over: bool
    """Drop everything held before: a snapshot begins. True for the first batch of all."""
    is_complete: bool
    """With this batch applied the copy is the range as it was at `revision`. False between the
    pages of a snapshot."""


class Mirror:
    """An asynchronous iterator that keeps a copy of a range true. Made by `AsyncClient.mirror`.

        async with client.mirror(b"config/", prefix=True) as mirror:
            async for batch in mirror:
                if batch.starts_over: copy.clear()
                copy.update((kv.key, kv.value) for kv in batch.kvs)
                for event in batch.events: ...

    The watch resumes by itself. Should its revisions have been compacted away meanwhile, a new
    snapshot comes, which `starts_over` and `rebuilds` say: what was deleted in between has no
    event. Ends when closed, or by an error; after an `AvailabilityError` it may be iterated again
    and goes on where it was.
    """

    def __init__(
        self,
        client: AsyncClient,
        key: bytes,
        range_end: bytes,
        *,
        prefix: bool,
        page_size: int,
        progress_notify: bool,
    ) -> None:
        self._client = client
        self._key = key
        self._range_end = range_end
        self._prefix = prefix
        self._page_size = page_size
        self._progress_notify = progress_notify
        self._pages: Pages | None = self._snapshot()
        self._starts_over = True
        self._watcher: Watcher | None = None
        self._next_revision = 0
        self._is_closed = False
        self._first: MirrorBatch | None = None
        self.rebuilds = 0
        """How often a snapshot had to be taken again because of compaction."""

    def _snapshot(self) -> Pages:
        return self._client.get_range(
            self._key, self._range_end, prefix=self._prefix, page_size=self._page_size
        )

    @property
    def next_revision(self) -> int:
        """First revision not yet received; 0 before the snapshot is complete."""
        return self._next_revision if self._watcher is None else self._watcher.next_revision

    async def start(self) -> Self:
        """Read the beginning of the snapshot, if that is not done; `async with` does this."""
        if self._pages is not None and self._starts_over and self._first is None:
            self._first = await self._next()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MirrorBatch:
        """Return the next batch; wait for it as long as it takes. Cancelling loses nothing."""
        first, self._first = self._first, None
        return await self._next() if first is None or self._is_closed else first

    async def _next(self) -> MirrorBatch:
        while True:
            if self._is_closed:
                raise StopAsyncIteration
            try:
                if self._pages is not None:
                    return await self._next_page(self._pages)
                return await self._next_changes()
            except CompactedError:
                self._pages = self._snapshot()
                self._starts_over = True
                self._watcher = None
                self._next_revision = 0
                self.rebuilds += 1

    async def _next_page(self, pages: Pages) -> MirrorBatch:
        kvs = await pages.next_page()
        starts_over, self._starts_over = self._starts_over, False
        if pages.is_last:
            self._pages = None
            self._next_revision = pages.revision + 1
        return MirrorBatch(pages.revision, tuple(kvs), (), starts_over, pages.is_last)

    async def _next_changes(self) -> MirrorBatch:
        if self._watcher is None:
            self._watcher = self._client.watch(
                self._key,
                self._range_end,
                prefix=self._prefix,
                start_revision=self._next_revision,
                progress_notify=self._progress_notify,
            )
        try:
            batch = await anext(self._watcher)
        except CompactedError:
            raise
        except KvError:
            self._next_revision = self._watcher.next_revision
            self._watcher = None  # so that the next call begins a watch where this one ended
            raise
        return MirrorBatch(batch.revision, (), batch.events, starts_over=False, is_complete=True)

    async def request_progress(self) -> bool:
        """As `Watcher.request_progress`; False too while a snapshot is being read."""
        if self._is_closed:
            raise ClosedError("the mirror is closed")
        return self._watcher is not None and await self._watcher.request_progress()

    async def aclose(self) -> None:
        """End it; an iteration that waits ends."""
        self._is_closed = True
        if self._watcher is not None:
            await self._watcher.aclose()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
