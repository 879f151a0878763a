"""Clients of the key-value calls, in closed loops; every answer is judged when it comes.

Answers carry the store's revision, which puts all operations in one order: a write stands at its
own revision, a read at that of its header. So linearizability needs no search: each answer must be
what the book of facts has at its revision, and no revision may lie before what was shown to
anybody before the call. Operations with unknown outcome are in the book or are not, at most once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.pb import rpc_pb2
from tests.sim.full.rpc import LOST
from tests.sim.full.truth import Kv, Txn, from_message
from tests.sim.invariants import LINEARIZABLE, REAL_TIME

if TYPE_CHECKING:
    from tests.sim.full.cluster import FullCluster

KV = "/etcdserverpb.KV/"
NOT_APPLIED = frozenset(
    (
        "connection refused",
        "etcdserver: no leader",
        "etcdserver: too many requests",
        "etcdserver: server stopped",
        "etcdserver: mvcc: database space exceeded",
        "etcdserver: requested lease not found",
        "etcdserver: key not found",
        "etcdserver: rpc not supported for learner",
    )
)
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
FUTURE = "etcdserver: mvcc: required revision is a future revision"
UNKNOWN = "etcdserver: request timed out"


class Operation:
    """One call."""

    __slots__ = ("compacted", "floor", "kind", "path", "request", "values")

    def __init__(self, kind: str, path: str, request: Any, values: tuple[bytes, ...] = ()) -> None:
        self.kind = kind
        self.path = path
        self.request = request
        self.values = values
        """Unique values that it stores."""
        self.floor = 0
        """Newest revision that anybody had been shown when it was called."""
        self.compacted = -1
        """Newest compaction that anybody had been told of when it was called."""

    def __str__(self) -> str:
        return f"{self.kind} {str(self.request).strip()!r}"


class KvClient:
    """One closed loop: call, wait for the answer or give up, think, call again."""

    def __init__(self, cluster: FullCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.operation: Operation | None = None
        self.rounds = 0
        self.stopped = False
        self.target = 0
        self.succeeded = 0
        self._kinds = list(cluster.profile.weights)
        self._weights = list(cluster.profile.weights.values())
        self.world.after(self.world.between(0, cluster.profile.think_ns), self._next, 0)

    # the loop

    def _next(self, round_: int) -> None:
        if self.stopped or self.operation is not None or round_ != self.rounds:
            return
        world, cluster = self.world, self.cluster
        self.rounds += 1
        host = cluster.hosts[self.target - 1] if self.target else cluster.choose_host()
        process = host.process
        if process is None:
            world.after(cluster.profile.think_ns + cluster.profile.tick_ns, self._next, self.rounds)
            return
        world.events += 1
        operation = self.operation = self._draw()
        operation.floor = cluster.floor
        operation.compacted = cluster.compact_floor
        call = self.rounds
        if world.lines is not None:
            world.trace(f"client {self.number} at {host.id}: {operation}")
        world.after(cluster.profile.patience_ns, self._give_up, call)

        def answer(code: int, body: bytes | str) -> None:
            if call == self.rounds:
                self._done(operation, code, body)
            elif code and body in NOT_APPLIED:
                cluster.refused_values.update(dict.fromkeys(operation.values))
            elif not code and isinstance(body, bytes):
                # Too late for the client, but it must still be true.
                cluster.judge(operation, body, late=True)

        needs_leader = cluster.profile.needs_leader
        process.server.call(
            operation.path,
            operation.request.SerializeToString(),
            answer,
            needs_leader=needs_leader == 1.0 or world.chance(needs_leader),
        )

    def _done(self, operation: Operation, code: int, body: bytes | str) -> None:
        world, cluster = self.world, self.cluster
        self.operation = None
        self.rounds += 1
        world.events += 1
        pause_ns = world.between(0, 2 * cluster.profile.think_ns)
        if world.lines is not None:
            shown = body if code else f"{len(body)} bytes"
            world.trace(f"client {self.number} is told {code}: {shown}")
        if code == 0:
            assert isinstance(body, bytes)
            self.succeeded += 1
            cluster.judge(operation, body)
        else:
            assert isinstance(body, str)
            pause_ns += cluster.profile.tick_ns
            self._failed(operation, code, body)
        world.after(pause_ns, self._next, self.rounds)

    def _failed(self, operation: Operation, code: int, text: str) -> None:
        cluster = self.cluster
        if text in NOT_APPLIED:
            cluster.world.mark("refused, not applied")
            cluster.refused_values.update(dict.fromkeys(operation.values))
        elif text == COMPACTED:
            cluster.world.mark("refused, compacted")
            self.succeeded += 1
            if cluster.truth.compacted < operation.request.revision:
                cluster.invariants.fail(LINEARIZABLE, f"{operation} is refused: {text}")
        elif text == FUTURE:
            self.succeeded += 1
            if operation.kind != "serializable" and operation.request.revision <= operation.floor:
                cluster.invariants.fail(
                    REAL_TIME, f"{operation} is refused: {text}; {operation.floor} was shown"
                )
        elif code == LOST or text.startswith(UNKNOWN):
            cluster.world.mark("outcome unknown")
        else:
            cluster.invariants.fail(LINEARIZABLE, f"{operation} fails with {code} {text}")

    def _give_up(self, round_: int) -> None:
        if self.operation is not None and round_ == self.rounds:
            self.world.mark("client gave up")
            self.operation = None
            self.rounds += 1
            self.world.after(self.cluster.profile.think_ns, self._next, self.rounds)

    def wake(self) -> None:
        """Go on after `stopped`."""
        self.stopped = False
        self.rounds += 1
        self.world.after(0, self._next, self.rounds)

    def only(self, kind: str) -> None:
        """Ask for nothing else from now on."""
        self._kinds, self._weights = [kind], [1]

    # what is asked

    def _key(self) -> bytes:
        return b"k%02d" % self.world.between(0, self.cluster.profile.keys - 1)

    def _value(self) -> bytes:
        self.cluster.values += 1
        size = self.world.random.choice(self.cluster.profile.value_bytes)
        return b"v%d." % self.cluster.values + b"." * size

    def _range(self) -> tuple[bytes, bytes]:
        key = self._key()
        return self.world.random.choice(
            ((key, b""), (key, b""), (b"k", b"l"), (key, b"k99"), (key, b"\0"))
        )

    def _draw(self) -> Operation:
        [kind] = self.world.random.choices(self._kinds, self._weights)
        return getattr(self, f"_draw_{kind}")()  # type: ignore[no-any-return]

    def _draw_put(self) -> Operation:
        value = self._value()
        request = rpc_pb2.PutRequest(key=self._key(), value=value, prev_kv=self.world.chance(0.5))
        return Operation("put", KV + "Put", request, (value,))

    def _draw_range(self) -> Operation:
        key, end = self._range()
        limit = self.world.random.choice((0, 0, 1, 3))
        request = rpc_pb2.RangeRequest(
            key=key, range_end=end, limit=limit, count_only=self.world.chance(0.1)
        )
        return Operation("range", KV + "Range", request)

    def _draw_serializable(self) -> Operation:
        operation = self._draw_range()
        operation.request.serializable = True
        operation.kind = "serializable"
        return operation

    def _draw_old(self) -> Operation:
        operation = self._draw_range()
        floor = self.cluster.floor
        operation.request.revision = self.world.between(max(1, floor - 40), max(1, floor))
        operation.kind = "old"
        return operation

    def _draw_delete(self) -> Operation:
        key, end = self._range() if self.world.chance(0.3) else (self._key(), b"")
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=self.world.chance(0.5))
        return Operation("delete", KV + "DeleteRange", request)

    def _draw_compact(self) -> Operation:
        floor = self.cluster.floor
        revision = self.world.between(max(1, floor - 30), max(1, floor))
        request = rpc_pb2.CompactionRequest(revision=revision, physical=self.world.chance(0.3))
        return Operation("compact", KV + "Compact", request)

    def _draw_txn(self) -> Operation:
        choice, key = self.world.random.choice, self._key()
        known = self.cluster.truth.now.get(key)
        compare = rpc_pb2.Compare(
            key=key, result=choice((0, 0, 0, 1, 2, 3)), target=choice((0, 1, 2, 3))
        )
        if compare.target == rpc_pb2.Compare.VERSION:
            compare.version = known.version if known and self.world.chance(0.7) else choice((0, 1))
        elif compare.target == rpc_pb2.Compare.CREATE:
            compare.create_revision = known.created if known else 0
        elif compare.target == rpc_pb2.Compare.MOD:
            compare.mod_revision = known.modified if known and self.world.chance(0.8) else 0
        else:
            compare.value = known.value if known else b"v1."
        values: list[bytes] = []
        request = rpc_pb2.TxnRequest(compare=[compare])
        self._branch(request.success, values)
        if self.world.chance(0.5):
            self._branch(request.failure, values)
        else:
            request.failure.add().request_range.key = key
        return Operation("txn", KV + "Txn", request, tuple(values))

    def _branch(self, branch: Any, values: list[bytes]) -> None:
        keys = [b"k%02d" % number for number in range(self.cluster.profile.keys)]
        self.world.random.shuffle(keys)
        for key in keys[: self.world.between(1, 3)]:
            values.append(self._value())
            put = branch.add().request_put
            put.key, put.value, put.prev_kv = key, values[-1], self.world.chance(0.5)
        if self.world.chance(0.5):
            # After the puts: it must see them.
            asked = branch.add().request_range
            asked.key, asked.range_end = b"k", b"l"
        rest = keys[3:]
        if rest and self.world.chance(0.5):
            delete = branch.add().request_delete_range
            delete.key, delete.prev_kv = rest[0], self.world.chance(0.5)


class Judge:
    """Holds answers against the book of facts."""

    def __init__(self, cluster: FullCluster) -> None:
        self._cluster = cluster
        self._truth = cluster.truth
        self._judges = {
            "put": self._put,
            "delete": self._delete,
            "txn": self._txn,
            "compact": self._compact,
            "range": self._range,
            "old": self._range,
            "serializable": self._range,
        }

    def __call__(self, operation: Operation, body: bytes, *, late: bool = False) -> None:
        """Judge one answer; `late`: its client had given up, so it shows nothing to anybody."""
        revision, wrote = self._judges[operation.kind](operation, body)
        cluster = self._cluster
        if revision > self._truth.revision:
            self._wrong(operation, f"it shows revision {revision}, which is yet to come")
        if operation.kind == "serializable":
            return
        if revision < operation.floor + wrote:
            cluster.invariants.fail(
                REAL_TIME,
                f"{operation} stands at {revision}, {operation.floor} was shown before its call",
            )
        if not late:
            cluster.floor = max(cluster.floor, revision)

    def _wrong(self, operation: Operation, text: str) -> None:
        self._cluster.invariants.fail(LINEARIZABLE, f"{operation}: {text}")

    def _same(self, operation: Operation, what: str, got: Any, wanted: Any) -> None:
        if got != wanted:
            self._wrong(operation, f"{what} is {got} and not {wanted}")

    def _put(self, operation: Operation, body: bytes) -> tuple[int, bool]:
        request = operation.request
        reply = rpc_pb2.PutResponse.FromString(body)
        revision = reply.header.revision
        changes = self._truth.changes.get(revision, [])
        self._same(operation, "what it stored", stored(changes), [(request.key, request.value)])
        if changes:
            self._prev(operation, reply, "prev_kv", changes[0].before)
        return revision, True

    def _prev(self, operation: Operation, reply: Any, name: str, before: Kv | None) -> None:
        got = from_message(getattr(reply, name)) if reply.HasField(name) else None
        self._same(operation, name, got, before if operation.request.prev_kv else None)

    def _delete(self, operation: Operation, body: bytes) -> tuple[int, bool]:
        request = operation.request
        reply = rpc_pb2.DeleteRangeResponse.FromString(body)
        revision = reply.header.revision
        wrote = reply.deleted > 0
        found = self._truth.range(request.key, request.range_end, revision - wrote)
        self._same(operation, "deleted", reply.deleted, len(found))
        got = [from_message(kv) for kv in reply.prev_kvs]
        self._same(operation, "prev_kvs", got, found if request.prev_kv else [])
        if wrote:
            changes = self._truth.changes.get(revision, [])
            gone = sorted(one.key for one in changes if one.after is None)
            self._same(operation, "keys gone", gone, [kv.key for kv in found])
        return revision, wrote

    def _txn(self, operation: Operation, body: bytes) -> tuple[int, bool]:
        request = operation.request
        reply = rpc_pb2.TxnResponse.FromString(body)
        revision = reply.header.revision
        wrote = any(
            item.WhichOneof("response") == "response_put"
            or (item.WhichOneof("response") == "response_delete_range"
                and item.response_delete_range.deleted)
            for item in reply.responses
        )  # fmt: skip
        txn = Txn(self._truth, revision - wrote)
        expected = txn.run(request)
        if expected is None:
            self._wrong(operation, "it should have been refused")
            return revision, wrote
        succeeded, results = expected
        self._same(operation, "succeeded", reply.succeeded, succeeded)
        branch = request.success if succeeded else request.failure
        self._same(operation, "responses", len(reply.responses), len(branch))
        for op, item, result in zip(branch, reply.responses, results, strict=True):
            self._txn_item(operation, op, item, result)
        if wrote:
            got = stored(self._truth.changes.get(revision, []))
            self._same(operation, "what it stored", got, stored(txn.changes()))
        return revision, wrote

    def _txn_item(self, operation: Operation, op: Any, item: Any, result: Any) -> None:
        which = op.WhichOneof("request")
        if which == "request_put":
            reply = item.response_put
            got = from_message(reply.prev_kv) if reply.HasField("prev_kv") else None
            self._same(operation, "prev_kv", got, result if op.request_put.prev_kv else None)
        elif which == "request_range":
            got = [from_message(kv) for kv in item.response_range.kvs]
            self._same(operation, "range in it", got, result)
        else:
            self._same(operation, "deleted", item.response_delete_range.deleted, len(result))

    def _compact(self, operation: Operation, body: bytes) -> tuple[int, bool]:
        reply = rpc_pb2.CompactionResponse.FromString(body)
        cluster, revision = self._cluster, operation.request.revision
        if self._truth.compacted < revision:
            self._wrong(operation, f"it is acknowledged; compacted is {self._truth.compacted}")
        cluster.compact_floor = max(cluster.compact_floor, revision)
        cluster.world.mark("compacted by a client")
        # The header of a compaction tells the revision of its apply, as a read's.
        return reply.header.revision, False

    def _range(self, operation: Operation, body: bytes) -> tuple[int, bool]:
        request = operation.request
        reply = rpc_pb2.RangeResponse.FromString(body)
        revision = reply.header.revision
        at = request.revision or revision
        if at < operation.compacted and operation.kind == "old":
            self._wrong(operation, f"{operation.compacted} was compacted before its call")
        found = self._truth.range(request.key, request.range_end, at)
        self._same(operation, "count", reply.count, len(found))
        if request.count_only:
            self._same(operation, "kvs", len(reply.kvs), 0)
        else:
            cut = found[: request.limit] if request.limit else found
            self._same(operation, "kvs", [from_message(kv) for kv in reply.kvs], cut)
            self._same(operation, "more", reply.more, len(cut) < len(found))
        return revision, False


def stored(changes: Any) -> list[tuple[bytes, bytes | None]]:
    """Return keys and values of changes, None for deletions."""
    return [(one.key, None if one.after is None else one.after.value) for one in changes]
