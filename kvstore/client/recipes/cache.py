"""A copy of a range in memory, fed by a mirror, that knows how old it may be.

How staleness is bounded: a linearizable read of the store's revision, begun at a moment T, and the
copy having reached that revision, prove that the copy holds everything acknowledged before T. The
copy learns that it has reached a revision from events and from progress marks. Where marks cannot
be relied on (`progress`), count and newest change of the range are compared instead: had anything
changed, a key would be new, changed or gone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sortedcontainers import SortedDict

from kvstore.client.errors import AvailabilityError, ClosedError, KvError, ReadFailedError
from kvstore.client.keys import TO_THE_END, range_of
from kvstore.client.recipes.progress import has_true_marks
from kvstore.client.txn import Op
from kvstore.client.types import KeyValue, RangeResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kvstore.client.aio import AsyncClient
    from kvstore.client.recipes.mirror import Mirror, MirrorBatch

_PAUSE_S = 0.1
_ASK_AGAIN_S = 0.1
# A server ignores a request for progress while the watch is catching up.


class CacheStatistics(NamedTuple):
    """What a cache holds and has done."""

    keys: int
    revision: int
    """The copy is the range as it was at this revision, or later."""
    rebuilds: int
    """How often compaction made it read the range anew."""
    proofs: int
    """How often it asked the cluster how far it must have got."""


class Cache:
    """A copy of a range that follows the store. Made by `AsyncClient.cache`.

        async with client.cache(b"config/", prefix=True) as cache:
            cache.peek(b"config/limit")                             # at once, from memory
            await cache.get(b"config/limit", max_staleness_s=1.0)   # at most 1 s behind
            await cache.wait_revision(put.revision)                 # sees this write

    What it returns at one moment is the range as it was at one revision, which never goes back.
    """

    def __init__(
        self,
        client: AsyncClient,
        key: bytes,
        range_end: bytes,
        *,
        prefix: bool,
        on_rebuild: Callable[[Cache], None] | None,
        mirror: Mirror,
        timeout_s: float,
    ) -> None:
        self._client = client
        self._key, self._range_end = range_of(key, range_end, prefix=prefix)
        self._mirror = mirror
        self._on_rebuild = on_rebuild
        self._timeout_s = timeout_s
        self._kvs: SortedDict = SortedDict()
        self._filling: dict[bytes, KeyValue] | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._proof: asyncio.Task[None] | None = None
        self._has_true_marks = False
        self._failure: KvError | None = None
        self._fresh_at_s = 0.0
        self._proofs = 0
        self._is_closed = False
        self.revision = 0
        """The copy is the range as it was at this revision, or later; 0 before it is filled."""

    @property
    def rebuilds(self) -> int:
        """How often compaction made it read the range anew; until then it served the old copy."""
        return self._mirror.rebuilds

    def statistics(self) -> CacheStatistics:
        """Return what it holds and has done."""
        return CacheStatistics(len(self._kvs), self.revision, self.rebuilds, self._proofs)

    async def start(self) -> Self:
        """Fill the cache. `async with` does this.

        Raises what `AsyncClient.get_range` raises; the cache is closed then.
        """
        if self._task is None:
            self._has_true_marks = await has_true_marks(self._client)
            self._fresh_at_s = asyncio.get_running_loop().time()
            self._task = asyncio.create_task(self._follow(), name="kvstore-cache")
        try:
            await self._filled()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _filled(self) -> None:
        # However long it takes: each page has the client's timeout, and a failure ends it.
        while not self.revision:
            self._check()
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()

    def peek(self, key: bytes) -> KeyValue | None:
        """Return a key as the copy has it, or None when it is absent there."""
        self._check()
        kv: KeyValue | None = self._kvs.get(key)
        return kv

    def items(
        self, key: bytes = b"", range_end: bytes = b"", *, prefix: bool = False
    ) -> list[KeyValue]:
        """Return the copy's keys of a range, or all, in key order, as they are at one moment."""
        self._check()
        if not key and not range_end:
            prefix = True
        first, end = range_of(key, range_end, prefix=prefix)
        if not end:
            kv = self._kvs.get(first)
            return [] if kv is None else [kv]
        last = None if end == TO_THE_END else end
        return [self._kvs[each] for each in self._kvs.irange(first, last, inclusive=(True, False))]

    async def get(self, key: bytes, *, max_staleness_s: float | None = None) -> KeyValue | None:
        """Return a key, or None when it is absent.

        Args:
            key: A key of the range.
            max_staleness_s: Everything acknowledged longer ago than this is seen. 0 is a
                linearizable read, one round for all who wait; None takes the copy as it is.

        Raises:
            ReadFailedError, NoLeaderError, UnreachableError: The bound could not be kept within
                the client's timeout. `peek` still has the copy.
            And what ended the cache: PermissionDeniedError, ClosedError.
        """
        if max_staleness_s is not None:
            await self.refresh(max_staleness_s)
        return self.peek(key)

    async def refresh(self, max_staleness_s: float = 0.0) -> None:
        """Make sure that what was acknowledged before `max_staleness_s` ago is in the copy.

        Raises as `get`.
        """
        needed_at_s = asyncio.get_running_loop().time() - max_staleness_s
        while self._fresh_at_s < needed_at_s:
            self._check()
            if self._proof is None or self._proof.done():
                self._proof = asyncio.create_task(self._prove(), name="kvstore-cache-proof")
                # Its outcome counts as seen even when every caller has given up waiting for it.
                self._proof.add_done_callback(lambda task: task.cancelled() or task.exception())
            proof = self._proof
            # Shared: one caller giving up must not end it for the others.
            await asyncio.wait({proof})
            if proof.cancelled():
                raise ClosedError("the cache is closed")
            proof.result()

    async def wait_revision(self, revision: int, *, timeout_s: float | None = None) -> None:
        """Return when the copy has everything up to a revision, such as that of a put.

        Raises TimeoutError when it has not within `timeout_s` seconds; None waits as long as it
        takes. And what ended the cache.
        """
        async with asyncio.timeout(timeout_s):
            while self.revision < revision:
                self._check()
                changed = self._changed
                if self.revision:  # else it is being filled
                    if self._has_true_marks:
                        await self._mirror.request_progress()
                    else:
                        await self.refresh()
                        if self.revision >= revision:
                            return
                await _wait(changed, _ASK_AGAIN_S)

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError("the cache is closed")
        if self._task is None:
            raise RuntimeError("start it first, or use it in `async with`")
        if self._task.done():
            self._task.result()
            raise ClosedError("the client of the cache is closed")

    async def _follow(self) -> None:
        try:
            while True:
                try:
                    async for batch in self._mirror:
                        self._failure = None
                        self._apply(batch)
                        self._wake()
                    return
                except AvailabilityError as failure:
                    self._failure = failure
                    self._wake()
                    await asyncio.sleep(_PAUSE_S)  # the mirror goes on where it was
        finally:
            self._wake()

    def _wake(self) -> None:
        # A new event each time: one that stays set would keep its waiters spinning.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _apply(self, batch: MirrorBatch) -> None:
        if batch.starts_over:
            self._filling = {}
        if self._filling is not None:
            self._filling.update((kv.key, kv) for kv in batch.kvs)
            if not batch.is_complete:
                return
            is_rebuild = self.revision > 0
            self._kvs, self._filling = SortedDict(self._filling), None
            self.revision = batch.revision
            if is_rebuild and self._on_rebuild is not None:
                self._on_rebuild(self)
            return
        for event in batch.events:
            if event.kind == "PUT":
                self._kvs[event.key] = event.kv
            else:
                self._kvs.pop(event.key, None)
        if batch.events or self._has_true_marks:
            self.revision = max(self.revision, batch.revision)

    async def _prove(self) -> None:
        """Ask the cluster how far it is, and wait until the copy is as far."""
        self._proofs += 1
        began_at_s = asyncio.get_running_loop().time()
        if self._has_true_marks:
            # One key, and only its count: what it says of interest is the store's revision.
            now = await self._client.range(self._key, count_only=True)
            await self._within_timeout(self.wait_revision(now.revision))
        else:
            await self._within_timeout(self._compare())
        self._fresh_at_s = max(self._fresh_at_s, began_at_s)

    async def _compare(self) -> None:
        result = await (
            self._client.txn()
            .then(
                Op.get(self._key, self._range_end, count_only=True),
                Op.get(
                    self._key,
                    self._range_end,
                    limit=1,
                    keys_only=True,
                    sort_target="mod",
                    sort_order="descend",
                ),
            )
            .commit()
        )
        count, newest = result.responses
        assert isinstance(count, RangeResult)
        assert isinstance(newest, RangeResult)
        wanted = (count.count, newest.kvs[0].mod_revision if newest.kvs else 0)
        while self.revision < result.revision:
            self._check()
            changed = self._changed
            own = (len(self._kvs), max((kv.mod_revision for kv in self._kvs.values()), default=0))
            if own == wanted:
                self.revision = result.revision
                return
            await changed.wait()

    async def _within_timeout(self, work: Any) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await work
        except TimeoutError:
            raise ReadFailedError(
                "the cache did not catch up with the store in time"
            ) from self._failure

    async def aclose(self) -> None:
        """End it; what waits raises ClosedError."""
        self._is_closed = True
        await self._mirror.aclose()
        tasks = [task for task in (self._task, self._proof) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wake()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _wait(event: asyncio.Event, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
