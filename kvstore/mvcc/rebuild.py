"""Building the index from stored records at start; reads the `key` table once, changes nothing.

The hot loop takes KeyValue bytes apart by hand: at a million records each microsecond is a second
of restart. `tests/mvcc/test_rebuild.py` compares it with the slow way.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from kvstore.mvcc import keyvalue, revision
from kvstore.mvcc.errors import CorruptStore
from kvstore.mvcc.index import History, Index, extend

if TYPE_CHECKING:
    from collections.abc import Iterable

_pack_head: Final = struct.Struct(">QQ").pack
_pack_main: Final = struct.Struct(">Q").pack
_VERSION_1: Final = _pack_main(1)


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
    leases = rebuilt.leases
    deleted = bytes(16)
    # Bytes of a main revision as a varint, and the revision from which on it takes one more.
    width, wider_from = 0, b""
    revision_key = b""
    try:
        for revision_key, record in records:
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
                extend(histories, key, deleted, revision_key[:8] + b"t" + revision_key[9:17])
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
                left = len(record) - end
                if (
                    left > 130
                    and record[end] == 0x2A
                    and record[end + 1] > 127
                    and left == 3 + (record[end + 1] & 127) + (record[end + 2] << 7)
                ):
                    continue  # most values, 128 to 16,383 bytes and no lease, without a call
                # A lease is behind the value; without one the value ends the record.
                if left and not _value_ends(record, end):
                    leases[key] = keyvalue.decode(record).lease
                continue
            fields = keyvalue.decode(record)
            head = _pack_head(fields.create_revision, fields.version)
            extend(histories, key, head, revision_key)
            if fields.lease:
                leases[key] = fields.lease
            elif leases:
                leases.pop(key, None)
    except IndexError:
        raise CorruptStore(f"the record of {revision_key.hex()} is cut short") from None
    if revision_key:
        rebuilt.revision = revision.main_of(revision_key)
    rebuilt.index.load(histories)
    return rebuilt


def _value_ends(record: bytes, position: int) -> bool:
    """Tell whether the value field at a position is the record's last."""
    if record[position] != 0x2A:
        return False
    length, start = keyvalue.read_varint(record, position + 1)
    return start + length == len(record)
