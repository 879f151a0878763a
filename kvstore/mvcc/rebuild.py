"""Building the index from stored records at start; reads the `key` table once, changes nothing.

At a million records each microsecond is a second of restart. So records come in batches: one whose
records are all first puts in one layout, as a load leaves them, is checked column by column, in C;
of others each record is taken apart by hand. `tests/mvcc/test_rebuild.py` compares with the slow
way.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING, Final

from kvstore.mvcc import keyvalue, revision
from kvstore.mvcc.errors import CorruptStore
from kvstore.mvcc.index import History, Index, extend

if TYPE_CHECKING:
    from collections.abc import Iterable

_pack_head: Final = struct.Struct(">QQ").pack
_pack_main: Final = struct.Struct(">Q").pack
_VERSION_1: Final = _pack_main(1)
_DELETED: Final = bytes(16)

_BATCH: Final = 128
"""Records in memory at a time: each may be as large as a request, and more is hardly faster."""


class Rebuilt:
    """What the records say."""

    def __init__(self) -> None:
        self.index = Index()

        self.revision = 0
        """Main revision of the last record, 0 when there is none."""

        self.leases: dict[bytes, int] = {}
        """Lease of every live key that has one."""


def rebuild(records: Iterable[tuple[bytes, bytes]]) -> Rebuilt:
    """Return the index over records in revision order.

    Raises:
        CorruptStore: A key or record is damaged.
    """
    rebuilt = Rebuilt()
    histories: dict[bytes, History] = {}
    gone: set[bytes] = set()
    source = iter(records)
    newest = b""
    while batch := list(islice(source, _BATCH)):
        newest = batch[-1][0]
        keys = _first_puts(batch)
        if keys is None:
            _take(batch, histories, gone, rebuilt.leases)
            continue
        added = tuple(key for key, _ in batch)
        found = tuple(map(histories.setdefault, keys, added))
        if found == added:
            continue  # all keys are new
        for key, revision_key, held in zip(keys, added, found, strict=True):
            if held is not revision_key:
                # Deleted before, which took its lease along.
                extend(histories, key, revision_key[:8] + _VERSION_1, revision_key)
                gone.discard(key)
    if newest:
        rebuilt.revision = revision.main_of(newest)
    rebuilt.index.load(histories, gone)
    return rebuilt


def _first_puts(batch: list[tuple[bytes, bytes]]) -> list[bytes] | None:
    """Return the keys of a batch when each record is a key's first put, all in one layout.

    First: it created the key. In one layout: key, numbers and value have the same lengths, and
    there is no lease. None when it is not so, or a record is damaged.
    """
    rows = len(batch)
    revision_keys, records = zip(*batch, strict=True)
    first = records[0]
    size = len(first)
    if set(map(len, records)) != {size}:
        return None
    # 0A length key, 10 created, 18 modified, 20 01 (the version), 2A length value. Version 1 says
    # that both revisions are the same, as long as that of the record's key. Where they are longer
    # than the first's, the tags behind them are not where the first's are.
    width = len(keyvalue.varint(revision.main_of(revision_keys[0])))
    position = 2 + first[1] if size > 1 else size
    middle = position + 1 + width
    end = middle + 1 + width + 2
    if end + 3 > size:
        return None
    low, high = first[end + 1], first[end + 2]
    start, value_bytes = end + 2, low
    if low > 127:
        start, value_bytes = end + 3, low & 127 | high << 7
    if first[1] > 127 or (high > 127 and low > 127) or start + value_bytes != size:
        return None
    data = b"".join(records)
    columns = (0, 1, position, middle, *range(end - 2, start))
    expected = b"\x0a" + first[1:2] + b"\x10\x18\x20\x01\x2a" + first[end + 1 : start]
    for column, byte in zip(columns, expected, strict=True):
        if data[column::size] != bytes((byte,)) * rows:
            return None
    joined = b"".join(revision_keys)
    if len(joined) != revision.KEY_BYTES * rows or joined[8 :: revision.KEY_BYTES] != b"_" * rows:
        return None
    return [record[2:position] for record in records]


def _take(
    batch: list[tuple[bytes, bytes]],
    histories: dict[bytes, History],
    gone: set[bytes],
    leases: dict[bytes, int],
) -> None:
    """Add records one by one."""
    # Bytes of a main revision as a varint, and the revision from which on it takes one more.
    width, wider_from = 0, b""
    revision_key = b""
    try:
        for revision_key, record in batch:
            if revision_key >= wider_from:
                width = len(keyvalue.varint(revision.main_of(revision_key)))
                wider_from = _pack_main(1 << 7 * width) if width < 9 else b"\xff"
            length = record[1]
            if length < 128:
                position = 2 + length
                key = record[2:position]
            else:
                length, start = keyvalue.read_varint(record, 1)
                position = start + length
                key = record[start:position]
            if len(revision_key) == 18:
                if revision_key[17] != 0x74 or revision_key[8] != 0x5F:
                    raise CorruptStore(f"{revision_key.hex()} is no revision key")
                extend(histories, key, _DELETED, revision_key[:8] + b"t" + revision_key[9:17])
                gone.add(key)
                leases.pop(key, None)
                continue
            if len(revision_key) != 17 or revision_key[8] != 0x5F or record[0] != 0x0A:
                raise CorruptStore(f"{revision_key.hex()} is no revision key of a key-value")
            end = position + 2 * width + 4
            middle = position + 1 + width
            # Both revisions are the same, as long as that of the record's key; the version is 1.
            if (
                record[middle + 1 : end] == record[position + 1 : middle] + b"\x20\x01"
                and record[position] == 0x10
                and record[middle] == 0x18
            ):
                # Created by this very put, version 1.
                if key not in histories:
                    histories[key] = revision_key
                else:
                    extend(histories, key, revision_key[:8] + _VERSION_1, revision_key)
            else:
                if record[position] != 0x10:
                    raise CorruptStore(f"the record of {revision_key.hex()} has no create revision")
                created, middle = keyvalue.read_varint(record, position + 1)
                end = middle + 1 + width
                if record[middle] != 0x18 or record[end] != 0x20:
                    raise CorruptStore(f"the record of {revision_key.hex()} has no version")
                version = record[end + 1]
                end += 2
                if version > 127:
                    version, end = keyvalue.read_varint(record, end - 1)
                extend(histories, key, _pack_head(created, version), revision_key)
            if gone:
                gone.discard(key)
            left = len(record) - end
            if (
                left > 130
                and record[end] == 0x2A
                and record[end + 1] > 127
                and left == 3 + (record[end + 1] & 127) + (record[end + 2] << 7)
            ):
                # Most values, 128 to 16,383 bytes and no lease, without a call.
                lease = 0
            elif left and not _value_ends(record, end):
                # A lease is behind the value; without one the value ends the record.
                lease = keyvalue.decode(record).lease
            else:
                lease = 0
            if lease:
                leases[key] = lease
            elif leases:
                leases.pop(key, None)
    except IndexError:
        raise CorruptStore(f"the record of {revision_key.hex()} is cut short") from None


def _value_ends(record: bytes, position: int) -> bool:
    """Tell whether the value field at a position is the record's last."""
    if record[position] != 0x2A:
        return False
    length, start = keyvalue.read_varint(record, position + 1)
    return start + length == len(record)
