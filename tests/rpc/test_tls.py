"""TLS: who speaks what after the handshake, who may come in, many at once, and how it ends."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.rpc import Call, Limits
from tests.certificates import Authority
from tests.rpc.conftest import Running, running, server_tls
from tests.rpc.test_floods import rapid_reset
from tests.rpc.wire import (
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    SETTINGS,
    Wire,
    frame,
    message,
    request_fields,
    settings,
    window_update,
)

MIB = 1024 * 1024
HTTP1 = b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(loop_name: str, authority: Authority) -> Iterator[Running]:
    with running(loop_name, tls=server_tls(authority)) as server:
        yield server


def client_tls(
    authority: Authority, *alpn: str, certificate: tuple[str, str] | None = None
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize(
    ("alpn", "chosen"),
    [
        (("h2",), "h2"),
        (("http/1.1",), "http/1.1"),
        (("http/1.1", "h2"), "h2"),  # the server's order counts
        ((), None),
        (("acme",), None),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_alpn(
    secure: Running,
    authority: Authority,
    alpn: tuple[str, ...],
    chosen: str | None,
    version: ssl.TLSVersion,
) -> None:
    context = client_tls(authority, *alpn)
    context.minimum_version = context.maximum_version = version
    with Wire(secure.port, context) as wire:
        assert wire.socket.selected_alpn_protocol() == chosen  # type: ignore[attr-defined]
        if chosen != "http/1.1":
            wire.hello()
            wire.alive()
    if chosen != "h2":  # without ALPN the first bytes decide
        with Wire(secure.port, context) as wire:
            wire.send(HTTP1)
            assert wire.socket.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def test_http1_after_agreeing_on_h2(secure: Running, authority: Authority) -> None:
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.send(HTTP1)
        assert wire.until(SETTINGS).payload == b""
        assert wire.goaway() == (PROTOCOL_ERROR, b"bad client preface")


def test_preface_byte_by_byte_in_records_of_their_own(
    secure: Running, authority: Authority
) -> None:
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        for byte in PREFACE + settings() + wire.call(1):
            wire.send(bytes((byte,)))
        assert wire.response(1)[1] == message(b"hello")


# Client certificates


@pytest.fixture
def strict(loop_name: str, authority: Authority) -> Iterator[Running]:
    """A server that asks for certificates; /t.Test/Who answers with the name in it."""

    def who(call: Call, _message: bytes) -> None:
        certificate = call.peer_certificate
        assert certificate is not None
        call.reply(dict(part[0] for part in certificate["subject"])["commonName"].encode())

    with running(loop_name, tls=server_tls(authority, clients=True)) as server:
        server.server.unary("/t.Test/Who", who)
        yield server


def test_the_handler_sees_the_clients_certificate(strict: Running, authority: Authority) -> None:
    context = client_tls(authority, "h2", certificate=authority.issue("alice"))
    with Wire(strict.port, context) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", "/t.Test/Who"))
        assert wire.response(1)[1] == message(b"alice")


def test_without_client_certificates_there_is_none_to_see(
    secure: Running, authority: Authority
) -> None:
    seen: list[Any] = []

    def look(call: Call, _message: bytes) -> None:
        seen.append(call.peer_certificate)
        call.reply(b"")

    secure.server.unary("/t.Test/Look", look)
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", "/t.Test/Look"))
        wire.response(1)
    assert seen == [None]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("stranger", [False, True])
def test_who_has_no_right_certificate_is_turned_away(
    strict: Running,
    authority: Authority,
    tmp_path: Path,
    stranger: bool,
    version: ssl.TLSVersion,
) -> None:
    certificate = Authority(tmp_path, "stranger").issue("mallory") if stranger else None
    context = client_tls(authority, "h2", certificate=certificate)
    context.minimum_version = context.maximum_version = version
    # TLS 1.3 clients learn of it with the first bytes they read.
    with pytest.raises((ssl.SSLError, ConnectionError)), Wire(strict.port, context) as wire:
        wire.socket.recv(1)
    strict.until(lambda: strict.server.statistics().tls_failures == 1)
    statistics = strict.server.statistics()
    assert (statistics.connections_total, statistics.tls_handshakes) == (0, 0)


# Handshakes


def test_many_handshakes_at_once_leave_the_loop_to_others(
    secure: Running, authority: Authority
) -> None:
    # Each turn does a few steps only; all the while an established connection is served.
    count = 200
    turns: list[int] = []

    def watch() -> None:
        done = secure.server.statistics().tls_handshakes
        turns.append(done)
        if done < count + 1:
            secure.loop.call_soon(watch)

    context = client_tls(authority, "h2")
    with Wire(secure.port, context) as settled:
        settled.hello()
        raws = []
        for _ in range(count):  # all are accepted and wait for the server's hello
            raw = socket.create_connection(("127.0.0.1", secure.port), timeout=20)
            raws.append(raw)
        secure.run(watch)

        def shake(raw: socket.socket) -> str | None:
            with context.wrap_socket(raw, server_hostname="localhost") as connection:
                return connection.selected_alpn_protocol()

        with ThreadPoolExecutor(32) as threads:
            results = threads.map(shake, raws)
            for _ in range(20):
                settled.alive()
            assert set(results) == {"h2"}
    secure.until(lambda: turns[-1] == count + 1)
    steps = [after - before for before, after in itertools.pairwise(turns)]
    assert max(steps) <= Limits().handshakes_per_turn
    assert secure.server.statistics().tls_failures == 0


def test_a_plain_client_on_a_tls_port_is_told_and_forgotten(
    secure: Running, authority: Authority
) -> None:
    for opening in (PREFACE + settings(), HTTP1, b"\x00" * 100):
        with Wire(secure.port) as plain:
            plain.send(opening)
            answer = b""
            while part := plain.socket.recv(4096):
                answer += part
            assert answer == b"" or answer[0] == 21  # a TLS alert, never HTTP
    secure.until(lambda: secure.server.statistics().tls_failures == 3)
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.hello()
        wire.alive()
    assert secure.service.errors == []


@pytest.mark.parametrize("hello_bytes", [0, 1, 100])
def test_a_handshake_that_does_not_go_on_is_dropped(
    loop_name: str, authority: Authority, hello_bytes: int
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = client_tls(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        half.do_handshake()
    limits = Limits(handshake_timeout_s=0.2)
    with running(loop_name, limits=limits, tls=server_tls(authority)) as served:
        with Wire(served.port) as wire:
            wire.send(outgoing.read()[:hello_bytes])
            assert wire.closed_without_answer()
        with Wire(served.port, client_tls(authority, "h2")) as wire:  # handshake, then silence
            assert wire.closed_without_answer()
        served.until(lambda: served.server.statistics().tls_failures == 1)
        assert served.run(lambda: len(served.server._engine.opening)) == 0


def test_garbage_behind_the_handshake_drops_the_connection(
    secure: Running, authority: Authority
) -> None:
    with (
        Wire(secure.port, client_tls(authority, "h2")) as wire,
        Wire(secure.port, client_tls(authority, "h2")) as other,
    ):
        wire.hello()
        other.hello()
        raw = socket.socket(fileno=wire.socket.detach())
        with raw:
            raw.settimeout(10)
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with contextlib.suppress(ConnectionError):  # the end may come as a reset
                while raw.recv(4096):
                    pass
        other.alive()
    secure.until(lambda: secure.server.statistics().connections_open == 0)
    assert secure.service.errors == []


# The end


def test_the_server_says_goodbye(secure: Running, authority: Authority) -> None:
    # Without close_notify a client cannot tell the end from an attack (RFC 8446 6.1). Python's
    # client raises on such an end unless it is told to suppress that.
    context = client_tls(authority, "h2")
    with (
        socket.create_connection(("127.0.0.1", secure.port), timeout=10) as raw,
        context.wrap_socket(
            raw, server_hostname="localhost", suppress_ragged_eofs=False
        ) as connection,
    ):
        connection.sendall(PREFACE + settings() + frame(PING, 0, 1, b"12345678"))
        seen = b""
        while part := connection.recv(4096):
            seen += part
        assert b"PING on a stream" in seen


def test_the_clients_goodbye_closes_the_connection(secure: Running, authority: Authority) -> None:
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.hello()
        wire.send(wire.call(1, b"", "/t.Test/Hold"))
        secure.until(lambda: secure.service.held)
        wire.socket.unwrap()  # type: ignore[attr-defined]
        secure.until(lambda: secure.server.statistics().connections_open == 0)
    assert secure.service.log == ["cancelled"]


def test_why_it_ended_reaches_a_client_that_is_still_sending(
    secure: Running, authority: Authority
) -> None:
    # A socket closed with unread bytes makes the kernel send a reset, which may overtake the
    # GOAWAY: the server must end its own side only and take in what still comes.
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.hello()
        wire.send(rapid_reset(wire))
        for _ in range(200):
            wire.send(frame(DATA, 0, 1, bytes(16384)))
        assert wire.goaway() == (ENHANCE_YOUR_CALM, b"too many reset streams")
    secure.until(lambda: secure.server.statistics().connections_open == 0)


# Data


def test_large_bodies_both_ways(secure: Running, authority: Authority) -> None:
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.hello(settings(window=2**31 - 1, frame=2**20))
        wire.send(window_update(0, 2**30), wire.call(1, b"%d" % (64 * MIB), "/t.Test/Big"))
        assert len(wire.response(1)[1]) == 64 * MIB + 5
        body = message(bytes(2 * MIB))
        wire.send(wire.headers(3))
        room = {0: 8 * MIB, 3: MIB}
        for start in range(0, len(body), 16384):
            piece = body[start : start + 16384]
            while min(room.values()) < len(piece):
                got = wire.until(8)
                room[got.stream] += int.from_bytes(got.payload)
            room = {stream: left - len(piece) for stream, left in room.items()}
            wire.send(frame(DATA, 0, 3, piece))
        wire.send(frame(DATA, END_STREAM, 3))
        assert wire.response(3)[1] == body


def test_a_slow_reader_is_held_back(secure: Running, authority: Authority) -> None:
    # Writes pause in encrypted bytes; reading pauses and goes on without losing a record.
    # One thread sends and reads: an SSLSocket of two loses its place (CPython before 3.13).
    body = b"r" * 16_000
    count = 2000
    with Wire(secure.port, client_tls(authority, "h2"), buffer_bytes=65536) as greedy:
        greedy.hello(settings(window=2**31 - 1))
        greedy.send(window_update(0, 2**30))
        rest = memoryview(b"".join(greedy.call(1 + 2 * n, body) for n in range(count)))
        [connection] = secure.connections

        def held_back() -> bool:
            nonlocal rest
            rest = greedy.push(rest)
            return connection.holding

        secure.until(held_back)
        with Wire(secure.port, client_tls(authority, "h2")) as other:
            other.hello()
            other.alive()
        held = secure.run(lambda: secure.server.statistics().unsent_bytes)
        assert held < Limits().connection_high_bytes + 262_144 + 2 * len(body)
        received = 0
        while received < count * (len(body) + 5):
            rest = greedy.push(rest)
            received += len(greedy.until(DATA).payload)
        assert not rest
        greedy.alive()
        assert not [f for f in greedy.seen if f.kind == GOAWAY]


# An independent client


def credentials(authority: Authority, certificate: tuple[str, str] | None = None) -> Any:
    chain = key = None
    if certificate is not None:
        chain, key = (Path(path).read_bytes() for path in certificate)
    return grpc.ssl_channel_credentials(Path(authority.file).read_bytes(), key, chain)


def test_grpcio_over_tls(strict: Running, authority: Authority) -> None:
    secrets = credentials(authority, authority.issue("bob"))
    big = [("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(f"localhost:{strict.port}", secrets, big) as channel:
        assert channel.unary_unary("/t.Test/Who")(b"", timeout=10) == b"bob"
        assert len(channel.unary_unary("/t.Test/Big")(b"%d" % (64 * MIB), timeout=60)) == 64 * MIB
        produced = channel.unary_stream("/t.Test/Produce")(b"100 5000", timeout=20)
        assert [len(data) for data in produced] == [5000] * 100
        collect = channel.stream_unary("/t.Test/Collect")
        assert collect(iter([bytes(MIB)] * 20), timeout=20) == b",".join([b"1048576"] * 20)
        chat = channel.stream_stream("/t.Test/Chat")
        assert list(chat(iter([b"a", b"b"]), timeout=10)) == [b"a", b"b"]
    with grpc.secure_channel(f"localhost:{strict.port}", credentials(authority)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t.Test/Who")(b"", timeout=10)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE


async def test_grpcio_aio_over_tls(secure: Running, authority: Authority) -> None:
    async with grpc.aio.secure_channel(
        f"localhost:{secure.port}", credentials(authority)
    ) as channel:
        echo = channel.unary_unary("/t.Test/Echo")
        assert await echo(b"x" * MIB, timeout=10) == b"x" * MIB
        chat = channel.stream_stream("/t.Test/Chat")(timeout=10)
        await chat.write(b"one")
        assert await chat.read() == b"one"
        await chat.done_writing()
        assert await chat.read() == grpc.aio.EOF


def test_streams_of_tls_connections_end_with_them(secure: Running, authority: Authority) -> None:
    with Wire(secure.port, client_tls(authority, "h2")) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields("/t.Test/Chat")))
        secure.until(lambda: secure.service.calls)
    secure.until(lambda: secure.service.log == ["cancelled"])
    assert secure.server.statistics().connections_open == 0
