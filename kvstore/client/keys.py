"""Ranges of keys as the API writes them: a first key and an end that is not included."""

from __future__ import annotations

TO_THE_END = b"\0"
"""As `range_end`: all keys from the first on."""


def prefix_end(prefix: bytes) -> bytes:
    r"""Return the `range_end` for all keys that start with `prefix`.

    >>> prefix_end(b"/a/")
    b'/a0'
    >>> prefix_end(b"\xff")
    b'\x00'
    """
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return TO_THE_END
    return stem[:-1] + bytes([stem[-1] + 1])


def range_of(key: bytes, range_end: bytes, *, prefix: bool) -> tuple[bytes, bytes]:
    """Return first key and end as the API wants them.

    Args:
        key: The key; with `prefix`, what the keys start with (b"" is every key).
        range_end: b"" for the key alone, `TO_THE_END`, or the first key after the range.
        prefix: All keys that start with `key`. Excludes `range_end`.
    """
    if prefix:
        if range_end:
            raise ValueError("prefix and range_end exclude each other")
        return key or b"\0", prefix_end(key)
    if range_end and not key:
        return b"\0", range_end  # the API has no empty key; zero is the first there can be
    return key, range_end
