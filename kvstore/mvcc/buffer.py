"""The write buffer between the store and its backend: what is not committed yet; no index here.

Changes collect in the *live* generation. `seal` freezes it into a batch for the storage thread and
starts a new one; the sealed one stays readable until the commit is done. At most one is sealed at
a time. Reads look into live, sealed and backend, in that order.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from kvstore.mvcc.errors import CorruptStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.ports import Backend, Change, Table

KEY_TABLE: Final = "key"


class Generation:
    """Changes that become durable together."""

    __slots__ = ("deleted", "order", "others", "records", "size_bytes")

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        """Revision key to KeyValue bytes, in revision order since revisions only grow."""

        self.order: list[bytes] = []
        """The revision keys ever put here, for bisection; purged ones are missing in `records`."""

        self.deleted: list[bytes] = []
        """Revision keys to delete from the backend (compaction)."""

        self.others: dict[tuple[Table, bytes], bytes | None] = {}
        """Last written value of every other table's key; None deletes it."""

        self.size_bytes = 0
        """Bytes of keys and values held; an account, not an exact memory size."""

    def is_empty(self) -> bool:
        """Tell whether there is nothing to commit."""
        return not (self.records or self.deleted or self.others)

    def changes(self) -> list[Change]:
        """Return everything but the records as backend changes.

        Records come behind them, one unbroken ascending run at the end of their table. Deletions
        never name a record of the same generation.
        """
        changes: list[Change] = [(KEY_TABLE, key, None) for key in self.deleted]
        changes += [(table, key, value) for (table, key), value in self.others.items()]
        return changes


class WriteBuffer:
    """Merged view of what is committed and what is not.

    Args:
        backend: Holds what is committed.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.live = Generation()
        self.sealed: Generation | None = None

    # writes

    def put(self, revision_key: bytes, record: bytes) -> None:
        """Add a change; its revision key must be above all earlier ones."""
        live = self.live
        live.records[revision_key] = record
        live.order.append(revision_key)
        live.size_bytes += len(record) + 17

    def purge(self, revision_key: bytes) -> None:
        """Remove a compacted change, wherever it is."""
        live = self.live
        record = live.records.pop(revision_key, None)
        if record is None:
            live.deleted.append(revision_key)
            live.size_bytes += 17
        else:
            live.size_bytes -= len(record) + 17

    def write(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Set or delete a record of a table other than `key`."""
        self.live.others[table, key] = value
        self.live.size_bytes += len(key) + len(value or b"")

    def seal(self) -> Generation:
        """Freeze the live generation, start a new one, return the frozen."""
        assert self.sealed is None, "one batch at a time: the storage thread commits in order"
        self.sealed = self.live
        self.live = Generation()
        return self.sealed

    def release(self) -> None:
        """Forget the sealed generation: the backend has it."""
        assert self.sealed is not None
        self.sealed = None

    # reads

    def record(self, revision_key: bytes) -> bytes:
        """Return the KeyValue bytes stored under a revision key that the index knows.

        Raises:
            CorruptStore: It is not there.
        """
        record = self.live.records.get(revision_key)
        if record is not None:
            return record
        if self.sealed is not None:
            record = self.sealed.records.get(revision_key)
            if record is not None:
                return record
        record = self.backend.get(KEY_TABLE, revision_key)
        if record is None:
            raise CorruptStore(f"the record of revision key {revision_key.hex()} is missing")
        return record

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value of a table other than `key`, with what is not committed yet."""
        place = (table, key)
        for generation in (self.live, self.sealed):
            if generation is not None and place in generation.others:
                return generation.others[place]
        return self.backend.get(table, key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the changes with start <= revision key < end in order, from all three places.

        Safe to consume slowly while writes, seals and commits go on: it sees at least everything
        that was there when it began. The caller keeps purging away meanwhile.
        """
        # Backend, sealed, live hold ascending disjoint revisions. Between the end of a commit and
        # `release` the backend has the sealed ones too, hence the bound.
        generations = [
            (generation.records, generation.order, len(generation.order))
            for generation in (self.sealed, self.live)
            if generation is not None and generation.order
        ]
        bound = min(end, generations[0][1][0]) if generations else end
        if start < bound:
            yield from self.backend.scan(KEY_TABLE, start, bound)
        for records, order, length in generations:
            for position in range(bisect_left(order, start, 0, length), length):
                key = order[position]
                if key >= end:
                    return
                record = records.get(key)
                if record is not None:
                    yield key, record
