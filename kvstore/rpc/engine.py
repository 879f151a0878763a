"""What all connections of one server share: routes, bounds, the write turn, deadlines, counters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.rpc.call import Call
    from kvstore.rpc.connection import Connection
    from kvstore.rpc.head import Route
    from kvstore.rpc.http1 import Http1
    from kvstore.rpc.limits import Limits
    from kvstore.rpc.outbound import Outbound
    from kvstore.rpc.plain import HttpRequest, HttpResponse
    from kvstore.rpc.sniff import Sniffer
    from kvstore.rpc.tls import TlsTransport

HttpHandler = Callable[["HttpRequest"], Awaitable["HttpResponse"]]

logger = logging.getLogger("kvstore.rpc")

# Deadlines share a timer per slot: a call that ends in time costs a dict insertion and removal,
# not a timer of its own. A slot's timer stays when its calls are gone, so slots must be few,
# whatever timeouts clients choose: a slot is 10 ms wide, or for longer timeouts 1/512 to 1/256 of
# them. So late may a deadline fire, and each doubling of the timeout has at most 512 slots.
_SLOTS_PER_S = 100
_WIDTH_BITS = 9


def log_error(error: BaseException) -> None:
    """Log the exception of a handler: the default `on_error`."""
    logger.error("a handler failed", exc_info=error)


@dataclass(slots=True)
class Counters:
    """Totals since the server started; plain numbers."""

    connections: int = 0
    connections_http1: int = 0
    connections_refused: int = 0
    calls_closed: int = 0  # of connections that are gone; the living are summed when asked
    handler_errors: int = 0
    resets_received: int = 0
    resets_sent: int = 0
    goaways_sent: dict[int, int] = field(default_factory=dict)
    received_bytes: int = 0
    sent_bytes: int = 0
    tls_handshakes: int = 0
    tls_failures: int = 0
    receiving_bytes: int = 0  # a gauge: of incomplete requests
    unsent_bytes: int = 0  # a gauge: memory of what is queued behind windows or a slow reader
    refused_replies: int = 0


class Deadlines:
    """Cancels calls whose time is over, a slot of time at once."""

    __slots__ = ("_loop", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, dict[Call, None]] = {}

    def add(self, call: Call, timeout_s: float) -> dict[Call, None]:
        """Expire `call` in `timeout_s`; delete it from the result to take it out."""
        deadline_s = call.deadline_s = self._loop.time() + timeout_s
        number = math.ceil(deadline_s * _SLOTS_PER_S)
        extra_bits = int(timeout_s * _SLOTS_PER_S).bit_length() - _WIDTH_BITS
        if extra_bits > 0:
            number = -(-number >> extra_bits) << extra_bits  # rounded up
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            self._loop.call_at(number / _SLOTS_PER_S, self._expire, number)
        slot[call] = None
        return slot

    def _expire(self, number: int) -> None:
        slot = self._slots.pop(number)
        while slot:
            call = next(iter(slot))
            del slot[call]
            call.expire()


class Engine:
    """The shared half of a server; connections hold it, it knows them."""

    def __init__(
        self,
        limits: Limits,
        on_error: Callable[[BaseException], None],
        routes: dict[bytes, Route],
        services: set[str],
        http: HttpHandler | None,
    ) -> None:
        self.limits = limits
        self.http = http
        self.on_error = on_error
        self.loop = asyncio.get_running_loop()
        self.routes = routes
        self.services = services
        self.deadlines = Deadlines(self.loop)
        self.counters = Counters()
        self.connections: set[Connection] = set()
        self.opening: set[Sniffer | TlsTransport] = set()
        """Connections whose protocol is not known yet."""
        self.handshakes: deque[TlsTransport] = deque()
        """TLS connections with a handshake step to do."""
        self.http1: Http1 | None = None
        self.draining = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._empty: asyncio.Event | None = None
        self._dirty: list[Outbound] = []

    def mark_dirty(self, connection: Outbound) -> None:
        """Let `connection.flush` run at the end of this loop turn, once for all connections."""
        if not self._dirty:
            self.loop.call_soon(self._flush)
        self._dirty.append(connection)

    def _flush(self) -> None:
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            try:
                connection.flush()
            except Exception as error:  # noqa: BLE001  # one connection's bug is not the others'
                self.report(error)
                connection.abort()

    def queue_handshake(self, transport: TlsTransport) -> None:
        """Let `transport.handshake` run when it is its turn: a few in each turn of the loop."""
        if not self.handshakes:
            self.loop.call_soon(self._run_handshakes)
        self.handshakes.append(transport)

    def _run_handshakes(self) -> None:
        handshakes = self.handshakes
        for _ in range(min(len(handshakes), self.limits.handshakes_per_turn)):
            transport = handshakes[0]
            try:
                transport.handshake()
            except Exception as error:  # noqa: BLE001  # one connection's bug is not the others'
                self.report(error)
                transport.abort()
            handshakes.popleft()
        if handshakes:
            self.loop.call_soon(self._run_handshakes)

    def forget(self, connection: Connection) -> None:
        """Take out a connection that is lost."""
        self.connections.discard(connection)
        if self._empty is not None and not self.connections:
            self._empty.set()

    async def wait_empty(self, timeout_s: float) -> None:
        """Wait until no HTTP/2 connection is left, or the time is over."""
        if not self.connections:
            return
        self._empty = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)

    @property
    def is_full(self) -> bool:
        """No connection may come in beside those that are open."""
        bound = self.limits.connections_max
        if not bound:
            return False
        http1 = self.http1.open_count if self.http1 is not None else 0
        return len(self.connections) + len(self.opening) + http1 >= bound

    def report(self, error: BaseException) -> None:
        """Hand a handler's exception to `on_error`; a bug in that hook is logged."""
        self.counters.handler_errors += 1
        try:
            self.on_error(error)
        except Exception:
            logger.exception("the on_error hook failed")
