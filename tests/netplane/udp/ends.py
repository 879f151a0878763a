"""Both ends of a data path: containers behind its device, and a peer that the test plays."""

from __future__ import annotations

import socket
from typing import Any, cast

from netplane.udp.path import DataPath, open_socket

OWN = (0xFFFFFF00, 0x0A050100)
"""Netmask and address of 10.5.1.0/24."""


class PathEnds:
    """Sockets around a data path of 10.5.1.0/24, which a subclass makes as `path`."""

    path: DataPath

    def __init__(self) -> None:
        self.containers, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.udp = open_socket("127.0.0.1", 0)
        self.sockets = [self.containers, self.device, self.udp]
        for one in self.containers, self.device:
            one.setblocking(False)
        self.peer = self.another_peer("127.0.0.1")
        self.icmp: list[tuple[bytes, tuple[str, int]]] = []

    @property
    def icmp_socket(self) -> socket.socket:
        """What stands for the socket of ICMP, which would send to real hosts."""
        return cast("socket.socket", self)

    def sendto(self, *sent: Any) -> None:
        """Keep what ICMP sends."""
        self.icmp.append(sent)

    def another_peer(self, host: str) -> socket.socket:
        """Return a socket at a free port, closed with the others."""
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sockets.append(made)
        made.bind((host, 0))
        made.setblocking(False)
        return made

    def come_in(self, data: bytes, sender: socket.socket | None = None) -> list[bytes]:
        """Send from the peer; return what containers get."""
        (sender or self.peer).sendto(data, self.udp.getsockname())
        self.path.from_network()
        return self.delivered()

    def delivered(self) -> list[bytes]:
        """Return what containers have got."""
        return received_by(self.containers)

    def sent(self) -> list[bytes]:
        """Return what the peer has got."""
        return received_by(self.peer)

    def close(self) -> None:
        """Close all sockets."""
        for one in self.sockets:
            one.close()


def received_by(one: socket.socket) -> list[bytes]:
    """Return what a socket has got."""
    found = []
    while True:
        try:
            found.append(one.recv(65536))
        except BlockingIOError:
            return found
