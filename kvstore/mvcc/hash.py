"""HashKV: one integer over the stored history, byte for byte the one that etcd computes.

CRC-32C over the bucket name `key`, then every record's revision key and value, up to the revision
asked. Of what is at or below the compaction revision only records count that are still current at
the revision asked, so that a member that has not purged yet gets the same number; a tombstone
exactly at the compaction revision never counts (older etcd removes it, newer keeps it). When no key
lives at the revision asked, etcd counts all that a finished purge leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import google_crc32c

from kvstore.mvcc import keyvalue
from kvstore.mvcc.errors import Compacted, FutureRevision
from kvstore.mvcc.revision import KEY_BYTES, pack_main

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from kvstore.mvcc.range import Readable

SLICE_RECORDS: Final = 1000


class HashSlices:
    """A hash under way; iterate to its end, then read `result`. Close it when abandoned.

    The store holds back the purge of compacted revisions meanwhile.

    Raises:
        Compacted, FutureRevision: From the constructor.
    """

    def __init__(
        self, store: Readable, asked: int, on_close: Callable[[], None] | None = None
    ) -> None:
        if asked > store.revision:
            raise FutureRevision(asked, store.revision)
        if 0 < asked < store.compacted:
            raise Compacted(asked, store.compacted)
        self._store = store
        self._compacted = store.compacted
        # Below zero is not "now", as it is in a range: etcd hashes no record then.
        self._revision = asked or store.revision
        self._on_close = on_close
        self._crc = 0
        self._steps = self._run()

    @property
    def result(self) -> tuple[int, int, int]:
        """Hash, compact revision (-1 before the first compaction), revision hashed."""
        return self._crc, self._compacted, self._revision

    def __iter__(self) -> Iterator[None]:
        return self

    def __next__(self) -> None:
        try:
            return next(self._steps)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop; more calls do nothing."""
        self._steps.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def _run(self) -> Generator[None, None, None]:
        alive = yield from self._hash(self._revision)
        if not alive and self._compacted >= 0:
            # No key lives there: etcd skips nothing then, and its purge has left what is current
            # at the compaction revision.
            yield from self._hash(self._compacted)

    def _hash(self, current_at: int) -> Generator[None, None, bool]:
        """Hash, of old records those current at a revision; return whether any key lives."""
        newest_record = self._store.index.newest_record
        hashed_to = max(self._revision, -1)
        # Records at or below this bound must be current to count.
        bound = pack_main(self._compacted + 1)
        crc = google_crc32c.extend(0, b"key")
        alive = False
        parts: list[bytes] = []
        records = self._store.buffer.scan(pack_main(0), pack_main(hashed_to + 1))
        for number, (revision_key, record) in enumerate(records):
            if revision_key < bound:
                # A tombstone's record has its mark elsewhere and so never equals the stored key.
                if newest_record(keyvalue.key_of(record), current_at) != revision_key:
                    continue
                alive = True
            elif not alive and len(revision_key) == KEY_BYTES:
                alive = newest_record(keyvalue.key_of(record), current_at) == revision_key
            parts += (revision_key, record)
            if number % SLICE_RECORDS == SLICE_RECORDS - 1:
                crc = google_crc32c.extend(crc, b"".join(parts))
                parts.clear()
                yield
        self._crc = google_crc32c.extend(crc, b"".join(parts))
        return alive
