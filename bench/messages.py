"""The few etcd v3 protobuf messages that a driver needs, by hand; no generated code, no sockets.

A load generator wants bytes that are built once, and `bench` may not import `kvstore.pb`.
Field numbers are those of `proto/rpc.proto`.
"""

from __future__ import annotations

from dataclasses import dataclass

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
COMPACT = "/etcdserverpb.KV/Compact"
STATUS = "/etcdserverpb.Maintenance/Status"
HASH_KV = "/etcdserverpb.Maintenance/HashKV"
WATCH = "/etcdserverpb.Watch/Watch"
LEASE_GRANT = "/etcdserverpb.Lease/LeaseGrant"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


def varint(value: int) -> bytes:
    """Return a base-128 varint; negative numbers as protobuf's 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def blob(number: int, data: bytes) -> bytes:
    """Return a length-delimited field, also when it is empty."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def integer(number: int, value: int) -> bytes:
    """Return a varint field, or nothing for zero, as proto3 does."""
    return varint(number << 3) + varint(value) if value else b""


def put(key: bytes, value: bytes, lease: int = 0) -> bytes:
    """Return a PutRequest."""
    return blob(1, key) + blob(2, value) + integer(3, lease)


def range_(
    key: bytes,
    range_end: bytes = b"",
    *,
    limit: int = 0,
    revision: int = 0,
    serializable: bool = False,
    keys_only: bool = False,
    count_only: bool = False,
) -> bytes:
    """Return a RangeRequest."""
    return (
        blob(1, key)
        + (blob(2, range_end) if range_end else b"")
        + integer(3, limit)
        + integer(4, revision)
        + integer(7, serializable)
        + integer(8, keys_only)
        + integer(9, count_only)
    )


def compact(revision: int, *, physical: bool = False) -> bytes:
    """Return a CompactionRequest."""
    return integer(1, revision) + integer(2, physical)


def watch_create(key: bytes, range_end: bytes = b"", start_revision: int = 0) -> bytes:
    """Return a WatchRequest that creates one watcher."""
    end = blob(2, range_end) if range_end else b""
    return blob(1, blob(1, key) + end + integer(3, start_revision))


def framed(message: bytes) -> bytes:
    """Return the message with gRPC's prefix: not compressed, 4-byte length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


Fields = dict[int, list[int | bytes]]


def decode(data: bytes) -> Fields:
    """Return field number -> values in order. Raises ValueError on anything malformed."""
    fields: Fields = {}
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind == 2:
            size, at = _read_varint(data, at)
            if at + size > end:
                raise ValueError("a field runs past the end of its message")
            value = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind} is not used by etcd's messages")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a varint is cut off or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def number(fields: Fields, index: int) -> int:
    """Return an integer field, 0 when absent."""
    value = fields.get(index, [0])[-1]
    assert isinstance(value, int)
    return value


def data(fields: Fields, index: int) -> bytes:
    """Return a bytes field, empty when absent."""
    value = fields.get(index, [b""])[-1]
    assert isinstance(value, bytes)
    return value


def header_revision(reply: bytes) -> int:
    """Return `header.revision` of any KV reply."""
    return number(decode(data(decode(reply), 1)), 3)


@dataclass(frozen=True)
class RangeReply:
    """What a Range answered."""

    revision: int
    pairs: list[tuple[bytes, bytes]]
    count: int
    more: bool


def range_reply(reply: bytes) -> RangeReply:
    """Decode a RangeResponse."""
    fields = decode(reply)
    pairs = []
    for item in fields.get(2, []):
        assert isinstance(item, bytes)
        pairs.append(_pair(item))
    return RangeReply(
        number(decode(data(fields, 1)), 3), pairs, number(fields, 4), bool(number(fields, 3))
    )


def watch_events(reply: bytes) -> list[tuple[bytes, bytes | None]]:
    """Decode a WatchResponse: keys with their new values, None for one that was deleted."""
    events: list[tuple[bytes, bytes | None]] = []
    for item in decode(reply).get(11, []):
        assert isinstance(item, bytes)
        event = decode(item)
        key, value = _pair(data(event, 2))
        events.append((key, None if number(event, 1) else value))
    return events


def _pair(key_value: bytes) -> tuple[bytes, bytes]:
    fields = decode(key_value)
    return data(fields, 1), data(fields, 5)


@dataclass(frozen=True)
class StatusReply:
    """What Maintenance.Status answered."""

    member_id: int
    revision: int
    version: str
    leader: int
    raft_term: int


def status_reply(reply: bytes) -> StatusReply:
    """Decode a StatusResponse."""
    fields = decode(reply)
    header = decode(data(fields, 1))
    return StatusReply(
        number(header, 2),
        number(header, 3),
        data(fields, 2).decode(),
        number(fields, 4),
        number(fields, 6),
    )
