"""How connections end: drain with running calls, keepalive, clients that fall silent."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvstore.rpc import Limits, server
from tests.certificates import Authority
from tests.rpc.conftest import Running, running, server_tls
from tests.rpc.wire import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    NO_ERROR,
    PING,
    Frame,
    Wire,
    frame,
    message,
    request_fields,
    window_update,
)

HOLD, CHAT = "/t.Test/Hold", "/t.Test/Chat"
EVER = 2**31 - 1
LATER_S = 15.0  # longer than anything here takes


def goaway(got: Frame) -> tuple[int, int, bytes]:
    last, code = struct.unpack(">LL", got.payload[:8])
    return last, code, got.payload[8:]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


# Drain


def test_an_idle_connection_is_told_twice_and_closed(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RFC 9113 6.8: first "no more soon", then, after a round trip, which streams were seen. It is
    # the answer to the ping that counts here, not the wait for those who do not answer.
    monkeypatch.setattr(server, "_GOAWAY_WAIT_S", 60.0)
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.call(1))
        wire.response(1)
        done = served.drain(60.0)
        assert goaway(wire.until(GOAWAY)) == (EVER, NO_ERROR, b"")
        ping = wire.until(PING)
        wire.send(frame(PING, ACK, 0, ping.payload))
        assert goaway(wire.until(GOAWAY)) == (1, NO_ERROR, b"")
        assert wire.read() is None
        done.result(LATER_S)


def test_calls_that_run_or_are_on_their_way_are_finished(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", HOLD), wire.headers(3, request_fields(CHAT)))
        served.until(lambda: served.service.held and served.service.calls)
        done = served.drain(LATER_S)
        ping = wire.until(PING)
        wire.send(wire.call(5, b"on its way"))  # sent before the client knew
        assert wire.response(5)[1] == message(b"on its way")
        wire.send(frame(PING, ACK, 0, ping.payload))
        assert goaway(wire.until(GOAWAY)) == (5, NO_ERROR, b"")
        wire.send(wire.call(7, b"too late"))
        wire.send(frame(DATA, END_STREAM, 3, message(b"last words")))
        assert wire.response(3)[1] == message(b"last words")
        served.run(served.service.held[0].reply, b"done")
        assert wire.response(1)[1:] == (message(b"done"), {"grpc-status": "0"})
        assert wire.read() is None
        assert not [f for f in wire.seen if f.stream == 7]
        done.result(LATER_S)
    assert served.service.log == []


def test_a_client_that_does_not_answer_gets_the_second_goaway_all_the_same(
    served: Running,
) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", HOLD))
        served.until(lambda: served.service.held)
        done = served.drain(LATER_S)
        assert goaway(wire.until(GOAWAY))[0] == EVER
        assert goaway(wire.until(GOAWAY))[0] == 1
        served.run(served.service.held[0].reply, b"done")
        assert wire.response(1)[1] == message(b"done")
        assert wire.read() is None
        done.result(LATER_S)


def test_what_is_left_after_the_grace_ends_with_unavailable(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", HOLD), wire.headers(3, request_fields(CHAT)))
        served.until(lambda: served.service.held and served.service.calls)
        done = served.drain(0.1)
        for stream in (1, 3):
            headers = wire.response(stream)[0]
            assert headers["grpc-status"] == "14"
            assert headers["grpc-message"] == "server is shutting down"
        done.result(LATER_S)
        while wire.read() is not None:
            pass
    assert served.service.log == ["cancelled", "cancelled"]
    assert served.server.statistics().streams_open == 0


def test_a_client_that_never_reads_cannot_hold_the_drain_up(served: Running) -> None:
    with Wire(served.port, buffer_bytes=65536) as wire:
        wire.hello()
        wire.send(*[wire.call(1 + 2 * n, b"e" * 8000, "/t.Test/Fail") for n in range(1000)])
        [connection] = served.connections
        served.until(lambda: connection.paused)
        served.drain(0.1).result(LATER_S)
        assert served.server.statistics().connections_open == 0


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_plain_requests_are_finished_too(served: Running, version: str) -> None:
    with Wire(served.port) as wire:
        whole = b"".join(b"chunk %d\n" % number for number in range(1000))
        if version == "2":
            wire.hello()
            path = [(":path", "/stream?long")]
            fields = [f for f in request_fields()[:4] if f[0] != ":path"]
            wire.send(wire.headers(1, fields + path, END_HEADERS | END_STREAM))
            wire.until(DATA, 1)
            done = served.drain(LATER_S)
            while not wire.until(DATA, 1).flags & END_STREAM:
                pass
            assert b"".join(f.payload for f in wire.seen if f.kind == DATA) == whole
        else:
            wire.send(b"GET /stream?long HTTP/1.1\r\nhost: localhost\r\n\r\n")
            answer = wire.socket.recv(100)
            done = served.drain(LATER_S)
            while part := wire.socket.recv(65536):
                answer += part
            assert answer.endswith(b"\r\n0\r\n\r\n")
            assert answer.count(b"chunk ") == 1000
        done.result(LATER_S)


@pytest.mark.parametrize("secure", [False, True])
def test_nobody_new_comes_in(loop_name: str, authority: Authority, secure: bool) -> None:
    # Connections that were accepted but had not begun when the drain did: they would stay for the
    # whole handshake timeout. The drain begins in the very turn in which they are accepted.
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(
            running(loop_name, tls=server_tls(authority) if secure else None)
        )
        sockets: list[socket.socket] = []
        tasks: list[Any] = []

        def begin() -> None:
            # On the loop, which therefore finds all of them at once afterwards.
            address = ("127.0.0.1", served.port)
            sockets.extend(socket.create_connection(address, timeout=5) for _ in range(20))
            served.loop.call_soon(
                lambda: tasks.append(served.loop.create_task(served.server.drain(0.0)))
            )

        served.run(begin)
        for connection in sockets:
            stack.enter_context(connection)
        for connection in sockets:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", served.port), timeout=5)


def test_grpcio_moves_on_after_a_drain(served: Running) -> None:
    with grpc.insecure_channel(served.target) as channel:
        future = channel.unary_unary("/t.Test/Hold")
        running_call = future.future(b"")
        served.until(lambda: served.service.held)
        done = served.drain(LATER_S)
        served.run(served.service.held[0].reply, b"finished")
        assert running_call.result(LATER_S) == b"finished"
        done.result(LATER_S)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t.Test/Echo")(b"", timeout=5)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE


# Keepalive pings of the client


def test_pings_every_five_seconds_are_welcome(served: Running) -> None:
    # Five seconds pass by moving the mark of the last ping. Half a second of it is the network's:
    # two pings may be sent five seconds apart and arrive with less between them.
    assert Limits().ping_interval_s == 5.0
    with Wire(served.port) as wire:
        wire.hello()
        [connection] = served.connections

        def pass_s(seconds: float) -> None:
            connection._last_ping_s -= seconds

        def ping() -> None:
            wire.send(frame(PING, 0, 0, b"keepaliv"))
            assert wire.until(PING).payload == b"keepaliv"

        for seconds in (5.0, 4.6) * 10:
            ping()
            served.run(pass_s, seconds)
        for _ in range(3):
            ping()
            served.run(pass_s, 4.0)
        wire.send(frame(PING, 0, 0, b"keepaliv"))
        assert wire.goaway() == (ENHANCE_YOUR_CALM, b"too_many_pings")


@pytest.mark.slow
def test_grpcio_pings_every_five_seconds() -> None:
    options = [
        ("grpc.keepalive_time_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with running("uvloop") as served, grpc.insecure_channel(served.target, options) as channel:
        assert channel.unary_unary("/t.Test/Echo")(b"x", timeout=10) == b"x"
        idle_since = served.run(lambda: served.server.statistics().received_bytes)
        time.sleep(32)  # real time is what is tested
        statistics = served.run(served.server.statistics)
        assert statistics.received_bytes - idle_since >= 5 * 17  # pings came
        assert (statistics.goaways_sent, statistics.connections_open) == ({}, 1)


# Keepalive pings of the server

QUICK = Limits(keepalive_s=0.2, keepalive_timeout_s=0.2)


@pytest.fixture
def quick(loop_name: str) -> Iterator[Running]:
    with running(loop_name, limits=QUICK) as server:
        yield server


def test_a_silent_client_that_answers_pings_stays(quick: Running) -> None:
    with Wire(quick.port) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", HOLD))
        for _ in range(5):
            ping = wire.until(PING)
            assert not ping.flags & ACK
            wire.send(frame(PING, ACK, 0, ping.payload))
        wire.alive()
    assert quick.server.statistics().goaways_sent == {}


def test_a_silent_client_that_does_not_answer_is_dropped(quick: Running) -> None:
    with Wire(quick.port) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", HOLD))
        assert wire.goaway() == (NO_ERROR, b"keepalive_timeout")
    quick.until(lambda: quick.service.log == ["cancelled"])


@pytest.mark.alone  # a client that is kept from talking is rightly pinged
def test_a_client_that_talks_is_not_pinged(quick: Running) -> None:
    with Wire(quick.port) as wire:
        wire.hello()
        wire.send(window_update(0, 2**30))
        ends_at = time.monotonic() + 1.0
        while time.monotonic() < ends_at:
            wire.alive()
        assert not [f for f in wire.seen if f.kind == PING]


def test_a_client_that_stopped_reading_is_dropped_with_what_waits_for_it(quick: Running) -> None:
    with Wire(quick.port, buffer_bytes=65536) as wire:
        wire.hello()
        wire.send(*[wire.call(1 + 2 * n, b"e" * 8000, "/t.Test/Fail") for n in range(1000)])
        [connection] = quick.connections
        quick.until(lambda: connection.paused)
        quick.until(lambda: quick.server.statistics().connections_open == 0)


def test_a_client_that_closes_its_side_is_closed(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", HOLD))
        served.until(lambda: served.service.held)
        wire.socket.shutdown(socket.SHUT_WR)
        served.until(lambda: served.service.log == ["cancelled"])
        while wire.read() is not None:
            pass
