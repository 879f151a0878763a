"""The load of a run: clients, watchers, lease holders and compaction; notes all in a History."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    CompactedError,
    KvError,
    OutcomeUnknownError,
)
from kvstore.client.methods import LEASE_KEEP_ALIVE
from kvstore.client.txn import Op, compare
from kvstore.client.types import KeyValue, WatchBatch
from kvstore.pb import rpc_pb2 as pb
from tests.cluster.faults.watching import OPTIONS, Watching
from tests.validate.history import (
    OK,
    REFUSED,
    UNKNOWN,
    Batch,
    Change,
    Event,
    History,
    Kv,
    Lease,
    Read,
    Watch,
    Write,
)

KV_CLIENTS = 8
LESSEES = 4
KEYS = 12
REGISTER_USES = 40
"""Operations on one register before the next: the search must stay short."""

CALL_S = 2.5
"""How long a client waits for an answer."""

THINK_S = 0.012
SLEEPY = 8
"""The watcher that stays away so long that compaction overtakes it."""

HISTORY_KEPT = 300
"""Revisions that compaction leaves behind the slowest point of the watcher of everything."""


def kv_of(kv: KeyValue) -> Kv:
    return Kv(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


class Traffic:
    """Starts with `start`; `stop` ends the clients, `close` the watchers too."""

    def __init__(self, endpoints: list[str], seed: int, lessees: int = LESSEES) -> None:
        self.history = History()
        self._lessees = lessees
        self.endpoints = endpoints
        self.answered: list[float] = []
        """When each operation was answered (monotonic seconds)."""
        self.written: list[float] = []
        """Likewise, of those that are acknowledged writes."""
        self.outcomes: dict[str, int] = {OK: 0, UNKNOWN: 0, REFUSED: 0}
        self.watching: list[Watching] = []
        self.renewals = 0
        self._rng = random.Random(seed)
        self._values = 0
        self._registers = 0
        self._clients: list[AsyncClient] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._watch_tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self) -> None:
        """Begin."""
        count = len(self.endpoints)
        for number in range(KV_CLIENTS):
            # Half the clients stay at one member, whatever happens to it; the others move.
            first = number % count
            pinned = number < KV_CLIENTS // 2
            endpoints = self._from(first)[: 1 if pinned else count]
            self._work(self._kv(f"client {number}", self._client(endpoints)))
        for number in range(count):
            # At every member, whatever happens to it, somebody waits for a fresh read.
            self._work(self._reader(f"reader {number}", self._client([self.endpoints[number]])))
        for number in range(self._lessees):
            # As above: half of them renew at one member only.
            endpoints = self._from(number // 2)[: 1 if number % 2 else count]
            self._work(self._hold(self._client(self._from(number)), endpoints))
        self._work(self._compact(self._client(self._from(0))))
        for number, (start, end, options, moves) in enumerate(
            (
                (b"\0", b"\0", {}, False),  # everything, from the beginning: the others' measure
                (b"k/", b"k0", {}, True),
                (b"k/", b"k0", {"prev_kv": False}, True),
                (b"k/", b"k0", {"puts": False}, False),
                (b"k/", b"k0", {"deletes": False}, True),
                (b"k/03", b"", {}, True),
                (b"l/", b"l0", {}, False),
                (b"m/", b"\0", {}, True),
                (b"\0", b"\0", {}, True),
            )
        ):
            record = Watch(f"watcher {number}", start, end, 2, **options)
            watching = Watching(
                self.history,
                record,
                self._from(number),
                self._fork(),
                moves=moves,
                sleeps=number == SLEEPY,
            )
            self.watching.append(watching)
            self._watch_tasks.append(asyncio.create_task(watching.run()))
        for number, endpoint in enumerate(self.endpoints):
            # Stays connected when its member is frozen: whatever that misses, it must hear of.
            record = Watch(f"watcher at member {number}", b"k/", b"k0", 2)
            watching = Watching(
                self.history, record, [endpoint], self._fork(), moves=False, silence_s=30
            )
            self.watching.append(watching)
            self._watch_tasks.append(asyncio.create_task(watching.run()))
        self._watch_tasks.append(asyncio.create_task(self._library_watch()))

    def _from(self, first: int) -> list[str]:
        first %= len(self.endpoints)
        return self.endpoints[first:] + self.endpoints[:first]

    def _fork(self) -> random.Random:
        return random.Random(self._rng.getrandbits(64))

    def _client(self, endpoints: list[str]) -> AsyncClient:
        client = AsyncClient(endpoints, timeout_s=CALL_S, connect_timeout_s=0.7)
        self._clients.append(client)
        return client

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """Let every client finish its call; no more are made."""
        self._stopping = True
        for watching in self.watching:
            watching.awake.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End the watchers and all connections."""
        for task in self._watch_tasks:
            task.cancel()
        results = await asyncio.gather(*self._watch_tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def check(self) -> None:
        """Raise what ended a client that should still run."""
        for task in [*self._tasks, *self._watch_tasks]:
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()

    async def more(self, operations: int, *, timeout_s: float, writes: bool = False) -> bool:
        """Wait for that many more answers; tell whether they came in time."""
        answers = self.written if writes else self.answered
        wanted = len(answers) + operations
        end = time.monotonic() + timeout_s
        while len(answers) < wanted:
            self.check()
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    # one client

    async def _kv(self, who: str, client: AsyncClient) -> None:
        rng = self._fork()
        seen: dict[bytes, int] = {}
        while not self._stopping:
            key = b"k/%02d" % rng.randrange(KEYS)
            draw = rng.random()
            if draw < 0.28:
                await self._put(who, client, key)
            elif draw < 0.42:
                await self._register_put(who, client, rng)
            elif draw < 0.54:
                register = b"r/%d" % (self._registers // REGISTER_USES)
                self._registers += 1
                await self._read(who, client, register, b"", seen)
            elif draw < 0.64:
                await self._read(who, client, key, b"", seen)
            elif draw < 0.70:
                await self._read(who, client, b"k/", b"k0", seen)
            elif draw < 0.74:
                await self._read(who, client, b"k/", b"k0", seen, serializable=True)
            elif draw < 0.77:
                at = max(2, self.watching[0].next - rng.randrange(1, 50))
                await self._read(who, client, b"k/", b"k0", seen, at=at)
            elif draw < 0.83:
                await self._delete(who, client, key)
            elif draw < 0.93:
                await self._compare_and_set(who, client, key, seen.get(key, 0), rng)
            else:
                await self._put_two(who, client, rng)
            await asyncio.sleep(rng.uniform(0.5, 1.5) * THINK_S)

    async def _reader(self, who: str, client: AsyncClient) -> None:
        while not self._stopping:
            await self._read(who, client, b"k/", b"k0", {}, timeout_s=0.8)
            await asyncio.sleep(4 * THINK_S)

    def _value(self) -> bytes:
        self._values += 1
        return b"v%d" % self._values

    async def _write(self, write: Write, call: Coroutine[Any, Any, Any]) -> Any:
        """Make a write, note how it ended, return its result or None."""
        self.history.writes.append(write)
        result = None
        try:
            result = await call
        except OutcomeUnknownError:
            write.outcome = UNKNOWN
        except KvError:
            write.outcome = REFUSED  # every other error says: certainly not applied
        else:
            write.outcome = OK
            write.revision = result.revision
            now = time.monotonic()
            self.answered.append(now)
            self.written.append(now)
        write.back = self.history.tick()
        self.outcomes[write.outcome] += 1
        if write.outcome == REFUSED:
            await asyncio.sleep(0.05)  # there is no leader, or nobody home; do not spin
        return result

    async def _put(self, who: str, client: AsyncClient, key: bytes, lease: int = 0) -> Write:
        value = self._value()
        write = Write(self.history.tick(), (Change(key, value, lease),), who=who)
        result = await self._write(write, client.put(key, value, lease=lease, prev_kv=True))
        if result is not None:
            write.previous = {key: kv_of(result.previous) if result.previous else None}
        return write

    async def _register_put(self, who: str, client: AsyncClient, rng: random.Random) -> None:
        key = b"r/%d" % (self._registers // REGISTER_USES)
        self._registers += 1
        await self._put(who, client, key)

    async def _put_two(self, who: str, client: AsyncClient, rng: random.Random) -> None:
        keys = [b"m/%d" % number for number in rng.sample(range(4), 2)]
        changes = tuple(Change(key, self._value()) for key in keys)
        operations = [Op.put(change.key, change.value or b"") for change in changes]
        write = Write(self.history.tick(), changes, who=who)
        await self._write(write, client.txn().then(*operations).commit())

    async def _compare_and_set(
        self, who: str, client: AsyncClient, key: bytes, mod: int, rng: random.Random
    ) -> None:
        value = self._value()
        write = Write(self.history.tick(), (Change(key, value),), compares=((key, mod),), who=who)
        txn = client.txn().when(compare(key).mod_revision == mod).then(Op.put(key, value))
        result = await self._write(write, txn.commit())
        if result is not None:
            write.succeeded = result.succeeded

    async def _delete(self, who: str, client: AsyncClient, key: bytes) -> None:
        write = Write(self.history.tick(), (Change(key, None),), who=who)
        result = await self._write(write, client.delete(key, prev_kv=True))
        if result is not None:
            write.deleted = result.deleted
            previous = [kv_of(kv) for kv in result.previous]
            write.previous = {key: previous[0] if previous else None}

    async def _read(
        self,
        who: str,
        client: AsyncClient,
        start: bytes,
        end: bytes,
        seen: dict[bytes, int],
        *,
        serializable: bool = False,
        at: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        read = Read(self.history.tick(), start, end, serializable, at, who=who)
        try:
            result = await client.range(
                start, end, revision=at, serializable=serializable, timeout_s=timeout_s
            )
        except AvailabilityError:
            await asyncio.sleep(0.05)
            return
        except KvError:
            return  # compacted, or from a future that this member does not know yet
        read.back = self.history.tick()
        read.revision = result.revision
        read.kvs = tuple(kv_of(kv) for kv in result.kvs)
        self.history.reads.append(read)
        self.answered.append(time.monotonic())
        if not at:
            for kv in read.kvs:
                seen[kv.key] = kv.mod

    # leases

    async def _hold(self, client: AsyncClient, endpoints: list[str]) -> None:
        rng = self._fork()
        channels = [grpc.aio.insecure_channel(target, OPTIONS) for target in endpoints]
        try:
            while not self._stopping:
                asked_s = time.monotonic()
                try:
                    grant = await client.lease_grant(rng.randrange(2, 4))
                except KvError:
                    await asyncio.sleep(0.1)
                    continue
                lease = Lease(grant.lease_id, grant.ttl_s, asked_s, asked_s)
                self.history.leases.append(lease)
                await self._live(client, channels, lease, rng)
        finally:
            for channel in channels:
                await channel.close()

    async def _live(
        self,
        client: AsyncClient,
        channels: list[grpc.aio.Channel],
        lease: Lease,
        rng: random.Random,
    ) -> None:
        for number in range(rng.randrange(1, 4)):
            key = b"l/%x/%d" % (lease.lease_id, number)
            write = await self._put("lease holder", client, key, lease.lease_id)
            if write.outcome != REFUSED:
                (lease.keys if write.outcome == OK else lease.unsure_keys).append(key)
        # Some wait for long: a member that was frozen still finds their renewals in its sockets.
        patience_s = rng.choice((1, 1, 2, 6))
        for _ in range(rng.randrange(0, 12)):
            if self._stopping or lease.ended_s is not None:
                break
            # Who renews all the time never sees that an answer promised too much.
            late = rng.random() < 0.4
            await asyncio.sleep(lease.ttl_s * rng.uniform(0.4, 0.9) if late else 0.4)
            await self._renew(rng.choice(channels), lease, patience_s)
        if (self._stopping or rng.random() < 0.4) and lease.ended_s is None:
            lease.revoked = self.history.tick()
            try:
                await client.lease_revoke(lease.lease_id)
            except KvError:
                return  # it ends by itself
        # Else it is left alone, and must end by itself.

    async def _renew(self, channel: grpc.aio.Channel, lease: Lease, patience_s: float) -> None:
        stream: Any = channel.stream_stream(
            LEASE_KEEP_ALIVE.path,
            request_serializer=LEASE_KEEP_ALIVE.request.SerializeToString,
            response_deserializer=LEASE_KEEP_ALIVE.response.FromString,
        )()
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(patience_s):
                await stream.write(pb.LeaseKeepAliveRequest(ID=lease.lease_id))
                answer = await stream.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            return
        finally:
            stream.cancel()
        if answer is grpc.aio.EOF:
            return
        if answer.TTL > 0:
            lease.renewed_s = asked_s
            self.renewals += 1
        else:
            lease.ended_s = time.monotonic()

    # the rest

    async def _compact(self, client: AsyncClient) -> None:
        rng = self._fork()
        last = 0
        while not self._stopping:
            await asyncio.sleep(rng.uniform(0.2, 0.6))
            revision = self.watching[0].next - HISTORY_KEPT
            if revision <= last + 20:
                continue
            self.history.compactions.append((self.history.tick(), revision))
            try:
                await client.compact(revision)
            except KvError:
                continue  # done already, or not now
            last = revision

    async def _library_watch(self) -> None:
        """Watch through the client library as well, whose own resumption is judged so."""
        record = Watch("library watcher", b"k/", b"k0", 2)
        self.history.watches.append(record)
        client = self._client(self._from(1))
        start = record.first
        while True:
            watcher = client.watch(b"k/", b"k0", start_revision=start, prev_kv=True)
            try:
                async for batch in watcher:
                    self._take(record, batch)
            except CompactedError as error:
                start, before = error.compacted, watcher.next_revision
                record.compacted.append((before, start))
            finally:
                await watcher.aclose()

    def _take(self, record: Watch, batch: WatchBatch) -> None:
        events = tuple(
            Event(
                event.kind == "PUT",
                kv_of(event.kv),
                kv_of(event.previous) if event.previous else None,
            )
            for event in batch.events
        )
        record.batches.append(Batch(self.history.tick(), time.monotonic(), batch.revision, events))
