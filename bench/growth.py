"""How the cost of an operation grows with what a member holds: `python -m bench.growth`.

One member, so that nothing but the store's own work counts; cost is the member's CPU per
operation, which a busy machine disturbs less than a rate. For each operation the growth is the
exponent g of cost ~ size^g over the whole range: 0 does not grow, 1 is linear.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import queue
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import log
from typing import Any, Self

import grpc
import psutil
import uvloop

from bench import messages, process
from bench.clusters import KVSTORE, QUOTA_BYTES, Cluster, choose_ports
from bench.generator import Run, connect, finish
from bench.idle import affordable, idle_connection
from bench.load import Load, key
from bench.machine import facts
from bench.measure import preload
from bench.report import Report, show, write
from kvstore.client import AsyncClient, Op

SECONDS = 1.5
TASKS = 32
TICK_S = 0.01
"""What process times are counted in; a cost is given only over many of them."""

MORE_VERSIONS = 640
"""Puts per measurement where each adds a version."""

GROWTH_MAX = 0.2
"""Of an operation that should not grow: what logarithms and caches of the processor explain."""

KEYS = 10_000
"""That the clients put and get."""

KEY_MEMORY_BYTES, KEY_DISK_BYTES = 512, 1024
"""What a key of 32 + 256 bytes takes at most: of a member's memory, of its store and log."""

MEANING = "growth g: cost ~ size^g between the first and the last size"
COLUMNS = (
    "holding",
    "operation",
    "cost at each size (us of the member's CPU)",
    "growth",
    "verdict",
)


@dataclass
class Series:
    """One operation's cost at each size."""

    holding: str
    operation: str
    flat: bool
    """Whether the cost should not depend on the size; else it should not be worse than linear."""

    costs_us: dict[int, float] = field(default_factory=dict)
    command: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return the series that `asdict` took apart; JSON has made texts of the sizes."""
        costs = {int(size): cost for size, cost in data["costs_us"].items()}
        return cls(**data | {"costs_us": costs})

    @property
    def growth(self) -> float:
        """Exponent between the first and the last size."""
        sizes = list(self.costs_us)
        if len(sizes) < 2:
            return 0.0
        ratio = self.costs_us[sizes[-1]] / max(self.costs_us[sizes[0]], 1e-9)
        return log(max(ratio, 1e-9)) / log(sizes[-1] / sizes[0])

    def row(self) -> tuple[str, ...]:
        """Return the table's row."""
        costs = ", ".join(f"{size:,}: {cost:,.1f}" for size, cost in self.costs_us.items())
        bound = GROWTH_MAX if self.flat else 1.0 + GROWTH_MAX
        wanted = "flat" if self.flat else "linear at most"
        verdict = wanted if self.growth <= bound else f"GROWS (should be {wanted})"
        return (self.holding, self.operation, costs, f"{self.growth:.2f}", verdict)


class Member:
    """One member and a client of it."""

    def __init__(self, cluster: Cluster, client: AsyncClient, seconds: float) -> None:
        self.cluster = cluster
        self.client = client
        self.pid = cluster.leader().pid
        self._seconds = seconds

    async def cost_us(self, operation: Callable[[], Awaitable[object]], *, times: int = 0) -> float:
        """Return the CPU per operation: `times` of them, or as many as fit the time."""
        done = 0
        before, end = process.cpu_s(self.pid), time.monotonic() + self._seconds

        async def work(count: int) -> None:
            nonlocal done
            while (count > 0) if times else (time.monotonic() < end):
                await operation()
                done += 1
                count -= 1

        tasks = min(TASKS, times) if times else TASKS
        await asyncio.gather(*(work(times // tasks) for _ in range(tasks)))
        return 1e6 * max(TICK_S, process.cpu_s(self.pid) - before) / done

    async def idle_us(self) -> float:
        """Return the CPU of one second without any request."""
        before = process.cpu_s(self.pid)
        await asyncio.sleep(3 * self._seconds)
        spent_s = max(TICK_S, process.cpu_s(self.pid) - before)
        return 1e6 * spent_s / (3 * self._seconds)


@asynccontextmanager
async def member(seconds: float) -> AsyncIterator[Member]:
    """Run one member."""
    with Cluster(KVSTORE, ports=choose_ports(1)) as cluster:
        async with AsyncClient([cluster.leader().target], timeout_s=120.0) as client:
            yield Member(cluster, client, seconds)


class Table:
    """Collects the series in order of appearance."""

    def __init__(self, holding: str, changed: Callable[[Table], None] = lambda _: None) -> None:
        """Begin without a cost; `changed` hears of each one that is added."""
        self._holding = holding
        self._changed = changed
        self.series: dict[str, Series] = {}

    def add(self, operation: str, size: int, cost_us: float, *, flat: bool = True) -> None:
        """Note one cost."""
        series = self.series.setdefault(operation, Series(self._holding, operation, flat))
        series.costs_us[size] = cost_us
        print(f"{self._holding} {size:,}: {operation} {cost_us:,.1f} us", flush=True)
        self._changed(self)


async def by_keys(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of single operations while the store holds more and more keys."""
    rng = random.Random(1)
    async with member(seconds) as one:
        client, value, loaded = one.client, b"v" * 256, 0
        for size in sizes:
            await asyncio.to_thread(preload, one.cluster, size, first=loaded)
            loaded = size

            def any_key(size: int = size) -> bytes:
                return key(rng.randrange(size))

            table.add("put", size, await one.cost_us(lambda: client.put(any_key(), value)))
            table.add("get", size, await one.cost_us(lambda: client.get(any_key())))
            ten = one.cost_us(lambda: client.range(any_key(), key(10**9), limit=10))
            table.add("range, limit 10", size, await ten)
            page = one.cost_us(lambda: client.range(any_key(), key(10**9), limit=200))
            table.add("page of 200 from anywhere", size, await page)
            count = one.cost_us(lambda: client.range(b"", prefix=True, count_only=True))
            table.add("count of all", size, await count)
            last = one.cost_us(
                lambda: client.range(b"", prefix=True, limit=10, sort_order="descend")
            )
            table.add("last 10 keys", size, await last)
            revision = (await client.put(key(0), value)).revision
            old_ten = partial(client.range, range_end=key(10**9), limit=10, revision=revision)
            old = one.cost_us(lambda old_ten=old_ten: old_ten(any_key()))  # type: ignore[misc]
            await client.put(key(1), value)
            table.add("range, limit 10, at an older revision", size, await old)


async def by_value(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of put and get with larger values."""
    async with member(seconds) as one:
        client = one.client
        for size in sizes:
            value = b"v" * size
            times = max(TASKS, min(20_000, (256 << 20) // (size + 4096)))
            put = one.cost_us(partial(client.put, key(1), value), times=times)
            table.add("put", size, await put, flat=False)
            get = one.cost_us(partial(client.get, key(1)), times=times)
            table.add("get", size, await get, flat=False)


async def by_clients(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of operations of more and more clients at once, and of a few among many idle ones.

    A client is a connection of its own with one operation under way.
    """
    async with member(seconds) as one:
        target, pid = one.cluster.leader().target, one.pid
        await asyncio.to_thread(preload, one.cluster, KEYS)
        for size in sizes:
            load = Load([target], connections=size, streams=1, keys=KEYS)
            puts = await _cost_of_load_us(pid, load, seconds)
            table.add("put, all at once", size, puts)
            gets = await _cost_of_load_us(pid, replace(load, put_share=0.0), seconds)
            table.add("get, all at once", size, gets)
            with ExitStack() as stack:
                for _ in range(size):
                    stack.enter_context(idle_connection(one.cluster.leader()))
                await asyncio.sleep(seconds)  # what came and went before is over then
                put = one.cost_us(lambda: one.client.put(key(1), b"v" * 256))
                table.add("put, those idle", size, await put)


async def _cost_of_load_us(pid: int, load: Load, seconds: float) -> float:
    """Return the member's CPU per operation once all connections are there."""
    run = Run(load)
    connections = await connect(run)
    await asyncio.sleep(seconds / 3)
    before, done = process.cpu_s(pid), run.outcome.acknowledged
    await asyncio.sleep(seconds)
    spent_s, done = process.cpu_s(pid) - before, run.outcome.acknowledged - done
    await finish(run, connections)
    if run.errors or run.outcome.unanswered:
        raise RuntimeError(f"{load.connections} clients: {run.errors}, {run.outcome.problems()}")
    return 1e6 * max(TICK_S, spent_s) / max(1, done)


async def by_watchers(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of a put while more and more watchers wait, each for a key of its own."""
    async with member(seconds) as one:
        client, rng, open_now = one.client, random.Random(1), 0
        with Watchers(one.cluster.leader().target) as watchers:
            for size in sizes:
                await asyncio.to_thread(watchers.add, range(open_now, size))
                open_now = size
                put = one.cost_us(lambda: client.put(key(rng.randrange(1000)), b"v"))
                table.add("put that nobody watches", size, await put)

                def watched(size: int = size) -> Awaitable[object]:
                    return client.put(Watchers.key(rng.randrange(size)), b"v")

                table.add("put that one watches", size, await one.cost_us(watched))


class Watchers:
    """Watchers on one stream, each of a key of its own; what they hear is dropped."""

    def __init__(self, target: str) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(target)
        self._replies = self._channel.stream_stream(messages.WATCH)(iter(self._requests.get, None))
        self._created = threading.Semaphore(0)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @staticmethod
    def key(number: int) -> bytes:
        """Return the key of a watcher."""
        return b"watched/%08d" % number

    def add(self, numbers: Iterable[int]) -> None:
        """Create watchers and wait until all are registered."""
        for number in numbers:
            self._requests.put(messages.watch_create(self.key(number)))
        for _ in numbers:
            if not self._created.acquire(timeout=60.0):
                raise RuntimeError("a watcher was not created within 60 s")

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):  # the end is a cancellation
            for reply in self._replies:
                if messages.decode(reply).get(3):
                    self._created.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self._replies.cancel()
        self._channel.close()
        self._reader.join()


async def by_leases(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of lease calls while more and more leases live, each with a key."""
    async with member(seconds) as one:
        client, rng, leases = one.client, random.Random(1), list[int]()

        async def grant() -> None:
            lease = await client.lease_grant(3600)
            leases.append(lease.lease_id)
            await client.put(b"leased/%08d" % len(leases), b"v", lease=lease.lease_id)

        async def end_one() -> None:
            await client.lease_revoke(leases.pop(rng.randrange(len(leases))))

        for size in sizes:
            count = size - len(leases)
            table.add("grant, and put with it", size, await one.cost_us(grant, times=count))
            renew = one.cost_us(lambda: client.lease_keep_alive_once(rng.choice(leases)))
            table.add("renewal", size, await renew)
            left = one.cost_us(lambda: client.lease_time_to_live(rng.choice(leases)))
            table.add("time to live", size, await left)
            table.add("revoke", size, await one.cost_us(end_one, times=min(320, size // 4)))
            table.add("idle second", size, await one.idle_us(), flat=False)


async def by_txn(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of a transaction with more and more puts."""
    async with member(seconds) as one:
        client = one.client
        for size in sizes:
            puts = [Op.put(key(number), b"v" * 256) for number in range(size)]
            cost = await one.cost_us(lambda puts=puts: client.txn().then(*puts).commit())  # type: ignore[misc]
            table.add("transaction of puts", size, cost, flat=False)


async def by_history(table: Table, sizes: Sequence[int], seconds: float) -> None:
    """Cost of operations on one key while its versions pile up."""
    async with member(seconds) as one:
        client, rng, versions = one.client, random.Random(1), 0
        first = last = (await client.put(b"deep", b"v")).revision
        for size in sizes:
            for begin in range(versions, size, 1000):
                puts = [Op.put(b"deep", b"v" * 64)] * min(1000, size - begin)
                last = (await client.pipeline().then(*puts).commit())[-1].revision
            versions = max(versions, size)
            table.add("get", size, await one.cost_us(lambda: client.get(b"deep")))

            def old(first: int = first, newest: int = last) -> Awaitable[object]:
                return client.get(b"deep", revision=rng.randint(first, newest))

            table.add("get at any revision", size, await one.cost_us(old))
            put = one.cost_us(lambda: client.put(b"deep", b"v" * 64), times=MORE_VERSIONS)
            table.add("put", size, await put)
            versions += MORE_VERSIONS


Dimension = Callable[[Table, Sequence[int], float], Coroutine[None, None, None]]
DIMENSIONS: dict[str, tuple[Dimension, tuple[int, ...]]] = {
    "keys": (by_keys, (10_000, 100_000, 1_000_000, 5_000_000)),
    "value bytes": (by_value, (16, 256, 4096, 65_536, 1 << 20)),
    "clients": (by_clients, (1, 10, 100, 1000, 5000)),
    "watchers": (by_watchers, (10, 100, 1000, 10_000, 100_000)),
    "leases": (by_leases, (1000, 10_000, 100_000)),
    "puts in a transaction": (by_txn, (1, 8, 64, 128)),
    "versions of a key": (by_history, (1000, 10_000, 100_000)),
}


def fitting(name: str, size_max: int = 10**9) -> tuple[list[int], list[str]]:
    """Return the sizes of a dimension that fit this machine, and which were left out and why."""
    fits, left_out = [], []
    for size in DIMENSIONS[name][1]:
        if why := "larger than asked for" if size > size_max else _too_large(name, size):
            left_out.append(f"growth, {size:,} {name} left out: {why}")
        else:
            fits.append(size)
    return fits, left_out


def _too_large(name: str, size: int) -> str:
    if name == "clients" and (files := affordable(2 * size)) < 2 * size:
        return f"this process may open {files:,} connections, the idle ones included {2 * size:,}"
    if name == "keys":
        for what, wanted, there in (
            ("memory", size * KEY_MEMORY_BYTES, psutil.virtual_memory().available),
            ("disk", size * KEY_DISK_BYTES, shutil.disk_usage(tempfile.gettempdir()).free),
            ("quota", size * KEY_DISK_BYTES, QUOTA_BYTES),
        ):
            if wanted > there:
                return (
                    f"they want {wanted / 2**30:.1f} GiB of {what}, {there / 2**30:.1f} are there"
                )
    return ""


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(DIMENSIONS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--size-max", type=int, default=10**9, help="leaves out larger sizes")
    parser.add_argument("--name", default="growth", help="of the result files")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that data is removed
    wanted = [name.strip() for name in arguments.only.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in DIMENSIONS]:
        parser.error(f"no such dimension: {unknown[0]}; there are {', '.join(DIMENSIONS)}")
    command = f"python -m bench.growth {' '.join(sys.argv[1:])}".strip()
    report: Report[Series] = Report(facts(None), command)
    for name in wanted or DIMENSIONS:
        sizes, left_out = fitting(name, arguments.size_max)
        report.notes += left_out
        table = Table(name)
        uvloop.run(DIMENSIONS[name][0](table, sizes, arguments.seconds))
        report.samples += table.series.values()
    rows = [series.row() for series in report.samples]
    report.notes.append(MEANING)
    show(report, rows, COLUMNS)
    print(f"written: {write(report, rows, arguments.name, COLUMNS)}")


if __name__ == "__main__":
    main()
