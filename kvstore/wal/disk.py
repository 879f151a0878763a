"""The real `Disk`: system calls and nothing else. No retry, no policy, no format."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence

from kvstore.wal.errors import LockedError

_PARTS_MAX = 1024
"""IOV_MAX of Linux and macOS."""

_ZEROS = bytes(1 << 20)


class RealFile:
    """A file by its descriptor. One thread uses it."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def size(self) -> int:
        """Return the length in bytes."""
        return os.fstat(self._fd).st_size

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return up to `size_bytes` from `offset`; shorter only at the end of the file."""
        data = os.pread(self._fd, size_bytes, offset)
        if len(data) == size_bytes:
            return data
        # One call returns at most 2 GiB, and may return less at will.
        parts = [data]
        got = len(data)
        while data and got < size_bytes:
            data = os.pread(self._fd, size_bytes - got, offset + got)
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        """Write the parts one after the other, whole, from `offset`."""
        size_bytes = sum(map(len, parts))
        if len(parts) <= _PARTS_MAX:
            written = os.pwritev(self._fd, parts, offset)
            if written == size_bytes:
                return
        else:
            written = 0
        # A short write is legal (signal, disk nearly full, over 2 GiB); the next call says why.
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            written = os.pwrite(self._fd, rest, offset + size_bytes - len(rest))
            if written == 0:
                raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
            rest = rest[written:]

    def allocate(self, size_bytes: int) -> None:
        """Reserve the blocks for `size_bytes` and set the length."""
        if size_bytes <= self.size():
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, size_bytes)
            return
        # macOS: only written blocks are surely there when we need them.
        offset = self.size()
        while offset < size_bytes:
            offset += os.pwrite(self._fd, _ZEROS[: size_bytes - offset], offset)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file."""
        os.ftruncate(self._fd, size_bytes)

    def sync(self) -> None:
        """Make data and length survive a power cut."""
        _sync_data(self._fd)

    def close(self) -> None:
        """Release the descriptor."""
        os.close(self._fd)


class RealLock:
    """An exclusive lock on a file; the system drops it with the process, however that ends."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would race with the next holder."""
        os.close(self._fd)


class RealDisk:
    """The file system of this machine."""

    __slots__ = ()

    def open(self, path: str, *, create: bool = False) -> RealFile:
        """Open for reading and writing; `create` demands that the file is new."""
        return RealFile(self.open_descriptor(path, create=create))

    @staticmethod
    def open_descriptor(path: str, *, create: bool) -> int:
        """As `open`, for a file of another class."""
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        return os.open(path, flags, 0o600)

    def rename(self, source: str, target: str) -> None:
        """Replace `target` atomically."""
        os.replace(source, target)

    def remove(self, path: str) -> None:
        """Delete a file."""
        os.unlink(path)

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents if absent; each new name is durable on return."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self.make_folder(parent)
        os.mkdir(path, 0o700)
        self.sync_folder(parent)

    def list(self, path: str) -> list[str]:
        """Return the names in a folder, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        """Tell whether a file or folder is there."""
        return os.path.exists(path)

    def sync_folder(self, path: str) -> None:
        """Make creations, renames and removals in the folder survive a power cut."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync_all(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> RealLock:
        """Lock the file, creating it if absent; LockedError tells the holder's pid if known."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = os.pread(fd, 20, 0).strip()
            os.close(fd)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise LockedError(path, int(text) if text.isdigit() else None) from error
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        return RealLock(fd)


if sys.platform == "darwin":
    # fsync there leaves the data in the drive's volatile cache.
    def _sync_data(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

    _sync_all = _sync_data
else:
    _sync_data = os.fdatasync
    _sync_all = os.fsync
