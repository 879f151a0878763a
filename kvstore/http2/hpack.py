"""HPACK (RFC 7541): a full decoder with its memos, and the few encodings a server needs to send.

Knows header fields as byte pairs only; what they mean is `head.py`'s business.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kvstore.http2 import huffman

if TYPE_CHECKING:
    from collections.abc import Iterable

Field = tuple[bytes, bytes]

_STATIC_TEXT = """:authority|:method GET|:method POST|:path /|:path /index.html
:scheme http|:scheme https
:status 200|:status 204|:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset
accept-encoding gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age
allow|authorization|cache-control|content-disposition|content-encoding|content-language
content-length|content-location|content-range|content-type|cookie|date|etag|expect|expires|from
host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link
location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after
server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"""


def _static_table() -> tuple[Field, ...]:
    fields = []
    for text in _STATIC_TEXT.replace("\n", "|").split("|"):
        name, _, value = text.partition(" ")
        fields.append((name.encode(), value.encode()))
    return tuple(fields)


STATIC_TABLE = _static_table()
"""RFC 7541 appendix A; index 1 is STATIC_TABLE[0]."""

TABLE_SIZE_DEFAULT = 4096
_STATIC_COUNT = len(STATIC_TABLE)
_INDEXED = (None, *STATIC_TABLE)  # by index; there is no 0
_FIELD_OVERHEAD = 32  # RFC 7541 4.1
_INTEGER_MAX = 2**31 - 1
_RESIZES_BYTES_MAX = 16  # RFC 7541 4.2: two updates, and room for those who send some more

# Bounds of the literal memo: it serves the handful of strings that a client repeats, and must
# stay small beside a connection's memory.
_MEMO_STRINGS_MAX = 24
_MEMO_STRING_BYTES_MAX = 256

# Fields counted before the exact size of a list is summed: below this, no list whose strings are
# references to table entries or parts of the block can be over any limit worth setting.
_FIELDS_UNCOUNTED = 12

# Decoding more than this only to keep the tables in step would be an attacker's profit: a field of
# one byte takes 0.1 us, a frame of them milliseconds.
_FIELDS_DECODED_MAX = 4096

# RFC 9113 8.2.1. The colon is for pseudo-header fields.
_NAME_LEGAL = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_VALUE_ILLEGAL = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]\Z").search


class HpackError(Exception):
    """The block cannot be decoded: the compression state is lost (COMPRESSION_ERROR)."""


class HeaderListTooLargeError(Exception):
    """The block was decoded and the tables are in step, but the list is over the limit."""


class BombError(Exception):
    """The list is so far over the limit that decoding went no further: the tables are lost."""


class Decoder:
    """Decodes the header blocks of one connection, in order.

    `generation` changes whenever the dynamic table does: what a caller keeps by block bytes holds
    while it stays the same. `suspect` turns True for good when a literal was no legal HTTP/2 field;
    while it is False no field can be illegal in that way.
    """

    __slots__ = (
        "_entries",
        "_fields_max",
        "_list_bytes_max",
        "_memo",
        "_size",
        "_size_max",
        "_sizes",
        "generation",
        "suspect",
    )

    def __init__(self, list_bytes_max: int) -> None:
        self._list_bytes_max = list_bytes_max
        self._fields_max = max(_FIELDS_DECODED_MAX, 2 * list_bytes_max // _FIELD_OVERHEAD)
        # Newest last, so that index 62 + i is [-1 - i]. At most 128 entries fit in 4,096 bytes,
        # so taking from the front of a list costs nothing worth a deque.
        self._entries: list[Field] = []
        self._sizes: list[int] = []
        self._size = 0
        self._size_max = TABLE_SIZE_DEFAULT
        self._memo: dict[bytes, bytes] = {}
        self.generation = 0
        self.suspect = False

    def decode(self, block: bytes) -> list[Field]:
        """Return the fields of one complete block.

        Raises:
            HpackError: The block is malformed; the connection must end.
            HeaderListTooLargeError: Over `list_bytes_max` by RFC 9113 6.5.2's measure.
            BombError: Far more fields than any list has; the connection must end.
        """
        entries = self._entries
        fields: list[Field] = []
        position = 0
        end = len(block)
        count_at = self._fields_max  # a field takes a byte at least
        try:
            while position < end:
                if position > count_at:
                    count_at = position + self._room(fields)
                byte = block[position]
                position += 1
                if byte & 0x80:  # indexed field
                    index = byte & 0x7F
                    if index == 0x7F:
                        index, position = _integer(block, position, 0x7F)
                    if index <= _STATIC_COUNT:
                        field = _INDEXED[index]
                        if field is None:
                            raise HpackError("field index 0")
                        fields.append(field)
                    else:
                        fields.append(entries[_dynamic(index, entries)])
                    continue
                if byte & 0x40:  # literal with incremental indexing
                    mask = 0x3F
                elif byte & 0x20:  # table size update
                    size = byte & 0x1F
                    if size == 0x1F:
                        size, position = _integer(block, position, 0x1F)
                    self._resize(size, is_first=not fields and position <= _RESIZES_BYTES_MAX)
                    continue
                else:  # literal without indexing, or never indexed
                    mask = 0x0F
                index = byte & mask
                if index == mask:
                    index, position = _integer(block, position, mask)
                if index == 0:
                    name, position = self._string(block, position)
                    if _NAME_LEGAL(name) is None:
                        self.suspect = True
                elif index <= _STATIC_COUNT:
                    name = STATIC_TABLE[index - 1][0]
                else:
                    name = entries[_dynamic(index, entries)][0]

                # The string of the value, inline: one call fewer for each literal.
                length = block[position]
                stop = position + 1 + (length & 0x7F)
                if length & 0x7F == 0x7F or stop > end:
                    value, position = self._string(block, position)
                else:
                    raw = block[position:stop]
                    found = self._memo.get(raw)
                    value = found if found is not None else self._remember(raw, 1)
                    position = stop
                if _VALUE_ILLEGAL(value) is not None:
                    self.suspect = True
                field = (name, value)
                fields.append(field)
                if mask == 0x3F:
                    self._insert(field)
        except IndexError:
            raise HpackError("header block ends inside a field") from None
        # A list of references costs 8 bytes a field whatever the fields' sizes, so decoding first
        # and measuring after cannot be blown up by a small block (an HPACK bomb).
        if len(fields) > _FIELDS_UNCOUNTED or end > self._list_bytes_max // 4:
            size = sum([len(name) + len(value) for name, value in fields])
            if size + len(fields) * _FIELD_OVERHEAD > self._list_bytes_max:
                raise HeaderListTooLargeError
        return fields

    def _room(self, fields: list[Field]) -> int:
        if len(fields) > self._fields_max:
            raise BombError
        return self._fields_max - len(fields)

    def _string(self, block: bytes, position: int) -> tuple[bytes, int]:
        start = position
        length = block[position] & 0x7F
        position += 1
        if length == 0x7F:
            length, position = _integer(block, position, 0x7F)
        stop = position + length
        if stop > len(block):
            raise HpackError("string ends after the block")
        raw = block[start:stop]
        found = self._memo.get(raw)
        return (found if found is not None else self._remember(raw, position - start)), stop

    def _remember(self, raw: bytes, prefix_bytes: int) -> bytes:
        # `raw` is the string as sent: length prefix, then plain or Huffman-coded bytes.
        text = raw[prefix_bytes:]
        if raw[0] & 0x80:
            try:
                text = huffman.decode(text)
            except ValueError as error:
                raise HpackError(str(error)) from None
        if len(raw) <= _MEMO_STRING_BYTES_MAX:
            if len(self._memo) >= _MEMO_STRINGS_MAX:
                self._memo.clear()
            self._memo[raw] = text
        return text

    def _insert(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
        self.generation += 1
        self._size += size
        self._entries.append(field)
        self._sizes.append(size)
        if self._size > self._size_max:
            self._evict()  # a field larger than the whole table empties it (RFC 7541 4.4)

    def _evict(self) -> None:
        count = 0
        for size in self._sizes:
            if self._size <= self._size_max:
                break
            self._size -= size
            count += 1
        del self._entries[:count]
        del self._sizes[:count]

    def _resize(self, size: int, *, is_first: bool) -> None:
        if not is_first:
            raise HpackError("table size update after a field, or too many of them")
        # We never announce another HEADER_TABLE_SIZE than the default.
        if size > TABLE_SIZE_DEFAULT:
            raise HpackError(f"table size update to {size}, over {TABLE_SIZE_DEFAULT}")
        self._size_max = size
        if self._size > size:
            self.generation += 1
            self._evict()


def _dynamic(index: int, entries: list[Field]) -> int:
    offset = index - _STATIC_COUNT
    if offset > len(entries):
        raise HpackError(f"field index {index} is beyond the table")
    return -offset


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    # RFC 7541 5.1, after a prefix of all ones.
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
        if shift > 28:
            raise HpackError("integer of too many bytes")
    if value > _INTEGER_MAX:
        raise HpackError("integer over 2^31 - 1")
    return value, position


def encode_integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    """Encode an integer >= 0 under the high bits of `pattern` (RFC 7541 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    encoded = bytearray((pattern | limit,))
    value -= limit
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_literal(name: bytes, value: bytes) -> bytes:
    """Encode one field as a plain literal without indexing: correct in every table state."""
    return b"".join(
        (b"\x00", encode_integer(len(name), 7, 0), name, encode_integer(len(value), 7, 0), value)
    )


def encode(fields: Iterable[Field]) -> bytes:
    """Encode a list of fields without touching the dynamic table."""
    return b"".join([encode_literal(name, value) for name, value in fields])


def encode_table_size(size: int) -> bytes:
    """Encode the update that opens the block after the peer lowered its table (RFC 7541 4.2)."""
    return encode_integer(size, 5, 0x20)
