"""The whole store as a stream of checked chunks, and such a stream as a new LMDB file.

Moving chunks between members and swapping the file in is the node's matter.

A chunk is the CRC-32C of its payload (4 bytes, big-endian) and the payload, a msgpack array:

    [0, format]                                   first
    [1, table, [key, value, key, value, ...]]     records
    [2, number of records, checksum]              last

Tables come in the order of `TABLES`, keys ascending. The checksum covers every record's table,
lengths and bytes, so it can be computed again from the file that came out, whatever the chunks
were.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Final

import google_crc32c
import msgpack

from kvstore.mvcc.backend_lmdb import FORMAT_KEY, LmdbBackend
from kvstore.mvcc.errors import BadSnapshot, NewerFormat
from kvstore.mvcc.marks import META_TABLE, Marks
from kvstore.ports import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstore.mvcc.marks import AppliedMark
    from kvstore.ports import Backend, Change, Disk, Table, View

FORMAT: Final = 1
"""Version of the stream and of the records in it; moves with that of the file."""

CHUNK_BYTES: Final = 1 << 20
COMMIT_BYTES: Final = 16 << 20
"""The receiver commits this much at a time: few fsyncs, bounded memory."""

_HEAD: Final = 0
_RECORDS: Final = 1
_TAIL: Final = 2
_lengths: Final = struct.Struct(">II").pack


class Checksum:
    """CRC-32C over records and their tables, independent of chunk borders."""

    def __init__(self) -> None:
        self.records = 0
        self.crc = 0
        self._table: Table | None = None

    def add(self, table: Table, records: list[bytes]) -> None:
        """Add keys and values, alternating."""
        parts: list[bytes] = []
        if table != self._table:
            self._table = table
            parts.append(table.encode())
        for at in range(0, len(records), 2):
            key, value = records[at], records[at + 1]
            parts += (_lengths(len(key), len(value)), key, value)
        self.records += len(records) // 2
        self.crc = google_crc32c.extend(self.crc, b"".join(parts))


def snapshot_chunks(view: View, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the stream of everything in a view; one step is one chunk, a few milliseconds.

    Take the view after a commit whose applied mark is what the receiver shall continue from; it
    must stay open until the end, and later commits do not disturb it. May run on any thread.

    Args:
        view: A backend's `view()`.
        chunk_bytes: Size of a chunk; a single larger record travels whole.
    """
    yield _chunk([_HEAD, FORMAT])
    checksum = Checksum()
    for table in TABLES:
        records: list[bytes] = []
        size_bytes = 0
        for key, value in _records_of(view, table):
            records += (key, value)
            size_bytes += len(key) + len(value)
            if size_bytes >= chunk_bytes:
                checksum.add(table, records)
                yield _chunk([_RECORDS, table, records])
                records = []
                size_bytes = 0
        if records:
            checksum.add(table, records)
            yield _chunk([_RECORDS, table, records])
    yield _chunk([_TAIL, checksum.records, checksum.crc])


class SnapshotReceiver:
    """Writes a stream into a new LMDB file. Its methods block: use them on a thread.

    The file is built under `path` + `.part` and renamed when it is complete, verified and durable;
    so a file at `path` is always a good one. A part of an earlier attempt is thrown away.

    Args:
        path: Where the finished file shall be; not the file of the running store.
        map_size_bytes: As for `LmdbBackend`.
        disk: Removes, renames and syncs; files it sees must be those the backend sees.
        open_backend: Opens or creates a store file, as `LmdbBackend` does.
    """

    def __init__(
        self,
        path: str,
        *,
        map_size_bytes: int,
        disk: Disk,
        open_backend: Callable[..., Backend] = LmdbBackend,
    ) -> None:
        self._path = path
        self._part = path + ".part"
        self._map_size_bytes = map_size_bytes
        self._disk = disk
        self._open_backend = open_backend
        self._backend: Backend | None = None
        self._started = False
        self._expected: tuple[int, int] | None = None
        self._checksum = Checksum()
        self._changes: list[Change] = []
        self._pending_bytes = 0
        self._table_order = 0
        self.fsync_s = 0.0
        """What `finish` waited for the disk at the end."""

    def write(self, chunk: bytes) -> None:
        """Take the next chunk.

        Raises:
            BadSnapshot: It is damaged or out of order. `abort` and ask for the stream again.
            NewerFormat: The sender is of a later release.
        """
        if len(chunk) < 5 or _crc(chunk[4:]) != int.from_bytes(chunk[:4], "big"):
            raise BadSnapshot("a snapshot chunk does not match its checksum")
        if self._expected is not None:
            raise BadSnapshot("a snapshot chunk came after the last one")
        try:
            fields = msgpack.unpackb(chunk[4:])
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise BadSnapshot(f"a snapshot chunk is no msgpack: {error}") from error
        match fields:
            case [kind, int(version), *_] if kind == _HEAD and not self._started:
                if version > FORMAT:
                    raise NewerFormat("the snapshot", version, FORMAT)
                self._started = True
                self._remove_part()
                self._backend = self._open()
            case _ if not self._started:
                raise BadSnapshot("the snapshot does not begin with its first chunk")
            case [kind, str(table), list(records)] if kind == _RECORDS and _are_pairs(records):
                self._take(table, records)
            case [kind, int(count), int(crc)] if kind == _TAIL:
                self._expected = (count, crc)
            case _:
                raise BadSnapshot("a snapshot chunk of a kind that is not known")

    def _take(self, table: Table, records: list[bytes]) -> None:
        if table not in TABLES[self._table_order :]:
            raise BadSnapshot(f"snapshot chunk of table {table!r} out of order")
        self._table_order = TABLES.index(table)
        self._checksum.add(table, records)
        self._changes += [(table, records[at], records[at + 1]) for at in range(0, len(records), 2)]
        self._pending_bytes += sum(map(len, records))
        if self._pending_bytes >= COMMIT_BYTES:
            self._commit()

    def _commit(self) -> None:
        assert self._backend is not None, "aborted or finished"
        self._backend.commit(self._changes)
        self._changes = []
        self._pending_bytes = 0

    def finish(self) -> AppliedMark:
        """Verify the file, make it durable under its final name; return where the log goes on.

        Raises:
            BadSnapshot: Chunks are missing, or the file does not hold what was sent. Nothing is at
                `path` that was not there before.
        """
        if self._expected is None:
            raise BadSnapshot("the snapshot ended before its last chunk")
        if self._expected != (self._checksum.records, self._checksum.crc):
            raise BadSnapshot(
                f"the snapshot has {self._checksum.records} records, "
                f"its sender counted {self._expected[0]}; or its checksum differs"
            )
        self._commit()
        assert self._backend is not None
        self._backend.close()
        # From a new environment, so that the check reads what was written and not what is cached.
        self._backend = self._open()
        found = _checksum_of(self._backend)
        if (found.records, found.crc) != self._expected:
            raise BadSnapshot(f"{self._part} does not hold what was written; check the disk")
        applied = Marks.applied_in(self._backend)
        self._close()
        file = self._disk.open(self._part)
        start_s = time.perf_counter()
        try:
            file.sync()
        finally:
            file.close()
        self.fsync_s = time.perf_counter() - start_s
        self._disk.rename(self._part, self._path)
        self._remove_lock()
        self._disk.sync_folder(os.path.dirname(self._path) or ".")
        return applied

    def _open(self) -> Backend:
        return self._open_backend(self._part, map_size_bytes=self._map_size_bytes)

    def abort(self) -> None:
        """Throw away what has arrived."""
        self._close()
        self._remove_part()

    def _close(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _remove_part(self) -> None:
        if self._disk.exists(self._part):
            self._disk.remove(self._part)
        self._remove_lock()

    def _remove_lock(self) -> None:
        lock = self._part + "-lock"
        if self._disk.exists(lock):
            self._disk.remove(lock)


def _records_of(view: View, table: Table) -> Iterator[tuple[bytes, bytes]]:
    # The format mark belongs to a file, not to the data: the receiver's file has its own.
    for key, value in view.scan(table):
        if key != FORMAT_KEY or table != META_TABLE:
            yield key, value


def _are_pairs(records: list[object]) -> bool:
    return len(records) % 2 == 0 and all(type(record) is bytes for record in records)


def _checksum_of(view: View) -> Checksum:
    checksum = Checksum()
    for table in TABLES:
        records: list[bytes] = []
        for key, value in _records_of(view, table):
            records += (key, value)
            if len(records) >= 4096:
                checksum.add(table, records)
                records = []
        if records:
            checksum.add(table, records)
    return checksum


def _chunk(fields: list[object]) -> bytes:
    payload: bytes = msgpack.packb(fields)
    return _crc(payload).to_bytes(4, "big") + payload


def _crc(data: bytes) -> int:
    value: int = google_crc32c.value(data)
    return value
