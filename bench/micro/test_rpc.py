"""Frame parsing, header decoding and the whole way of a unary call, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from bench import messages
from bench.load import Load, draws, key, value_of
from bench.profiles import NAMES, sequence
from bench.wire import (
    DATA,
    HEADERS,
    STREAM,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    frame,
    settings,
    window_update,
)
from kvstore.http2.hpack import Decoder
from kvstore.rpc.call import Call
from kvstore.rpc.connection import Connection
from kvstore.rpc.engine import Engine
from kvstore.rpc.head import Route
from kvstore.rpc.limits import Limits

BATCH = 50
REPLY = messages.blob(1, b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x40\x18\x80\x80\x08\x20\x02")


@pytest.mark.parametrize("profile", NAMES)
def test_decode_headers(profile: str, per_operation: Callable[..., Any]) -> None:
    """Decode the blocks of successive calls on one connection."""
    blocks = sequence(profile, put_share=1.0)
    decoder = Decoder(16_384)
    at = 0

    def setup() -> tuple[list[bytes]]:
        nonlocal at
        while len(blocks.items) < at + BATCH:
            blocks.extend()
        batch = [block for _, _, block in blocks.items[at : at + BATCH]]
        at += BATCH
        return (batch,)

    def decode(batch: list[bytes]) -> Any:
        fields: Any = None
        for block in batch:
            fields = decoder.decode(block)
        return fields

    assert per_operation(decode, BATCH, setup)


class Sink:
    """A transport that keeps what is written and never blocks."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.written += sum(map(len, parts))

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore: nothing is ever buffered."""

    def get_extra_info(self, _: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return False


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Yield a loop that runs only when told to."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


async def connect(route: Route, sink: Sink) -> Connection:
    """Return the server's side of a connection that has begun."""
    engine = Engine(Limits(), raise_it, {route.path.encode(): route}, {"etcdserverpb.KV"}, None)
    connection = Connection(engine, cast("asyncio.Transport", sink))
    # Without room in the window the replies would wait, and later calls be refused.
    connection.start(settings({}) + window_update(0, WINDOW_MAX - WINDOW_DEFAULT))
    return connection


class Receiver:
    """The receiving side of a streaming call; keeps nothing."""

    def __init__(self) -> None:
        self.count = 0

    def message(self, _: bytes) -> None:
        self.count += 1

    def half_closed(self) -> None:
        """Ignore: the stream stays open."""

    def cancelled(self) -> None:
        """Fail: nobody cancels."""
        raise AssertionError

    def writable(self) -> None:
        """Ignore: nothing is sent."""


def test_parse_frames(loop: asyncio.AbstractEventLoop, per_operation: Callable[..., Any]) -> None:
    """Parse one chunk with 50 DATA frames of one stream, each a whole message."""
    receiver = Receiver()
    route = Route(messages.PUT, lambda _: receiver, unary=False)
    connection = loop.run_until_complete(connect(route, Sink()))
    [(_, start, block), *_] = sequence("h2load", put_share=1.0).items
    connection.data_received(start + STREAM.pack(1) + block)
    message = messages.framed(messages.put(key(0), value_of(256)))
    chunk = frame(DATA, 0, 1, message) * BATCH

    def one_turn() -> None:
        connection.data_received(chunk)
        loop.run_until_complete(asyncio.sleep(0))

    per_operation(one_turn, BATCH, tuple)
    assert receiver.count >= BATCH
    assert receiver.count % BATCH == 0


@pytest.mark.parametrize("profile", ["h2load", "grpc-go-deadline"])
def test_unary_call(
    profile: str, loop: asyncio.AbstractEventLoop, per_operation: Callable[..., Any]
) -> None:
    """Parse one chunk with 50 puts, call the handler for each, write the replies."""
    sink = Sink()
    answered = 0

    def handler(call: Call, _: bytes) -> None:
        nonlocal answered
        answered += 1
        call.reply(REPLY)

    route = Route(messages.PUT, handler, unary=True)
    connection = loop.run_until_complete(connect(route, sink))
    blocks = sequence(profile, put_share=1.0)
    [(start, payload), *_] = draws(Load(targets=[], keys=1), 0)
    at = 0

    def setup() -> tuple[bytes]:
        nonlocal at
        while len(blocks.items) < at + BATCH:
            blocks.extend()
        out = []
        for number in range(at, at + BATCH):
            name = STREAM.pack(2 * number + 1)
            _, head, block = blocks.items[number]
            out += [head, name, block, start, name, payload]
        at += BATCH
        return (b"".join(out),)

    def one_turn(data: bytes) -> None:
        connection.data_received(data)
        loop.run_until_complete(asyncio.sleep(0))

    per_operation(one_turn, BATCH, setup)
    assert answered == at
    assert sink.written > answered * len(frame(HEADERS, 0, 1, REPLY))


def raise_it(error: BaseException) -> None:
    """Let a handler's bug end the benchmark."""
    raise error
