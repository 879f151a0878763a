"""The first bytes of a connection decide who serves it: HTTP/2 by its preface, else HTTP/1."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from kvstore.http2 import frames
from kvstore.rpc.connection import Connection

if TYPE_CHECKING:
    from kvstore.rpc.engine import Engine

_PREFACE = frames.PREFACE


class TurnedAway(asyncio.Protocol):
    """A connection beyond `Limits.connections_max`: closed before it says a word."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it; the client can go to another member."""
        cast("asyncio.Transport", transport).abort()


class Sniffer(asyncio.Protocol):
    """Reads until the protocol is certain, then hands the transport and the bytes on."""

    __slots__ = ("_data", "_engine", "_timer", "_transport")

    _transport: asyncio.Transport
    _timer: asyncio.TimerHandle

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for bytes, not for ever."""
        self._transport = cast("asyncio.Transport", transport)
        self._engine.opening.add(self)
        self._timer = self._engine.loop.call_later(
            self._engine.limits.handshake_timeout_s, self.abort
        )
        if self._engine.draining:
            self.abort()  # accepted by the kernel before we stopped listening

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection: it went away before it said what it wants."""
        self._done()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Decide, or wait for more."""
        data = self._data = self._data + data
        transport = self._transport
        engine = self._engine
        if data.startswith(_PREFACE):
            self._done()
            connection = Connection(engine, transport)
            transport.set_protocol(connection)
            connection.start(data[len(_PREFACE) :])
        elif _PREFACE.startswith(data):
            return
        elif engine.http1 is None or transport.get_extra_info("alpn") == "h2":
            self._done()
            # What golang.org/x/net/http2 answers; a client of HTTP/2 gets the error in its terms.
            transport.write(
                frames.settings(()) + frames.goaway(0, frames.PROTOCOL_ERROR, b"bad client preface")
            )
            transport.close()
        else:
            self._done()
            engine.http1.adopt(transport, data)

    def _done(self) -> None:
        self._timer.cancel()
        self._engine.opening.discard(self)
