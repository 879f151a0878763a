"""Queues against real servers: order, one consumer for each value, waiting."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.client import AsyncClient, Client, PriorityQueue

if TYPE_CHECKING:
    from tests.servers import Cluster

numbers = itertools.count()


async def test_values_come_out_in_the_order_in_which_they_went_in(
    client: AsyncClient, prefix: bytes
) -> None:
    queue = client.queue(prefix + b"q")
    await client.put(prefix + b"q2/1", b"another queue")
    for number in range(20):
        await queue.put(b"%d" % number)
    assert await queue.length() == 20
    assert [await queue.get() for _ in range(20)] == [b"%d" % number for number in range(20)]
    assert await queue.get_nowait() is None


async def test_the_order_is_the_stores_not_the_clocks(
    client: AsyncClient, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A producer whose clock runs backwards still queues behind.
    clock = iter(range(1000, 0, -1))
    monkeypatch.setattr("kvstore.client.recipes.queue.time.time_ns", lambda: next(clock))
    queue = client.queue(prefix + b"q")
    for number in range(5):
        await queue.put(b"%d" % number)
    assert [await queue.get() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_each_value_goes_to_one_consumer_in_order(client: AsyncClient, prefix: bytes) -> None:
    queue = client.queue(prefix + b"q")
    taken: list[list[int]] = [[] for _ in range(4)]

    async def consume(own: list[int]) -> None:
        while (value := await queue.get(timeout_s=20)) != b"end":
            own.append(int(value))

    async def produce() -> None:
        for number in range(60):
            await queue.put(b"%d" % number)
        for _ in taken:
            await queue.put(b"end")

    await asyncio.gather(produce(), *map(consume, taken))

    assert sorted(itertools.chain(*taken)) == list(range(60))
    assert all(own == sorted(own) for own in taken)


async def test_an_empty_queue_is_waited_for(client: AsyncClient, prefix: bytes) -> None:
    queue = client.queue(prefix + b"q")
    with pytest.raises(TimeoutError):
        await queue.get(timeout_s=0.1)
    getting = asyncio.create_task(queue.get(timeout_s=20))
    await queue.put(b"v")
    assert await getting == b"v"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(priorities=st.lists(st.integers(0, 65_535) | st.integers(0, 3), max_size=12))
def test_small_priorities_first_then_arrival(server: Cluster, priorities: list[int]) -> None:
    async def run() -> list[bytes]:
        async with AsyncClient(server.endpoints) as client:
            queue = client.priority_queue(b"priority/%d" % next(numbers))
            for arrival, priority in enumerate(priorities):
                await queue.put(b"%d" % arrival, priority)
            return [await queue.get() for _ in priorities]

    expected = sorted(range(len(priorities)), key=lambda arrival: priorities[arrival])
    assert asyncio.run(run()) == [b"%d" % arrival for arrival in expected]


async def test_many_producers_of_one_priority_lose_nothing(
    client: AsyncClient, prefix: bytes
) -> None:
    queue = client.priority_queue(prefix + b"q")

    async def produce(number: int) -> None:
        for each in range(5):
            await queue.put(b"%d-%d" % (number, each), 7)

    await asyncio.gather(*map(produce, range(6)))

    values = [await queue.get(timeout_s=20) for _ in range(30)]
    for number in range(6):
        own = [value for value in values if value.startswith(b"%d-" % number)]
        assert own == [b"%d-%d" % (number, each) for each in range(5)]


async def test_keys_are_laid_out_as_the_go_client_does(client: AsyncClient, prefix: bytes) -> None:
    queue: PriorityQueue = client.priority_queue(prefix + b"q")
    await queue.put(b"v", 3)
    await queue.put(b"w", 3)
    assert [kv.key for kv in (await client.range(prefix, prefix=True)).kvs] == [
        prefix + b"q/00003/0000000000000000",
        prefix + b"q/00003/0000000000000001",
    ]
    assert await client.get(b"__" + prefix + b"q/00003") is not None
    with pytest.raises(ValueError, match="priority"):
        await queue.put(b"", 65_536)


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        queue = client.queue(prefix + b"q")
        queue.put(b"v")
        assert queue.length() == 1
        assert queue.get(timeout_s=10) == b"v"
        assert queue.get_nowait() is None
        with pytest.raises(TimeoutError):
            queue.get(timeout_s=0.05)
        first = client.priority_queue(prefix + b"p")
        first.put(b"later", 2)
        first.put(b"sooner", 1)
        assert first.get() == b"sooner"
