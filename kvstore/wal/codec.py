"""The bytes of the log: segment header, frame, records. Pure; knows no files.

A segment is a header and then frames, one per fsync, each padded to 8 bytes, then zeros up to the
allocated size:

    header  magic 8s | format u32 | header size u32 | cluster u64 | member u64 | segment id u64
            | first index u64 | allocated size u64 | CRC of the last frame before it u32 | CRC u32
    frame   CRC u32 | payload size u32 | CRC of the frame before u32 | marker u32 | sequence u64
            | payload | zero padding

All integers are little-endian. The CRC (zlib's CRC-32) covers all that follows it in the frame,
padding included, and starts from the header's CRC, so that a frame of another file never fits. Each
frame names the CRC of the one before, across segments: none can be missing, doubled or exchanged.

A payload is one msgpack array of records `[kind, ...]`, see the constants below.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from kvstore.raft.messages import Configuration, Entry, HardState, SnapshotMeta

FORMAT = 1
"""Version of everything in this file."""

MAGIC = b"kvwal\r\n\x1a"

SEAL = 0  # [0, id of the next segment]: last frame of a full segment
HARD_STATE = 1  # [1, term, vote, commit]
ENTRIES = 2  # [2, first index, term, kind, data, term, kind, data, ...]
SNAPSHOT = 3  # [3, ...SnapshotMeta]: the store was replaced; entries before it are void
START = 4  # [4, index, term, snapshot or nil]: entry before the segment's first, last snapshot
_KINDS = frozenset((SEAL, HARD_STATE, ENTRIES, SNAPSHOT, START))

_HEADER = struct.Struct("<8sIIQQQQQI")
_VERSION = struct.Struct("<II")
_FIELDS = struct.Struct("<QQQQQI")
_FRAME = struct.Struct("<IIIIQ")
_FRAME_BODY = struct.Struct("<IIIQ")
_CRC = struct.Struct("<I")

HEADER_SCAN_BYTES = 4096
HEADER_BYTES = _HEADER.size + _CRC.size
FRAME_BYTES = _FRAME.size
MARKER = 0x9D5A_C3E1
MARKER_BYTES = MARKER.to_bytes(4, "little")
MARKER_OFFSET = 12
_PADDING = [bytes(-n % 8) for n in range(8)]

_pack = msgpack.Packer(autoreset=True, use_bin_type=True).pack


@dataclass(slots=True, frozen=True)
class Identity:
    """Whose log it is; both numbers as the cluster computes them (64 bits)."""

    cluster: int
    member: int


@dataclass(slots=True, frozen=True)
class Header:
    """The first bytes of a segment."""

    identity: Identity
    segment: int
    """Ids only grow and have no gaps; a file name is never used twice."""

    first_index: int
    """Index that the log expected next when the segment began; informative."""

    size_bytes: int
    """Allocated length. It is durable before the file gets its name: a shorter file was cut."""

    previous: int
    """CRC of the last frame of the segment before; 0 in the first of all."""

    crc: int
    """CRC of the header; the frames' CRCs start from it."""


@dataclass(slots=True, frozen=True)
class Frame:
    """One good frame as found in a segment."""

    offset: int
    end: int
    crc: int
    previous: int
    sequence: int
    payload: memoryview


def encode_header(
    identity: Identity, segment: int, first_index: int, size_bytes: int, previous: int
) -> tuple[bytes, int]:
    """Return the header's bytes and its CRC."""
    body = _HEADER.pack(
        MAGIC, FORMAT, HEADER_BYTES, identity.cluster, identity.member,
        segment, first_index, size_bytes, previous,
    )  # fmt: skip
    crc = zlib.crc32(body)
    return body + _CRC.pack(crc), crc


def decode_header(data: bytes) -> Header | int | None:
    """Return the header; its format number if that is a newer one; None if it is damaged.

    `data` is the first 4 KiB of the file. Every format to come keeps the first 16 bytes and ends
    its header with a CRC, so that a newer format is told apart from damage.
    """
    if len(data) < HEADER_BYTES or data[:8] != MAGIC:
        return None
    version, size = _VERSION.unpack_from(data, 8)
    if not HEADER_BYTES <= size <= len(data):
        return None
    crc = zlib.crc32(data[: size - 4])
    if crc != _CRC.unpack_from(data, size - 4)[0]:
        return None
    if version > FORMAT:
        return int(version)
    if size != HEADER_BYTES:
        return None
    cluster, member, segment, first_index, size_bytes, previous = _FIELDS.unpack_from(data, 16)
    identity = Identity(cluster, member)
    return Header(identity, segment, first_index, size_bytes, previous, crc)


def encode_frame(
    payload: bytes, *, salt: int, previous: int, sequence: int
) -> tuple[list[bytes], int, int]:
    """Return the parts to write, their length together, and the frame's CRC."""
    size = len(payload)
    body = _FRAME_BODY.pack(size, previous, MARKER, sequence)
    padding = _PADDING[size & 7]
    crc = zlib.crc32(padding, zlib.crc32(payload, zlib.crc32(body, salt)))
    return [_CRC.pack(crc), body, payload, padding], FRAME_BYTES + size + len(padding), crc


def frame_size(payload_bytes: int) -> int:
    """Return the bytes that a payload of this length occupies in the segment."""
    return FRAME_BYTES + payload_bytes + (-payload_bytes % 8)


def decode_frame(data: memoryview, offset: int, salt: int) -> Frame | None:
    """Return the frame at the offset if one stands there whole and undamaged."""
    if offset + FRAME_BYTES > len(data):
        return None
    crc, size, previous, marker, sequence = _FRAME.unpack_from(data, offset)
    if marker != MARKER:
        return None
    start = offset + FRAME_BYTES
    end = offset + frame_size(size)
    if end > len(data) or zlib.crc32(data[offset + 4 : end], salt) != crc:
        return None
    return Frame(offset, end, crc, previous, sequence, data[start : start + size])


def damaged_frame_size(data: bytes | bytearray) -> int | None:
    """Return the length that a bad frame at the start of `data` claims, None if it cannot be."""
    if len(data) < FRAME_BYTES:
        return None
    _, size, _, marker, _ = _FRAME.unpack_from(data)
    whole = frame_size(size)
    return whole if marker == MARKER and whole <= len(data) else None


def crc_difference(frame: bytes | bytearray, salt: int) -> int:
    """Return the stored CRC of a whole frame xor the one that its bytes have."""
    stored: int = _CRC.unpack_from(frame)[0]
    return stored ^ zlib.crc32(frame[4:], salt)


def encode_records(records: Sequence[Sequence[Any]]) -> bytes:
    """Return the payload of a frame."""
    # One call of the C packer; its copy of the data costs less than a Python step per part would
    # (64 KiB: 3 us; the CRC 12 us).
    packed: bytes = _pack(records)
    return packed


def decode_records(payload: memoryview) -> list[list[Any]]:
    """Return the records of a frame; ValueError if they are not what this version writes."""
    records = msgpack.unpackb(
        payload, use_list=True, max_bin_len=len(payload), max_array_len=len(payload)
    )
    if not isinstance(records, list) or not all(
        isinstance(record, list) and record and record[0] in _KINDS for record in records
    ):
        raise ValueError("not a list of known records")
    return records


def entries_record(entries: Sequence[Entry]) -> list[Any]:
    """Return the record of consecutive entries; at least one."""
    record: list[Any] = [ENTRIES, entries[0].index]
    for entry in entries:
        record += (entry.term, entry.kind, entry.data)
    return record


def check_numbers(values: Sequence[Any]) -> None:
    """Refuse with ValueError what is not all numbers of 0 or more."""
    if set(map(type, values)) - {int} or min(values, default=0) < 0:
        raise ValueError("a field is not a number of 0 or more")


def entries_of(record: Sequence[Any]) -> list[Entry]:
    """Return the entries of such a record; ValueError if their fields are of other types."""
    check_numbers([*record[1:2], *record[2::3], *record[3::3]])
    if set(map(type, record[4::3])) - {bytes}:
        raise ValueError("the data of an entry is not bytes")
    fields = iter(record[2:])
    return [
        Entry(index, term, kind, data)
        for index, (term, kind, data) in enumerate(
            zip(fields, fields, fields, strict=True), record[1]
        )
    ]


def hard_state_record(state: HardState) -> list[Any]:
    """Return the record of term, vote and commit."""
    return [HARD_STATE, state.term, state.vote, state.commit]


def snapshot_record(meta: SnapshotMeta) -> list[Any]:
    """Return the record of a snapshot that replaced the store."""
    members = meta.configuration
    return [
        SNAPSHOT, meta.index, meta.term,
        members.voters, members.outgoing, members.learners, members.removed,
    ]  # fmt: skip


def start_record(index: int, term: int, snapshot: SnapshotMeta | None) -> list[Any]:
    """Return the record that lets a segment be the first: what came before it, in short."""
    return [START, index, term, snapshot and snapshot_record(snapshot)]


def snapshot_of(record: Sequence[Any]) -> SnapshotMeta:
    """Return the snapshot mark of such a record; ValueError as `entries_of`."""
    _, index, term, *members = record
    check_numbers([index, term, *(number for each in members for number in each)])
    return SnapshotMeta(index, term, Configuration(*map(tuple, members)))
