"""The drivers' decoder of header blocks: its memo never lies."""

from __future__ import annotations

import random

from hpack import Decoder, Encoder

from bench.messages import PUT
from bench.wire import Blocks


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
