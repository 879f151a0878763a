"""Watching several ranges as one: one order, one point to resume from.

Each range has a watch of its own. A revision is handed on when every watch is known to have passed
it, which events and progress marks tell; marks are asked for while something waits for them. Where
marks cannot be relied on (`progress`), one watch over everything between the ranges is filtered
here instead: more traffic, the same stream.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self

from kvstore.client.errors import KvError
from kvstore.client.keys import TO_THE_END, range_of
from kvstore.client.recipes.progress import has_true_marks
from kvstore.client.types import Event, WatchBatch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from kvstore.client.aio import AsyncClient
    from kvstore.client.watch import Watcher

_PENDING_MAX = 1024
# Revisions read ahead; more are left with the server.
_ASK_AGAIN_S = 0.1


class Span(NamedTuple):
    """A key or a range to watch; fields as the arguments of `AsyncClient.watch`."""

    key: bytes
    range_end: bytes = b""
    prefix: bool = False

    def bounds(self) -> tuple[bytes, bytes]:
        """Return the first key and the first after it; `TO_THE_END` as the latter is no bound."""
        first, end = range_of(self.key, self.range_end, prefix=self.prefix)
        return first, end or first + b"\0"


class MultiWatcher:
    """An asynchronous iterator over the changes in several ranges. Made by `watch_many`.

    Batches are as those of `Watcher`, in order of revision, each with the changes that the
    revision made in all of the ranges, in key order. Iteration ends as that of `Watcher`.
    """

    def __init__(
        self,
        client: AsyncClient,
        spans: Sequence[Span],
        *,
        start_revision: int,
        prev_kv: bool,
        progress_notify: bool,
        puts: bool,
        deletes: bool,
        resume_timeout_s: float | None,
    ) -> None:
        if not spans:
            raise ValueError("watch_many needs at least one range")
        self._client = client
        self._bounds = [span.bounds() for span in spans]
        self._prev_kv = prev_kv
        self._progress_notify = progress_notify
        self._puts = puts
        self._deletes = deletes
        self._resume_timeout_s = resume_timeout_s
        self._watchers: list[Watcher] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._starting: asyncio.Lock = asyncio.Lock()
        self._reached: list[int] = []
        """Of each watch, up to which revision everything has arrived."""
        self._asked_at_s: list[float] = []
        """When each watch was asked how far it is; 0 when it has answered."""
        self._pending: dict[int, dict[bytes, Event]] = {}
        self._woken = asyncio.Event()
        self._drained = asyncio.Event()
        self._wants_mark = progress_notify
        self._has_true_marks = False
        self._is_closed = False
        self._next_revision = start_revision

    @property
    def next_revision(self) -> int:
        """First revision not yet returned, in any range; start a later watch here."""
        return self._next_revision

    @property
    def resumptions(self) -> int:
        """How often a watch has moved to a new stream."""
        return sum(watcher.resumptions for watcher in self._watchers)

    async def start(self) -> Self:
        """Register the watches, if they are not yet. Raises as `Watcher.start`."""
        async with self._starting:
            if not self._pumps and not self._is_closed:
                try:
                    await self._register()
                except BaseException:
                    await self.aclose()
                    raise
        return self

    async def _register(self) -> None:
        if not self._next_revision:
            # The same beginning for all: they are registered one after another.
            now = await self._client.range(self._bounds[0][0], count_only=True)
            self._next_revision = now.revision + 1
        self._has_true_marks = await has_true_marks(self._client)
        bounds = self._bounds if self._has_true_marks else [cover(self._bounds)]
        self._watchers = [
            self._client.watch(
                first,
                end,
                start_revision=self._next_revision,
                prev_kv=self._prev_kv,
                progress_notify=self._progress_notify,
                puts=self._puts,
                deletes=self._deletes,
                resume_timeout_s=self._resume_timeout_s,
            )
            for first, end in bounds
        ]
        await asyncio.gather(*(watcher.start() for watcher in self._watchers))
        self._asked_at_s = [0.0] * len(self._watchers)
        self._reached = [self._next_revision - 1] * len(self._watchers)
        self._pumps = [
            asyncio.create_task(self._pump(number), name="kvstore-multiwatch")
            for number in range(len(self._watchers))
        ]

    async def _pump(self, number: int) -> None:
        try:
            async for batch in self._watchers[number]:
                if batch.events or self._has_true_marks:
                    self._take(number, batch)
                while len(self._pending) >= _PENDING_MAX and self._may_wait(number):
                    self._drained.clear()
                    await self._drained.wait()
        finally:
            self._woken.set()

    def _take(self, number: int, batch: WatchBatch) -> None:
        for event in batch.events:
            if any(holds(bounds, event.key) for bounds in self._bounds):
                self._pending.setdefault(batch.revision, {})[event.key] = event
        self._reached[number] = max(self._reached[number], batch.revision)
        self._asked_at_s[number] = 0.0
        self._woken.set()
        self._drained.set()

    def _may_wait(self, number: int) -> bool:
        """Tell whether a watch can be held up without holding up what others wait for."""
        frontier = min(self._reached)
        return self._reached[number] > frontier or min(self._pending) <= frontier

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        """Return the next revision's changes, or a progress mark. Cancelling loses nothing."""
        await self.start()
        while not self._is_closed:
            self._woken.clear()
            frontier = min(self._reached)
            first = min(self._pending, default=None)
            if first is not None and first <= frontier:
                events = self._pending.pop(first)
                self._drained.set()
                self._next_revision = first + 1
                return WatchBatch(first, tuple(events[key] for key in sorted(events)))
            if frontier >= self._next_revision:
                self._next_revision = frontier + 1
                if self._wants_mark:
                    self._wants_mark = self._progress_notify
                    return WatchBatch(frontier, ())
            for pump in self._pumps:
                if pump.done():
                    pump.result()  # raises what ended the watch
                    return await self._end()
            if first is not None:
                await self._ask(first)
            try:
                async with asyncio.timeout(None if first is None else _ASK_AGAIN_S):
                    await self._woken.wait()
            except TimeoutError:
                continue
        return await self._end()

    async def _end(self) -> NoReturn:
        await self.aclose()
        raise StopAsyncIteration

    async def _ask(self, revision: int) -> None:
        """Ask the watches that are not known to have passed a revision how far they are."""
        now_s = asyncio.get_running_loop().time()
        for number, watcher in enumerate(self._watchers):
            if (
                self._reached[number] < revision
                and now_s - self._asked_at_s[number] >= _ASK_AGAIN_S
            ):
                self._asked_at_s[number] = now_s
                await watcher.request_progress()

    async def request_progress(self) -> bool:
        """As `Watcher.request_progress`, of all ranges.

        Returns False too, and asks nothing, where marks cannot be relied on.
        """
        await self.start()
        if not self._has_true_marks:
            return False
        self._wants_mark = True
        answers = [await watcher.request_progress() for watcher in self._watchers]
        return all(answers)

    async def aclose(self) -> None:
        """End the watches; what was received and not yet read is dropped."""
        self._is_closed = True
        for watcher in self._watchers:
            await watcher.aclose()
        for pump in self._pumps:
            pump.cancel()
        ends = await asyncio.gather(*self._pumps, return_exceptions=True)
        self._woken.set()
        for end in ends:
            # What ended a watch was raised by the iteration; anything else is a defect of ours.
            if isinstance(end, Exception) and not isinstance(end, KvError):
                raise end

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def cover(bounds: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Return the smallest range that holds all of these."""
    ends = [end for _, end in bounds]
    return min(first for first, _ in bounds), TO_THE_END if TO_THE_END in ends else max(ends)


def holds(bounds: tuple[bytes, bytes], key: bytes) -> bool:
    """Tell whether a key lies in a range."""
    first, end = bounds
    return first <= key and (end == TO_THE_END or key < end)
