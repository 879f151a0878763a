"""Namespaces: a client of the keys below a prefix, which sees no others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore.client import (
    TO_THE_END,
    AsyncClient,
    Client,
    ClosedError,
    Op,
    RequestError,
    Span,
    compare,
)

if TYPE_CHECKING:
    from tests.servers import Cluster


async def test_every_call_stays_inside(client: AsyncClient, prefix: bytes) -> None:
    app = client.namespace(prefix + b"app/")
    await client.put(prefix + b"app.", b"before")
    await client.put(prefix + b"app0", b"behind")
    put = await app.put(b"k", b"v")
    assert (await app.put(b"k", b"w", prev_kv=True)).previous == (
        b"k", b"v", put.revision, put.revision, 1, 0,
    )  # fmt: skip
    await app.put(b"l", b"")
    outside = await client.get(prefix + b"app/k")
    assert outside is not None
    assert outside.value == b"w"
    assert [kv.key for kv in (await app.range(b"", prefix=True)).kvs] == [b"k", b"l"]
    assert [kv.key for kv in (await app.range(b"k", TO_THE_END)).kvs] == [b"k", b"l"]
    assert [kv.key for kv in (await app.range(b"", b"l")).kvs] == [b"k"]
    assert [kv.key async for kv in app.get_range(b"", prefix=True, page_size=1)] == [b"k", b"l"]
    result = await (
        app.txn()
        .when(compare(b"k").value == b"w", compare(b"", prefix=True).version > 0)
        .then(
            Op.get(b"", prefix=True),
            Op.put(b"m", b"", prev_kv=True),
            Op.delete(b"l", prev_kv=True),
            Op.txn(app.txn().when(compare(b"k").version == 2).then(Op.get(b"k"))),
        )
        .commit()
    )
    assert result.succeeded
    ranged, _, deleted, nested = result.responses
    assert [kv.key for kv in ranged.kvs] == [b"k", b"l"]
    assert [kv.key for kv in deleted.previous] == [b"l"]
    assert nested.responses[0].kvs[0].key == b"k"
    results = await app.pipeline().then(Op.put(b"p", b"1"), Op.get(b"p")).commit()
    assert results[1].kvs[0].key == b"p"
    assert (await app.delete(b"", prefix=True)).deleted == 3
    kept = await client.range(prefix, prefix=True)
    assert [kv.key for kv in kept.kvs] == [prefix + b"app.", prefix + b"app0"]
    with pytest.raises(RequestError, match="key is not provided"):
        await app.put(b"", b"")
    with pytest.raises(RequestError, match="key is not provided"):
        await app.get(b"")


async def test_watches_and_leases(client: AsyncClient, prefix: bytes) -> None:
    app = client.namespace(prefix)
    async with (
        app.lease(60) as lease,
        app.watch(b"", prefix=True, prev_kv=True) as watcher,
        asyncio.timeout(20),
    ):
        await app.put(b"k", b"v", lease=lease.lease_id)
        await client.put(prefix[:-1] + b"0", b"outside", lease=lease.lease_id)
        await app.delete(b"k")
        [put], [deleted] = [(await anext(watcher)).events for _ in range(2)]
        assert (put.key, put.kind) == (b"k", "PUT")
        assert deleted.previous is not None
        assert (deleted.key, deleted.previous.key) == (b"k", b"k")
        await app.put(b"k", b"v", lease=lease.lease_id)
        assert (await app.lease_time_to_live(lease.lease_id, keys=True)).keys == (b"k",)
    assert await app.get(b"k") is None


async def test_recipes_and_namespaces_within(client: AsyncClient, prefix: bytes) -> None:
    inner = client.namespace(prefix).namespace(b"inner/")
    async with inner.lock(b"lock") as lock:
        [kv] = (await client.range(prefix, prefix=True)).kvs
        assert kv.key == prefix + b"inner/" + lock.key
        assert not await client.lock(prefix + b"inner/lock").try_acquire()
    async with inner.cache(b"", prefix=True) as cache:
        put = await inner.put(b"k", b"v")
        await cache.wait_revision(put.revision, timeout_s=20)
        assert [kv.key for kv in cache.items()] == [b"k"]


async def test_closing_a_view_leaves_the_client_open(client: AsyncClient, prefix: bytes) -> None:
    app = client.namespace(prefix)
    watcher = await app.watch(b"k").start()
    await app.close()
    assert await anext(watcher, None) is None
    await client.put(prefix, b"")
    with pytest.raises(ValueError, match="prefix"):
        client.namespace(b"")


async def test_closing_the_client_ends_what_watches_in_its_views(
    server: Cluster, prefix: bytes
) -> None:
    client = AsyncClient(server.endpoints)
    watcher = await client.namespace(prefix).namespace(b"in/").watch(b"k").start()
    many = await client.namespace(prefix).watch_many([Span(b"a"), Span(b"b")]).start()
    cache = await client.namespace(prefix).cache(b"", prefix=True).start()
    waiting = asyncio.create_task(anext(many, None))
    await asyncio.sleep(0)
    await client.close()
    assert await asyncio.wait_for(anext(watcher, None), 10) is None
    assert await asyncio.wait_for(waiting, 10) is None
    with pytest.raises(ClosedError):
        await cache.get(b"k", max_staleness_s=0)
    await cache.aclose()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    namespace=st.sampled_from([b"a", b"a/", b"\xff", b"a\xff", b"a\xff\xff", b"\0"]),
    keys=st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    first=st.binary(max_size=2),
)
def test_ranges_to_the_end_and_by_prefix_see_all_of_it_and_only_it(
    server: Cluster, namespace: bytes, keys: list[bytes], first: bytes
) -> None:
    with Client(server.endpoints) as client:
        app = client.namespace(b"property/").namespace(namespace)
        outside = [b"property0", b"property/" + namespace[:-1] + b"!x", b"property."]
        for key in outside:
            client.put(key, b"")
        for key in keys:
            app.put(key, b"")
        try:
            inside = sorted(keys)
            assert [kv.key for kv in app.range(b"", prefix=True).kvs] == inside
            assert [kv.key for kv in app.range(first or b"\0", TO_THE_END).kvs] == [
                key for key in inside if key >= (first or b"\0")
            ]
            assert [kv.key for kv in app.range(first, prefix=True).kvs] == [
                key for key in inside if key.startswith(first)
            ]
            assert app.delete(b"", prefix=True).deleted == len(keys)
            assert client.range(b"property/" + namespace, prefix=True).count == 0
            assert all(client.get(key) is not None for key in outside)
        finally:
            client.delete(b"property", prefix=True)


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client, client.namespace(prefix) as app:
        app.put(b"k", b"v")
        kv = client.get(prefix + b"k")
        assert kv is not None
        assert kv.value == b"v"
        with app.watch(b"k", start_revision=kv.mod_revision) as watcher:
            batch = watcher.next(10)
            assert batch is not None
            assert batch.events[0].key == b"k"
