"""What agent and process say to each other: JSON, a message to a packet of a unix socket.

The agent asks, the process answers. `hello` and `hand-over` are in every protocol version, so that
processes of two versions can follow each other.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

PROTOCOL = 1
MESSAGE_BYTES_MAX = 4 << 20
"""Some 80,000 peers."""
SO_SNDBUFFORCE = 32
DESCRIPTORS = 2
"""That a process hands over: the device's and the socket's."""


class ControlError(Exception):
    """The other end said something else than it should, or that it cannot."""


@dataclass(frozen=True, slots=True)
class Config:
    """What one process does. A process with another one is another process."""

    device: str
    mtu: int
    """Of the device."""
    address: str
    """Of this host: what packets leave with."""
    port: int
    """Of UDP; the peers' may be others."""
    subnet: str
    """Our own; its first address is the device's."""
    sealed: bool = False
    """Whether packets are encrypted between hosts."""

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Self:
        """Read what `told` of another one says. Raises ControlError."""
        try:
            return cls(**{field.name: told[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ControlError(f"no configuration: {told!r}") from error

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message's bytes."""
    return json.dumps(message, separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, Any]:
    """Read a message. Raises ControlError."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ControlError(f"no JSON: {data[:100]!r}") from error
    if not isinstance(found, dict):
        raise ControlError(f"no object: {data[:100]!r}")
    return found


def answer(data: bytes) -> dict[str, Any]:
    """Read an answer. Raises ControlError for one that refuses, too."""
    if not data:
        raise ControlError("the process has ended")
    found = decode(data)
    if "error" in found:
        raise ControlError(str(found["error"]))
    return found


def make_socket() -> socket.socket:
    """Return a socket that the longest message goes through in one piece."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MESSAGE_BYTES_MAX)
    return made
