"""Calls inside a session, as their handlers see them: what `kvstore.rpc.Call` is on a stream of
its own. Frames are `session`'s business."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from kvstore.pb import session_pb2
from kvstore.server.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.rpc import StreamHandler
    from kvstore.server.services.session_outbound import SessionOutbound

REPLY = session_pb2.REPLY
END = session_pb2.END
MESSAGE = session_pb2.MESSAGE

STREAM_HIGH_BYTES = 256 << 10
"""`send` returns False above this many unsent bytes, as on a stream of its own."""

STREAM_LOW_BYTES = 64 << 10
"""The handler is told that it may send again below this many."""

BIG_BYTES = 64 << 10
"""Replies from this size on are looked at before they join what waits for the client."""

PART_BYTES = 256 << 10
"""A longer reply is cut, for clients that take parts: other answers go between."""

DEADLINE_TEXT = "context deadline exceeded"
OVERLOADED_TEXT = (
    "too many reply bytes are waiting for slow readers; ask for less at a time (limit, pages)"
)


class SessionCall:
    """One unary call of a session. Same rules as `kvstore.rpc.Call`: late answers do nothing."""

    __slots__ = (
        "_flags",
        "_session",
        "cancelled",
        "deadline_s",
        "id",
        "on_cancel",
        "path",
        "size_bytes",
    )

    def __init__(
        self,
        session: SessionOutbound,
        call_id: int,
        path: str,
        flags: int,
        size_bytes: int,
        deadline_s: float | None,
    ) -> None:
        self._session: SessionOutbound | None = session
        self._flags = flags
        self.id = call_id
        self.path = path
        self.size_bytes = size_bytes
        """Bytes of the request, which count until it is answered."""
        self.deadline_s = deadline_s
        self.cancelled = False
        self.on_cancel: Callable[[], None] | None = None

    @property
    def unsent_bytes(self) -> int:
        """A unary call has nothing but its one reply."""
        return 0

    @property
    def peer(self) -> str:
        """The client's `host:port`."""
        session = self._session
        return session.call.peer if session is not None else ""

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's verified certificate, of the connection that carries the session."""
        session = self._session
        return session.call.peer_certificate if session is not None else None

    def metadata(self, name: bytes) -> bytes | None:
        """Return a field of the session's metadata; ValueError for bad base64."""
        session = self._session
        if session is None or (self._flags & session_pb2.ANY_MEMBER and name == b"hasleader"):
            return None
        return session.metadata(name)

    def reply(self, message: bytes) -> None:
        """Answer with success."""
        session = self._session
        if session is None:
            return
        if session.blocked or len(message) > BIG_BYTES:
            if len(message) > PART_BYTES and self._flags & session_pb2.PARTS:
                self.reply_parts((message,), len(message))
                return
            if not session.has_room(len(message)):
                self.fail(Code.RESOURCE_EXHAUSTED, OVERLOADED_TEXT)
                return
        # The hottest lines of the service: no call but the list's.
        self._session = None
        del session.calls[self.id]
        session.unanswered_bytes -= self.size_bytes
        out = session.out
        if len(out) == 1:
            session.flush_later()
        out.append((REPLY, self.id, message))
        session.out_bytes += len(message)

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        """Answer with success, with a message in parts: a long one is never joined."""
        session = self._session
        if session is None:
            return
        if size_bytes <= PART_BYTES or not self._flags & session_pb2.PARTS:
            self.reply(b"".join(parts))
        elif session.has_room(size_bytes) and session.reserve(size_bytes):
            self._leave(session)
            session.push_long(self.id, parts, size_bytes)
        else:
            self.fail(Code.RESOURCE_EXHAUSTED, OVERLOADED_TEXT)

    def fail(self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an error status."""
        session = self._session
        if session is None:
            return
        self._leave(session)
        session.push_end(self.id, code, text, metadata)

    def send(self, message: bytes) -> bool:
        """Reply of a unary method, for handlers that serve both kinds."""
        self.reply(message)
        return False

    def send_all(self, messages: Sequence[bytes]) -> bool:
        """Queue several messages, as `send` does each."""
        room = False
        for message in messages:
            room = self.send(message)
        return room

    def finish(
        self, code: int = 0, text: str = "", metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """End with a status; nothing to do behind a reply."""
        self.fail(code, text, metadata)

    def pause_receiving(self) -> None:
        """A unary call receives one message, and has it."""

    def resume_receiving(self) -> None:
        """As `pause_receiving`."""

    # the session's side

    def _leave(self, session: SessionOutbound) -> None:
        self._session = None
        del session.calls[self.id]
        session.unanswered_bytes -= self.size_bytes

    def expire(self) -> None:
        """End the call because its deadline is over, and tell the handler."""
        self.cancelled = True
        self.fail(Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)
        self.notify_cancelled()

    def drop(self) -> None:
        """Forget the call: the client gave it up, or is gone. The handler is told."""
        session = self._session
        if session is not None:
            self._leave(session)
            self.cancelled = True
            self.notify_cancelled()

    def notify_cancelled(self) -> None:
        """Tell the handler that nobody waits any more."""
        if self.on_cancel is not None:
            self.on_cancel()


class SessionStream(SessionCall):
    """One stream inside a session, with a window of its own so that it holds up no other."""

    __slots__ = (
        "_ending",
        "_half_closed",
        "_held",
        "_paused",
        "_queue",
        "_throttled",
        "_unsent_bytes",
        "credit_bytes",
        "handler",
    )

    def __init__(
        self, session: SessionOutbound, call_id: int, path: str, flags: int, credit_bytes: int
    ) -> None:
        super().__init__(session, call_id, path, flags, 0, None)
        self.handler: StreamHandler
        self.credit_bytes = credit_bytes
        """What the client takes yet. A message goes out while it is positive, however long it is:
        so a message longer than the whole window passes too."""
        self._queue: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._throttled = False
        self._ending: tuple[int, str, Sequence[tuple[bytes, bytes]]] | None = None
        self._half_closed = False
        self._paused = False
        self._held: deque[bytes] = deque()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of `send` that wait for the client's credit or for the connection."""
        return self._unsent_bytes

    def reply(self, message: bytes) -> None:
        """Send the only message, and end."""
        self.send(message)
        self.finish()

    def send(self, message: bytes) -> bool:
        """Queue one message; False above the high-water mark, or when the stream is gone."""
        session = self._session
        if session is None or self._ending is not None:
            return False
        if not self._queue and self.credit_bytes > 0 and not session.blocked:
            self.credit_bytes -= len(message)
            session.push_message(self.id, message)
            return True
        if not session.reserve(len(message)):
            self.fail(Code.RESOURCE_EXHAUSTED, OVERLOADED_TEXT)
            self.cancelled = True
            session.later(self.notify_cancelled)  # not inside the handler's own send
            return False
        self._queue.append(message)
        self._unsent_bytes += len(message)
        if self._unsent_bytes > STREAM_HIGH_BYTES:
            self._throttled = True
            return False
        return True

    def finish(
        self, code: int = 0, text: str = "", metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """End the stream after everything that was sent."""
        if self._session is None or self._ending is not None:
            return
        if self._queue:
            self._ending = (code, text, metadata)
        else:
            self.fail(code, text, metadata)

    def pause_receiving(self) -> None:
        """Deliver no more messages. The session takes no frames meanwhile, of any call."""
        if self._session is not None and not self._paused:
            self._paused = True
            self._session.pause(1)

    def resume_receiving(self) -> None:
        """Deliver what was held back, and go on."""
        if not self._paused:
            return
        self._paused = False
        if self._session is not None:
            self._session.pause(-1)
        while self._held and self._session is not None and not self._paused:
            self.handler.message(self._held.popleft())
        if self._half_closed and not self._held and self._session is not None:
            self.handler.half_closed()

    # the session's side

    def _leave(self, session: SessionOutbound) -> None:
        self._session = None
        del session.streams[self.id]
        session.reserve(-self._unsent_bytes)
        self._queue.clear()
        self._unsent_bytes = 0
        if self._paused:
            session.pause(-1)

    def message(self, data: bytes) -> None:
        """Take a message of the client."""
        if self._paused or self._held:
            self._held.append(data)
        else:
            self.handler.message(data)

    def half_close(self) -> None:
        """The client has sent its last message."""
        self._half_closed = True
        if not self._paused and not self._held:
            self.handler.half_closed()

    @property
    def half_closed(self) -> bool:
        """Whether the client has sent its last message."""
        return self._half_closed

    @property
    def waits(self) -> bool:
        """Whether `pump` has something to send."""
        return bool(self._queue)

    def pump(self) -> None:
        """Send what waits, as far as credit and the connection allow."""
        session = self._session
        if session is None:
            return
        queue = self._queue
        sent_bytes = 0
        while queue and self.credit_bytes > 0 and not session.blocked:
            message = queue.popleft()
            sent_bytes += len(message)
            self.credit_bytes -= len(message)
            session.push_message(self.id, message)
        self._unsent_bytes -= sent_bytes
        session.reserve(-sent_bytes)
        if self._ending is not None:
            if not queue:
                self.fail(*self._ending)
        elif self._throttled and self._unsent_bytes <= STREAM_LOW_BYTES:
            self._throttled = False
            session.later(self._notify_writable)

    def _notify_writable(self) -> None:
        session = self._session
        if session is not None and self._ending is None:
            session.guard(self, self.handler.writable)

    def notify_cancelled(self) -> None:
        """Tell the handler that nobody waits any more."""
        if self._ending is None:
            self.handler.cancelled()
