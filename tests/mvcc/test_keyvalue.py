"""Hand-written KeyValue and reply encoding against protobuf."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.mvcc import keyvalue, results
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.mvcc.errors import CorruptStore, RequestError
from kvstore.mvcc.store import Store
from kvstore.pb import kv_pb2, rpc_pb2
from tests.mvcc.watch_rig import NoLeases

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


@st.composite
def encoded_puts(draw: st.DrawFn) -> bytes:
    """Requests of every form: as clients write them, and as protobuf takes them, too."""
    key, value = draw(keys | st.just(b"")), draw(values)
    message = rpc_pb2.PutRequest(key=key, value=value)
    for field in draw(st.lists(st.sampled_from(["lease", "prev_kv", "ignore_value"]), max_size=1)):
        setattr(message, field, 1)
    encoded = message.SerializeToString()
    form = draw(st.sampled_from(["canonical"] * 4 + ["long", "repeated", "unknown", "any", "cut"]))
    if form == "long":
        # A length may take more bytes than it needs.
        encoded = b"\x0a" + keyvalue.varint(len(key)) + key
        value = value[:100] if draw(st.booleans()) else value[:20_000]
        length = bytes((len(value) & 127 | 128, len(value) >> 7))
        encoded += b"\x12" + (length if length[1] < 128 else b"\x00") + value
    elif form == "repeated":
        encoded += draw(encoded_puts())
    elif form == "unknown":
        encoded += b"\x7a\x01x"
    elif form == "any":
        encoded = draw(st.binary(max_size=12))
    elif form == "cut":
        encoded = encoded[: draw(st.integers(0, len(encoded)))]
    return encoded


@given(st.lists(encoded_puts(), min_size=1, max_size=6))
@example([rpc_pb2.PutRequest(key=b"k" * 127 + b"\x12", value=b"v" * 17).SerializeToString()])
def test_encoded_puts_do_what_parsed_ones_do(requests: list[bytes]) -> None:
    quick = Store(MemoryBackend(), leases=NoLeases())
    plain = Store(MemoryBackend(), leases=NoLeases())
    for request in requests:
        answers: list[object] = []
        for put in (
            quick.put_bytes,
            lambda request: plain.put(rpc_pb2.PutRequest.FromString(request)),
        ):
            try:
                answers.append(put(request))
            except (RequestError, DecodeError) as error:
                answers.append(type(error))
        assert answers[0] == answers[1]
        assert quick.take_events() == plain.take_events()
    assert (quick.puts, quick.revision) == (plain.puts, plain.revision)
    assert quick.buffer.live.records == plain.buffer.live.records


class Book:
    """Leases that are all there, and what they hold."""

    def __init__(self) -> None:
        self.held: set[tuple[int, bytes]] = set()

    def exists(self, lease_id: int) -> bool:
        return True

    def attach(self, lease_id: int, key: bytes) -> None:
        self.held.add((lease_id, key))

    def detach(self, lease_id: int, key: bytes) -> None:
        self.held.remove((lease_id, key))


few_keys = st.sampled_from([b"a", b"b", b"c" * 127, b"d" * 128])
steps = st.tuples(
    st.sampled_from(["put"] * 8 + ["lease", "delete"]),
    few_keys,
    values.filter(lambda v: len(v) < 500),
)


@given(
    st.lists(st.lists(steps, min_size=1, max_size=40), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([0, 1 << 14, 1 << 28]),
)
def test_puts_in_a_run_do_what_they_do_alone(
    entries: list[list[tuple[str, bytes, bytes]]], watched: bool, revision: int
) -> None:
    # Runs that meet fresh, long, deleted and leased keys, and requests that are not plain.
    run_book, book = Book(), Book()
    run, alone = (Store(MemoryBackend(), leases=each) for each in (run_book, book))
    run.watched = watched
    for store in (run, alone):
        store.revision = max(1, revision - 30)
    for entry in entries:
        requests = []
        for kind, key, value in entry:
            if kind == "delete":
                for store in (run, alone):
                    store.delete_range(rpc_pb2.DeleteRangeRequest(key=key))
            lease = 7 if kind == "lease" else 0
            message = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
            requests.append(message.SerializeToString())
        position = 0
        while position < len(requests):
            before = run.revision
            count = run.put_run(tuple(requests), position)
            assert run.revision == before + count
            position += count
            if position < len(requests):
                assert not keyvalue.plain_put(requests[position])
                run.put_bytes(requests[position])
                position += 1
        for request in requests:
            alone.put_bytes(request)
        events, expected = run.take_events(), alone.take_events()
        assert events == expected if watched else set(map(str, events)) <= set(map(str, expected))
    assert (run.puts, run.revision) == (alone.puts, alone.revision)
    assert list(run.buffer.live.records.items()) == list(alone.buffer.live.records.items())
    assert run.buffer.live.order == alone.buffer.live.order
    assert run.buffered_bytes == alone.buffered_bytes
    assert run.index.histories == alone.index.histories
    assert list(run.index.live) == list(alone.index.live)
    assert run_book.held == book.held


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
