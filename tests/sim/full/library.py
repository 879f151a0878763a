"""Clients that use `kvstore.client` itself: its failover, retries, sessions and resumed watches.

What the library says of an operation is judged as the raw clients judge the member's answers: what
it calls applied is in the book, what it calls not applied never is, nothing is there twice, and a
watch goes on without gap or repeat wherever its stream breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    CompactedError,
    FutureRevisionError,
    KvError,
    Lease,
    NoLeaderError,
    OutcomeUnknownError,
    RequestError,
    UnreachableError,
    methods,
    transport,
    watch,
)
from tests.sim.full.channel import SimChannel, Weather
from tests.sim.full.clients import COMPACTED, FUTURE, KvClient
from tests.sim.full.lessees import EARLY
from tests.sim.full.loop import LocalClock, SimLoop
from tests.sim.full.watchers import RELIABLE, Watcher
from tests.sim.invariants import LINEARIZABLE
from tests.sim.world import MS, SECOND, US

if TYPE_CHECKING:
    from tests.sim.full.cluster import FullCluster

METHODS = {
    method.path: method
    for method in (
        methods.PUT, methods.RANGE, methods.DELETE_RANGE, methods.TXN, methods.COMPACT,
    )
}  # fmt: skip
READS = frozenset(("range", "old", "serializable"))
WAITED_FOR = frozenset(("_connect", "open_session", "_read", "_send"))


@contextlib.contextmanager
def drawn_from(source: random.Random) -> Iterator[None]:
    """Let the library's jitter come from a run's seed."""
    modules: tuple[Any, ...] = (transport, watch)
    try:
        for module in modules:
            module.random = source
        yield
    finally:
        for module in modules:
            module.random = random


def new_client(
    cluster: FullCluster, number: int, weather: Weather | None = None
) -> tuple[SimLoop, AsyncClient]:
    """Return a client in a process of its own, and that process's loop."""
    world, profile = cluster.world, cluster.profile
    ppm = world.between(-profile.clock_ppm, profile.clock_ppm)
    clock = LocalClock(world, ppm, world.between(0, 10**12))
    loop = SimLoop(world, clock, turn_ns=profile.turn_ns, job_ns=lambda: 0)
    loop.waited_for |= WAITED_FOR
    cluster.loops.append(loop)
    hosts = cluster.hosts[number % cluster.size :] + cluster.hosts[: number % cluster.size]
    client = AsyncClient(
        [f"10.0.0.{host.id}:2379" for host in hosts],
        timeout_s=profile.patience_ns / SECOND,
        connect_timeout_s=profile.election_ms / 1000,
        transport=world.random.choice(("session", "unary")),
    )
    for link, host in zip(client._transport.links, hosts, strict=True):
        link._channel = SimChannel(loop, host, weather or Weather(world))  # type: ignore[assignment]
    return loop, client


class LibraryClient(KvClient):
    """A closed loop of operations through the library."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        super().__init__(cluster, number)
        self.loop, self.client = new_client(cluster, number)

    def _next(self, round_: int) -> None:
        if self.stopped or self.operation is not None or round_ != self.rounds:
            return
        self.rounds += 1
        self.world.events += 1
        operation = self.operation = self._draw()
        operation.floor = self.cluster.floor
        operation.compacted = self.cluster.compact_floor
        self.loop.start(self._perform(operation))

    async def _perform(self, operation: Any) -> None:
        cluster, world = self.cluster, self.world
        endpoint = f"10.0.0.{self.target}:2379" if self.target else None
        try:
            answer = await self.client.call(
                METHODS[operation.path],
                operation.request,
                write=operation.kind not in READS,
                endpoint=endpoint,
                timeout_s=cluster.profile.patience_ns / SECOND,
            )
        except KvError as error:
            world.mark(f"library: {type(error).__name__}")
            self._ended(operation, error)
        else:
            world.mark("library: answered")
            self.succeeded += 1
            cluster.judge(operation, answer.SerializeToString())
        self.operation = None
        self.rounds += 1
        world.events += 1
        world.after(world.between(0, 2 * cluster.profile.think_ns), self._next, self.rounds)

    def _ended(self, operation: Any, error: KvError) -> None:
        if isinstance(error, CompactedError):
            self._failed(operation, 1, COMPACTED)
        elif isinstance(error, FutureRevisionError):
            self._failed(operation, 1, FUTURE)
        elif isinstance(error, (NoLeaderError, UnreachableError, RequestError)):
            # Promised: certainly not applied.
            self.cluster.refused_values.update(dict.fromkeys(operation.values))
        elif isinstance(error, OutcomeUnknownError):
            if operation.kind in READS:
                self.cluster.invariants.fail(LINEARIZABLE, f"{operation} changes nothing: {error}")
        elif not isinstance(error, AvailabilityError):
            self.cluster.invariants.fail(LINEARIZABLE, f"{operation} fails with {error!r}")


class LibraryWatch:
    """A watch through the library, which resumes it by itself; judged as `WatchClient`'s."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.loop, self.client = new_client(cluster, number + 1)
        self.watcher = Watcher(self, 0)  # type: ignore[arg-type]
        self.watcher.fragment = False
        self.watchers = [self.watcher]
        self._watch: Any = None
        self._resumptions = 0
        self.world.after(self.world.between(0, cluster.profile.think_ns), self._begin)

    def _begin(self, _: object) -> None:
        self.loop.start(self._follow())

    async def _follow(self) -> None:
        watcher = self.watcher
        # Told, not "from now on": when `start` returns, events behind that may have come already.
        watcher.next = self.cluster.floor + 1
        while True:
            stream = self.client.watch(
                watcher.key,
                watcher.end,
                start_revision=watcher.next,
                prev_kv=watcher.previous,
                puts=not watcher.no_put,
                deletes=not watcher.no_delete,
            )
            try:
                await stream.start()
                watcher.created = True
                self._watch = stream
                while True:
                    response = await stream.next_response()
                    self._count(stream)
                    watcher.take(response)
            except CompactedError as error:
                self.world.mark("watch cancelled by compaction")
                if error.compacted > self.cluster.truth.compacted:
                    watcher._fail(RELIABLE, f"it is cancelled for {error.compacted}")
                watcher.next = max(watcher.next, error.compacted)
            except AvailabilityError:
                self.world.mark("library: watch gave up")
            finally:
                self._watch = None
                watcher.created = False
                await stream.aclose()

    def _count(self, stream: Any) -> None:
        if stream.resumptions > self._resumptions:
            self.world.mark("library: watch resumed")
        self._resumptions = stream.resumptions

    # the last phase

    def ask_progress(self) -> None:
        stream = self._watch
        if stream is not None:
            self.loop.start(stream.request_progress())

    def settle(self, target: int) -> None:
        """Nothing: the library finds a healthy member by itself."""

    def is_created(self) -> bool:
        return self.watcher.created

    def is_at(self, revision: int) -> bool:
        return self.watcher.next > revision


class LibraryLessee:
    """Holds leases through the library: while it says that one is held, it is."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        longest_ns = cluster.profile.ttl_s * SECOND
        weather = Weather(cluster.world, cluster.profile.clogs, longest_ns)
        self.loop, self.client = new_client(cluster, number + 2, weather)
        self._stopping = self.loop.create_future()
        self._lease: Lease | None = None
        self.world.after(self.world.between(0, SECOND), self._begin)
        self._resumed_ns = 0
        self._grace_ns = 3 * cluster.profile.turn_ns + 50 * US
        self.world.after(10 * MS, self._look)
        self.world.after(self.world.between(1, 2 * SECOND), self._pause)

    def _pause(self, _: object) -> None:
        """Stop the client's process for a while, up to twice as long as a lease lives."""
        if self.stopped:
            return
        self.world.mark("library: client paused")
        self.loop.pause()
        self.world.after(
            self.world.between(1, 2 * self.cluster.profile.ttl_s * SECOND), self._go_on
        )

    def _go_on(self, _: object) -> None:
        self.loop.resume()
        self._resumed_ns = self.world.now_ns
        self.world.after(self._grace_ns, lambda _: self.check())
        self.world.after(self.world.between(1, 2 * SECOND), self._pause)

    @property
    def stopped(self) -> bool:
        """In the last phase no lease is held any more, and the process is not stopped."""
        return self._stopping.done()

    @stopped.setter
    def stopped(self, value: bool) -> None:
        assert value
        self._stopping.set_result(None)

    def _begin(self, _: object) -> None:
        if not self.stopped:
            self.loop.start(self._hold())

    async def _hold(self) -> None:
        ttl_s = self.cluster.profile.ttl_s
        try:
            async with self.client.lease(ttl_s) as lease:
                self.world.mark("library: lease granted")
                self._lease = lease
                ends = {self.loop.create_task(lease.wait_lost()), self._stopping}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                self._lease = None  # from here on it is being revoked
        except KvError as error:
            self.world.mark(f"library: {type(error).__name__}")
        finally:
            self._lease = None
            self.world.after(100 * MS, self._begin)

    def _look(self, _: object) -> None:
        self.check()
        self.world.after(10 * MS, self._look)

    def check(self) -> None:
        """Hold what the library says against the book of facts."""
        lease = self._lease
        # A process that was stopped gets a few turns to find out how late it is.
        if lease is None or lease.is_lost or self.loop.paused:
            return
        if self.world.now_ns < self._resumed_ns + self._grace_ns:
            return
        end = self.cluster.truth.ended.get(lease.lease_id)
        # The client's clock may be as much slower as the leader's is faster.
        drift_ns = lease.ttl_s * SECOND * 4 * self.cluster.profile.clock_ppm // 1_000_000
        if end is not None and self.world.now_ns > end[0] + drift_ns + 10 * MS:
            self.cluster.invariants.fail(
                EARLY, f"lease {lease.lease_id:x} has ended and the library says that it is held"
            )
