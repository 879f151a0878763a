"""TLS between a socket and the protocol above it; nothing of HTTP.

Why not the loop's own TLS: asyncio's takes a 256 KiB buffer per connection (16 KiB to 64 KiB is our
bound), and neither loop lets a server say how many handshakes one turn may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvstore.rpc.engine import Engine

_READ_BYTES = 65536


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Protocol of the socket's transport and transport of the protocol above, in one object."""

    # asyncio.Transport has slots; so have we, an idle connection costs little.
    __slots__ = (
        "_certificate",
        "_closing",
        "_context",
        "_engine",
        "_established",
        "_incoming",
        "_lower",
        "_make_protocol",
        "_object",
        "_outgoing",
        "_paused",
        "_protocol",
        "_timer",
        "_unwritten",
    )

    _lower: asyncio.Transport
    _protocol: asyncio.Protocol
    _timer: asyncio.TimerHandle

    def __init__(
        self,
        engine: Engine,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        super().__init__()
        self._engine = engine
        self._context = context
        self._make_protocol = make_protocol
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._established = False
        self._closing = False
        self._paused = False
        self._unwritten = b""
        self._certificate: Any = None

    # The protocol of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client's hello, not for ever."""
        engine = self._engine
        self._lower = cast("asyncio.Transport", transport)
        self._timer = engine.loop.call_later(engine.limits.handshake_timeout_s, self._expire)
        engine.opening.add(self)
        if engine.draining:
            self.abort()  # accepted by the kernel before we stopped listening

    def data_received(self, data: bytes) -> None:
        """Take encrypted bytes."""
        if self._closing:
            return
        self._incoming.write(data)
        if self._established:
            self._read()
        else:
            # Handshakes wait for their turn; meanwhile nothing piles up here.
            self._lower.pause_reading()
            self._engine.queue_handshake(self)

    def eof_received(self) -> bool | None:
        """Close: half-open TLS connections do not exist."""
        if self._established and not self._closing:
            self._protocol.eof_received()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol above, if there is one already."""
        self._closing = True
        self._timer.cancel()
        self._engine.opening.discard(self)
        if self._established:
            self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket does not keep up."""
        if self._established:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        if self._established:
            self._protocol.resume_writing()

    # Handshake

    def handshake(self) -> None:
        """Do one step; the engine calls this when it is this connection's turn."""
        if self._closing or self._established:
            return
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            self._lower.resume_reading()
            return
        except ssl.SSLError:
            self._engine.counters.tls_failures += 1
            self._flush()  # the alert says why
            self._closing = True
            self._lower.close()
            return
        self._flush()
        self._engine.counters.tls_handshakes += 1
        self._timer.cancel()
        self._engine.opening.discard(self)
        self._established = True
        self._lower.resume_reading()
        self._protocol = self._make_protocol()
        self._protocol.connection_made(self)
        self._read()  # the first request often comes with the client's last handshake message

    def _expire(self) -> None:
        self._engine.counters.tls_failures += 1
        self._lower.abort()

    # Data

    def _read(self) -> None:
        if self._unwritten:
            unwritten, self._unwritten = self._unwritten, b""
            self.write(unwritten)
        ended = False
        parts = []
        try:
            while not self._paused:
                part = self._object.read(_READ_BYTES)  # one TLS record
                if not part:
                    ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError:
            self._lower.abort()
            return
        self._flush()  # TLS 1.3 key updates are answered by reading
        if parts:
            # All records of a chunk in one go, as a plain connection would get them.
            self._protocol.data_received(b"".join(parts))
        if ended and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())

    # The transport of the protocol above

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypt and send."""
        if self._closing or not data:
            return
        if self._unwritten:
            self._unwritten += data
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self._object.write(view) :]
        except ssl.SSLWantReadError:
            self._unwritten = bytes(view)  # TLS 1.2 renegotiation; `_read` goes on
        except ssl.SSLError:
            self._lower.abort()
            return
        self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """Encrypt and send the parts."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """Send what is waiting and close_notify; what the client still sends is dropped unread."""
        if self._closing:
            return
        self._say_goodbye()
        self._lower.write_eof()
        if self._paused:
            self._lower.resume_reading()

    def can_write_eof(self) -> bool:
        """Return True: each side closes its own direction (RFC 8446 6.1)."""
        return True

    def close(self) -> None:
        """Send what is waiting and close_notify, then close the socket."""
        if self._closing:
            return
        self._say_goodbye()
        self._lower.close()

    def _say_goodbye(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # it wants the client's close_notify as well
            self._object.unwrap()
        self._flush()
        self._closing = True

    def abort(self) -> None:
        """Drop the connection at once."""
        self._closing = True
        self._lower.abort()

    def is_closing(self) -> bool:
        """Tell whether `close` or `abort` was called, or the connection is lost."""
        return self._closing or self._lower.is_closing()

    def pause_reading(self) -> None:
        """Deliver no more data for now."""
        self._paused = True
        self._lower.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, first what was read already."""
        if self._paused and not self.is_closing():
            self._paused = False
            self._lower.resume_reading()
            self._engine.loop.call_soon(self._read_again)

    def _read_again(self) -> None:
        if not self.is_closing():
            self._read()

    def is_reading(self) -> bool:
        """Tell whether data is delivered."""
        return not self._paused and not self.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Deliver to another protocol from now on."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol above."""
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks of `pause_writing` and `resume_writing`, in encrypted bytes."""
        self._lower.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the encrypted bytes that the socket has not taken."""
        return self._lower.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known: of TLS `peercert`, `alpn`, `cipher`, `ssl_object`, `sslcontext`."""
        if name == "peercert":
            if self._certificate is None:
                self._certificate = self._object.getpeercert() or {}
            return self._certificate
        if name == "alpn":
            return self._object.selected_alpn_protocol()
        if name == "cipher":
            return self._object.cipher()
        if name == "ssl_object":
            return self._object
        if name == "sslcontext":
            return self._context
        return self._lower.get_extra_info(name, default)
