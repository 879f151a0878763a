"""Messages to and from one method of a gRPC server, on one stream of an HTTP/2 connection.

As gRPC over HTTP/2 has it: message heads, status in trailers, cancellation, room for what comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from kvstore.client.status import (
    CANCELLED,
    INTERNAL,
    OK,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
)
from kvstore.http2 import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client.http2 import Connection
    from kvstore.http2.hpack import Field

# gRPC over HTTP/2: what a status other than 200 means, and what a reset does.
_OF_HTTP = {
    b"400": INTERNAL, b"401": UNAUTHENTICATED, b"403": PERMISSION_DENIED, b"404": UNIMPLEMENTED,
    b"429": UNAVAILABLE, b"502": UNAVAILABLE, b"503": UNAVAILABLE, b"504": UNAVAILABLE,
}  # fmt: skip
_OF_RESET = {
    frames.REFUSED_STREAM: UNAVAILABLE,
    frames.CANCEL: CANCELLED,
    frames.ENHANCE_YOUR_CALM: RESOURCE_EXHAUSTED,
}

WINDOW: Final = 1 << 20
"""Bytes that a server may send on one exchange before they are read."""


class Exchange:
    """Messages to and from one method of the server.

    Ends with `status`; what came before it can still be read.
    """

    __slots__ = (
        "_connection",
        "_half",
        "_is_closed",
        "_needed",
        "_owed",
        "_partial",
        "_readers",
        "_unread",
        "_unsent",
        "_writers",
        "id",
        "is_cancelled",
        "messages",
        "on_over",
        "send_window",
        "status",
    )

    def __init__(self, connection: Connection, number: int, send_window: int) -> None:
        self._connection = connection
        self.id = number
        self.send_window = send_window
        self.messages: deque[bytes] = deque()
        self.status: tuple[int, str] | None = None
        """Code and text; None while it goes on."""
        self.is_cancelled = False
        """By us."""
        self._partial = bytearray()
        self._needed = 0
        """Bytes of `_partial` that make a message, as far as is known."""
        self._owed = 0
        """Bytes that came, and that the server has not been given room for again."""
        self._unread = 0
        """Bytes of whole messages that nobody has read."""
        self._unsent: deque[tuple[memoryview, bool]] = deque()
        self._is_closed = False
        """We send no more."""
        self._half: tuple[int, str] | None = None
        """A status that the response's head alone told of (no gRPC server)."""
        self._readers: list[asyncio.Future[None]] = []
        self._writers: list[asyncio.Future[None]] = []
        self.on_over: Callable[[], None] | None = None
        """Called when something else than `cancel` has ended it."""

    # what a call does

    def send(self, message: bytes, *, end: bool = False) -> None:
        """Send a message when there is room for it."""
        self._push(frames.pack_message_head(0, len(message)) + message, end)

    def end(self) -> None:
        """Send no more messages."""
        if not self._is_closed and self.status is None:
            self._push(b"", True)

    async def sent(self) -> None:
        """Wait until all that was sent has left this process, or the exchange is over."""
        while self.status is None and (self._unsent or self._connection.is_paused):
            await self._wait(self._writers)

    async def arrived(self) -> None:
        """Wait until there is a message, or a status."""
        while not self.messages and self.status is None:
            await self._wait(self._readers)

    async def ended(self) -> None:
        """Wait until it is over."""
        while self.status is None:
            await self._wait(self._readers)

    def take(self) -> bytes:
        """Return the next message, of which there is one."""
        message = self.messages.popleft()
        self._unread -= len(message)
        if self.status is None:
            self._give_room()
        return message

    def cancel(self) -> None:
        """End it from here. Who waits for it is cancelled, as by gRPC's own library."""
        if self.status is not None:
            return
        self.is_cancelled = True
        self.refuse(CANCELLED, "cancelled by the client")
        for waiter in (*self._readers, *self._writers):
            waiter.cancel()

    # what the connection tells

    def over(self, code: int, text: str) -> None:
        """Take the status that ends it."""
        if self.status is not None:
            return
        self.status = code, text
        self._unsent.clear()
        self._partial.clear()
        self._connection.forget(self)
        if not self.is_cancelled:
            self._wake(self._readers)
            self.wake_writers()
            if self.on_over is not None:
                self.on_over()

    def refuse(self, code: int, text: str, reset_code: int = frames.CANCEL) -> None:
        """End it for what the server did, and tell the server."""
        self._connection.reset(self, reset_code)
        self.over(code, text)

    def headers(self, fields: list[Field], *, end_stream: bool) -> None:
        """Take the head of the response, or its end."""
        found = dict(fields)
        status = found.get(b":status")
        if status is not None and status[:1] == b"1":
            return  # an interim response
        code = found.get(b"grpc-status")
        if code is not None and end_stream:
            text = unquote_to_bytes(found.get(b"grpc-message", b"")).decode(errors="replace")
            self._finish(int(code) if code.isdigit() else UNKNOWN, text)
        elif status is not None and status != b"200":
            text = f"the server answered with HTTP status {status.decode(errors='replace')}"
            self._half = _OF_HTTP.get(status, UNKNOWN), text
        elif status is not None and not found.get(b"content-type", b"").startswith(
            b"application/grpc"
        ):
            self._half = UNKNOWN, "the server does not speak gRPC"
        if end_stream and self.status is None:
            self._end_untold()

    def data(self, data: bytes, flow: int, *, end_stream: bool) -> None:
        """Take a piece of messages; `flow`: what it counts for in the window."""
        self._owed += flow
        if self._half is None:
            if not self._partial:
                self._split(data)
            else:
                self._partial += data
                # Only when a message is whole: to look at every piece would copy a large one as
                # often as it has pieces.
                if len(self._partial) >= self._needed:
                    data = bytes(self._partial)
                    self._partial.clear()
                    self._split(data)
        if end_stream:
            self._end_untold()
        elif self.status is None:
            self._give_room()

    def reset(self, code: int) -> None:
        """Take the server's RST_STREAM."""
        # Bounds and overload are told so, too; what was refused has had no effect.
        self.over(
            _OF_RESET.get(code, INTERNAL), f"the server reset the call with HTTP/2 error {code}"
        )

    def flush(self) -> None:
        """Send what now has room."""
        while self._unsent:
            piece, end = self._unsent[0]
            room = self._connection.room(self)
            if len(piece) > room:
                if room > 0:
                    self._connection.send_data(self, piece[:room], end=False)
                    self._unsent[0] = piece[room:], end
                    continue
                return
            self._unsent.popleft()
            self._connection.send_data(self, piece, end=end)
        self.wake_writers()

    @property
    def is_blocked(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unsent)

    def wake_writers(self) -> None:
        """Have those look again who wait for room."""
        self._wake(self._writers)

    # inside

    def _push(self, data: bytes, end: bool) -> None:
        if self._is_closed or self.status is not None:
            return
        self._is_closed = end
        if not self._unsent and len(data) <= self._connection.room(self):
            self._connection.send_data(self, data, end=end)
            return
        self._unsent.append((memoryview(data), end))
        self.flush()

    def _split(self, data: bytes) -> None:
        start, stop = 0, len(data)
        self._needed = 5
        while stop - start >= 5:
            flag, length = frames.unpack_message_head(data, start)
            if flag:
                self.refuse(INTERNAL, "the server compressed a message, which was not offered")
                return
            if stop - start - 5 < length:
                self._needed = 5 + length
                break
            self.messages.append(data[start + 5 : start + 5 + length])
            self._unread += length
            start += 5 + length
        if start < stop:
            self._partial += data[start:]
        if start and self._readers:
            self._wake(self._readers)

    def _end_untold(self) -> None:
        self._finish(*(self._half or (INTERNAL, "the server ended the call without a status")))

    def _finish(self, code: int, text: str) -> None:
        if not self._is_closed:
            # The server wants no more of us; it may have no more use for the stream, but we have
            # left it half open.
            self._connection.reset(self, frames.NO_ERROR)
        if code == OK and self._partial:
            code, text = INTERNAL, "the server ended the call inside a message"
        self.over(code, text)

    def _give_room(self) -> None:
        if self._owed >= WINDOW // 2 and self._unread < WINDOW // 2:
            self._connection.write(frames.window_update(self.id, self._owed))
            self._owed = 0

    async def _wait(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter = self._connection.loop.create_future()
        waiters.append(waiter)
        await waiter

    @staticmethod
    def _wake(waiters: list[asyncio.Future[None]]) -> None:
        woken = list(waiters)
        waiters.clear()
        for waiter in woken:
            if not waiter.done():
                waiter.set_result(None)
