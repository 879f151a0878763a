"""The fastest server that a driver could meet: a prebuilt gRPC reply to everything; stores nothing.

`python -m bench.null_server --reply put|range` prints its port, then serves until killed. It
looks at frame heads only, so its rate is the ceiling of the driver, not of any product.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import uvloop

from bench.messages import blob, framed, integer
from bench.wire import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    STREAM,
    frame,
    head,
    opening,
    window_update,
)

TOP_UP_BYTES = 1 << 30

# HPACK without the dynamic table: `:status: 200` by its index, the others as literals.
INITIAL = b"\x88\x0f\x10\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"
INITIAL_HEAD = head(HEADERS, END_HEADERS, len(INITIAL))
TRAILERS_HEAD = head(HEADERS, END_HEADERS | END_STREAM, len(TRAILERS))

RESPONSE_HEADER = blob(
    1, integer(1, 1 << 62) + integer(2, 1 << 61) + integer(3, 1_000_000) + integer(4, 2)
)


def message(kind: str, value_bytes: int = 256) -> bytes:
    """Return a reply as large as the real one: a PutResponse, or a RangeResponse with one pair."""
    if kind == "put":
        return RESPONSE_HEADER
    pair = blob(1, b"k" * 32) + integer(2, 1000) + integer(3, 1000) + integer(4, 1)
    return RESPONSE_HEADER + blob(2, pair + blob(5, b"v" * value_bytes)) + integer(4, 1)


def reply_to(stream: int, reply: bytes) -> bytes:
    """Return the frames of one unary reply with status 0."""
    data = framed(reply)
    return (
        frame(HEADERS, END_HEADERS, stream, INITIAL)
        + frame(DATA, 0, stream, data)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
    )


class NullConnection(asyncio.Protocol):
    """Answers every finished request of one connection."""

    def __init__(self, reply: bytes) -> None:
        data = framed(reply)
        # The three parts between which a stream id goes.
        self._second = INITIAL + head(DATA, 0, len(data))
        self._third = data + TRAILERS_HEAD
        self._rest = b""
        self._received = 0
        self._opened = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transport does not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        out: list[bytes] = []
        if not self._opened:
            if end < len(PREFACE):
                self._rest = data
                return
            if not data.startswith(PREFACE):
                self._transport.abort()
                return
            at = len(PREFACE)
            self._opened = True
            out.append(opening(client=False))
        unpack, pack = FRAME_HEAD.unpack_from, STREAM.pack
        second, third = self._second, self._third
        while end - at >= 9:
            length_and_kind, flags, stream = unpack(data, at)
            after = at + 9 + (length_and_kind >> 8)
            if after > end:
                break
            kind = length_and_kind & 0xFF
            if kind <= HEADERS:
                if kind == DATA:
                    self._received += length_and_kind >> 8
                if flags & END_STREAM:
                    name = pack(stream)
                    out += (INITIAL_HEAD, name, second, name, third, name, TRAILERS)
            elif kind == PING and not flags:
                out.append(frame(PING, ACK, 0, data[at + 9 : after]))
            elif kind == SETTINGS and not flags:
                out.append(frame(SETTINGS, ACK, 0))
            at = after
        self._rest = data[at:]
        if self._received > TOP_UP_BYTES:
            out.append(window_update(0, self._received))
            self._received = 0
        if out:
            self._transport.write(b"".join(out))


async def serve(reply: bytes) -> None:
    """Listen on a free port of 127.0.0.1, print it, serve for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: NullConnection(reply), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reply", choices=("put", "range"), default="put")
    parser.add_argument("--value-bytes", type=int, default=256)
    arguments = parser.parse_args()
    uvloop.run(serve(message(arguments.reply, arguments.value_bytes)))


if __name__ == "__main__":
    main()
