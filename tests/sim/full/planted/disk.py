"""Planted bugs of the log and its recovery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.raft.messages import AppendWork
from kvstore.server.member import Member
from kvstore.wal import recovery
from kvstore.wal.log import Wal
from tests.sim.full.disk import Handle, SimFile
from tests.sim.full.machine import SimDiskThread
from tests.sim.full.planted.bug import FullBug
from tests.sim.invariants import DURABLE_FIRST


def no_fsync(self: SimFile) -> None:
    """Call the data durable while it is in the page cache."""


def no_folder_fsync(self: Handle, path: str) -> None:
    """Trust that names are durable with the data."""


def retrying_save(self: SimDiskThread, works: list[AppendWork]) -> None:
    """Ask the disk again after a failed fsync, and believe the second answer."""
    self._process.host.inflight = self._works = works
    wal = self._wal
    try:
        wal.save(works)
    except OSError:
        wal._failure = None
        assert wal._file is not None
        wal._file.sync()
        wal._last = (
            (works[-1].entries[-1].index, works[-1].entries[-1].term)
            if works[-1].entries
            else wal._last
        )
    self._post(lambda: self._saved(works, 0.0))


def write_skipped_at_open(real: Callable[..., Any]) -> Callable[..., Any]:
    """Only fsync the last batch at the start, not write it again."""

    def resume(self: Wal, recovered: Any, segments: Any) -> None:
        write = SimFile.write
        try:
            SimFile.write = lambda *_: None  # type: ignore[method-assign,assignment]
            real(self, recovered, segments)
        finally:
            SimFile.write = write  # type: ignore[method-assign]

    return resume


def everything_is_torn(segment: recovery.Segment) -> int:
    """Take whatever is behind the last good batch for what a crash left."""
    return len(bytes(segment.data[segment.end :]).rstrip(b"\0"))


def acknowledged_early(self: SimDiskThread, works: list[AppendWork]) -> None:
    """Report before the fsync."""
    self._process.host.inflight = self._works = works
    self._process.loop.call_soon(self._saved, works, 0.0)
    self._wal.save(works)


def release_what_is_applied(real: Callable[..., Any]) -> Callable[..., Any]:
    """Free the log up to what is applied, though the store on disk is behind."""

    def applied(self: Member, result: Any) -> None:
        real(self, result)
        self.disk.release(result.index)

    return applied


BUGS = (
    FullBug(
        "fsync does nothing",
        "log",
        "etcd #14143: loss of a committed write under lazyfs",
        ((SimFile, "sync", no_fsync),),
        "crash",
        20_000,
    ),
    FullBug(
        "names are not synced",
        "log",
        "etcd #6378: file systems persist in another order than written",
        ((Handle, "sync_folder", no_folder_fsync),),
        "crash",
        20_000,
    ),
    FullBug(
        "acknowledged before the fsync",
        "log",
        "etcd #14370: acknowledged while the log is still being written",
        ((SimDiskThread, "_save", acknowledged_early),),
        "crash",
        30_000,
        frozenset((DURABLE_FIRST,)),
    ),
    FullBug(
        "a failed fsync is tried again",
        "log",
        "fsyncgate: PostgreSQL and others until 2018",
        ((SimDiskThread, "_save", retrying_save),),
        "rot",
        120_000,
        slow=True,
    ),
    FullBug(
        "the last batch is not written again at the start",
        "log",
        "fsyncgate, across a restart",
        ((Wal, "_resume", write_skipped_at_open(Wal._resume)),),
        "rot",
        150_000,
        slow=True,
    ),
    FullBug(
        "damage is taken for a torn tail",
        "recovery",
        "logs truncated at a bad checksum (FAST '18, protocol-aware recovery)",
        ((recovery, "torn_bytes", everything_is_torn),),
        "rot",
        210_000,
        slow=True,
    ),
    FullBug(
        "the log is released ahead of the store",
        "recovery",
        "etcd #10219: segments deleted before the snapshot was safe",
        ((Member, "_applied", release_what_is_applied(Member._applied)),),
        "crash",
        60_000,
    ),
)
