"""Records the header blocks that a real client sends, for `bench.profiles`; measures nothing.

`python -m bench.capture NAME PROGRAM...` runs `PROGRAM... TARGET COUNT PATH...` three times (puts,
ranges, both in turn) against a server that keeps the bytes of the HEADERS frames, and writes
bench/recorded/NAME.json. bench/recorders has the programs and their commands.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Self

from bench.null_server import reply_to
from bench.profiles import CALLS, RECORDED, SEQUENCES, read
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
    frame,
    header_payload,
    opening,
)

PROGRAM_S = 120.0
CONTENT_LENGTH = b"\x0f\x0d"
"""HPACK: a literal that stays out of the table, its name at the static table's index 28."""


class CaptureError(RuntimeError):
    """The program failed, or did not send what can be replayed."""


class Recorder:
    """A server that answers every call on its port and keeps the header blocks of a connection."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave the thread in `accept`.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed: the recording is over
            self.connections += 1
            with connection, connection.makefile("rb") as stream:
                try:
                    self._answer(connection, stream)
                except ConnectionError:
                    continue  # the client left in the middle of something we sent

    def _answer(self, connection: socket.socket, stream: BufferedReader) -> None:
        if stream.read(len(PREFACE)) != PREFACE:
            return
        connection.sendall(opening(client=False))
        while start := stream.read(FRAME_HEAD.size):
            length_and_kind, flags, identity = FRAME_HEAD.unpack(start)
            kind, payload = length_and_kind & 0xFF, stream.read(length_and_kind >> 8)
            if kind == HEADERS:
                assert flags & END_HEADERS, "no client needs a second frame for these"
                self.blocks.append(header_payload(payload, flags))
            elif kind == PING and not flags:
                connection.sendall(frame(PING, ACK, 0, payload))
            elif kind == SETTINGS and not flags:
                connection.sendall(frame(SETTINGS, ACK, 0))
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                connection.sendall(reply_to(identity, b""))


def record(program: Sequence[str], paths: Sequence[str]) -> tuple[str, list[bytes]]:
    """Return what the program says of itself, and its blocks. Raises CaptureError."""
    with Recorder() as recorder:
        command = [*program, recorder.target, str(CALLS), *paths]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PROGRAM_S
        )
    if done.returncode:
        raise CaptureError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    if recorder.connections != 1:
        raise CaptureError(f"{recorder.connections} connections: HPACK's state is one connection's")
    blocks = [without_content_length(block) for block in recorder.blocks]
    check(blocks, paths)
    return done.stdout.strip(), blocks


def without_content_length(block: bytes) -> bytes:
    """Return the block without that field: h2load sends one, and a replay has other bodies.

    The field is a literal outside the dynamic table, so the rest keeps its meaning.
    """
    start, found, rest = block.partition(CONTENT_LENGTH)
    return start + rest[1 + (rest[0] & 0x7F) :] if found else block


def check(blocks: Sequence[bytes], paths: Sequence[str]) -> None:
    """Raise CaptureError unless these are the calls that were asked for."""
    sent = read(blocks)
    for path in paths:
        count = sum(headers[b":path"] == path.encode() for headers in sent)
        if count != CALLS // len(paths):
            raise CaptureError(f"{count} calls of {path}, not the {CALLS // len(paths)} asked for")
    if any(b"content-length" in headers for headers in sent):
        raise CaptureError("a content-length that a replay cannot keep")


def capture(name: str, program: Sequence[str], folder: Path = RECORDED) -> Path:
    """Record all sequences and write them; return the file."""
    numbers: dict[bytes, int] = {}
    recording: dict[str, object] = {}
    for key, paths in SEQUENCES.items():
        recording["client"], blocks = record(program, paths)
        # Most blocks of most clients repeat: each is written once.
        recording[key] = [numbers.setdefault(block, len(numbers)) for block in blocks]
    recording["user agent"] = read(list(numbers)[:1])[0][b"user-agent"].decode()
    recording["blocks"] = [block.hex() for block in numbers]
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in recording.items()]
    file = folder / f"{name}.json"
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return file


def main() -> None:
    """Record the program of the command line."""
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        raise SystemExit(f"usage: python -m bench.capture NAME PROGRAM...\n\n{__doc__}")
    print(f"written: {capture(sys.argv[1], sys.argv[2:])}")


if __name__ == "__main__":
    main()
