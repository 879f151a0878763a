"""gRPC over HTTP/2 as values: status codes, texts of grpc-go, timeouts, metadata, compression."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14

MESSAGE_HEAD_BYTES = 5

DEADLINE_TEXT = "context deadline exceeded"
UNEXPECTED_EOF_TEXT = "unexpected EOF"
NO_MESSAGE_TEXT = "cardinality violation: received no request message from non-client-streaming RPC"
MANY_MESSAGES_TEXT = (
    "cardinality violation: received multiple request messages for non-client-streaming RPC"
)

# Larger replies go out uncompressed, which gRPC allows message by message: 64 KiB of gzip takes
# about 1 ms of the loop, 100 MiB would stall it for seconds.
_GZIP_BYTES_MAX = 64 * 1024
_GZIP_BYTES_MIN = 256
_GZIP_LEVEL = 1
_GZIP_WBITS = 31

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# The largest grpc-timeout is 11,000 years; asyncio's clocks want less.
_TIMEOUT_S_MAX = 10 * 365 * 86400.0

_MESSAGE_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x7e]")
_METADATA_NAME_LEGAL = re.compile(rb"[0-9a-z_.\-]+").fullmatch
_METADATA_VALUE_LEGAL = re.compile(rb"[\x20-\x7e]*").fullmatch


class GrpcError(Exception):
    """A request that ends with a status of gRPC's own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def parse_timeout(value: bytes) -> float:
    """Return seconds of a grpc-timeout. ValueError: malformed."""
    match = _TIMEOUT(value)
    if match is None:
        raise ValueError("malformed grpc-timeout")
    return min(int(match[1]) * _UNIT_S[match[2]], _TIMEOUT_S_MAX)


def encode_message(text: str) -> bytes:
    """Percent-encode a status text for grpc-message."""
    return _MESSAGE_UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text.encode())


def encode_metadata(metadata: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields as sent: values of names that end in `-bin` as base64.

    ValueError: a name or text value that gRPC does not allow.
    """
    fields = []
    for name, value in metadata:
        if _METADATA_NAME_LEGAL(name) is None or name.startswith(b"grpc-"):
            raise ValueError(f"illegal metadata name {name!r}")
        if name.endswith(b"-bin"):
            fields.append((name, base64.b64encode(value).rstrip(b"=")))
        else:
            if _METADATA_VALUE_LEGAL(value) is None:
                raise ValueError(f"metadata {name!r}: text value is not printable ASCII")
            fields.append((name, value))
    return fields


def decode_metadata(name: bytes, value: bytes) -> bytes:
    """Return the value of a field as the application sees it. ValueError: bad base64."""
    if not name.endswith(b"-bin"):
        return value
    first = value.split(b",", 1)[0]  # several values may be joined; the first counts
    try:
        return base64.b64decode(first + b"=" * (-len(first) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"metadata {name!r}: {error}") from None


def unknown_method_text(path: str, services: set[str]) -> str:
    """Return grpc-go's text for a path that no handler serves."""
    if not path.startswith("/") or "/" not in path[1:]:
        return f'malformed method name: "{path}"'
    service, _, method = path[1:].rpartition("/")
    if service in services:
        return f"unknown method {method} for service {service}"
    return f"unknown service {service}"


def too_large(size_bytes: int, bytes_max: int) -> GrpcError:
    """Return the refusal of a message whose head announces too much."""
    return GrpcError(
        RESOURCE_EXHAUSTED,
        f"grpc: received message larger than max ({size_bytes} vs. {bytes_max})",
    )


def unpack_payload(flag: int, payload: bytes, encoding: bytes, bytes_max: int) -> bytes:
    """Return the message bytes of a payload that is not plain. GrpcError: it cannot be read."""
    if flag == 0:
        return payload
    if flag != 1:
        raise GrpcError(INTERNAL, f"grpc: received unexpected payload format {flag}")
    if encoding in {b"", b"identity"}:
        raise GrpcError(INTERNAL, "grpc: compressed flag set with identity or empty encoding")
    if encoding != b"gzip":
        raise GrpcError(
            UNIMPLEMENTED,
            f'grpc: Decompressor is not installed for grpc-encoding "{encoding.decode("latin-1")}"',
        )
    return _gunzip(payload, bytes_max)


def _gunzip(payload: bytes, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    room = bytes_max
    rest = payload
    try:
        while rest or not parts:
            # Bounded output: a few KiB may not become gigabytes.
            stream = zlib.decompressobj(wbits=_GZIP_WBITS)
            part = stream.decompress(rest, room + 1)
            if len(part) > room:
                raise GrpcError(
                    RESOURCE_EXHAUSTED,
                    f"grpc: received message after decompression larger than max {bytes_max}",
                )
            if not stream.eof:
                raise GrpcError(INTERNAL, "grpc: failed to decompress the message: unexpected EOF")
            parts.append(part)
            room -= len(part)
            rest = stream.unused_data  # gzip members may follow one another (RFC 1952 2.2)
    except zlib.error as error:
        raise GrpcError(INTERNAL, f"grpc: failed to decompress the message: {error}") from None
    return b"".join(parts)


def maybe_gzip(message: bytes) -> bytes | None:
    """Return the message compressed, or None where plain is the better choice."""
    if not _GZIP_BYTES_MIN <= len(message) <= _GZIP_BYTES_MAX:
        return None
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
    packed = packer.compress(message) + packer.flush()
    return packed if len(packed) < len(message) else None


def check_unary(buffer: bytes | bytearray, bytes_max: int) -> None:
    """Refuse early what cannot become the one message of a unary call. GrpcError."""
    if len(buffer) >= MESSAGE_HEAD_BYTES:
        size = int.from_bytes(buffer[1:MESSAGE_HEAD_BYTES], "big")
        if size > bytes_max:
            raise too_large(size, bytes_max)
        if len(buffer) > MESSAGE_HEAD_BYTES + size:
            raise GrpcError(INTERNAL, MANY_MESSAGES_TEXT)


def take_unary(buffer: bytes | bytearray, encoding: bytes, bytes_max: int) -> bytes:
    """Return the one message of a finished unary request. GrpcError: it is not exactly one."""
    if not buffer:
        raise GrpcError(INTERNAL, NO_MESSAGE_TEXT)
    check_unary(buffer, bytes_max)
    if len(buffer) < MESSAGE_HEAD_BYTES + int.from_bytes(buffer[1:MESSAGE_HEAD_BYTES], "big"):
        raise GrpcError(INTERNAL, UNEXPECTED_EOF_TEXT)
    return unpack_payload(buffer[0], bytes(buffer[MESSAGE_HEAD_BYTES:]), encoding, bytes_max)


def take_message(buffer: bytearray, encoding: bytes, bytes_max: int) -> bytes | None:
    """Cut the first message off `buffer`; None when it is incomplete. GrpcError."""
    if len(buffer) < MESSAGE_HEAD_BYTES:
        return None
    size = int.from_bytes(buffer[1:MESSAGE_HEAD_BYTES], "big")
    if size > bytes_max:
        raise too_large(size, bytes_max)
    stop = MESSAGE_HEAD_BYTES + size
    if len(buffer) < stop:
        return None
    flag = buffer[0]
    payload = bytes(buffer[MESSAGE_HEAD_BYTES:stop])
    del buffer[:stop]  # cheap: a bytearray only moves its start
    return unpack_payload(flag, payload, encoding, bytes_max)
