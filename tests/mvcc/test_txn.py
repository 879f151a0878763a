"""Transactions: etcd's rules one by one; the differential test mixes them at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kvstore.mvcc import results
from kvstore.mvcc.check import check_txn, is_read_only
from kvstore.mvcc.errors import (
    Compacted,
    DuplicateKey,
    FutureRevision,
    KeyNotFound,
    KeyNotProvided,
    LeaseNotFound,
    TooManyOps,
)
from kvstore.pb import rpc_pb2
from tests.mvcc.harness import decoded, stored

if TYPE_CHECKING:
    from tests.mvcc.harness import Member


def put(key: bytes, value: bytes = b"v", **options: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, **options))


def delete(key: bytes, end: bytes = b"") -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(
        request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end)
    )


def get(key: bytes, end: bytes = b"", **options: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=end, **options))


def txn(*success: rpc_pb2.RequestOp, **more: Any) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(success=success, **more)


def nested(*success: rpc_pb2.RequestOp, **more: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_txn=txn(*success, **more))


def when(key: bytes, target: str, result: str, wanted: Any, end: bytes = b"") -> rpc_pb2.Compare:
    compare = rpc_pb2.Compare(
        key=key,
        range_end=end,
        target=rpc_pb2.Compare.CompareTarget.Value(target),
        result=rpc_pb2.Compare.CompareResult.Value(result),
    )
    field = {"CREATE": "create_revision", "MOD": "mod_revision"}.get(target, target.lower())
    setattr(compare, field, wanted)
    return compare


def test_all_changes_share_one_revision_and_later_operations_see_them(member: Member) -> None:
    member.put(b"a", b"0")
    result = member.store.txn(txn(get(b"a"), put(b"a", b"1"), get(b"a"), put(b"b"), get(b"b")))
    assert (result.revision, member.store.revision) == (3, 3)
    before, written, after, _, _ = result.responses
    assert isinstance(before, results.RangeResult)
    assert isinstance(after, results.RangeResult)
    assert (before.revision, written.revision, after.revision) == (2, 3, 3)
    [kv] = decoded(after.kvs)
    assert (kv.value, kv.mod_revision, kv.version) == (b"1", 3, 2)
    [_, (revision, events)] = member.store.take_events()
    assert revision == 3
    assert [event.key for event in events] == [b"a", b"b"]
    assert [key[:17].hex() for key, _ in stored(member)[1:]] == [
        "00000000000000035f0000000000000000",
        "00000000000000035f0000000000000001",
    ]


def test_without_effect_there_is_no_revision(member: Member) -> None:
    result = member.store.txn(txn(delete(b"absent"), get(b"a")))
    assert (result.revision, member.store.revision) == (1, 1)
    assert member.store.take_events() == []


@pytest.mark.parametrize(
    ("target", "result", "wanted", "holds"),
    [
        ("VERSION", "EQUAL", 2, True),
        ("VERSION", "GREATER", 2, False),
        ("VERSION", "LESS", 3, True),
        ("VERSION", "NOT_EQUAL", 2, False),
        ("CREATE", "EQUAL", 2, True),
        ("MOD", "EQUAL", 3, True),
        ("MOD", "GREATER", 2, True),
        ("VALUE", "EQUAL", b"1", True),
        ("VALUE", "LESS", b"2", True),
        ("LEASE", "EQUAL", 7, True),
        ("LEASE", "NOT_EQUAL", 0, True),
    ],
)
def test_compares_of_a_present_key(
    member: Member, target: str, result: str, wanted: Any, holds: bool
) -> None:
    member.leases.keys = {7: set()}
    member.put(b"a", b"0")
    member.put(b"a", b"1", lease=7)
    found = member.store.txn(txn(compare=[when(b"a", target, result, wanted)]))
    assert found.succeeded is holds


@pytest.mark.parametrize("target", ["VERSION", "CREATE", "MOD", "LEASE"])
def test_an_absent_key_compares_as_zero(member: Member, target: str) -> None:
    assert member.store.txn(txn(compare=[when(b"a", target, "EQUAL", 0)])).succeeded
    assert not member.store.txn(txn(compare=[when(b"a", target, "NOT_EQUAL", 0)])).succeeded


@pytest.mark.parametrize("result", ["EQUAL", "NOT_EQUAL", "GREATER", "LESS"])
def test_no_value_compare_holds_on_an_absent_key(member: Member, result: str) -> None:
    assert not member.store.txn(txn(compare=[when(b"a", "VALUE", result, b"")])).succeeded


def test_a_compare_with_a_range_needs_every_key(member: Member) -> None:
    member.put(b"a", b"x")
    member.put(b"b", b"x")
    everyone = when(b"a", "VALUE", "EQUAL", b"x", end=b"z")
    assert member.store.txn(txn(compare=[everyone])).succeeded
    member.put(b"c", b"y")
    assert not member.store.txn(txn(compare=[everyone])).succeeded
    # An empty range is a single absent key.
    assert member.store.txn(txn(compare=[when(b"x", "VERSION", "EQUAL", 0, end=b"z")])).succeeded


def test_nested_compares_see_the_state_before_the_transaction(member: Member) -> None:
    result = member.store.txn(
        txn(
            put(b"a"),
            nested(put(b"yes"), compare=[when(b"a", "VERSION", "EQUAL", 0)], failure=[put(b"no")]),
        )
    )
    inner = result.responses[1]
    assert isinstance(inner, results.TxnResult)
    assert inner.succeeded
    assert member.get(b"yes") is not None
    assert member.get(b"no") is None


def refused(member: Member, request: rpc_pb2.TxnRequest, error: type[Exception]) -> None:
    before = (member.store.revision, stored(member), list(member.store.index.live))
    leases = {lease: set(keys) for lease, keys in member.leases.keys.items()}
    member.store.take_events()
    with pytest.raises(error):
        member.store.txn(request)
    assert (member.store.revision, stored(member), list(member.store.index.live)) == before
    assert member.leases.keys == leases
    assert member.store.take_events() == []


def test_what_can_fail_fails_before_the_first_write(member: Member) -> None:
    member.leases.keys = {7: set()}
    for n in range(4):
        member.put(b"k", b"%d" % n)
    member.store.compact(4)
    cases = [
        (txn(put(b"a", lease=7), put(b"b", lease=99)), LeaseNotFound),
        (txn(put(b"a"), put(b"b", b"", ignore_value=True)), KeyNotFound),
        (txn(put(b"a"), nested(put(b"b", b"", ignore_lease=True))), KeyNotFound),
        (txn(delete(b"k"), get(b"a", revision=6)), FutureRevision),
        (txn(put(b"a"), get(b"a", revision=6)), FutureRevision),
        (txn(put(b"a"), get(b"a", revision=3)), Compacted),
        (txn(put(b"a"), nested(get(b"a", revision=3))), Compacted),
        # etcd compares a negative revision as it stands inside a transaction.
        (txn(put(b"a"), get(b"a", revision=-1)), Compacted),
        (txn(put(b"a"), rpc_pb2.RequestOp()), KeyNotFound),
        (txn(put(b"a"), put(b"")), KeyNotProvided),
        (txn(put(b"a"), compare=[rpc_pb2.Compare()]), KeyNotProvided),
    ]
    for request, error in cases:
        refused(member, request, error)


def test_a_branch_that_does_not_run_is_not_checked_for_presence(member: Member) -> None:
    result = member.store.txn(txn(put(b"a"), failure=[put(b"b", b"", ignore_value=True)]))
    assert result.succeeded


def test_a_key_cannot_be_put_twice(member: Member) -> None:
    member.put(b"k")
    for request in (
        txn(put(b"a"), put(b"a")),
        txn(put(b"a"), delete(b"a")),
        txn(delete(b"a"), put(b"a")),
        txn(delete(b"a", b"c"), put(b"b")),
        txn(put(b"b"), delete(b"a", b"c")),
        txn(failure=[put(b"a"), put(b"a")]),
        txn(put(b"a"), nested(put(b"a"))),
        txn(put(b"a"), nested(failure=[put(b"a")])),
        txn(nested(put(b"a")), nested(put(b"a"))),
        txn(nested(delete(b"a")), nested(put(b"a"))),
        txn(delete(b"a"), nested(put(b"a"))),
        txn(nested(delete(b"a", b"c")), put(b"b")),
        txn(nested(nested(put(b"a"))), put(b"a")),
        txn(nested(put(b"a"), put(b"a"))),
    ):
        refused(member, request, DuplicateKey)


def test_what_looks_like_a_duplicate_and_is_none(member: Member) -> None:
    # All of these pass in etcd (seen on 3.4.23).
    for request in (
        txn(delete(b"a", b"c"), delete(b"b", b"d")),
        txn(delete(b"a", b"b"), put(b"b")),
        txn(nested(put(b"a"), failure=[put(b"a")])),
        txn(put(b"a"), failure=[put(b"a")]),
        txn(nested(put(b"a")), nested(delete(b"a"))),
        txn(delete(b"\0", b"\0"), put(b"a")),
    ):
        assert member.store.txn(request).succeeded


def test_delete_everything_and_put_one_key(member: Member) -> None:
    member.put(b"a")
    member.put(b"b")
    result = member.store.txn(txn(delete(b"\0", b"\0"), put(b"a", b"new")))
    assert result.revision == 4
    [kv] = decoded(member.range(b"\0", b"\0").kvs)
    assert (kv.key, kv.create_revision, kv.version) == (b"a", 4, 1)
    # The key changed twice in one revision: deletion first, then the put.
    assert [event.kind for _, events in member.store.take_events()[2:] for event in events] == [
        1,
        1,
        0,
    ]
    member.commit()
    member.restart()
    assert member.get(b"a") == kv


def test_where_etcd_panics_we_refuse(member: Member) -> None:
    # The key is there before the transaction and gone when its turn comes.
    member.put(b"a", b"1")
    refused(member, txn(delete(b"\0", b"\0"), put(b"a", b"", ignore_value=True)), KeyNotFound)
    refused(
        member,
        txn(nested(delete(b"\0", b"\0")), nested(put(b"a", b"", ignore_lease=True))),
        KeyNotFound,
    )


def test_operation_limits_through_nesting() -> None:
    def many(count: int) -> list[rpc_pb2.RequestOp]:
        return [get(b"a")] * count

    compares = [when(b"a", "VERSION", "EQUAL", 0)]
    check_txn(txn(*many(128)))
    check_txn(txn(*many(128), failure=many(128), compare=compares * 128))
    for request in (
        txn(*many(129)),
        txn(failure=many(129)),
        txn(compare=compares * 129),
        txn(nested(*many(128))),
        txn(*many(100), nested(*many(28))),
        txn(nested(nested(*many(127)))),
    ):
        with pytest.raises(TooManyOps):
            check_txn(request)
    check_txn(txn(nested(*many(127))))
    check_txn(txn(*many(99), nested(*many(28))))
    check_txn(txn(*many(5)), ops_max=5)
    with pytest.raises(TooManyOps):
        check_txn(txn(*many(6)), ops_max=5)


def test_the_store_uses_its_own_limit(member: Member) -> None:
    member.store.txn_ops_max = 2
    refused(member, txn(put(b"a"), put(b"b"), put(b"c")), TooManyOps)


def test_read_only_means_ranges_alone() -> None:
    assert is_read_only(txn(get(b"a"), failure=[get(b"b")]))
    assert is_read_only(txn())
    assert not is_read_only(txn(get(b"a"), failure=[put(b"b")]))
    # As in etcd: whatever is nested counts as a write.
    assert not is_read_only(txn(nested(get(b"a"))))


def test_the_reply_on_the_wire(member: Member) -> None:
    member.put(b"a", b"0")
    result = member.store.txn(
        txn(
            put(b"a", b"1", prev_kv=True),
            get(b"a"),
            nested(delete(b"b"), failure=[]),
            compare=[when(b"a", "VERSION", "EQUAL", 1)],
        )
    )
    header = rpc_pb2.ResponseHeader(member_id=5, revision=result.revision)
    reply = rpc_pb2.TxnResponse.FromString(
        results.encode_txn_response(header.SerializeToString(), result)
    )
    assert reply.header == header
    assert reply.succeeded
    first, second, third = reply.responses
    assert first.response_put.header == rpc_pb2.ResponseHeader(revision=3)
    assert first.response_put.prev_kv.value == b"0"
    assert second.response_range.kvs[0].value == b"1"
    assert second.response_range.count == 1
    # etcd leaves the header of a nested transaction empty, but there.
    assert third.response_txn.HasField("header")
    assert third.response_txn.header == rpc_pb2.ResponseHeader()
    assert third.response_txn.responses[0].response_delete_range.header.revision == 3
