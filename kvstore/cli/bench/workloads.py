"""The workloads: what they prepare, what one operation is. Timing and counting are `measure`'s.

All keys are below the plan's prefix, which is of this run alone, so that the clean-up removes them
and nothing else.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvstore.cli.bench.locking import Lock
from kvstore.cli.bench.plan import VALUE_NUMBER_BYTES
from kvstore.client import Op, compare

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from kvstore.cli.bench.measure import Measure
    from kvstore.cli.bench.plan import Plan
    from kvstore.client import AsyncClient, Watcher

FILL_OPS = 100
FILL_TASKS = 16
LEASE_TTL_S = 600
LOST_EVENT_S = 30.0
"""An event that is not there by then is a failure of the watch."""


async def together(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all of it; when one fails, or we are cancelled, none of it goes on."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class BrokenPromiseError(Exception):
    """The server did what it must not: no figure of this run means anything."""


@dataclass(slots=True)
class Operation:
    """One operation to do, by one of the clients."""

    measure: Measure
    client: int
    number: int
    due_s: float
    sent_s: float | None
    """When it was begun, where that is not when it was due."""

    def done(self, kind: str) -> None:
        """Say that its answer is there."""
        self.measure.done(kind, self.due_s, self.sent_s)


class Workload:
    """Puts of random keys; the other workloads change what an operation is."""

    main_kind: ClassVar[str] = "put"
    """What most operations are counted as."""

    def __init__(self, plan: Plan, connections: Sequence[AsyncClient]) -> None:
        self.plan = plan
        self.connections = connections
        self.random = random.Random(plan.seed)  # noqa: S311 (repeatable, not secret)
        self.value = self.random.randbytes(plan.value_size)

    async def prepare(self) -> None:
        """Make what the operations need; it is not timed."""

    async def operate(self, operation: Operation) -> None:
        """Do one operation. KvError counts as its failure."""
        await self._put(operation, self._random_key())

    async def finish(self) -> None:
        """End what `prepare` began; keys are removed by the caller."""

    def client(self, number: int) -> AsyncClient:
        """Return the connection of a client: they are dealt out in turn."""
        return self.connections[number % len(self.connections)]

    def _random_key(self) -> bytes:
        return self.plan.key(self.random.randrange(self.plan.keys))

    async def _put(self, operation: Operation, key: bytes) -> None:
        await self.client(operation.client).put(key, self.value)
        operation.done("put")

    async def _get(self, operation: Operation) -> None:
        client = self.client(operation.client)
        await client.get(self._random_key(), serializable=self.plan.serializable)
        operation.done("get")

    async def _fill(self) -> None:
        """Store all keys, many to a transaction."""
        starts = iter(range(0, self.plan.keys, FILL_OPS))

        async def work(number: int) -> None:
            for start in starts:
                keys = range(start, min(start + FILL_OPS, self.plan.keys))
                puts = [Op.put(self.plan.key(key), self.value) for key in keys]
                await self.client(number).txn().then(*puts).commit()

        await together(work(number) for number in range(FILL_TASKS))


class Range(Workload):
    """Reads of random keys, or of ranges that begin at them."""

    main_kind = "get"

    async def prepare(self) -> None:
        """Store the keys."""
        await self._fill()

    async def operate(self, operation: Operation) -> None:
        """Read."""
        limit = self.plan.range_limit
        if limit == 1:
            await self._get(operation)
            return
        first = self.random.randrange(max(self.plan.keys - limit, 1))
        await self.client(operation.client).range(
            self.plan.key(first),
            self.plan.key(first + limit),
            serializable=self.plan.serializable,
        )
        operation.done("get")


class Mixed(Workload):
    """Reads and writes of random keys."""

    main_kind = "get"

    async def prepare(self) -> None:
        """Store the keys."""
        await self._fill()

    async def operate(self, operation: Operation) -> None:
        """Read or write."""
        if self.random.random() * 100 < self.plan.reads_percent:
            await self._get(operation)
        else:
            await self._put(operation, self._random_key())


class Transactions(Workload):
    """Transactions with one condition, which holds, and some puts."""

    main_kind = "txn"

    async def operate(self, operation: Operation) -> None:
        """Commit one."""
        size = self.plan.txn_ops
        first = self.random.randrange(max(self.plan.keys - size + 1, 1))
        keys = [self.plan.key(first + number) for number in range(size)]
        txn = self.client(operation.client).txn()
        puts = [Op.put(key, self.value) for key in keys]
        await txn.when(compare(keys[0]).version > -1).then(*puts).commit()
        operation.done("txn")


class HotKey(Workload):
    """Every client puts the same key."""

    async def operate(self, operation: Operation) -> None:
        """Put it."""
        await self._put(operation, self.plan.key(0))


class Sequential(Workload):
    """One client, one operation at a time: a put, then a get of the same key."""

    async def operate(self, operation: Operation) -> None:
        """Put or get."""
        key = self.plan.key(operation.number // 2 % self.plan.keys)
        if operation.number % 2:
            await self.client(0).get(key, serializable=self.plan.serializable)
            operation.done("get")
        else:
            await self._put(operation, key)


class Deliveries:
    """Puts on their way to watchers; a value begins with the operation's number."""

    def __init__(self, watchers: int, measure_kind: str) -> None:
        self._watchers = watchers
        self._kind = measure_kind
        self._waiting: dict[int, tuple[Operation, float, list[int], asyncio.Future[None]]] = {}

    def expect(self, operation: Operation) -> asyncio.Future[None]:
        """Return what ends when every watcher has seen the operation's put."""
        done = asyncio.get_running_loop().create_future()
        sent_s = time.perf_counter()
        self._waiting[operation.number] = (operation, sent_s, [self._watchers], done)
        return done

    def forget(self, operation: Operation) -> None:
        """Expect it no more."""
        self._waiting.pop(operation.number, None)

    def seen(self, value: bytes) -> None:
        """Count one delivery."""
        entry = self._waiting.get(int(value[:VALUE_NUMBER_BYTES]))
        if entry is None:
            return
        operation, sent_s, left, done = entry
        operation.measure.note(self._kind, time.perf_counter() - sent_s)
        left[0] -= 1
        if not left[0] and not done.done():
            done.set_result(None)


class WatchLatency(Workload):
    """A put and its event at a watcher, which is on a connection of its own where there is one."""

    main_kind = "event"

    def __init__(self, plan: Plan, connections: Sequence[AsyncClient]) -> None:
        super().__init__(plan, connections)
        self._watchers: list[Watcher] = []
        self._readers: list[asyncio.Task[None]] = []

    async def prepare(self) -> None:
        """Register the watchers."""
        count = self.watchers()
        self._deliveries = Deliveries(count, "delivery")
        prefix = self.plan.prefix
        self._watchers = [
            self.client(-1 - number).watch(prefix, prefix=True) for number in range(count)
        ]
        await together(watcher.start() for watcher in self._watchers)
        self._readers = [asyncio.create_task(self._read(each)) for each in self._watchers]

    def watchers(self) -> int:
        """Return how many watch."""
        return 1

    async def _read(self, watcher: Watcher) -> None:
        async for batch in watcher:
            for event in batch.events:
                self._deliveries.seen(event.kv.value)

    async def operate(self, operation: Operation) -> None:
        """Put, and wait for the event everywhere."""
        number = b"%0*d" % (VALUE_NUMBER_BYTES, operation.number)
        value = number + self.value[VALUE_NUMBER_BYTES:]
        delivered = self._deliveries.expect(operation)
        try:
            begun_s = time.perf_counter()
            await self.client(operation.client).put(self._random_key(), value)
            operation.measure.note("put", time.perf_counter() - begun_s)
            await asyncio.wait_for(delivered, LOST_EVENT_S)
        except TimeoutError as error:
            text = f"an event did not come within {LOST_EVENT_S:.0f} s of its put"
            raise BrokenPromiseError(text) from error
        finally:
            self._deliveries.forget(operation)
        operation.done(self.main_kind)

    async def finish(self) -> None:
        """End the watches."""
        for task in self._readers:
            task.cancel()
        results = await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(watcher.aclose() for watcher in self._watchers))
        for result in results:
            if isinstance(result, Exception):
                raise result


class WatchFanout(WatchLatency):
    """A put and its events at many watchers; the operation ends with the last delivery."""

    main_kind = "all events"

    def watchers(self) -> int:
        """Return how many watch."""
        return self.plan.watchers


class LeaseKeepalive(Workload):
    """Renewals of leases."""

    main_kind = "keepalive"

    def __init__(self, plan: Plan, connections: Sequence[AsyncClient]) -> None:
        super().__init__(plan, connections)
        self._ids = [0] * plan.leases

    async def prepare(self) -> None:
        """Grant them."""
        numbers = iter(range(len(self._ids)))

        async def grant() -> None:
            for number in numbers:
                granted = await self.client(number).lease_grant(LEASE_TTL_S)
                self._ids[number] = granted.lease_id

        await together(grant() for _ in range(FILL_TASKS))

    async def operate(self, operation: Operation) -> None:
        """Renew one."""
        lease_id = self._ids[operation.number % len(self._ids)]
        await self.client(operation.client).lease_keep_alive_once(lease_id)
        operation.done("keepalive")

    async def finish(self) -> None:
        """Revoke them."""
        ids = iter([lease_id for lease_id in self._ids if lease_id])

        async def revoke(number: int) -> None:
            for lease_id in ids:
                await self.client(number).lease_revoke(lease_id)

        await together(revoke(number) for number in range(FILL_TASKS))


class Locking(Workload):
    """Clients that contend for locks: the time to get one, behind those that came before."""

    main_kind = "acquire"

    def __init__(self, plan: Plan, connections: Sequence[AsyncClient]) -> None:
        super().__init__(plan, connections)
        self._holders: dict[int, int] = {}
        """By lock: the client that holds it."""
        self._ids: dict[int, int] = {}
        """By client: its lease, which is what owns locks."""

    async def prepare(self) -> None:
        """Give each client a lease."""

        async def grant(client: int) -> None:
            self._ids[client] = (await self.client(client).lease_grant(LEASE_TTL_S)).lease_id

        await together(grant(client) for client in range(self.plan.clients))

    async def operate(self, operation: Operation) -> None:
        """Acquire one and release it."""
        number = operation.number % self.plan.locks
        client = self.client(operation.client)
        name = self.plan.prefix + b"lock%d/" % number
        lock = Lock(client, name, self._ids[operation.client])
        await lock.acquire()
        operation.done("acquire")
        # What the lock promises is checked on the way; the pause is for others to be seen inside.
        if number in self._holders:
            raise BrokenPromiseError(f"two clients hold lock {number} at a time")
        self._holders[number] = operation.client
        await asyncio.sleep(0)
        begun_s = time.perf_counter()
        del self._holders[number]
        await lock.release()
        operation.measure.note("release", time.perf_counter() - begun_s)

    async def finish(self) -> None:
        """Revoke the leases, and with them what is left of locks."""
        await together(
            self.client(client).lease_revoke(lease) for client, lease in self._ids.items()
        )


WORKLOADS: dict[str, type[Workload]] = {
    "put": Workload,
    "range": Range,
    "mixed": Mixed,
    "txn": Transactions,
    "watch-latency": WatchLatency,
    "watch-fanout": WatchFanout,
    "lease-keepalive": LeaseKeepalive,
    "lock": Locking,
    "hot-key": HotKey,
    "sequential": Sequential,
}
