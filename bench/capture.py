"""Records the header blocks that grpcio sends, with a token; measures nothing.

`python -m bench.capture` writes bench/recorded/grpcio-token.json. It serves a few calls on a raw
socket and keeps the bytes of the HEADERS frames.
"""

from __future__ import annotations

import json
import platform
import socket
import threading
from collections.abc import Sequence

import grpc

from bench.messages import PUT, RANGE
from bench.null_server import reply_to
from bench.profiles import RECORDING
from bench.wire import (
    DATA,
    END_STREAM,
    FRAME_HEAD,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    frame,
    header_payload,
    opening,
)

TOKEN_NAME = "xtoken"
"""Not `token`: etcd without users refuses a call that carries one. It travels the same way."""

TOKEN = "abcdefghijklmnop.12"
"""The shape of etcd's simple token."""


def record(paths: Sequence[str]) -> list[bytes]:
    """Return the header block of each of these calls, made in order on one connection."""
    blocks: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_serve, args=(listener, blocks), daemon=True)
        server.start()
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        with grpc.insecure_channel(target) as channel:
            for path in paths:
                channel.unary_unary(path)(b"\n\x01k", metadata=[(TOKEN_NAME, TOKEN)], timeout=None)
        server.join(10)
    return blocks


def _serve(listener: socket.socket, blocks: list[bytes]) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        assert stream.read(len(PREFACE)) == PREFACE
        connection.sendall(opening(client=False))
        while start := stream.read(FRAME_HEAD.size):
            length_and_kind, flags, identity = FRAME_HEAD.unpack(start)
            kind, payload = length_and_kind & 0xFF, stream.read(length_and_kind >> 8)
            if kind == HEADERS:
                blocks.append(header_payload(payload, flags))
            elif kind == PING and not flags:
                connection.sendall(frame(PING, 1, 0, payload))
            elif kind == SETTINGS and not flags:
                connection.sendall(frame(SETTINGS, 1, 0))
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                connection.sendall(reply_to(identity, b""))


def main() -> None:
    """Record and write the file."""
    put1, range1, put2, range2, put3, range3 = record([PUT, RANGE] * 3)
    if (put2, range2) != (put3, range3):
        raise SystemExit("grpcio's blocks do not settle: the recording cannot be replayed")
    puts, ranges = record([PUT] * 3), record([RANGE] * 3)
    if puts[1] != puts[2] or ranges[1] != ranges[2]:
        raise SystemExit("grpcio's blocks do not settle: the recording cannot be replayed")
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_text(
        json.dumps(
            {
                "client": f"grpcio {grpc.__version__}, Python {platform.python_version()}",
                "first": {PUT: put1.hex(), RANGE: range1.hex()},
                "steady": {PUT: put2.hex(), RANGE: range2.hex()},
                "alone": {
                    f"{PUT} first": puts[0].hex(),
                    f"{PUT} steady": puts[1].hex(),
                    f"{RANGE} first": ranges[0].hex(),
                    f"{RANGE} steady": ranges[1].hex(),
                },
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
