"""Results of requests, and their encoding into etcd's reply messages; no store access here.

Every member applies a request, only the one that owes the answer encodes it. A reply is put
together from KeyValue bytes as they are stored. `header` is always the bytes of a `ResponseHeader`
message.
"""

from __future__ import annotations

from typing import Final

from kvstore.mvcc.keyvalue import varint

_join: Final = b"".join


class RangeResult:
    """What a range found."""

    __slots__ = ("count", "kvs", "more", "revision")

    def __init__(self, kvs: list[bytes], count: int, revision: int, *, more: bool = False) -> None:
        self.kvs = kvs
        """KeyValue bytes in the order asked for."""

        self.count = count
        """Keys in the range at the revision read; limit and revision filters do not matter."""

        self.revision = revision
        """The store's current revision, not the one read: the header's revision."""

        self.more = more
        """The limit cut the result."""


class PutResult:
    """A put inside a transaction."""

    __slots__ = ("prev_kv", "revision")

    def __init__(self, revision: int, prev_kv: bytes | None) -> None:
        self.revision = revision
        self.prev_kv = prev_kv


class DeleteResult:
    """A deletion inside a transaction."""

    __slots__ = ("deleted", "prev_kvs", "revision")

    def __init__(self, revision: int, deleted: int, prev_kvs: list[bytes]) -> None:
        self.revision = revision
        self.deleted = deleted
        self.prev_kvs = prev_kvs


class TxnResult:
    """A transaction: which branch ran, and what its operations returned."""

    __slots__ = ("responses", "revision", "succeeded")

    def __init__(
        self,
        revision: int,
        responses: list[RangeResult | PutResult | DeleteResult | TxnResult],
        *,
        succeeded: bool,
    ) -> None:
        self.revision = revision
        """The store's revision after the transaction."""

        self.responses = responses
        self.succeeded = succeeded


OpResult = RangeResult | PutResult | DeleteResult | TxnResult


def encode_range_response(header: bytes, result: RangeResult) -> bytes:
    """Return RangeResponse bytes."""
    kvs = result.kvs
    if len(kvs) == 1 and result.count == 1 and not result.more:
        # By far the most common reply: one key.
        kv = kvs[0]
        return _join(
            (b"\x0a", varint(len(header)), header, b"\x12", varint(len(kv)), kv, b"\x20\x01")
        )
    parts = [b"\x0a", varint(len(header)), header]
    for kv in kvs:
        parts += (b"\x12", varint(len(kv)), kv)
    if result.more:
        parts.append(b"\x18\x01")
    if result.count:
        parts += (b"\x20", varint(result.count))
    return _join(parts)


def encode_range_chunk(kvs: list[bytes]) -> bytes:
    """Return the `kvs` part of a RangeResponse, to be joined with the parts of other slices."""
    parts: list[bytes] = []
    for kv in kvs:
        parts += (b"\x12", varint(len(kv)), kv)
    return _join(parts)


def encode_put_response(header: bytes, prev_kv: bytes | None) -> bytes:
    """Return PutResponse bytes."""
    if prev_kv is None:
        return _join((b"\x0a", varint(len(header)), header))
    return _join((b"\x0a", varint(len(header)), header, b"\x12", varint(len(prev_kv)), prev_kv))


def encode_delete_range_response(header: bytes, deleted: int, prev_kvs: list[bytes]) -> bytes:
    """Return DeleteRangeResponse bytes."""
    parts = [b"\x0a", varint(len(header)), header]
    if deleted:
        parts += (b"\x10", varint(deleted))
    for kv in prev_kvs:
        parts += (b"\x1a", varint(len(kv)), kv)
    return _join(parts)


def encode_txn_response(header: bytes, result: TxnResult) -> bytes:
    """Return TxnResponse bytes; the headers inside carry the revision only, as etcd's do."""
    parts = [b"\x0a", varint(len(header)), header]
    if result.succeeded:
        parts.append(b"\x10\x01")
    for response in result.responses:
        # A nested transaction has an empty header.
        if isinstance(response, TxnResult):
            tag, body = b"\x22", encode_txn_response(b"", response)
        else:
            inner = b"\x18" + varint(response.revision)
            if isinstance(response, RangeResult):
                tag, body = b"\x0a", encode_range_response(inner, response)
            elif isinstance(response, PutResult):
                tag, body = b"\x12", encode_put_response(inner, response.prev_kv)
            else:
                tag, body = (
                    b"\x1a",
                    encode_delete_range_response(inner, response.deleted, response.prev_kvs),
                )
        message = tag + varint(len(body)) + body
        parts += (b"\x1a", varint(len(message)), message)
    return _join(parts)
