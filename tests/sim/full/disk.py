"""The disk of one machine: what processes see, what is durable, and what a power cut leaves.

`SimDisk` lasts for the run. A process works through a `Handle`, which is void once it died. Three
layers: *current* bytes and names (the page cache), the *durable* ones, and the *waiting* calls
between them. The calls of the disk thread's round under way are `inflight`: they really happen at
moments that nobody knows, so a crash takes back a random tail of them.

A power cut keeps any legal subset of what waits: data calls are split at sector borders, names need
the sync of their folder. A killed process loses nothing that it wrote, durable or not. After a
failed fsync the kernel calls the pages clean: they are seen until the power goes, and no later
fsync writes them (fsyncgate).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sortedcontainers import SortedDict

from kvstore.mvcc.backend_memory import MemoryView
from kvstore.ports import TABLES, Change, Table
from kvstore.wal.errors import LockedError
from tests.sim.full.loop import Died
from tests.sim.world import World
from tests.wal.memory_disk import put

SECTOR_BYTES = 512
NAMES = frozenset(("create", "rename", "remove"))


class Tables:
    """What a store file holds: each commit is atomic and durable, as LMDB's."""

    def __init__(self) -> None:
        self.tables: dict[Table, SortedDict[bytes, bytes]] = {t: SortedDict() for t in TABLES}
        self.used_bytes = 0


@dataclass(slots=True)
class Inode:
    """A file, whatever its names are."""

    number: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    store: Tables | None = None
    file: Any = None
    """Of a store on real files (`tests.sim.full.lmdb_files`)."""


@dataclass(slots=True)
class Operation:
    """One call that changed something, and how to take it back from the page cache."""

    kind: str
    inode: Inode
    offset: int = 0
    data: bytes = b""
    path: str = ""
    target: str = ""
    undo: Callable[[], None] | None = None


class SimDisk:
    """One machine's disk."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.paths: dict[str, Inode] = {}
        self.folders: set[str] = set()
        self.durable_names: dict[str, Inode] = {}
        self.waiting: list[Operation] = []
        self.inflight: list[Operation] | None = None
        """The calls of the disk thread's round; None between rounds."""
        self.locked: set[str] = set()
        self.life = 0
        self.number = 0
        self.slow_factor = self.usual_factor = 1
        # faults
        self.fail_sync = False
        self.full = False
        self.rotten = False

    def statistics(self) -> dict[str, int]:
        """Say what is there, for traces."""
        return {"files": len(self.paths), "unsynced": len(self.waiting)}

    # what happens to it

    def begin_round(self) -> None:
        """Collect the disk thread's calls from now on."""
        assert self.inflight is None
        self.inflight = []

    def end_round(self) -> None:
        """The round is over: what it synced is durable."""
        done, self.inflight = self.inflight, None
        for operation in done or ():
            self._take(operation)

    def kill(self) -> None:
        """The process dies, the machine goes on."""
        self._cut_round()
        self._end_life()

    def power_cut(self) -> None:
        """The machine dies: only a legal subset of what was not synced is there."""
        world = self._world
        self._cut_round()
        kept = world.random.random() if world.chance(0.7) else float(world.chance(0.5))
        prefix = world.chance(0.3)
        waiting = self.waiting
        cut = world.between(0, len(waiting)) if waiting else 0
        lost = 0
        for position, operation in enumerate(waiting):
            if operation.kind in NAMES or operation.kind != "write":
                if (position < cut) if prefix else world.chance(kept):
                    self._apply(operation)
                else:
                    lost += 1
                continue
            for piece in _pieces(operation):
                if (position < cut) if prefix else world.chance(kept):
                    self._apply(piece)
                else:
                    lost += 1
        if lost:
            world.mark("power cut lost writes")
        if self.waiting and any(o.kind in NAMES for o in waiting):
            world.mark("power cut with names not synced")
        self.waiting = []
        self.paths = dict(self.durable_names)
        for inode in self.paths.values():
            inode.data = bytearray(inode.durable)
        self._end_life()

    def _cut_round(self) -> None:
        """Take back the calls of the round under way that had not happened yet."""
        done, self.inflight = self.inflight, None
        if not done:
            return
        happened = self._world.between(0, len(done))
        if happened < len(done):
            self._world.mark("crash inside a round of the disk thread")
        for operation in reversed(done[happened:]):
            if operation.undo is not None:
                operation.undo()
        for operation in done[:happened]:
            self._take(operation)

    def _end_life(self) -> None:
        self.life += 1
        self.locked.clear()
        self.fail_sync = False

    def flip_bit(self, path: str, bit: int) -> None:
        """Rot one durable bit."""
        inode = self.paths[path]
        for data in (inode.data, inode.durable):
            if bit // 8 < len(data):
                data[bit // 8] ^= 1 << bit % 8

    # what calls do

    def record(self, operation: Operation) -> None:
        """Note a call whose effect the page cache shows already."""
        if self.inflight is not None:
            self.inflight.append(operation)
        else:
            self._take(operation)

    def _take(self, operation: Operation) -> None:
        if operation.kind == "sync":
            inode = operation.inode
            self._settle(lambda one: one.kind not in NAMES and one.inode is inode)
        elif operation.kind == "sync_folder":
            path = operation.path
            self._settle(lambda one: one.kind in NAMES and _folder(one.path) == path)
        elif operation.kind == "failed_sync":
            # Clean pages, never written: gone with the power.
            inode = operation.inode
            self.waiting = [
                one for one in self.waiting if one.kind in NAMES or one.inode is not inode
            ]
        else:
            self.waiting.append(operation)

    def _settle(self, done: Callable[[Operation], bool]) -> None:
        rest = []
        for operation in self.waiting:
            if done(operation):
                self._apply(operation)
            else:
                rest.append(operation)
        self.waiting = rest

    def _apply(self, operation: Operation) -> None:
        kind, inode, names = operation.kind, operation.inode, self.durable_names
        if kind == "write":
            put(inode.durable, operation.offset, operation.data)
        elif kind == "create":
            names[operation.path] = inode
        elif kind == "rename":
            names.pop(operation.path, None)
            names[operation.target] = inode
        elif kind == "remove":
            names.pop(operation.path, None)
        elif kind == "allocate":
            _extend(inode.durable, operation.offset)
        else:
            del inode.durable[operation.offset :]
            _extend(inode.durable, operation.offset)


def _extend(data: bytearray, size_bytes: int) -> None:
    data.extend(bytes(max(0, size_bytes - len(data))))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _pieces(operation: Operation) -> Iterator[Operation]:
    at, end = operation.offset, operation.offset + len(operation.data)
    while at < end:
        stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        data = operation.data[at - operation.offset : stop - operation.offset]
        yield Operation("write", operation.inode, at, data)
        at = stop


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class Handle:
    """`kvstore.ports.Disk` of one process."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self._life = disk.life

    def check(self) -> SimDisk:
        """Return the disk; a dead process gets no further."""
        if self.disk.life != self._life:
            raise Died
        return self.disk

    def open(self, path: str, *, create: bool = False) -> SimFile:
        disk = self.check()
        if create:
            if path in disk.paths:
                raise _error(errno.EEXIST, path)
            self.create(path)
        elif path not in disk.paths:
            raise _error(errno.ENOENT, path)
        return SimFile(self, path, disk.paths[path])

    def create(self, path: str) -> Inode:
        """Make a new file."""
        disk = self.check()
        if disk.full:
            raise _error(errno.ENOSPC, path)
        disk.number += 1
        inode = disk.paths[path] = Inode(disk.number)
        disk.record(
            Operation("create", inode, path=path, undo=lambda: void(disk.paths.pop(path, None)))
        )
        return inode

    def rename(self, source: str, target: str) -> None:
        disk = self.check()
        inode = disk.paths.pop(source)
        replaced = disk.paths.get(target)
        disk.paths[target] = inode

        def undo() -> None:
            disk.paths[source] = inode
            if replaced is None:
                disk.paths.pop(target, None)
            else:
                disk.paths[target] = replaced

        disk.record(Operation("rename", inode, path=source, target=target, undo=undo))

    def remove(self, path: str) -> None:
        disk = self.check()
        if path not in disk.paths:
            raise _error(errno.ENOENT, path)
        inode = disk.paths.pop(path)
        disk.record(
            Operation("remove", inode, path=path, undo=lambda: disk.paths.update({path: inode}))
        )

    def make_folder(self, path: str) -> None:
        self.check().folders.add(path)

    def list(self, path: str) -> list[str]:
        found = [p.rpartition("/") for p in self.check().paths]
        return sorted(name for folder, _, name in found if folder == path)

    def exists(self, path: str) -> bool:
        disk = self.check()
        return path in disk.paths or path in disk.folders

    def sync_folder(self, path: str) -> None:
        disk = self.check()
        self.may_fail_sync(path)
        disk.record(Operation("sync_folder", _NO_INODE, path=path))

    def may_fail_sync(self, path: str) -> None:
        """Raise what the disk was told to fail with."""
        if self.disk.fail_sync:
            self.disk.fail_sync = False
            raise _error(errno.EIO, path)

    def lock(self, path: str) -> SimLock:
        disk = self.check()
        if path in disk.locked:
            raise LockedError(path, None)
        disk.locked.add(path)
        return SimLock(disk, path)


_NO_INODE = Inode(0)


def void(_: object) -> None:
    """Swallow a value."""


class SimLock:
    def __init__(self, disk: SimDisk, path: str) -> None:
        self._disk, self._path = disk, path

    def release(self) -> None:
        self._disk.locked.discard(self._path)


class SimFile:
    """`kvstore.ports.File`."""

    def __init__(self, handle: Handle, path: str, inode: Inode) -> None:
        self._handle, self._path, self._inode = handle, path, inode

    def size(self) -> int:
        self._handle.check()
        return len(self._inode.data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        self._handle.check()
        return bytes(self._inode.data[offset : offset + size_bytes])

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        disk = self._handle.check()
        new = b"".join(parts)
        data = self._inode.data
        if disk.full and offset + len(new) > len(data):
            raise _error(errno.ENOSPC, self._path)
        undo = None
        if disk.inflight is not None:
            old_size, old = len(data), bytes(data[offset : offset + len(new)])

            def undo() -> None:
                put(data, offset, old)
                del data[old_size:]

        put(data, offset, new)
        disk.record(Operation("write", self._inode, offset, new, undo=undo))

    def allocate(self, size_bytes: int) -> None:
        disk = self._handle.check()
        data = self._inode.data
        if disk.full and size_bytes > len(data):
            raise _error(errno.ENOSPC, self._path)
        old_size = len(data)
        _extend(data, size_bytes)
        disk.record(
            Operation("allocate", self._inode, size_bytes, undo=lambda: _cut(data, old_size))
        )

    def truncate(self, size_bytes: int) -> None:
        disk = self._handle.check()
        data = self._inode.data
        old = bytes(data)
        del data[size_bytes:]
        _extend(data, size_bytes)
        disk.record(Operation("truncate", self._inode, size_bytes, undo=lambda: put(data, 0, old)))

    def sync(self) -> None:
        disk = self._handle.check()
        try:
            self._handle.may_fail_sync(self._path)
        except OSError:
            disk.record(Operation("failed_sync", self._inode))
            raise
        disk.record(Operation("sync", self._inode))

    def close(self) -> None: ...


def _cut(data: bytearray, size_bytes: int) -> None:
    del data[size_bytes:]


class SimBackend:
    """`kvstore.ports.Backend` over a store file; a commit that did not end is lost whole."""

    def __init__(self, handle: Handle, path: str, *, map_size_bytes: int) -> None:
        self._handle = handle
        disk = handle.check()
        if path not in disk.paths:
            handle.create(path)
        for name in (path + "-lock",):
            if name not in disk.paths:
                handle.create(name)
        inode = disk.paths[path]
        if inode.store is None:
            inode.store = Tables()
        self._store = inode.store
        self._tables = inode.store.tables
        self._map_size_bytes = map_size_bytes

    def get(self, table: Table, key: bytes) -> bytes | None:
        value: bytes | None = self._tables[table].get(key)
        return value

    def scan(
        self, table: Table, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        records = self._tables[table]
        found = [(key, records[key]) for key in records.irange(start, end, inclusive=(True, False))]
        yield from found

    def commit(self, changes: Sequence[Change], puts: Mapping[bytes, bytes] | None = None) -> None:
        disk = self._handle.check()
        if disk.full:
            raise _error(errno.ENOSPC, "store")
        store = self._store
        puts_of_key: list[Change] = [("key", key, value) for key, value in (puts or {}).items()]
        for table, key, value in [*changes, *puts_of_key]:
            records = self._tables[table]
            old = records.pop(key, None) if value is None else records.get(key)
            if old is not None:
                store.used_bytes -= len(key) + len(old)
            if value is not None:
                records[key] = value
                store.used_bytes += len(key) + len(value)

    def view(self) -> MemoryView:
        return MemoryView({table: records.copy() for table, records in self._tables.items()})

    def size_bytes(self) -> int:
        return self._store.used_bytes

    def used_bytes(self) -> int:
        return self._store.used_bytes

    def close(self) -> None: ...
