"""grpcio, an independent client, over all call kinds."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvstore.rpc import Limits
from tests.rpc.conftest import Running, numbered_parts, running

BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def method(channel: Any, name: str, kind: str = "unary_unary") -> Any:
    return getattr(channel, kind)(f"/t.Test/{name}", None, None)


@pytest.fixture
def channel(served: Running) -> Iterator[Any]:
    with grpc.insecure_channel(served.target, BIG) as channel:
        yield channel


def test_unary_echo(channel: Any) -> None:
    for size in (0, 1, 100, 16379, 16380, 65536, 1_000_000):
        assert method(channel, "Echo")(b"y" * size, timeout=10) == b"y" * size


def test_many_concurrent_calls_on_one_connection(channel: Any) -> None:
    echo = method(channel, "Echo")
    futures = [echo.future(b"%d" % number, timeout=20) for number in range(2000)]
    assert [future.result() for future in futures] == [b"%d" % number for number in range(2000)]


def test_an_error_carries_code_text_and_trailers(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Fail")("käse 100% \n".encode(), timeout=10)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert error.details() == "käse 100% \n"
    assert dict(error.trailing_metadata()) == {"detail-bin": b"\xff\x00", "detail": "some text"}


def test_bidirectional_stream_answers_message_by_message(channel: Any) -> None:
    turn = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        for number in range(5):
            yield b"%d" % number
            turn.acquire()

    replies = []
    for reply in method(channel, "Chat", "stream_stream")(requests(), timeout=10):
        replies.append(reply)
        turn.release()
    assert replies == [b"0", b"1", b"2", b"3", b"4"]


def test_client_stream(channel: Any) -> None:
    collect = method(channel, "Collect", "stream_unary")
    assert collect(iter([b"a", b"", b"c" * 70000]), timeout=10) == b"1,0,70000"
    assert collect(iter([]), timeout=10) == b""


def test_server_stream(channel: Any) -> None:
    produce = method(channel, "Produce", "unary_stream")
    assert [len(m) for m in produce(b"300 5000", timeout=20)] == [5000] * 300
    assert list(produce(b"0 0", timeout=10)) == []


def test_deadline_ends_a_held_call_on_both_sides(served: Running, channel: Any) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Hold")(b"", timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    served.until(lambda: served.service.log == ["cancelled"])
    assert served.run(lambda: served.server.statistics().streams_open) == 0


def test_cancellation_reaches_unary_and_stream_handlers(served: Running, channel: Any) -> None:
    future = method(channel, "Hold").future(b"")
    served.until(lambda: served.service.held)
    future.cancel()
    served.until(lambda: served.service.log == ["cancelled"])
    assert served.service.held[0].cancelled
    served.run(served.service.held[0].reply, b"nobody listens")

    hold = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"hello"
        hold.wait(10)

    chat = method(channel, "Chat", "stream_stream")(requests())
    assert next(chat) == b"hello"
    chat.cancel()
    hold.set()
    served.until(lambda: served.service.log == ["cancelled", "cancelled"])
    assert served.run(lambda: served.server.statistics().streams_open) == 0


def test_request_over_the_limit(channel: Any) -> None:
    limit = Limits().message_bytes_max
    for name, kind in (("Echo", "unary_unary"), ("Collect", "stream_unary")):
        request: Any = b"x" * (limit + 1)
        with pytest.raises(grpc.RpcError) as caught:
            method(channel, name, kind)(iter([request]) if kind == "stream_unary" else request)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == (
            f"grpc: received message larger than max ({limit + 1} vs. {limit})"
        )
    assert len(method(channel, "Echo")(b"x" * limit, timeout=20)) == limit


def test_unknown_service_and_method(channel: Any) -> None:
    for path, text in (
        ("/t.Test/Nope", "unknown method Nope for service t.Test"),
        ("/no.Such/Nope", "unknown service no.Such"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path, None, None)(b"", timeout=10)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == text


def test_metadata_text_binary_and_absent(channel: Any) -> None:
    ask = method(channel, "Metadata")
    metadata = (("token", "abc.def"), ("blob-bin", b"\x00\xff\xfe"))
    assert ask(b"token", metadata=metadata, timeout=10) == b"abc.def"
    assert ask(b"blob-bin", metadata=metadata, timeout=10) == b"\x00\xff\xfe"
    assert ask(b"missing", metadata=metadata, timeout=10) == b"absent"


def test_gzip_both_ways(channel: Any) -> None:
    compressed = grpc.Compression.Gzip
    for size in (10, 1000, 60_000, 300_000):
        message = gzip.compress(b"seed") + b"z" * size
        reply = method(channel, "Echo")(message, compression=compressed, timeout=10)
        assert reply == message
    chat = method(channel, "Chat", "stream_stream")
    assert list(chat(iter([b"q" * 5000, b"r"]), compression=compressed, timeout=10)) == [
        b"q" * 5000,
        b"r",
    ]


@pytest.mark.parametrize("count", [0, 2, 30, 1000])
def test_a_reply_in_parts_is_one_message(channel: Any, count: int) -> None:
    parts = method(channel, "Parts")
    expected = b"".join(numbered_parts(count))
    assert parts(b"%d" % count, timeout=10) == expected
    assert parts(b"%d" % count, compression=grpc.Compression.Gzip, timeout=10) == expected


def test_a_raising_handler_costs_only_its_call(served: Running, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "Raise")(b"", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    with pytest.raises(grpc.RpcError) as caught:
        list(method(channel, "Chat", "stream_stream")(iter([b"raise"]), timeout=10))
    assert caught.value.code() == grpc.StatusCode.UNKNOWN
    assert [str(error) for error in served.service.errors] == ["a bug in a handler"] * 2
    assert method(channel, "Echo")(b"still here", timeout=10) == b"still here"
    assert served.run(lambda: served.server.statistics().connections_total) == 1


def test_stream_that_fails_in_the_middle(channel: Any) -> None:
    chat = method(channel, "Chat", "stream_stream")(iter([b"one", b"fail"]), timeout=10)
    assert next(chat) == b"one"
    with pytest.raises(grpc.RpcError) as caught:
        next(chat)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert dict(error.trailing_metadata()) == {"why-bin": b"\x00\x01", "why": "text"}


def test_100_mib_reply_and_no_goaway(served: Running, channel: Any) -> None:
    # grpcio probes the bandwidth with pings all the while; none may count as a strike.
    size = 100 * 1024 * 1024
    assert len(method(channel, "Big")(b"%d" % size, timeout=60)) == size
    statistics = served.run(served.server.statistics)
    assert statistics.goaways_sent == {}
    assert statistics.connections_total == 1
    assert statistics.unsent_bytes == 0


async def test_aio_client(loop_name: str) -> None:
    with running(loop_name) as served:
        async with grpc.aio.insecure_channel(served.target, BIG) as channel:
            assert await method(channel, "Echo")(b"hello", timeout=10) == b"hello"
            chat = method(channel, "Chat", "stream_stream")(timeout=10)
            for number in range(3):
                await chat.write(b"%d" % number)
                assert await chat.read() == b"%d" % number
            await chat.done_writing()
            assert await chat.read() == grpc.aio.EOF
            produced = method(channel, "Produce", "unary_stream")(b"10 100", timeout=10)
            assert [len(message) async for message in produced] == [100] * 10
            collect = method(channel, "Collect", "stream_unary")(timeout=10)
            await collect.write(b"abc")
            await collect.done_writing()
            assert await collect == b"3"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(channel, "Hold")(b"", timeout=0.1)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_aio_client_metadata_compression_size_and_cancellation(loop_name: str) -> None:
    with running(loop_name) as served:
        async with grpc.aio.insecure_channel(
            served.target, BIG, compression=grpc.Compression.Gzip
        ) as channel:
            ask = method(channel, "Metadata")
            metadata = (("token", "abc"), ("blob-bin", b"\x00\xff"))
            assert await ask(b"token", metadata=metadata, timeout=10) == b"abc"
            assert await ask(b"blob-bin", metadata=metadata, timeout=10) == b"\x00\xff"
            assert await method(channel, "Echo")(b"z" * 50_000, timeout=10) == b"z" * 50_000
            size = 64 * 1024 * 1024
            assert len(await method(channel, "Big")(b"%d" % size, timeout=60)) == size
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(channel, "Fail")("käse".encode(), timeout=10)
            assert caught.value.details() == "käse"
            assert dict(caught.value.trailing_metadata())["detail-bin"] == b"\xff\x00"
            held = method(channel, "Hold")(b"", timeout=20)
            chat = method(channel, "Chat", "stream_stream")(timeout=20)
            await chat.write(b"hello")
            assert await chat.read() == b"hello"
            served.until(lambda: served.service.held)
            held.cancel()
            chat.cancel()
            served.until(lambda: served.service.log == ["cancelled", "cancelled"])
            assert served.run(served.server.statistics).streams_open == 0
