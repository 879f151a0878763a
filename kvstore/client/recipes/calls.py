"""The client's methods that make recipes; each recipe is in its own module."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kvstore.client.recipes.barrier import Barrier, DoubleBarrier
from kvstore.client.recipes.cache import Cache
from kvstore.client.recipes.election import Election
from kvstore.client.recipes.lock import Lock, ReadWriteLock
from kvstore.client.recipes.mirror import Mirror
from kvstore.client.recipes.multiwatch import MultiWatcher, Span
from kvstore.client.recipes.queue import PriorityQueue, Queue
from kvstore.client.recipes.stm import Isolation, Stm, StmResult, run_stm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from typing import TypeVar

    from kvstore.client.aio import AsyncClient
    from kvstore.client.carrier import Carrier
    from kvstore.client.lease import Lease

    Value = TypeVar("Value")

PAGE_SIZE_DEFAULT = 1000
RECIPE_TTL_S = 10


class RecipeCalls:
    """Locks, elections, barriers, queues, transactional memory, mirrors and caches."""

    _transport: Carrier

    @property
    def _self(self) -> AsyncClient:
        return cast("AsyncClient", self)

    def lock(
        self,
        name: bytes,
        *,
        ttl_s: int = RECIPE_TTL_S,
        timeout_s: float | None = None,
        cancel_on_lost: bool = True,
        on_lost: Callable[[Lease], None] | None = None,
    ) -> Lock:
        """Return a lock, for `async with`, `acquire` or `try_acquire`.

            async with client.lock(b"jobs") as lock:
                resource.write(data, token=lock.token)

        One holder at a time, in the order of asking; also against other programs, the Go client
        and `etcdctl lock`. When the lease is lost in the block, its body is cancelled and the
        block raises `LeaseLostError`.

        Args:
            name: What is locked.
            ttl_s: Seconds after which others get the lock when this program has died, 1 or more.
                Long enough for the longest pause you want to survive; the server raises small
                values to its minimum (etcd: 2 s).
            timeout_s: Seconds to wait for the lock; None waits as long as it takes.
            cancel_on_lost: Cancel the body of `async with` when the lease is lost. False leaves
                it to `lock.check()` and `on_lost`.
            on_lost: Called once, on the event loop, when the lease is lost.

        Raises (on entry): as `Place.acquire`; TimeoutError when not held in time.
        """
        return Lock(
            self._self,
            name,
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            cancel_on_lost=cancel_on_lost,
            on_lost=on_lost,
        )

    def read_write_lock(
        self,
        name: bytes,
        *,
        ttl_s: int = RECIPE_TTL_S,
        timeout_s: float | None = None,
        cancel_on_lost: bool = True,
        on_lost: Callable[[Lease], None] | None = None,
    ) -> ReadWriteLock:
        """Return a lock that many readers or one writer hold: its `read()` and its `write()`.

        Arguments and errors are those of `lock`.
        """
        return ReadWriteLock(
            self._self,
            name,
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            cancel_on_lost=cancel_on_lost,
            on_lost=on_lost,
        )

    def election(
        self,
        name: bytes,
        *,
        ttl_s: int = RECIPE_TTL_S,
        cancel_on_lost: bool = True,
        on_lost: Callable[[Lease], None] | None = None,
    ) -> Election:
        """Return an election: `campaign` in it, ask for its `leader`, or `observe` it.

        Candidates of the Go client and `etcdctl elect` take part too. Arguments as for `lock`;
        ``ttl_s`` is how long a dead leader keeps its place.
        """
        return Election(
            self._self, name, ttl_s=ttl_s, cancel_on_lost=cancel_on_lost, on_lost=on_lost
        )

    def barrier(self, name: bytes) -> Barrier:
        """Return a barrier: `hold` it, `wait` for it, `release` it."""
        return Barrier(self._self, name)

    def double_barrier(
        self,
        name: bytes,
        count: int,
        *,
        ttl_s: int = RECIPE_TTL_S,
        timeout_s: float | None = None,
    ) -> DoubleBarrier:
        """Return a barrier that ``count`` programs enter together, and leave together.

        Args:
            name: The barrier.
            count: How many must have entered before any goes on, 1 or more.
            ttl_s: Seconds after which a program that has died counts as having left.
            timeout_s: Seconds to wait on entering, and on leaving; None waits for ever.
        """
        return DoubleBarrier(self._self, name, count, ttl_s=ttl_s, timeout_s=timeout_s)

    def queue(self, name: bytes) -> Queue:
        """Return a queue in the store: `put` values, `get` them in the same order, once each."""
        return Queue(self._self, name)

    def priority_queue(self, name: bytes) -> PriorityQueue:
        """Return a queue in the store that gives out small priorities first."""
        return PriorityQueue(self._self, name)

    async def stm(
        self,
        function: Callable[[Stm], Awaitable[Value]],
        *,
        isolation: Isolation = "serializable_snapshot",
        prefetch: Iterable[bytes] = (),
        attempts_max: int | None = None,
        timeout_s: float | None = None,
    ) -> StmResult[Value]:
        """Run a function over keys as one transaction; run it again when others interfered.

            async def move(stm):
                left, right = int(await stm.get(b"left")), int(await stm.get(b"right"))
                stm.put(b"left", b"%d" % (left - 1))
                stm.put(b"right", b"%d" % (right + 1))

            await client.stm(move)

        Args:
            function: Reads by `await stm.get`, writes by `stm.put` and `stm.delete`, and does
                nothing else that counts: it may run several times. What it raises ends the
                transaction, and nothing is written. At most 128 keys (the server's --max-txn-ops).
            isolation: What is kept apart from other writers: see `kvstore.client.recipes.stm`.
            prefetch: Keys that it reads anyway: one call fetches them all.
            attempts_max: Runs before giving up, 1 or more; None is no limit. Between runs there
                is a random pause, which grows to at most 0.25 s.
            timeout_s: Seconds for all of it; None is no limit.

        Returns:
            What the function returned, the commit's revision and the number of runs.

        Raises:
            ConflictError: A conflict in each of ``attempts_max`` runs. Nothing was written.
            TimeoutError: Not committed in time; the last commit may have been under way.
            OutcomeUnknownError: It may have been committed, whole.
            AvailabilityError: Nothing was written.
        """

        def count(is_conflict: bool) -> None:
            self._transport.counters.stm_attempts += 1
            self._transport.counters.stm_conflicts += is_conflict

        return await run_stm(
            self._self,
            function,
            isolation=isolation,
            prefetch=prefetch,
            attempts_max=attempts_max,
            timeout_s=timeout_s,
            on_attempt=count,
        )

    def watch_many(
        self,
        spans: Sequence[Span],
        *,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        puts: bool = True,
        deletes: bool = True,
        resume_timeout_s: float | None = None,
    ) -> MultiWatcher:
        """Watch several keys and ranges as one stream, in order of revision.

            spans = [Span(b"config/", prefix=True), Span(b"leader")]
            async with client.watch_many(spans) as watcher:
                async for batch in watcher: ...

        A revision is handed on whole, with its changes in all of the ranges. That costs a round
        trip when other ranges are quiet. From etcd older than 3.4.25 or 3.5.8 everything between
        the first and the last range is fetched, for which the user needs the permission.

        Args:
            spans: What to watch, one or more; they may overlap.
            start_revision: As the other arguments: see `watch`.
            prev_kv: As for `watch`.
            progress_notify: Return a batch without events when all ranges have got on.
            puts: As for `watch`.
            deletes: As for `watch`.
            resume_timeout_s: As for `watch`.

        Raises (from the iteration, or on entering `async with`): as `watch`.
        """
        return MultiWatcher(
            self._self,
            spans,
            start_revision=start_revision,
            prev_kv=prev_kv,
            progress_notify=progress_notify,
            puts=puts,
            deletes=deletes,
            resume_timeout_s=resume_timeout_s,
        )

    def mirror(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        page_size: int = PAGE_SIZE_DEFAULT,
        progress_notify: bool = False,
    ) -> Mirror:
        """Follow a range from its present state on: its keys at one revision, then each change.

        Args:
            key: First key; with ``prefix``, what the keys start with (b"" is every key).
            range_end: As for `range`.
            prefix: All keys that start with ``key``.
            page_size: Keys in one batch of the snapshot, 1 or more.
            progress_notify: As for `watch`.

        Raises (from the iteration): as `get_range` and `watch`, but for CompactedError.
        """
        return Mirror(
            self._self,
            key,
            range_end,
            prefix=prefix,
            page_size=page_size,
            progress_notify=progress_notify,
        )

    def cache(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        page_size: int = PAGE_SIZE_DEFAULT,
        on_rebuild: Callable[[Cache], None] | None = None,
    ) -> Cache:
        """Keep a copy of a range in memory, for reads that cost no call. See `Cache`.

        Args:
            key: First key; with ``prefix``, what the keys start with (b"" is every key).
            range_end: As for `range`.
            prefix: All keys that start with ``key``.
            page_size: Keys in one answer while it is filled, 1 or more.
            on_rebuild: Called, on the event loop, after the copy was read anew because
                compaction had overtaken the watch: changes in between were not seen one by one.
        """
        return Cache(
            self._self,
            key,
            range_end,
            prefix=prefix,
            on_rebuild=on_rebuild,
            mirror=self.mirror(key, range_end, prefix=prefix, page_size=page_size),
            timeout_s=self._transport.timeout_s,
        )
