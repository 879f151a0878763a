"""Requests without gRPC: the same handler over HTTP/1.1 and HTTP/2, with and without TLS."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kvstore.rpc import Limits
from tests.certificates import Authority
from tests.rpc.conftest import LOOPS, Running, running, server_tls
from tests.rpc.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INTERNAL_ERROR,
    PROTOCOL_ERROR,
    SETTINGS,
    Wire,
    frame,
    message,
    rst,
    settings,
    window_update,
)
from tests.servers import curl

MIB = 1024 * 1024

# Scheme, what curl is told, the version that must come out. A plain port takes no upgrade to HTTP/2
# (RFC 9113 has dropped it), so curl's offer is answered in HTTP/1.1.
FRONTS = [
    ("http", [], "1.1"),
    ("http", ["--http1.1"], "1.1"),
    ("http", ["--http2"], "1.1"),
    ("http", ["--http2-prior-knowledge"], "2"),
    ("https", [], "2"),
    ("https", ["--http1.1"], "1.1"),
    ("https", ["--http2"], "2"),
]


class Curl:
    """curl against one of two servers, told which HTTP to speak."""

    def __init__(self, url: str, flags: list[str], version: str) -> None:
        self.url = url
        self.flags = flags
        self.version = version

    def __call__(self, path: str, *arguments: str, body: bytes = b"") -> tuple[bytes, str]:
        status, answer = curl(self.url + path, *self.flags, *arguments, body=body)
        return answer, status


@pytest.fixture(scope="module", params=sorted(LOOPS))
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Running, list[str]]]]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    name = str(request.param)
    with running(name) as plain, running(name, tls=server_tls(authority)) as tls:
        yield {"http": (plain, []), "https": (tls, ["--cacert", authority.file])}


@pytest.fixture(name="curl", params=FRONTS, ids=lambda front: " ".join([front[0], *front[1]]))
def told_curl(
    request: pytest.FixtureRequest, servers: dict[str, tuple[Running, list[str]]]
) -> Curl:
    scheme, flags, version = request.param
    served, more = servers[scheme]
    return Curl(f"{scheme}://localhost:{served.port}", [*more, *flags], version)


def get(path: str) -> list[tuple[str, str]]:
    return [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "localhost")]


def post(path: str, content_type: str = "application/json") -> list[tuple[str, str]]:
    return [(":method", "POST"), *get(path)[1:], ("content-type", content_type)]


@pytest.mark.curl
class TestCurl:
    def test_a_request_reaches_the_handler(self, curl: Curl) -> None:
        assert curl("/some/path?a=1&b=%20") == (
            b"GET /some/path a=1&b=%20 0\n",
            f"200 {curl.version}",
        )

    def test_headers_arrive_in_lower_case_with_the_host(self, curl: Curl) -> None:
        body, _ = curl("/headers", "-H", "X-Mixed: Case")
        assert b"x-mixed: Case\n" in body
        assert b"host: localhost:" in body
        assert b":" not in [line[:1] for line in body.splitlines()]

    @pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB])
    def test_bodies_arrive_whole(self, curl: Curl, size: int) -> None:
        sent = bytes(size)
        body, status = curl("/body", "--data-binary", "@-", body=sent)
        assert (body, status) == (b"POST /body  %d\n" % size, f"200 {curl.version}")

    def test_a_body_over_the_limit_is_413(self, curl: Curl) -> None:
        _, status = curl("/body", "--data-binary", "@-", body=bytes(4 * MIB + 1))
        assert status == f"413 {curl.version}"

    def test_a_large_answer(self, curl: Curl) -> None:
        assert curl(f"/big?{20 * MIB}") == (b"x" * (20 * MIB), f"200 {curl.version}")

    def test_head_has_the_headers_of_get(self, curl: Curl) -> None:
        headers, _ = curl("/big?1000", "--head")
        assert b"content-length: 1000\r\n" in headers.lower()

    def test_a_stream_of_chunks(self, curl: Curl) -> None:
        assert curl("/stream") == (b"chunk 0\nchunk 1\nchunk 2\n", f"200 {curl.version}")

    def test_a_raising_handler_is_500(
        self, curl: Curl, servers: dict[str, tuple[Running, list[str]]]
    ) -> None:
        assert curl("/raise")[1] == f"500 {curl.version}"
        served, _ = servers[curl.url.partition(":")[0]]
        assert str(served.service.errors.pop()) == "a bug in a handler"

    # curl 7.88 breaks off its second request with prior knowledge, with any server.
    @pytest.mark.parametrize(
        "curl",
        [front for front in FRONTS if front[1] != ["--http2-prior-knowledge"]],
        indirect=True,
    )
    def test_one_connection_serves_many_requests(
        self, curl: Curl, servers: dict[str, tuple[Running, list[str]]]
    ) -> None:
        # With --http2 on a plain port the first request also offers an upgrade.
        served, _ = servers[curl.url.partition(":")[0]]
        before = served.run(served.server.statistics)
        body, _ = curl("/a", f"{curl.url}/b", f"{curl.url}/c")
        after = served.run(served.server.statistics)
        assert sorted(body.splitlines()) == [b"GET /a  0", b"GET /b  0", b"GET /c  0"]
        opened = (
            after.connections_total - before.connections_total,
            after.connections_http1_total - before.connections_http1_total,
        )
        assert opened == ((1, 0) if curl.version == "2" else (0, 1))


def test_grpc_and_plain_requests_share_a_connection(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(
            wire.headers(1, get("/plain"), END_HEADERS | END_STREAM),
            wire.call(3),
            wire.headers(5, post("/t.Test/Echo")),  # a gRPC path, but not gRPC
            frame(DATA, END_STREAM, 5, b"{}"),
        )
        bodies: dict[int, bytes] = {}
        ended: set[int] = set()
        while ended != {1, 3, 5}:
            got = wire.read()
            assert got is not None
            if got.kind == DATA:
                bodies[got.stream] = bodies.get(got.stream, b"") + got.payload
            if got.kind in {HEADERS, DATA} and got.flags & END_STREAM:
                ended.add(got.stream)
    assert bodies[1] == b"GET /plain  0\n"
    assert bodies[3] == message(b"hello")
    assert bodies[5] == b"POST /t.Test/Echo  2\n"


@pytest.mark.parametrize("content_type", ["application/grpc+json", "application/grpc-web"])
def test_grpc_of_another_kind_is_415_also_beside_a_handler(
    served: Running, content_type: str
) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, post("/t.Test/Echo", content_type)))
        headers, _, _ = wire.response(1)
        assert headers[":status"] == "415"
        assert headers["grpc-message"] == f'invalid gRPC request content-type "{content_type}"'


def test_without_a_handler_http1_is_refused_in_terms_of_http2(loop_name: str) -> None:
    with running(loop_name, http=False) as served, Wire(served.port) as wire:
        wire.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert wire.until(SETTINGS).payload == b""
        assert wire.goaway() == (PROTOCOL_ERROR, b"bad client preface")


def test_a_body_that_raises_is_no_complete_answer(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, get("/broken"), END_HEADERS | END_STREAM))
        assert wire.until(DATA, 1).payload == b"half"
        assert wire.reset(1) == INTERNAL_ERROR
        wire.alive()
    with Wire(served.port) as wire:
        wire.send(b"GET /broken HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = everything(wire.socket)
        assert b"half" in answer
        assert not answer.endswith(b"0\r\n\r\n")  # the last chunk is missing
    assert [str(error) for error in served.service.errors] == ["a bug in a body"] * 2


def everything(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_client_that_goes_away_ends_the_stream_of_chunks(served: Running, version: str) -> None:
    with Wire(served.port) as wire:
        if version == "1.1":
            wire.send(b"GET /stream?long HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert wire.socket.recv(65536)
        else:
            wire.hello()
            wire.send(wire.headers(1, get("/stream?long"), END_HEADERS | END_STREAM))
            wire.until(DATA, 1)
            wire.send(rst(1))
            served.until(lambda: served.service.log == ["chunks closed"])
            wire.alive()
    served.until(lambda: served.service.log == ["chunks closed"])
    assert served.service.errors == []


def test_chunks_wait_for_a_slow_reader(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello(settings(window=1000))
        wire.send(wire.headers(1, get("/flood"), END_HEADERS | END_STREAM))
        wire.until(HEADERS, 1)
        [connection] = served.connections
        served.until(lambda: connection.streams[1].throttled)
        made = served.service.chunks_made
        wire.alive()  # a whole turn later nothing more was produced
        assert served.service.chunks_made == made
        assert served.run(lambda: connection.backlog_bytes) <= Limits().stream_high_bytes + 65536
        wire.send(settings(window=2**31 - 1), window_update(0, 2**30))
        while not wire.until(DATA, 1).flags & END_STREAM:
            pass
        sizes = [len(f.payload) for f in wire.seen if f.kind == DATA and f.stream == 1]
        assert sum(sizes) == 100 * 65536


def test_incomplete_bodies_of_a_connection_are_bounded() -> None:
    # Each of 4,096 streams may bring 4 MiB: what counts is what all of them hold together.
    limits = Limits(receive_buffer_bytes_max=MIB)
    with running("uvloop", limits=limits) as served, Wire(served.port) as wire:
        wire.hello()
        part = frame(DATA, 0, 1, b"p" * 16384)
        for number in range(65):
            stream = 1 + 2 * number
            wire.send(wire.headers(stream, post("/body")), part[:5] + stream.to_bytes(4) + part[9:])
        assert wire.reset(129)
        [connection] = served.connections
        assert served.run(lambda: connection.receiving_bytes) == MIB
        wire.send(frame(DATA, END_STREAM, 1))
        assert wire.response(1)[1] == b"POST /body  16384\n"
        wire.send(*[rst(1 + 2 * number) for number in range(1, 64)])
        wire.alive()
        assert served.run(lambda: connection.receiving_bytes) == 0


def test_a_refused_body_is_not_kept(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, post("/body")))
        for _ in range(4 * MIB // 16384):
            wire.send(frame(DATA, 0, 1, bytes(16384)))
        wire.send(frame(DATA, 0, 1, b"one more"))
        assert wire.until(HEADERS, 1).fields[":status"] == "413"
        assert wire.reset(1) == 0
        [connection] = served.connections
        assert served.run(lambda: connection.receiving_bytes) == 0
        wire.alive()


def test_expect_100_continue_is_answered(served: Running) -> None:
    # RFC 9110 10.1.1. curl asks before it sends 1 MiB, and waits a second where nobody answers.
    with Wire(served.port) as wire:
        wire.send(
            b"POST /body HTTP/1.1\r\nhost: localhost\r\n"
            b"content-length: 4\r\nexpect: 100-continue\r\n\r\n"
        )
        assert wire.socket.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b"body")
        assert wire.socket.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "request_", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\x16\x03\x01\0\0"]
)
def test_what_is_no_http_is_400(served: Running, request_: bytes) -> None:
    with Wire(served.port) as wire, Wire(served.port) as other:
        wire.send(request_)
        assert everything(wire.socket).startswith(b"HTTP/1.0 400 Bad Request\r\n")
        other.hello()
        other.alive()
    assert served.service.errors == []


def test_a_connection_must_say_in_time_what_it_wants(loop_name: str) -> None:
    with running(loop_name, limits=Limits(handshake_timeout_s=0.2)) as served:
        for start in (b"", b"PRI * HT", b"GET / HTTP/1.1\r\nhost: local"):
            with Wire(served.port) as wire:
                wire.send(start)
                assert wire.closed_without_answer()


def test_a_body_that_does_not_come_is_408(loop_name: str) -> None:
    with running(loop_name, limits=Limits(body_s=0.1)) as served, Wire(served.port) as wire:
        wire.send(b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nbo")
        assert wire.socket.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_bodies_of_all_connections_are_bounded(loop_name: str) -> None:
    limits = Limits(received_bytes_max=100_000)
    with running(loop_name, limits=limits) as served:
        head = b"POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n"
        with Wire(served.port) as first, Wire(served.port) as second:
            counters = served.server._engine.counters
            first.send(head + bytes(80_000))
            served.until(lambda: counters.receiving_bytes == 80_000)
            second.send(head + bytes(80_000))
            assert second.socket.recv(4096).startswith(b"HTTP/1.1 503 ")
            first.send(bytes(10_000))
            assert first.socket.recv(4096).startswith(b"HTTP/1.1 200 ")
        served.until(lambda: counters.receiving_bytes == 0)
