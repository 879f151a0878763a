"""One question to an agent's socket; for command lines, which should start quickly."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
    """What the agent said: an HTTP status, and a text or JSON."""

    status: int
    body: bytes


def ask(path: Path, method: str, target: str, *, timeout_s: float = 15.0) -> Answer:
    """Send one request to a socket and return the answer. Blocks; for command lines.

    Raises OSError when nobody listens or answers.
    """
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(f"{method} {target} HTTP/1.1\r\nhost: agent\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    length = f"\r\ncontent-length: {len(body)}\r\n".encode()
    if len(words) < 3 or not words[1].isdigit() or length not in head + b"\r\n":
        raise ConnectionError("the agent went away before it had answered")
    return Answer(int(words[1]), body)
