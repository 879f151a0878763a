"""A `Disk` in memory: files are inodes, folders map names to them. No faults, no recording.

Wrappers add those: `Recorder` (crash_images.py), `FaultyDisk` (faults.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from kvstore.wal.errors import LockedError


class MemoryFile:
    def __init__(self, data: bytearray) -> None:
        self.data = data

    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return bytes(self.data[offset : offset + size_bytes])

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        put(self.data, offset, b"".join(parts))

    def allocate(self, size_bytes: int) -> None:
        self.data.extend(bytes(max(0, size_bytes - len(self.data))))

    def truncate(self, size_bytes: int) -> None:
        del self.data[size_bytes:]
        self.allocate(size_bytes)

    def sync(self) -> None: ...

    def close(self) -> None: ...


class MemoryLock:
    def __init__(self, held: set[str], path: str) -> None:
        self.held, self.path = held, path

    def release(self) -> None:
        self.held.discard(self.path)


class MemoryDisk:
    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = {path: bytearray(data) for path, data in (files or {}).items()}
        self.folders = {path.rpartition("/")[0] for path in self.files}
        self.locked: set[str] = set()

    def open(self, path: str, *, create: bool = False) -> MemoryFile:
        if create and path in self.files:
            raise _error(errno.EEXIST, path)
        if create:
            self.files[path] = bytearray()
        elif path not in self.files:
            raise _error(errno.ENOENT, path)
        return MemoryFile(self.files[path])

    def rename(self, source: str, target: str) -> None:
        self.files[target] = self.files.pop(source)

    def remove(self, path: str) -> None:
        del self.files[path]

    def make_folder(self, path: str) -> None:
        self.folders.add(path)

    def list(self, path: str) -> list[str]:
        return sorted(name for folder, _, name in map(_split, self.files) if folder == path)

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.folders

    def sync_folder(self, path: str) -> None: ...

    def lock(self, path: str) -> MemoryLock:
        if path in self.locked:
            raise LockedError(path, os.getpid())
        self.locked.add(path)
        return MemoryLock(self.locked, path)

    def image(self) -> dict[str, bytes]:
        """Return a copy of all files: what the page cache shows now."""
        return {path: bytes(data) for path, data in self.files.items()}


def put(data: bytearray, offset: int, new: bytes) -> None:
    """Write into a file's bytes; a gap before the offset reads as zero."""
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


def _split(path: str) -> tuple[str, str, str]:
    return path.rpartition("/")


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
