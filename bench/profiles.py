"""What the headers of real gRPC clients look like on the wire; builds blocks, sends nothing.

`grpcio-token` is recorded (`python -m bench.capture`). The others imitate their encoders from the
sources and documentation of the libraries: which headers, in which order, which of them enter the
dynamic table, and how the deadline is written. `RECORDED` says which is which.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.messages import PUT, RANGE
from bench.wire import END_HEADERS, HEADERS, Encoder, Policy, head

PATHS = (PUT, RANGE)
"""An operation's kind is its place here."""

RECORDING = Path(__file__).parent / "recorded" / "grpcio-token.json"
RECORDED = {"grpcio-token"}
CHUNK = 64
"""Blocks built at a time; a stall of a millisecond at most."""

Header = tuple[bytes, bytes, Policy]


class BlockSequence:
    """The endless sequence of header blocks that one connection of a profile sends.

    HPACK is stateful, so the n-th block depends on all before it. All connections of a run send
    the same sequence, each with a decoder of its own at the other end, and it is built once.
    `items[n]` is (kind, first five bytes of the HEADERS frame, block).
    """

    def __init__(self, block: Callable[[int], bytes], kind: Callable[[int], int]) -> None:
        self.items: list[tuple[int, bytes, bytes]] = []
        self._block = block
        self._kind = kind

    def extend(self) -> None:
        """Build the next CHUNK blocks."""
        for number in range(len(self.items), len(self.items) + CHUNK):
            kind = self._kind(number)
            block = self._block(kind)
            self.items.append((kind, head(HEADERS, END_HEADERS, len(block)), block))


def sequence(profile: str, *, put_share: float, authority: str, seed: int = 1) -> BlockSequence:
    """Return the sequence of a profile with that share of puts, the rest ranges."""
    rng = random.Random(seed)

    def kind(number: int) -> int:
        if number < len(PATHS) and 0 < put_share < 1:
            return number  # a recording begins with one of each
        return 0 if rng.random() < put_share else 1

    if profile in RECORDED:
        return BlockSequence(_recorded(profile), kind)
    headers = IMITATED[profile]
    encoder = Encoder("off" if profile == "grpc-java" else "shorter")
    return BlockSequence(
        lambda chosen: encoder.encode(headers(PATHS[chosen], authority, rng)), kind
    )


def _recorded(profile: str) -> Callable[[int], bytes]:
    assert profile == "grpcio-token"
    recording = json.loads(RECORDING.read_text())
    # For one path: its first block inserts, the later ones only refer. For two: the recording's
    # second path follows the first.
    first = {name: bytes.fromhex(text) for name, text in recording["first"].items()}
    steady = {name: bytes.fromhex(text) for name, text in recording["steady"].items()}
    alone = {name: bytes.fromhex(text) for name, text in recording["alone"].items()}
    used: list[int] = []

    def block(kind: int) -> bytes:
        path = PATHS[kind]
        if kind in used:
            return steady[path] if len(used) == len(PATHS) else alone[f"{path} steady"]
        used.append(kind)
        return first[path] if len(used) > 1 or kind == 0 else alone[f"{path} first"]

    return block


def _fixed(*headers: Header) -> list[Header]:
    return list(headers)


def _h2load(path: str, authority: str, _: random.Random) -> Sequence[Header]:
    # nghttp2 keeps :path and content-length out of the table; the length here is only for show.
    return _fixed(
        (b":method", b"POST", "index"),
        (b":path", path.encode(), "literal"),
        (b":scheme", b"http", "index"),
        (b":authority", authority.encode(), "index"),
        (b"user-agent", b"h2load nghttp2/1.52.0", "index"),
        (b"content-type", b"application/grpc", "index"),
        (b"te", b"trailers", "index"),
    )


def _grpc_go(path: str, authority: str, rng: random.Random) -> Sequence[Header]:
    # golang.org/x/net/http2/hpack indexes whatever fits; grpc-go writes what is left of the
    # deadline in microseconds, so nearly every call inserts a new literal.
    return _fixed(
        (b":method", b"POST", "index"),
        (b":scheme", b"http", "index"),
        (b":path", path.encode(), "index"),
        (b":authority", authority.encode(), "index"),
        (b"content-type", b"application/grpc", "index"),
        (b"user-agent", b"grpc-go/1.71.1", "index"),
        (b"te", b"trailers", "index"),
        (b"grpc-timeout", b"%du" % rng.randrange(4_999_000, 5_000_000), "index"),
    )


def _grpc_java(path: str, authority: str, rng: random.Random) -> Sequence[Header]:
    # Netty indexes everything and codes no string below 512 bytes.
    return _fixed(
        (b":authority", authority.encode(), "index"),
        (b":path", path.encode(), "index"),
        (b":method", b"POST", "index"),
        (b":scheme", b"http", "index"),
        (b"content-type", b"application/grpc", "index"),
        (b"te", b"trailers", "index"),
        (b"user-agent", b"grpc-java-netty/1.71.0", "index"),
        (b"grpc-accept-encoding", b"gzip", "index"),
        (b"grpc-timeout", b"%du" % rng.randrange(4_999_000, 5_000_000), "index"),
    )


def _grpc_js(path: str, authority: str, rng: random.Random) -> Sequence[Header]:
    # Node's encoder is nghttp2: :path stays out of the table; the deadline is in milliseconds.
    return _fixed(
        (b":method", b"POST", "index"),
        (b":path", path.encode(), "literal"),
        (b":scheme", b"http", "index"),
        (b":authority", authority.encode(), "index"),
        (b"grpc-accept-encoding", b"identity,deflate,gzip", "index"),
        (b"accept-encoding", b"identity", "index"),
        (b"grpc-timeout", b"%dm" % rng.randrange(4_990, 5_000), "index"),
        (b"user-agent", b"grpc-node-js/1.13.3", "index"),
        (b"content-type", b"application/grpc", "index"),
        (b"te", b"trailers", "index"),
    )


IMITATED: dict[str, Callable[[str, str, random.Random], Sequence[Header]]] = {
    "h2load": _h2load,
    "grpc-go-deadline": _grpc_go,
    "grpc-java": _grpc_java,
    "grpc-js": _grpc_js,
}
NAMES = (*IMITATED, *RECORDED)
