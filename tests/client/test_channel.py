"""The client's channel against a server of another make: flow control, ends, refusals, nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from kvstore.client import http2
from kvstore.client.channel import Channel
from kvstore.client.endpoint import Endpoint
from kvstore.client.status import EOF, CallError, ChannelClosedError
from kvstore.http2 import frames
from tests.client.h2_server import Listener, Server, listening, message

PATH = "/etcdserverpb.KV/Range"
LARGE = bytes(range(256)) * 20_000  # 5 MB: more than any window


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening() as found:
        yield found


@pytest.fixture
async def channel(listener: Listener) -> AsyncIterator[Channel]:
    made = Channel(Endpoint.parse(f"127.0.0.1:{listener.port}"), None)
    yield made
    await made.close()


def same(data: bytes) -> bytes:
    return data


async def unary(channel: Channel, data: bytes, **options: Any) -> bytes:
    answer: bytes = await channel.unary_unary(PATH, same, same)(data, timeout_s=20, **options)
    return answer


def echo(server: Server) -> None:
    """Answer each call with what it said."""
    server.on_end = lambda stream: server.answer(stream, bytes(server.received[stream][5:]))


async def test_a_call_says_what_grpc_asks_for(listener: Listener, channel: Channel) -> None:
    listener.prepare = echo
    assert await unary(channel, b"hello", metadata=(("token", "secret"),)) == b"hello"
    [server] = listener.connections
    [headers] = server.headers.values()
    timeout = headers.pop("grpc-timeout")
    assert timeout[-1] == "u"
    assert 19_000_000 < int(timeout[:-1]) <= 20_000_000
    assert headers == {
        ":method": "POST", ":scheme": "http", ":path": PATH,
        ":authority": f"127.0.0.1:{listener.port}", "te": "trailers",
        "content-type": "application/grpc", "user-agent": "kvstore-python", "token": "secret",
    }  # fmt: skip


async def test_messages_larger_than_every_window(listener: Listener, channel: Channel) -> None:
    listener.prepare = echo
    answers = await asyncio.gather(*(unary(channel, LARGE) for _ in range(3)), unary(channel, b""))
    assert answers == [LARGE, LARGE, LARGE, b""]
    [server] = listener.connections
    assert not server.resets


async def test_frames_as_small_as_a_server_likes(listener: Listener, channel: Channel) -> None:
    listener.settings = {SettingCodes.INITIAL_WINDOW_SIZE: 10}
    listener.prepare = echo
    assert await unary(channel, b"x" * 1000) == b"x" * 1000


async def test_a_slow_reader_holds_the_server_back(listener: Listener, channel: Channel) -> None:
    def flood(server: Server) -> None:
        server.on_request = lambda stream: server.answer(stream, *[b"x" * 50_000] * 100)

    listener.prepare = flood
    stream = channel.stream_stream(PATH, same, same)()
    assert await stream.read() == b"x" * 50_000
    [server] = listener.connections
    # A call on the same connection goes through meanwhile.
    server.on_request = lambda _: None
    echo(server)
    assert await unary(channel, b"beside") == b"beside"
    assert 0 < len(server._unsent[1]) <= 5_000_000 - http2.WINDOW + 50_000
    count = 1
    while await stream.read() is not EOF:
        count += 1
    assert count == 100


async def test_a_writer_waits_for_room(listener: Listener, channel: Channel) -> None:
    def hold(server: Server) -> None:
        server.takes_data = False

    listener.prepare = hold
    stream = channel.stream_stream(PATH, same, same)()
    writing = asyncio.create_task(stream.write(b"x" * 100_000))
    await channel.connect()
    [server] = listener.connections
    window = frames.WINDOW_DEFAULT
    await server.until(lambda: len(server.received.get(1, b"")) == window)
    assert not writing.done()
    server.give_room(1, window)
    server.flush()
    await writing
    await stream.done_writing()
    await server.until(lambda: len(server.received[1]) == 100_005)
    server.answer(1, b"done")
    assert [await stream.read(), await stream.read()] == [b"done", EOF]
    with pytest.raises(asyncio.InvalidStateError):
        await stream.write(b"more")


async def test_only_so_many_calls_at_a_time(listener: Listener, channel: Channel) -> None:
    listener.settings = {SettingCodes.MAX_CONCURRENT_STREAMS: 2}
    await channel.connect()
    [server] = listener.connections
    calls = [asyncio.create_task(unary(channel, b"%d" % number)) for number in range(5)]
    await server.until(lambda: len(server.headers) == 2)
    calls[2].cancel()  # it waits for its turn, which another gets
    await asyncio.wait({calls[2]})
    echo(server)
    for stream in (1, 3):
        server.answer(stream, bytes(server.received[stream][5:]))
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [*done[:2], *done[3:]] == [b"0", b"1", b"3", b"4"]
    assert not server.resets


async def test_a_status_and_its_text(listener: Listener, channel: Channel) -> None:
    def refuse(server: Server) -> None:
        server.on_end = lambda stream: server.refuse(
            stream, ("grpc-status", "5"), ("grpc-message", "caf%C3%A9 100%25")
        )

    listener.prepare = refuse
    with pytest.raises(CallError) as caught:
        await unary(channel, b"")
    assert (caught.value.name, caught.value.text) == ("NOT_FOUND", "café 100%")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (((":status", "503"),), "UNAVAILABLE"),
        (((":status", "404"), ("content-type", "text/html")), "UNIMPLEMENTED"),
        (((":status", "200"), ("content-type", "text/html")), "UNKNOWN"),
        (((":status", "200"), ("content-type", "application/grpc")), "INTERNAL"),
        (
            ((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "x")),
            "UNKNOWN",
        ),
    ],
)
async def test_servers_that_are_no_grpc_servers(
    listener: Listener, channel: Channel, head: tuple[tuple[str, str], ...], name: str
) -> None:
    def answer(server: Server) -> None:
        def end(stream: int) -> None:
            server.h2.send_headers(stream, head)
            server.h2.send_data(stream, b"<html>", end_stream=True)
            server.flush()

        def at_once(stream: int) -> None:
            server.h2.send_headers(stream, head, end_stream=True)
            server.flush()

        server.on_end = at_once if "grpc-status" in dict(head) else end

    listener.prepare = answer
    with pytest.raises(CallError) as caught:
        await unary(channel, b"")
    assert caught.value.name == name


async def test_a_call_that_takes_too_long_is_taken_back(
    listener: Listener, channel: Channel
) -> None:
    await channel.connect()
    with pytest.raises(CallError) as caught:
        await channel.unary_unary(PATH, same, same)(b"", timeout_s=0.05)
    assert caught.value.name == "DEADLINE_EXCEEDED"
    [server] = listener.connections
    await server.until(lambda: bool(server.resets))
    assert server.resets == {1: ErrorCodes.CANCEL}


async def test_cancelled_calls_are_taken_back(listener: Listener, channel: Channel) -> None:
    stream = channel.stream_stream(PATH, same, same)()
    calls = [asyncio.create_task(unary(channel, b"")), asyncio.create_task(stream.read())]
    await channel.connect()
    [server] = listener.connections
    await server.until(lambda: len(server.headers) == 2)
    calls[0].cancel()
    assert stream.cancel()
    assert not stream.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in done] == [asyncio.CancelledError] * 2
    await server.until(lambda: len(server.resets) == 2)
    # What crosses that news is no fault.
    server.raw(frames.head(frames.DATA, 0, 1, 5) + b"\0" * 5)
    echo(server)
    assert await unary(channel, b"on") == b"on"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (ErrorCodes.REFUSED_STREAM, "UNAVAILABLE"),
        (ErrorCodes.CANCEL, "CANCELLED"),
        (ErrorCodes.ENHANCE_YOUR_CALM, "RESOURCE_EXHAUSTED"),
        (ErrorCodes.INTERNAL_ERROR, "INTERNAL"),
    ],
)
async def test_calls_that_the_server_resets(
    listener: Listener, channel: Channel, code: ErrorCodes, name: str
) -> None:
    def reset(server: Server) -> None:
        def end(stream: int) -> None:
            server.h2.reset_stream(stream, code)
            server.flush()

        server.on_end = end

    listener.prepare = reset
    with pytest.raises(CallError) as caught:
        await unary(channel, b"")
    assert caught.value.name == name


async def test_a_server_that_leaves_ends_what_it_has_taken(
    listener: Listener, channel: Channel
) -> None:
    await channel.connect()
    [server] = listener.connections
    calls = [asyncio.create_task(unary(channel, b"%d" % number)) for number in range(2)]
    await server.until(lambda: len(server.headers) == 2)
    listener.prepare = echo
    server.raw(frames.goaway(1, frames.NO_ERROR, b"bye"))
    with pytest.raises(CallError, match="going away: bye") as caught:
        await calls[1]
    assert caught.value.name == "UNAVAILABLE"
    assert await unary(channel, b"elsewhere") == b"elsewhere"
    assert len(listener.connections) == 2
    assert not calls[0].done()
    server.answer(1, b"last")
    assert await calls[0] == b"last"
    async with asyncio.timeout(10):
        await server.lost.wait()  # the client hangs up when nothing is left


async def test_a_lost_connection_ends_its_calls_and_the_next_makes_another(
    listener: Listener, channel: Channel
) -> None:
    await channel.connect()
    [server] = listener.connections
    stream = channel.stream_stream(PATH, same, same)()
    call = asyncio.create_task(unary(channel, b""))
    await server.until(lambda: len(server.headers) == 2)
    server.answer(1, b"before", trailers=None)
    listener.prepare = echo
    assert await stream.read() == b"before"
    server.transport.abort()
    for ended in (call, stream.read()):
        with pytest.raises(CallError, match="Socket closed") as caught:
            await ended
        assert caught.value.name == "UNAVAILABLE"
    assert await unary(channel, b"again") == b"again"


async def test_nobody_listens() -> None:
    channel = Channel(Endpoint.parse("127.0.0.1:1"), None)
    for _ in range(2):  # the second is not even tried: the pause after a failure is not over
        with pytest.raises(CallError, match="failed to connect to all addresses") as caught:
            await unary(channel, b"")
        assert caught.value.name == "UNAVAILABLE"
    with pytest.raises(ConnectionError, match=r"127\.0"):
        await channel.connect()
    await channel.close()
    with pytest.raises(ChannelClosedError):
        await unary(channel, b"")


@pytest.mark.parametrize(
    ("nonsense", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "this is no HTTP/2 server"),
        (frames.ping(b"12345678", ack=False), "this is no HTTP/2 server"),
        (b"", "Socket closed"),
    ],
)
async def test_something_else_listens(nonsense: bytes, text: str) -> None:
    class Other(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made = cast("asyncio.Transport", transport)
            made.write(nonsense)
            made.close()

    server = await asyncio.get_running_loop().create_server(Other, "127.0.0.1", 0)
    channel = Channel(Endpoint.parse(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"), None)
    try:
        with pytest.raises(ConnectionError, match=text):
            await channel.connect()
    finally:
        await channel.close()
        server.close()


COMPRESSED = b"\x01" + message(b"x")[1:]


@pytest.mark.parametrize(
    ("nonsense", "text"),
    [
        (frames.head(frames.DATA, 0, 1, 1 << 20), "a frame of 1048576 bytes"),
        (frames.head(frames.DATA, frames.PADDED, 1, 1) + b"\x09", "more padding than frame"),
        (frames.head(frames.DATA, 0, 99, 1) + b"x", "data of stream 99"),
        (frames.head(frames.PUSH_PROMISE, 0, 1, 4) + bytes(4), "a push"),
        (frames.head(frames.HEADERS, 0, 1, 0) + frames.ping(bytes(8), ack=False), "without their"),
        (frames.head(frames.CONTINUATION, 0, 1, 0), "CONTINUATION of nothing"),
        (frames.head(frames.HEADERS, 4, 1, 1) + b"\xff", "headers that cannot be read"),
        (frames.window_update(0, 2**31 - 1), "a window of too many bytes"),
        (frames.window_update(0, 0), "WINDOW_UPDATE of nothing"),
        (frames.settings(((4, 2**31),)), "a window of too many bytes"),
        (frames.settings(((5, 1),)), "frames of 1 bytes"),
        (frames.head(frames.SETTINGS, 0, 0, 1) + b"x", "SETTINGS of odd bytes"),
        (frames.head(frames.RST_STREAM, 0, 1, 3) + b"xxx", "a frame of 3 bytes"),
        (frames.head(frames.GOAWAY, 0, 0, 3) + b"xxx", "GOAWAY of too few bytes"),
        (
            b"".join([frames.head(frames.HEADERS, 0, 1, 0)]
            + [frames.head(frames.CONTINUATION, 0, 1, 16_000) + bytes(16_000)] * 5),
            "headers of too many bytes",
        ),
    ],
)  # fmt: skip
async def test_a_server_that_breaks_the_protocol(
    listener: Listener, channel: Channel, nonsense: bytes, text: str
) -> None:
    await channel.connect()
    [server] = listener.connections
    call = asyncio.create_task(unary(channel, b""))
    await server.until(lambda: bool(server.headers))
    server.raw(nonsense)
    with pytest.raises(CallError, match=f"the server broke the protocol: .*{text}") as caught:
        await call
    assert caught.value.name == "UNAVAILABLE"
    async with asyncio.timeout(10):
        await server.lost.wait()
    listener.prepare = echo
    assert await unary(channel, b"again") == b"again"


@pytest.mark.parametrize(
    ("data", "name", "text"),
    [
        (COMPRESSED, "INTERNAL", "compressed"),
        (message(b"whole") + b"\0\0\0\0\x09half", "INTERNAL", "inside a message"),
        (b"", "INTERNAL", "without an answer"),
    ],
)
async def test_answers_that_are_none(
    listener: Listener, channel: Channel, data: bytes, name: str, text: str
) -> None:
    def answer(server: Server) -> None:
        def end(stream: int) -> None:
            server.h2.send_headers(
                stream, ((":status", "200"), ("content-type", "application/grpc"))
            )
            server.h2.send_data(stream, data)
            server.h2.send_headers(stream, (("grpc-status", "0"),), end_stream=True)
            server.flush()

        server.on_end = end

    listener.prepare = answer
    with pytest.raises(CallError, match=text) as caught:
        await unary(channel, b"")
    assert caught.value.name == name


async def test_headers_in_pieces_with_padding_and_priority(
    listener: Listener, channel: Channel
) -> None:
    await channel.connect()
    [server] = listener.connections
    call = asyncio.create_task(unary(channel, b"x"))
    await server.until(lambda: bool(server.headers) and len(server.received[1]) == 6)
    flags = frames.PADDED | frames.PRIORITY_FLAG
    block = b"\x88\x5f\x10application/grpc"
    head = b"\x02" + bytes(5) + block[:3] + bytes(2)
    data = b"\x03" + message(b"good") + bytes(3)
    trailer = b"\x00\x0bgrpc-status\x010"
    for piece in (
        frames.head(frames.HEADERS, flags, 1, len(head)) + head,
        frames.head(frames.CONTINUATION, frames.END_HEADERS, 1, len(block) - 3) + block[3:],
        frames.head(frames.DATA, frames.PADDED, 1, len(data)) + data,
        frames.head(77, 0, 1, 2) + b"??",  # of a kind that nobody knows: to be left alone
        frames.head(frames.HEADERS, 5, 1, len(trailer)) + trailer,
    ):
        for byte in range(len(piece)):
            server.raw(piece[byte : byte + 1])
    assert await call == b"good"


async def test_a_server_that_falls_silent_is_given_up(
    listener: Listener, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(http2, "PING_TIMEOUT_S", 0.5)
    await channel.connect()
    [server] = listener.connections
    call = asyncio.create_task(unary(channel, b""))
    await server.until(lambda: bool(server.headers))
    # It answers pings: that is enough for a call that takes long.
    pings = 0

    def heard() -> bool:
        nonlocal pings
        pings += 1
        return pings > 4

    await server.until(heard)
    assert not call.done()
    server.transport.pause_reading()
    with pytest.raises(CallError, match=r"no answer to a ping within 0\.5 s") as caught:
        await call
    assert caught.value.name == "UNAVAILABLE"


async def test_an_address_that_is_lost_ends_what_comes_from_it(
    listener: Listener, channel: Channel
) -> None:
    assert channel.lose_address("127.0.0.1") == 0
    await channel.connect()
    [server] = listener.connections
    call = asyncio.create_task(unary(channel, b""))
    await server.until(lambda: bool(server.headers))
    assert channel.lose_address("192.0.2.1") == 0
    assert channel.lose_address("127.0.0.1") == 1
    with pytest.raises(CallError, match=r"this host lost the address 127\.0\.0\.1") as caught:
        await call
    assert caught.value.name == "UNAVAILABLE"
    listener.prepare = echo
    assert await unary(channel, b"again") == b"again"


async def test_pings_of_the_server_are_answered(listener: Listener, channel: Channel) -> None:
    await channel.connect()
    [server] = listener.connections
    server.h2.ping(b"12345678")
    server.flush()
    await server.until(lambda: server.acknowledged_pings == 1)


async def test_closing_ends_what_is_under_way(listener: Listener, channel: Channel) -> None:
    await channel.connect()
    [server] = listener.connections
    stream = channel.stream_stream(PATH, same, same)()
    calls = [asyncio.create_task(unary(channel, b"")), asyncio.create_task(stream.read())]
    await server.until(lambda: len(server.headers) == 2)
    await channel.close()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in done] == [asyncio.CancelledError] * 2
    async with asyncio.timeout(10):
        await server.lost.wait()


@pytest.mark.parametrize(
    "test",
    [
        test_messages_larger_than_every_window,
        test_a_slow_reader_holds_the_server_back,
        test_a_writer_waits_for_room,
        test_cancelled_calls_are_taken_back,
        test_a_server_that_leaves_ends_what_it_has_taken,
        test_a_lost_connection_ends_its_calls_and_the_next_makes_another,
        test_closing_ends_what_is_under_way,
    ],
)
def test_the_same_on_uvloop(test: Callable[[Listener, Channel], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with listening() as listener:
            channel = Channel(Endpoint.parse(f"127.0.0.1:{listener.port}"), None)
            try:
                await test(listener, channel)
            finally:
                await channel.close()

    pytest.importorskip("uvloop").run(run())
