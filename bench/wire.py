"""HTTP/2 frames and header blocks for the drivers and the null server; no sockets, no policy.

RFC 9113 and 7541, as far as a well-behaved gRPC peer needs them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

from hpack import Decoder
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

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


Policy = Literal["index", "literal", "never"]
"""Put into the dynamic table; leave out; leave out and forbid it to intermediaries."""

Huffman = Literal["shorter", "off"]


class Encoder:
    """An HPACK encoder whose choices are those of the client it imitates."""

    def __init__(self, huffman: Huffman) -> None:
        self._table = HeaderTable()
        self._coder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
        self._huffman = huffman
        self._strings: dict[bytes, bytes] = {}

    def encode(self, headers: Sequence[tuple[bytes, bytes, Policy]]) -> bytes:
        """Return the block for these headers; the table moves on."""
        return b"".join(self._field(name, value, policy) for name, value, policy in headers)

    def _field(self, name: bytes, value: bytes, policy: Policy) -> bytes:
        found = self._table.search(name, value)
        index = found[0] if found else 0
        if found and found[2] is not None and policy == "index":
            return _integer(index, 7, 0x80)
        if policy == "index":
            self._table.add(name, value)
            start = _integer(index, 6, 0x40)
        else:
            start = _integer(index, 4, 0x10 if policy == "never" else 0x00)
        return start + (b"" if index else self._string(name)) + self._string(value)

    def _string(self, text: bytes) -> bytes:
        known = self._strings.get(text)
        if known is not None:
            return known
        coded = self._coder.encode(text) if self._huffman == "shorter" else text
        if self._huffman == "shorter" and len(coded) < len(text):
            result = _integer(len(coded), 7, 0x80) + coded
        else:
            result = _integer(len(text), 7, 0x00) + text
        if len(self._strings) < 1_000:
            self._strings[text] = result
        return result


def _integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    # RFC 7541 5.1.
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    out = bytearray((pattern | limit,))
    value -= limit
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
