"""Reading a log back: what is good, what a crash left, what must be refused. Writes nothing.

The rule: a batch is good or absent. A crash can only leave the batch that was being written, the
last of the last segment, bad; everything else bad is damage, and damage is refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvstore.ports import Disk
from kvstore.raft.messages import Entry, HardState, Index, SnapshotMeta, Term
from kvstore.wal import codec
from kvstore.wal.codec import Frame, Header, Identity
from kvstore.wal.errors import CorruptError, FormatError, IdentityError, NoLogError

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")
_SECTOR_BYTES = 512
_POLYNOMIAL = 0xEDB8_8320  # of zlib's CRC-32, bits reversed


@dataclass(slots=True)
class Segment:
    """One segment file as it was found."""

    path: str
    header: Header
    data: memoryview
    frames: list[Frame] = field(default_factory=list)
    last_index: Index = 0
    """Highest entry index written in it, also if overwritten later; 0 without entries."""

    sealed: bool = False

    @property
    def end(self) -> int:
        """Offset behind the last good frame."""
        return self.frames[-1].end if self.frames else codec.HEADER_BYTES


@dataclass(slots=True)
class Recovered:
    """What the log holds, and what had to be repaired."""

    identity: Identity
    hard_state: HardState
    """`commit` is at most the last index: a commit beyond the log can never be applied."""

    entries: list[Entry]
    """Without gaps, in order; they follow `compacted`."""

    compacted: tuple[Index, Term]
    """Index and term of the entry before the first that is kept; (0, 0) for a whole log."""

    snapshot: SnapshotMeta | None
    """The last snapshot that replaced the store. The store must be at or beyond it."""

    dropped_bytes: int = 0
    """Length of the unfinished batch that a crash left at the end and that was erased; 0: none."""

    @property
    def last_index(self) -> Index:
        """Index of the last entry, or of `compacted` when there are none."""
        return self.entries[-1].index if self.entries else self.compacted[0]


class Replay:
    """Folds records into the state they stand for."""

    __slots__ = ("compacted", "entries", "hard_state", "snapshot")

    def __init__(self) -> None:
        self.hard_state = HardState(0, 0, 0)
        self.entries: list[Entry] = []
        self.compacted: tuple[Index, Term] | None = None
        self.snapshot: SnapshotMeta | None = None

    def frame(self, payload: memoryview) -> tuple[Index, bool]:
        """Take one frame; return its highest entry index (0: none) and whether it is a seal.

        Raises ValueError, naming the fault, when the records contradict the log so far.
        """
        highest, seal = 0, False
        for record in codec.decode_records(payload):
            kind = record[0]
            if kind == codec.ENTRIES:
                entries = codec.entries_of(record)
                self._append(entries)
                highest = max(highest, entries[-1].index)
            elif kind == codec.HARD_STATE:
                codec.check_numbers(record[1:])
                state = HardState(*record[1:])
                if state.term < self.hard_state.term:
                    raise ValueError(f"term goes back from {self.hard_state.term} to {state.term}")
                self.hard_state = state
            elif kind == codec.SNAPSHOT:
                self.snapshot = codec.snapshot_of(record)
                self.entries = []
                self.compacted = (self.snapshot.index, self.snapshot.term)
            elif kind == codec.START:
                self._start(*record[1:])
            else:
                seal = True
        return highest, seal

    def _start(self, index: Index, term: Term, snapshot: list[Any] | None) -> None:
        codec.check_numbers((index, term))
        if self.compacted is None:
            self.compacted = (index, term)
            self.snapshot = codec.snapshot_of(snapshot) if snapshot else None
        elif (index, term) != self.last():
            raise ValueError(f"the segment follows entry {index} of term {term}, not {self.last()}")

    def last(self) -> tuple[Index, Term]:
        """Return index and term of the last entry so far."""
        if self.entries:
            return self.entries[-1].index, self.entries[-1].term
        return self.compacted or (0, 0)

    def _append(self, entries: list[Entry]) -> None:
        compacted = self.compacted or (0, 0)
        first = entries[0].index
        if first > self.last()[0] + 1:
            raise ValueError(f"entry {first} follows entry {self.last()[0]}")
        if first > compacted[0]:
            # The later record with the same index wins: a new leader replaced the tail.
            del self.entries[first - compacted[0] - 1 :]
            self.entries += entries
            return
        # The segment with the older form of these entries was released, so they are applied and
        # durable in the store, in this form: only the last of them matters, as the new start.
        self.entries = [entry for entry in entries if entry.index > compacted[0]]
        covered = entries[len(entries) - len(self.entries) - 1]
        self.compacted = (covered.index, covered.term)


def segment_name(segment: int, first_index: Index) -> str:
    """Return the file name; names sort as the segments follow each other."""
    return f"{segment:016x}-{first_index:016x}.wal"


def spare_name(segment: int) -> str:
    """Return the file name of a segment that is allocated but not in use yet."""
    return f"{segment:016x}.tmp"


def list_segments(disk: Disk, folder: str) -> list[str]:
    """Return the paths of the segments in order; raises CorruptError for a gap in the ids."""
    names = disk.list(folder) if disk.exists(folder) else []
    found = [(int(match[1], 16), name) for name in names if (match := _NAME.fullmatch(name))]
    for (before, name), (after, _) in itertools.pairwise(found):
        if after != before + 1:
            raise CorruptError(
                f"{folder}/{name}", 0, f"the segment after it ({before + 1:016x}-*.wal) is missing"
            )
    return [f"{folder}/{name}" for _, name in found]


def read_segments(disk: Disk, folder: str, identity: Identity | None) -> Iterator[Segment]:
    """Yield every segment with its good frames, oldest first, checking the chain across files.

    The caller decides what the bytes behind the last good frame of the last segment are.
    """
    paths = list_segments(disk, folder)
    if not paths:
        raise NoLogError(f"there is no log in {folder}")
    previous: Frame | None = None
    before = ""
    for path in paths:
        segment = _read_segment(disk, path, identity)
        identity = segment.header.identity
        if previous is not None and segment.header.previous != previous.crc:
            what = "a batch is damaged, or the next segment is of another log: it does not continue"
            raise CorruptError(before, previous.end, what)
        chain, sequence = segment.header.previous, previous.sequence if previous else None
        while frame := codec.decode_frame(segment.data, segment.end, segment.header.crc):
            if frame.previous != chain or (sequence is not None and frame.sequence != sequence + 1):
                raise CorruptError(path, frame.offset, "a batch before this one is missing")
            chain, sequence = frame.crc, frame.sequence
            segment.frames.append(frame)
        if not segment.frames:
            # Header and first frame are durable before the file gets its name.
            raise CorruptError(path, segment.end, "the first batch of the segment is damaged")
        previous, before = segment.frames[-1], path
        yield segment


def recover(disk: Disk, folder: str, identity: Identity | None) -> tuple[Recovered, list[Segment]]:
    """Read the whole log; return what it holds and its segments, their data only for the last.

    Raises the errors of `kvstore.wal.errors`; nothing is changed on disk.
    """
    replay = Replay()
    segments: list[Segment] = []
    for segment in read_segments(disk, folder, identity):
        if segments:
            _check_complete(segments[-1])
            segments[-1].data = memoryview(b"")
            segments[-1].frames = segments[-1].frames[-1:]
        for frame in segment.frames:
            if segment.sealed:
                raise CorruptError(
                    segment.path, frame.offset, "a batch after the end of the segment"
                )
            try:
                highest, segment.sealed = replay.frame(frame.payload)
            except (ValueError, TypeError, IndexError) as error:
                what = f"a batch with a good checksum makes no sense ({error})"
                raise CorruptError(segment.path, frame.offset, what) from error
            segment.last_index = max(segment.last_index, highest)
        segments.append(segment)
    last = segments[-1]
    recovered = Recovered(
        identity=last.header.identity,
        hard_state=replay.hard_state,
        entries=replay.entries,
        compacted=replay.compacted or (0, 0),
        snapshot=replay.snapshot,
        dropped_bytes=torn_bytes(last),
    )
    if last.sealed and not disk.exists(f"{folder}/{spare_name(last.header.segment + 1)}"):
        # The next segment is prepared under its spare name before this one is sealed.
        what = "the segment is complete, and the one after it is missing"
        raise CorruptError(last.path, last.end, what)
    state = recovered.hard_state
    recovered.hard_state = HardState(
        state.term, state.vote, min(state.commit, recovered.last_index)
    )
    return recovered, segments


def _check_complete(segment: Segment) -> None:
    if not segment.sealed:
        what = "a batch is damaged, and there are later segments"
        raise CorruptError(segment.path, segment.end, what)


def _read_segment(disk: Disk, path: str, identity: Identity | None) -> Segment:
    file = disk.open(path)
    try:
        header = codec.decode_header(file.read(0, codec.HEADER_SCAN_BYTES))
        if header is None:
            raise CorruptError(path, 0, "the header of the segment is damaged")
        if isinstance(header, int):
            raise FormatError(path, header, codec.FORMAT)
        check_identity(path, header.identity, identity)
        if path.rpartition("/")[2] != segment_name(header.segment, header.first_index):
            raise CorruptError(path, 0, "the file has been renamed")
        if (size := file.size()) < header.size_bytes:
            what = f"the file was cut or copied in part, from {header.size_bytes} to {size} bytes"
            raise CorruptError(path, size, what)
        return Segment(path, header, memoryview(file.read(0, size)))
    finally:
        file.close()


def check_identity(path: str, found: Identity, wanted: Identity | None) -> None:
    """Raise IdentityError if a log is not that of `wanted`; None is anybody's."""
    if wanted is None or found == wanted:
        return
    if found.cluster != wanted.cluster:
        what, mine, yours = "cluster", found.cluster, wanted.cluster
    else:
        what, mine, yours = "member", found.member, wanted.member
    raise IdentityError(
        f"{path} belongs to {what} {mine:x}, this process is {what} {yours:x}. "
        "Choose the data directory of this member, or an empty one for a new member; check name, "
        "initial cluster and cluster token."
    )


def torn_bytes(segment: Segment) -> int:
    """Return how many bytes behind the last good frame a crash may have left; 0 when all are zero.

    Raises CorruptError when a crash cannot have left them.
    """
    start = segment.end
    rest = bytes(segment.data[start:]).rstrip(b"\0")
    if not rest:
        return 0
    sequence = segment.frames[-1].sequence
    at = rest.find(codec.MARKER_BYTES)
    while at >= 0:
        offset = start + at - codec.MARKER_OFFSET
        frame = (
            codec.decode_frame(segment.data, offset, segment.header.crc)
            if offset >= start
            else None
        )
        if frame is not None and frame.sequence > sequence:
            what = f"a damaged batch, and a good one after it at byte {offset}"
            raise CorruptError(segment.path, start, what)
        at = rest.find(codec.MARKER_BYTES, at + 1)
    if segment.sealed:
        raise CorruptError(segment.path, start, "data after the end of the segment")
    if (bit := _flipped_bit(segment)) is not None:
        what = f"one bit of the last batch is wrong (bit {bit % 8} of byte {start + bit // 8})"
        raise CorruptError(segment.path, start, what)
    return len(rest)


def _flipped_bit(segment: Segment) -> int | None:
    """Return the one bit, counted from the start of the bad frame, whose change makes it good.

    A torn write misses whole sectors, which then hold the zeros of the allocation; a frame without
    a zero sector that one bit repairs was written whole, so it may have been acknowledged.
    """
    start = segment.end
    raw = bytearray(segment.data[start:])
    for bit in range(min(codec.FRAME_BYTES, len(raw)) * 8):  # these change what the CRC covers
        raw[bit // 8] ^= 1 << bit % 8
        frame = codec.decode_frame(memoryview(raw), 0, segment.header.crc)
        raw[bit // 8] ^= 1 << bit % 8
        if frame is not None:
            return bit
    size_bytes = codec.damaged_frame_size(raw)
    if size_bytes is None or _has_zero_sector(raw, start, size_bytes):
        return None
    # CRC is linear: the difference of the CRCs depends on the place of the bit alone. Step a
    # single bit from the end of the frame to its start and compare.
    wanted = codec.crc_difference(raw[:size_bytes], segment.header.crc)
    state = _POLYNOMIAL
    for bit in range(size_bytes * 8 - 1, codec.FRAME_BYTES * 8 - 1, -1):
        if state == wanted:
            return bit
        state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
    return None


def _has_zero_sector(raw: bytearray, start: int, size_bytes: int) -> bool:
    first = -start % _SECTOR_BYTES
    zeros = bytes(_SECTOR_BYTES)
    return any(
        raw[at : at + _SECTOR_BYTES] == zeros
        for at in range(first, size_bytes - _SECTOR_BYTES + 1, _SECTOR_BYTES)
    )
