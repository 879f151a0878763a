"""Building transactions: conditions that read as Python, operations, a builder; sends nothing.

A transaction is sent by the client's `commit`, reached through `AsyncClient.txn()`:

    result = await (
        client.txn()
        .when(compare(b"lock").version == 0)
        .then(Op.put(b"lock", b"me"))
        .otherwise(Op.get(b"lock"))
        .commit()
    )
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, NoReturn, TypeVar

from kvstore.client.keys import range_of
from kvstore.client.types import SortOrder, SortTarget, TxnResult
from kvstore.pb import rpc_pb2 as pb

_TARGETS: dict[str, pb.Compare.CompareTarget] = {
    "version": pb.Compare.VERSION,
    "create_revision": pb.Compare.CREATE,
    "mod_revision": pb.Compare.MOD,
    "value": pb.Compare.VALUE,
    "lease": pb.Compare.LEASE,
}

Operand = TypeVar("Operand", int, bytes)


class Comparison:
    """One condition of a transaction. Made by `compare`, used in `Txn.when`."""

    __slots__ = ("message",)

    def __init__(self, message: pb.Compare) -> None:
        self.message = message

    def __bool__(self) -> NoReturn:
        # `a == 1 and b == 2` would silently drop the first condition.
        raise TypeError("a comparison is decided by the server: pass it to when(), one by one")


class Subject(Generic[Operand]):
    """A property of a key to compare with ==, !=, < or >; the API has no other relation."""

    __slots__ = ("_key", "_range_end", "_target")

    def __init__(self, key: bytes, range_end: bytes, target: str) -> None:
        self._key = key
        self._range_end = range_end
        self._target = target

    def _compare(self, result: pb.Compare.CompareResult, operand: Operand) -> Comparison:
        message = pb.Compare(
            result=result, target=_TARGETS[self._target], key=self._key, range_end=self._range_end
        )
        setattr(message, self._target, operand)
        return Comparison(message)

    def __eq__(self, operand: Operand) -> Comparison:  # type: ignore[override]
        return self._compare(pb.Compare.EQUAL, operand)

    def __ne__(self, operand: Operand) -> Comparison:  # type: ignore[override]
        return self._compare(pb.Compare.NOT_EQUAL, operand)

    def __lt__(self, operand: Operand) -> Comparison:
        return self._compare(pb.Compare.LESS, operand)

    def __gt__(self, operand: Operand) -> Comparison:
        return self._compare(pb.Compare.GREATER, operand)

    __hash__ = None  # type: ignore[assignment]


class Compared:
    """The properties of a key, or of every key in a range, that a condition can look at."""

    __slots__ = ("_key", "_range_end")

    def __init__(self, key: bytes, range_end: bytes) -> None:
        self._key = key
        self._range_end = range_end

    @property
    def value(self) -> Subject[bytes]:
        """The value. An absent key fails every comparison of values, also !=."""
        return Subject(self._key, self._range_end, "value")

    @property
    def version(self) -> Subject[int]:
        """Number of puts since creation; 0 for an absent key."""
        return Subject(self._key, self._range_end, "version")

    @property
    def create_revision(self) -> Subject[int]:
        """Revision that created the key; 0 for an absent key."""
        return Subject(self._key, self._range_end, "create_revision")

    @property
    def mod_revision(self) -> Subject[int]:
        """Revision that last changed the key; 0 for an absent key."""
        return Subject(self._key, self._range_end, "mod_revision")

    @property
    def lease(self) -> Subject[int]:
        """Lease the key is attached to; 0 for none."""
        return Subject(self._key, self._range_end, "lease")


def compare(key: bytes, range_end: bytes = b"", *, prefix: bool = False) -> Compared:
    """Name the key, or the keys, a condition is about; every key of a range must satisfy it.

    All conditions of a transaction are decided on the state before it.
    """
    return Compared(*range_of(key, range_end, prefix=prefix))


class Op:
    """One operation of a transaction. Operations run in order and see the earlier ones' writes."""

    __slots__ = ("is_write", "message")

    def __init__(self, message: pb.RequestOp, *, is_write: bool) -> None:
        self.message = message
        self.is_write = is_write

    @classmethod
    def put(
        cls,
        key: bytes,
        value: bytes,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> Op:
        """Store a value; the arguments are those of `AsyncClient.put`."""
        request = pb.PutRequest(
            key=key,
            value=value,
            lease=lease,
            prev_kv=prev_kv,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )
        return cls(pb.RequestOp(request_put=request), is_write=True)

    @classmethod
    def get(
        cls,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        limit: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        sort_target: SortTarget = "key",
        sort_order: SortOrder = "none",
        max_create_revision: int = 0,
    ) -> Op:
        """Read a key or a range; the arguments are those of `AsyncClient.range`."""
        first, end = range_of(key, range_end, prefix=prefix)
        request = pb.RangeRequest(
            key=first,
            range_end=end,
            limit=limit,
            keys_only=keys_only,
            count_only=count_only,
            sort_target=sort_target.upper(),
            sort_order=sort_order.upper(),
            max_create_revision=max_create_revision,
        )
        return cls(pb.RequestOp(request_range=request), is_write=False)

    @classmethod
    def delete(
        cls, key: bytes, range_end: bytes = b"", *, prefix: bool = False, prev_kv: bool = False
    ) -> Op:
        """Delete a key or a range; the arguments are those of `AsyncClient.delete`."""
        first, end = range_of(key, range_end, prefix=prefix)
        request = pb.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv)
        return cls(pb.RequestOp(request_delete_range=request), is_write=True)

    @classmethod
    def txn(cls, txn: Txn) -> Op:
        """Nest a transaction; its conditions too are decided on the state before the outermost."""
        return cls(pb.RequestOp(request_txn=txn.message), is_write=txn.is_write)


Commit = Callable[["Txn", float | None], Coroutine[Any, Any, TxnResult]]


class Txn:
    """A transaction under construction: conditions, and what to do when they hold or do not.

    At most 128 conditions and 128 operations a branch (the server's --max-txn-ops), and a branch
    may change each key once.
    """

    def __init__(self, commit: Commit | None = None) -> None:
        self.message = pb.TxnRequest()
        self.is_write = False
        """False while it only reads: then a lost answer is simply asked for again."""
        self._commit = commit

    def when(self, *comparisons: Comparison) -> Txn:
        """Add conditions; all must hold for the `then` branch. None at all always hold."""
        self.message.compare.extend(comparison.message for comparison in comparisons)
        return self

    def then(self, *operations: Op) -> Txn:
        """Add operations for when every condition holds."""
        self.message.success.extend(operation.message for operation in operations)
        self.is_write = self.is_write or any(operation.is_write for operation in operations)
        return self

    def otherwise(self, *operations: Op) -> Txn:
        """Add operations for when some condition does not hold."""
        self.message.failure.extend(operation.message for operation in operations)
        self.is_write = self.is_write or any(operation.is_write for operation in operations)
        return self

    async def commit(self, *, timeout_s: float | None = None) -> TxnResult:
        """Run it, whole or not at all, in one revision, and wait until a majority holds it.

        Args:
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Returns:
            Which branch ran, and the answers of its operations in order.

        Raises:
            RequestError: Too many operations, a key changed twice, an empty key, a lease that has
                ended ... Nothing was written.
            NoLeaderError, UnreachableError: Nothing was written; safe to retry.
            OutcomeUnknownError: The connection broke after sending. It may have been applied,
                whole. A transaction that only reads is repeated instead.

        Source: etcd v3 KV.Txn (proto/rpc.proto).
        """
        if self._commit is None:
            raise TypeError("a nested transaction is committed by the one around it")
        return await self._commit(self, timeout_s)
