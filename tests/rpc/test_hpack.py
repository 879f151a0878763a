"""HPACK: our decoder against the `hpack` library, the table's rules, and our few encodings."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.http2 import huffman
from kvstore.http2.hpack import (
    STATIC_TABLE,
    BombError,
    Decoder,
    HeaderListTooLargeError,
    HpackError,
    encode,
    encode_integer,
    encode_table_size,
)

LIST_MAX = 65536

names = st.sampled_from(
    [b":path", b":authority", b"grpc-timeout", b"token", b"x", b"cookie", b"user-agent"]
) | st.from_regex(rb"[a-z][a-z0-9-]{0,30}", fullmatch=True)
values = st.binary(max_size=60) | st.binary(min_size=100, max_size=1500)
fields = st.lists(st.tuples(names, values, st.booleans()), max_size=12)
blocks = st.lists(
    st.tuples(fields, st.booleans(), st.none() | st.lists(st.integers(0, 4096), max_size=3)),
    max_size=12,
)


@given(blocks)
@settings(max_examples=300, deadline=None)
def test_decodes_what_the_library_encodes(history: list[object]) -> None:
    # One connection's life: dynamic entries, evictions, size changes, never-indexed, Huffman.
    encoder = hpack.Encoder()
    decoder = Decoder(1 << 30)
    for content, use_huffman, sizes in history:  # type: ignore[misc]
        for size in sizes or []:
            # The library's encoder forgets its update when the same size is set twice.
            if size != encoder.header_table_size:
                encoder.header_table_size = size
        block = encoder.encode(
            [
                (hpack.NeverIndexedHeaderTuple if sensitive else hpack.HeaderTuple)(name, value)
                for name, value, sensitive in content
            ],
            huffman=use_huffman,
        )
        assert decoder.decode(block) == [(name, value) for name, value, _ in content]
        table = encoder.header_table
        assert decoder._entries[::-1] == [(bytes(n), bytes(v)) for n, v in table.dynamic_entries]
        assert decoder._size == table._current_size <= decoder._size_max


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 10))
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_as_the_library_says(history: list[bytes], salt: int) -> None:
    # Same verdict and same fields on garbage: neither more lenient nor more strict.
    oracle = hpack.Decoder(max_header_list_size=1 << 30)
    oracle.max_allowed_table_size = 4096
    decoder = Decoder(1 << 30)
    for block in history:
        try:
            expected = [(bytes(n), bytes(v)) for n, v in oracle.decode(block, raw=True)]
        except hpack.HPACKError:
            with pytest.raises(HpackError):
                decoder.decode(block)
            return
        assert decoder.decode(block) == expected


def test_static_table_is_the_librarys() -> None:
    assert tuple(HeaderTable.STATIC_TABLE) == STATIC_TABLE


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_huffman_round_trip(text: bytes) -> None:
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    assert huffman.decode(coded) == text


@pytest.mark.parametrize(
    "coded",
    [
        b"\x00\x00",  # padding of zeros
        b"\xff",  # 8 bits of padding
        b"\x1f\xff",  # "a", then 11 bits of padding
        b"\xff\xff\xff\xff",  # the end-of-string symbol itself
        b"\xff\xff\xff\xfa",
    ],
)
def test_illegal_huffman(coded: bytes) -> None:
    with pytest.raises(ValueError, match="RFC 7541"):
        huffman.decode(coded)


def test_literals_are_remembered_within_bounds() -> None:
    decoder = Decoder(LIST_MAX)
    for number in range(1000):
        decoder.decode(b"\x00\x01a" + bytes((4,)) + b"%04d" % number)
    assert len(decoder._memo) <= 24
    decoder.decode(b"\x00\x01a" + encode_integer(300, 7, 0) + b"x" * 300)
    assert all(len(raw) <= 256 for raw in decoder._memo)


def test_generation_changes_exactly_with_the_table() -> None:
    decoder = Decoder(LIST_MAX)
    start = decoder.generation
    decoder.decode(b"\x82\x00\x01a\x01b\x10\x01a\x01b")  # indexed, plain, never indexed
    decoder.decode(b"\x3f\xe1\x1f")  # a size update to 4,096: nothing is evicted
    assert decoder.generation == start
    decoder.decode(b"\x40\x01a\x01b")
    inserted = decoder.generation
    assert inserted != start
    decoder.decode(b"\x20")  # a size update to 0 evicts it
    assert decoder.generation != inserted
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


def test_a_field_larger_than_the_table_empties_it() -> None:
    decoder = Decoder(1 << 20)
    decoder.decode(b"\x40\x01a\x01b")
    block = b"\x40\x01c" + encode_integer(5000, 7, 0) + b"x" * 5000
    assert decoder.decode(block) == [(b"c", b"x" * 5000)]
    assert (decoder._entries, decoder._size) == ([], 0)


def test_a_bomb_is_refused_and_the_tables_stay_in_step() -> None:
    # 3,935 bytes an entry, referred to 4,000 times: 16 MB of headers in 4 KB.
    decoder = Decoder(LIST_MAX)
    decoder.decode(b"\x40\x01a" + encode_integer(3900, 7, 0) + b"v" * 3900)
    with pytest.raises(HeaderListTooLargeError):
        decoder.decode(b"\xbe" * 4000 + b"\x40\x01b\x01c")
    assert decoder.decode(b"\xbe") == [(b"b", b"c")]


def test_a_bomb_of_many_fields_is_not_decoded_to_its_end() -> None:
    # 65,536 bytes of them would take milliseconds each time; the connection ends instead.
    decoder = Decoder(LIST_MAX)
    with pytest.raises(BombError):
        decoder.decode(b"\x82" * 16000)
    padded = b"\x00\x01a" + encode_integer(5000, 7, 0) + b"v" * 5000
    assert len(decoder.decode(padded + b"\x82" * 300)) == 301  # long, but of few fields


def test_table_size_updates_are_few() -> None:
    decoder = Decoder(LIST_MAX)
    assert decoder.decode(b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]
    with pytest.raises(HpackError):
        decoder.decode(b"\x20\x3f\xe1\x1f" * 8 + b"\x82")


def test_one_large_literal_is_measured_too() -> None:
    decoder = Decoder(LIST_MAX)
    size = LIST_MAX - 33
    fits = b"\x00\x01a" + encode_integer(size, 7, 0) + b"x" * size
    assert len(decoder.decode(fits)) == 1
    with pytest.raises(HeaderListTooLargeError):
        decoder.decode(b"\x00\x01a" + encode_integer(size + 1, 7, 0) + b"x" * (size + 1))


def test_a_huffman_literal_is_measured_decoded() -> None:
    # 5 bits a letter: 41 KB decode to 65 KB, just over the limit.
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(b"a" * LIST_MAX)
    decoder = Decoder(LIST_MAX)
    with pytest.raises(HeaderListTooLargeError):
        decoder.decode(b"\x00\x01a" + encode_integer(len(coded), 7, 0x80) + coded)


@pytest.mark.parametrize(
    "block", [b"\x82\x20", b"\x3f\xe2\x1f", b"\xff\xff\xff\xff\xff\x0f", b"\x7f"]
)
def test_illegal_blocks(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder(LIST_MAX).decode(block)


@pytest.mark.parametrize(
    ("block", "suspect"),
    [
        (b"\x00\x01a\x01b", False),
        (b"\x00\x01A\x01b", True),
        (b"\x00\x00\x01b", True),
        (b"\x00\x01a\x02b\n", True),
        (b"\x0f\x10\x02 b", True),  # an indexed name, a bad value
        (b"\x40\x01a\x03b\0c", True),
    ],
)
def test_suspect_literals_are_noticed(block: bytes, suspect: bool) -> None:
    decoder = Decoder(LIST_MAX)
    decoder.decode(block)
    assert decoder.suspect is suspect


@given(st.lists(st.tuples(names, values), max_size=10))
def test_the_library_decodes_what_we_encode(content: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 30)
    assert [tuple(field) for field in decoder.decode(encode(content), raw=True)] == content


@given(st.integers(0, 4096))
def test_the_library_follows_our_size_updates(size: int) -> None:
    decoder = hpack.Decoder()
    decoder.decode(encode_table_size(size) + b"\x82")
    assert decoder.header_table_size == size
