"""Revision keys: the 17 or 18 bytes under which a change is stored; no store state here.

As etcd stores them: main revision as 8 big-endian bytes, `_`, sub revision as 8 big-endian bytes,
and a trailing `t` when the change is a deletion. Byte order is revision order.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_BYTES: Final = 17
"""Length of the key of a put; a tombstone's is one more."""

TOMBSTONE_MARK: Final = b"t"

pack_fields: Final[Callable[[int, bytes, int], bytes]] = struct.Struct(">QcQ").pack
"""Main revision, `_`, sub revision to a put's key: `pack` without the call around it."""

pack_main: Final[Callable[[int], bytes]] = struct.Struct(">Q").pack
"""Main revision to its 8 big-endian bytes."""


def pack(main: int, sub: int) -> bytes:
    """Return the key of a put."""
    return pack_fields(main, b"_", sub)


def pack_tombstone(main: int, sub: int) -> bytes:
    """Return the key of a deletion."""
    return pack_fields(main, b"_", sub) + TOMBSTONE_MARK


def main_of(key: bytes) -> int:
    """Return the main revision of a key, tombstone or not."""
    return int.from_bytes(key[:8], "big")


def sub_of(key: bytes) -> int:
    """Return the sub revision of a key, tombstone or not."""
    return int.from_bytes(key[9:17], "big")


def is_tombstone(key: bytes) -> bool:
    """Tell whether the key stands for a deletion."""
    return len(key) == KEY_BYTES + 1


def is_valid(key: bytes) -> bool:
    """Tell whether the bytes have the shape of a revision key."""
    return key[8:9] == b"_" and (
        len(key) == KEY_BYTES or (len(key) == KEY_BYTES + 1 and key[17:] == TOMBSTONE_MARK)
    )
