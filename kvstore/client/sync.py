"""The synchronous client: each method of `AsyncClient`, run on a background event loop.

    with Client(["127.0.0.1:2379"]) as client:
        client.put(b"greeting", b"hello")
        print(client.get(b"greeting").value)

There is no logic of its own here: what a method does, takes, returns and raises is said in `aio`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from kvstore.client import sync_recipes as recipes
from kvstore.client.aio import AsyncClient
from kvstore.client.errors import ClosedError, WrongLoopError
from kvstore.client.timeouts import checked_s
from kvstore.client.transport import CONNECT_TIMEOUT_S, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
    from types import TracebackType

    from kvstore.client.counters import Statistics
    from kvstore.client.endpoint import Tls
    from kvstore.client.lease import Lease
    from kvstore.client.pages import Pages
    from kvstore.client.pipeline import Pipeline, PipelineResult
    from kvstore.client.recipes.stm import Isolation, Stm, StmResult
    from kvstore.client.txn import Op, Txn
    from kvstore.client.types import KeyValue, TxnResult, WatchBatch
    from kvstore.client.watch import Watcher

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Made = TypeVar("Made")

_LAST_CALLS_S = 5.0
# What calls of other threads may take to notice that the client was closed under them.


class _Loop:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_stopped = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kvstore-client", daemon=True
        )
        self._thread.start()
        self._stopped_because = ""

    @property
    def is_stopped(self) -> bool:
        """Whether the thread has ended with the client, or is about to."""
        return self._is_stopped

    def run(self, coroutine: Coroutine[Any, Any, Result], timeout_s: float | None = None) -> Result:
        """Run a coroutine there and wait for it; an interrupt here cancels it there."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise WrongLoopError(
                "called from the client's own thread (a callback): it would wait for itself"
            )
        with self._lock:
            # Behind the last turn of the loop it would never run, and never end.
            if self._is_stopped:
                coroutine.close()
                raise ClosedError(f"the client is closed{self._stopped_because}")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()  # of no effect when it has ended by itself
            raise

    def stop(self, because: str = "") -> None:
        """End the thread, when the calls of other threads have ended: the client is closed."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            self._stopped_because = f": {because}" if because else ""
        asyncio.run_coroutine_threadsafe(_wait_for_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _wait_for_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, late = await asyncio.wait(others, timeout=_LAST_CALLS_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)


def _blocking(
    method: Callable[Concatenate[Any, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Client, Arguments], Result]:
    """Make the synchronous form of a coroutine method, with its signature and docstring."""

    @functools.wraps(method)
    def call(self: Client, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return self._loop.run(method(self._client, *args, **kwargs))

    return call


def _wrapping(
    method: Callable[Concatenate[Any, Arguments], Made], wrapper: Callable[[_Loop, Made], Result]
) -> Callable[Concatenate[Client, Arguments], Result]:
    """Make the synchronous form of a method that returns an asynchronous object."""

    @functools.wraps(method)
    def call(self: Client, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        async def make() -> Made:  # made on the loop that it will live on
            return method(self._client, *args, **kwargs)

        return wrapper(self._loop, self._loop.run(make()))

    return call


class SyncPages:
    """`Pages`, for plain `for`."""

    def __init__(self, loop: _Loop, pages: Pages) -> None:
        self._loop = loop
        self._pages = pages

    @property
    def revision(self) -> int:
        """As `Pages.revision`."""
        return self._pages.revision

    def __iter__(self) -> Iterator[KeyValue]:
        while True:
            page = self._loop.run(self._pages.next_page())
            if not page:
                return
            yield from page


class SyncWatcher:
    """`Watcher`, for plain `with` and `for`. The watch is registered when this object is made."""

    def __init__(self, loop: _Loop, watcher: Watcher) -> None:
        self._loop = loop
        self._watcher = watcher
        loop.run(watcher.start())

    @property
    def next_revision(self) -> int:
        """As `Watcher.next_revision`."""
        return self._watcher.next_revision

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchBatch:
        batch = self._loop.run(self._next())
        if batch is None:
            raise StopIteration
        return batch

    def next(self, timeout_s: float) -> WatchBatch | None:
        """Return the next batch, or None when none came in time or the watch was closed."""
        checked_s("timeout_s", timeout_s)
        return None if self._loop.is_stopped else self._loop.run(self._next(timeout_s))

    async def _next(self, timeout_s: float | None = None) -> WatchBatch | None:
        # StopAsyncIteration cannot leave a coroutine, and a timeout must end the wait over there.
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(self._watcher, None)
        except TimeoutError:
            return None

    def request_progress(self) -> bool:
        """As `Watcher.request_progress`."""
        return self._loop.run(self._watcher.request_progress())

    def close(self) -> None:
        """End the watch; an iteration in another thread ends."""
        with contextlib.suppress(ClosedError):  # with the client, which has ended the watch too
            self._loop.run(self._watcher.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class SyncLease:
    """`Lease`, for plain `with`. `on_lost` is called on the client's own thread."""

    def __init__(self, loop: _Loop, lease: Lease) -> None:
        self._loop = loop
        self._lease = lease

    @property
    def lease_id(self) -> int:
        """As `Lease.lease_id`."""
        return self._lease.lease_id

    @property
    def ttl_s(self) -> int:
        """As `Lease.ttl_s`."""
        return self._lease.ttl_s

    @property
    def is_lost(self) -> bool:
        """As `Lease.is_lost`."""
        return self._lease.is_lost

    def check(self) -> None:
        """As `Lease.check`."""
        self._lease.check()

    def wait_lost(self) -> None:
        """As `Lease.wait_lost`."""
        self._loop.run(self._lease.wait_lost())

    def start(self) -> Self:
        """As `Lease.start`."""
        self._loop.run(self._lease.start())
        return self

    def revoke(self) -> None:
        """As `Lease.revoke`."""
        self._loop.run(self._lease.revoke())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.run(self._lease.__aexit__(kind, error, traceback))


class SyncTxn:
    """`Txn`, with a `commit` that waits."""

    def __init__(self, loop: _Loop, txn: Txn) -> None:
        self._loop = loop
        self._txn = txn

    def when(self, *comparisons: Any) -> Self:
        """As `Txn.when`."""
        self._txn.when(*comparisons)
        return self

    def then(self, *operations: Op) -> Self:
        """As `Txn.then`."""
        self._txn.then(*operations)
        return self

    def otherwise(self, *operations: Op) -> Self:
        """As `Txn.otherwise`."""
        self._txn.otherwise(*operations)
        return self

    def commit(self, *, timeout_s: float | None = None) -> TxnResult:
        """As `Txn.commit`."""
        return self._loop.run(self._txn.commit(timeout_s=timeout_s))


class SyncPipeline:
    """`Pipeline`, with a `commit` that waits."""

    def __init__(self, loop: _Loop, pipeline: Pipeline) -> None:
        self._loop = loop
        self._pipeline = pipeline

    def then(self, *operations: Op) -> Self:
        """As `Pipeline.then`."""
        self._pipeline.then(*operations)
        return self

    def commit(self, *, timeout_s: float | None = None) -> list[PipelineResult]:
        """As `Pipeline.commit`."""
        return self._loop.run(self._pipeline.commit(timeout_s=timeout_s))


class Client:
    """A client of one cluster for programs without asyncio; may be used from several threads.

    Arguments, methods and errors are those of `AsyncClient`.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        user: str | None = None,
        password: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = 5.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        transport: Mode = "auto",
        tracer_provider: object | None = None,
    ) -> None:
        self._client = AsyncClient(
            endpoints,
            user=user,
            password=password,
            tls=tls,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            transport=transport,
            tracer_provider=tracer_provider,
        )
        self._loop = _Loop()

    def close(self, because: str = "") -> None:
        """As `AsyncClient.close`; ends the background thread too."""
        with contextlib.suppress(ClosedError):  # another thread was faster
            self._loop.run(self._client.close(because))
        self._loop.stop(because)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """As `AsyncClient.endpoints`."""
        return self._client.endpoints

    @property
    def is_in_session(self) -> bool:
        """As `AsyncClient.is_in_session`."""
        return self._client.is_in_session

    put = _blocking(AsyncClient.put)
    get = _blocking(AsyncClient.get)
    range = _blocking(AsyncClient.range)
    delete = _blocking(AsyncClient.delete)
    compact = _blocking(AsyncClient.compact)
    lease_grant = _blocking(AsyncClient.lease_grant)
    lease_revoke = _blocking(AsyncClient.lease_revoke)
    lease_keep_alive_once = _blocking(AsyncClient.lease_keep_alive_once)
    lease_time_to_live = _blocking(AsyncClient.lease_time_to_live)
    lease_list = _blocking(AsyncClient.lease_list)
    member_list = _blocking(AsyncClient.member_list)
    member_add = _blocking(AsyncClient.member_add)
    member_remove = _blocking(AsyncClient.member_remove)
    member_update = _blocking(AsyncClient.member_update)
    member_promote = _blocking(AsyncClient.member_promote)
    move_leader = _blocking(AsyncClient.move_leader)
    status = _blocking(AsyncClient.status)
    hash_kv = _blocking(AsyncClient.hash_kv)
    alarm_list = _blocking(AsyncClient.alarm_list)
    alarm_disarm = _blocking(AsyncClient.alarm_disarm)

    get_range = _wrapping(AsyncClient.get_range, SyncPages)
    watch = _wrapping(AsyncClient.watch, SyncWatcher)
    lease = _wrapping(AsyncClient.lease, SyncLease)
    txn = _wrapping(AsyncClient.txn, SyncTxn)
    pipeline = _wrapping(AsyncClient.pipeline, SyncPipeline)

    lock = _wrapping(AsyncClient.lock, recipes.SyncPlace)
    read_write_lock = _wrapping(AsyncClient.read_write_lock, recipes.SyncReadWriteLock)
    election = _wrapping(AsyncClient.election, recipes.SyncElection)
    barrier = _wrapping(AsyncClient.barrier, recipes.SyncBarrier)
    double_barrier = _wrapping(AsyncClient.double_barrier, recipes.SyncDoubleBarrier)
    queue = _wrapping(AsyncClient.queue, recipes.SyncQueue)
    priority_queue = _wrapping(AsyncClient.priority_queue, recipes.SyncPriorityQueue)
    watch_many = _wrapping(AsyncClient.watch_many, recipes.SyncMultiWatcher)
    mirror = _wrapping(AsyncClient.mirror, recipes.SyncMirror)
    cache = _wrapping(AsyncClient.cache, recipes.SyncCache)

    sync_endpoints = _blocking(AsyncClient.sync_endpoints)
    lose_address = _blocking(AsyncClient.lose_address)

    def stm(
        self,
        function: Callable[[recipes.SyncStm], Result],
        *,
        isolation: Isolation = "serializable_snapshot",
        prefetch: Iterable[bytes] = (),
        attempts_max: int | None = None,
        timeout_s: float | None = None,
    ) -> StmResult[Result]:
        """As `AsyncClient.stm`, with a plain function, which runs on a thread of its own."""

        def on_thread(stm: Stm) -> Coroutine[Any, Any, Result]:
            return asyncio.to_thread(function, recipes.SyncStm(self._loop, stm))

        return self._loop.run(
            self._client.stm(
                on_thread,
                isolation=isolation,
                prefetch=prefetch,
                attempts_max=attempts_max,
                timeout_s=timeout_s,
            )
        )

    def statistics(self) -> Statistics:
        """As `AsyncClient.statistics`."""
        return self._client.statistics()

    def namespace(self, prefix: bytes) -> Client:
        """As `AsyncClient.namespace`."""
        return _NamespaceClient(self._client.namespace(prefix), self._loop)


class _NamespaceClient(Client):
    """A client on the connections, and the loop, of another."""

    def __init__(self, client: AsyncClient, loop: _Loop) -> None:
        self._client = client
        self._loop = loop

    def close(self, because: str = "") -> None:
        """Close its watches; `because` changes nothing."""
        with contextlib.suppress(ClosedError):  # with the client, which has ended them too
            self._loop.run(self._client.close())
