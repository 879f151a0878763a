"""gRPC over HTTP/2: timeouts, cancellation, status texts, metadata, compression, half-close."""

from __future__ import annotations

import asyncio
import base64
import gzip
import urllib.parse
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.rpc import grpc
from kvstore.rpc.engine import Deadlines
from tests.rpc.conftest import Running
from tests.rpc.wire import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Wire,
    frame,
    message,
    request_fields,
    rst,
    settings,
    window_update,
)

GZIP = ("grpc-encoding", "gzip")
HOLD, CHAT = "/t.Test/Hold", "/t.Test/Chat"


def request(
    wire: Wire, stream: int, body: bytes, *more: tuple[str, str], path: str = "Echo"
) -> None:
    """Send one whole call with more header fields."""
    wire.send(
        wire.headers(stream, request_fields(f"/t.Test/{path}", *more)),
        frame(DATA, END_STREAM, stream, body),
    )


# grpc-timeout and cancellation


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"400m", 0.4),
        (b"500u", 500e-6),
        (b"6n", 6e-9),
        (b"0S", 0),
        (b"00000001S", 1),
        (b"99999999S", 99_999_999),
        (b"99999999H", 10 * 365 * 86400),  # more than clocks bear: as good as never
    ],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert grpc.parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"100000000S", b"1S ", b"1SS", b"\xd9\xa1S"]
)
def test_malformed_timeouts(text: bytes) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        grpc.parse_timeout(text)


@pytest.mark.parametrize("timeout", ["0n", "50m", "50000u", "50000000n"])
@pytest.mark.parametrize("path", ["Hold", "Chat"])
def test_a_deadline_ends_the_call_on_both_sides(served: Running, timeout: str, path: str) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        fields = request_fields(f"/t.Test/{path}", ("grpc-timeout", timeout))
        wire.send(wire.headers(1, fields))
        if path == "Hold":
            wire.send(frame(DATA, END_STREAM, 1, message(b"")))
        headers, _, _ = wire.response(1)
        assert headers["grpc-status"] == "4"
        assert headers["grpc-message"] == "context deadline exceeded"
        wire.alive()
    if served.service.held or served.service.calls:  # it had come to a handler
        assert served.service.log == ["cancelled"]


def test_a_call_that_ends_in_time_hears_no_more_of_its_deadline(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        request(wire, 1, message(b"x"), ("grpc-timeout", "50m"))
        assert wire.response(1)[2] == {"grpc-status": "0"}
        request(wire, 3, message(b""), ("grpc-timeout", "100m"), path="Hold")
        assert wire.response(3)[0]["grpc-status"] == "4"  # by now the first one's time is over too
    assert served.service.log == ["cancelled"]
    assert served.service.errors == []


class Time(asyncio.SelectorEventLoop):
    """A loop whose clock stands still; it notes the timers."""

    now_s = 1000.0

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        self.timers.append((when, callback, args))

    def __init__(self) -> None:
        self.timers: list[tuple[float, Any, Any]] = []
        super().__init__()


class Expiring:
    def __init__(self) -> None:
        self.deadline_s: float | None = None
        self.expired = False

    def expire(self) -> None:
        self.expired = True


@pytest.mark.pure_python
@given(st.floats(0, 10 * 365 * 86400))
def test_deadlines_fire_never_early_and_hardly_late(timeout_s: float) -> None:
    loop = Time()
    call: Any = Expiring()
    Deadlines(loop).add(call, timeout_s)
    [(when, callback, args)] = loop.timers
    assert call.deadline_s == 1000.0 + timeout_s
    assert call.deadline_s - 1e-6 <= when <= call.deadline_s + max(0.01, timeout_s / 256) + 1e-6
    callback(*args)
    assert call.expired
    loop.close()


@pytest.mark.pure_python
def test_a_clients_choice_of_timeouts_does_not_fill_the_memory() -> None:
    # A slot's timer stays until its time has come, also when no call is left in it: a client that
    # gives every call an hour, for an hour, must not leave a timer for each 10 ms of it.
    loop = Time()
    deadlines = Deadlines(loop)
    call: Any = Expiring()
    for step in range(30_000):
        loop.now_s = 1000.0 + step * 0.12
        del deadlines.add(call, 3600.0)[call]
    assert len(loop.timers) <= 513
    for exponent in range(2, 34):
        for step in range(1000):
            del deadlines.add(call, 2**exponent / 100 * (1 + step / 1000))[call]
    assert len(loop.timers) <= 513 + 32 * 513
    loop.close()


def test_cancelling_a_stream_frees_it_and_tells_the_handler(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields(CHAT)), frame(DATA, 0, 1, message(b"one")))
        assert wire.until(DATA, 1).payload == message(b"one")
        wire.send(rst(1), frame(DATA, 0, 1, message(b"too late")))
        wire.alive()
    [call] = served.service.calls
    assert served.service.log == ["cancelled"]
    assert call.cancelled
    assert not served.run(call.send, b"nobody listens")


# Half-close


def test_replies_may_follow_the_clients_end_and_precede_it(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields(CHAT)))
        for number in range(3):
            wire.send(frame(DATA, 0, 1, message(b"%d" % number)))
            assert wire.until(DATA, 1).payload == message(b"%d" % number)
        wire.send(wire.call(3, b"5 1", "/t.Test/Produce"))  # all replies come after the end
        assert wire.response(3)[1] == message(b"x") * 5
        wire.send(frame(DATA, END_STREAM, 1))
        assert wire.until(HEADERS, 1).fields == {"grpc-status": "0"}


def test_a_server_that_ends_first_lets_the_client_stop_sending(served: Running) -> None:
    # RFC 9113 8.1: the answer is complete, RST_STREAM(NO_ERROR) asks to send no more.
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields(CHAT)), frame(DATA, 0, 1, message(b"fail")))
        assert wire.response(1)[0]["grpc-status"] == "9"
        assert wire.reset(1) == 0
        wire.send(frame(DATA, 0, 1, message(b"was on its way")) * 3)
        wire.alive()


# Status texts


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_status_texts_come_back_from_percent_encoding(text: str) -> None:
    encoded = grpc.encode_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert urllib.parse.unquote(encoded.decode("ascii"), errors="strict") == text


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("etcdserver: mvcc: required revision has been compacted", None),
        ("100%", "100%25"),
        ("a\nb\x7f", "a%0Ab%7F"),
        ("käse", "k%C3%A4se"),
        ("%41", "%2541"),
    ],
)
def test_status_texts_on_the_wire(served: Running, text: str, encoded: str | None) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        request(wire, 1, message(text.encode()), path="Fail")
        headers, body, trailers = wire.response(1)
        assert headers == {
            ":status": "200",
            "content-type": "application/grpc",
            "grpc-status": "5",
            "grpc-message": encoded or text,
            "detail-bin": base64.b64encode(b"\xff\x00").decode().rstrip("="),
            "detail": "some text",
        }
        assert (body, trailers) == (b"", {})  # trailers-only: nothing was sent before


# Metadata


@pytest.mark.parametrize("padded", [False, True])
@given(value=st.binary(max_size=50))
def test_binary_metadata_is_read_with_and_without_padding(padded: bool, value: bytes) -> None:
    [(name, sent)] = grpc.encode_metadata([(b"x-bin", value)])
    assert name == b"x-bin"
    assert b"=" not in sent
    text = base64.b64encode(value) if padded else sent
    assert grpc.decode_metadata(b"x-bin", text) == value
    assert grpc.decode_metadata(b"x-bin", text + b"," + sent) == value  # joined values


@pytest.mark.parametrize("text", [b"*", b"a", b"AAA=A", b"\xff"])
def test_binary_metadata_that_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="x-bin"):
        grpc.decode_metadata(b"x-bin", text)


@pytest.mark.parametrize(
    "field",
    [
        (b"Upper", b""),
        (b"a b", b""),
        (b"", b""),
        (b"grpc-status", b"0"),
        (b"text", b"new\nline"),
        (b"text", b"\xff"),
    ],
)
def test_metadata_that_may_not_be_sent(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        grpc.encode_metadata([field])


def test_bad_metadata_costs_only_its_call(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        request(wire, 1, message(b"x-bin"), ("x-bin", "*"), path="Metadata")
        assert wire.response(1)[0]["grpc-status"] == "2"  # the handler raised
        wire.alive()
    assert [type(error) for error in served.service.errors] == [ValueError]


# Compression


@pytest.mark.parametrize("path", ["Echo", "Chat"])
@pytest.mark.parametrize(
    ("size", "compressed"),
    [(0, False), (255, False), (256, True), (65536, True), (65537, False)],
)
def test_replies_are_compressed_where_it_pays(
    served: Running, path: str, size: int, compressed: bool
) -> None:
    data = b"z" * size
    with Wire(served.port) as wire:
        wire.hello(settings(window=100_000))
        wire.send(window_update(0, 100_000))
        request(wire, 1, message(gzip.compress(data), flag=1), GZIP, path=path)
        headers, body, trailers = wire.response(1)
    assert headers["grpc-encoding"] == "gzip"
    assert trailers == {"grpc-status": "0"}
    assert body[0] == compressed
    assert len(body) == 5 + int.from_bytes(body[1:5])
    assert (gzip.decompress(body[5:]) if compressed else body[5:]) == data


def test_who_did_not_compress_gets_nothing_compressed(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        request(wire, 1, message(b"z" * 5000), ("grpc-accept-encoding", "gzip,identity"))
        headers, body, _ = wire.response(1)
        assert "grpc-encoding" not in headers
        assert body == message(b"z" * 5000)


def test_plain_messages_are_allowed_in_a_compressed_call(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        mixed = message(b"plain") + message(gzip.compress(b"packed"), flag=1) + message(b"")
        request(wire, 1, mixed, GZIP, path="Chat")
        assert wire.response(1)[1] == message(b"plain") + message(b"packed") + message(b"")


def test_gzip_members_follow_one_another(served: Running) -> None:
    # RFC 1952 2.2
    with Wire(served.port) as wire:
        wire.hello()
        request(wire, 1, message(gzip.compress(b"one") + gzip.compress(b"two"), flag=1), GZIP)
        assert wire.response(1)[1] == message(b"onetwo")


LIMIT = 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("packed", "encoding", "code", "text"),
    [
        (b"not gzip", "gzip", "13", "grpc: failed to decompress the message"),
        (b"", "gzip", "13", "grpc: failed to decompress the message: unexpected EOF"),
        (
            gzip.compress(b"x" * 100)[:-1],
            "gzip",
            "13",
            "grpc: failed to decompress the message: un",
        ),
        (gzip.compress(b"x") + b"junk", "gzip", "13", "grpc: failed to decompress the message"),
        (zlib.compress(b"x"), "gzip", "13", "grpc: failed to decompress the message"),
        (
            gzip.compress(b"x"),
            "snappy",
            "12",
            'grpc: Decompressor is not installed for grpc-encoding "snappy"',
        ),
        (
            gzip.compress(bytes(1 << 30), compresslevel=9),
            "gzip",
            "8",
            f"grpc: received message after decompression larger than max {LIMIT}",
        ),
        (
            gzip.compress(bytes(LIMIT)) + gzip.compress(b"x"),
            "gzip",
            "8",
            f"grpc: received message after decompression larger than max {LIMIT}",
        ),
    ],
    ids=["garbage", "empty", "short", "junk", "zlib", "snappy", "bomb", "many"],
)
@pytest.mark.parametrize("path", ["Echo", "Collect"])
def test_what_cannot_be_decompressed(
    served: Running, packed: bytes, encoding: str, code: str, text: str, path: str
) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        body = message(packed, flag=1)
        wire.send(
            wire.headers(1, request_fields(f"/t.Test/{path}", ("grpc-encoding", encoding))),
            *[frame(DATA, 0, 1, body[i : i + 16384]) for i in range(0, len(body), 16384)],
        )
        if path == "Echo":
            wire.send(frame(DATA, END_STREAM, 1))
        headers, _, _ = wire.response(1)
        assert headers["grpc-status"] == code
        assert headers["grpc-message"].startswith(text)
        wire.alive()


def test_a_compressed_message_of_the_largest_size(served: Running) -> None:
    with Wire(served.port) as wire:
        wire.hello()
        request(wire, 1, message(gzip.compress(bytes(LIMIT)), flag=1), GZIP, path="Collect")
        assert wire.response(1)[1] == message(b"%d" % LIMIT)


def test_compressed_headers_end_the_stream_as_well(served: Running) -> None:
    # A gzip call without any message, and a client that resets it while its reply is on its way.
    with Wire(served.port) as wire:
        wire.hello()
        wire.send(wire.headers(1, request_fields("/t.Test/Echo", GZIP), END_HEADERS | END_STREAM))
        assert wire.response(1)[0]["grpc-status"] == "13"
        request(wire, 3, message(gzip.compress(b"50000"), flag=1), GZIP, path="Big")
        wire.send(rst(3, CANCEL))
        wire.alive()
