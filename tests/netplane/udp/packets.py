"""IPv4 packets made by hand, for the tests of the userspace overlay."""

from __future__ import annotations

import struct

SOURCE = bytes([10, 5, 1, 2])
TARGET = bytes([10, 5, 2, 2])
UDP = 17


def packet(
    source: bytes,
    target: bytes,
    payload: bytes = b"",
    *,
    ttl: int = 64,
    identity: int = 0,
    protocol: int = UDP,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """Return a packet whose header adds up."""
    length = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x40 | length // 4, 0, length + len(payload), identity, fragment, ttl, protocol, 0),
        *(source, target),
    )
    head += options
    return head[:10] + struct.pack("!H", header_sum(head) ^ 0xFFFF) + head[12:] + payload


def header_sum(data: bytes) -> int:
    """Return the sum that is 0xffff over a header with its checksum."""
    length = (data[0] & 15) * 4
    total = sum(struct.unpack(f"!{length // 2}H", data[:length]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
