"""Watches against real servers; their resumption across failures is in test_failover."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, CompactedError, Op, RequestError, UnreachableError

if TYPE_CHECKING:
    from kvstore.client import WatchBatch, Watcher
    from tests.servers import Cluster


async def take(watcher: Watcher, count: int) -> list[WatchBatch]:
    async with asyncio.timeout(10):
        return [await anext(watcher) for _ in range(count)]


async def test_puts_and_deletes_arrive_in_order(client: AsyncClient, prefix: bytes) -> None:
    async with client.watch(prefix, prefix=True) as watcher:
        put = await client.put(prefix + b"a", b"1")
        await client.delete(prefix + b"a")
        await client.put(prefix[:-1] + b"0", b"outside the prefix")
        last = await client.put(prefix + b"b", b"2")

        batches = await take(watcher, 3)

    assert [batch.revision for batch in batches] == [
        put.revision,
        put.revision + 1,
        last.revision,
    ]
    [[created], [deleted], [other]] = [batch.events for batch in batches]
    assert (created.kind, created.key, created.value) == ("PUT", prefix + b"a", b"1")
    assert (deleted.kind, deleted.key, deleted.value) == ("DELETE", prefix + b"a", b"")
    assert deleted.kv.mod_revision == put.revision + 1
    assert other.kv == (prefix + b"b", b"2", last.revision, last.revision, 1, 0)


async def test_registered_means_nothing_later_is_missed(client: AsyncClient, prefix: bytes) -> None:
    # 50 watchers, each with a write right after its registration.
    for number in range(50):
        async with client.watch(prefix) as watcher:
            put = await client.put(prefix, b"%d" % number)
            [batch] = await take(watcher, 1)
            assert batch.revision == put.revision


async def test_a_transaction_arrives_whole(client: AsyncClient, prefix: bytes) -> None:
    await client.put(prefix + b"gone", b"")
    names = [prefix + b"%02d" % number for number in range(100)]
    async with client.watch(prefix, prefix=True) as watcher:
        answer = await (
            client.txn()
            .then(*(Op.put(name, b"v") for name in names), Op.delete(prefix + b"gone"))
            .commit()
        )

        [batch] = await take(watcher, 1)

    assert batch.revision == answer.revision
    assert [event.key for event in batch.events] == [*names, prefix + b"gone"]


async def test_history_is_cut_into_revisions(client: AsyncClient, prefix: bytes) -> None:
    # A server sends history in few responses; the batches must still be one revision each.
    first = await client.txn().then(Op.put(prefix + b"a", b""), Op.put(prefix + b"b", b"")).commit()
    for number in range(9):
        await client.put(prefix + b"a", b"%d" % number)

    async with client.watch(prefix, prefix=True, start_revision=first.revision) as watcher:
        batches = await take(watcher, 10)

    assert [batch.revision for batch in batches] == list(range(first.revision, first.revision + 10))
    assert [len(batch.events) for batch in batches] == [2] + [1] * 9


async def test_list_then_watch_sees_every_change_once(client: AsyncClient, prefix: bytes) -> None:
    # The documented way to follow a range: pages at one revision, then a watch from the next.
    async def write() -> None:
        for number in range(200):
            await client.put(prefix + b"%d" % (number % 20), b"%d" % number)

    writer = asyncio.create_task(write())
    await client.put(prefix + b"start", b"")
    pages = client.get_range(prefix, prefix=True, page_size=3)
    state = {kv.key: kv.value async for kv in pages}
    async with client.watch(prefix, prefix=True, start_revision=pages.revision + 1) as watcher:
        await writer
        end = await client.put(prefix + b"end", b"")
        async for batch in watcher:
            for event in batch.events:
                state[event.key] = event.value
            if batch.revision == end.revision:
                break

    assert state == {kv.key: kv.value async for kv in client.get_range(prefix, prefix=True)}


async def test_previous_values_and_filters(client: AsyncClient, prefix: bytes) -> None:
    await client.put(prefix, b"1")
    async with (
        client.watch(prefix, prev_kv=True) as both,
        client.watch(prefix, puts=False, prev_kv=True) as deletes,
        client.watch(prefix, deletes=False) as puts,
    ):
        await client.put(prefix, b"2")
        await client.delete(prefix)
        await client.put(prefix, b"3")

        changed, deleted, created = [batch.events[0] for batch in await take(both, 3)]
        [only_delete] = [batch.events[0] for batch in await take(deletes, 1)]
        only_puts = [batch.events[0] for batch in await take(puts, 2)]

    assert changed.previous is not None
    assert changed.previous.value == b"1"
    assert deleted.previous is not None
    assert deleted.previous.value == b"2"
    assert created.previous is None
    assert only_delete == deleted
    assert [event.value for event in only_puts] == [b"2", b"3"]
    assert only_puts[0].previous is None


async def test_a_progress_mark_comes_when_asked_for(client: AsyncClient, prefix: bytes) -> None:
    async with client.watch(prefix) as watcher:
        other = await client.put(prefix + b"other", b"")
        assert await watcher.request_progress()
        [mark] = await take(watcher, 1)

    assert mark.events == ()
    assert mark.revision >= other.revision


async def test_a_compacted_start_is_an_error_that_names_the_revisions(
    fresh_server: Cluster,
) -> None:
    async with AsyncClient(fresh_server.endpoints) as client:
        for number in range(5):
            last = await client.put(b"k", b"%d" % number)
        await client.compact(last.revision)

        with pytest.raises(CompactedError) as caught:
            async with client.watch(b"k", start_revision=last.revision - 1) as watcher:
                await take(watcher, 1)
        assert (caught.value.requested, caught.value.compacted) == (
            last.revision - 1,
            last.revision,
        )
        # At the compaction itself the history still begins.
        async with client.watch(b"k", start_revision=last.revision) as watcher:
            [batch] = await take(watcher, 1)
        assert batch.revision == last.revision


async def test_an_empty_range_is_refused(client: AsyncClient, prefix: bytes) -> None:
    with pytest.raises(RequestError, match="watcher range is empty"):
        async with client.watch(prefix + b"b", prefix + b"a"):
            pass


async def test_a_future_start_hears_nothing_earlier(client: AsyncClient, prefix: bytes) -> None:
    now = (await client.put(prefix, b"now")).revision
    async with client.watch(prefix, start_revision=now + 3) as watcher:
        for number in range(1, 5):
            await client.put(prefix, b"%d" % number)
        batches = await take(watcher, 2)

    assert [batch.revision for batch in batches] == [now + 3, now + 4]


async def test_cancelling_the_wait_for_a_change_loses_none(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.watch(prefix) as watcher:
        for number in range(20):
            waiting = asyncio.ensure_future(anext(watcher))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            put = await client.put(prefix, b"%d" % number)
            [batch] = await take(watcher, 1)
            assert batch.revision == put.revision
        assert watcher.resumptions == 0


async def test_a_slow_reader_gets_everything(client: AsyncClient, prefix: bytes) -> None:
    # More than the reader's queue and the connection's window hold: 400 x 4 KiB, not read until
    # all is written.
    async with client.watch(prefix) as watcher:
        await asyncio.gather(*(client.put(prefix, bytes(4096)) for _ in range(400)))
        batches = await take(watcher, 400)

    revisions = [batch.revision for batch in batches]
    assert revisions == sorted(set(revisions))


async def test_closing_ends_an_iteration_that_waits(client: AsyncClient, prefix: bytes) -> None:
    watcher = client.watch(prefix)
    await watcher.start()

    async def read_all() -> list[WatchBatch]:
        return [batch async for batch in watcher]

    reading = asyncio.create_task(read_all())
    await asyncio.sleep(0)
    await watcher.aclose()

    assert await asyncio.wait_for(reading, 5) == []


async def test_closing_the_client_ends_its_watches(server: Cluster, prefix: bytes) -> None:
    client = AsyncClient(server.endpoints)
    watcher = client.watch(prefix)
    await watcher.start()

    await client.close()

    assert [batch async for batch in watcher] == []


async def test_without_a_server_the_start_fails_in_time() -> None:
    async with AsyncClient(["127.0.0.1:1"], timeout_s=0.3) as client:
        with pytest.raises(UnreachableError):
            async with client.watch(b"k"):
                pass
