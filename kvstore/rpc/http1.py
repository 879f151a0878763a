"""Hands HTTP/1 connections to their server, which is loaded when the first one comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.rpc.engine import Engine, HttpHandler
    from kvstore.rpc.http1_server import Http1Server


class Http1:
    """Owner of all HTTP/1 connections of a server."""

    def __init__(self, engine: Engine, handler: HttpHandler) -> None:
        self._engine = engine
        self._handler = handler
        self._server: Http1Server | None = None
        self._loading: asyncio.Task[None] | None = None
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []

    @property
    def open_count(self) -> int:
        """HTTP/1 connections that are open now."""
        served = self._server.open_count if self._server is not None else 0
        return served + len(self._waiting)

    def load(self) -> asyncio.Task[None]:
        """Begin to load the server, unless that was done; no connection has to come first."""
        if self._loading is None:
            self._loading = self._engine.loop.create_task(self._load())
        return self._loading

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Serve a connection whose first bytes were read already."""
        self._engine.counters.connections_http1 += 1
        if self._server is not None:
            self._server.adopt(transport, data)
            return
        # Nothing is read meanwhile, so no byte can come between these and the server.
        transport.pause_reading()
        self._waiting.append((transport, data))
        self.load()

    async def close(self, grace_s: float) -> None:
        """Let requests finish for up to `grace_s`, then close every connection."""
        if self._loading is not None:
            await self._loading
        if self._server is not None:
            await self._server.close(grace_s)

    async def _load(self) -> None:
        # Not on the loop: the import takes 0.1 s and more, and no turn may hold it that long.
        loop = self._engine.loop
        server_class = await loop.run_in_executor(None, _import_server)
        self._server = server_class(self._engine, self._handler)
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                self._server.adopt(transport, data)
                transport.resume_reading()


def _import_server() -> type[Http1Server]:
    from kvstore.rpc.http1_server import Http1Server  # noqa: PLC0415 (see `Http1._load`)

    return Http1Server
