"""Opens stores in a process of its own: LMDB reads a damaged file through its memory map, so that
what is an error elsewhere can end the process (SIGBUS).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Self

import lmdb
import msgpack

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.mvcc.errors import StorageError
from kvstore.mvcc.marks import Marks

MAP_BYTES = 64 << 20


class UnreadableError(Exception):
    """The store cannot be opened or read."""


class StoreReader:
    """Client side; use as a context manager.

    `command`: module and arguments of the process; it answers each path with one line, the hex of
    a msgpack array of applied index, keys and error.
    """

    def __init__(self, *command: str) -> None:
        self._command = command or ("tests.wal.store_reader",)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def read(self, path: str) -> tuple[int, dict[bytes, bytes]]:
        """Return applied index and keys of what is at the path; it is made if it is not there."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(path.encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.__exit__()
            self.__enter__()
            raise UnreadableError(f"reading it ended the process (status {code})")
        applied, keys, error = msgpack.unpackb(bytes.fromhex(line.decode()))
        if error:
            raise UnreadableError(error)
        return applied, keys


def _read(path: str) -> tuple[int, dict[bytes, bytes], str]:
    try:
        store = LmdbBackend(path, map_size_bytes=MAP_BYTES)
    except (lmdb.Error, StorageError) as error:
        return 0, {}, f"{type(error).__name__}: {error}"
    try:
        return Marks.applied_in(store).index, dict(store.scan("key")), ""
    except lmdb.Error as error:
        return 0, {}, f"{type(error).__name__}: {error}"
    finally:
        store.close()


def answer(read: Callable[[str], tuple[int, dict[bytes, bytes], str]]) -> None:
    """Server side: read what stdin names until it ends."""
    for line in sys.stdin:
        sys.stdout.write(msgpack.packb(read(line.rstrip("\n"))).hex() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    answer(_read)
