"""Mirrors and caches against real servers: true copies through cuts and compaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    Cache,
    Client,
    ClosedError,
    KeyValue,
    Mirror,
    MirrorBatch,
    Op,
)
from kvstore.client.recipes.progress import is_fixed
from tests.client.proxy import Proxy

if TYPE_CHECKING:
    from tests.servers import Cluster


class Copy:
    """What a consumer of a mirror builds."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.kvs: dict[bytes, KeyValue] = {}
        self.batches: list[MirrorBatch] = []

    async def until(self, revision: int) -> dict[bytes, KeyValue]:
        async with asyncio.timeout(20):
            while True:
                batch = await anext(self.mirror)
                self.batches.append(batch)
                if batch.starts_over:
                    self.kvs.clear()
                self.kvs.update((kv.key, kv) for kv in batch.kvs)
                for event in batch.events:
                    if event.kind == "PUT":
                        self.kvs[event.key] = event.kv
                    else:
                        del self.kvs[event.key]
                if batch.is_complete and batch.revision >= revision:
                    return self.kvs


async def stored(client: AsyncClient, prefix: bytes) -> dict[bytes, KeyValue]:
    return {kv.key: kv async for kv in client.get_range(prefix, prefix=True)}


async def test_a_snapshot_of_one_revision_then_every_change(
    client: AsyncClient, prefix: bytes
) -> None:
    for number in range(7):
        put = await client.put(prefix + b"%d" % number, b"old")
    async with client.mirror(prefix, prefix=True, page_size=3) as mirror:
        copy = Copy(mirror)
        # After the first page: none of this may show in the pages that follow.
        await client.put(prefix + b"6", b"new")
        await client.delete(prefix + b"5")
        last = (
            await client.txn().then(Op.put(prefix + b"a", b""), Op.delete(prefix + b"0")).commit()
        )

        kvs = await copy.until(last.revision)

        assert kvs == await stored(client, prefix)
        pages, changes = copy.batches[:3], copy.batches[3:]
        assert [len(page.kvs) for page in pages] == [3, 3, 1]
        assert [page.starts_over for page in pages] == [True, False, False]
        assert [page.is_complete for page in pages] == [False, False, True]
        assert {page.revision for page in pages} == {put.revision}
        assert all(kv.value == b"old" for page in pages for kv in page.kvs)
        assert [len(batch.events) for batch in changes] == [1, 1, 2]
        assert mirror.next_revision == last.revision + 1


async def test_a_mirror_resumes_and_starts_over_after_compaction(fresh_server: Cluster) -> None:
    async with (
        Proxy(fresh_server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as mirroring,
        AsyncClient(fresh_server.endpoints) as client,
        mirroring.mirror(b"m/", prefix=True) as mirror,
    ):
        copy = Copy(mirror)
        put = await client.put(b"m/kept", b"1")
        await client.put(b"m/deleted", b"")
        await copy.until(put.revision + 1)
        proxy.hold_answers()
        await client.put(b"m/kept", b"2")
        await proxy.cut()
        await copy.until(put.revision + 2)
        assert mirror.rebuilds == 0

        proxy.hold_answers()
        await client.delete(b"m/deleted")
        put = await client.put(b"m/kept", b"3")
        await client.compact(put.revision)
        await proxy.cut()
        kvs = await copy.until(put.revision)

        assert kvs == await stored(client, b"m/")
        assert mirror.rebuilds == 1
        assert copy.batches[-1].starts_over


async def test_a_snapshot_that_is_compacted_between_its_pages(fresh_server: Cluster) -> None:
    async with AsyncClient(fresh_server.endpoints) as client:
        for number in range(5):
            put = await client.put(b"m/%d" % number, b"old")
        async with client.mirror(b"m/", prefix=True, page_size=2) as mirror:
            put = await client.put(b"m/0", b"new")
            await client.compact(put.revision)
            kvs = await Copy(mirror).until(put.revision)
        assert kvs == await stored(client, b"m/")
        assert mirror.rebuilds == 1


async def test_a_mirror_whose_server_was_silent_goes_on_where_it_was(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    for number in range(3):
        await client.put(prefix + b"%d" % number, b"")
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint], timeout_s=0.3) as mirroring,
        mirroring.mirror(prefix, prefix=True, page_size=2) as mirror,
    ):
        copy = Copy(mirror)
        proxy.hold_answers()
        with pytest.raises(AvailabilityError):  # between the pages
            await copy.until(1)
        await proxy.cut()
        await copy.until(1)
        proxy.hold_answers()
        with pytest.raises(AvailabilityError):  # before the watch stands
            await anext(mirror)
        put = await client.put(prefix + b"0", b"new")
        await proxy.cut()
        async with asyncio.timeout(20):
            while True:
                try:
                    kvs = await copy.until(put.revision)
                except AvailabilityError:
                    continue  # the connection takes longer than the short timeout
                break
        assert kvs == await stored(client, prefix)
        assert [batch.starts_over for batch in copy.batches].count(True) == 1
    with pytest.raises(StopAsyncIteration):
        await anext(mirror)


async def test_a_cache_sees_what_was_acknowledged(client: AsyncClient, prefix: bytes) -> None:
    key = prefix + b"k"
    async with client.cache(prefix, prefix=True) as cache:
        assert cache.peek(key) is None
        for number in range(30):
            await client.put(key, b"%d" % number)
            kv = await cache.get(key, max_staleness_s=0)
            assert kv is not None
            assert kv.value == b"%d" % number
        await client.delete(key)
        assert await cache.get(key, max_staleness_s=0) is None
        assert cache.statistics().keys == 0


async def test_a_cache_within_its_bound_costs_no_call(client: AsyncClient, prefix: bytes) -> None:
    await client.put(prefix + b"k", b"v")
    async with client.cache(prefix, prefix=True) as cache:
        before = client.statistics().calls
        for _ in range(100):
            assert await cache.get(prefix + b"k", max_staleness_s=60) is not None
        assert client.statistics().calls == before
        await asyncio.gather(*(cache.refresh(0) for _ in range(100)))
        assert cache.statistics().proofs <= 2, "those who wait share a proof"


async def test_waiting_for_a_revision_inside_and_outside_of_the_range(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.cache(prefix, prefix=True) as cache:
        put = await client.put(prefix + b"k", b"v")
        await cache.wait_revision(put.revision, timeout_s=20)
        kv = cache.peek(prefix + b"k")
        assert kv is not None
        assert kv.mod_revision == put.revision
        other = await client.put(prefix[:-1] + b"-elsewhere", b"")
        await cache.wait_revision(other.revision, timeout_s=20)
        assert cache.revision >= other.revision
        with pytest.raises(TimeoutError):
            await cache.wait_revision(other.revision + 1_000_000, timeout_s=0.2)


async def test_a_cache_that_is_cut_off_says_so(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    await client.put(prefix + b"k", b"old")
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint], timeout_s=0.5) as caching,
        caching.cache(prefix, prefix=True) as cache,
    ):
        proxy.hold_answers()
        await client.put(prefix + b"k", b"new")
        with pytest.raises(AvailabilityError):
            await cache.get(prefix + b"k", max_staleness_s=0)
        kv = cache.peek(prefix + b"k")
        assert kv is not None
        assert kv.value == b"old"
        assert await cache.get(prefix + b"k", max_staleness_s=3600) == kv
        await proxy.cut()
        async with asyncio.timeout(20):
            while True:
                try:
                    kv = await cache.get(prefix + b"k", max_staleness_s=0)
                except AvailabilityError:
                    continue
                break
        assert kv is not None
        assert kv.value == b"new"


async def test_a_cache_rebuilds_itself_after_compaction_and_says_so(
    fresh_server: Cluster,
) -> None:
    rebuilt: list[Cache] = []
    async with (
        Proxy(fresh_server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint], timeout_s=5) as caching,
        AsyncClient(fresh_server.endpoints) as client,
    ):
        for number in range(5):
            await client.put(b"c/%d" % number, b"old")
        async with caching.cache(
            b"c/", prefix=True, page_size=2, on_rebuild=rebuilt.append
        ) as cache:
            assert len(cache.items()) == 5
            proxy.hold_answers()
            await client.delete(b"c/0")
            put = await client.put(b"c/1", b"new")
            await client.compact(put.revision)
            await proxy.cut()

            await cache.wait_revision(put.revision, timeout_s=20)

            assert {kv.key: kv for kv in cache.items()} == await stored(client, b"c/")
            assert rebuilt == [cache]
            assert cache.rebuilds == 1
            put = await client.put(b"c/new", b"")
            await cache.wait_revision(put.revision, timeout_s=20)
            assert cache.peek(b"c/new") is not None


async def test_a_cache_that_cannot_be_filled_says_so(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    for number in range(4):
        await client.put(prefix + b"%d" % number, b"")
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint], timeout_s=0.3) as cut,
    ):
        await cut.get(prefix)
        cache = cut.cache(prefix, prefix=True, page_size=1)
        with pytest.raises(RuntimeError, match="start it first"):
            cache.peek(prefix)
        fetch = cut._range

        async def first_page_only(*arguments):
            result = await fetch(*arguments)
            proxy.hold_answers()
            return result

        cut._range = first_page_only
        with pytest.raises(AvailabilityError):
            await cache.start()
        with pytest.raises(ClosedError):
            cache.peek(prefix)


async def test_what_a_cache_shows_is_one_revision(client: AsyncClient, prefix: bytes) -> None:
    # Two keys are always written together: any moment at which they differ is a torn one.
    pair = (prefix + b"a", prefix + b"b")
    async with client.cache(prefix, prefix=True) as cache:
        is_over = False

        async def write() -> None:
            nonlocal is_over
            for number in range(100):
                await client.txn().then(*(Op.put(key, b"%d" % number) for key in pair)).commit()
            is_over = True

        writing = asyncio.create_task(write())
        seen = 0
        while not is_over:
            values = [kv.value for kv in cache.items()]
            assert len(set(values)) <= 1
            seen += bool(values)
            await asyncio.sleep(0)
        await writing
    assert seen
    with pytest.raises(ClosedError):
        cache.peek(prefix)


async def test_items_of_a_part(client: AsyncClient, prefix: bytes) -> None:
    for name in (b"a/1", b"a/2", b"b", b"c"):
        await client.put(prefix + name, b"")
    async with client.cache(prefix, prefix=True) as cache:

        def names(*arguments: bytes, prefix_only: bool = False) -> list[bytes]:
            found = cache.items(*(prefix + each for each in arguments), prefix=prefix_only)
            return [kv.key.removeprefix(prefix) for kv in found]

        assert names() == [b"a/1", b"a/2", b"b", b"c"]
        assert names(b"a/", prefix_only=True) == [b"a/1", b"a/2"]
        assert names(b"b") == [b"b"]
        assert names(b"missing") == []
        assert names(b"a/2", b"c") == [b"a/2", b"b"]


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("3.4.24", False), ("3.4.25", True), ("3.5.7", False), ("3.5.8", True), ("3.5.10", True),
        ("3.6.0", True), ("3.6.0-rc.1", True), ("4.0.0", True), ("3.3.99", False), ("dev", False),
    ],
)  # fmt: skip
def test_whose_marks_can_be_relied_on(version: str, fixed: bool) -> None:
    assert is_fixed(version) is fixed


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        put = client.put(prefix + b"k", b"v")
        with client.cache(prefix, prefix=True) as cache:
            cache.wait_revision(put.revision, timeout_s=10)
            assert [kv.key for kv in cache.items()] == [prefix + b"k"]
            kv = cache.get(prefix + b"k", max_staleness_s=0)
            assert kv is not None
            assert kv == cache.peek(prefix + b"k")
        with client.mirror(prefix, prefix=True) as mirror:
            batch = next(mirror)
            assert [kv.key for kv in batch.kvs] == [prefix + b"k"]
            assert mirror.next(0.05) is None
