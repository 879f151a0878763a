"""HTTP/2 frames and header blocks for the drivers and the null server; no sockets, no policy.

RFC 9113 and 7541, as far as a well-behaved gRPC peer needs them.
"""

from __future__ import annotations

import struct

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4, 6, 7, 8, 9),
)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS = 0x4, 0x3
WINDOW_MAX = (1 << 31) - 1
WINDOW_DEFAULT = 65_535
FRAME_MAX = 16_384

FRAME_HEAD = struct.Struct(">IBI")
"""Length and type (24 + 8 bits), flags, stream."""

STREAM = struct.Struct(">I")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return FRAME_HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def head(kind: int, flags: int, length: int) -> bytes:
    """Return the first five bytes of a frame, the stream id left out."""
    return struct.pack(">IB", length << 8 | kind, flags)


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(struct.pack(">HI", name, value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, STREAM.pack(increment))


def opening(*, client: bool) -> bytes:
    """Return what a side sends first: large receive windows, so that it never holds the other."""
    return (
        (PREFACE if client else b"")
        + settings({INITIAL_WINDOW_SIZE: WINDOW_MAX})
        + window_update(0, WINDOW_MAX - WINDOW_DEFAULT)
    )


def header_payload(payload: bytes, flags: int) -> bytes:
    """Return the block fragment of a HEADERS payload without padding and priority."""
    start, end = 0, len(payload)
    if flags & PADDED:
        start, end = 1, end - payload[0]
    if flags & PRIORITY:
        start += 5
    return payload[start:end]


class Blocks:
    """Decodes the header blocks of one connection, quickly when they repeat.

    A block decoded before needs no decoding as long as the dynamic table has not changed since;
    the memo is dropped whenever a block changed it.
    """

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._memo: dict[bytes, dict[bytes, bytes]] = {}

    def decode(self, block: bytes) -> dict[bytes, bytes]:
        """Return the headers of a block. Raises hpack's HPACKError."""
        known = self._memo.get(block)
        if known is not None:
            return known
        before = list(self._decoder.header_table.dynamic_entries)
        headers = {bytes(k): bytes(v) for k, v in self._decoder.decode(block, raw=True)}
        if list(self._decoder.header_table.dynamic_entries) == before:
            self._memo[block] = headers
        else:
            self._memo.clear()
        return headers
