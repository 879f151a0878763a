"""Removing the records that a compaction made unreadable, a bounded slice at a time.

Which records go is a function of the compaction revision alone. Every key that has something to
remove changed between the last finished compaction and this one, or was deleted exactly at the last
one; so the purge reads those revisions only, and not the whole store as a key-by-key walk would.
A key's records go oldest first, so that after a crash in the middle the next walk still meets the
key: whatever is left of it ends with a record in the revisions walked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.mvcc import keyvalue
from kvstore.mvcc.revision import pack_main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.mvcc.buffer import WriteBuffer
    from kvstore.mvcc.index import Index


class Purge:
    """One walk over the revisions from the last finished compaction up to `target`."""

    def __init__(self, index: Index, buffer: WriteBuffer, finished: int, target: int) -> None:
        self.target = target
        self._index = index
        self._buffer = buffer
        # From the finished revision itself: its tombstones were kept and must go now.
        self._cursor = pack_main(max(finished, 0))
        self._end = pack_main(target + 1)
        self.removed = 0
        """Records removed so far."""

    def step(self, records_max: int) -> bool:
        """Visit or remove up to `records_max` records; return False when the walk is done."""
        assert records_max > 0
        budget = records_max
        for revision_key, record in self._slice():
            removed, more = self._index.obsolete(
                keyvalue.key_of(record), self.target, max(1, budget)
            )
            for stored_key in removed:
                self._buffer.purge(stored_key)
            self.removed += len(removed)
            if more:
                # A long history: come back to the same record.
                self._cursor = revision_key
                return True
            self._cursor = revision_key + b"\x00"
            budget -= max(1, len(removed))
            if budget <= 0:
                return True
        return False

    def _slice(self) -> Iterator[tuple[bytes, bytes]]:
        # Closed with the slice: a view must not stay open between slices, it would pin pages.
        return self._buffer.scan(self._cursor, self._end)
