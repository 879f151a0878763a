"""What the client's methods return; plain values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from kvstore.pb import kv_pb2
    from kvstore.pb import rpc_pb2 as pb

SortTarget = Literal["key", "version", "create", "mod", "value"]
SortOrder = Literal["none", "ascend", "descend"]


class KeyValue(NamedTuple):
    """One key as the store holds it at some revision."""

    key: bytes
    value: bytes
    create_revision: int
    """Revision of the put that created the key after its last absence."""
    mod_revision: int
    """Revision of its latest put."""
    version: int
    """Number of puts since creation, 1 at creation."""
    lease: int
    """Lease that deletes the key when it ends; 0 is none."""


class PutResult(NamedTuple):
    """Answer of a put."""

    revision: int
    """Store revision that this write made."""
    previous: KeyValue | None
    """What the put replaced; None when the key was absent, or when not asked for."""


class DeleteResult(NamedTuple):
    """Answer of a delete."""

    revision: int
    """Store revision after the delete; unchanged when nothing matched."""
    deleted: int
    """Number of keys deleted."""
    previous: tuple[KeyValue, ...]
    """What was deleted, in key order; empty when not asked for."""


@dataclass(frozen=True, slots=True)
class RangeResult:  # not a tuple: that has a method `count`
    """Answer of a range."""

    revision: int
    """The store's current revision, also when an older one was read."""
    kvs: tuple[KeyValue, ...]
    more: bool
    """Whether `limit` cut the answer."""
    count: int
    """All keys in the range, whatever the limit."""


class TxnResult(NamedTuple):
    """Answer of a transaction."""

    revision: int
    """Store revision after the transaction; every change in it carries this one."""
    succeeded: bool
    """True when all compares held and the `then` branch ran."""
    responses: tuple[PutResult | DeleteResult | RangeResult | TxnResult, ...]
    """One for each operation of the branch that ran, in order."""


class LeaseGrant(NamedTuple):
    """Answer of a lease grant."""

    lease_id: int
    ttl_s: int
    """Granted seconds to live; the server may raise what was asked."""


class LeaseTimeToLive(NamedTuple):
    """State of one lease."""

    lease_id: int
    ttl_s: int
    """Seconds left, rounded down; -1 when the lease does not exist."""
    granted_ttl_s: int
    keys: tuple[bytes, ...]
    """Attached keys, when asked for."""


class Member(NamedTuple):
    """One member as the cluster's configuration lists it."""

    member_id: int
    name: str
    """Empty until the member has started once."""
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class Status(NamedTuple):
    """What one member says about itself."""

    member_id: int
    version: str
    db_size_bytes: int
    db_size_in_use_bytes: int
    leader_id: int
    """Member id of the leader it knows; 0 is none."""
    raft_term: int
    raft_index: int
    raft_applied_index: int
    revision: int
    is_learner: bool
    errors: tuple[str, ...]


class HashKv(NamedTuple):
    """Hash of a member's history up to a revision; equal on all healthy members."""

    member_id: int
    hash: int
    compact_revision: int
    hash_revision: int
    """The revision hashed; 0 from servers before 3.6."""


AlarmKind = Literal["NONE", "NOSPACE", "CORRUPT"]


class Alarm(NamedTuple):
    """An alarm that is raised."""

    member_id: int
    kind: AlarmKind


class Event(NamedTuple):
    """One change of one key."""

    kind: Literal["PUT", "DELETE"]
    kv: KeyValue
    """Of a DELETE, only `key` and `mod_revision` are set."""
    previous: KeyValue | None
    """The key before the change; None when absent, compacted or not asked for."""

    @property
    def key(self) -> bytes:
        """The key that changed."""
        return self.kv.key

    @property
    def value(self) -> bytes:
        """The new value; empty for a DELETE."""
        return self.kv.value


class WatchBatch(NamedTuple):
    """All changes that one revision made to the watched keys, or a progress mark."""

    revision: int
    """Revision of every event here; of a progress mark, up to which none is missing."""
    events: tuple[Event, ...]
    """In the order they were made; empty for a progress mark."""


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    """Copy the message into plain values."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def put_result(response: pb.PutResponse) -> PutResult:
    """Read the answer of a put."""
    previous = key_value(response.prev_kv) if response.HasField("prev_kv") else None
    return PutResult(response.header.revision, previous)


_new = partial(tuple.__new__, PutResult)


def written(revision: int) -> PutResult:
    """Return the result of a put that made this revision."""
    # As PutResult(revision, None), which is a call of Python code once more.
    result: PutResult = _new((revision, None))
    return result


def delete_result(response: pb.DeleteRangeResponse) -> DeleteResult:
    """Read the answer of a delete."""
    previous = tuple(key_value(kv) for kv in response.prev_kvs)
    return DeleteResult(response.header.revision, response.deleted, previous)


def range_result(response: pb.RangeResponse) -> RangeResult:
    """Read the answer of a range."""
    kvs = tuple(key_value(kv) for kv in response.kvs)
    return RangeResult(response.header.revision, kvs, response.more, response.count)


def txn_result(response: pb.TxnResponse) -> TxnResult:
    """Read the answer of a transaction."""
    return TxnResult(
        response.header.revision,
        response.succeeded,
        tuple(_operation_result(operation) for operation in response.responses),
    )


def _operation_result(
    response: pb.ResponseOp,
) -> PutResult | DeleteResult | RangeResult | TxnResult:
    kind = response.WhichOneof("response")
    if kind == "response_put":
        return put_result(response.response_put)
    if kind == "response_range":
        return range_result(response.response_range)
    if kind == "response_delete_range":
        return delete_result(response.response_delete_range)
    assert kind == "response_txn", kind
    return txn_result(response.response_txn)
