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
DESCRIPTORS = 3
"""That a process hands over: of the device, the socket, and a file with all that it knows, which
may be longer than a message."""


class ControlError(Exception):
    """The other end said something else than it should, or that it cannot."""


class SilentError(ControlError):
    """The other end says nothing at all."""


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

    def follows(self, older: Config) -> bool:
        """Tell whether this process can go on with device, peers and key of another one."""
        return (self.device, self.port, self.sealed) == (older.device, older.port, older.sealed)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a process says of itself."""

    protocol: int
    version: str
    config: Config
    key: str
    """Of what it seals; empty where packets are plain."""

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Self:
        """Read an answer. Raises ControlError."""
        match told:
            case {
                "protocol": int(protocol),
                "version": str(version),
                "config": dict(config),
                "key": str(key),
            }:
                return cls(protocol, version, Config.parse(config), key)
        raise ControlError(f"no greeting: {told!r:.200}")


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message's bytes."""
    return json.dumps(message, separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, Any]:
    """Read a message. Raises ControlError."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter: nested too deep
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


def bound_name(path: str) -> str:
    """Return what the process binds its socket to, before agents find that at a path.

    The kernel knows it by this name, whatever becomes of the file.
    """
    return f"{path}.new"


def make_socket() -> socket.socket:
    """Return a socket that the longest message goes through in one piece."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MESSAGE_BYTES_MAX)
    return made
