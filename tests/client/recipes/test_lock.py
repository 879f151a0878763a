"""Locks and read-write locks against real servers: exclusion, fairness, loss, and etcdctl."""

from __future__ import annotations

import asyncio
import shutil
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, AvailabilityError, Client, LeaseLostError, Op
from tests.client.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kvstore.client import Lock
    from tests.servers import Cluster


async def waiting(client: AsyncClient, prefix: bytes, count: int) -> None:
    """Return when so many keys stand in the line."""
    async with asyncio.timeout(20), client.watch(prefix, prefix=True) as watcher:
        while (await client.range(prefix, prefix=True, count_only=True)).count < count:
            await anext(watcher)


class Resource:
    """Something outside the store that checks fencing tokens, and who else is inside."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.refused: list[int] = []
        self.inside = 0

    def write(self, token: int) -> bool:
        if self.tokens and token < self.tokens[-1]:
            self.refused.append(token)
            return False
        self.tokens.append(token)
        return True

    @asynccontextmanager
    async def alone(self, lock: Lock) -> AsyncIterator[None]:
        assert self.inside == 0, "two holders at once"
        self.inside += 1
        try:
            assert self.write(lock.token)
            yield
        finally:
            self.inside -= 1


async def test_one_holder_at_a_time_with_rising_tokens(client: AsyncClient, prefix: bytes) -> None:
    resource = Resource()

    async def work() -> None:
        for _ in range(5):
            async with client.lock(prefix + b"lock") as lock, resource.alone(lock):
                await client.get(prefix)  # gives others a chance to break in

    await asyncio.gather(*(work() for _ in range(8)))

    assert len(resource.tokens) == 40
    assert resource.tokens == sorted(set(resource.tokens))
    assert (await client.range(prefix, prefix=True, count_only=True)).count == 0


async def test_the_lock_goes_to_who_asked_first(client: AsyncClient, prefix: bytes) -> None:
    order: list[int] = []

    async def work(number: int) -> None:
        async with client.lock(prefix + b"lock"):
            order.append(number)

    async with client.lock(prefix + b"lock") as first:
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(work(number)))
            await waiting(client, prefix, number + 2)
        assert order == []
        assert first.is_held
    await asyncio.gather(*tasks)

    assert order == list(range(6))


async def test_a_release_wakes_only_the_next(client: AsyncClient, server: Cluster) -> None:
    # A herd would make every waiter look again at every release: 20 * 20 / 2 transactions.
    name = b"herd/%d" % id(client)
    async with AsyncClient(server.endpoints) as waiter:

        async def work() -> None:
            async with waiter.lock(name):
                pass

        async with client.lock(name):
            tasks = [asyncio.create_task(work()) for _ in range(20)]
            await waiting(client, name, 21)
        await asyncio.gather(*tasks)

        # Each puts its key, looks once and waits, and looks once more when it is woken.
        assert waiter.statistics().calls["KV/Txn"] == 60


async def test_trying_does_not_wait_and_leaves_nothing(client: AsyncClient, prefix: bytes) -> None:
    held, tried = client.lock(prefix + b"lock"), client.lock(prefix + b"lock")
    assert await held.try_acquire()
    assert held.token > 0

    assert not await tried.try_acquire()

    assert tried.token == 0
    assert not tried.is_held
    keys = await client.range(prefix, prefix=True)
    assert [kv.create_revision for kv in keys.kvs] == [held.token]
    await held.release()
    assert await tried.try_acquire()
    await tried.release()
    with pytest.raises(RuntimeError, match="not held"):
        await tried.release()


async def test_waiting_has_a_limit_and_gives_the_place_up(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.lock(prefix + b"lock"):
        late = client.lock(prefix + b"lock")
        with pytest.raises(TimeoutError):
            await late.acquire(timeout_s=0.1)
        assert (await client.range(prefix, prefix=True, count_only=True)).count == 1
    await late.acquire(timeout_s=10)  # it can be used again
    assert late.is_held
    await late.release()


async def test_a_waiter_that_is_cancelled_gives_its_place_up(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.lock(prefix + b"lock"):
        waiter = asyncio.create_task(client.lock(prefix + b"lock").acquire())
        await waiting(client, prefix, 2)
        waiter.cancel()
        await asyncio.wait({waiter})
        assert waiter.cancelled()
        assert (await client.range(prefix, prefix=True, count_only=True)).count == 1


async def test_an_expired_lease_stops_the_body_and_its_token_is_refused(
    client: AsyncClient, prefix: bytes
) -> None:
    resource = Resource()
    stale: list[int] = []
    lost = asyncio.Event()
    entered = asyncio.Event()

    async def slow() -> None:
        async with client.lock(prefix + b"lock", on_lost=lambda _: lost.set()) as lock:
            stale.append(lock.token)
            assert resource.write(lock.token)
            entered.set()
            await asyncio.sleep(60)  # cancelled: the lease is revoked from outside

    holder = asyncio.create_task(slow())
    await entered.wait()
    [kv] = (await client.range(prefix, prefix=True)).kvs
    await client.lease_revoke(kv.lease)

    async with client.lock(prefix + b"lock", timeout_s=20) as lock:
        assert resource.write(lock.token)
        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(holder, 20)
        assert lost.is_set()
        # What was under way of the first holder arrives late.
        assert not resource.write(stale[0])
        answer = await client.txn().when(lock.held).then(Op.put(prefix + b"guarded", b"")).commit()
        assert answer.succeeded


async def test_the_store_refuses_who_has_lost_the_lock(client: AsyncClient, prefix: bytes) -> None:
    lock = await client.lock(prefix + b"lock").acquire()
    condition = lock.held
    [kv] = (await client.range(prefix, prefix=True)).kvs
    await client.lease_revoke(kv.lease)

    answer = await client.txn().when(condition).then(Op.put(prefix + b"guarded", b"")).commit()

    assert not answer.succeeded
    await asyncio.wait_for(lock.wait_lost(), 20)
    assert not lock.is_held
    with pytest.raises(LeaseLostError):
        lock.check()
    with pytest.raises(LeaseLostError):
        await lock.release()


async def test_a_waiter_whose_lease_ends_is_told(client: AsyncClient, prefix: bytes) -> None:
    async with client.lock(prefix + b"lock") as lock:
        waiter = asyncio.create_task(client.lock(prefix + b"lock").acquire())
        await waiting(client, prefix, 2)
        keys = (await client.range(prefix, prefix=True)).kvs
        [other] = [kv for kv in keys if kv.create_revision != lock.token]
        await client.lease_revoke(other.lease)
        with pytest.raises(LeaseLostError):
            await asyncio.wait_for(waiter, 20)


async def test_a_waiter_whose_key_is_deleted_does_not_take_itself_for_the_holder(
    client: AsyncClient, prefix: bytes
) -> None:
    # The lease lives on, so nothing but the look at its own key can tell.
    lock = await client.lock(prefix + b"lock").acquire()
    waiter = asyncio.create_task(client.lock(prefix + b"lock").acquire())
    await waiting(client, prefix, 2)
    keys = (await client.range(prefix, prefix=True)).kvs
    [other] = [kv for kv in keys if kv.create_revision != lock.token]
    await client.delete(other.key)
    await lock.release()
    with pytest.raises(LeaseLostError, match="key"):
        await asyncio.wait_for(waiter, 20)


async def test_a_holder_that_is_cut_off_stops_before_another_begins(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    events: list[str] = []
    entered = asyncio.Event()

    async with Proxy(server.endpoints[0]) as proxy, AsyncClient([proxy.endpoint]) as cut:

        async def hold() -> None:
            try:
                async with cut.lock(prefix + b"lock", ttl_s=2):
                    entered.set()
                    await asyncio.sleep(60)  # cancelled: the lease cannot be renewed
            except LeaseLostError:
                events.append("stopped")

        holder = asyncio.create_task(hold())
        await asyncio.wait_for(entered.wait(), 20)
        await proxy.refuse()
        async with client.lock(prefix + b"lock", timeout_s=30):
            events.append("begun")
        await asyncio.wait_for(holder, 20)
    assert events == ["stopped", "begun"]


async def test_a_lost_answer_does_not_take_the_place_twice(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    # The key was put and the answer never came: the repetition must find its own key.
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint, server.endpoints[0]]) as cut,
    ):
        lock = cut.lock(prefix + b"lock")
        lease_granted = asyncio.Event()
        put, persisted = lock._put, []

        async def put_through_a_cut(lease_id: int) -> bool:
            proxy.hold_answers()
            lease_granted.set()
            persisted.append(lease_id)
            return await put(lease_id)

        lock._put = put_through_a_cut  # type: ignore[method-assign]
        async with client.watch(prefix, prefix=True) as watcher:
            acquiring = asyncio.create_task(lock.acquire())
            await asyncio.wait_for(anext(watcher), 20)  # the key is there
            await proxy.cut()
            await asyncio.wait_for(acquiring, 20)
        keys = (await client.range(prefix, prefix=True)).kvs
        assert [kv.create_revision for kv in keys] == [lock.token]
        assert [kv.lease for kv in keys] == persisted
        await lock.release()


async def test_exclusion_holds_while_leaders_die(three: Cluster) -> None:
    resource = Resource()
    is_over = asyncio.Event()
    failed = 0

    async with AsyncClient(three.endpoints, timeout_s=5) as client:

        async def work() -> None:
            nonlocal failed
            while not is_over.is_set():
                try:
                    async with (
                        client.lock(b"failover/lock", ttl_s=10) as lock,
                        resource.alone(lock),
                    ):
                        await asyncio.sleep(0)
                except (LeaseLostError, AvailabilityError):
                    # No lease was granted within the timeout, or the end could not be told: no
                    # promise is broken, and the next round goes on.
                    failed += 1

        workers = [asyncio.create_task(work()) for _ in range(6)]
        for _ in range(2):
            goal = len(resource.tokens) + 30
            async with asyncio.timeout(60):
                while len(resource.tokens) < goal:  # noqa: ASYNC110 other tasks' progress
                    await asyncio.sleep(0.01)
            leader = await asyncio.to_thread(three.leader)
            await asyncio.to_thread(three.kill, leader)
            goal = len(resource.tokens) + 30
            async with asyncio.timeout(60):
                while len(resource.tokens) < goal:  # noqa: ASYNC110 other tasks' progress
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(three.restart, leader)
        is_over.set()
        await asyncio.gather(*workers)

    assert resource.tokens == sorted(set(resource.tokens))
    assert not resource.refused
    assert failed < len(resource.tokens) / 4


async def test_readers_share_and_a_writer_is_alone(client: AsyncClient, prefix: bytes) -> None:
    table = client.read_write_lock(prefix + b"table")
    events: list[str] = []
    async with table.read(), table.read():
        writer = table.write()
        writing = asyncio.create_task(writer.acquire())
        await waiting(client, prefix, 3)
        late = table.read()
        # Fair: a reader that asks after the writer waits for it.
        reading = asyncio.create_task(late.acquire())
        await waiting(client, prefix, 4)
        assert not await table.read().try_acquire()
        assert not writing.done()
        events.append("readers leave")
    await asyncio.wait_for(writing, 20)
    assert not reading.done()
    events.append("writer leaves")
    await writer.release()
    await asyncio.wait_for(reading, 20)
    assert writer.token == 0
    await late.release()
    assert (await client.range(prefix, prefix=True, count_only=True)).count == 0


async def test_many_readers_and_writers_never_meet(client: AsyncClient, prefix: bytes) -> None:
    table = client.read_write_lock(prefix + b"table")
    readers = writers = readers_max = 0

    async def read() -> None:
        nonlocal readers, readers_max
        for _ in range(4):
            async with table.read():
                readers += 1
                readers_max = max(readers_max, readers)
                assert writers == 0
                await client.get(prefix)
                readers -= 1

    async def write() -> None:
        nonlocal writers
        for _ in range(4):
            async with table.write():
                writers += 1
                assert (readers, writers) == (0, 1)
                await client.get(prefix)
                writers -= 1

    await asyncio.gather(*(read() for _ in range(5)), *(write() for _ in range(2)))

    assert readers_max > 1


@pytest.mark.etcdctl
async def test_etcdctl_and_we_exclude_each_other(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    if shutil.which("etcdctl") is None:
        pytest.skip("no etcdctl on this machine (Debian package etcd-client)")
    name = (prefix + b"lock").decode()
    lock = await client.lock(name.encode()).acquire()
    theirs = await asyncio.create_subprocess_exec(
        *("etcdctl", f"--endpoints={server.endpoints[0]}", "lock", name),
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert theirs.stdout is not None
    try:
        await waiting(client, prefix, 2)
        told = asyncio.create_task(theirs.stdout.readline())
        assert not await client.lock(name.encode()).try_acquire()
        assert not told.done()

        await lock.release()

        key = (await asyncio.wait_for(told, 20)).strip()
        assert key.startswith(name.encode() + b"/")
        assert not await client.lock(name.encode()).try_acquire()
        ours = asyncio.create_task(client.lock(name.encode()).acquire())
        await waiting(client, prefix, 2)
        assert not ours.done()
        theirs.send_signal(signal.SIGINT)
        ours_lock = await asyncio.wait_for(ours, 20)
        assert ours_lock.is_held
        await ours_lock.release()
        await asyncio.wait_for(theirs.wait(), 20)
    finally:
        if theirs.returncode is None:
            theirs.kill()
            await theirs.wait()


def test_a_lock_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        with client.lock(prefix + b"lock") as lock:
            assert lock.token > 0
            assert not client.lock(prefix + b"lock").try_acquire()
            answer = client.txn().when(lock.held).then(Op.put(prefix + b"x", b"")).commit()
            assert answer.succeeded
        assert lock.token == 0
        with client.read_write_lock(prefix + b"table").write() as place:
            assert place.is_held
