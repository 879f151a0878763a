"""HTTP/2 frame numbers (RFC 9113) and builders of the frames a server sends; no state."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
FRAME_BYTES_DEFAULT = 16384
SEND_FRAME_BYTES_MAX = 65536  # larger frames where a client allows them only delay small replies
WINDOW_DEFAULT = 65535
WINDOW_MAX = 2**31 - 1
STREAM_ID_MAX = 2**31 - 1

DATA = 0
HEADERS = 1
PRIORITY = 2
RST_STREAM = 3
SETTINGS = 4
PUSH_PROMISE = 5
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

SETTINGS_HEADER_TABLE_SIZE = 1
SETTINGS_ENABLE_PUSH = 2
SETTINGS_MAX_CONCURRENT_STREAMS = 3
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5
SETTINGS_MAX_HEADER_LIST_SIZE = 6

NO_ERROR = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2
FLOW_CONTROL_ERROR = 3
STREAM_CLOSED = 5
FRAME_SIZE_ERROR = 6
REFUSED_STREAM = 7
CANCEL = 8
COMPRESSION_ERROR = 9
ENHANCE_YOUR_CALM = 11

# Length and type in one word: two shifts are cheaper than a five-field unpack.
_HEAD = struct.Struct(">LBL")
unpack_head = _HEAD.unpack_from
"""(length << 8 | type, flags, stream id with its reserved bit) at an offset."""

_GOAWAY = struct.Struct(">LBLLL")
_WORD_FRAME = struct.Struct(">LBLL")
_SETTING = struct.Struct(">HL")

unpack_message_head = struct.Struct(">BL").unpack_from
"""(compressed flag, length) of a gRPC message at an offset."""

pack_message_head = struct.Struct(">BL").pack


def join_messages(messages: Sequence[bytes]) -> bytes:
    """Return uncompressed gRPC messages, at least one, one behind the other with their heads."""
    if len(set(map(len, messages))) == 1:
        # One event for many watchers: half the time.
        head = pack_message_head(0, len(messages[0]))
        return head + head.join(messages)
    return b"".join([pack_message_head(0, len(message)) + message for message in messages])


# A unary reply around its message, for a connection whose dynamic table (theirs) holds our two
# fields: HEADERS of 2 bytes, the DATA head and the gRPC message head; then trailers of 1 byte.
_REPLY_BEFORE = struct.Struct(">5sL2sLxLxL")
_REPLY_AFTER = struct.Struct(">5sLs")
REPLY_HEADERS_HEAD = b"\x00\x00\x02\x01\x04"
REPLY_TRAILERS_HEAD = b"\x00\x00\x01\x01\x05"
pack_reply_before = _REPLY_BEFORE.pack
"""(REPLY_HEADERS_HEAD, stream id, header block, DATA length << 8, stream id, message length)"""
pack_reply_after = _REPLY_AFTER.pack
"""(REPLY_TRAILERS_HEAD, stream id, trailer block)"""


def head(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """Return the 9 bytes before a payload of `length`."""
    return _HEAD.pack(length << 8 | kind, flags, stream_id)


def headers(stream_id: int, block: bytes, frame_bytes_max: int, *, end_stream: bool) -> bytes:
    """Return HEADERS, with as many CONTINUATION frames as the block needs."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes_max:
        return _HEAD.pack(len(block) << 8 | HEADERS, flags | END_HEADERS, stream_id) + block
    parts = []
    kind = HEADERS
    for start in range(0, len(block), frame_bytes_max):
        piece = block[start : start + frame_bytes_max]
        if start + frame_bytes_max >= len(block):
            flags |= END_HEADERS
        parts += [_HEAD.pack(len(piece) << 8 | kind, flags, stream_id), piece]
        kind, flags = CONTINUATION, 0
    return b"".join(parts)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """Return a SETTINGS frame of (identifier, value) pairs."""
    payload = b"".join([_SETTING.pack(identifier, value) for identifier, value in values])
    return _HEAD.pack(len(payload) << 8 | SETTINGS, 0, 0) + payload


SETTINGS_ACK = _HEAD.pack(SETTINGS, ACK, 0)


def unpack_settings(payload: bytes) -> Iterable[tuple[int, int]]:
    """Yield (identifier, value); the length is a multiple of 6, the caller has seen to it."""
    return _SETTING.iter_unpack(payload)


def ping(data: bytes, *, ack: bool) -> bytes:
    """Return a PING frame around 8 bytes."""
    return _HEAD.pack(8 << 8 | PING, ACK if ack else 0, 0) + data


def goaway(last_stream_id: int, code: int, text: bytes = b"") -> bytes:
    """Return a GOAWAY frame; `text` is its debug data."""
    return _GOAWAY.pack((8 + len(text)) << 8 | GOAWAY, 0, 0, last_stream_id, code) + text


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return an RST_STREAM frame."""
    return _WORD_FRAME.pack(4 << 8 | RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return _WORD_FRAME.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)
