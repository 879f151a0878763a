"""Plain HTTP requests: the types of an `HttpHandler`, and its front end over HTTP/2 streams."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.http2 import hpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from kvstore.rpc.call import Call
    from kvstore.rpc.engine import HttpHandler

# Fields that belong to one HTTP/1 connection and must not appear in HTTP/2 (RFC 9113 8.2.2).
_HTTP1_FIELDS = frozenset(("connection", "keep-alive", "transfer-encoding", "upgrade"))


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request without gRPC, whichever HTTP version carried it."""

    method: str
    path: str
    """Without the query, as sent (percent-encoded)."""

    query: str
    """After the question mark, without it."""

    headers: dict[str, str]
    """Names in lower case; the first of repeated fields. `host` is always there if it was sent."""

    body: bytes
    peer: str
    """The client's `host:port`."""


@dataclass(slots=True)
class HttpResponse:
    """The answer to an `HttpRequest`."""

    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | AsyncIterator[bytes] = field(default=b"")
    """All of it, or an iterator whose chunks are sent as they come. When the client goes away an
    iterator's `aclose` is called."""


TOO_LARGE = HttpResponse(413, [("content-type", "text/plain")], b"request body too large\n")
TOO_MANY = HttpResponse(503, [("content-type", "text/plain")], b"too many requests at once\n")
TOO_SLOW = HttpResponse(408, [("content-type", "text/plain")], b"request body too slow\n")
FAILED = HttpResponse(500, [("content-type", "text/plain")], b"internal error\n")


class PlainExchange:
    """One plain request on an HTTP/2 stream. Takes the place of a `StreamHandler`."""

    __slots__ = ("_bytes_max", "_call", "_handler", "_room", "_task")

    def __init__(self, call: Call, handler: HttpHandler) -> None:
        assert call.connection is not None
        self._call = call
        self._handler = handler
        self._bytes_max = call.connection.engine.limits.http_body_bytes_max
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()

    def body(self, data: bytes) -> None:
        """Take bytes of the request's body."""
        connection = self._call.connection
        if self._task is not None or connection is None:
            return  # refused already
        if connection.keep(self._call, data) > self._bytes_max:
            connection.release_buffer(self._call)
            self._start(self._respond(TOO_LARGE))

    def complete(self) -> None:
        """The request is whole: serve it."""
        if self._task is None:
            self._start(self._serve())

    def cancelled(self) -> None:
        """The client went away."""
        if self._task is not None:
            self._task.cancel()

    def writable(self) -> None:
        """There is room for the next chunk."""
        self._room.set()

    def _start(self, work: object) -> None:
        connection = self._call.connection
        assert connection is not None
        engine = connection.engine
        self._task = engine.loop.create_task(work)  # type: ignore[arg-type]
        engine.tasks.add(self._task)
        self._task.add_done_callback(engine.tasks.discard)

    async def _serve(self) -> None:
        call = self._call
        connection = call.connection
        if connection is None:
            return
        request = _request(call, bytes(call.buffer or b""))
        connection.release_buffer(call)
        try:
            response = await self._handler(request)
        except Exception as error:  # noqa: BLE001  # a handler's bug is a 500 for its client only
            connection.engine.report(error)
            response = FAILED
        try:
            await self._respond(response)
        except Exception as error:  # noqa: BLE001  # raised by the body's iterator
            connection.engine.report(error)
            call.finish(1)  # a reset: the length is not what the client was told

    async def _respond(self, response: HttpResponse) -> None:
        call = self._call
        connection = call.connection
        body = response.body
        try:
            if connection is None:
                return
            fields = [(b":status", b"%d" % response.status)]
            for name, value in response.headers:
                if name.lower() not in _HTTP1_FIELDS:
                    fields.append((name.lower().encode(), value.encode()))
            if isinstance(body, bytes):
                fields.append((b"content-length", b"%d" % len(body)))
            empty = call.head.method == b"HEAD" or body == b""
            call.responded = True
            connection.send_headers(call.stream_id, hpack.encode(fields), end_stream=empty)
            if empty:
                connection.close_stream(call)
            elif isinstance(body, bytes):
                call.send_parts((body,), len(body))
                call.finish()
            else:
                async for chunk in body:
                    if chunk:
                        self._room.clear()
                        if not call.send_parts((chunk,), len(chunk)):
                            if call.connection is None:
                                return
                            await self._room.wait()
                call.finish()
        finally:
            if not isinstance(body, bytes):
                closer = getattr(body, "aclose", None)
                if closer is not None:
                    await closer()


def _request(call: Call, body: bytes) -> HttpRequest:
    headers: dict[str, str] = {}
    for name, value in call.head.fields:
        text = "host" if name == b":authority" else name.decode("latin-1")
        if not text.startswith(":"):
            headers.setdefault(text, value.decode("latin-1"))
    path, _, query = call.head.path.partition("?")
    return HttpRequest(call.head.method.decode("latin-1"), path, query, headers, body, call.peer)
