"""Stored key-values: canonical protobuf `mvccpb.KeyValue` bytes, written and read by hand.

Canonical is what etcd's marshaller emits (fields in order, zeros left out), because HashKV and a
Range reply are made of these very bytes. The layout is fixed, so hand-written code is twice as fast
as a message object; `tests/mvcc/test_keyvalue.py` holds it against protobuf.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvstore.mvcc.errors import CorruptStore

_LOW: Final = 1 << 14
_MASK: Final = _LOW - 1
_HIGH: Final = _LOW << 14
_SMALL: Final = tuple(
    bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7)) for n in range(_LOW)
)
_CONTINUED: Final = tuple(bytes((n & 127 | 128, n >> 7 | 128)) for n in range(_LOW))
_KEY: Final = tuple(b"\x0a" + length for length in _SMALL)
_VERSION: Final = tuple(b"\x20" + version for version in _SMALL)
_VALUE: Final = tuple(b"\x2a" + length for length in _SMALL)
_join: Final = b"".join

_PLAIN_PUT_BYTES_MIN: Final = 6
"""Two tags, two lengths, a key and a value of one byte."""


def varint(number: int) -> bytes:
    """Return the protobuf varint of a 64-bit number; negative ones take ten bytes."""
    if number < 0:
        number += 1 << 64
    if number < _LOW:
        return _SMALL[number]
    if number < _LOW * _LOW:
        return _CONTINUED[number & (_LOW - 1)] + _SMALL[number >> 14]
    return _CONTINUED[number & (_LOW - 1)] + varint(number >> 14)


def encode(
    key: bytes, created: int, modified: int, version: int, value: bytes, lease: int
) -> bytes:
    """Return the KeyValue bytes of a put: key not empty, revisions and version positive."""
    key_length = len(key)
    value_length = len(value)
    # This runs once per put: table look-ups for what is small nearly always.
    parts = (
        _KEY[key_length] if key_length < _LOW else b"\x0a" + varint(key_length),
        key,
        b"\x10",
        _SMALL[created] if created < _LOW else varint(created),
        b"\x18",
        _SMALL[modified] if modified < _LOW else varint(modified),
        _VERSION[version] if version < _LOW else b"\x20" + varint(version),
    )
    if value_length:
        head = _VALUE[value_length] if value_length < _LOW else b"\x2a" + varint(value_length)
        if lease:
            return _join((*parts, head, value, b"\x30", varint(lease)))
        return _join((*parts, head, value))
    if lease:
        return _join((*parts, b"\x30", varint(lease)))
    return _join(parts)


def plain_put(request: bytes) -> int:
    """Tell whether an encoded PutRequest is plain, and where the field of its key ends; 0 if not.

    Plain is key and value alone, neither empty, in protobuf's canonical form and with lengths of
    one byte and of two at most: what nearly all are. All others need a real parser.
    """
    size = len(request)
    if size < _PLAIN_PUT_BYTES_MIN or request[0] != 0x0A:
        return 0
    key_end = request[1] + 2
    # A longer key's length takes two bytes, the first of them above 127.
    if not 2 < key_end < 130 or key_end + 2 >= size or request[key_end] != 0x12:
        return 0
    length = request[key_end + 1]
    if length < 128:
        return key_end if key_end + 2 + length == size else 0
    high = request[key_end + 2]
    # 0 would be a length in more bytes than it needs, which nobody may store.
    if 0 < high < 128 and key_end + 3 + (length & 127 | high << 7) == size:
        return key_end
    return 0


def encode_parts(
    key_field: bytes, created: int, modified: int, version: int, sized_value: bytes
) -> bytes:
    """Return what `encode` does, without a lease, from a key field and a value behind its length.

    Args:
        key_field: Tag, length and key; the tag is that of PutRequest.key, too.
        created: Create revision.
        modified: Revision of this put.
        version: Puts since the key was created.
        sized_value: Length and value, not empty.
    """
    # As `varint` would, without its call and questions: twice per put on every member.
    if created < _LOW:
        create = _SMALL[created]
    elif created < _HIGH:
        create = _CONTINUED[created & _MASK] + _SMALL[created >> 14]
    else:
        create = varint(created)
    if modified < _LOW:
        modify = _SMALL[modified]
    elif modified < _HIGH:
        modify = _CONTINUED[modified & _MASK] + _SMALL[modified >> 14]
    else:
        modify = varint(modified)
    return _join(
        (
            key_field,
            b"\x10",
            create,
            b"\x18",
            modify,
            _VERSION[version] if version < _LOW else b"\x20" + varint(version),
            b"\x2a",
            sized_value,
        )
    )


def encode_tombstone(key: bytes) -> bytes:
    """Return what is stored for a deletion: a KeyValue with the key alone."""
    return b"\x0a" + varint(len(key)) + key


def encode_deleted(key: bytes, modified: int) -> bytes:
    """Return the KeyValue of a delete event: key and mod_revision."""
    return b"\x0a" + varint(len(key)) + key + b"\x18" + varint(modified)


def key_of(record: bytes) -> bytes:
    """Return the key of stored KeyValue bytes."""
    length = record[1]
    if length < 128:
        return record[2 : 2 + length]
    length, start = read_varint(record, 1)
    return record[start : start + length]


class Fields(NamedTuple):
    """A stored key-value taken apart."""

    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int
    value_start: int
    """Offset where the value field begins (its tag); the length of what precedes it."""


def decode(record: bytes) -> Fields:
    """Take stored KeyValue bytes apart.

    Raises:
        CorruptStore: The bytes are not a KeyValue that `encode` or `encode_tombstone` wrote.
    """
    try:
        if record[0] != 0x0A:
            raise CorruptStore(f"a stored key-value begins with {record[:4].hex()}")
        length, start = read_varint(record, 1)
        position = start + length
        key = record[start:position]
        end = len(record)
        numbers = [0, 0, 0]
        for field, tag in enumerate(b"\x10\x18\x20"):
            if position < end and record[position] == tag:
                numbers[field], position = read_varint(record, position + 1)
        value_start = position
        value = b""
        if position < end and record[position] == 0x2A:
            length, start = read_varint(record, position + 1)
            position = start + length
            value = record[start:position]
        lease = 0
        if position < end and record[position] == 0x30:
            lease, position = read_varint(record, position + 1)
            if lease >> 63:
                lease -= 1 << 64
    except IndexError:
        raise CorruptStore(f"a stored key-value is cut short: {record[:40].hex()}") from None
    if position != end:
        raise CorruptStore(f"a stored key-value has stray bytes: {record[:40].hex()}")
    created, modified, version = numbers
    return Fields(key, created, modified, version, value, lease, value_start)


def without_value(record: bytes) -> bytes:
    """Return the KeyValue bytes with the value emptied, everything else kept."""
    fields = decode(record)
    head = record[: fields.value_start]
    return head + b"\x30" + varint(fields.lease) if fields.lease else head


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at a position, and the position behind it.

    Raises:
        IndexError: The data ends within it.
    """
    number = data[position]
    position += 1
    if number < 128:
        return number, position
    number &= 127
    shift = 7
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
