"""HTTP/1 connections, served by an aiohttp low-level server; the same handler as over HTTP/2.

Only `http1` imports this module, and late: aiohttp is a third of the time to import a server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from kvstore.rpc.plain import FAILED, TOO_LARGE, TOO_MANY, TOO_SLOW, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from kvstore.rpc.engine import Engine, HttpHandler

_KEEPALIVE_S = 75.0
_LINGER_S = 2.0


class Http1Server:
    """Owner of the HTTP/1 connections of a server."""

    def __init__(self, engine: Engine, handler: HttpHandler) -> None:
        self._engine = engine
        self._handler = handler
        self._server = web.Server(
            self._serve,
            handler_cancellation=True,  # a client that goes away ends its stream's iterator
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
            access_log=None,
        )
        # aiohttp bounds the wait for later requests, not for a connection's first one.
        self._first: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    @property
    def open_count(self) -> int:
        """HTTP/1 connections that are open now."""
        return len(self._server.connections)

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Serve a connection whose first bytes were read already."""
        protocol = self._server()
        transport.set_protocol(protocol)
        self._first[protocol] = self._engine.loop.call_later(
            self._engine.limits.handshake_timeout_s, self._expire, protocol, transport
        )
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def close(self, grace_s: float) -> None:
        """Let requests finish for up to `grace_s`, then close every connection."""
        self._server.pre_shutdown()
        await self._server.shutdown(grace_s)

    def _expire(self, protocol: web.RequestHandler, transport: asyncio.Transport) -> None:
        del self._first[protocol]
        transport.abort()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        timer = self._first.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        response = await self._answer(request)
        body = response.body
        if isinstance(body, bytes):
            return web.Response(status=response.status, headers=list(response.headers), body=body)
        stream = web.StreamResponse(status=response.status, headers=list(response.headers))
        try:
            await stream.prepare(request)
            async for chunk in body:
                if chunk:
                    await stream.write(chunk)
            await stream.write_eof()
        except ConnectionError:
            pass  # the reader is gone; its iterator is closed below
        except Exception as error:
            self._engine.report(error)
            raise
        finally:
            closer = getattr(body, "aclose", None)
            if closer is not None:
                await closer()
        return stream

    async def _answer(self, request: web.BaseRequest) -> HttpResponse:
        bytes_max = self._engine.limits.http_body_bytes_max
        parts: list[bytes] = []
        counters = self._engine.counters
        size = 0
        expects = request.headers.get("expect", "").lower() == "100-continue"
        if expects and request.version >= HttpVersion11:
            # The client holds its body back until it hears this (RFC 9110 10.1.1).
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(self._engine.limits.body_s):
                async for chunk in request.content.iter_any():
                    size += len(chunk)
                    counters.receiving_bytes += len(chunk)
                    if size > bytes_max:
                        return TOO_LARGE
                    if counters.receiving_bytes > self._engine.limits.received_bytes_max:
                        return TOO_MANY
                    parts.append(chunk)
        except TimeoutError:
            return TOO_SLOW
        finally:
            counters.receiving_bytes -= size
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers.setdefault(name.lower(), value)
        path, _, query = request.raw_path.partition("?")
        plain = HttpRequest(
            request.method, path, query, headers, b"".join(parts), _peer(request.transport)
        )
        try:
            return await self._handler(plain)
        except Exception as error:  # noqa: BLE001  # a handler's bug is a 500 for its client only
            self._engine.report(error)
            return FAILED


def _peer(transport: asyncio.Transport | None) -> str:
    name = transport.get_extra_info("peername") if transport is not None else None
    if not isinstance(name, tuple):
        return ""
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
