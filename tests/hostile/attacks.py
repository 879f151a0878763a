"""What hostile HTTP/2 clients send: each attack is an endless supply of bytes for one connection.

`attacker.py` sends them; here nothing is sent or judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvstore.http2 import hpack
from kvstore.pb import rpc_pb2
from tests.rpc import wire as w
from tests.rpc.wire import frame, message, rst, settings, window_update

CHUNK_BYTES = 32 * 1024
KIB = 1024
MIB = 1024 * KIB

BIG_KEY = b"hostile/big"
"""Tests put a value of `BIG_BYTES` there."""
BIG_BYTES = MIB

Bytes = Iterator[bytes]


def block(path: str, *more: tuple[str, str]) -> bytes:
    """Return a request's header block, the same in every state of the table."""
    fields = w.request_fields(path, *more)
    return hpack.encode([(name.encode(), value.encode()) for name, value in fields])


RANGE = block("/etcdserverpb.KV/Range")
WATCH = block("/etcdserverpb.Watch/Watch")
PUT = block("/etcdserverpb.KV/Put")
READ = message(rpc_pb2.RangeRequest(key=b"k").SerializeToString())
READ_BIG = message(rpc_pb2.RangeRequest(key=BIG_KEY, serializable=True).SerializeToString())


def headers(stream: int, data: bytes = RANGE, flags: int = w.END_HEADERS) -> bytes:
    """Return the HEADERS frame of a request."""
    return frame(w.HEADERS, flags, stream, data)


def call(stream: int, body: bytes = READ) -> bytes:
    """Return a whole range request."""
    return headers(stream) + frame(w.DATA, w.END_STREAM, stream, body)


def chunked(parts: Iterable[bytes]) -> Bytes:
    """Join small parts into pieces worth a system call."""
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= CHUNK_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def streams() -> Iterator[int]:
    """Return the ids of a client's streams."""
    return itertools.count(1, 2)


def repeated(part: bytes, first: bytes = b"") -> Callable[[], Bytes]:
    """Return an attack that says something once, then repeats one thing for ever."""

    def attack() -> Bytes:
        yield first
        yield from itertools.repeat(part * max(1, CHUNK_BYTES // len(part)))

    return attack


def per_stream(make: Callable[[int], bytes], first: bytes = b"") -> Callable[[], Bytes]:
    """Return an attack that opens stream after stream."""

    def attack() -> Bytes:
        yield first
        yield from chunked(map(make, streams()))

    return attack


def closed_stream_updates() -> Bytes:
    yield call(1) + rst(1)
    yield from itertools.repeat(window_update(1, 1) * (CHUNK_BYTES // 13))


def window_swings() -> Bytes:
    # Thousands of streams whose replies wait, each looked at whenever the initial window changes.
    yield settings(window=0)
    yield b"".join(call(stream) for stream in itertools.islice(streams(), 4000))
    yield from itertools.repeat((settings(window=1) + settings(window=0)) * (CHUNK_BYTES // 30))


def hpack_size_bomb() -> Bytes:
    # One entry of 4,000 bytes, named again and again: 1 byte stands for 4,032.
    entry = b"\x40\x01x" + hpack.encode_integer(3900, 7, 0) + b"v" * 3900
    ids = streams()
    yield headers(next(ids), RANGE + entry, w.END_HEADERS | w.END_STREAM)
    bomb = RANGE + b"\xbe" * 2000
    for stream in ids:
        yield headers(stream, bomb, w.END_HEADERS | w.END_STREAM)


def zero_windows() -> Bytes:
    # Every reply waits for a window that never opens.
    yield settings(window=0)
    yield from per_stream(lambda stream: call(stream, READ_BIG))()


def negative_windows() -> Bytes:
    # Replies begin under a large window, which then turns far below zero, and back.
    ids = streams()
    yield settings(window=MIB) + window_update(0, 2**30)
    while True:
        yield b"".join(call(next(ids), READ_BIG) for _ in range(8)) + settings(window=0)
        yield settings(window=MIB)


def slow_reader() -> Bytes:
    # Windows as wide as they go, and nobody reads.
    yield settings(window=2**31 - 1) + window_update(0, 2**30)
    yield from per_stream(lambda stream: call(stream, READ_BIG))()


def large_reads() -> Bytes:
    # A thousand large replies that all become ready together, in one round of ReadIndex.
    yield settings(window=2**31 - 1) + window_update(0, 2**30)
    body = message(rpc_pb2.RangeRequest(key=BIG_KEY).SerializeToString())
    yield from per_stream(lambda stream: call(stream, body))()


def half_open_streams() -> Bytes:
    # As many as are allowed, each with a part of a message; then pings to look alive.
    part = message(bytes(64 * KIB))[:900]
    yield b"".join(
        headers(stream, PUT) + frame(w.DATA, 0, stream, part)
        for stream in itertools.islice(streams(), 4096)
    )


def incomplete_messages() -> Bytes:
    # 1 MiB of a message of 1.5 MiB on each stream, as much as is let in.
    start = message(bytes(1536 * KIB))[:MIB]
    frames = [start[at : at + 16384] for at in range(0, len(start), 16384)]
    for stream in streams():
        yield headers(stream, PUT)
        for part in frames:
            yield frame(w.DATA, 0, stream, part)


CALM = "ENHANCE_YOUR_CALM"


@dataclass(frozen=True)
class Attack:
    """One way to be a bad client, and how its connections must end."""

    supply: Callable[[], Bytes]
    ends: frozenset[str] = frozenset({CALM})
    """HTTP/2 errors; "open" is a connection that may stay, since it holds little."""
    reads: bool = True
    connections: int = 1
    """At a time. One that was ended is opened again."""
    memory_bytes: int = 48 * MIB
    """How much more the member may hold meanwhile."""


def allowed(*names: str) -> frozenset[str]:
    return frozenset(names)


ATTACKS: dict[str, Attack] = {
    # streams that are opened and at once of no use
    "rapid-reset": Attack(per_stream(lambda s: call(s) + rst(s))),  # CVE-2023-44487
    "made-you-reset-by-window": Attack(per_stream(lambda s: headers(s) + window_update(s, 0))),
    "made-you-reset-by-overflow": Attack(
        per_stream(lambda s: headers(s) + window_update(s, 2**31 - 1))
    ),
    "made-you-reset-by-data": Attack(per_stream(lambda s: call(s) + frame(w.DATA, 0, s, b"x"))),
    "made-you-reset-by-headers": Attack(
        per_stream(lambda s: headers(s, RANGE, 5) + headers(s, RANGE, 5)),
        allowed(CALM, "STREAM_CLOSED"),
    ),
    "made-you-reset-by-length": Attack(
        per_stream(
            lambda s: (
                headers(s, block("/etcdserverpb.KV/Range", ("content-length", "1")))
                + frame(w.DATA, w.END_STREAM, s, READ)
            )
        )
    ),
    "malformed-requests": Attack(
        per_stream(lambda s: headers(s, RANGE + hpack.encode_literal(b"connection", b"close"), 5))
    ),
    "empty-headers": Attack(per_stream(lambda s: headers(s, b"", 5))),
    # header blocks
    "continuation": Attack(
        repeated(frame(w.CONTINUATION, 0, 1, b"\0" * 1024), headers(1, RANGE, 0))
    ),
    "continuation-empty": Attack(repeated(frame(w.CONTINUATION, 0, 1), headers(1, RANGE, 0))),
    "hpack-size-bomb": Attack(hpack_size_bomb),
    "hpack-count-bomb": Attack(per_stream(lambda s: headers(s, RANGE + b"\x82" * 15_000, 5))),
    "hpack-table-updates": Attack(
        per_stream(lambda s: headers(s, b"\x20\x3f\xe1\x1f" * 4000, 5)),
        allowed("COMPRESSION_ERROR"),
    ),
    # frames that bring nothing forward
    "settings": Attack(repeated(settings(window=1000))),
    "settings-empty": Attack(repeated(settings())),
    "ping": Attack(repeated(frame(w.PING, 0, 0, b"12345678"))),
    # It is told so at once; since it does not listen it is heard out, unread, for two seconds.
    "ping-unread": Attack(
        repeated(frame(w.PING, 0, 0, b"12345678")), allowed(CALM, "open"), reads=False
    ),
    "ping-answers": Attack(repeated(frame(w.PING, w.ACK, 0, b"12345678"))),
    "empty-data": Attack(repeated(frame(w.DATA, 0, 1), headers(1, WATCH))),
    "padding-only": Attack(repeated(frame(w.DATA, w.PADDED, 1, b"\x05" + bytes(5)), headers(1))),
    "priority": Attack(repeated(frame(w.PRIORITY, 0, 1, b"\0\0\0\0\x10"))),
    "window-updates": Attack(repeated(window_update(0, 1))),
    "window-updates-of-a-stream": Attack(repeated(window_update(1, 1), headers(1, WATCH))),
    "window-updates-when-closed": Attack(closed_stream_updates),
    "unknown-frames": Attack(repeated(frame(77, 0, 0, b"?"))),
    # windows and readers
    "window-swings": Attack(window_swings, memory_bytes=64 * MIB),
    "zero-windows": Attack(zero_windows, allowed(CALM, "open"), memory_bytes=256 * MIB),
    "negative-windows": Attack(negative_windows, allowed(CALM, "open"), memory_bytes=256 * MIB),
    "slow-reader": Attack(slow_reader, allowed("open"), reads=False, memory_bytes=96 * MIB),
    "large-reads": Attack(large_reads, allowed(CALM, "open"), memory_bytes=256 * MIB),
    "large-reads-unread": Attack(
        large_reads, allowed(CALM, "open"), reads=False, memory_bytes=256 * MIB
    ),
    # what is begun and not finished
    "half-open-streams": Attack(
        half_open_streams, allowed("open"), connections=8, memory_bytes=160 * MIB
    ),
    "incomplete-messages": Attack(  # the bound of all connections together ends some
        incomplete_messages,
        allowed("open", "ENHANCE_YOUR_CALM"),
        connections=12,
        memory_bytes=640 * MIB,
    ),
    "silent-connections": Attack(
        lambda: iter(()), allowed("open"), connections=2000, memory_bytes=64 * MIB
    ),
}
