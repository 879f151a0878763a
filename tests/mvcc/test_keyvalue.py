"""Hand-written KeyValue and reply encoding against protobuf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.mvcc import keyvalue, results
from kvstore.mvcc.errors import CorruptStore
from kvstore.pb import kv_pb2, rpc_pb2

revisions = st.integers(1, 1 << 62) | st.sampled_from([1, 127, 128, 16383, 16384, (1 << 28) - 1])
sizes = st.sampled_from([0, 1, 127, 128, 300, 16383, 16384, 40000])
keys = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [b"\x01" * 128, b"k" * 200, b"k" * 16384]
)
values = st.binary(max_size=40) | sizes.map(lambda size: b"v" * size)
leases = st.integers(-(1 << 63), (1 << 63) - 1) | st.just(0)


@given(keys, revisions, revisions, revisions, values, leases)
def test_encode_is_what_protobuf_writes(
    key: bytes, created: int, modified: int, version: int, value: bytes, lease: int
) -> None:
    message = kv_pb2.KeyValue(
        key=key,
        create_revision=created,
        mod_revision=modified,
        version=version,
        value=value,
        lease=lease,
    )
    record = keyvalue.encode(key, created, modified, version, value, lease)
    assert record == message.SerializeToString()
    assert keyvalue.key_of(record) == key
    assert keyvalue.decode(record)[:6] == (key, created, modified, version, value, lease)
    message.ClearField("value")
    assert keyvalue.without_value(record) == message.SerializeToString()


@given(keys, revisions)
def test_tombstones(key: bytes, modified: int) -> None:
    assert keyvalue.encode_tombstone(key) == kv_pb2.KeyValue(key=key).SerializeToString()
    event = kv_pb2.KeyValue(key=key, mod_revision=modified).SerializeToString()
    assert keyvalue.encode_deleted(key, modified) == event


@given(st.data())
def test_damaged_records_are_refused(data: st.DataObject) -> None:
    record = keyvalue.encode(b"key" * 50, 300, 70000, 3, b"value" * 40, 9)
    cut = data.draw(st.integers(0, len(record) - 1))
    # Some prefixes are complete messages by accident: those that end between two fields.
    try:
        decoded = keyvalue.decode(record[:cut])
    except CorruptStore:
        return
    prefix = kv_pb2.KeyValue.FromString(record[:cut])
    assert decoded.key == prefix.key
    assert decoded.lease == prefix.lease == 0


def test_stray_bytes_are_refused() -> None:
    with pytest.raises(CorruptStore, match="stray"):
        keyvalue.decode(keyvalue.encode(b"a", 2, 2, 1, b"v", 0) + b"\x00")


def test_replies_are_what_protobuf_writes() -> None:
    header_message = rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=300, raft_term=4)
    header = header_message.SerializeToString()
    kvs = [kv_pb2.KeyValue(key=b"a", value=b"v" * 200, mod_revision=9), kv_pb2.KeyValue(key=b"b")]
    records = [kv.SerializeToString() for kv in kvs]

    for count, more, found in (
        (1, False, 1),
        (2, False, 2),
        (9, True, 1),
        (0, False, 0),
        (5, False, 0),
    ):
        expected = rpc_pb2.RangeResponse(
            header=header_message, kvs=kvs[:found], more=more, count=count
        )
        result = results.RangeResult(records[:found], count, 300, more=more)
        assert results.encode_range_response(header, result) == expected.SerializeToString()
    chunk = rpc_pb2.RangeResponse(kvs=kvs).SerializeToString()
    assert results.encode_range_chunk(records) == chunk

    deleted = rpc_pb2.DeleteRangeResponse(header=header_message, deleted=2, prev_kvs=kvs)
    assert results.encode_delete_range_response(header, 2, records) == deleted.SerializeToString()
    put = rpc_pb2.PutResponse(header=header_message, prev_kv=kvs[0])
    assert results.encode_put_response(header, records[0]) == put.SerializeToString()
