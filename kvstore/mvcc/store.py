"""The store: revisions of keys over a write buffer and a backend; no clock, socket or thread.

`kvstore.apply` calls the changes in log order, and they come out the same on every member. The
node moves batches to the storage thread, calls `purge` in idle moments and `take_events` after each
entry.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol

from kvstore.mvcc import keyvalue, revision, txn
from kvstore.mvcc import range as ranges
from kvstore.mvcc.buffer import KEY_TABLE, Generation, WriteBuffer
from kvstore.mvcc.check import TXN_OPS_MAX, check_delete_range, check_put, check_txn
from kvstore.mvcc.compact import Purge
from kvstore.mvcc.errors import Compacted, FutureRevision, KeyNotFound, LeaseNotFound
from kvstore.mvcc.events import DELETE, PUT, Event, Revision, event_of, new_event
from kvstore.mvcc.hash import HashSlices
from kvstore.mvcc.keyvalue import encode, encode_parts, plain_put
from kvstore.mvcc.marks import AppliedMark, Marks
from kvstore.mvcc.rebuild import rebuild
from kvstore.mvcc.revision import pack_fields
from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.mvcc.results import RangeResult, TxnResult
    from kvstore.ports import Backend, Change, Table


class LeaseBook(Protocol):
    """What the store asks and tells of leases; `kvstore.lease` implements it."""

    def exists(self, lease_id: int) -> bool:
        """Tell whether the lease is granted and not revoked."""

    def attach(self, lease_id: int, key: bytes) -> None:
        """Note that the key ends with the lease."""

    def detach(self, lease_id: int, key: bytes) -> None:
        """Note that the key does not end with the lease any more."""


class Batch:
    """A sealed write buffer on its way to the backend.

    Run `backend.commit(batch.changes(), batch.puts)` on the storage thread, then
    `store.committed(batch)` on the loop.
    """

    __slots__ = ("_generation", "applied", "puts", "records", "size_bytes")

    def __init__(self, generation: Generation, applied: AppliedMark) -> None:
        self._generation = generation

        self.applied = applied
        """The end of the last entry whose changes are in the batch."""

        self.puts = generation.records
        """Key-values by revision key, in their order."""

        self.records = len(generation.records) + len(generation.deleted) + len(generation.others)
        self.size_bytes = generation.size_bytes

    def changes(self) -> list[Change]:
        """Return the other changes, which come before the puts; on the storage thread."""
        return self._generation.changes()


class Store:
    """Keys with their revisions.

    Building one reads the whole `key` table (about 2 s for a million records) and calls
    `leases.attach` for every live key that has a lease. After a snapshot was installed build a new
    one over the new backend.

    Args:
        backend: Holds what is durable. The store never commits itself.
        leases: Asked by puts, told of attached keys.
        txn_ops_max: Bound of compares and operations in a transaction; must be the same on every
            member, since it decides what a log entry does.

    Raises:
        StorageError: The stored data is damaged or of a newer format.
    """

    def __init__(
        self, backend: Backend, *, leases: LeaseBook, txn_ops_max: int = TXN_OPS_MAX
    ) -> None:
        self.txn_ops_max = txn_ops_max
        self.buffer = WriteBuffer(backend)
        self._leases = leases
        self._marks = Marks.load(backend)

        self.applied: AppliedMark = self._marks.applied
        """The mark of the last sealed batch; at start, of what the backend holds."""

        rebuilt = rebuild(backend.scan(KEY_TABLE))
        self.index = rebuilt.index
        self._lease_of = rebuilt.leases
        for key, lease_id in rebuilt.leases.items():
            leases.attach(lease_id, key)

        self.compacted = self._marks.scheduled
        """The last compaction revision, -1 before the first. It is still readable."""

        self.puts = self.deletes = self.txns = 0
        """Requests carried out since this object exists, those inside transactions too."""

        self.revision = max(1, rebuilt.revision, self.compacted)
        """The current revision, 1 for an empty store.

        Inside a transaction it moves with the first change, as headers in its replies do.
        """

        self.watched = True
        """Whether anybody takes events. `put_run` makes none for nobody; all else does."""

        self._events: list[Revision] = []
        self._txn_events: list[Event] = []
        self._txn_revision = 0
        self._purge: Purge | None = None
        self.purged_records = 0
        """Removed by compactions, since the store was opened."""
        self._pins = 0
        """Readers that need compacted revisions to stay; the purge waits for them."""

    # changes, in log order

    def put(self, request: rpc_pb2.PutRequest) -> tuple[int, bytes | None]:
        """Set a key; return the revision, and the replaced KeyValue bytes if `prev_kv` is set.

        Raises:
            KeyNotProvided, ValueProvided, LeaseProvided, LeaseNotFound, KeyNotFound: Nothing was
                changed.
        """
        key = request.key
        lease_id = request.lease
        plain = not (request.prev_kv or request.ignore_value or request.ignore_lease)
        if not plain or not key:
            check_put(request)
        if lease_id and not self._leases.exists(lease_id):
            raise LeaseNotFound(lease_id)
        main = self.revision + 1
        events: list[Event] = []
        prev_kv = None
        if plain:
            self._store(main, events, key, request.value, lease_id)
        else:
            if (request.ignore_value or request.ignore_lease) and self.index.current(key) is None:
                raise KeyNotFound
            prev_kv = self._put(main, events, request)
        self._events.append((main, events))
        self.revision = main
        self.puts += 1
        return main, prev_kv

    def put_bytes(self, request: bytes) -> tuple[int, bytes | None]:
        """Carry out an encoded PutRequest, as `put`.

        A plain one, as nearly all are, is read and stored without a message object: its fields are
        those of the record but for a tag.

        Raises:
            google.protobuf.message.DecodeError: The bytes are no PutRequest.
            RequestError: As of `put`.
        """
        key_end = plain_put(request)
        if not key_end:
            return self.put(rpc_pb2.PutRequest.FromString(request))
        key = request[2:key_end]
        main = self.revision + 1
        revision_key = pack_fields(main, b"_", 0)
        created, version = self.index.put(key, main, revision_key)
        record = encode_parts(request[:key_end], created, main, version, request[key_end + 1 :])
        self.buffer.put(revision_key, record)
        if key in self._lease_of:
            self._move_lease(key, 0)
        self._events.append((main, [new_event((PUT, key, record, main))]))
        self.revision = main
        self.puts += 1
        return main, None

    def put_run(self, requests: Sequence[bytes], start: int) -> int:
        """Carry out encoded PutRequests, from a place on, as `put_bytes` each but in one go.

        Most entries are nothing but plain puts: what is looked up and called once for all of them
        is a third of what each costs alone.

        Returns:
            How many there were before the first that is not plain, or the end. They have made as
            many revisions, up to the current one, and returned no replaced KeyValue.
        """
        put = self.index.put
        lease_of = self._lease_of
        live = self.buffer.live
        records, add = live.records, live.order.append
        events = self._events if self.watched else None
        main = self.revision
        size_bytes = 0
        for request in islice(requests, start, None):
            key_end = plain_put(request)
            if not key_end:
                break
            main += 1
            key = request[2:key_end]
            revision_key = pack_fields(main, b"_", 0)
            created, version = put(key, main, revision_key)
            record = encode_parts(request[:key_end], created, main, version, request[key_end + 1 :])
            records[revision_key] = record
            add(revision_key)
            size_bytes += len(record)
            if key in lease_of:
                self._move_lease(key, 0)
            if events is not None:
                events.append((main, [new_event((PUT, key, record, main))]))
        count = main - self.revision
        live.size_bytes += size_bytes + count * revision.KEY_BYTES
        self.revision = main
        self.puts += count
        return count

    def delete_range(self, request: rpc_pb2.DeleteRangeRequest) -> tuple[int, int, list[bytes]]:
        """Delete a range; return the revision, the number of keys, and their KeyValues if asked.

        The revision does not move when there was nothing to delete.

        Raises:
            KeyNotProvided: Nothing was changed.
        """
        check_delete_range(request)
        events: list[Event] = []
        deleted, prev_kvs = self._delete_range(self.revision + 1, events, request)
        self.deletes += 1
        self._finish(events)
        return self.revision, deleted, prev_kvs

    def delete_keys(self, keys: Iterable[bytes]) -> int:
        """Delete those of the keys that exist, in the order given, in one revision; return it.

        For a lease's end: the caller sorts the keys.
        """
        events: list[Event] = []
        main = self.revision + 1
        for key in keys:
            if self.index.current(key) is not None:
                revision_key = revision.pack(main, len(events))
                self.index.delete(key, revision_key)
                self._bury(main, events, key)
        self._finish(events)
        return self.revision

    def txn(self, request: rpc_pb2.TxnRequest) -> TxnResult:
        """Execute a transaction, all in one revision.

        Also for read-only ones, which need no log entry (`check.is_read_only`).

        Raises:
            RequestError: One of its tree; nothing was changed.
        """
        check_txn(request, self.txn_ops_max)
        events: list[Event] = []
        self._txn_events = events
        self._txn_revision = self.revision + 1
        result = txn.run(self, request)
        self.txns += 1
        self._finish(events)
        return result

    # the operations of a running transaction, for `kvstore.mvcc.txn`

    def has_lease(self, lease_id: int) -> bool:
        """Tell whether a lease exists."""
        return self._leases.exists(lease_id)

    def apply_put(self, request: rpc_pb2.PutRequest) -> bytes | None:
        """Carry out a put that was checked."""
        self.puts += 1
        prev_kv = self._put(self._txn_revision, self._txn_events, request)
        self.revision = self._txn_revision
        return prev_kv

    def apply_delete(self, request: rpc_pb2.DeleteRangeRequest) -> tuple[int, list[bytes]]:
        """Carry out a deletion that was checked."""
        self.deletes += 1
        deleted = self._delete_range(self._txn_revision, self._txn_events, request)
        if self._txn_events:
            self.revision = self._txn_revision
        return deleted

    def compact(self, compacted: int) -> None:
        """Forget what is superseded at a revision: reads below it fail from now on.

        The records go away later, by `purge`.

        Raises:
            Compacted, FutureRevision: Nothing was changed.
        """
        if compacted <= self.compacted:
            raise Compacted(compacted, self.compacted)
        if compacted > self.revision:
            raise FutureRevision(compacted, self.revision)
        self.compacted = compacted
        self.buffer.write(*self._marks.schedule(compacted))

    def write(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Set or delete a record of another table; it becomes durable with the entry's changes."""
        assert table != KEY_TABLE, "key-values change through the store's own methods"
        self.buffer.write(table, key, value)

    def take_events(self) -> list[Revision]:
        """Return the events since the last call, by revision; call it after each applied entry."""
        events = self._events
        self._events = []
        return events

    # the parts of a change

    def _put(self, main: int, events: list[Event], request: rpc_pb2.PutRequest) -> bytes | None:
        key = request.key
        value = request.value
        lease_id = request.lease
        prev_kv = None
        if request.prev_kv or request.ignore_value or request.ignore_lease:
            current = self.index.current(key)
            if current is not None:
                previous = self.buffer.record(current)
                if request.prev_kv:
                    prev_kv = previous
                fields = keyvalue.decode(previous)
                if request.ignore_value:
                    value = fields.value
                if request.ignore_lease:
                    lease_id = fields.lease
        self._store(main, events, key, value, lease_id)
        return prev_kv

    def _store(
        self, main: int, events: list[Event], key: bytes, value: bytes, lease_id: int
    ) -> None:
        # Once per put: every attribute and call here is felt in the store's speed.
        revision_key = pack_fields(main, b"_", len(events))
        created, version = self.index.put(key, main, revision_key)
        record = encode(key, created, main, version, value, lease_id)
        self.buffer.put(revision_key, record)
        if lease_id or key in self._lease_of:
            self._move_lease(key, lease_id)
        events.append(new_event((PUT, key, record, main)))

    def _delete_range(
        self, main: int, events: list[Event], request: rpc_pb2.DeleteRangeRequest
    ) -> tuple[int, list[bytes]]:
        key, end = request.key, request.range_end
        index = self.index
        if end:
            keys = index.keys(key, b"" if end == b"\x00" else end)
        else:
            keys = [key] if index.current(key) is not None else []
        prev_kvs = []
        if request.prev_kv:
            for doomed in keys:
                current = index.current(doomed)
                assert current is not None
                prev_kvs.append(self.buffer.record(current))
        if end:
            index.delete_range(key, b"" if end == b"\x00" else end)
            for doomed in keys:
                index.bury(doomed, revision.pack(main, len(events)))
                self._bury(main, events, doomed)
        elif keys:
            index.delete(key, revision.pack(main, len(events)))
            self._bury(main, events, key)
        return len(keys), prev_kvs

    def _bury(self, main: int, events: list[Event], key: bytes) -> None:
        record = keyvalue.encode_tombstone(key)
        self.buffer.put(revision.pack_tombstone(main, len(events)), record)
        if key in self._lease_of:
            self._move_lease(key, 0)
        events.append(new_event((DELETE, key, keyvalue.encode_deleted(key, main), main)))

    def _move_lease(self, key: bytes, lease_id: int) -> None:
        before = self._lease_of.pop(key, 0)
        if before:
            self._leases.detach(before, key)
        if lease_id:
            self._lease_of[key] = lease_id
            self._leases.attach(lease_id, key)

    def _finish(self, events: list[Event]) -> None:
        if events:
            self.revision = events[0].revision
            self._events.append((self.revision, events))

    # reads

    def range(self, request: rpc_pb2.RangeRequest) -> RangeResult:
        """Answer a range at once; `range_slices` for one that may be large (`range_weight`).

        Raises:
            KeyNotProvided, InvalidSort, Compacted, FutureRevision: As named.
        """
        return ranges.read(self, request)

    def range_slices(self, request: rpc_pb2.RangeRequest) -> ranges.RangeSlices:
        """Answer a range at the revision it has now, in slices with other work in between.

        Raises:
            KeyNotProvided, InvalidSort, Compacted, FutureRevision: As named.
        """
        slices = ranges.RangeSlices(self, request, on_close=self._unpin)
        self._pins += 1
        return slices

    def range_weight(self, request: rpc_pb2.RangeRequest) -> int:
        """Return a bound of the keys that a range must look at, in sub-linear time.

        A thousand of them take 2 to 3 ms.
        """
        return ranges.weight(self, request)

    def hash_kv(self, asked: int) -> tuple[int, int, int]:
        """Return HashKV's hash, compact revision and hash revision at once; see `hash_slices`."""
        slices = self.hash_slices(asked)
        for _ in slices:
            pass
        return slices.result

    def hash_slices(self, asked: int) -> HashSlices:
        """Hash the history up to a revision (0: the current) exactly as etcd does, in slices.

        Raises:
            Compacted, FutureRevision: As named.
        """
        slices = HashSlices(self, asked, on_close=self._unpin)
        self._pins += 1
        return slices

    def _unpin(self) -> None:
        self._pins -= 1

    def prev_kv(self, event: Event) -> bytes | None:
        """Return the KeyValue bytes that an event replaced; None when absent or compacted."""
        before = event.revision - 1
        if before < self.compacted or before < 1:
            return None
        revision_key = self.index.at(event.key, before)
        return None if revision_key is None else self.buffer.record(revision_key)

    def events_between(self, start: int, end: int, limit: int) -> tuple[list[Revision], int]:
        """Return stored events of revisions start <= r <= end, for watchers that catch up.

        Args:
            start: First revision, at least the compacted one.
            end: Last revision; values above the current mean the current.
            limit: Stop after the revision in which this many events are reached. A revision is
                never split.

        Returns:
            Revisions in order with their events, and the revision to go on from (above `end` when
            done).

        Raises:
            Compacted: `start` is below the compacted revision.
        """
        if start < self.compacted:
            raise Compacted(start, self.compacted)
        end = min(end, self.revision)
        found: list[Revision] = []
        scanned = self.buffer.scan(
            revision.pack_main(max(start, 0)), revision.pack_main(max(end, 0) + 1)
        )
        for total, (revision_key, record) in enumerate(scanned):
            event = event_of(revision_key, record)
            if not found or found[-1][0] != event.revision:
                if total >= limit:
                    return found, event.revision
                found.append((event.revision, []))
            found[-1][1].append(event)
        return found, max(start, end + 1)

    # durability

    @property
    def buffered_bytes(self) -> int:
        """Bytes in the live write buffer: what the next `seal` takes."""
        return self.buffer.live.size_bytes

    @property
    def buffered_records(self) -> int:
        """Records in the live write buffer."""
        live = self.buffer.live
        return len(live.records) + len(live.deleted) + len(live.others)

    @property
    def sealed_bytes(self) -> int:
        """Bytes in the batch that is being committed, 0 when there is none."""
        return self.buffer.sealed.size_bytes if self.buffer.sealed is not None else 0

    def seal(self, applied: AppliedMark) -> Batch | None:
        """Freeze the write buffer at the end of an entry.

        Args:
            applied: Index and term of the entry, and the configuration in force after it.

        Returns:
            The batch to commit; None when a batch is still under way, or when nothing changed
            since the last one.
        """
        if self.buffer.sealed is not None:
            return None
        if applied == self.applied and self.buffer.live.is_empty():
            return None
        for change in self._marks.advance(applied):
            self.buffer.write(*change)
        self.applied = applied
        return Batch(self.buffer.seal(), applied)

    def committed(self, batch: Batch) -> None:
        """Note that a batch is durable: its buffer is released, reads go to the backend."""
        self.buffer.release()
        # This read also renews the backend's read transaction. A loop that only writes would
        # otherwise pin the pages of an old commit, and the file would grow without bound.
        assert Marks.applied_in(self.buffer.backend) == batch.applied

    # compaction

    @property
    def purging(self) -> bool:
        """Whether records of a compaction are still to be removed."""
        return self._marks.finished < self.compacted

    def purge(self, records_max: int = 1000) -> bool:
        """Remove some of the compacted records; return whether there are more to remove.

        A thousand take about 3 ms. Nothing that can be read changes, so members need not keep
        step.
        """
        if not self.purging or self._pins:
            return self.purging
        if self._purge is None:
            self._purge = Purge(self.index, self.buffer, self._marks.finished, self.compacted)
        removed = self._purge.removed
        more = self._purge.step(records_max)
        self.purged_records += self._purge.removed - removed
        if not more:
            self.buffer.write(*self._marks.finish(self._purge.target))
            self._purge = None
        return self.purging
