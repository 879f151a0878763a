"""Random requests over few keys, so that they meet; used by the model and the differential test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    import random

# Few enough that a sorted range never has more than 12 results: up to that many Go's sort is
# stable and ties come out in key order, beyond it their order is accidental.
KEYS = (b"a", b"aa", b"a\0", b"ab", b"b", b"b\xff", b"c", b"\xff", b"\0")
ENDS = (*KEYS, b"\0", b"\0", b"z", b"\xff\xff")
LEASES = (7, 8)
NO_LEASE = 99


class Source:
    """Draws requests; revisions lie around those that the store has."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.current = 1
        self.compacted = -1

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def end(self) -> bytes:
        return self.random.choice(ENDS)

    def revision(self) -> int:
        draw = self.random.random()
        if draw < 0.5:
            return 0
        if draw < 0.6:
            return self.compacted + self.random.randint(-2, 2)
        if draw < 0.65:
            return self.current + self.random.randint(-1, 2)
        return self.random.randint(max(1, self.compacted), self.current)

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def empty_or(self, key: bytes) -> bytes:
        return b"" if self.maybe(0.01) else key

    def put(self, *, ignores: bool = True) -> rpc_pb2.PutRequest:
        request = rpc_pb2.PutRequest(key=self.empty_or(self.key()), prev_kv=self.maybe(0.3))
        if ignores:
            request.ignore_value = self.maybe(0.1)
            request.ignore_lease = self.maybe(0.1)
        if not request.ignore_value or self.maybe(0.1):
            request.value = self.random.choice((b"", b"v", b"w", b"x" * 200, b"\0\xff"))
        if not request.ignore_lease or self.maybe(0.1):
            request.lease = self.random.choice((0, 0, 0, 0, 0, *LEASES, *LEASES, NO_LEASE))
        return request

    def delete(self, *, from_key: bool = True) -> rpc_pb2.DeleteRangeRequest:
        request = rpc_pb2.DeleteRangeRequest(key=self.empty_or(self.key()), prev_kv=self.maybe(0.3))
        if self.maybe(0.4):
            end = self.end()
            request.range_end = b"z" if end == b"\0" and not from_key else end
        return request

    def range(self, *, revision: bool = True) -> rpc_pb2.RangeRequest:
        request = rpc_pb2.RangeRequest(key=self.empty_or(self.key()))
        if self.maybe(0.7):
            request.range_end = self.end()
        if revision:
            request.revision = self.revision()
        if self.maybe(0.4):
            request.limit = self.random.randint(-1, 5)
        if self.maybe(0.4):
            request.sort_order = self.random.randint(0, 2)
            request.sort_target = self.random.randint(0, 4)
        request.keys_only = self.maybe(0.15)
        request.count_only = self.maybe(0.15)
        if self.maybe(0.2):
            name = self.random.choice(
                (
                    "min_mod_revision",
                    "max_mod_revision",
                    "min_create_revision",
                    "max_create_revision",
                )
            )
            setattr(request, name, self.random.randint(-1, self.current))
        return request

    def compare(self) -> rpc_pb2.Compare:
        compare = rpc_pb2.Compare(
            key=self.empty_or(self.key()),
            result=self.random.randint(0, 3),
            target=self.random.randint(0, 4),
        )
        if self.maybe(0.3):
            compare.range_end = self.end()
        # Now and then a member of the union that does not belong to the target.
        target = compare.target if self.maybe(0.95) else self.random.randint(0, 4)
        if target == rpc_pb2.Compare.VERSION:
            compare.version = self.random.randint(0, 3)
        elif target == rpc_pb2.Compare.CREATE:
            compare.create_revision = self.random.choice((0, self.random.randint(0, self.current)))
        elif target == rpc_pb2.Compare.MOD:
            compare.mod_revision = self.random.choice((0, self.random.randint(0, self.current)))
        elif target == rpc_pb2.Compare.VALUE:
            compare.value = self.random.choice((b"", b"v", b"w"))
        else:
            compare.lease = self.random.choice((0, 7, 8))
        return compare

    def txn(self) -> rpc_pb2.TxnRequest:
        # A put with ignore_* after a "from key" deletion in one transaction ends an etcd member
        # with a panic, so a transaction has one or the other.
        return self._txn(depth=0, ignores=self.maybe(0.5))

    def _txn(self, *, depth: int, ignores: bool) -> rpc_pb2.TxnRequest:
        request = rpc_pb2.TxnRequest(
            compare=[self.compare() for _ in range(self.random.choice((0, 0, 1, 1, 2)))]
        )
        for branch in (request.success, request.failure):
            for _ in range(self.random.choice((0, 1, 1, 2, 3))):
                branch.append(self._op(depth=depth, ignores=ignores))
        return request

    def _op(self, *, depth: int, ignores: bool) -> rpc_pb2.RequestOp:
        draw = self.random.random()
        if draw < 0.01:
            return rpc_pb2.RequestOp()
        if draw < 0.4:
            return rpc_pb2.RequestOp(request_put=self.put(ignores=ignores))
        if draw < 0.6:
            return rpc_pb2.RequestOp(request_delete_range=self.delete(from_key=not ignores))
        if draw < 0.8 or depth == 2:
            return rpc_pb2.RequestOp(request_range=self.range(revision=self.maybe(0.3)))
        return rpc_pb2.RequestOp(request_txn=self._txn(depth=depth + 1, ignores=ignores))

    def compaction(self) -> rpc_pb2.CompactionRequest:
        draw = self.random.random()
        if draw < 0.3:
            revision = self.compacted + self.random.randint(-1, 1)
        elif draw < 0.4:
            revision = self.current + self.random.randint(0, 1)
        else:
            low = max(0, self.compacted)
            revision = self.random.randint(low, low + (self.current - low) // 2)
        return rpc_pb2.CompactionRequest(revision=revision, physical=True)
