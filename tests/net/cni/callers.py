"""Who listens in a container, and who connects to it; of either family, by the address."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from tests.net.namespaces import Namespace


def published(
    host_port: int, port: int = 80, protocol: str = "tcp", host_ip: str = ""
) -> dict[str, object]:
    """Return the runtime's configuration that publishes a port."""
    mapping = {
        "hostPort": host_port, "containerPort": port, "protocol": protocol, "hostIP": host_ip,
    }  # fmt: skip
    return {"portMappings": [mapping]}


def family_of(address: str) -> socket.AddressFamily:
    """Return the family of sockets for an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Listener:
    """Answers whoever connects with who it took them for."""

    def __init__(self, place: Namespace, port: int = 80, address: str = "0.0.0.0") -> None:
        self.socket = place.socket(family_of(address), socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((address, port))
        self.socket.listen(50)
        self.socket.settimeout(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


def reach(source: Namespace, listener: Listener, address: str, port: int) -> str:
    """Connect from a place, and return whom the listener took for the caller."""
    with source.socket(family_of(address), socket.SOCK_STREAM) as caller:
        caller.settimeout(5)
        caller.connect((address, port))
        taken, (seen, *_) = listener.socket.accept()
        with taken:
            taken.sendall(b"hello")
        assert caller.recv(5) == b"hello"
    return str(seen)


def refuses(source: Namespace, address: str, port: int) -> bool:
    """Tell whether nobody answers there."""
    with source.socket(family_of(address), socket.SOCK_STREAM) as caller:
        caller.settimeout(1)
        try:
            caller.connect((address, port))
        except (ConnectionRefusedError, TimeoutError):
            return True
    return False


KEEP = """
import socket, sys
with socket.socket(type=socket.SocketKind[sys.argv[2]]) as kept:
    kept.bind(("0.0.0.0", int(sys.argv[1])))
    if kept.type == socket.SOCK_STREAM:
        kept.listen()
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def keeping(
    place: Namespace, port: int, protocol: str, container: str
) -> Iterator[subprocess.Popen[str]]:
    """Have a program keep a port of IPv4 for a container, as podman's conmon does."""
    kind = {"tcp": "SOCK_STREAM", "udp": "SOCK_DGRAM"}[protocol]
    command = place.command(sys.executable, "-c", KEEP, str(port), kind, "-c", container)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline()
        yield keeper
        keeper.communicate()
