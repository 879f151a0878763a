"""An HTTP/2 client made of single frames: it sends what it is told, right or wrong."""

from __future__ import annotations

import socket
import ssl
import struct
from typing import NamedTuple, Self

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes
    fields: dict[str, str]  # of HEADERS; empty otherwise


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    numbers = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "list": 6}
    payload = b"".join(struct.pack(">HL", numbers[name], value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, payload)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", increment))


def rst(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">L", code))


def message(data: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BL", flag, len(data)) + data


def request_fields(path: str = "/t.Test/Echo", *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]


class Wire:
    """One connection. After `hello` both sides have exchanged their SETTINGS."""

    def __init__(
        self, port: int, tls: ssl.SSLContext | None = None, *, buffer_bytes: int | None = None
    ) -> None:
        raw = socket.socket()
        raw.settimeout(20)
        if buffer_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        raw.connect(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls.wrap_socket(raw, server_hostname="localhost") if tls else raw
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.buffer = bytearray()
        self.seen: list[Frame] = []
        self.own_stream = 100_001  # of the helpers below, above all that tests number themselves

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def hello(self, first: bytes | None = None) -> Wire:
        self.send(PREFACE + (settings() if first is None else first))
        while not any(f.kind == SETTINGS and f.flags & ACK for f in self.seen):
            assert self.read() is not None, "closed during the hello"
        self.seen.clear()
        return self

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def push(self, data: memoryview) -> memoryview:
        """Send what the connection takes at once; return the rest."""
        timeout_s = self.socket.gettimeout()
        self.socket.settimeout(0)
        try:
            while data:
                data = data[self.socket.send(data) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        finally:
            self.socket.settimeout(timeout_s)
        return data

    def headers(
        self,
        stream: int,
        fields: list[tuple[str, str]] | None = None,
        flags: int = END_HEADERS,
    ) -> bytes:
        block = self.encoder.encode(request_fields() if fields is None else fields)
        return frame(HEADERS, flags, stream, block)

    def call(self, stream: int, data: bytes = b"hello", path: str = "/t.Test/Echo") -> bytes:
        return self.headers(stream, request_fields(path)) + frame(
            DATA, END_STREAM, stream, message(data)
        )

    def read(self) -> Frame | None:
        """Return the next frame; None at the end of the connection."""
        while True:
            if len(self.buffer) >= 9:
                word, flags, stream = struct.unpack_from(">LBL", self.buffer)
                stop = 9 + (word >> 8)
                if len(self.buffer) >= stop:
                    payload = bytes(self.buffer[9:stop])
                    del self.buffer[:stop]
                    fields = {}
                    if word & 0xFF == HEADERS:  # each block, so that the tables stay in step
                        assert flags & END_HEADERS
                        fields = dict(self.decoder.decode(payload))
                    got = Frame(word & 0xFF, flags, stream, payload, fields)
                    self.seen.append(got)
                    return got
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionError:
                return None
            if not data:
                return None
            self.buffer += data

    def until(self, kind: int, stream: int | None = None) -> Frame:
        while True:
            got = self.read()
            assert got is not None, f"closed before frame {kind}; seen {self.seen[-5:]}"
            if got.kind == kind and (stream is None or got.stream == stream):
                return got

    def goaway(self) -> tuple[int, bytes]:
        """Read to the end; return code and debug text of the last GOAWAY."""
        last = None
        while (got := self.read()) is not None:
            if got.kind == GOAWAY:
                last = got
        assert last is not None, f"closed without GOAWAY; seen {self.seen[-5:]}"
        return struct.unpack(">L", last.payload[4:8])[0], last.payload[8:]

    def reset(self, stream: int) -> int:
        """Read until the stream is reset; return the code."""
        return int(struct.unpack(">L", self.until(RST_STREAM, stream).payload)[0])

    def response(self, stream: int) -> tuple[dict[str, str], bytes, dict[str, str]]:
        """Read one whole response: headers, body, trailers (empty for trailers-only)."""
        headers: dict[str, str] | None = None
        trailers: dict[str, str] = {}
        body = bytearray()
        while True:
            got = self.read()
            assert got is not None, f"closed during a response; seen {self.seen[-5:]}"
            if got.stream != stream or got.kind not in {HEADERS, DATA}:
                assert got.kind != RST_STREAM or got.stream != stream, got
                continue
            if got.kind == DATA:
                body += got.payload
            elif headers is None:
                headers = got.fields
            else:
                trailers = got.fields
            if got.flags & END_STREAM:
                assert headers is not None
                return headers, bytes(body), trailers

    def new_stream(self) -> int:
        self.own_stream += 2
        return self.own_stream

    def alive(self) -> None:
        """Prove that the connection still works: a call is answered."""
        stream = self.new_stream()
        self.send(self.call(stream, b"alive"))
        headers, body, trailers = self.response(stream)
        assert headers[":status"] == "200"
        assert body == message(b"alive")
        assert trailers == {"grpc-status": "0"}

    def closed_without_answer(self) -> bool:
        return self.read() is None
