"""A stream inside a session, in the form of a channel's: watches and keepalives cannot tell."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from kvstore.client.status import CANCELLED, EOF, INTERNAL, CallError
from kvstore.pb import session_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from kvstore.client.session import Session

_WINDOW_BYTES = 1 << 20
# What the server may send ahead of a reader. A slow reader holds up its own stream only.


class SessionStream:
    """Made by `Session.open_stream`. `write`, `read` and `cancel` are those of `channel.Stream`."""

    window_bytes = _WINDOW_BYTES

    def __init__(self, session: Session, stream_id: int, response: type[Message]) -> None:
        self.id = stream_id
        self._session = session
        self._response = response
        self._messages: deque[bytes] = deque()
        self._read_bytes = 0
        self._status: tuple[int, str] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_end: Callable[[], None] | None = None

    async def write(self, message: Message) -> None:
        """Send a message; AioRpcError when the stream has ended."""
        if self._status is not None:
            raise self._error()
        self._session.queue_item((session_pb2.MESSAGE, self.id, message.SerializeToString()))

    async def done_writing(self) -> None:
        """Send nothing more."""
        if self._status is None:
            self._session.queue_item((session_pb2.HALF_CLOSE, self.id))

    async def read(self) -> Any:
        """Return the next message; EOF after the last, or CallError."""
        while not self._messages:
            if self._status is not None:
                if self._status[0] == 0:
                    return EOF
                raise self._error()
            assert self._waiter is None, "one reader at a time"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._messages.popleft()
        self._read_bytes += len(data)
        if self._read_bytes >= _WINDOW_BYTES // 2 and self._status is None:
            self._session.push_credit(self.id, self._read_bytes)
            self._read_bytes = 0
        try:
            return self._response.FromString(data)
        except DecodeError as error:  # as over gRPC
            self._messages.clear()
            self.cancel()
            code = INTERNAL
            self._status = (code, f"the server sent no {self._response.__name__}: {error}")
            raise self._error() from error

    def on_end(self, call: Callable[[], None]) -> None:
        """Have its end told, once, also to who does not read."""
        self._on_end = call
        if self._status is not None:
            asyncio.get_running_loop().call_soon(call)

    def cancel(self) -> None:
        """End the stream from this side."""
        if self._status is None:
            self._on_end = None
            self.end(CANCELLED, "cancelled by the client")
            self._session.drop_stream(self.id)

    # the session's side

    def take(self, data: bytes) -> None:
        """Queue a message for the reader."""
        self._messages.append(data)
        self._tell()

    def end(self, code: int, text: str) -> None:
        """Take the status; what was received before is still read."""
        if self._status is None:
            self._status = (code, text)
            self._tell()
            if self._on_end is not None:
                self._on_end()

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _error(self) -> CallError:
        assert self._status is not None
        return CallError(*self._status)
