"""RFC 9113, rule by rule, with handmade frames: each broken rule ends as the RFC says."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import hpack
import pytest

from tests.rpc.conftest import LOOPS, Running, running
from tests.rpc.wire import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Wire,
    frame,
    message,
    request_fields,
    rst,
    settings,
    window_update,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPEN = "/t.Test/Chat"


@pytest.fixture(scope="module", params=sorted(LOOPS))
def shared(request: pytest.FixtureRequest) -> Iterator[Running]:
    # One server for all cases: a case that disturbs the others is a failure too.
    with running(str(request.param)) as server:
        yield server


def open_stream(wire: Wire, stream: int = 1) -> bytes:
    return wire.headers(stream, request_fields(OPEN))


CONNECTION_ERRORS: list[tuple[str, int, Callable[[Wire], bytes]]] = [
    ("data on stream 0", PROTOCOL_ERROR, lambda w: frame(DATA, 0, 0, b"x")),
    ("data on idle stream", PROTOCOL_ERROR, lambda w: frame(DATA, 0, 1, b"x")),
    ("data on even stream", PROTOCOL_ERROR, lambda w: w.call(5) + frame(DATA, 0, 2, b"x")),
    (
        "padding longer than data",
        PROTOCOL_ERROR,
        lambda w: open_stream(w) + frame(DATA, PADDED, 1, b"\x05abcd"),
    ),
    (
        "padded data without length",
        FRAME_SIZE_ERROR,
        lambda w: open_stream(w) + frame(DATA, PADDED, 1, b""),
    ),
    ("headers on stream 0", PROTOCOL_ERROR, lambda w: w.headers(0)),
    ("headers on even stream", PROTOCOL_ERROR, lambda w: w.headers(2)),
    (
        "padding longer than headers",
        PROTOCOL_ERROR,
        lambda w: frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff\x82"),
    ),
    (
        "headers shorter than their priority",
        FRAME_SIZE_ERROR,
        lambda w: frame(HEADERS, END_HEADERS | PRIORITIZED, 1, b"\0\0\0"),
    ),
    ("stream ids go back", STREAM_CLOSED, lambda w: w.call(5) + w.headers(3)),
    ("headers on a closed stream", STREAM_CLOSED, lambda w: w.call(1) + w.headers(1)),
    ("priority on stream 0", PROTOCOL_ERROR, lambda w: frame(PRIORITY, 0, 0, b"\0" * 5)),
    ("reset of an idle stream", PROTOCOL_ERROR, lambda w: rst(1)),
    ("reset of stream 0", PROTOCOL_ERROR, lambda w: rst(0)),
    (
        "reset of wrong size",
        FRAME_SIZE_ERROR,
        lambda w: w.call(1) + frame(RST_STREAM, 0, 1, b"abc"),
    ),
    ("settings on a stream", PROTOCOL_ERROR, lambda w: frame(SETTINGS, 0, 1, b"")),
    ("settings of wrong size", FRAME_SIZE_ERROR, lambda w: frame(SETTINGS, 0, 0, b"12345")),
    ("settings ack with data", FRAME_SIZE_ERROR, lambda w: frame(SETTINGS, ACK, 0, b"123456")),
    ("enable push 2", PROTOCOL_ERROR, lambda w: settings(push=2)),
    ("initial window over 2^31-1", FLOW_CONTROL_ERROR, lambda w: settings(window=2**31)),
    ("frame size too small", PROTOCOL_ERROR, lambda w: settings(frame=16383)),
    ("frame size too large", PROTOCOL_ERROR, lambda w: settings(frame=2**24)),
    ("push promise", PROTOCOL_ERROR, lambda w: frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2")),
    ("ping on a stream", PROTOCOL_ERROR, lambda w: frame(PING, 0, 1, b"12345678")),
    ("ping of wrong size", FRAME_SIZE_ERROR, lambda w: frame(PING, 0, 0, b"1234567")),
    ("goaway on a stream", PROTOCOL_ERROR, lambda w: frame(GOAWAY, 0, 1, b"\0" * 8)),
    ("goaway too short", FRAME_SIZE_ERROR, lambda w: frame(GOAWAY, 0, 0, b"\0" * 7)),
    ("window update of wrong size", FRAME_SIZE_ERROR, lambda w: frame(WINDOW_UPDATE, 0, 0, b"abc")),
    ("connection window update by 0", PROTOCOL_ERROR, lambda w: window_update(0, 0)),
    ("window update on idle stream", PROTOCOL_ERROR, lambda w: window_update(7, 1)),
    (
        "connection window over 2^31-1",
        FLOW_CONTROL_ERROR,
        lambda w: window_update(0, 2**31 - 1),
    ),
    (
        "initial window makes a stream's too large",
        FLOW_CONTROL_ERROR,
        lambda w: open_stream(w) + window_update(1, 2**30) + settings(window=2**30 + 1),
    ),
    ("frame over 16,384 bytes", FRAME_SIZE_ERROR, lambda w: frame(DATA, 0, 1, b"x" * 16385)),
    ("unknown frame over the size", FRAME_SIZE_ERROR, lambda w: frame(200, 0, 0, b"x" * 16385)),
    ("continuation out of place", PROTOCOL_ERROR, lambda w: frame(CONTINUATION, 4, 1, b"")),
    (
        "data inside a header block",
        PROTOCOL_ERROR,
        lambda w: w.headers(1, flags=0) + frame(DATA, 0, 1, b""),
    ),
    (
        "headers inside a header block",
        PROTOCOL_ERROR,
        lambda w: w.headers(1, flags=0) + frame(HEADERS, END_HEADERS, 1, b"\x82"),
    ),
    (
        "unknown frame inside a header block",
        PROTOCOL_ERROR,
        lambda w: w.headers(1, flags=0) + frame(99, 0, 0, b""),
    ),
    (
        "continuation of another stream",
        PROTOCOL_ERROR,
        lambda w: w.headers(1, flags=0) + frame(CONTINUATION, END_HEADERS, 3, b""),
    ),
    ("hpack index 0", COMPRESSION_ERROR, lambda w: frame(HEADERS, END_HEADERS, 1, b"\x80")),
    ("hpack index too high", COMPRESSION_ERROR, lambda w: frame(HEADERS, END_HEADERS, 1, b"\xfe")),
    ("hpack cut short", COMPRESSION_ERROR, lambda w: frame(HEADERS, END_HEADERS, 1, b"\x00\x05ab")),
    (
        "hpack table size too large",
        COMPRESSION_ERROR,
        lambda w: frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f"),
    ),
    (
        "hpack bad huffman",
        COMPRESSION_ERROR,
        lambda w: frame(HEADERS, END_HEADERS, 1, b"\x00\x81\x00\x01a"),
    ),
]


@pytest.mark.parametrize(
    ("code", "make"),
    [case[1:] for case in CONNECTION_ERRORS],
    ids=[case[0].replace(" ", "-") for case in CONNECTION_ERRORS],
)
def test_connection_error(shared: Running, code: int, make: Callable[[Wire], bytes]) -> None:
    with Wire(shared.port) as other, Wire(shared.port) as wire:
        other.hello()
        wire.hello()
        wire.send(make(wire))
        assert wire.goaway()[0] == code
        other.alive()
    assert shared.service.errors == []


def malformed(*fields: tuple[str, str], drop: str = "") -> Callable[[Wire], bytes]:
    def make(wire: Wire) -> bytes:
        kept = [field for field in request_fields() if field[0] != drop]
        return wire.headers(1, [*kept, *fields])

    return make


STREAM_ERRORS: list[tuple[str, int, Callable[[Wire], bytes]]] = [
    ("no method", PROTOCOL_ERROR, malformed(drop=":method")),
    ("no path", PROTOCOL_ERROR, malformed(drop=":path")),
    ("no scheme", PROTOCOL_ERROR, malformed(drop=":scheme")),
    ("empty path", PROTOCOL_ERROR, lambda w: w.headers(1, request_fields(""))),
    (
        "repeated pseudo-header",
        PROTOCOL_ERROR,
        lambda w: w.headers(1, [(":path", "/other"), *request_fields()]),
    ),
    ("pseudo-header after a field", PROTOCOL_ERROR, malformed((":path", "/x"), drop=":path")),
    (
        "unknown pseudo-header",
        PROTOCOL_ERROR,
        lambda w: w.headers(1, [(":status", "200"), *request_fields()]),
    ),
    ("upper case name", PROTOCOL_ERROR, malformed(("Upper", "x"))),
    ("space in a name", PROTOCOL_ERROR, malformed(("a b", "x"))),
    ("empty name", PROTOCOL_ERROR, malformed(("", "x"))),
    ("newline in a value", PROTOCOL_ERROR, malformed(("a", "b\nc"))),
    ("nul in a value", PROTOCOL_ERROR, malformed(("a", "b\0c"))),
    ("space before a value", PROTOCOL_ERROR, malformed(("a", " b"))),
    ("connection field", PROTOCOL_ERROR, malformed(("connection", "close"))),
    ("transfer-encoding", PROTOCOL_ERROR, malformed(("transfer-encoding", "chunked"))),
    ("te not trailers", PROTOCOL_ERROR, malformed(("te", "gzip"), drop="te")),
    ("content-length no number", PROTOCOL_ERROR, malformed(("content-length", "-1"))),
    (
        "more than content-length",
        PROTOCOL_ERROR,
        lambda w: malformed(("content-length", "3"))(w) + frame(DATA, 0, 1, b"abcd"),
    ),
    (
        "less than content-length",
        PROTOCOL_ERROR,
        lambda w: malformed(("content-length", "30"))(w) + frame(DATA, END_STREAM, 1, b"abcd"),
    ),
    (
        "whole message but not content-length",
        PROTOCOL_ERROR,
        lambda w: (
            malformed(("content-length", "30"))(w) + frame(DATA, END_STREAM, 1, message(b"abc"))
        ),
    ),
    ("stream window update by 0", PROTOCOL_ERROR, lambda w: open_stream(w) + window_update(1, 0)),
    (
        "stream window over 2^31-1",
        FLOW_CONTROL_ERROR,
        lambda w: open_stream(w) + window_update(1, 2**31 - 1),
    ),
    (
        "data after the end of the stream",
        STREAM_CLOSED,
        lambda w: w.call(1, path="/t.Test/Hold") + frame(DATA, 0, 1, b"x"),
    ),
    (
        "headers after the end of the stream",
        STREAM_CLOSED,
        lambda w: w.call(1, path="/t.Test/Hold") + w.headers(1),
    ),
    (
        "data on an answered stream",
        STREAM_CLOSED,
        lambda w: w.call(1) + frame(DATA, 0, 1, b"x"),
    ),
    (
        "trailers that do not end the stream",
        PROTOCOL_ERROR,
        lambda w: open_stream(w) + w.headers(1, [("a", "b")]),
    ),
    (
        "trailers with a pseudo-header",
        PROTOCOL_ERROR,
        lambda w: open_stream(w) + w.headers(1, [(":path", "/")], END_HEADERS | END_STREAM),
    ),
    (
        "priority of wrong size",
        FRAME_SIZE_ERROR,
        lambda w: open_stream(w) + frame(PRIORITY, 0, 1, b"\0" * 4),
    ),
]


@pytest.mark.parametrize(
    ("code", "make"),
    [case[1:] for case in STREAM_ERRORS],
    ids=[case[0].replace(" ", "-") for case in STREAM_ERRORS],
)
def test_stream_error(shared: Running, code: int, make: Callable[[Wire], bytes]) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        wire.send(make(wire))
        assert wire.reset(1) == code
        wire.alive()
    assert shared.service.errors == []


def test_first_frame_must_be_settings(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.send(PREFACE + frame(PING, 0, 0, b"12345678"))
        assert wire.goaway()[0] == PROTOCOL_ERROR


def test_preface_byte_by_byte(shared: Running) -> None:
    with Wire(shared.port) as wire:
        for byte in PREFACE + settings() + wire.call(1):
            wire.send(bytes((byte,)))
        assert wire.response(1)[1] == message(b"hello")


def test_everything_in_one_segment(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.send(PREFACE + settings() + wire.call(1) + wire.call(3, b"second"))
        assert wire.response(1)[1] == message(b"hello")
        assert wire.response(3)[1] == message(b"second")


def test_legal_oddities_are_accepted(shared: Running) -> None:
    # Padding, priority, CONTINUATION, unknown frames and settings, a reserved bit, trailers.
    with Wire(shared.port) as wire:
        wire.hello()
        block = wire.encoder.encode(request_fields(OPEN))
        wire.send(
            frame(222, 0xFF, 77, b"unknown"),
            frame(SETTINGS, 0, 0, struct.pack(">HL", 0x77, 5)),
            frame(PRIORITY, 0, 9, b"\0\0\0\0\x10"),
            frame(
                HEADERS,
                PADDED | PRIORITIZED,
                1,
                b"\x03" + b"\x80\0\0\0\xff" + block[:10] + b"\0\0\0",
            ),
            frame(CONTINUATION, 0, 1, b""),
            frame(CONTINUATION, 0, 1, block[10:12]),
            frame(CONTINUATION, END_HEADERS, 1, block[12:]),
            frame(DATA, PADDED, 1, b"\x04" + message(b"padded") + b"\0\0\0\0"),
            frame(DATA, PADDED, 0x80000001, b"\x00" + message(b"reserved bit")[:7]),
            frame(DATA, 0, 1, message(b"reserved bit")[7:]),
            wire.headers(1, [("checksum", "abc")], END_HEADERS | END_STREAM),
        )
        headers, body, trailers = wire.response(1)
        assert headers == {":status": "200", "content-type": "application/grpc"}
        assert body == message(b"padded") + message(b"reserved bit")
        assert trailers == {"grpc-status": "0"}
        wire.alive()


def test_unary_request_in_pieces(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        body = message(b"in pieces")
        wire.send(wire.headers(1))
        for byte in body:
            wire.send(frame(DATA, 0, 1, bytes((byte,))))
        wire.send(frame(DATA, END_STREAM, 1, b""))
        assert wire.response(1)[1] == body
        wire.send(wire.headers(3), frame(DATA, PADDED | END_STREAM, 3, b"\x02" + body + b"\0\0"))
        assert wire.response(3)[1] == body


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", "13", "cardinality violation: received no request message"),
        (message(b"a") + message(b"b"), "13", "cardinality violation: received multiple request"),
        (message(b"abc")[:-1], "13", "unexpected EOF"),
        (b"\0\0", "13", "unexpected EOF"),
        (message(b"abc", flag=2), "13", "grpc: received unexpected payload format 2"),
        (
            message(b"abc", flag=1),
            "13",
            "grpc: compressed flag set with identity or empty encoding",
        ),
        (
            b"\0\xff\xff\xff\xff",
            "8",
            "grpc: received message larger than max (4294967295 vs. 2097152)",
        ),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_unary_cardinality_and_framing(
    shared: Running, body: bytes, code: str, text: str, split: bool
) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        wire.send(wire.headers(1))
        if split:
            for byte in body:
                wire.send(frame(DATA, 0, 1, bytes((byte,))))
            wire.send(frame(DATA, END_STREAM, 1))
        else:
            wire.send(frame(DATA, END_STREAM, 1, body))
        headers, _, _ = wire.response(1)
        assert headers["grpc-status"] == code
        assert headers["grpc-message"].startswith(text)
        wire.alive()


def test_no_message_at_all(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, flags=END_HEADERS | END_STREAM))
        headers, body, _ = wire.response(1)
        assert (headers["grpc-status"], body) == ("13", b"")


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=utf-8", True),
        ("application/grpc+proto; charset=utf-8", True),
        ("application/grpc+json", False),
        ("application/grpc-web", False),
        ("application/grpcx", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_content_types(content_type: str, accepted: bool) -> None:
    with running("uvloop", http=False) as served, Wire(served.port) as wire:
        wire.hello()
        fields = [(n, content_type if n == "content-type" else v) for n, v in request_fields()]
        wire.send(wire.headers(1, fields), frame(DATA, END_STREAM, 1, message(b"x")))
        headers, _, _ = wire.response(1)
        assert headers[":status"] == ("200" if accepted else "415")
        wire.alive()


@pytest.mark.parametrize(
    ("fields", "status", "code", "text"),
    [
        (request_fields("/t.Test/Nope"), "200", "12", "unknown method Nope for service t.Test"),
        (request_fields("/a/b"), "200", "12", "unknown service a"),
        (request_fields("nonsense"), "200", "12", 'malformed method name: "nonsense"'),
        (
            [(":method", "PUT"), *request_fields()[1:]],
            "405",
            "13",
            'Received a HEADERS frame with :method "PUT" which should be POST',
        ),
        (request_fields("/t.Test/Echo", ("grpc-timeout", "5x")), "400", "13", "malformed"),
    ],
)
def test_refusals_before_a_handler(
    shared: Running, fields: list[tuple[str, str]], status: str, code: str, text: str
) -> None:
    # Trailers-only, then RST_STREAM(NO_ERROR) because the request is not complete.
    with Wire(shared.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, fields))
        headers, body, trailers = wire.response(1)
        assert (headers[":status"], headers["grpc-status"]) == (status, code)
        assert headers["grpc-message"].startswith(text)
        assert (body, trailers) == (b"", {})
        assert wire.reset(1) == 0
        wire.send(frame(DATA, END_STREAM, 1, message(b"was on its way")))
        wire.alive()


def test_header_list_over_the_limit_is_431(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        # References to one entry of 3,935 bytes: 40 of them are 157 KB of headers in 40 bytes.
        wire.send(wire.headers(1, [*request_fields(), ("big", "v" * 3900)]))
        reference = wire.encoder.encode([("big", "v" * 3900)])
        assert len(reference) == 1
        plain = [hpack.NeverIndexedHeaderTuple(name, value) for name, value in request_fields()]
        for stream, count, status in ((3, 10, "200"), (5, 40, "431"), (7, 16, "200")):
            block = wire.encoder.encode(plain) + reference * count
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
            assert wire.response(stream)[0][":status"] == status
        wire.alive()


def test_continuation_flood(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, flags=0), frame(CONTINUATION, 0, 1, b"") * 100)
        assert wire.goaway()[0] == ENHANCE_YOUR_CALM


def test_header_block_flood(shared: Running) -> None:
    with Wire(shared.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, flags=0), frame(CONTINUATION, 0, 1, b"\x82" * 16000) * 6)
        assert wire.goaway()[0] == ENHANCE_YOUR_CALM
