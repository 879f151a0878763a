"""Pipelines: order, groups, failures in the middle; over sessions and one by one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    Client,
    KeyNotFoundError,
    Op,
    OutcomeUnknownError,
    PipelineError,
    PipelineStoppedError,
    RequestTooLargeError,
    UnreachableError,
    compare,
)
from tests.client.proxy import Proxy

if TYPE_CHECKING:
    from tests.servers import Cluster


async def test_results_come_in_order_and_reads_see_the_writes_before_them(
    client: AsyncClient, prefix: bytes
) -> None:
    key = prefix + b"k"
    guarded = client.txn().when(compare(key).value == b"2").then(Op.put(key, b"3"))
    looking = client.txn().then(Op.get(key))

    results = await (
        client.pipeline()
        .then(Op.get(key), Op.put(key, b"1"), Op.get(key), Op.put(key, b"2"))
        .then(Op.txn(guarded), Op.txn(looking), Op.get(key), Op.delete(key), Op.get(key))
        .commit()
    )

    absent, first, one, second, third, looked, three, deleted, gone = results
    assert absent.kvs == ()
    assert [kv.value for kv in one.kvs] == [b"1"]
    assert third.succeeded
    assert [kv.value for kv in looked.responses[0].kvs] == [b"3"]
    assert [kv.value for kv in three.kvs] == [b"3"]
    assert deleted.deleted == 1
    assert gone.kvs == ()
    assert first.revision < second.revision < third.revision < deleted.revision


async def test_a_long_pipeline_keeps_its_order_across_groups(
    client: AsyncClient, prefix: bytes, transport: str
) -> None:
    # More operations than one entry holds, and large values that make a group full early.
    count = 2500 if transport == "session" else 750  # one by one they take their time
    operations = [Op.put(prefix + b"%06d" % number, b"") for number in range(count)]
    operations[700:700] = [Op.put(prefix + b"big", bytes(900_000))] * 2
    results = await client.pipeline().then(*operations).commit(timeout_s=60)
    revisions = [result.revision for result in results]
    assert revisions == sorted(set(revisions))
    listed = await client.range(prefix, prefix=True, count_only=True)
    assert listed.count == count + 1


async def test_a_large_range_in_the_middle_holds_nothing_up(
    client: AsyncClient, prefix: bytes
) -> None:
    # Longer than a part of a session's reply, and of more keys than are read in one turn.
    keys = [prefix + b"%04d" % number for number in range(800)]
    await asyncio.gather(*(client.put(key, bytes(1000), timeout_s=30) for key in keys))
    put = Op.put(prefix, b"")
    everything = Op.get(prefix, prefix=True)
    results = await client.pipeline().then(put, everything, everything, put).commit(timeout_s=30)
    assert [len(result.kvs) for result in results[1:3]] == [801, 801]
    assert results[3].revision == results[0].revision + 1


async def test_a_wrong_operation_does_not_stop_the_others(
    client: AsyncClient, prefix: bytes
) -> None:
    before, absent, after = prefix + b"before", prefix + b"absent", prefix + b"after"
    pipeline = client.pipeline().then(
        Op.put(before, b""), Op.put(absent, b"", ignore_value=True), Op.put(after, b"")
    )
    with pytest.raises(PipelineError) as raised:
        await pipeline.commit()
    first, second, third = raised.value.results
    assert isinstance(second, KeyNotFoundError)
    assert raised.value.first is second
    assert third.revision == first.revision + 1
    assert await client.get(after) is not None


async def test_an_operation_that_is_too_large_is_refused_for_itself(
    client: AsyncClient, prefix: bytes
) -> None:
    pipeline = client.pipeline().then(
        Op.put(prefix + b"a", b""), Op.put(prefix + b"b", bytes(3 << 20)), Op.put(prefix, b"")
    )
    with pytest.raises(PipelineError) as raised:
        await pipeline.commit()
    assert isinstance(raised.value.results[1], RequestTooLargeError)
    assert await client.get(prefix) is not None


async def test_what_follows_an_open_outcome_is_not_applied(server: Cluster) -> None:
    # 1,500 operations are two groups: the second may not be sent while the first one's end is open.
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint, server.endpoints[0]]) as client,
    ):
        await client.delete(b"open/", prefix=True)
        proxy.hold_answers()
        operations = [Op.put(b"open/%d" % number, b"") for number in range(1500)]
        running = asyncio.create_task(client.pipeline().then(*operations).commit())
        await asyncio.wait_for(proxy.requests_seen.wait(), 10)
        await proxy.cut()
        with pytest.raises(PipelineError) as raised:
            await running
        kinds = [type(result) for result in raised.value.results]
        assert set(kinds) == {OutcomeUnknownError, PipelineStoppedError}
        stopped = kinds.index(PipelineStoppedError)
        assert set(kinds[stopped:]) == {PipelineStoppedError}
        stored = {kv.key async for kv in client.get_range(b"open/", prefix=True)}
        assert not stored & {b"open/%d" % number for number in range(stopped, 1500)}


async def test_nothing_is_sent_to_a_dead_endpoint() -> None:
    async with AsyncClient(["127.0.0.1:1"], timeout_s=0.3) as client:
        with pytest.raises(PipelineError) as raised:
            await client.pipeline().then(Op.put(b"k", b""), Op.put(b"l", b"")).commit()
        first, second = raised.value.results
        assert isinstance(first, UnreachableError)
        assert isinstance(second, PipelineStoppedError)


def test_the_synchronous_client_has_pipelines_too(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        put, got = client.pipeline().then(Op.put(prefix, b"v"), Op.get(prefix)).commit()
        assert got.kvs[0].mod_revision == put.revision


async def test_order_holds_while_leaders_die(three: Cluster) -> None:
    """Every pipeline appends to its own log; what is there must be a prefix, in order, once.

    A failed pipeline's operations may be applied up to some point, never with a hole: an operation
    is there only if all before it in the pipeline are.
    """
    is_over = False
    outcomes: list[tuple[int, list[object] | None]] = []
    length = 30

    async with AsyncClient(three.endpoints, timeout_s=8) as client:

        async def write(writer: int) -> None:
            number = writer
            while not is_over:
                keys = [b"p/%06d/%02d" % (number, step) for step in range(length)]
                operations = [Op.put(key, b"") for key in keys]
                operations[length // 2 : length // 2] = [Op.get(keys[length // 2 - 1])]
                try:
                    await client.pipeline().then(*operations).commit()
                    outcomes.append((number, None))
                except PipelineError as error:
                    outcomes.append((number, error.results))
                number += 10

        async def disturb() -> None:
            for _ in range(2):
                goal = len(outcomes) + 60
                while len(outcomes) < goal:  # noqa: ASYNC110  # counters of other tasks
                    await asyncio.sleep(0.01)
                leader = await asyncio.to_thread(three.leader)
                await asyncio.to_thread(three.kill, leader)
                await asyncio.to_thread(three.restart, leader)

        writers = [asyncio.create_task(write(number)) for number in range(10)]
        async with asyncio.timeout(100):
            await disturb()
            is_over = True
            await asyncio.gather(*writers)
        stored = {
            kv.key: kv
            async for kv in client.get_range(b"p/", prefix=True, keys_only=True, timeout_s=20)
        }

    for number, results in outcomes:
        there = [stored.get(b"p/%06d/%02d" % (number, step)) for step in range(length)]
        revisions = [kv.mod_revision for kv in there if kv is not None]
        assert revisions == sorted(revisions)
        assert all(kv is not None for kv in there[: len(revisions)]), "a hole"
        assert all(kv.version == 1 for kv in there if kv is not None), "applied twice"
        if results is None:
            assert len(revisions) == length
        else:
            assert all(
                isinstance(result, AvailabilityError)
                for result in results
                if isinstance(result, Exception)
            )
            puts = results[: length // 2] + results[length // 2 + 1 :]
            for kv, result in zip(there, puts, strict=True):
                if kv is not None:
                    failed = isinstance(result, Exception)
                    assert not failed or getattr(result, "may_have_applied", False)
