"""A log in words, for people who look for a fault. Reads only; takes no lock, so it may race."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvstore.ports import Disk
from kvstore.raft.messages import CHANGE
from kvstore.wal import codec, recovery
from kvstore.wal.errors import CorruptError
from kvstore.wal.recovery import Segment


def dump(disk: Disk, folder: str, *, data_bytes_max: int = 32) -> Iterator[str]:
    """Yield lines that describe every segment, batch and record of the log, oldest first.

    Damage ends the last line of the segment it is in, in the words of the refusal; what can be
    read before it is shown. On the log of a running member the last batch may look unfinished.

    Args:
        disk: Where the log is.
        folder: Its folder.
        data_bytes_max: How much of each entry's data to show, as a Python bytes literal.

    Raises:
        NoLogError: There is no log in the folder.
        FormatError: A newer version wrote it.
    """
    last: Segment | None = None
    try:
        for segment in recovery.read_segments(disk, folder, None):
            yield from _segment(segment, data_bytes_max)
            last = segment
        if last is not None:
            torn = recovery.torn_bytes(last)
            yield f"  end: {torn} bytes of an unfinished batch" if torn else "  end: clean"
    except CorruptError as error:
        yield f"  DAMAGED: {error}"


def _segment(segment: Segment, data_bytes_max: int) -> Iterator[str]:
    header = segment.header
    yield (
        f"segment {header.segment} {segment.path.rpartition('/')[2]} format {codec.FORMAT} "
        f"cluster {header.identity.cluster:x} member {header.identity.member:x} "
        f"size {header.size_bytes} previous {header.previous:08x}"
    )
    for frame in segment.frames:
        yield (
            f"  batch {frame.sequence} at {frame.offset} payload {len(frame.payload)} "
            f"crc {frame.crc:08x}"
        )
        try:
            records = codec.decode_records(frame.payload)
        except ValueError as error:
            yield f"    unreadable: {error}"
            continue
        for record in records:
            yield from (f"    {line}" for line in _record(record, data_bytes_max))


def _record(record: list[Any], data_bytes_max: int) -> Iterator[str]:
    match record:
        case [codec.HARD_STATE, term, vote, commit]:
            yield f"state term {term} vote {vote:x} commit {commit}"
        case [codec.ENTRIES, *_]:
            for entry in codec.entries_of(record):
                kind = "change" if entry.kind == CHANGE else "normal"
                more = "..." if len(entry.data) > data_bytes_max else ""
                yield (
                    f"entry {entry.index} term {entry.term} {kind} {len(entry.data)} bytes "
                    f"{entry.data[:data_bytes_max]!r}{more}"
                )
        case [codec.SNAPSHOT, *_]:
            yield f"snapshot {_snapshot(record)}"
        case [codec.START, index, term, snapshot]:
            mark = f", snapshot {_snapshot(snapshot)}" if snapshot else ""
            yield f"start after entry {index} term {term}{mark}"
        case [codec.SEAL, following]:
            yield f"seal, next segment {following}"


def _snapshot(record: list[Any]) -> str:
    meta = codec.snapshot_of(record)
    voters = ",".join(f"{member:x}" for member in meta.configuration.voters)
    return f"index {meta.index} term {meta.term} voters {voters}"
