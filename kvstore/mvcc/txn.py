"""Transactions: compares, the checks that can fail, then the operations; in that order always."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvstore.mvcc import keyvalue
from kvstore.mvcc import range as ranges
from kvstore.mvcc.errors import Compacted, FutureRevision, KeyNotFound, LeaseNotFound
from kvstore.mvcc.results import DeleteResult, PutResult, TxnResult
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.mvcc.results import OpResult

_ABSENT = keyvalue.Fields(b"", 0, 0, 0, b"", 0, 0)
_NUMBER_OF: dict[int, tuple[Callable[[keyvalue.Fields], int], str]] = {
    rpc_pb2.Compare.VERSION: (lambda fields: fields.version, "version"),
    rpc_pb2.Compare.CREATE: (lambda fields: fields.create_revision, "create_revision"),
    rpc_pb2.Compare.MOD: (lambda fields: fields.mod_revision, "mod_revision"),
    rpc_pb2.Compare.LEASE: (lambda fields: fields.lease, "lease"),
}


class Writable(ranges.Readable, Protocol):
    """What a transaction needs of the store."""

    def has_lease(self, lease_id: int) -> bool:
        """Tell whether a lease exists."""

    def apply_put(self, request: rpc_pb2.PutRequest) -> bytes | None:
        """Carry out a put that was checked; return the replaced KeyValue if asked for."""

    def apply_delete(self, request: rpc_pb2.DeleteRangeRequest) -> tuple[int, list[bytes]]:
        """Carry out a deletion; return the number of keys, and their KeyValues if asked for."""


class _Plan:
    """A transaction with its branch chosen, and those of the transactions nested in it."""

    __slots__ = ("nested", "ops", "succeeded")

    def __init__(self, store: Writable, request: rpc_pb2.TxnRequest) -> None:
        # Compares see the state before the transaction at every level, so all branches are
        # chosen before anything runs.
        self.succeeded = all(_holds(store, compare) for compare in request.compare)
        self.ops: Sequence[rpc_pb2.RequestOp] = (
            request.success if self.succeeded else request.failure
        )
        self.nested = [
            _Plan(store, op.request_txn)
            for op in self.ops
            if op.WhichOneof("request") == "request_txn"
        ]


def run(store: Writable, request: rpc_pb2.TxnRequest) -> TxnResult:
    """Execute a transaction that `check.check_txn` has passed.

    Raises:
        KeyNotFound, LeaseNotFound, FutureRevision, Compacted: Before the first write, so a
            transaction never applies in part.
    """
    plan = _Plan(store, request)
    # etcd looks at the puts of all levels first, then at the ranges; two faults draw its error.
    _check_puts(store, plan, _Overlay())
    _check_ranges(store, plan)
    return _execute(store, plan)


def _holds(store: Writable, compare: rpc_pb2.Compare) -> bool:
    request = rpc_pb2.RangeRequest(key=compare.key, range_end=compare.range_end)
    records = ranges.read(store, request).kvs
    if not records:
        # Nothing equals the value of an absent key, not even the empty one.
        if compare.target == rpc_pb2.Compare.VALUE:
            return False
        return _compare(compare, _ABSENT)
    return all(_compare(compare, keyvalue.decode(record)) for record in records)


def _compare(compare: rpc_pb2.Compare, fields: keyvalue.Fields) -> bool:
    # A member of the union that does not belong to the target reads as zero or empty, and an
    # unknown target compares as equal, both as in etcd.
    difference = 0
    if compare.target == rpc_pb2.Compare.VALUE:
        difference = (fields.value > compare.value) - (fields.value < compare.value)
    elif compare.target in _NUMBER_OF:
        number_of, name = _NUMBER_OF[compare.target]
        found, wanted = number_of(fields), getattr(compare, name)
        difference = (found > wanted) - (found < wanted)
    if compare.result == rpc_pb2.Compare.EQUAL:
        return difference == 0
    if compare.result == rpc_pb2.Compare.NOT_EQUAL:
        return difference != 0
    if compare.result == rpc_pb2.Compare.GREATER:
        return difference > 0
    if compare.result == rpc_pb2.Compare.LESS:
        return difference < 0
    return True


class _Overlay:
    """What the transaction's own earlier operations do to the presence of keys."""

    def __init__(self) -> None:
        self._changes: list[tuple[bytes, bytes, bool]] = []

    def put(self, key: bytes) -> None:
        self._changes.append((key, key + b"\x00", True))

    def delete(self, key: bytes, end: bytes) -> None:
        end = b"" if end == b"\x00" else end or key + b"\x00"
        self._changes.append((key, end, False))

    def present(self, key: bytes) -> bool | None:
        """Return what the last operation on the key left, None when there was none."""
        for start, end, present in reversed(self._changes):
            if start <= key and (not end or key < end):
                return present
        return None


def _check_puts(store: Writable, plan: _Plan, overlay: _Overlay) -> None:
    nested = iter(plan.nested)
    for op in plan.ops:
        kind = op.WhichOneof("request")
        if kind == "request_put":
            put = op.request_put
            # The presence before the transaction decides, as in etcd; but where etcd's member
            # would panic (the key is deleted by an earlier operation, which the duplicate rule
            # lets through for "from key"), we refuse.
            if (put.ignore_value or put.ignore_lease) and (
                store.index.current(put.key) is None or overlay.present(put.key) is False
            ):
                raise KeyNotFound
            if put.lease and not store.has_lease(put.lease):
                raise LeaseNotFound(put.lease)
            overlay.put(put.key)
        elif kind == "request_delete_range":
            overlay.delete(op.request_delete_range.key, op.request_delete_range.range_end)
        elif kind == "request_txn":
            _check_puts(store, next(nested), overlay)


def _check_ranges(store: Writable, plan: _Plan) -> None:
    nested = iter(plan.nested)
    for op in plan.ops:
        kind = op.WhichOneof("request")
        if kind == "request_range":
            revision = op.request_range.revision
            if revision > store.revision:
                raise FutureRevision(revision, store.revision)
            # Below zero means "now" outside a transaction, but etcd compares it here.
            if revision != 0 and revision < store.compacted:
                raise Compacted(revision, store.compacted)
        elif kind == "request_txn":
            _check_ranges(store, next(nested))


def _execute(store: Writable, plan: _Plan) -> TxnResult:
    nested = iter(plan.nested)
    responses: list[OpResult] = []
    for op in plan.ops:
        kind = op.WhichOneof("request")
        if kind == "request_put":
            prev_kv = store.apply_put(op.request_put)
            responses.append(PutResult(store.revision, prev_kv))
        elif kind == "request_range":
            responses.append(ranges.read(store, op.request_range))
        elif kind == "request_delete_range":
            deleted, prev_kvs = store.apply_delete(op.request_delete_range)
            responses.append(DeleteResult(store.revision, deleted, prev_kvs))
        else:
            responses.append(_execute(store, next(nested)))
    return TxnResult(store.revision, responses, succeeded=plan.succeeded)
