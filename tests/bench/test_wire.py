"""Header blocks: what the drivers send is what a decoder reads, and memos never lie."""

from __future__ import annotations

import random

import pytest
from hpack import Decoder, Encoder

from bench.messages import PUT, RANGE
from bench.profiles import NAMES, PATHS, sequence
from bench.wire import Blocks


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize("put_share", [1.0, 0.0, 0.5])
def test_every_block_of_a_profile_decodes_to_a_grpc_request(profile: str, put_share: float) -> None:
    # 2,000 of them, so that a profile that inserts a literal per call evicts and inserts again.
    blocks = sequence(profile, put_share=put_share, authority="127.0.0.1:2379")
    while len(blocks.items) < 2_000:
        blocks.extend()
    decoder = Decoder()
    timeouts = set()
    kinds = set()

    for kind, start, block in blocks.items:
        headers = dict(decoder.decode(block, raw=True))
        kinds.add(kind)
        timeouts.add(headers.get(b"grpc-timeout"))
        assert headers[b":path"] == PATHS[kind].encode()
        assert headers[b":method"] == b"POST"
        assert headers[b"content-type"] == b"application/grpc"
        assert headers[b"te"] == b"trailers"
        assert int.from_bytes(start[:3], "big") == len(block)

    assert kinds == ({0, 1} if put_share == 0.5 else {0 if put_share else 1})
    if profile in ("grpc-go-deadline", "grpc-java"):
        assert len(timeouts) > 500
    if profile == "grpcio-token":
        assert headers[b"xtoken"]


def test_the_same_seed_gives_the_same_blocks() -> None:
    one, other = (
        sequence("grpc-go-deadline", put_share=0.5, authority="a", seed=3) for _ in range(2)
    )
    one.extend()
    other.extend()

    assert one.items == other.items


def test_the_memo_of_blocks_agrees_with_a_decoder_without_one() -> None:
    # Few values and a small table: blocks repeat while their meaning changes under them.
    rng = random.Random(5)
    encoder = Encoder()
    encoder.header_table_size = 120
    blocks, oracle = Blocks(), Decoder()
    meanings: dict[bytes, set[bytes]] = {}

    for _ in range(3_000):
        value = b"value-%d" % rng.randrange(4)
        block = encoder.encode([(b"x-name", value), (b":path", PUT.encode())])
        expected = {bytes(k): bytes(v) for k, v in oracle.decode(block, raw=True)}
        assert blocks.decode(block) == expected
        meanings.setdefault(block, set()).add(expected[b"x-name"])

    # Without this the test would pass with a memo that is never dropped.
    assert any(len(values) > 1 for values in meanings.values())


def test_paths_are_those_of_the_kinds() -> None:
    assert PATHS == (PUT, RANGE)
