"""The connection to one endpoint: its channel, its calls, its session; no rule of retrying."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from kvstore.client.channel import Channel
from kvstore.client.endpoint import Endpoint, Secure
from kvstore.client.errors import ClosedError, UnreachableError, UnsupportedError
from kvstore.client.methods import Method
from kvstore.client.session import Session, open_session
from kvstore.client.status import ChannelClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Link:
    """The channel to one endpoint; opened at first use."""

    def __init__(
        self, endpoint: Endpoint, secure: Secure | None, on_leave: Callable[[Link], None]
    ) -> None:
        self.endpoint = endpoint
        self._on_leave = on_leave
        self.is_ready = False
        """A connection was there when last looked; False makes the next call wait for one."""
        self._secure = secure
        self._channel: Channel | None = None
        self._stubs: dict[str, Any] = {}
        self._connecting: asyncio.Task[None] | None = None
        self.session: Session | None = None
        """Takes operations now; None when there is none, or not yet."""
        self.is_without_sessions = False
        """The server has said that it offers none; asked again after the next connect."""
        self._opening: asyncio.Task[Session] | None = None

    def channel(self) -> Channel:
        """Return the channel, making it on the running loop at first use."""
        if self._channel is None:
            self._channel = Channel(self.endpoint, self._secure)
        return self._channel

    def unary(self, method: Method[Request, Response]) -> Any:
        """Return the callable for a unary method."""
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._stubs[method.path] = self.channel().unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return stub

    def stream(self, method: Method[Request, Response], metadata: Any) -> Any:
        """Open a bidirectional stream."""
        return self.channel().stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(metadata=metadata)

    async def connect(self, timeout_s: float) -> None:
        """Wait until a connection stands. Raises UnreachableError; then nothing was sent."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
            # Its outcome counts even when every caller has given up waiting for it.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shared by all callers: one of them giving up must not cancel it for the others. And ours:
        # who is woken before us may have begun the next already.
        connecting = self._connecting
        done, _ = await asyncio.wait({connecting}, timeout=timeout_s)
        if not done:
            raise UnreachableError(
                f"{self.endpoint.target}: no connection within {timeout_s:.3g} s"
            )
        if connecting.cancelled():
            raise ClosedError("the client is closed")
        connecting.result()

    async def _connect(self) -> None:
        try:
            await self.channel().connect()
        except ConnectionError as error:
            raise UnreachableError(f"{self.endpoint.target}: no connection: {error}") from error
        except ChannelClosedError as error:
            raise ClosedError("the client is closed") from error
        self.is_ready = True
        self.is_without_sessions = False

    async def open_session(self, metadata: Any, timeout_s: float) -> Session:
        """Open the session, unless it stands; nothing of any operation is sent before it does.

        Raises UnreachableError, or UnsupportedError when the server offers none.
        """
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(
                open_session(self.endpoint.target, self.channel(), metadata, self._session_ended)
            )
            self._opening.add_done_callback(self._session_opened)
        opening = self._opening
        # Shared by all callers, as the connection.
        done, _ = await asyncio.wait({opening}, timeout=timeout_s)
        if not done:
            raise UnreachableError(f"{self.endpoint.target}: no session within {timeout_s:.3g} s")
        if opening.cancelled():
            raise ClosedError("the client is closed")
        return opening.result()

    def _session_opened(self, opening: asyncio.Task[Session]) -> None:
        if opening.cancelled():
            return
        error = opening.exception()
        if error is None:
            session = opening.result()
            # It may have ended, and said so, before this callback had its turn. Kept, it would
            # stand in the way of every later one, and calls on it would wait for their deadline.
            if not (session.is_over or session.is_leaving):
                self.session = session
        elif isinstance(error, UnsupportedError):
            self.is_without_sessions = True

    def _session_ended(self, session: Session) -> None:
        if self.session is session:
            self.session = None
            self.is_ready = False
            if session.is_leaving:
                self._on_leave(self)

    def lose_address(self, address: str) -> int:
        """As `Channel.lose_address`."""
        return 0 if self._channel is None else self._channel.lose_address(address)

    async def close(self) -> None:
        """Close the channel; calls under way fail."""
        for task in (self._connecting, self._opening):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})
        if self.session is not None:
            await self.session.close()
        if self._channel is not None:
            await self._channel.close()
