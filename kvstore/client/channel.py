"""gRPC calls to one server.

grpc.aio hands every event from one of its threads to the next until it is on the loop: a fifth of
what an agent does for one. Here everything happens on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from kvstore.client.endpoint import Endpoint, Secure
from kvstore.client.exchange import Exchange
from kvstore.client.http2 import CUT_OFF, Connection
from kvstore.client.names import Name
from kvstore.client.status import (
    DEADLINE_EXCEEDED,
    EOF,
    INTERNAL,
    OK,
    UNAVAILABLE,
    CallError,
    ChannelClosedError,
)
from kvstore.http2.hpack import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

CONNECT_TIMEOUT_S = 5.0
_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 1.0
"""After an attempt to connect that failed the next one waits so long; calls then fail at once."""

_TIMEOUT_DIGITS = 8
_USER_AGENT = b"kvstore-python"


def _explained(error: OSError, *, secure: bool) -> str:
    """Say why there is no connection, and what helps where one end speaks TLS and one does not."""
    # asyncio has no words for a server that hangs up, as one without TLS does.
    text = str(error) or "the server hung up"
    if not secure:
        hint = ": does it want TLS? then write https:// before its address"
        return text + hint if text.startswith(CUT_OFF) else text
    if "CERTIFICATE" in text or "UNKNOWN_CA" in text:  # OpenSSL's words for what the server said
        return f"{text}: it wants a client certificate and its key, of an authority that it knows"
    if isinstance(error, ConnectionResetError) or "WRONG_VERSION_NUMBER" in text:
        return f"{text}: is it without TLS? then write http:// before its address"
    return text


class Channel:
    """Connects at the first call, and again when the connection is lost or the server leaves."""

    def __init__(self, endpoint: Endpoint, secure: Secure | None) -> None:
        """Prepare; `secure` is for a secure endpoint, and else is not looked at."""
        host, _, port = endpoint.target.rpartition(":")
        self._name, self._port = Name(host.strip("[]")), int(port)
        secure = secure if endpoint.secure else None
        self._ssl = None if secure is None else secure.context
        named = None if secure is None else secure.server_name
        self._server_name = None if secure is None else named or host.strip("[]")
        self._authority = (named or endpoint.target).encode()
        self._heads: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}
        self._connection: Connection | None = None
        self._leaving: set[Connection] = set()
        """They take no new calls, and have some yet."""
        self._connecting: asyncio.Task[Connection] | None = None
        self._failure = ""
        self._failures = 0
        self._next_try_s = 0.0
        self._is_closed = False

    # connections

    async def connect(self) -> None:
        """Wait until a connection stands. Raises ConnectionError when it cannot be had."""
        await self._connected()

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None:
            return connection
        if self._is_closed:
            raise ChannelClosedError("the channel is closed")
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            if loop.time() < self._next_try_s:
                raise ConnectionError(self._failure)
            self._connecting = loop.create_task(self._connect())
            self._connecting.add_done_callback(self._attempted)
        # Shared: one caller that gives up must not end it for the others.
        return await asyncio.shield(self._connecting)

    def _attempted(self, connecting: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if connecting.cancelled() or connecting.exception() is None:
            return
        self._failure = str(connecting.exception())
        pause_s = min(_PAUSE_FIRST_S * 2.0**self._failures, _PAUSE_MAX_S)
        self._failures += 1
        self._next_try_s = asyncio.get_running_loop().time() + pause_s

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                made = await self._reach(await self._name.addresses())
                with contextlib.ExitStack() as otherwise:
                    otherwise.callback(made.abort)
                    await made.ready
                    otherwise.pop_all()
        except TimeoutError:
            what = "its name was not found" if self._name.is_asking else "no answer"
            raise ConnectionError(f"{what} within {CONNECT_TIMEOUT_S:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise ConnectionError(
                f"its certificate is not accepted ({error.verify_message}): does it serve the name"
                " of this endpoint, and is the file of the right authority given?"
            ) from error
        except OSError as error:
            raise ConnectionError(_explained(error, secure=self._ssl is not None)) from error
        self._failures = 0
        if not made.is_leaving:
            self._connection = made
        return made

    async def _reach(self, addresses: list[str]) -> Connection:
        """Connect to the first address that takes it. Raises OSError."""
        failures: list[OSError] = []
        for address in addresses:
            try:
                _, made = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._left),
                    address,
                    self._port,
                    ssl=self._ssl,
                    server_hostname=self._server_name,
                )
            except ssl.SSLError:
                raise  # it answered
            except OSError as error:
                failures.append(error)
            else:
                return made
        if len(failures) == 1:
            raise failures[0]
        raise OSError("; ".join(dict.fromkeys(map(str, failures))))

    def _left(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
        if connection.is_lost:
            self._leaving.discard(connection)
        else:
            self._leaving.add(connection)

    def lose_address(self, address: str) -> int:
        """Give up the connections that come from there; return how many."""
        lost = [one for one in self._open_ones() if one.local_address == address]
        for connection in lost:
            connection.abort(f"this host lost the address {address}")
        return len(lost)

    def _open_ones(self) -> list[Connection]:
        return [*self._leaving, *filter(None, [self._connection])]

    async def close(self) -> None:
        """Close all connections; calls under way are cancelled."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        open_ = self._open_ones()
        for connection in open_:
            connection.close()
        if open_:
            await asyncio.wait([connection.closed for connection in open_], timeout=1.0)
        for connection in open_:
            connection.abort()

    # calls

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return what makes a call of one message each way."""

        async def call(
            request: Any,
            *,
            timeout_s: float | None = None,
            metadata: Any = (),
        ) -> Any:
            payload = request_serializer(request)
            exchange: Exchange | None = None
            try:
                async with asyncio.timeout(timeout_s):
                    exchange = await self._open(path, metadata, timeout_s)
                    exchange.send(payload, end=True)
                    await exchange.ended()
            except TimeoutError:
                raise CallError(DEADLINE_EXCEEDED, "Deadline Exceeded") from None
            finally:
                if exchange is not None:
                    exchange.cancel()
            assert exchange.status is not None
            code, text = exchange.status
            if code != OK:
                raise CallError(code, text)
            if not exchange.messages:
                raise CallError(INTERNAL, "the server ended the call without an answer")
            return response_deserializer(exchange.take())

        return call

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Stream]:
        """Return what opens a stream: `call(metadata)`."""

        def call(metadata: Any = ()) -> Stream:
            return Stream(self._opened(path, metadata), request_serializer, response_deserializer)

        return call

    def _opened(self, path: str, metadata: Any) -> Exchange | Coroutine[Any, Any, Exchange]:
        """Open a stream at once where that is possible."""
        connection = self._connection
        if connection is not None and connection.has_slot:
            return connection.open(self._head(path, metadata))
        return self._open(path, metadata, None)

    async def _open(self, path: str, metadata: Any, timeout_s: float | None) -> Exchange:
        while True:
            try:
                connection = await self._connected()
            except ConnectionError as error:
                # gRPC's words: nothing was sent.
                text = f"failed to connect to all addresses; last error: {error}"
                raise CallError(UNAVAILABLE, text) from error
            await connection.slot()
            if not connection.is_leaving:
                break
        head = self._head(path, metadata)
        if timeout_s is not None:
            head += encode([(b"grpc-timeout", _timeout(timeout_s))])
        return connection.open(head)

    def _head(self, path: str, metadata: Iterable[tuple[str, str]] | None) -> bytes:
        pairs = tuple(metadata or ())
        head = self._heads.get((path, pairs))
        if head is None:
            fields = [
                (b":method", b"POST"),
                (b":scheme", b"https" if self._ssl is not None else b"http"),
                (b":path", path.encode()),
                (b":authority", self._authority),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", _USER_AGENT),
                *((name.encode(), value.encode()) for name, value in pairs),
            ]
            if len(self._heads) >= 256:  # tokens change
                self._heads.clear()
            head = self._heads[path, pairs] = encode(fields)
        return head


class Stream:
    """Messages both ways, until the server ends it with a status or `cancel` is called."""

    def __init__(
        self,
        opened: Exchange | Coroutine[Any, Any, Exchange],
        serialize: Callable[[Any], bytes],
        parse: Callable[[bytes], Any],
    ) -> None:
        self._serialize, self._parse = serialize, parse
        self._exchange: Exchange | None = None
        self._opening: asyncio.Task[Exchange] | None = None
        if isinstance(opened, Exchange):
            self._exchange = opened
        else:
            self._opening = asyncio.get_running_loop().create_task(opened)
            self._opening.add_done_callback(self._is_open)

    def _is_open(self, opening: asyncio.Task[Exchange]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._exchange = opening.result()

    async def _ready(self) -> Exchange:
        if self._exchange is not None:
            return self._exchange
        assert self._opening is not None
        return await asyncio.shield(self._opening)

    async def read(self) -> Any:
        """Return the next message; EOF after the last. Raises CallError."""
        exchange = self._exchange or await self._ready()
        if not exchange.messages:
            await exchange.arrived()
            if not exchange.messages:
                assert exchange.status is not None
                if exchange.is_cancelled:
                    raise asyncio.CancelledError
                if exchange.status[0] == OK:
                    return EOF
                raise CallError(*exchange.status)
        return self._parse(exchange.take())

    async def write(self, message: Any) -> None:
        """Send a message, and wait until there is room for the next. Raises CallError."""
        exchange = self._exchange or await self._ready()
        if exchange.status is None:
            exchange.send(self._serialize(message))
            await exchange.sent()
        if exchange.status is not None:
            if exchange.is_cancelled:
                raise asyncio.CancelledError
            if exchange.status[0] == OK:
                raise asyncio.InvalidStateError("the server has ended the stream")
            raise CallError(*exchange.status)

    async def done_writing(self) -> None:
        """Say that no more messages come from here."""
        exchange = self._exchange or await self._ready()
        exchange.end()
        await exchange.sent()

    def on_end(self, call: Callable[[], None]) -> None:
        """Have the server's end of it told, once, also to who does not read. It must be open."""
        exchange = self._exchange
        assert exchange is not None
        exchange.on_over = call
        if exchange.status is not None:
            asyncio.get_running_loop().call_soon(call)

    def cancel(self) -> bool:
        """End it; who reads or writes is cancelled. False: it was over already."""
        if self._opening is not None and not self._opening.done():
            return self._opening.cancel()
        if self._exchange is None or self._exchange.status is not None:
            return False
        self._exchange.cancel()
        return True


def _timeout(seconds: float) -> bytes:
    for unit, per_s in ((b"u", 1e6), (b"m", 1e3), (b"S", 1.0)):
        value = max(int(seconds * per_s), 1)
        if value < 10**_TIMEOUT_DIGITS:
            return b"%d%b" % (value, unit)
    return b"9" * _TIMEOUT_DIGITS + b"S"
