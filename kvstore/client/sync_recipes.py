"""The synchronous forms of the recipes; as in `sync`, there is no logic here.

Each class names its asynchronous original and which of its methods it offers: blocking ones run on
the client's background loop, and so do callbacks. What they do is said at the original.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from kvstore.client.recipes.barrier import Barrier, DoubleBarrier
from kvstore.client.recipes.cache import Cache
from kvstore.client.recipes.election import Election, Leadership, Observer
from kvstore.client.recipes.lock import ReadWriteLock
from kvstore.client.recipes.mirror import Mirror
from kvstore.client.recipes.multiwatch import MultiWatcher
from kvstore.client.recipes.place import Place
from kvstore.client.recipes.queue import PriorityQueue, Queue
from kvstore.client.recipes.stm import Stm

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from types import TracebackType

    from kvstore.client.sync import _Loop
    from kvstore.client.txn import Comparison

Inner = TypeVar("Inner")
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Facade(Generic[Inner]):
    """Holds an asynchronous object and the loop that it lives on."""

    def __init__(self, loop: _Loop, inner: Inner) -> None:
        self._loop = loop
        self._inner = inner


def _blocking(
    method: Callable[Concatenate[Any, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Make the blocking form of a method, with its signature and docstring."""

    @functools.wraps(method)
    def call(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        result: Result = self._loop.run(method(self._inner, *args, **kwargs))
        return result

    return call


def _direct(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Pass on a method that does not wait; on the loop, which alone may touch its object."""

    @functools.wraps(method)
    def call(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        async def run() -> Result:
            return method(self._inner, *args, **kwargs)

        result: Result = self._loop.run(run())
        return result

    return call


class _Entered(Facade[Any]):
    """For objects that are entered and left."""

    def __enter__(self) -> Self:
        self._loop.run(self._inner.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.run(self._inner.__aexit__(kind, error, traceback))


class SyncPlace(_Entered):
    """`Place` (of a lock or a read-write lock). A lost lease cannot stop a thread: call `check`."""

    _inner: Place

    @property
    def token(self) -> int:
        """As `Place.token`."""
        return self._inner.token

    @property
    def key(self) -> bytes:
        """As `Place.key`."""
        return self._inner.key

    @property
    def is_held(self) -> bool:
        """As `Place.is_held`."""
        return self._inner.is_held

    @property
    def held(self) -> Comparison:
        """As `Place.held`."""
        return self._inner.held

    def acquire(self, *, timeout_s: float | None = None) -> Self:
        """As `Place.acquire`."""
        self._loop.run(self._inner.acquire(timeout_s=timeout_s))
        return self

    def __enter__(self) -> Self:
        # Not `__aenter__`: it would watch over a task of the loop instead of this thread.
        return self.acquire()

    try_acquire = _blocking(Place.try_acquire)
    release = _blocking(Place.release)
    wait_lost = _blocking(Place.wait_lost)
    check = _direct(Place.check)


class SyncLeadership(SyncPlace):
    """`Leadership`."""

    _inner: Leadership

    proclaim = _blocking(Leadership.proclaim)
    resign = _blocking(Leadership.resign)


class SyncReadWriteLock(Facade[ReadWriteLock]):
    """`ReadWriteLock`."""

    def read(self) -> SyncPlace:
        """As `ReadWriteLock.read`."""
        return SyncPlace(self._loop, self._inner.read())

    def write(self) -> SyncPlace:
        """As `ReadWriteLock.write`."""
        return SyncPlace(self._loop, self._inner.write())


class SyncStream(_Entered):
    """`Observer`, `Mirror` or `MultiWatcher`, for plain `with` and `for`."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        item = self._loop.run(self._next(None))
        if item is None:
            raise StopIteration
        return item

    def next(self, timeout_s: float) -> Any:
        """Return the next item, or None when none came in time or the stream was closed."""
        return self._loop.run(self._next(timeout_s))

    async def _next(self, timeout_s: float | None) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(self._inner, None)
        except TimeoutError:
            return None

    def close(self) -> None:
        """End it; an iteration in another thread ends."""
        self._loop.run(self._inner.aclose())


class SyncObserver(SyncStream):
    """`Observer`."""

    _inner: Observer


class SyncMirror(SyncStream):
    """`Mirror`."""

    _inner: Mirror

    @property
    def rebuilds(self) -> int:
        """As `Mirror.rebuilds`."""
        return self._inner.rebuilds

    @property
    def next_revision(self) -> int:
        """As `Mirror.next_revision`."""
        return self._inner.next_revision

    request_progress = _blocking(Mirror.request_progress)


class SyncMultiWatcher(SyncStream):
    """`MultiWatcher`."""

    _inner: MultiWatcher

    @property
    def next_revision(self) -> int:
        """As `MultiWatcher.next_revision`."""
        return self._inner.next_revision

    request_progress = _blocking(MultiWatcher.request_progress)


class SyncElection(Facade[Election]):
    """`Election`."""

    leader = _blocking(Election.leader)

    def campaign(self, value: bytes, *, timeout_s: float | None = None) -> SyncLeadership:
        """As `Election.campaign`."""
        return SyncLeadership(self._loop, self._inner.campaign(value, timeout_s=timeout_s))

    def observe(self) -> SyncObserver:
        """As `Election.observe`."""
        return SyncObserver(self._loop, self._inner.observe())


class SyncBarrier(Facade[Barrier]):
    """`Barrier`."""

    hold = _blocking(Barrier.hold)
    release = _blocking(Barrier.release)
    wait = _blocking(Barrier.wait)


class SyncDoubleBarrier(_Entered):
    """`DoubleBarrier`."""

    _inner: DoubleBarrier

    enter = _blocking(DoubleBarrier.enter)
    leave = _blocking(DoubleBarrier.leave)


class SyncQueue(Facade[Queue]):
    """`Queue`."""

    put = _blocking(Queue.put)
    get = _blocking(Queue.get)
    get_nowait = _blocking(Queue.get_nowait)
    length = _blocking(Queue.length)


class SyncPriorityQueue(Facade[PriorityQueue]):
    """`PriorityQueue`."""

    put = _blocking(PriorityQueue.put)
    get = _blocking(PriorityQueue.get)
    get_nowait = _blocking(PriorityQueue.get_nowait)
    length = _blocking(PriorityQueue.length)


class SyncStm(Facade[Stm]):
    """`Stm`."""

    get = _blocking(Stm.get)
    revision = _blocking(Stm.revision)

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> None:
        """As `Stm.put`."""
        self._inner.put(key, value, lease=lease)

    def delete(self, key: bytes) -> None:
        """As `Stm.delete`."""
        self._inner.delete(key)

    def fetch(self, keys: Iterable[bytes]) -> None:
        """As `Stm.fetch`."""
        self._loop.run(self._inner.fetch(keys))


class SyncCache(_Entered):
    """`Cache`. Its `on_rebuild` is called with the asynchronous cache, on the client's thread."""

    _inner: Cache

    @property
    def revision(self) -> int:
        """As `Cache.revision`."""
        return self._inner.revision

    @property
    def rebuilds(self) -> int:
        """As `Cache.rebuilds`."""
        return self._inner.rebuilds

    peek = _direct(Cache.peek)
    items = _direct(Cache.items)
    statistics = _direct(Cache.statistics)
    get = _blocking(Cache.get)
    refresh = _blocking(Cache.refresh)
    wait_revision = _blocking(Cache.wait_revision)
    close = _blocking(Cache.aclose)
