"""Barriers against real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, Client, PreconditionError
from tests.client.recipes.test_lock import waiting

if TYPE_CHECKING:
    from tests.servers import Cluster


async def test_a_barrier_holds_until_it_is_released(client: AsyncClient, prefix: bytes) -> None:
    barrier = client.barrier(prefix + b"b")
    await barrier.wait(timeout_s=10)  # nobody holds it
    assert await barrier.hold()
    assert not await barrier.hold()
    with pytest.raises(TimeoutError):
        await barrier.wait(timeout_s=0.1)
    waiters = [asyncio.create_task(barrier.wait(timeout_s=20)) for _ in range(5)]
    await client.get(prefix)
    assert not any(waiter.done() for waiter in waiters)
    await barrier.release()
    await asyncio.gather(*waiters)


async def test_a_barrier_opens_with_the_lease_of_who_holds_it(
    client: AsyncClient, prefix: bytes
) -> None:
    barrier = client.barrier(prefix + b"b")
    async with client.lease(60) as lease:
        await barrier.hold(lease=lease.lease_id)
        waiter = asyncio.create_task(barrier.wait(timeout_s=20))
    await waiter


async def test_nobody_enters_or_leaves_a_double_barrier_alone(
    client: AsyncClient, prefix: bytes
) -> None:
    inside = left = 0
    count = 4

    async def take_part() -> None:
        nonlocal inside, left
        barrier = client.double_barrier(prefix + b"d", count, timeout_s=20)
        entering = asyncio.create_task(barrier.enter())
        inside += 1
        await entering
        assert inside == count
        left += 1
        await barrier.leave()
        assert left == count

    for _ in range(2):  # it can be used again
        inside = left = 0
        tasks = [asyncio.create_task(take_part()) for _ in range(count - 1)]
        await waiting(client, prefix + b"d/waiters/", count - 1)
        assert not any(task.done() for task in tasks)
        await asyncio.gather(take_part(), *tasks)
        assert (await client.range(prefix, prefix=True, count_only=True)).count == 0


async def test_one_too_many_is_refused(client: AsyncClient, prefix: bytes) -> None:
    first = client.double_barrier(prefix + b"d", 1)
    await first.enter()
    with pytest.raises(PreconditionError, match="have entered"):
        await client.double_barrier(prefix + b"d", 1).enter()
    await first.leave()
    async with client.double_barrier(prefix + b"d", 1):
        pass


async def test_who_dies_inside_does_not_hold_the_others(
    client: AsyncClient, server: Cluster, prefix: bytes
) -> None:
    async with AsyncClient(server.endpoints) as dying:
        stays, dies = (each.double_barrier(prefix + b"d", 2) for each in (client, dying))
        await asyncio.wait_for(asyncio.gather(stays.enter(), dies.enter()), 20)
        keys = (await client.range(prefix + b"d/waiters/", prefix=True)).kvs
        leaving = asyncio.create_task(stays.leave(timeout_s=20))
        assert dies._lease is not None
        [own] = [kv for kv in keys if kv.lease == dies._lease.lease_id]
        await client.lease_revoke(own.lease)
        await leaving


async def test_too_few_come(client: AsyncClient, prefix: bytes) -> None:
    with pytest.raises(TimeoutError):
        await client.double_barrier(prefix + b"d", 2).enter(timeout_s=0.1)
    assert (await client.range(prefix, prefix=True, count_only=True)).count == 0


async def test_a_body_that_fails_does_not_wait(client: AsyncClient, prefix: bytes) -> None:
    barriers = [client.double_barrier(prefix + b"d", 2, timeout_s=20) for _ in range(2)]

    async def fail() -> None:
        async with barriers[0]:
            raise LookupError("mine")

    failing = asyncio.create_task(fail())
    await barriers[1].enter()
    with pytest.raises(LookupError):
        await failing
    await barriers[1].leave()


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        barrier = client.barrier(prefix + b"b")
        assert barrier.hold()
        with pytest.raises(TimeoutError):
            barrier.wait(timeout_s=0.05)
        barrier.release()
        barrier.wait(timeout_s=10)
        with client.double_barrier(prefix + b"d", 1):
            pass
