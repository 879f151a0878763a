"""Headers change as a sum over all of them would have it, and nothing that came is believed."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from netplane.udp.packets import HEADER, checksum, is_whole, lower_ttl, net_unreachable
from tests.netplane.udp.packets import SOURCE, TARGET, header_sum, packet

ADDRESSES = st.binary(min_size=4, max_size=4)


@given(
    ttl=st.integers(2, 255),
    identity=st.integers(0, 65535),
    source=ADDRESSES,
    target=ADDRESSES,
    options=st.integers(0, 10),
)
def test_a_lowered_ttl_leaves_a_header_that_adds_up(
    ttl: int, identity: int, source: bytes, target: bytes, options: int
) -> None:
    made = packet(
        source, target, b"data", ttl=ttl, identity=identity, options=b"\1\1\1\1" * options
    )
    buffer = bytearray(b"before" + made)
    assert lower_ttl(buffer, 6)
    assert buffer[:6] == b"before"
    after = bytes(buffer[6:])
    assert after[8] == ttl - 1
    assert header_sum(after) == 0xFFFF
    # No other byte is touched.
    assert after[:8] + after[9:10] + after[12:] == made[:8] + made[9:10] + made[12:]


def test_every_checksum_there_is_goes_on_adding_up() -> None:
    # The carries are where increments go wrong, and draws seldom meet them.
    for identity in range(65536):
        buffer = bytearray(packet(SOURCE, TARGET, ttl=2, identity=identity))
        assert lower_ttl(buffer, 0)
        assert header_sum(bytes(buffer)) == 0xFFFF


def test_a_ttl_at_its_end_stays_as_it_is() -> None:
    for ttl in 0, 1:
        buffer = bytearray(packet(SOURCE, TARGET, ttl=ttl))
        before = bytes(buffer)
        assert not lower_ttl(buffer, 0)
        assert buffer == before


@given(st.binary(max_size=100))
def test_a_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == total ^ 0xFFFF


@given(st.binary(min_size=20, max_size=80))
def test_what_is_whole_has_the_header_and_the_length_that_it_says(data: bytes) -> None:
    first, total, *_ = HEADER.unpack_from(data)
    whole = is_whole(first, total, len(data))
    says = data[0] >> 4 == 4 and struct.unpack_from("!H", data, 2)[0] == len(data)
    assert whole == (says and 20 <= 4 * (data[0] & 15) <= len(data))


def test_who_sends_to_nobody_gets_the_header_back_in_icmp() -> None:
    offender = packet(SOURCE, TARGET, b"12345678 and no more", options=b"\1\1\1\1")
    said = net_unreachable(offender)
    assert said[:2] == b"\3\0"  # net unreachable
    assert checksum(said) == 0
    assert said[8:] == offender[: 24 + 8]


def test_no_icmp_is_due_to_icmp_nor_to_later_fragments() -> None:
    assert net_unreachable(packet(SOURCE, TARGET, protocol=1)) == b""
    assert net_unreachable(packet(SOURCE, TARGET, fragment=1)) == b""
    # More to come, yet the first.
    assert net_unreachable(packet(SOURCE, TARGET, fragment=0x2000)) != b""
