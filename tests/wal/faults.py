"""Disks that break their promise or refuse, by wrapping another `Disk`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from kvstore.ports import Disk, File, Lock


class WrappedFile:
    def __init__(self, disk: WrappedDisk, file: File, path: str) -> None:
        self.disk, self.file, self.path = disk, file, path

    def size(self) -> int:
        return self.file.size()

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self.file.read(offset, size_bytes)

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        self.disk.on_write(self, offset, parts)

    def allocate(self, size_bytes: int) -> None:
        self.disk.on_allocate(self, size_bytes)

    def truncate(self, size_bytes: int) -> None:
        self.file.truncate(size_bytes)

    def sync(self) -> None:
        self.disk.on_sync(self)

    def close(self) -> None:
        self.file.close()


class WrappedDisk:
    """Passes everything on; subclasses change single calls."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def on_write(self, file: WrappedFile, offset: int, parts: Sequence[bytes]) -> None:
        file.file.write(offset, parts)

    def on_allocate(self, file: WrappedFile, size_bytes: int) -> None:
        file.file.allocate(size_bytes)

    def on_sync(self, file: WrappedFile) -> None:
        file.file.sync()

    def open(self, path: str, *, create: bool = False) -> WrappedFile:
        return WrappedFile(self, self.disk.open(path, create=create), path)

    def rename(self, source: str, target: str) -> None:
        self.disk.rename(source, target)

    def remove(self, path: str) -> None:
        self.disk.remove(path)

    def make_folder(self, path: str) -> None:
        self.disk.make_folder(path)

    def list(self, path: str) -> list[str]:
        return self.disk.list(path)

    def exists(self, path: str) -> bool:
        return self.disk.exists(path)

    def sync_folder(self, path: str) -> None:
        self.disk.sync_folder(path)

    def lock(self, path: str) -> Lock:
        return self.disk.lock(path)


# --- planted bugs: what the code would do if it forgot a call ----------------------------------


class WithoutSync(WrappedDisk):
    def on_sync(self, file: WrappedFile) -> None: ...


class WithoutFolderSync(WrappedDisk):
    def sync_folder(self, path: str) -> None: ...


class SyncAfterAcknowledge(WrappedDisk):
    """Every fsync happens, but only when the next file call comes: after `save` returned."""

    late: WrappedFile | None = None

    def on_write(self, file: WrappedFile, offset: int, parts: Sequence[bytes]) -> None:
        self._catch_up()
        super().on_write(file, offset, parts)

    def on_sync(self, file: WrappedFile) -> None:
        self._catch_up()
        self.late = file

    def sync_folder(self, path: str) -> None:
        self._catch_up()
        super().sync_folder(path)

    def _catch_up(self) -> None:
        if self.late is not None:
            self.late.file.sync()
            self.late = None


class FolderSyncOnlyAtRename(WrappedDisk):
    """Removals and new spares are not made durable, one after the other or at all."""

    renamed = False

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        self.renamed = True

    def sync_folder(self, path: str) -> None:
        if self.renamed:
            super().sync_folder(path)
        self.renamed = False


# --- errors of the system ----------------------------------------------------------------------


class FailingDisk(WrappedDisk):
    """Refuses the n-th call of one kind (`write`, `sync`, `allocate`, `sync_folder` ...)."""

    def __init__(self, disk: Disk, kind: str, number: int, code: int) -> None:
        super().__init__(disk)
        self.kind, self.left, self.code = kind, number, code
        self.hit = False
        self.calls_after = 0

    def _guard(self, kind: str, path: str, partial: Callable[[], None] | None = None) -> None:
        if self.hit:
            self.calls_after += 1
        if kind != self.kind:
            return
        self.left -= 1
        if self.left == 0:
            self.hit = True
            if partial is not None:
                partial()
            raise OSError(self.code, os.strerror(self.code), path)

    def on_write(self, file: WrappedFile, offset: int, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        # A full disk may take a part of the write.
        self._guard("write", file.path, lambda: file.file.write(offset, [data[: len(data) // 2]]))
        file.file.write(offset, parts)

    def on_allocate(self, file: WrappedFile, size_bytes: int) -> None:
        self._guard("allocate", file.path)
        super().on_allocate(file, size_bytes)

    def on_sync(self, file: WrappedFile) -> None:
        self._guard("sync", file.path)
        super().on_sync(file)

    def open(self, path: str, *, create: bool = False) -> WrappedFile:
        self._guard("create" if create else "open", path)
        return super().open(path, create=create)

    def rename(self, source: str, target: str) -> None:
        self._guard("rename", source)
        super().rename(source, target)

    def remove(self, path: str) -> None:
        self._guard("remove", path)
        super().remove(path)

    def sync_folder(self, path: str) -> None:
        self._guard("sync_folder", path)
        super().sync_folder(path)


NO_SPACE, IO_ERROR = errno.ENOSPC, errno.EIO
