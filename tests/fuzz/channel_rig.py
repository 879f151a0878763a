"""A connection of the client's channel without a socket: it is handed what a server might send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from kvstore.client.exchange import WINDOW
from kvstore.client.http2 import CONNECTION_WINDOW, Connection
from kvstore.http2 import frames


class Wire(asyncio.Transport):
    """Keeps what is written; `close` loses the connection in the next turn."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.sent = bytearray()
        self._connection = connection
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        self.sent += b"".join(parts)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    abort = close


async def run(parts: Iterable[bytes]) -> None:
    """Have a server send this; every exchange ends, and nothing but frames goes out."""
    connection = Connection(lambda _: None)
    wire = Wire(connection)
    connection.connection_made(wire)
    connection.data_received(frames.settings(()))
    exchanges = [connection.open(b"") for _ in range(3)]
    exchanges[0].send(b"x", end=True)
    exchanges[1].send(b"x" * 100_000)
    waiting = [asyncio.ensure_future(exchange.ended()) for exchange in exchanges]
    came = 0
    for part in parts:
        if wire.is_closing():
            break
        connection.data_received(part)
        came += len(part)
        await asyncio.sleep(0)
    messages = [message for exchange in exchanges for message in exchange.messages]
    assert sum(map(len, messages)) <= came
    assert len(connection._buffer) <= frames.HEAD_BYTES + (64 << 10)
    for exchange in exchanges:
        assert exchange.status is not None or 0 <= exchange._owed <= WINDOW
        while exchange.messages:
            exchange.take()
    assert 0 <= connection._owed <= CONNECTION_WINDOW
    wire.close()
    await asyncio.gather(*waiting)
    assert not connection._exchanges
    walk(bytes(wire.sent))


def walk(sent: bytes) -> None:
    """Read what the client said as frames."""
    assert sent.startswith(frames.PREFACE)
    position = len(frames.PREFACE)
    while position < len(sent):
        word, _, stream = frames.unpack_head(sent, position)
        assert word & 0xFF <= frames.CONTINUATION
        assert stream in {0, 1, 3, 5}
        position += frames.HEAD_BYTES + (word >> 8)
    assert position == len(sent)
