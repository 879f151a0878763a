"""Keys, ranges and transactions against real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import (
    TO_THE_END,
    AsyncClient,
    CompactedError,
    FutureRevisionError,
    KeyNotFoundError,
    LeaseNotFoundError,
    Op,
    RangeResult,
    RequestError,
    RequestTooLargeError,
    compare,
    prefix_end,
)

if TYPE_CHECKING:
    from tests.servers import Cluster


async def test_put_and_get_round_trip_any_bytes(client: AsyncClient, prefix: bytes) -> None:
    value = bytes(range(256))
    put = await client.put(prefix + b"\x00\xff", value)

    kv = await client.get(prefix + b"\x00\xff")

    assert kv is not None
    assert kv == (prefix + b"\x00\xff", value, put.revision, put.revision, 1, 0)


async def test_get_of_an_absent_key_is_none(client: AsyncClient, prefix: bytes) -> None:
    assert await client.get(prefix + b"absent") is None


async def test_put_returns_what_it_replaced_only_when_asked(
    client: AsyncClient, prefix: bytes
) -> None:
    first = await client.put(prefix, b"1", prev_kv=True)
    second = await client.put(prefix, b"2", prev_kv=True)
    third = await client.put(prefix, b"3")

    assert first.previous is None
    assert second.previous == (prefix, b"1", first.revision, first.revision, 1, 0)
    assert third.previous is None
    assert (second.revision, third.revision) == (first.revision + 1, first.revision + 2)


async def test_ignore_value_keeps_the_value_and_moves_the_lease(
    client: AsyncClient, prefix: bytes
) -> None:
    grant = await client.lease_grant(60)
    await client.put(prefix, b"kept")
    await client.put(prefix, b"", ignore_value=True, lease=grant.lease_id)

    kv = await client.get(prefix)

    assert kv is not None
    assert (kv.value, kv.lease, kv.version) == (b"kept", grant.lease_id, 2)
    with pytest.raises(KeyNotFoundError):
        await client.put(prefix + b"absent", b"", ignore_value=True)


async def test_refusals_are_request_errors_with_etcds_text(
    client: AsyncClient, prefix: bytes
) -> None:
    with pytest.raises(RequestError) as caught:
        await client.put(b"", b"v")
    assert caught.value.text == "etcdserver: key is not provided"
    assert caught.value.grpc_code == "INVALID_ARGUMENT"
    with pytest.raises(LeaseNotFoundError):
        await client.put(prefix, b"v", lease=4711)
    with pytest.raises(RequestTooLargeError):
        await client.put(prefix, bytes(1_600_000))
    # Beyond the size that the server's transport takes, it is not etcd that answers.
    with pytest.raises(RequestTooLargeError):
        await client.put(prefix, bytes(4_000_000))
    assert await client.get(prefix) is None


async def test_reading_outside_the_history_names_the_revisions(
    fresh_server: Cluster,
) -> None:
    async with AsyncClient(fresh_server.endpoints) as client:
        for number in range(5):
            last = await client.put(b"k", b"%d" % number)
        with pytest.raises(FutureRevisionError):
            await client.get(b"k", revision=last.revision + 10)
        old = await client.get(b"k", revision=last.revision - 1)
        assert old is not None
        assert old.value == b"3"

        assert await client.compact(last.revision - 1, physical=True) == last.revision

        with pytest.raises(CompactedError) as caught:
            await client.get(b"k", revision=last.revision - 2)
        assert caught.value.requested == last.revision - 2
        with pytest.raises(CompactedError) as caught:
            await client.compact(last.revision - 1)
        assert caught.value.requested == last.revision - 1
        with pytest.raises(FutureRevisionError):
            await client.compact(last.revision + 1)


async def test_range_options(client: AsyncClient, prefix: bytes) -> None:
    for name in (b"b", b"a", b"c"):
        await client.put(prefix + name, b"v" + name)
    await client.put(prefix + b"a", b"va2")

    everything = await client.range(prefix, prefix=True)
    limited = await client.range(prefix, prefix=True, limit=2)
    counted = await client.range(prefix, prefix=True, count_only=True)
    keys = await client.range(prefix, prefix=True, keys_only=True)
    newest = await client.range(prefix, prefix=True, sort_target="mod", sort_order="descend")
    part = await client.range(prefix + b"b", prefix_end(prefix))
    tail = await client.range(prefix + b"b", TO_THE_END, limit=1)
    changed = await client.range(
        prefix, prefix=True, min_mod_revision=everything.kvs[0].mod_revision
    )

    assert [kv.key for kv in everything.kvs] == [prefix + name for name in (b"a", b"b", b"c")]
    assert (everything.count, everything.more) == (3, False)
    assert (len(limited.kvs), limited.more, limited.count) == (2, True, 3)
    assert (counted.kvs, counted.count) == ((), 3)
    assert [kv.value for kv in keys.kvs] == [b"", b"", b""]
    assert [kv.key[-1:] for kv in newest.kvs] == [b"a", b"c", b"b"]
    assert [kv.key[-1:] for kv in part.kvs] == [b"b", b"c"]
    assert tail.kvs[0].key == prefix + b"b"
    assert [kv.key[-1:] for kv in changed.kvs] == [b"a"]


async def test_pages_show_one_revision_while_the_range_changes(
    client: AsyncClient, prefix: bytes
) -> None:
    # 25 keys by pages of 10, and between pages keys appear, change and go in the part not read.
    names = [prefix + b"%02d" % number for number in range(25)]
    for name in names:
        await client.put(name, b"old")
    pages = client.get_range(prefix, prefix=True, page_size=10)
    seen = [await anext(pages)]
    revision = pages.revision
    await client.put(names[20], b"new")
    await client.delete(names[21])
    await client.put(prefix + b"99", b"new")

    seen += [kv async for kv in pages]

    assert [kv.key for kv in seen] == names
    assert {kv.value for kv in seen} == {b"old"}
    assert pages.revision == revision == max(kv.mod_revision for kv in seen)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
async def test_pages_end_on_and_off_the_page_border(
    client: AsyncClient, prefix: bytes, count: int
) -> None:
    for number in range(count):
        await client.put(prefix + b"%d" % number, b"v")

    keys = [kv.key async for kv in client.get_range(prefix, prefix=True, page_size=2)]

    assert keys == [prefix + b"%d" % number for number in range(count)]


async def test_a_range_larger_than_grpcs_default_limit_arrives(
    client: AsyncClient, prefix: bytes
) -> None:
    # gRPC clients refuse answers over 4 MiB unless told otherwise.
    for number in range(6):
        await client.put(prefix + b"%d" % number, bytes(1_000_000))

    answer = await client.range(prefix, prefix=True)

    assert sum(len(kv.value) for kv in answer.kvs) == 6_000_000
    await client.delete(prefix, prefix=True)


async def test_delete_counts_and_shows_what_went(client: AsyncClient, prefix: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        last = await client.put(prefix + name, name)

    one = await client.delete(prefix + b"a")
    rest = await client.delete(prefix, prefix=True, prev_kv=True)
    none = await client.delete(prefix, prefix=True)

    assert (one.deleted, one.previous, one.revision) == (1, (), last.revision + 1)
    assert (rest.deleted, [kv.value for kv in rest.previous]) == (2, [b"b", b"c"])
    assert (none.deleted, none.revision) == (0, rest.revision)


async def test_txn_runs_the_branch_its_conditions_choose(
    client: AsyncClient, prefix: bytes
) -> None:
    def take(owner: bytes):
        return (
            client.txn()
            .when(compare(prefix).version == 0)
            .then(Op.put(prefix, owner))
            .otherwise(Op.get(prefix))
        )

    first = await take(b"me").commit()
    second = await take(b"you").commit()

    assert first.succeeded
    assert not second.succeeded
    [found] = second.responses
    assert isinstance(found, RangeResult)
    assert found.kvs[0].value == b"me"
    assert second.revision == first.revision


async def test_txn_compares_every_property_with_every_relation(
    client: AsyncClient, prefix: bytes
) -> None:
    lease = (await client.lease_grant(60)).lease_id
    created = (await client.put(prefix, b"m", lease=lease)).revision
    changed = (await client.put(prefix, b"m", lease=lease)).revision
    key = compare(prefix)
    true = [
        key.value == b"m",
        key.value != b"l",
        key.value < b"n",
        key.value > b"l",
        key.version == 2,
        key.version != 1,
        key.version > 1,
        key.create_revision == created,
        key.create_revision < changed,
        key.mod_revision == changed,
        key.mod_revision > created,
        key.lease == lease,
        key.lease != 0,
        compare(prefix, prefix=True).version == 2,
    ]
    false = [
        key.value == b"l",
        key.value > b"m",
        key.version == 1,
        key.version < 2,
        key.create_revision == changed,
        key.mod_revision != changed,
        key.lease == 0,
        compare(prefix + b"absent").value != b"x",  # an absent key has no value to differ
    ]

    assert (await client.txn().when(*true).commit()).succeeded
    for number, condition in enumerate(false):
        answer = await client.txn().when(condition).commit()
        assert not answer.succeeded, f"condition {number}"


async def test_txn_nests_and_reads_its_own_writes(client: AsyncClient, prefix: bytes) -> None:
    inner = (
        client.txn()
        .when(compare(prefix + b"a").version == 0)  # decided on the state before the outer
        .then(Op.put(prefix + b"b", b"inner"), Op.delete(prefix + b"c", prev_kv=True))
    )
    await client.put(prefix + b"c", b"old")

    answer = await (
        client.txn()
        .then(Op.put(prefix + b"a", b"1", prev_kv=True), Op.txn(inner), Op.get(prefix, prefix=True))
        .commit()
    )

    put, nested, seen = answer.responses
    assert put == (answer.revision, None)
    assert nested.succeeded
    assert nested.responses[1].previous[0].value == b"old"
    assert [kv.value for kv in seen.kvs] == [b"1", b"inner"]
    assert {kv.mod_revision for kv in seen.kvs} == {answer.revision}


async def test_txn_refusals_write_nothing(client: AsyncClient, prefix: bytes) -> None:
    twice = client.txn().then(Op.put(prefix, b"1"), Op.put(prefix, b"2"))
    with pytest.raises(RequestError, match="duplicate key"):
        await twice.commit()
    many = client.txn().then(*(Op.put(prefix + b"%d" % number, b"") for number in range(129)))
    with pytest.raises(RequestError, match="too many operations"):
        await many.commit()
    assert (await client.range(prefix, prefix=True)).count == 0


async def test_a_thousand_concurrent_calls_share_one_client(
    client: AsyncClient, prefix: bytes
) -> None:
    results = await asyncio.gather(
        *(client.put(prefix + b"%d" % number, b"v") for number in range(1000))
    )

    assert len({result.revision for result in results}) == 1000
