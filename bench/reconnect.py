"""A thousand TLS clients come back in one moment: how long others wait, and what each costs.

All TCP connections are open and all first handshake messages are made beforehand, so that the
member meets them at once. The handshakes then go on in one process without pause.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import process
from bench.clusters import Cluster, Member, Tls
from bench.idle import affordable, settled_bytes
from bench.stalls import Stalls
from bench.wire import ACK, SETTINGS, frame, opening
from tests.certificates import Authority

CLIENTS = 1_000
WAIT_S = 60.0
READ_BYTES = 1 << 14


class Client:
    """One TLS connection, handshake and HTTP/2 opening by hand, without blocking."""

    def __init__(self, member: Member, context: ssl.SSLContext) -> None:
        self.socket = socket.create_connection(("127.0.0.1", member.ports.client), WAIT_S)
        self.socket.setblocking(False)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname="localhost")
        self._shaken = False
        self._step()
        self.first = self._to_send.read()

    def _step(self) -> bool:
        """Advance; True when the member has answered the opening of HTTP/2."""
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
                self._tls.write(opening(client=True) + frame(SETTINGS, ACK, 0))
            return bool(self._tls.read(READ_BYTES))
        except ssl.SSLWantReadError:
            return False

    def received(self) -> bool:
        """Take what came; True when the connection serves."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise RuntimeError("the member closed a connection during the handshake")
        self._received.write(data)
        done = self._step()
        if self._to_send.pending:
            self.socket.sendall(self._to_send.read())
        return done


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Connect all at once; return seconds, the longest stall, elections, bytes per connection."""
    count = affordable(max(50, round(CLIENTS * scale)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = Authority(folder)
        files = Tls(*authority.issue("server"), authority.file)
        cluster = stack.enter_context(Cluster(kind, data_root=data_root, tls=files))
        leader, term = cluster.leader(), cluster.term()
        context = ssl.create_default_context(cafile=authority.file)
        context.set_alpn_protocols(["h2"])
        before = settled_bytes(leader)
        cpu_before = process.cpu_s(leader.pid)
        clients = [Client(leader, context) for _ in range(count)]
        for client in clients:
            stack.callback(client.socket.close)
        with Stalls(leader) as stalls:
            took_s = _connect(clients)
        cpu = process.cpu_s(leader.pid) - cpu_before
        per_connection = (settled_bytes(leader) - before) / count
        elections = cluster.term() - term
    return {
        "clients at once": count,
        "all served s": round(took_s, 2),
        "stall ms": round(stalls.longest_ms, 1),
        "elections": elections,
        "leader CPU ms per connection": round(1e3 * cpu / count, 2),
        "bytes per idle TLS connection": round(per_connection),
        "target": "stall <= 100 ms, no election, <= 64 KiB per TLS connection",
    }


def _connect(clients: list[Client]) -> float:
    begin = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.socket.sendall(client.first)
        left = len(clients)
        while left:
            if time.monotonic() - begin > WAIT_S:
                raise RuntimeError(
                    f"{left} of {len(clients)} clients were not served in {WAIT_S} s"
                )
            for entry, _ in selector.select(1.0):
                if entry.data.received():
                    selector.unregister(entry.fileobj)
                    left -= 1
    return time.monotonic() - begin
