"""The log as the disk thread uses it: create, open, save, release. All format is in `codec`.

At any time at most one batch is written but not fsynced: `save` writes one frame and fsyncs it
before it returns, and a work that needs no fsync is not written at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvstore.ports import Disk, File, Lock
from kvstore.raft.messages import AppendWork, HardState, Index, SnapshotMeta, Term
from kvstore.wal import codec, recovery
from kvstore.wal.codec import Identity
from kvstore.wal.errors import BrokenError, LogExistsError, NoLogError
from kvstore.wal.recovery import Recovered, Segment

LOCK_NAME = "LOCK"

_CLOSED = "it is closed"

_AHEAD_BATCH_BYTES_MAX = 64 << 10
"""Larger batches write no zeros ahead: their own bytes dominate."""

_SEAL_BYTES_MAX = codec.frame_size(16)


@dataclass(slots=True, frozen=True)
class Options:
    """How the log uses the disk."""

    segment_bytes: int = 64 << 20
    """Size of a segment; one batch may make a segment larger. Larger: fewer pauses of some
    milliseconds between segments; smaller: less is kept that `release` could free."""

    zero_ahead_bytes: int = 256 << 10
    """How many zeros a small batch writes behind itself when it comes to fresh blocks; 0: none.
    The first write to an allocated block costs the file system a journal entry, so that the fsync
    of a 4 KiB batch took 261 us instead of 171 (ext4, virtual disk). Doubles the bytes written."""

    def __post_init__(self) -> None:
        if self.segment_bytes < codec.HEADER_SCAN_BYTES:
            raise ValueError(f"segment_bytes must be at least {codec.HEADER_SCAN_BYTES}")


@dataclass(slots=True)
class _Used:
    """A segment of the log on disk."""

    id: int
    path: str
    last_index: Index


class Wal:
    """The durable log of one member. All methods block; one thread at a time uses it.

    Every error of the system is an OSError out of the method that met it. From then on the object
    refuses all use: what the disk holds is unknown, and the caller must end the process
    (`kvstore.wal.fatal`).
    """

    __slots__ = (
        "_disk", "_end", "_failure", "_file", "_folder", "_hard_state", "_identity", "_last",
        "_lock", "_options", "_previous", "_salt", "_segments", "_sequence", "_size_bytes",
        "_snapshot", "_spare", "_written_state", "_zeroed", "_zeros", "written_bytes",
    )  # fmt: skip

    def __init__(
        self, disk: Disk, folder: str, identity: Identity, options: Options, lock: Lock
    ) -> None:
        """Use `create` or `open`."""
        self._disk = disk
        self._folder = folder
        self._identity = identity
        self._options = options
        self._lock = lock
        self._failure: str | None = None

        self._hard_state = HardState(0, 0, 0)
        self._written_state = self._hard_state
        """Differs from `_hard_state` at most by a commit index that waits for the next batch."""

        self._snapshot: SnapshotMeta | None = None
        self._last: tuple[Index, Term] = (0, 0)

        self._segments: deque[_Used] = deque()
        self._spare: File | None = None
        """The next segment: allocated, all zero, durable under its spare name."""

        # Of the segment in use. `_end` is where the next frame goes; the bytes behind it are zero.
        self._file: File | None = None
        self.written_bytes = 0
        """Of batches, by this object; zeros ahead are not counted."""
        self._size_bytes = 0
        self._end = 0
        self._zeroed = 0
        """Up to here the blocks were written once; behind it they are only allocated."""
        self._zeros = bytes(options.zero_ahead_bytes)
        self._salt = 0
        self._previous = 0
        self._sequence = 0

    # --- opening ------------------------------------------------------------------------------

    @staticmethod
    def exists(disk: Disk, folder: str) -> bool:
        """Tell whether the folder holds a log: then `open`, else `create`."""
        return bool(recovery.list_segments(disk, folder))

    @classmethod
    def create(cls, disk: Disk, folder: str, identity: Identity, options: Options) -> Wal:
        """Make an empty log; it is durable on return. A crash on the way leaves that or no log.

        Raises:
            LogExistsError: there is one; nothing was changed.
            LockedError: another process uses the folder.
            OSError: the disk refused.
        """
        disk.make_folder(folder)
        wal = cls(disk, folder, identity, options, disk.lock(f"{folder}/{LOCK_NAME}"))
        try:
            wal._start_empty()
        except BaseException:
            wal._let_go()
            raise
        return wal

    def _start_empty(self) -> None:
        if self.exists(self._disk, self._folder):
            what = f"{self._folder} holds a log already; open it instead"
            raise LogExistsError(what)
        self._remove_spares()
        self._begin_segment(1)

    @classmethod
    def open(
        cls, disk: Disk, folder: str, identity: Identity | None, options: Options
    ) -> tuple[Wal, Recovered]:
        """Read the log, repair what a crash left at its end, and make ready for `save`.

        All that is returned is durable: the last batch, which may be in the page cache only, is
        written and fsynced again. `identity` None accepts any (tools); a member passes its own.

        Raises:
            NoLogError, IdentityError, FormatError, CorruptError: nothing was changed.
            LockedError: another process uses the folder.
            OSError: the disk refused.
        """
        if not disk.exists(folder):
            raise NoLogError(f"there is no log in {folder}")
        lock = disk.lock(f"{folder}/{LOCK_NAME}")
        try:
            recovered, segments = recovery.recover(disk, folder, identity)
        except BaseException:
            lock.release()
            raise
        wal = cls(disk, folder, recovered.identity, options, lock)
        try:
            wal._resume(recovered, segments)
        except BaseException:
            wal._let_go()
            raise
        return wal, recovered

    def _resume(self, recovered: Recovered, segments: list[Segment]) -> None:
        last = segments[-1]
        frame = last.frames[-1]
        self._hard_state = self._written_state = recovered.hard_state
        self._snapshot = recovered.snapshot
        entries = recovered.entries
        self._last = (entries[-1].index, entries[-1].term) if entries else recovered.compacted
        self._segments += [_Used(s.header.segment, s.path, s.last_index) for s in segments]
        self._file = self._disk.open(last.path)
        self._size_bytes = len(last.data)
        self._end = self._zeroed = last.end
        self._salt = last.header.crc
        self._previous = frame.crc
        self._sequence = frame.sequence
        # The process before us may have died between write and fsync, or of a failed fsync, after
        # which Linux holds the pages clean though the disk never got them. So the last batch is
        # written again, not only fsynced. Everything before it was fsynced before it was written.
        self._file.write(frame.offset, [bytes(last.data[frame.offset : frame.end])])
        if recovered.dropped_bytes:
            self._file.write(last.end, [bytes(recovered.dropped_bytes)])
        self._file.sync()
        self._disk.sync_folder(self._folder)
        if last.sealed:
            self._adopt_spare(last.header.segment + 1)
            self._begin_segment(last.header.segment + 1)
        else:
            self._remove_spares()

    def _remove_spares(self) -> None:
        """Remove what a crash left of segments that were not in use yet."""
        spares = [name for name in self._disk.list(self._folder) if name.endswith(".tmp")]
        for name in spares:
            self._disk.remove(f"{self._folder}/{name}")
        if spares:
            self._disk.sync_folder(self._folder)

    def _adopt_spare(self, segment: int) -> None:
        """Take the spare that a crash left after the seal. It must not be missing for a moment."""
        self._spare = self._disk.open(f"{self._folder}/{recovery.spare_name(segment)}")
        size_bytes = self._spare.size()
        data = self._spare.read(0, size_bytes).rstrip(b"\0")
        self._spare.write(0, [bytes(len(data))])

    # --- writing ------------------------------------------------------------------------------

    def save(self, works: Sequence[AppendWork]) -> None:
        """Make the works durable, in order, as one batch: one write, one fdatasync.

        After a crash either all of it is there or nothing. A work without `must_sync` (the commit
        index moved) costs nothing: it is kept and goes out with the next batch.

        Raises:
            OSError: the disk refused; the batch may or may not be in the log after a restart.
                Nothing of it may be acknowledged, and the process must end.
            BrokenError: an earlier call failed; nothing was written.
        """
        self._check_usable()
        records: list[Any] = []
        index, term = self._last
        snapshot = self._snapshot
        state = self._hard_state
        for work in works:
            if work.hard_state is not None:
                state = work.hard_state
            if work.snapshot is not None:
                snapshot = work.snapshot
                index, term = snapshot.index, snapshot.term
                records.append(codec.snapshot_record(snapshot))
            if work.entries:
                first = work.entries[0].index
                assert 0 < first <= index + 1, "the log would have a gap"
                assert work.entries[-1].index == first + len(work.entries) - 1
                records.append(codec.entries_record(work.entries))
                index, term = work.entries[-1].index, work.entries[-1].term
        written = self._written_state
        assert state.term >= written.term, "terms never go back"
        if not records and state.term == written.term and state.vote == written.vote:
            self._hard_state = state
            return
        if state != written:
            records.append(codec.hard_state_record(state))
        try:
            self._write(codec.encode_records(records))
        except BaseException as error:
            self._fail("save", error)
            raise
        self._hard_state = self._written_state = state
        self._last = (index, term)
        self._snapshot = snapshot
        used = self._segments[-1]
        for work in works:
            if work.entries:
                used.last_index = max(used.last_index, work.entries[-1].index)

    def _write(self, payload: bytes) -> None:
        if self._end + codec.frame_size(len(payload)) + _SEAL_BYTES_MAX > self._size_bytes:
            self._cut(len(payload))
        self._put(payload)

    def _put(self, payload: bytes) -> None:
        """Append one frame and fsync it."""
        file = self._file
        assert file is not None
        sequence = self._sequence + 1
        parts, size, crc = codec.encode_frame(
            payload, salt=self._salt, previous=self._previous, sequence=sequence
        )
        end = self._end + size
        if end > self._zeroed:
            self._zeroed = end
            if size <= _AHEAD_BATCH_BYTES_MAX:
                zeros = self._zeros[: self._size_bytes - end]
                parts.append(zeros)
                self._zeroed += len(zeros)
        file.write(self._end, parts)
        file.sync()
        self._end = end
        self._previous = crc
        self._sequence = sequence
        self.written_bytes += size

    def prepare(self) -> None:
        """Allocate the next segment if that is not done, so that `save` need not.

        Optional: the disk thread calls it when it has answered and nothing waits. It costs a few
        milliseconds once per segment, and nothing otherwise.
        """
        self._check_usable()
        if self._spare is None:
            try:
                self._prepare(self._segments[-1].id + 1)
            except BaseException as error:
                self._fail("prepare", error)
                raise

    def _prepare(self, segment: int) -> None:
        self._spare = self._disk.open(f"{self._folder}/{recovery.spare_name(segment)}", create=True)
        self._spare.allocate(self._options.segment_bytes)
        self._spare.sync()
        self._disk.sync_folder(self._folder)

    def _cut(self, payload_bytes: int) -> None:
        """Seal the segment and go on in the next one."""
        following = self._segments[-1].id + 1
        if self._spare is None:
            self._prepare(following)
        # Recovery relies on the order: spare durable, seal durable, successor in place. So a
        # sealed last segment without spare means that somebody removed the successor.
        self._put(codec.encode_records([[codec.SEAL, following]]))
        assert self._file is not None
        self._file.close()
        self._file = None
        self._begin_segment(following, payload_bytes)

    def _begin_segment(self, segment: int, payload_bytes: int = 0) -> None:
        """Give the spare its header, its first frame and, when both are durable, its name."""
        if self._spare is None:
            self._prepare(segment)
        file = self._spare
        assert file is not None
        first_index = self._last[0] + 1
        state = codec.encode_records(
            [
                codec.start_record(*self._last, self._snapshot),
                codec.hard_state_record(self._hard_state),
            ]
        )
        needed = codec.HEADER_BYTES + _SEAL_BYTES_MAX
        needed += codec.frame_size(len(state)) + codec.frame_size(payload_bytes)
        file.allocate(max(needed, self._options.segment_bytes))
        self._size_bytes = file.size()
        header, self._salt = codec.encode_header(
            self._identity, segment, first_index, self._size_bytes, self._previous
        )
        file.write(0, [header])
        self._file, self._spare = file, None
        self._end = self._zeroed = len(header)
        self._put(state)
        self._written_state = self._hard_state
        path = f"{self._folder}/{recovery.segment_name(segment, first_index)}"
        self._disk.rename(f"{self._folder}/{recovery.spare_name(segment)}", path)
        self._disk.sync_folder(self._folder)
        self._segments.append(_Used(segment, path, 0))

    # --- the rest -----------------------------------------------------------------------------

    def release(self, index: Index) -> None:
        """Entries up to and including `index` are no longer needed; free what is possible.

        Removes whole segments from the front, never the one in use; term, vote and snapshot mark
        live on in the segments that stay. Call it only with an index that the store has durably
        applied.

        Raises:
            OSError: the disk refused; the log is whole, but the process must end.
        """
        self._check_usable()
        try:
            while len(self._segments) > 1 and self._segments[0].last_index <= index:
                self._disk.remove(self._segments[0].path)
                # One by one: two removals may reach the disk in either order, and a gap between
                # segments looks like damage.
                self._disk.sync_folder(self._folder)
                self._segments.popleft()
        except BaseException as error:
            self._fail("release", error)
            raise

    @property
    def segment_count(self) -> int:
        """Number of segment files of the log, without the spare."""
        return len(self._segments)

    def close(self) -> None:
        """Write a commit index that still waits, and give files and lock back.

        Raises:
            OSError: the disk refused; what was saved before is not affected.
        """
        if self._failure == _CLOSED:
            return
        try:
            if self._failure is None and self._hard_state != self._written_state:
                self._write(codec.encode_records([codec.hard_state_record(self._hard_state)]))
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._failure = _CLOSED
        for file in (self._file, self._spare):
            if file is not None:
                file.close()
        self._file = self._spare = None
        self._lock.release()

    def _fail(self, action: str, error: BaseException) -> None:
        self._failure = f"{action} failed earlier ({type(error).__name__}: {error})"

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise BrokenError(f"the log in {self._folder} refuses: {self._failure}")
