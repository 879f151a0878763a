"""`Backend` on LMDB: one file, synchronous durable commits; knows tables, not what is in them."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import lmdb

from kvstore.mvcc.errors import CorruptStore, NewerFormat, StorageError
from kvstore.ports import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmdb import _Database

    from kvstore.ports import Change, Table

FORMAT: Final = 1
"""Version of the file's layout, kept in the table `meta` under `FORMAT_KEY`."""

FORMAT_KEY: Final = b"format"

MAP_SIZE_MIN_BYTES: Final = 64 << 20
_READERS_MAX: Final = 1024
"""Open views at a time: watches catching up, large ranges, snapshots, and the loop's own."""

_READ_ALL: Final = """
import sys, lmdb
path, *tables = sys.argv[1:]
environment = lmdb.open(path, subdir=False, max_dbs=len(tables), readonly=True, lock=False)
for table in tables:
    database = environment.open_db(table.encode(), create=False)
    with environment.begin() as transaction:
        for record in transaction.cursor(database):
            pass
"""
"""A program that reads every record of a store, each value whole."""


class LmdbView:
    """One read transaction. May be used from another thread than the one that opened it."""

    def __init__(self, environment: lmdb.Environment, tables: dict[Table, _Database]) -> None:
        self._transaction = environment.begin()
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value, or None."""
        value: bytes | None = self._transaction.get(key, db=self._tables[table])
        return value

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value for start <= key < end in ascending order; `end` None is no end."""
        with self._transaction.cursor(self._tables[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            if end is None:
                yield from cursor
                return
            for key, value in cursor:
                if key >= end:
                    return
                yield key, value

    def close(self) -> None:
        """Let the file reuse the pages that this view kept."""
        self._transaction.abort()


class LmdbBackend:
    """Ordered bytes in one LMDB file.

    Reads run in one transaction that is renewed after each commit, on the thread that reads (the
    loop); commits run on one other thread. While a commit is under way reads see the one before.

    Args:
        path: The file; LMDB keeps its reader table beside it as `path` + `-lock`.
        map_size_bytes: Address space reserved and so the bound of the file's size. At least twice
            the quota: deletes and compaction need room when the quota is reached.
        sync: Whether a commit waits for the disk. Without, a crash of the system (not of the
            process) can damage the file: for data that is thrown away anyway.
    """

    def __init__(self, path: str, *, map_size_bytes: int, sync: bool = True) -> None:
        self.path = path
        self._environment = lmdb.open(
            path,
            map_size=max(map_size_bytes, MAP_SIZE_MIN_BYTES),
            subdir=False,
            max_dbs=len(TABLES),
            max_readers=_READERS_MAX,
            # Reads are point look-ups of random revisions; read-ahead would fetch neighbours
            # that nobody asked for and evict the log's pages.
            readahead=False,
            sync=sync,
            metasync=sync,
        )
        self._page_bytes: int = self._environment.stat()["psize"]
        self._check_whole()
        self._tables: dict[Table, _Database] = {
            table: self._environment.open_db(table.encode()) for table in TABLES
        }
        self._commits = 0
        """Counted up by the committing thread when a commit is durable."""

        self._read_commits = 0
        """The commit that the reading transaction sees."""

        self._reader = self._environment.begin()
        self._check_format()

    def _check_whole(self) -> None:
        """Refuse a file that was cut, for example by a copy that ended early.

        LMDB looks at mapped pages, and the system answers a look behind the end of the file with a
        signal that ends the process without a word. A file may rightly end a few pages early, when
        a transaction gave back what it took last; so another process looks first.
        """
        size_bytes = os.path.getsize(self.path)
        if size_bytes >= self.size_bytes():
            return
        whole = size_bytes % self._page_bytes == 0 and self._can_be_read()
        if not whole:
            raise CorruptStore(
                f"{self.path} was cut or copied in part: it has {size_bytes} bytes and needs "
                f"{self.size_bytes()}. Restore it together with the log from one copy, or remove "
                "the data directory and let the member join again"
            )

    def _can_be_read(self) -> bool:
        command = [sys.executable, "-c", _READ_ALL, self.path, *TABLES]
        look = subprocess.run(command, check=False, capture_output=True)  # noqa: S603 (our own)
        return look.returncode == 0

    def _check_format(self) -> None:
        stored = self.get("meta", FORMAT_KEY)
        if stored is None:
            if next(self.scan("key"), None) is not None:
                raise StorageError(f"{self.path} holds records but no format mark; restore a copy")
            self.commit([("meta", FORMAT_KEY, b"%d" % FORMAT)])
        elif int(stored) > FORMAT:
            raise NewerFormat(self.path, int(stored), FORMAT)

    # reads, on the loop

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value, or None."""
        if self._read_commits != self._commits:
            self._renew()
        value: bytes | None = self._reader.get(key, db=self._tables[table])
        return value

    def _renew(self) -> None:
        # Read the count first: a commit that ends between the two lines is renewed for next time.
        self._read_commits = self._commits
        self._reader.abort()
        self._reader = self._environment.begin()

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value as of the first step, whatever is committed meanwhile."""
        # A view of its own: the shared transaction moves on with the next commit.
        view = self.view()
        try:
            yield from view.scan(table, start, end)
        finally:
            view.close()

    def view(self) -> LmdbView:
        """Return a view of the last commit that later commits do not change."""
        return LmdbView(self._environment, self._tables)

    # the storage thread

    def commit(self, changes: Sequence[Change], puts: Mapping[bytes, bytes] | None = None) -> None:
        """Make all changes durable together, in order: returns after the disk has them.

        `puts` are of the table `key`, behind all changes.

        Raises:
            lmdb.Error: The disk refused or the map is full. The caller ends the process.
        """
        with self._environment.begin(write=True) as transaction:
            for table, run in groupby(changes, itemgetter(0)):
                database = self._tables[table]
                with transaction.cursor(database) as cursor:
                    for is_put, part in groupby(run, _is_put):
                        if is_put:
                            _put_all(cursor, {key: value or b"" for _, key, value in part})
                        else:
                            for _, key, _ in part:
                                transaction.delete(key, db=database)
            if puts:
                with transaction.cursor(self._tables["key"]) as cursor:
                    _put_all(cursor, puts)
        self._commits += 1

    # accounts

    def size_bytes(self) -> int:
        """Return the bytes of the file that are in use or were: what the disk must hold."""
        return (int(self._environment.info()["last_pgno"]) + 1) * self._page_bytes

    def used_bytes(self) -> int:
        """Return the bytes in pages of tables; the rest of `size_bytes` is free for reuse."""
        pages = 2  # the two meta pages
        with self._environment.begin() as transaction:
            for database in (None, *self._tables.values()):
                counts = transaction.stat(database) if database else self._environment.stat()
                pages += counts["branch_pages"] + counts["leaf_pages"] + counts["overflow_pages"]
        return pages * self._page_bytes

    def close(self) -> None:
        """Close the file. Views must be closed before."""
        self._reader.abort()
        self._environment.close()


def _is_put(change: Change) -> bool:
    return change[2] is not None


def _put_all(cursor: lmdb.Cursor[bytes], records: Mapping[bytes, bytes]) -> None:
    # One call for the whole run: a Python loop would take the interpreter lock from the loop for
    # every record. A run above the table's last key is appended, which fills pages fully.
    append = not cursor.last() or cursor.key() < next(iter(records))
    consumed, added = cursor.putmulti(records.items(), append=append)
    if consumed == added == len(records):
        return
    # Append skips what is out of order without an error. Put the run again, without.
    cursor.putmulti(records.items())
