"""The server object: routes, listening, keepalive sweeps, drain, statistics. No protocol here."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvstore.rpc.engine import Engine, HttpHandler, log_error
from kvstore.rpc.head import Route
from kvstore.rpc.http1 import Http1
from kvstore.rpc.limits import Limits
from kvstore.rpc.sniff import Sniffer, TurnedAway
from kvstore.rpc.tls import TlsTransport

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from kvstore.rpc.call import Call, StreamHandler

# The second GOAWAY of a drain follows the client's answer to a ping, or this.
_GOAWAY_WAIT_S = 1.0
_SWEEP_S_MAX = 5.0
_UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class MethodStatistics:
    """What became of the calls of one method since the start."""

    path: str
    unary: bool
    started: int
    handled: dict[int, int]
    """Calls that ended, by gRPC code; OK (0) is always there."""
    started_by: dict[str, int]
    """Calls by the value of the field of `Server.tally_by`."""
    received: int
    """Messages from clients."""
    sent: int
    """Messages to clients."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a server did and holds. Totals count from its start; the rest is now."""

    connections_open: int
    connections_total: int
    connections_refused: int
    """Beyond `Limits.connections_max`."""
    connections_http1_open: int
    connections_http1_total: int
    streams_open: int
    calls_total: int
    """By the stream ids of the connections; clients number without gaps."""
    received_bytes: int
    """Of HTTP/2, after TLS."""
    sent_bytes: int
    """Of HTTP/2, before TLS."""
    unsent_bytes: int
    """Replies that wait for flow control or for slow readers."""
    refused_replies: int
    """Replies turned into RESOURCE_EXHAUSTED because `Limits.unsent_bytes_max` was reached."""
    resets_received: int
    resets_sent: int
    goaways_sent: dict[int, int]
    """By HTTP/2 error code."""
    handler_errors: int
    tls_handshakes: int
    tls_failures: int
    tls_waiting: int
    """Connections with a handshake step to do."""


class Server:
    """A gRPC server, and optionally plain HTTP beside it on the same ports.

    Register methods, then `listen` on one or more addresses. Everything runs on the loop that
    called `listen` first.

    Args:
        limits: Every bound of the server.
        http: Serves requests that are not gRPC, over HTTP/1 and HTTP/2. Without it HTTP/1 is
            refused and other content types are answered with 415.
        on_error: Called with the exception of a handler that raised; the call in question is
            answered with UNKNOWN. The default logs it.
        tally_by: Metadata field by whose value calls are counted apart (`MethodStatistics`).
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        http: HttpHandler | None = None,
        on_error: Callable[[BaseException], None] = log_error,
        tally_by: bytes = b"",
    ) -> None:
        self._limits = limits if limits is not None else Limits()
        self._http = http
        self._on_error = on_error
        self._tally_by = tally_by
        self._routes: dict[bytes, Route] = {}
        self._services: set[str] = set()
        self._engine: Engine | None = None
        self._listeners: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._draining = False

    def unary(self, path: str, handler: Callable[[Call, bytes], None]) -> None:
        """Serve a unary method: `handler(call, request)` runs once the request is whole.

        It runs on the loop, must return soon, and answers by `call.reply` or `call.fail`, then or
        later.
        `path` is `/package.Service/Method`. Register before clients come.
        """
        self._add(Route(path, handler, unary=True, tally_by=self._tally_by))

    def stream(self, path: str, handler: Callable[[Call], StreamHandler]) -> None:
        """Serve a streaming method of any kind: `handler(call)` returns its receiver."""
        self._add(Route(path, handler, unary=False, tally_by=self._tally_by))

    def _add(self, route: Route) -> None:
        service, slash, method = route.path[1:].rpartition("/")
        if not (route.path.startswith("/") and service and slash and method):
            raise ValueError(f"{route.path!r} is not /package.Service/Method")
        self._routes[route.path.encode()] = route
        self._services.add(service)

    def time_calls(self, observer: Callable[[str, bool], Callable[[float], None]]) -> None:
        """Measure every call; each then costs some microseconds more. Call it before `listen`.

        Args:
            observer: Returns, for a method's path and whether it is unary, what takes the seconds
                of each of its calls.
        """
        for route in self._routes.values():
            route.on_handled = observer(route.path, route.unary)

    async def listen(
        self,
        host: str = "",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        bound: socket.socket | None = None,
    ) -> int:
        """Accept connections on an address; returns the port (the kernel's choice for port 0).

        `tls` should offer ALPN "h2" and "http/1.1". `bound` is a socket that has its address
        already, in place of host and port. OSError: the address cannot be used.
        """
        assert not self._draining
        if self._engine is None:
            self._engine = Engine(
                self._limits, self._on_error, self._routes, self._services, self._http
            )
            if self._http is not None:
                self._engine.http1 = Http1(self._engine, self._http)
            self._schedule_sweep(self._engine)
        engine = self._engine

        def sniff() -> asyncio.Protocol:
            return Sniffer(engine)

        def accept() -> asyncio.Protocol:
            if engine.is_full:
                engine.counters.connections_refused += 1
                return TurnedAway()
            return sniff() if tls is None else TlsTransport(engine, tls, sniff)

        backlog = self._limits.backlog
        if bound is None:
            listener = await engine.loop.create_server(accept, host, port, backlog=backlog)
        else:
            listener = await engine.loop.create_server(accept, sock=bound, backlog=backlog)
        self._listeners.append(listener)
        name: Any = listener.sockets[0].getsockname()
        return int(name[1])

    async def load_http1(self) -> None:
        """Load what serves HTTP/1 now; else the first of its connections waits for that."""
        if self._engine is not None and self._engine.http1 is not None:
            await self._engine.http1.load()

    def _schedule_sweep(self, engine: Engine) -> None:
        limits = self._limits
        shortest_s = min(
            limits.keepalive_s, limits.keepalive_timeout_s, limits.unfinished_s, limits.body_s
        )
        every_s = min(shortest_s / 4, _SWEEP_S_MAX)
        self._sweep = engine.loop.call_later(every_s, self._run_sweep, engine)

    def _run_sweep(self, engine: Engine) -> None:
        now_s = engine.loop.time()
        for connection in list(engine.connections):
            connection.sweep(now_s)
        self._schedule_sweep(engine)

    async def drain(self, grace_s: float) -> None:
        """Stop listening, let running calls finish for up to `grace_s` seconds, then close.

        Clients get GOAWAY at once and move to another server. Calls that are left after the grace
        end with UNAVAILABLE. Returns when every connection is closed.
        """
        self._draining = True
        engine = self._engine
        if engine is None:
            return
        engine.draining = True
        await self._stop_listening(engine.loop)
        for opening in list(engine.opening):
            opening.abort()
        for connection in list(engine.connections):
            connection.drain()
        http1 = engine.http1
        closing_http1 = None
        if http1 is not None:
            closing_http1 = engine.loop.create_task(http1.close(grace_s))
        await engine.wait_empty(min(grace_s, _GOAWAY_WAIT_S))
        for connection in list(engine.connections):
            connection.refuse_new_streams()
        await engine.wait_empty(max(0.0, grace_s - _GOAWAY_WAIT_S))
        for connection in list(engine.connections):
            for call in list(connection.streams.values()):
                call.stop(_UNAVAILABLE, "server is shutting down")
        await engine.wait_empty(_GOAWAY_WAIT_S)
        for connection in list(engine.connections):
            connection.abort()
        await engine.wait_empty(_GOAWAY_WAIT_S)
        if closing_http1 is not None:
            await closing_http1
        if self._sweep is not None:
            self._sweep.cancel()

    async def _stop_listening(self, loop: asyncio.AbstractEventLoop) -> None:
        # A listener of asyncio's that closes fails for connections that it has accepted and not
        # handed over yet. So accept no more, let it hand over (two turns), then close.
        for listener in self._listeners:
            for bound in listener.sockets:
                loop.remove_reader(bound)
        for _ in range(2):
            await asyncio.sleep(0)
        for listener in self._listeners:
            listener.close()

    def methods(self) -> list[MethodStatistics]:
        """Return the counts of every registered method; walks the open calls."""
        engine = self._engine
        assert engine is not None, "listen first"
        open_now = Counter(
            call.path for connection in engine.connections for call in connection.streams.values()
        )
        return [_statistics(route, open_now[route.path]) for route in self._routes.values()]

    def statistics(self) -> Statistics:
        """Return the counters; cheap, but it walks the open connections."""
        engine = self._engine
        assert engine is not None, "listen first"
        counters = engine.counters
        open_now = engine.connections
        return Statistics(
            connections_open=len(open_now),
            connections_total=counters.connections,
            connections_refused=counters.connections_refused,
            connections_http1_open=engine.http1.open_count if engine.http1 is not None else 0,
            connections_http1_total=counters.connections_http1,
            streams_open=sum(len(connection.streams) for connection in open_now),
            calls_total=counters.calls_closed
            + sum(connection.calls_started for connection in open_now),
            received_bytes=counters.received_bytes,
            sent_bytes=counters.sent_bytes,
            unsent_bytes=counters.unsent_bytes,
            refused_replies=counters.refused_replies,
            resets_received=counters.resets_received,
            resets_sent=counters.resets_sent,
            goaways_sent=dict(counters.goaways_sent),
            handler_errors=counters.handler_errors,
            tls_handshakes=counters.tls_handshakes,
            tls_failures=counters.tls_failures,
            tls_waiting=len(engine.handshakes),
        )


def _statistics(route: Route, open_now: int) -> MethodStatistics:
    started_by = {name: tally.started for name, tally in route.tallies.items()}
    started = sum(started_by.values())
    ended_ok = started - open_now - sum(route.failed.values())
    return MethodStatistics(
        route.path,
        route.unary,
        started,
        {0: ended_ok, **route.failed},
        started_by,
        received=started if route.unary else route.received,
        sent=ended_ok if route.unary else route.sent,
    )
