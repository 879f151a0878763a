"""Plain puts, which are nearly all: key and value to PutRequest bytes without a message object."""

from __future__ import annotations

_VALUE_BYTES_END = 1 << 14
_KEY_HEADS = [bytes((0x0A, length)) for length in range(128)]
"""Tag and length of a key."""

_VALUE_HEADS: dict[int, bytes] = {}
"""The same of a value, for the lengths that were met."""


def plain_put(key: object, value: object) -> bytes | None:
    """Return the encoded request that sets a key to a value; None for what protobuf has to judge.

    Canonical, as protobuf's own encoders write it (tests/client/test_plain.py).
    """
    if type(key) is not bytes or type(value) is not bytes:
        return None
    key_bytes, value_bytes = len(key), len(value)
    if not (0 < key_bytes < 128 and 0 < value_bytes < _VALUE_BYTES_END):
        return None
    return b"".join(
        (_KEY_HEADS[key_bytes], key, _VALUE_HEADS.get(value_bytes) or _head(value_bytes), value)
    )


def _head(value_bytes: int) -> bytes:
    small = value_bytes < 128
    length = (value_bytes,) if small else (value_bytes & 127 | 128, value_bytes >> 7)
    head = _VALUE_HEADS[value_bytes] = bytes((0x12, *length))
    return head
