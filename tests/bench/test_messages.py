"""The hand-written messages are those of the generated code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import messages
from bench.null_server import message
from kvstore.pb import kv_pb2, rpc_pb2

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(key=st.binary(max_size=40), value=st.binary(max_size=400), lease=INT64)
def test_put_requests_are_what_protobuf_reads(key: bytes, value: bytes, lease: int) -> None:
    read = rpc_pb2.PutRequest.FromString(messages.put(key, value, lease))

    assert read == rpc_pb2.PutRequest(key=key, value=value, lease=lease)


@given(
    key=st.binary(max_size=40),
    end=st.binary(max_size=40),
    limit=INT64,
    revision=INT64,
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_range_requests_are_what_protobuf_reads(
    key: bytes, end: bytes, limit: int, revision: int, flags: tuple[bool, bool, bool]
) -> None:
    serializable, keys_only, count_only = flags
    fields = {
        "limit": limit,
        "revision": revision,
        "serializable": serializable,
        "keys_only": keys_only,
        "count_only": count_only,
    }

    read = rpc_pb2.RangeRequest.FromString(messages.range_(key, end, **fields))

    assert read == rpc_pb2.RangeRequest(key=key, range_end=end, **fields)


def test_replies_are_read_as_protobuf_wrote_them() -> None:
    header = rpc_pb2.ResponseHeader(cluster_id=2**63, member_id=7, revision=9, raft_term=3)
    pairs = [kv_pb2.KeyValue(key=b"a", value=b"1", mod_revision=4), kv_pb2.KeyValue(key=b"b")]
    ranged = rpc_pb2.RangeResponse(header=header, kvs=pairs, count=5, more=True)
    status = rpc_pb2.StatusResponse(header=header, version="3.6.0", leader=2**64 - 1, raftTerm=3)

    reply = messages.range_reply(ranged.SerializeToString())

    assert reply == messages.RangeReply(9, [(b"a", b"1"), (b"b", b"")], 5, more=True)
    assert messages.header_revision(ranged.SerializeToString()) == 9
    assert messages.status_reply(status.SerializeToString()) == messages.StatusReply(
        7, 9, "3.6.0", 2**64 - 1, 3
    )


def test_watch_and_compaction_requests() -> None:
    watch = rpc_pb2.WatchRequest.FromString(messages.watch_create(b"a", b"b", 9))
    compaction = rpc_pb2.CompactionRequest.FromString(messages.compact(7, physical=True))

    asked = rpc_pb2.WatchCreateRequest(key=b"a", range_end=b"b", start_revision=9)
    assert watch == rpc_pb2.WatchRequest(create_request=asked)
    assert (compaction.revision, compaction.physical) == (7, True)


def test_events_are_read_as_protobuf_wrote_them() -> None:
    put = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"a", value=b"1", mod_revision=4, lease=2**62))
    empty = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"b", mod_revision=5))
    gone = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"a", mod_revision=6))
    response = rpc_pb2.WatchResponse(watch_id=3, events=[put, empty, gone])

    events = messages.watch_events(response.SerializeToString())

    assert events == [(b"a", b"1"), (b"b", b""), (b"a", None)]
    created = rpc_pb2.WatchResponse(created=True).SerializeToString()
    assert messages.watch_events(created) == []


def test_the_null_servers_replies_are_as_large_as_real_ones() -> None:
    put = rpc_pb2.PutResponse.FromString(message("put"))
    ranged = rpc_pb2.RangeResponse.FromString(message("range", 256))

    assert put.header.revision
    assert (len(ranged.kvs[0].key), len(ranged.kvs[0].value), ranged.count) == (32, 256, 1)


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x80", b"\x0b", b"\xff" * 11])
def test_malformed_replies_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|varint|wire type"):
        messages.decode(data)
