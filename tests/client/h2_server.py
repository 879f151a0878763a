"""A gRPC server made with the h2 library, which knows nothing of ours; tests say its answers."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes, Settings

DEFAULTS = {SettingCodes.MAX_HEADER_LIST_SIZE: 65_536}
HEAD = ((":status", "200"), ("content-type", "application/grpc"))
GOOD = (("grpc-status", "0"),)


def message(data: bytes) -> bytes:
    """Return a gRPC message with its head."""
    return struct.pack(">BL", 0, len(data)) + data


class Server(asyncio.Protocol):
    """One connection. `on_request` and `on_end` are called with the stream's id."""

    def __init__(self, settings: dict[SettingCodes, int]) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = Settings(client=False, initial_values={**DEFAULTS, **settings})
        self.transport: asyncio.Transport
        self.headers: dict[int, dict[str, str]] = {}
        self.received: dict[int, bytearray] = {}
        self.resets: dict[int, int] = {}
        self.acknowledged_pings = 0
        self.takes_data = True
        """Gives room back for what it has received."""
        self.on_request: Callable[[int], None] = lambda _: None
        self.on_end: Callable[[int], None] = lambda _: None
        self.happened = asyncio.Event()
        """Something came; for tests that wait."""
        self.lost = asyncio.Event()
        self._unsent: dict[int, bytearray] = {}
        self._trailers: dict[int, tuple[tuple[str, str], ...]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case RequestReceived():
                    self.headers[event.stream_id] = dict(event.headers)  # type: ignore[arg-type]
                    self.received[event.stream_id] = bytearray()
                    self.on_request(event.stream_id)
                case DataReceived():
                    self.received[event.stream_id] += event.data
                    if self.takes_data:
                        self.give_room(event.stream_id, event.flow_controlled_length)
                case StreamEnded():
                    self.on_end(event.stream_id)
                case StreamReset():
                    self.resets[event.stream_id] = int(event.error_code)
                    self._unsent.pop(event.stream_id, None)
                case PingAckReceived():
                    self.acknowledged_pings += 1
                case WindowUpdated() | RemoteSettingsChanged():
                    for stream in list(self._unsent):
                        self._send(stream)
        self.flush()
        happened, self.happened = self.happened, asyncio.Event()
        happened.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something that came has made this true."""
        async with asyncio.timeout(10):
            while not is_so():
                await self.happened.wait()

    def give_room(self, stream: int, count: int) -> None:
        """Let the client send more."""
        if count:
            self.h2.acknowledge_received_data(count, stream)

    def flush(self) -> None:
        """Send what h2 has ready."""
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def answer(
        self,
        stream: int,
        *messages: bytes,
        trailers: tuple[tuple[str, str], ...] | None = GOOD,
        begins: bool = True,
    ) -> None:
        """Send messages as there is room for them, then the trailers if there are some."""
        if begins:
            self.h2.send_headers(stream, HEAD)
        self._unsent.setdefault(stream, bytearray()).extend(b"".join(map(message, messages)))
        if trailers is not None:
            self._trailers[stream] = trailers
        self._send(stream)
        self.flush()

    def refuse(self, stream: int, *trailers: tuple[str, str]) -> None:
        """Send a status without anything else."""
        self.h2.send_headers(stream, (*HEAD, *trailers), end_stream=True)
        self.flush()

    def raw(self, data: bytes) -> None:
        """Send bytes that h2 would not."""
        self.flush()
        self.transport.write(data)

    def _send(self, stream: int) -> None:
        unsent = self._unsent[stream]
        while unsent:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room <= 0:
                return
            self.h2.send_data(stream, bytes(unsent[:room]))
            del unsent[:room]
        if stream in self._trailers:
            self.h2.send_headers(stream, self._trailers.pop(stream), end_stream=True)
            del self._unsent[stream]


class Listener:
    """Where clients connect; `connections` in the order that they came in."""

    def __init__(self) -> None:
        self.connections: list[Server] = []
        self.prepare: Callable[[Server], None] = lambda _: None
        """Called with every new connection."""
        self.settings: dict[SettingCodes, int] = {}
        self.port = 0

    def make(self) -> Server:
        """Return the protocol of a new connection."""
        server = Server(self.settings)
        self.connections.append(server)
        self.prepare(server)
        return server


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    """Listen on a free port of this host."""
    listener = Listener()
    server = await asyncio.get_running_loop().create_server(listener.make, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        for connection in listener.connections:
            connection.transport.abort()
            await connection.lost.wait()
