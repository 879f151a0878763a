"""What is read and changed in IPv4 packets on their way: pure, and nothing but headers.

On the wire a packet goes as it is, in UDP, as Flannel's `udp` backend has it.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("!BxHxxxxB3xII")
"""Version and header length, total length, TTL, source, destination."""
HEADER_BYTES = 20
VERSION_AND_LENGTH = 0x45
"""The first byte of a packet without options. With options it is up to 0x4f."""
FIRST_MAX = 0x4F
TTL_AT, CHECKSUM_AT = 8, 10
PROTOCOL_AT, FRAGMENT_AT = 9, 6
ICMP = 1
FRAGMENT_OFFSET = 0x1FFF
UNREACHABLE, NET = 3, 0
QUOTED_BYTES = 8
"""Of what follows the header of a packet that an ICMP message is about (RFC 792)."""

_checksum = struct.Struct("!H")


def is_whole(first: int, total: int, length: int) -> bool:
    """Tell whether a header's first byte and total length go with a packet of that length."""
    return VERSION_AND_LENGTH <= first <= FIRST_MAX and (first & 15) * 4 <= total == length


def lower_ttl(buffer: bytearray, start: int) -> bool:
    """Take one from a packet's TTL, in place; False: it has come to its end, and is as it was.

    Two additions instead of a sum over the header (RFC 1624): only the TTL's byte has changed.
    """
    ttl = buffer[start + TTL_AT]
    if ttl <= 1:
        return False
    buffer[start + TTL_AT] = ttl - 1
    [checksum] = _checksum.unpack_from(buffer, start + CHECKSUM_AT)
    checksum += 0x100
    # 0xffff is not used: it is the other zero, and a sum over the header gives 0.
    _checksum.pack_into(buffer, start + CHECKSUM_AT, checksum - 0xFFFF * (checksum >= 0xFFFF))
    return True


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    # 65536 is 1 modulo 65535: the remainder is the sum of the words with its carries added.
    total = int.from_bytes(padded) % 0xFFFF
    return 0xFFFF - total if total else 0xFFFF * (not any(padded))


def net_unreachable(packet: bytes) -> bytes:
    """Return the ICMP message that there is no way for a packet, or nothing where none is due.

    None is due to other ICMP messages, or there would be no end, nor to later fragments.
    `packet` is a whole one.
    """
    header = (packet[0] & 15) * 4
    [fragment] = _checksum.unpack_from(packet, FRAGMENT_AT)
    if packet[PROTOCOL_AT] == ICMP or fragment & FRAGMENT_OFFSET:
        return b""
    quoted = packet[: header + QUOTED_BYTES]
    told = struct.pack("!BBHI", UNREACHABLE, NET, 0, 0) + quoted
    return told[:2] + _checksum.pack(checksum(told)) + told[4:]
