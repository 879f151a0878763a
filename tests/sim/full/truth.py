"""The book of facts: what the log did to the store, and an independent model of what it should do.

The first member that applies an entry writes here; `Invariants.applied` has every other agree with
it. The model knows etcd's rules and none of the product's code: versions, revisions, deletions,
transactions, leases, compaction. Whatever a client or a watcher saw is judged against it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

from kvstore.apply import ops
from kvstore.mvcc.events import DELETE, Event
from kvstore.pb import kv_pb2, rpc_pb2
from tests.sim.invariants import Invariants

MODEL = "the state follows etcd's rules"
ONE_BY_ONE = "revisions grow one by one"
UNIQUE = "an operation is applied at most once"
LEASE_KEYS = "a lease takes its keys in one revision"


class Kv(NamedTuple):
    """A key at one revision."""

    key: bytes
    created: int
    modified: int
    version: int
    value: bytes
    lease: int

    def message(self) -> kv_pb2.KeyValue:
        return kv_pb2.KeyValue(
            key=self.key,
            create_revision=self.created,
            mod_revision=self.modified,
            version=self.version,
            value=self.value,
            lease=self.lease,
        )


def from_message(kv: kv_pb2.KeyValue) -> Kv:
    return Kv(kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)


class Change(NamedTuple):
    """One event."""

    key: bytes
    after: Kv | None
    """None: deleted."""
    before: Kv | None
    """As of the revision before."""


class Truth:
    """One run's facts."""

    def __init__(self, invariants: Invariants) -> None:
        self._invariants = invariants
        self.revision = 1
        self.compacted = -1
        self.now: dict[bytes, Kv] = {}
        self.changes: dict[int, list[Change]] = {}
        self.history: dict[bytes, list[tuple[int, Kv | None]]] = {}
        """By key: the revisions that changed it, and what was there from then on."""
        self.values: dict[bytes, int] = {}
        """By value, each of which is unique: the revision that stored it."""
        self.leases: dict[int, int] = {}
        """Leases that exist: id to granted seconds."""
        self.ended: dict[int, tuple[int, int]] = {}
        """Leases that were: id to the world's time and revision of their end."""
        self.revisions_at: dict[int, int] = {}
        """By log index: the store's revision after it."""

    # writing, by the first member that applies an entry

    def entry(self, index: int, term: int, data: bytes, events: list[Any], now_ns: int) -> None:
        """Check and keep what one entry did: `events` are the store's revisions."""
        expected = self.revision
        made: dict[int, list[Event]] = {}
        for revision, changes in events:
            expected += 1
            if revision != expected:
                self._fail(ONE_BY_ONE, f"entry {index} makes revision {revision}, not {expected}")
            made[revision] = changes
        if data:
            for kind, payload, *_ in ops.decode_batch(data)[3]:
                self._operation(kind, payload, term, made, now_ns, index)
        if made:
            self._fail(MODEL, f"entry {index} changes {list(made)} and has no operation for it")
        self.revisions_at[index] = self.revision

    def _operation(
        self,
        kind: int,
        payload: bytes,
        term: int,
        made: dict[int, list[Event]],
        now_ns: int,
        index: int,
    ) -> None:
        if kind == ops.IN_TERM:
            if int.from_bytes(payload[:8], "big") != term:
                return
            kind, payload = payload[8], payload[9:]
        changes: list[Change] | None = None
        if kind == ops.PUT:
            put = rpc_pb2.PutRequest.FromString(payload)
            txn = Txn(self)
            if txn.put(put) is not None:
                changes = txn.changes()
        elif kind == ops.DELETE_RANGE:
            txn = Txn(self)
            txn.delete(rpc_pb2.DeleteRangeRequest.FromString(payload))
            changes = txn.changes()
        elif kind == ops.TXN:
            txn = Txn(self)
            if txn.run(rpc_pb2.TxnRequest.FromString(payload)) is not None:
                changes = txn.changes()
        elif kind == ops.COMPACT:
            revision = rpc_pb2.CompactionRequest.FromString(payload).revision
            if self.compacted < revision <= self.revision:
                self.compacted = revision
        elif kind == ops.LEASE_GRANT:
            grant = rpc_pb2.LeaseGrantRequest.FromString(payload)
            if grant.ID not in self.leases:
                self.leases[grant.ID] = grant.TTL
        elif kind == ops.LEASE_REVOKE:
            lease_id = rpc_pb2.LeaseRevokeRequest.FromString(payload).ID
            if self.leases.pop(lease_id, None) is not None:
                txn = Txn(self)
                for kv in [kv for kv in self.now.values() if kv.lease == lease_id]:
                    txn.remove(kv.key)
                changes = txn.changes()
                self.ended[lease_id] = (now_ns, self.revision + bool(changes))
        if changes:
            self._agree(changes, made, index, kind)

    def _agree(
        self, changes: list[Change], made: dict[int, list[Event]], index: int, kind: int
    ) -> None:
        revision = self.revision = self.revision + 1
        events = made.pop(revision, None)
        if events is None:
            name = LEASE_KEYS if kind == ops.LEASE_REVOKE else MODEL
            self._fail(name, f"entry {index} should change {[one.key for one in changes]}")
            return
        found = []
        for event in events:
            kv = kv_pb2.KeyValue.FromString(event.kv)
            found.append((event.key, None if event.kind == DELETE else from_message(kv)))
            if event.kind == DELETE and kv.mod_revision != revision:
                self._fail(MODEL, f"a deletion at {revision} says {kv.mod_revision}")
        wanted = [(one.key, one.after) for one in changes]
        if kind == ops.LEASE_REVOKE or kind == ops.DELETE_RANGE:
            # The order within a deletion is the index's matter.
            found.sort(key=lambda item: item[0])
            wanted.sort(key=lambda item: item[0])
        if found != wanted:
            name = LEASE_KEYS if kind == ops.LEASE_REVOKE else MODEL
            self._fail(name, f"revision {revision} (entry {index}): {found} and not {wanted}")
        self.changes[revision] = changes
        for change in changes:
            self.history.setdefault(change.key, []).append((revision, change.after))
            if change.after is None:
                self.now.pop(change.key, None)
                continue
            self.now[change.key] = change.after
            if not change.after.value.startswith(b"v"):
                continue  # not of the simulator's own clients, who never store one twice
            earlier = self.values.setdefault(change.after.value, revision)
            if earlier != revision:
                self._fail(
                    UNIQUE, f"{change.after.value!r} is stored at {earlier} and at {revision}"
                )

    def _fail(self, name: str, text: str) -> None:
        self._invariants.fail(name, text)

    # reading

    def at(self, key: bytes, revision: int) -> Kv | None:
        """Return a key as of a revision."""
        history = self.history.get(key, [])
        position = bisect_right(history, revision, key=lambda item: item[0])
        return history[position - 1][1] if position else None

    def range(self, key: bytes, end: bytes, revision: int) -> list[Kv]:
        """Return the keys of an etcd range as of a revision, in order."""
        if not end:
            kv = self.at(key, revision)
            return [] if kv is None else [kv]
        found = [
            self.at(one, revision)
            for one in sorted(self.history)
            if one >= key and (end == b"\0" or one < end)
        ]
        return [kv for kv in found if kv is not None]


class Txn:
    """A transaction on the model, at a revision's end."""

    def __init__(self, truth: Truth, revision: int | None = None) -> None:
        self.truth = truth
        self.before = truth.revision if revision is None else revision
        self._new: dict[bytes, Kv | None] = {}
        self._order: list[tuple[bytes, Kv | None]] = []

    def get(self, key: bytes) -> Kv | None:
        if key in self._new:
            return self._new[key]
        return self.truth.at(key, self.before)

    def keys(self, key: bytes, end: bytes) -> list[Kv]:
        if not end:
            kv = self.get(key)
            return [] if kv is None else [kv]
        names = sorted({*self.truth.history, *self._new})
        found = [self.get(one) for one in names if one >= key and (end == b"\0" or one < end)]
        return [kv for kv in found if kv is not None]

    def put(self, request: rpc_pb2.PutRequest) -> Kv | None:
        """Put; None when it is refused."""
        if request.lease and request.lease not in self.truth.leases:
            return None
        old = self.get(request.key)
        if old is None and (request.ignore_value or request.ignore_lease):
            return None
        value = old.value if old is not None and request.ignore_value else request.value
        lease = old.lease if old is not None and request.ignore_lease else request.lease
        revision = self.before + 1
        created, version = (revision, 1) if old is None else (old.created, old.version + 1)
        kv = Kv(request.key, created, revision, version, value, lease)
        self._set(request.key, kv)
        return kv

    def remove(self, key: bytes) -> None:
        self._set(key, None)

    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> list[Kv]:
        found = self.keys(request.key, request.range_end)
        for kv in found:
            self.remove(kv.key)
        return found

    def run(self, request: rpc_pb2.TxnRequest) -> tuple[bool, list[Any]] | None:
        """Run; returns what happened, or None when it is refused as a whole."""
        succeeded = all(self._holds(compare) for compare in request.compare)
        branch = request.success if succeeded else request.failure
        if not self._leases_exist(branch):
            return None
        results: list[Any] = []
        for op in branch:
            which = op.WhichOneof("request")
            if which == "request_put":
                old = self.get(op.request_put.key)
                if self.put(op.request_put) is None:
                    return None
                results.append(old)
            elif which == "request_delete_range":
                results.append(self.delete(op.request_delete_range))
            elif which == "request_txn":
                inner = self.run(op.request_txn)
                if inner is None:
                    return None
                results.append(inner)
            else:
                results.append(self.keys(op.request_range.key, op.request_range.range_end))
        return succeeded, results

    def _leases_exist(self, branch: Iterable[rpc_pb2.RequestOp]) -> bool:
        return all(
            op.WhichOneof("request") != "request_put"
            or not op.request_put.lease
            or op.request_put.lease in self.truth.leases
            for op in branch
        )

    def _holds(self, compare: rpc_pb2.Compare) -> bool:
        # Decided on the state before the outermost transaction.
        if not compare.range_end:
            return self._holds_for(compare, self.truth.at(compare.key, self.before))
        found = self.truth.range(compare.key, compare.range_end, self.before)
        return all(self._holds_for(compare, kv) for kv in found or [None])

    def _holds_for(self, compare: rpc_pb2.Compare, kv: Kv | None) -> bool:
        left: Any
        right: Any
        if compare.target == rpc_pb2.Compare.VERSION:
            left, right = kv.version if kv else 0, compare.version
        elif compare.target == rpc_pb2.Compare.CREATE:
            left, right = kv.created if kv else 0, compare.create_revision
        elif compare.target == rpc_pb2.Compare.MOD:
            left, right = kv.modified if kv else 0, compare.mod_revision
        else:
            if kv is None:
                return False
            left, right = kv.value, compare.value
        result = compare.result
        if result == rpc_pb2.Compare.EQUAL:
            return bool(left == right)
        if result == rpc_pb2.Compare.NOT_EQUAL:
            return bool(left != right)
        return bool(left > right) if result == rpc_pb2.Compare.GREATER else bool(left < right)

    def _set(self, key: bytes, kv: Kv | None) -> None:
        self._new[key] = kv
        self._order.append((key, kv))

    def changes(self) -> list[Change]:
        """Return the events in order."""
        return [Change(key, kv, self.truth.at(key, self.before)) for key, kv in self._order]
