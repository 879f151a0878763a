"""The seams to the outside world: disk, network, clock, randomness and the ordered-bytes backend.

Protocols and the plain types they use; the real forms live beside their users
(`kvstore.wal.disk`, `kvstore.peer`, `kvstore.server`, `kvstore.mvcc.backend`), the simulated
ones in `tests/sim`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

Table = str
"""One of `TABLES`. LMDB keeps each as a database of its own."""

TABLES: tuple[Table, ...] = ("key", "lease", "auth", "meta")

Change = tuple[Table, bytes, bytes | None]
"""Table, key, and the new value; None deletes the key."""


class Clock(Protocol):
    """Time as an input, so that the simulator can own it."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary point; never goes back, not even when the date is set."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; may jump. For logs and identifiers only."""


class Random(Protocol):
    """Randomness as an input. `random.Random(seed)` fits."""

    def randrange(self, start: int, stop: int) -> int:
        """Return an integer in [start, stop)."""

    def getrandbits(self, bits: int) -> int:
        """Return an integer in [0, 2**bits)."""


class File(Protocol):
    """An open file of a `Disk`."""

    def size(self) -> int:
        """Return the length in bytes."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` from `offset`; shorter only at the end of the file."""

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        """Write the parts one after the other, whole, from `offset`. Not durable yet."""

    def allocate(self, size_bytes: int) -> None:
        """Reserve the blocks for `size_bytes` and set the length; new bytes read as zero."""

    def truncate(self, size_bytes: int) -> None:
        """Cut the file. Not durable yet."""

    def sync(self) -> None:
        """Make all data written so far, and the length, survive a power cut (fdatasync)."""

    def close(self) -> None:
        """Release the handle; says nothing about durability."""


class Lock(Protocol):
    """An exclusive lock that `Disk.lock` gave; it also ends with the process."""

    def release(self) -> None:
        """Give the lock back."""


class Disk(Protocol):
    """The file calls that durability is made of; paths are plain strings.

    Every method raises OSError as the system does. Nothing here retries.
    """

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; `create` demands that the file is new."""

    def rename(self, source: str, target: str) -> None:
        """Replace `target` atomically. Durable only after `sync_folder`."""

    def remove(self, path: str) -> None:
        """Delete a file. Durable only after `sync_folder`."""

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents if absent; durable on return."""

    def list(self, path: str) -> list[str]:
        """Return the names in a folder, sorted."""

    def exists(self, path: str) -> bool:
        """Tell whether a file or folder is there."""

    def sync_folder(self, path: str) -> None:
        """Make the creations, renames and removals in the folder survive a power cut."""

    def lock(self, path: str) -> Lock:
        """Lock a file, creating it if absent; `kvstore.wal.LockedError` when another holds it."""


class View(Protocol):
    """The store as of one commit: what a read transaction sees."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return the value, or None."""

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value for start <= key < end in ascending order; `end` None is no end."""

    def close(self) -> None:
        """Let the backend reuse the pages that this view kept."""


class Backend(View, Protocol):
    """Ordered bytes with atomic, durable commits. One thread commits, the loop reads.

    The reads of the backend itself see its last commit.
    """

    def commit(self, changes: Sequence[Change], puts: Mapping[bytes, bytes] | None = None) -> None:
        """Make all changes durable together, in order. May be called from the storage thread.

        `puts` are of the table `key`, behind all changes: a mapping is what the store has of them.

        Raises OSError or the library's error when the disk refuses; the caller ends the process.
        """

    def view(self) -> View:
        """Return a view of the last commit that later commits do not change."""

    def size_bytes(self) -> int:
        """Return the bytes that the store occupies on disk."""

    def used_bytes(self) -> int:
        """Return the part of `size_bytes` that holds data."""
