"""What the headers of real gRPC clients look like on the wire: recordings, replayed; sends nothing.

`bench.capture` makes the recordings, bench/recorded/README.md says from what.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hpack import Decoder

from bench.messages import PUT, RANGE
from bench.wire import END_HEADERS, HEADERS, head

PATHS = (PUT, RANGE)
"""An operation's kind is its place here."""

SEQUENCES = {"puts": (PUT,), "ranges": (RANGE,), "mixed": PATHS}
"""What is recorded of each client: only puts, only ranges, and as many of both."""

RECORDED = Path(__file__).parent / "recorded"
NAMES = tuple(sorted(file.stem for file in RECORDED.glob("*.json")))
CALLS = 512
"""Calls per recording: enough that new literals (the time left until a deadline) fill the dynamic
table, which about 75 of them do, and evict the first headers, which the client then sends anew."""

START_OVER = b"\x20\x3f\xe1\x1f"
"""HPACK: table size 0, then 4,096 (RFC 7541 4.2 and 6.3). The other side's table is empty after
it, as at the recording's beginning."""


class BlockSequence:
    """The endless sequence of header blocks that one connection of a profile sends.

    HPACK is stateful, so the n-th block depends on all before it. All connections of a run send
    the same sequence, each with a decoder of its own at the other end, and it is built once.
    `items[n]` is (kind, first five bytes of the HEADERS frame, block).
    """

    def __init__(self, blocks: Sequence[bytes], kinds: Sequence[int]) -> None:
        self.items = _items(blocks, kinds)
        self._again = _items([START_OVER + blocks[0], *blocks[1:]], kinds)

    def extend(self) -> None:
        """Add the recording once more."""
        self.items += self._again


def _items(blocks: Sequence[bytes], kinds: Sequence[int]) -> list[tuple[int, bytes, bytes]]:
    return [
        (kind, head(HEADERS, END_HEADERS, len(block)), block)
        for kind, block in zip(kinds, blocks, strict=True)
    ]


def sequence(profile: str, *, put_share: float) -> BlockSequence:
    """Return the sequence of a profile with that share of puts: 0, 0.5 or 1; the rest are ranges.

    The `:authority` is that of the recording's server. Raises ValueError.
    """
    name = {1.0: "puts", 0.0: "ranges", 0.5: "mixed"}.get(put_share)
    if name is None or profile not in NAMES:
        raise ValueError(f"no recording of {profile!r} with {put_share} puts")
    recording = json.loads((RECORDED / f"{profile}.json").read_text())
    blocks = [bytes.fromhex(text) for text in recording["blocks"]]
    blocks = [blocks[number] for number in recording[name]]
    kinds = [PATHS.index(headers[b":path"].decode()) for headers in read(blocks)]
    return BlockSequence(blocks, kinds)


def read(blocks: Sequence[bytes]) -> list[dict[bytes, bytes]]:
    """Return the headers of successive blocks of a connection. Raises hpack's HPACKError."""
    decoder = Decoder()
    return [dict(decoder.decode(block, raw=True)) for block in blocks]
