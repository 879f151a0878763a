"""Committed entries to changes and results, operation by operation; no clock, randomness or I/O.

Every member runs this over the same log and must reach the same state, so whatever an operation
depends on is in the entry or in the replicated state. A result is a small tuple whose first item
is the store revision for the response header, or an error of the wire table; only the member that
owes the answer encodes it (`kvstore.apply.responses`).

    PUT                 (revision, previous KeyValue bytes or None)
    DELETE_RANGE        (revision, deleted, previous KeyValue bytes of each if asked for)
    TXN                 (revision, TxnResult)
    COMPACT             (revision,)
    LEASE_GRANT         (revision, id, granted life in seconds)
    LEASE_REVOKE        (revision,)
    LEASE_CHECKPOINT    (revision,)
    ALARM               (revision, [(alarm type, member id), ...])
    CLUSTER_VERSION     (revision,)
    MEMBER_ATTRIBUTES   (revision,)
    IN_TERM             that of the operation inside, or StaleTerm
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from google.protobuf.message import DecodeError

from kvstore.apply import ops as op_kinds
from kvstore.apply.errors import (
    ApplyFailed,
    BadEntry,
    Corrupt,
    MalformedRequest,
    NoSpace,
    RefusedError,
    StaleTerm,
)
from kvstore.apply.ops import decode_batch
from kvstore.lease.errors import LeaseError
from kvstore.mvcc.errors import RequestError
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from kvstore.apply.alarms import Alarms
    from kvstore.apply.members import Members
    from kvstore.lease.lessor import Lessor
    from kvstore.mvcc.store import Store

Result: TypeAlias = tuple[Any, ...] | Exception
"""One of the tuples above, or an error of the wire table."""

_REFUSALS = (RequestError, LeaseError, RefusedError)

_PUT = op_kinds.PUT
_BYTES_ONLY = {bytes}
_NO_PREVIOUS = repeat(None)


class Entry(Protocol):
    """What is needed of a log entry; `kvstore.raft` has the real one."""

    @property
    def index(self) -> int:
        """Position in the log."""

    @property
    def term(self) -> int:
        """Term of the leader that appended it."""

    @property
    def data(self) -> bytes:
        """A batch of `kvstore.apply.ops`; empty for an election's no-op."""


class Applied:
    """The results of one entry, by position."""

    __slots__ = (
        "duration_ns",
        "first_sequence",
        "incarnation",
        "index",
        "kinds",
        "origin",
        "results",
    )

    def __init__(
        self,
        index: int,
        origin: int,
        incarnation: int,
        first_sequence: int,
        results: list[Result],
        kinds: list[int],
    ) -> None:
        self.index = index
        self.origin = origin
        self.incarnation = incarnation
        self.first_sequence = first_sequence
        self.results = results
        """The i-th answers the request with sequence `first_sequence + i` of the origin."""
        self.kinds = kinds
        """Of each operation, that inside for IN_TERM."""
        self.duration_ns = 0
        """Set by who has a clock."""


class Applier:
    """Applies operation batches to the replicated state, in log order."""

    def __init__(self, store: Store, lessor: Lessor, alarms: Alarms, members: Members) -> None:
        self._store = store
        self._lessor = lessor
        self._alarms = alarms
        self._members = members

    def apply(self, entry: Entry) -> Applied:
        """Apply a committed entry of kind NORMAL and return its results.

        Raises:
            FatalError: This member must stop; the text says what to do. Operations before the
                failed one are in the store's buffer but not durable, as only whole entries are.
        """
        if not entry.data:
            return Applied(entry.index, 0, 0, 0, [], [])
        origin, incarnation, first_sequence, decoded = decode_batch(entry.data)
        # Whatever the entry holds. Compiled code checks types in `for`, outside of the `try`.
        ops: tuple[Any, ...] = decoded
        results: list[Result] = []
        append = results.append
        alarms = self._alarms
        restricted = alarms.nospace or alarms.corrupt
        puts = _puts(ops)
        position, end = 0, len(ops)
        while position < end:
            op = ops[position]
            try:
                if puts and not restricted:
                    # Puts in a row at once: every call counts on every member.
                    store = self._store
                    count = store.put_run(puts, position)
                    if count:
                        first = store.revision - count + 1
                        results += zip(range(first, first + count), _NO_PREVIOUS, strict=False)
                        position += count
                        continue
                append(self._apply(op[0], op[1], entry.term))
                restricted = alarms.nospace or alarms.corrupt
            except _REFUSALS as error:
                append(error.with_traceback(None))  # the frames would keep the whole batch alive
            except DecodeError as error:
                append(MalformedRequest(str(error)))
            except Exception as error:
                # It may be no operation at all: whoever wrote the entry was wrong.
                kind = op[0] if isinstance(op, tuple) and op else op
                raise ApplyFailed(entry.index, len(results), kind, error) from error
            position += 1
        if puts:
            return Applied(entry.index, origin, incarnation, first_sequence, results, [_PUT] * end)
        kinds = [op[0] if op[0] != op_kinds.IN_TERM else op[1][8] for op in ops]
        return Applied(entry.index, origin, incarnation, first_sequence, results, kinds)

    def _apply(self, kind: int, payload: bytes, term: int) -> Result:
        store = self._store
        alarms = self._alarms
        if kind == op_kinds.IN_TERM:
            if len(payload) < op_kinds.IN_TERM_HEAD_BYTES:
                raise BadEntry("an operation of a term has no operation inside")
            if int.from_bytes(payload[:8], "big") != term:
                raise StaleTerm
            return self._apply(payload[8], payload[9:], term)
        if alarms.corrupt and kind in _REFUSED_WHEN_CORRUPT:
            raise Corrupt
        if kind == op_kinds.PUT:
            if alarms.nospace:
                rpc_pb2.PutRequest.FromString(payload)  # its error comes first
                raise NoSpace
            return store.put_bytes(payload)
        if kind == op_kinds.TXN:
            txn = rpc_pb2.TxnRequest.FromString(payload)
            if alarms.nospace and has_puts(txn):
                raise NoSpace
            result = store.txn(txn)
            return (result.revision, result)
        if kind == op_kinds.DELETE_RANGE:
            return store.delete_range(rpc_pb2.DeleteRangeRequest.FromString(payload))
        if kind == op_kinds.COMPACT:
            store.compact(rpc_pb2.CompactionRequest.FromString(payload).revision)
            return (store.revision,)
        if kind == op_kinds.LEASE_GRANT:
            grant = rpc_pb2.LeaseGrantRequest.FromString(payload)
            if alarms.nospace:
                raise NoSpace
            lease = self._lessor.grant(grant.ID, grant.TTL)
            return (store.revision, lease.id, lease.ttl_s)
        if kind == op_kinds.LEASE_REVOKE:
            revoke = rpc_pb2.LeaseRevokeRequest.FromString(payload)
            self._lessor.revoke(revoke.ID, store.delete_keys)
            return (store.revision,)
        if kind == op_kinds.LEASE_CHECKPOINT:
            for point in rpc_pb2.LeaseCheckpointRequest.FromString(payload).checkpoints:
                self._lessor.checkpoint(point.ID, point.remaining_TTL)
            return (store.revision,)
        if kind == op_kinds.ALARM:
            return (store.revision, self._alarm(rpc_pb2.AlarmRequest.FromString(payload)))
        if kind == op_kinds.CLUSTER_VERSION:
            self._members.set_cluster_version(payload.decode())
            return (store.revision,)
        if kind == op_kinds.MEMBER_ATTRIBUTES:
            self._members.publish(rpc_pb2.Member.FromString(payload))
            return (store.revision,)
        # A later release wrote it; to skip it would make this member differ from that one.
        raise ValueError(f"operation kind {kind} is unknown to this release; upgrade this member")

    def _alarm(self, request: rpc_pb2.AlarmRequest) -> list[tuple[int, int]]:
        if request.action == rpc_pb2.AlarmRequest.ACTIVATE:
            return self._alarms.activate(request.alarm, request.memberID)
        if request.action == rpc_pb2.AlarmRequest.DEACTIVATE:
            return self._alarms.deactivate(request.alarm, request.memberID)
        return self._alarms.get(request.alarm)


def _puts(ops: tuple[Any, ...]) -> tuple[bytes, ...]:
    """Return the requests of an entry that holds nothing but puts; nothing of any other."""
    try:
        columns = tuple(zip(*ops, strict=False))
    except TypeError:
        return ()  # some operation is none
    is_put_only = (
        len(columns) >= 2
        and columns[0].count(_PUT) == len(ops)
        and set(map(type, columns[1])) == _BYTES_ONLY
    )
    return columns[1] if is_put_only else ()


_REFUSED_WHEN_CORRUPT = frozenset(
    {
        op_kinds.PUT,
        op_kinds.DELETE_RANGE,
        op_kinds.TXN,
        op_kinds.COMPACT,
        op_kinds.LEASE_GRANT,
        op_kinds.LEASE_REVOKE,
    }
)


def has_puts(request: rpc_pb2.TxnRequest) -> bool:
    """Tell whether any branch of a transaction, nested ones included, could store something."""
    for op in (*request.success, *request.failure):
        which = op.WhichOneof("request")
        if which == "request_put" or (which == "request_txn" and has_puts(op.request_txn)):
            return True
    return False
