"""`Backend` in memory, for tests and simulation; nothing here survives the object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sortedcontainers import SortedDict

from kvstore.ports import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kvstore.ports import Change, Table


class MemoryView:
    """The tables as of one commit."""

    def __init__(self, tables: dict[Table, SortedDict[bytes, bytes]]) -> None:
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value, or None."""
        value: bytes | None = self._tables[table].get(key)
        return value

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value for start <= key < end in ascending order; `end` None is no end."""
        records = self._tables[table]
        for key in list(records.irange(start, end, inclusive=(True, False))):
            yield key, records[key]

    def close(self) -> None:
        """Release the copy."""
        self._tables = {}


class MemoryBackend:
    """Ordered bytes in memory with the semantics of a real backend."""

    def __init__(self) -> None:
        self._tables: dict[Table, SortedDict[bytes, bytes]] = {
            table: SortedDict() for table in TABLES
        }
        self.commits = 0

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value, or None."""
        value: bytes | None = self._tables[table].get(key)
        return value

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value as of the call, whatever is committed meanwhile."""
        records = self._tables[table]
        # Taken at once: a real backend's scan reads from one transaction, too.
        found = [(key, records[key]) for key in records.irange(start, end, inclusive=(True, False))]
        yield from found

    def commit(self, changes: Sequence[Change], puts: Mapping[bytes, bytes] | None = None) -> None:
        """Apply all changes in order."""
        tables = self._tables
        for table, key, value in changes:
            if value is None:
                tables[table].pop(key, None)
            else:
                tables[table][key] = value
        tables["key"].update(puts or {})
        self.commits += 1

    def view(self) -> MemoryView:
        """Return a copy that later commits do not change."""
        return MemoryView({table: records.copy() for table, records in self._tables.items()})

    def size_bytes(self) -> int:
        """Return the bytes of all keys and values."""
        return sum(
            len(key) + len(value)
            for records in self._tables.values()
            for key, value in records.items()
        )

    def used_bytes(self) -> int:
        """Return the same as `size_bytes`: nothing is ever free but allocated."""
        return self.size_bytes()

    def close(self) -> None:
        """Do nothing; a real backend closes its file here."""
