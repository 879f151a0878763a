"""Every disk that a power cut may leave: record the file calls of a run, rebuild the images.

A small ALICE (Pillai et al., OSDI 2014). `Recorder` wraps any `Disk` and keeps the calls in order;
`crash_images` then cuts the power after each call. What was synced is there. Of the rest *any*
subset is there: data calls are split at sector borders, names (create, rename, remove) become
durable only by the sync of their folder. That is weaker than what ext4, XFS or APFS do, and as weak
as POSIX lets them be. It knows nothing of logs: callers judge the images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from kvstore.ports import Disk, File, Lock
from tests.wal.memory_disk import put

SECTOR_BYTES = 512


@dataclass(frozen=True)
class Call:
    """One recorded call. `kind` is a method of `Disk` or `File`, or `note`."""

    kind: str
    inode: int = 0
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""
    note: Any = None

    def __str__(self) -> str:
        what = f" {len(self.data)}@{self.offset}" if self.data else f" {self.offset or ''}"
        return f"{self.kind} #{self.inode} {self.path}{what}{self.target}".rstrip()


class Trace:
    """What one run did, in order, on files that began as `initial`."""

    def __init__(self, initial: Mapping[str, bytes] | None = None) -> None:
        self.calls: list[Call] = []
        self.initial = dict(initial or {})
        self.first_inodes = {path: number for number, path in enumerate(self.initial, 1)}
        self.inodes = dict(self.first_inodes)
        self.next_inode = len(self.inodes) + 1

    def add(self, kind: str, **fields: Any) -> None:
        self.calls.append(Call(kind, **fields))

    def note(self, what: Any) -> None:
        """Mark a moment of the program, such as an acknowledgement."""
        self.add("note", note=what)

    # These keep track of which file a name means.
    def create(self, path: str) -> int:
        inode = self.inodes[path] = self.next_inode
        self.next_inode += 1
        self.add("create", inode=inode, path=path)
        return inode

    def write(self, inode: int, offset: int, data: bytes, *, synchronous: bool = False) -> None:
        self.add("write", inode=inode, offset=offset, data=data)
        if synchronous:  # opened with O_DSYNC: durable on return, this write alone
            self.add("sync_range", inode=inode, offset=offset, note=len(data))

    def rename(self, source: str, target: str) -> None:
        inode = self.inodes[target] = self.inodes.pop(source)
        self.add("rename", inode=inode, path=source, target=target)

    def remove(self, path: str) -> None:
        self.add("remove", inode=self.inodes.pop(path), path=path)


class Recorder:
    """A `Disk` that does everything on another one and keeps the calls."""

    def __init__(self, disk: Disk, initial: Mapping[str, bytes] | None = None) -> None:
        self.disk = disk
        self.trace = Trace(initial)

    def open(self, path: str, *, create: bool = False) -> File:
        file = self.disk.open(path, create=create)
        inode = self.trace.create(path) if create else self.trace.inodes[path]
        return _RecordedFile(file, inode, self.trace)

    def rename(self, source: str, target: str) -> None:
        self.disk.rename(source, target)
        self.trace.rename(source, target)

    def remove(self, path: str) -> None:
        self.disk.remove(path)
        self.trace.remove(path)

    def make_folder(self, path: str) -> None:
        self.disk.make_folder(path)

    def list(self, path: str) -> list[str]:
        return self.disk.list(path)

    def exists(self, path: str) -> bool:
        return self.disk.exists(path)

    def sync_folder(self, path: str) -> None:
        self.disk.sync_folder(path)
        self.trace.add("sync_folder", path=path)

    def lock(self, path: str) -> Lock:
        return self.disk.lock(path)


class _RecordedFile:
    def __init__(self, file: File, inode: int, trace: Trace) -> None:
        self.file, self.inode, self.trace = file, inode, trace
        self.size, self.read, self.close = file.size, file.read, file.close

    def write(self, offset: int, parts: Sequence[bytes]) -> None:
        self.file.write(offset, parts)
        self.trace.write(self.inode, offset, b"".join(parts))

    def allocate(self, size_bytes: int) -> None:
        self.file.allocate(size_bytes)
        self.trace.add("allocate", inode=self.inode, offset=size_bytes)

    def truncate(self, size_bytes: int) -> None:
        self.file.truncate(size_bytes)
        self.trace.add("truncate", inode=self.inode, offset=size_bytes)

    def sync(self) -> None:
        self.file.sync()
        self.trace.add("sync", inode=self.inode)


@dataclass
class Image:
    """The files after one power cut."""

    files: dict[str, bytes]
    notes: list[Any]
    """The notes before the cut, oldest first."""

    story: str
    """When the power went and what was lost, for failure messages."""


@dataclass
class _Volume:
    """What is durable, and what waits in the cache in which order."""

    data: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    waiting: list[Call] = field(default_factory=list)

    def take(self, call: Call, sector_bytes: int) -> None:
        if call.kind == "sync":
            self._settle(lambda one: one.kind not in _NAMES and one.inode == call.inode)
        elif call.kind == "sync_range":
            within = range(call.offset, call.offset + call.note)
            self._settle(
                lambda one: one.kind == "write" and one.inode == call.inode and one.offset in within
            )
        elif call.kind == "sync_folder":
            self._settle(lambda one: one.kind in _NAMES and _folder(one.path) == call.path)
        elif call.kind == "write":
            self.waiting += _pieces(call, sector_bytes)
        elif call.kind != "note":
            self.waiting.append(call)

    def _settle(self, done: Callable[[Call], bool]) -> None:
        for call in self.waiting:
            if done(call):
                _apply(call, self.data, self.names)
        self.waiting = [call for call in self.waiting if not done(call)]


_NAMES = frozenset(("create", "rename", "remove"))


def crash_images(
    trace: Trace,
    *,
    first_call: int = 0,
    sector_bytes: int = SECTOR_BYTES,
    per_cut_max: int = 64,
    seed: int = 1,
) -> Iterator[Image]:
    """Yield the different images of power cuts after each call from `first_call` on.

    A cut with n waiting pieces has 2**n images. All are built when they are at most `per_cut_max`;
    else none, all, every prefix, every single piece, all but each single one, and random subsets.
    """
    rng = random.Random(seed)
    first = trace.first_inodes
    volume = _Volume(
        {first[path]: bytearray(data) for path, data in trace.initial.items()}, dict(first)
    )
    notes: list[Any] = []
    seen: set[int] = set()
    for number, call in enumerate(trace.calls):
        volume.take(call, sector_bytes)
        if call.kind == "note":
            notes.append(call.note)
            seen.clear()  # the same files mean something else after an acknowledgement
        if number < first_call:
            continue
        for kept in _subsets(len(volume.waiting), per_cut_max, rng):
            files = _build(volume, kept)
            digest = hash(frozenset(files.items()))
            if digest in seen:
                continue
            seen.add(digest)
            lost = [str(one) for one, keep in zip(volume.waiting, kept, strict=True) if not keep]
            story = f"power cut after call {number} ({call}); lost: {'; '.join(lost) or 'nothing'}"
            yield Image(files, list(notes), story)


def _build(volume: _Volume, kept: Sequence[bool]) -> dict[str, bytes]:
    waiting = [call for call, keep in zip(volume.waiting, kept, strict=True) if keep]
    touched = {call.inode for call in waiting if call.kind not in _NAMES}
    data = {
        inode: bytearray(old) if inode in touched else old for inode, old in volume.data.items()
    }
    names = dict(volume.names)
    for call in waiting:
        _apply(call, data, names)
    return {path: bytes(data.get(inode, b"")) for path, inode in names.items()}


def _apply(call: Call, data: dict[int, bytearray], names: dict[str, int]) -> None:
    if call.kind == "create":
        names[call.path] = call.inode
    elif call.kind == "rename":
        names.pop(call.path, None)
        names[call.target] = call.inode
    elif call.kind == "remove":
        names.pop(call.path, None)
    else:
        content = data.setdefault(call.inode, bytearray())
        if call.kind == "write":
            put(content, call.offset, call.data)
        elif call.kind == "allocate":
            content.extend(bytes(max(0, call.offset - len(content))))
        else:
            del content[call.offset :]
            content.extend(bytes(call.offset - len(content)))


def _pieces(call: Call, sector_bytes: int) -> Iterator[Call]:
    at, end = call.offset, call.offset + len(call.data)
    while at < end:
        stop = min(end, (at // sector_bytes + 1) * sector_bytes)
        data = call.data[at - call.offset : stop - call.offset]
        yield Call("write", call.inode, call.path, offset=at, data=data)
        at = stop


def _subsets(count: int, most: int, rng: random.Random) -> Iterator[tuple[bool, ...]]:
    if 2**count <= most:
        yield from product((False, True), repeat=count)
        return
    whole = range(count)
    yield (False,) * count
    for n in whole:
        yield tuple(i <= n for i in whole)
        yield tuple(i == n for i in whole)
        yield tuple(i != n for i in whole)
    for _ in range(most - 3 * count):
        yield tuple(rng.random() < 0.5 for _ in whole)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
