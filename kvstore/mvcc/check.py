"""Checks of requests that need no store: what the edge refuses before anything is proposed.

The order of the checks is etcd's, since a request with two faults must draw etcd's error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstore.mvcc.errors import (
    DuplicateKey,
    InvalidSort,
    KeyNotFound,
    KeyNotProvided,
    LeaseProvided,
    TooManyOps,
    ValueProvided,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.pb import rpc_pb2

TXN_OPS_MAX: Final = 128
"""etcd's default of --max-txn-ops."""

_ORDER_MAX: Final = 2
_TARGET_MAX: Final = 4


def check_range(request: rpc_pb2.RangeRequest) -> None:
    """Refuse an empty key and unknown sort options.

    Raises:
        KeyNotProvided, InvalidSort: As named.
    """
    if not request.key:
        raise KeyNotProvided
    if not 0 <= request.sort_order <= _ORDER_MAX or not 0 <= request.sort_target <= _TARGET_MAX:
        raise InvalidSort


def check_put(request: rpc_pb2.PutRequest) -> None:
    """Refuse an empty key, and a value or lease beside the flag that ignores it.

    Raises:
        KeyNotProvided, ValueProvided, LeaseProvided: As named.
    """
    if not request.key:
        raise KeyNotProvided
    if request.ignore_value and request.value:
        raise ValueProvided
    if request.ignore_lease and request.lease:
        raise LeaseProvided


def check_delete_range(request: rpc_pb2.DeleteRangeRequest) -> None:
    """Refuse an empty key.

    Raises:
        KeyNotProvided: As named.
    """
    if not request.key:
        raise KeyNotProvided


def check_txn(request: rpc_pb2.TxnRequest, ops_max: int = TXN_OPS_MAX) -> None:
    """Refuse a transaction that is too big, has a faulty operation, or changes a key twice.

    Args:
        request: The transaction.
        ops_max: Bound of compares and of each branch; a nested transaction has what its parent
            leaves of it.

    Raises:
        TooManyOps, KeyNotProvided, KeyNotFound, DuplicateKey, ...: Nothing was changed.
    """
    _check_ops(request, ops_max)
    _check_intervals(request.success)
    _check_intervals(request.failure)


def is_read_only(request: rpc_pb2.TxnRequest) -> bool:
    """Tell whether the transaction can be served without a log entry: ranges only, none nested."""
    return all(
        op.WhichOneof("request") == "request_range"
        for ops in (request.success, request.failure)
        for op in ops
    )


def _check_ops(request: rpc_pb2.TxnRequest, ops_max: int) -> None:
    ops = max(len(request.compare), len(request.success), len(request.failure))
    if ops > ops_max:
        raise TooManyOps
    for compare in request.compare:
        if not compare.key:
            raise KeyNotProvided
    for branch in (request.success, request.failure):
        for op in branch:
            kind = op.WhichOneof("request")
            if kind == "request_put":
                check_put(op.request_put)
            elif kind == "request_range":
                check_range(op.request_range)
            elif kind == "request_delete_range":
                check_delete_range(op.request_delete_range)
            elif kind == "request_txn":
                _check_ops(op.request_txn, ops_max - ops)
            else:
                raise KeyNotFound


class _Deletes:
    """The delete ranges of a branch."""

    def __init__(self) -> None:
        self._points: set[bytes] = set()
        self._ranges: list[tuple[bytes, bytes]] = []

    def add(self, key: bytes, end: bytes) -> None:
        # etcd compares the end as it stands on the wire: "from key" (one zero byte) is an empty
        # interval here, so that "delete everything, put one key" is one valid transaction.
        if not end:
            self._points.add(key)
        elif key < end:
            self._ranges.append((key, end))

    def covers(self, key: bytes) -> bool:
        return key in self._points or any(start <= key < end for start, end in self._ranges)

    def include(self, other: _Deletes) -> None:
        self._points |= other._points
        self._ranges += other._ranges


def _check_intervals(ops: Iterable[rpc_pb2.RequestOp]) -> tuple[set[bytes], _Deletes]:
    """Return the keys put and the ranges deleted in a branch; refuse a put of a key twice.

    The order matters and is etcd's: this level's deletes, then nested transactions one after the
    other, then this level's puts. So a nested put and a later sibling's delete may meet.
    """
    puts: set[bytes] = set()
    deletes = _Deletes()
    for op in ops:
        if op.WhichOneof("request") == "request_delete_range":
            deletes.add(op.request_delete_range.key, op.request_delete_range.range_end)
    for op in ops:
        if op.WhichOneof("request") != "request_txn":
            continue
        then_puts, then_deletes = _check_intervals(op.request_txn.success)
        else_puts, else_deletes = _check_intervals(op.request_txn.failure)
        for key in then_puts:
            if key in puts or deletes.covers(key):
                raise DuplicateKey(key)
        for key in else_puts:
            # Only one branch runs, so both may put the same key.
            if key in puts or deletes.covers(key):
                raise DuplicateKey(key)
        puts |= then_puts
        puts |= else_puts
        deletes.include(then_deletes)
        deletes.include(else_deletes)
    for op in ops:
        if op.WhichOneof("request") == "request_put":
            key = op.request_put.key
            if key in puts or deletes.covers(key):
                raise DuplicateKey(key)
            puts.add(key)
    return puts, deletes
