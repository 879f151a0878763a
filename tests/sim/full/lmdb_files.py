"""The product's LMDB backend on real files, under a simulated disk; everything else is simulated.

Each inode of the simulated disk has a real file. LMDB commits with a sync, so what a kill or a
power cut leaves is what the last commit left: a copy of the file as it is between two commits.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.ports import Change
from tests.sim.full.disk import Handle


class StoreFiles:
    """All store files of one run."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._count = 0
        self.open: dict[FileBackend, None] = {}

    def new_path(self) -> str:
        """Return a name that no other file has."""
        self._count += 1
        return str(self._folder / f"{self._count}.lmdb")

    def close(self) -> None:
        """Close what dead processes left open."""
        for backend in list(self.open):
            backend.close()


class RealFile:
    """What stands behind an inode."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.user: FileBackend | None = None


class FileBackend(LmdbBackend):
    """`LmdbBackend` whose path lies on a simulated disk."""

    def __init__(
        self, handle: Handle, files: StoreFiles, path: str, *, map_size_bytes: int
    ) -> None:
        disk = handle.check()
        for name in (path, path + "-lock"):
            if name not in disk.paths:
                handle.create(name)
        inode = disk.paths[path]
        if inode.file is None:
            inode.file = RealFile(files.new_path())
        self._file: RealFile = inode.file
        if self._file.user is not None:
            # A process that is dead has it open, and LMDB opens a file only once in a process.
            old, self._file.path = self._file.path, files.new_path()
            shutil.copyfile(old, self._file.path)
            self._file.user.close()
        self._handle = handle
        self._files = files
        super().__init__(self._file.path, map_size_bytes=map_size_bytes)
        self._file.user = self
        files.open[self] = None

    def commit(self, changes: Sequence[Change], puts: Mapping[bytes, bytes] | None = None) -> None:
        if self._handle.check().full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "store")
        super().commit(changes, puts)

    def close(self) -> None:
        if self in self._files.open:
            del self._files.open[self]
            self._file.user = None
            super().close()
