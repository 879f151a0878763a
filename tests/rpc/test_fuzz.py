"""Hostile bytes: nothing reaches the loop, no connection hangs, the others do not notice."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import struct
from collections.abc import Iterator

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.certificates import Authority
from tests.rpc import wire as w
from tests.rpc.conftest import LOOPS, Running, running, server_tls
from tests.rpc.wire import Wire, frame, message, request_fields

FEW = settings(max_examples=120, deadline=None)
MANY = settings(max_examples=4000, deadline=None)
MARK = b"fuzz-end"

# Handlers that fail on garbage are left out: an exception of theirs would hide one of ours.
PATHS = ["/t.Test/Echo", "/t.Test/Chat", "/t.Test/Collect", "/t.Test/Hold", "/t.Test/Fail", "/x"]


class Target:
    """A server, and a connection to it that must never notice anything."""

    def __init__(self, served: Running, bystander: Wire) -> None:
        self.served = served
        self.bystander = bystander

    def attack(self, *parts: bytes, whole_frames: bool = False) -> None:
        """Send the parts on a connection of their own, and see everything come to an end.

        With `whole_frames` the server knows after the last part that nothing is missing: it must
        answer a ping or have ended the connection. In any case it must close when we do.
        """
        with Wire(self.served.port) as wire:
            with contextlib.suppress(ConnectionError):  # it may have had enough
                for part in parts:
                    wire.send(part)
                if whole_frames:
                    wire.send(frame(w.PING, 0, 0, MARK))
                    while (got := wire.read()) is not None and got.kind != w.GOAWAY:
                        if got.kind == w.PING and got.flags & w.ACK and got.payload == MARK:
                            break
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while wire.socket.recv(65536):  # a timeout here is a connection that hangs
                    pass
        self.bystander.alive()
        self.bystander.seen.clear()
        server = self.served.server
        self.served.until(lambda: server.statistics().connections_open == 1)
        left = self.served.run(
            lambda: (
                server.statistics().streams_open,
                server.statistics().unsent_bytes,
                len(server._engine.opening),
                len(server._engine.tasks),
            )
        )
        assert left == (0, 0, 0, 0)
        assert self.served.service.errors == []
        assert self.served.stray == []


@contextlib.contextmanager
def target(loop_name: str) -> Iterator[Target]:
    with running(loop_name) as served, Wire(served.port) as bystander:
        bystander.hello()
        bystander.send(w.window_update(0, 2**30))
        yield Target(served, bystander)


@pytest.fixture(scope="module", params=sorted(LOOPS))
def victim(request: pytest.FixtureRequest) -> Iterator[Target]:
    with target(str(request.param)) as server:
        yield server


# What a client may say, right and wrong

stream_ids = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 2, 4, 7, 99, 2**31 - 1, 2**31, 2**32 - 1])
numbers = st.sampled_from([0, 1, 5, 100, 16383, 16384, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
words = numbers.map(lambda number: struct.pack(">L", number))
field_names = st.sampled_from(
    [":method", ":path", ":scheme", ":authority", ":status", "content-type", "te", "cookie"]
    + ["content-length", "grpc-timeout", "grpc-encoding", "x-bin", "connection", "Upper", "", "a"]
)
field_values = st.sampled_from(
    ["POST", "GET", "HEAD", *PATHS, "http", "application/grpc", "application/json", "trailers"]
    + ["gzip", "identity", "0", "5", "1S", "99999999H", "-1", "", " x", "a\nb", "\xff", "x" * 300]
)


@st.composite
def header_blocks(draw: st.DrawFn) -> bytes:
    # A request with fields added, taken away and put in other places; sometimes plain noise.
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=80))
    fields = request_fields(draw(st.sampled_from(PATHS)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(fields)))
        if fields and place < len(fields) and draw(st.booleans()):
            del fields[place]
        else:
            fields.insert(place, (draw(field_names), draw(field_values)))
    # An encoder of its own: its references to a table that the server does not share are wrong.
    block = hpack.Encoder().encode(fields, huffman=draw(st.booleans()))
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, max(0, len(block) - 1)))
        block = block[:place] + draw(st.binary(min_size=1, max_size=3)) + block[place + 1 :]
    return block


bodies = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=20).map(message),
    st.tuples(st.integers(0, 255), numbers, st.binary(max_size=10)).map(
        lambda parts: struct.pack(">BL", parts[0], parts[1]) + parts[2]
    ),
)
payloads = {
    w.DATA: bodies,
    w.HEADERS: header_blocks(),
    w.PRIORITY: st.binary(min_size=5, max_size=5),
    w.RST_STREAM: words,
    w.SETTINGS: st.lists(
        st.tuples(st.integers(0, 9), numbers).map(lambda pair: struct.pack(">HL", *pair)),
        max_size=3,
    ).map(b"".join),
    w.PUSH_PROMISE: st.binary(max_size=20),
    w.PING: st.binary(min_size=8, max_size=8),
    w.GOAWAY: st.binary(min_size=8, max_size=20),
    w.WINDOW_UPDATE: words,
    w.CONTINUATION: header_blocks(),
}
flag_bits = st.one_of(st.sampled_from([0, 1, 4, 5, 4, 5, 8, 12, 13, 37]), st.integers(0, 255))


@st.composite
def one_frame(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([*payloads, w.DATA, w.HEADERS, w.HEADERS, w.DATA, 10, 200]))
    payload = draw(payloads.get(kind, st.binary(max_size=20)))
    match draw(st.integers(0, 9)):
        case 0:
            payload = draw(st.binary(max_size=30))
        case 1 | 2:  # no room for what the flags announce
            payload = payload[: draw(st.integers(0, 6))]
    return frame(kind, draw(flag_bits), draw(stream_ids), payload)


def session() -> list[bytes]:
    """Return the frames of a client that does everything right, of every kind it may send."""
    encoder = hpack.Encoder()
    plain = [(":method", "GET"), *request_fields("/x")[1:4]]

    def headers(stream: int, path: str) -> bytes:
        return frame(w.HEADERS, w.END_HEADERS, stream, encoder.encode(request_fields(path)))

    first = headers(1, "/t.Test/Echo")  # blocks must be encoded in the order in which they are sent
    block = encoder.encode(request_fields("/t.Test/Chat", ("grpc-timeout", "9S"), ("token", "t")))
    return [
        w.PREFACE,
        w.settings(table=100, window=1000, frame=20000),
        w.window_update(0, 1000),
        first,
        frame(w.DATA, w.END_STREAM, 1, message(b"hello")),
        frame(w.HEADERS, w.PADDED | w.PRIORITIZED, 3, b"\x02\0\0\0\0\x10" + block[:9] + b"\0\0"),
        frame(w.CONTINUATION, 0, 3, block[9:20]),
        frame(w.CONTINUATION, w.END_HEADERS, 3, block[20:]),
        frame(w.DATA, w.PADDED, 3, b"\x03" + message(b"padded") + b"\0\0\0"),
        frame(w.SETTINGS, w.ACK),
        frame(w.PING, 0, 0, b"12345678"),
        headers(5, "/t.Test/Hold"),
        frame(w.DATA, w.END_STREAM, 5, message(b"")),
        headers(7, "/t.Test/Collect"),
        frame(w.DATA, 0, 7, message(b"x" * 100)[:60]),
        w.settings(window=0),
        frame(w.DATA, 0, 7, message(b"x" * 100)[60:]),
        frame(w.PRIORITY, 0, 7, b"\0\0\0\x01\x10"),
        w.settings(window=70000),
        w.window_update(7, 1000),
        frame(w.DATA, w.END_STREAM, 7),
        w.rst(5),
        frame(w.DATA, w.END_STREAM, 3, message(b"last")),
        frame(w.HEADERS, w.END_HEADERS | w.END_STREAM, 9, encoder.encode(plain)),
        frame(w.GOAWAY, 0, 0, b"\0" * 8),
    ]


SESSION = session()


@st.composite
def bent_sessions(draw: st.DrawFn) -> list[bytes]:
    """A right session with frames swapped, repeated, dropped, and bytes changed; cut anywhere."""
    frames = list(SESSION)
    for _ in range(draw(st.integers(0, 4))):
        here, there = (draw(st.integers(1, len(frames) - 1)) for _ in range(2))
        match draw(st.integers(0, 3)):
            case 0:
                frames[here], frames[there] = frames[there], frames[here]
            case 1:
                frames.insert(here, frames[there])
            case 2 if len(frames) > 2:
                del frames[here]
            case _:
                frames.insert(here, draw(one_frame()))
    data = bytearray(b"".join(frames))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[place] = draw(st.integers(0, 255))
            case 2:
                del data[place : place + draw(st.integers(1, 20))]
            case _:
                data[place:place] = draw(st.binary(min_size=1, max_size=9))
    stop = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    cuts = sorted(draw(st.lists(st.integers(0, stop), max_size=3)))
    edges = [0, *cuts, stop]
    return [bytes(data[a:b]) for a, b in itertools.pairwise(edges)]


def test_the_session_itself_is_right(victim: Target) -> None:
    # Else the mutations would only test the first error.
    with Wire(victim.served.port) as wire:
        wire.send(*SESSION[:-1])
        ended: dict[int, str | None] = {}
        while 9 not in ended:  # the plain request is answered last, by a task
            got = wire.read()
            assert got is not None
            assert got.kind not in {w.GOAWAY, w.RST_STREAM}
            if got.kind in {w.HEADERS, w.DATA} and got.flags & w.END_STREAM:
                ended[got.stream] = got.fields.get("grpc-status")
        assert ended == {1: "0", 3: "0", 7: "0", 9: None}
    victim.served.until(lambda: victim.served.server.statistics().connections_open == 1)


def hello(parts: list[bytes]) -> bytes:
    return w.PREFACE + w.settings() + b"".join(parts)


@pytest.mark.parametrize("kind", [*payloads, 10])
def test_every_short_frame(kind: int) -> None:
    # Chance hardly meets "PADDED, but not even the padding's length": go through them all.
    with target("uvloop") as victim:
        bits = (w.END_STREAM, w.END_HEADERS, w.PADDED, w.PRIORITIZED)
        for choice in itertools.product((0, 1), repeat=len(bits)):
            flags = sum(bit for bit, chosen in zip(bits, choice, strict=True) if chosen)
            for length in (0, 1, 2, 4, 5, 6, 8):
                for stream in (0, 1):
                    bad = frame(kind, flags, stream, b"\x01" * length)
                    with Wire(victim.served.port) as wire, contextlib.suppress(ConnectionError):
                        wire.send(hello([wire.headers(1, request_fields("/t.Test/Chat")), bad]))
                        wire.send(frame(w.PING, 0, 0, MARK))
                        while (got := wire.read()) is not None and got.payload != MARK:
                            pass
                        assert victim.served.service.errors == [], bad
        victim.attack()


@given(frames=st.lists(one_frame(), max_size=25))
@FEW
def test_random_frames(victim: Target, frames: list[bytes]) -> None:
    victim.attack(hello(frames), whole_frames=True)


@given(parts=bent_sessions())
@FEW
def test_bent_sessions(victim: Target, parts: list[bytes]) -> None:
    victim.attack(*parts)


@given(blocks=st.lists(st.one_of(header_blocks(), st.binary(max_size=200)), max_size=8))
@FEW
def test_header_blocks_of_noise(victim: Target, blocks: list[bytes]) -> None:
    frames = [frame(w.HEADERS, 5, 1 + 2 * n, block) for n, block in enumerate(blocks)]
    victim.attack(hello(frames), whole_frames=True)


@given(
    noise=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=50).map(lambda tail: b"GET /x HTTP/1.1\r\n" + tail),
        st.integers(0, len(w.PREFACE)).flatmap(
            lambda length: st.binary(max_size=30).map(lambda tail: w.PREFACE[:length] + tail)
        ),
    )
)
@FEW
def test_first_bytes_of_noise(victim: Target, noise: bytes) -> None:
    victim.attack(noise)


@pytest.mark.slow
@pytest.mark.timeout(600)
@given(
    parts=st.one_of(bent_sessions(), st.lists(one_frame(), max_size=40).map(lambda f: [hello(f)]))
)
@MANY
def test_a_great_many(victim: Target, parts: list[bytes]) -> None:
    victim.attack(*parts)


@pytest.fixture(scope="module", params=sorted(LOOPS))
def secure(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, ssl.SSLContext]]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    context = ssl.create_default_context(cafile=authority.file)
    with running(str(request.param), tls=server_tls(authority)) as served:
        yield served, context


@given(place=st.integers(0, 400), noise=st.binary(max_size=40), length=st.integers(0, 600))
@FEW
def test_handshakes_of_noise(
    secure: tuple[Running, ssl.SSLContext], place: int, noise: bytes, length: int
) -> None:
    served, context = secure
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    opening = bytearray(outgoing.read())
    opening[place : place + len(noise)] = noise
    with Wire(served.port) as wire:
        wire.send(bytes(opening[:length]))
        wire.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while wire.socket.recv(65536):
                pass
    with Wire(served.port, context) as wire:
        wire.hello()
        wire.alive()
    served.until(lambda: len(served.server._engine.opening) == 0)
    assert served.service.errors == []
    assert served.stray == []
