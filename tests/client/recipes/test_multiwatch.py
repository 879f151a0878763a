"""Several ranges as one stream, against real servers: order, wholeness, where to resume from."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.client import (
    TO_THE_END,
    AsyncClient,
    Client,
    CompactedError,
    MultiWatcher,
    Op,
    Span,
    WatchBatch,
)
from kvstore.client.recipes.multiwatch import cover, holds
from kvstore.client.recipes.progress import has_true_marks
from tests.client.proxy import Proxy

if TYPE_CHECKING:
    from tests.servers import Cluster

numbers = itertools.count()
KEYS = [b"a/1", b"a/2", b"b", b"c", b"c/1", b"d/1", b"e"]
SPANS = [Span(b"a/", prefix=True), Span(b"c"), Span(b"d", b"e")]


async def take(watcher: MultiWatcher, count: int) -> list[WatchBatch]:
    async with asyncio.timeout(20):
        return [await anext(watcher) for _ in range(count)]


def below(prefix: bytes, spans: list[Span]) -> list[Span]:
    return [
        Span(prefix + span.key, span.range_end and prefix + span.range_end, span.prefix)
        for span in spans
    ]


async def test_changes_come_in_order_of_revision_and_whole(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.watch_many(below(prefix, SPANS)) as watcher:
        first = await client.put(prefix + b"d/1", b"1")
        await client.put(prefix + b"b", b"not watched")
        second = await client.put(prefix + b"a/1", b"2")
        third = (
            await client.txn()
            .then(
                Op.put(prefix + b"c", b"3"), Op.delete(prefix + b"a/1"), Op.put(prefix + b"b", b"")
            )
            .commit()
        )

        batches = await take(watcher, 3)

        assert [batch.revision for batch in batches] == [
            first.revision,
            second.revision,
            third.revision,
        ]
        assert [event.key.removeprefix(prefix) for event in batches[2].events] == [b"a/1", b"c"]
        assert [event.kind for event in batches[2].events] == ["DELETE", "PUT"]
        assert watcher.next_revision == third.revision + 1


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(writes=st.lists(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)))
def test_it_is_what_one_watch_over_everything_would_show(
    server: Cluster, writes: list[list[bytes]]
) -> None:
    prefix = b"multi/%d/" % next(numbers)

    async def run() -> None:
        async with AsyncClient(server.endpoints) as client:
            spans = below(prefix, SPANS)
            start = (await client.put(prefix + b"end", b"")).revision + 1
            async with (
                client.watch_many(spans, start_revision=start) as many,
                client.watch(prefix, prefix=True, start_revision=start) as one,
            ):
                for keys in writes:
                    await client.txn().then(*(Op.put(prefix + key, b"") for key in keys)).commit()
                await client.put(prefix + b"c", b"last")
                expected = []
                async with asyncio.timeout(20):
                    for _ in range(len(writes) + 1):
                        batch = await anext(one)
                        events = [
                            event
                            for event in batch.events
                            if any(holds(span.bounds(), event.key) for span in spans)
                        ]
                        if events:
                            events.sort(key=lambda event: event.key)
                            expected.append(WatchBatch(batch.revision, tuple(events)))
                assert await take(many, len(expected)) == expected

    asyncio.run(run())


async def test_a_quiet_range_holds_nothing_up(client: AsyncClient, prefix: bytes) -> None:
    async with client.watch_many(below(prefix, SPANS)) as watcher:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for number in range(20):
            put = await client.put(prefix + b"c", b"%d" % number)
            [batch] = await take(watcher, 1)
            assert batch.revision == put.revision
        assert loop.time() - begun_s < 10


async def test_a_point_to_resume_from_holds_for_all_ranges(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.watch_many(below(prefix, SPANS)) as watcher:
        for key in (b"a/1", b"c", b"d/1"):
            await client.put(prefix + key, b"")
        await take(watcher, 1)
        resume = watcher.next_revision
    async with client.watch_many(below(prefix, SPANS), start_revision=resume) as watcher:
        rest = await take(watcher, 2)
    assert [batch.events[0].key for batch in rest] == [prefix + b"c", prefix + b"d/1"]


async def test_it_goes_on_after_a_cut(server: Cluster, client: AsyncClient, prefix: bytes) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as watching,
        watching.watch_many(below(prefix, SPANS)) as watcher,
    ):
        written = []
        seen: list[int] = []
        for number in range(30):
            put = await client.put(prefix + KEYS[number % 2 * 3], b"%d" % number)  # a/1 and c
            written.append(put.revision)
            if number % 10 == 5:
                proxy.hold_answers()
                put = await client.put(prefix + b"d/1", b"")
                written.append(put.revision)
                await proxy.cut()
        async with asyncio.timeout(30):
            while len(seen) < len(written):
                seen.append((await anext(watcher)).revision)
        assert seen == written
        assert watcher.resumptions > 0


async def test_bookmarks(client: AsyncClient, prefix: bytes) -> None:
    async with client.watch_many(below(prefix, SPANS)) as watcher:
        other = await client.put(prefix + b"b", b"not watched")
        if not await has_true_marks(client):
            assert not await watcher.request_progress()
            return
        async with asyncio.timeout(20):
            assert await watcher.request_progress()
            mark = await anext(watcher)
        assert mark.events == ()
        assert mark.revision >= other.revision
        assert watcher.next_revision == mark.revision + 1


async def test_compaction_is_said(fresh_server: Cluster) -> None:
    async with AsyncClient(fresh_server.endpoints) as client:
        for _ in range(5):
            put = await client.put(b"a/1", b"")
        await client.compact(put.revision)
        with pytest.raises(CompactedError):
            async with client.watch_many(SPANS, start_revision=2) as watcher:
                await take(watcher, 1)


async def test_closing_ends_the_iteration(client: AsyncClient, prefix: bytes) -> None:
    watcher = client.watch_many(below(prefix, SPANS))
    await watcher.start()
    waiting = asyncio.create_task(anext(watcher, None))
    await asyncio.sleep(0)
    await watcher.aclose()
    assert await asyncio.wait_for(waiting, 10) is None
    assert await anext(watcher, None) is None
    with pytest.raises(ValueError, match="at least one"):
        client.watch_many([])


def test_bounds_and_cover() -> None:
    assert Span(b"a").bounds() == (b"a", b"a\0")
    assert Span(b"a/", prefix=True).bounds() == (b"a/", b"a0")
    assert Span(b"", prefix=True).bounds() == (b"\0", TO_THE_END)
    assert cover([(b"c", b"d"), (b"a", b"b")]) == (b"a", b"d")
    assert cover([(b"c", TO_THE_END), (b"a", b"b")]) == (b"a", TO_THE_END)
    assert holds((b"a", TO_THE_END), b"z")
    assert not holds((b"a", b"b"), b"b")


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with (
        Client(server.endpoints) as client,
        client.watch_many([Span(prefix + b"a"), Span(prefix + b"b")]) as watcher,
    ):
        put = client.put(prefix + b"b", b"v")
        assert watcher.next(10).revision == put.revision
        assert watcher.next_revision == put.revision + 1
