"""One RPC as its handler sees it, with the state of its HTTP/2 stream; no frame is parsed here."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from kvstore.http2 import frames
from kvstore.rpc import grpc
from kvstore.rpc.outbound import PRIMED_HEADERS, PRIMED_TRAILERS, can_prime

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence

    from kvstore.rpc.engine import Engine
    from kvstore.rpc.head import Head
    from kvstore.rpc.requests import Requests

_HEAD_BYTES = grpc.MESSAGE_HEAD_BYTES
_pack_before = frames.pack_reply_before
_pack_after = frames.pack_reply_after
_HEADERS_HEAD = frames.REPLY_HEADERS_HEAD
_TRAILERS_HEAD = frames.REPLY_TRAILERS_HEAD

# Below this, copying a message behind its 5 bytes is cheaper than handling two parts.
_JOIN_BYTES_MAX = 65536

_OVERLOADED_TEXT = (
    "too many reply bytes are waiting for slow readers; ask for less at a time (limit, pages)"
)


class StreamHandler(Protocol):
    """The receiving side of a streaming call. All methods run on the loop and must not block."""

    def message(self, data: bytes) -> None:
        """Take the next request message."""

    def half_closed(self) -> None:
        """The client has sent its last message; replies may still follow."""

    def cancelled(self) -> None:
        """The call is gone: reset by the client, connection lost, or deadline over."""

    def writable(self) -> None:
        """Unsent data is below the low-water mark again, after `Call.send` returned False."""


class Call:
    """One RPC. Answer a unary call with `reply` or `fail`; a stream with `send` and `finish`.

    Every answer to a call that is already answered or gone does nothing, so a handler need not
    ask first. All methods run on the loop's thread.
    """

    __slots__ = (
        "buffer",
        "cancelled",
        "connection",
        "deadline_s",
        "deadline_slot",
        "delta",
        "ending",
        "fresh",
        "half_closed_told",
        "head",
        "on_cancel",
        "queue",
        "queued",
        "receive_paused",
        "receive_window",
        "received_bytes",
        "remote_closed",
        "responded",
        "stream",
        "stream_id",
        "throttled",
        "unsent_bytes",
    )

    def __init__(self, connection: Requests, stream_id: int, head: Head) -> None:
        self.head = head
        self.on_cancel: Callable[[], None] | None = None
        """Called once when a unary call goes away unanswered. Set it or leave it None."""
        self.cancelled = False
        """True once the client reset the call, the connection was lost or its deadline passed."""
        self.deadline_s: float | None = None
        """When the client gives up, in loop time; None without a deadline."""
        self.unsent_bytes = 0
        """Bytes of `send` that wait for flow control or for a slow reader."""
        # The engine's side from here on; handlers leave it alone.
        self.connection: Requests | None = connection  # None: nothing more can be sent
        self.stream_id = stream_id
        self.fresh = head.quick  # nothing sent yet, and the quick reply form fits
        self.responded = False  # the response headers are out
        self.delta = 0  # updates minus sent bytes, see Outbound.stream_window
        self.queue: deque[bytes | memoryview] | None = None
        self.queued = False  # in Outbound.ready
        self.throttled = False  # send returned False
        self.ending: tuple[int, str, Sequence[tuple[bytes, bytes]]] | None = None
        self.remote_closed = False
        self.half_closed_told = False
        self.buffer: bytearray | None = None  # an incomplete request message
        self.stream: Any = None  # StreamHandler, or the exchange of a plain HTTP request
        self.receive_window = connection.engine.limits.stream_window_bytes
        self.receive_paused = False
        self.received_bytes = 0
        self.deadline_slot: dict[Call, None] | None = None

    # What the client said

    @property
    def path(self) -> str:
        """`/package.Service/Method`."""
        return self.head.path

    @property
    def peer(self) -> str:
        """The client's `host:port`."""
        connection = self.connection
        return connection.peer if connection is not None else ""

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The client's verified certificate as `ssl.SSLSocket.getpeercert` gives it, or None."""
        connection = self.connection
        if connection is None:
            return None
        certificate: dict[str, Any] | None = connection.transport.get_extra_info("peercert")
        return certificate or None

    def metadata(self, name: bytes) -> bytes | None:
        """Return the first value of a metadata field, decoded where `name` ends in `-bin`.

        ValueError: the client sent bad base64.
        """
        value = self.head.get(name)
        return None if value is None else grpc.decode_metadata(name, value)

    # Answers

    def reply(self, message: bytes) -> None:
        """Answer a unary call with success. Nothing happens when the call is gone."""
        connection = self.connection
        if connection is None:
            return
        length = len(message)
        size = length + _HEAD_BYTES
        if (
            self.fresh
            and size <= connection.credit
            and size <= connection.frame_bytes_max
            and size <= connection.stream_window + self.delta
            and self.remote_closed
        ):
            if connection.primed:
                # The product's hottest lines: no call but the two packs and the list's.
                stream_id = self.stream_id
                connection.credit -= size
                connection.out.append(
                    _pack_before(
                        _HEADERS_HEAD, stream_id, PRIMED_HEADERS, size << 8, stream_id, length
                    )
                    + message
                    + _pack_after(_TRAILERS_HEAD, stream_id, PRIMED_TRAILERS)
                )
                del connection.streams[stream_id]
                self.connection = None
                if self.deadline_slot is not None:
                    del self.deadline_slot[self]
                    self.deadline_slot = None
                if not connection.dirty:
                    connection.dirty = True
                    connection.engine.mark_dirty(connection)
                if connection.draining:
                    connection.maybe_finish_drain()
                return
            if can_prime(connection):
                connection.prime(self, message)
                return
        self.send(message)
        self.finish()

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        """Answer a unary call with a message in parts, as `reply` otherwise.

        Parts of a large message are not joined: that holds the loop for 100 ms at 50 MiB.

        Args:
            parts: They make the message together.
            size_bytes: Their length together.
        """
        if size_bytes <= _JOIN_BYTES_MAX:
            self.reply(b"".join(parts))
            return
        connection = self.connection
        if connection is None or self.ending is not None:
            return
        self._respond(connection, b"gzip" if self.head.encoding == b"gzip" else b"")
        # Views, as `send` makes them: bytes in front of a queue mean that a message begins there.
        views = [memoryview(part) for part in parts if part]
        prefix = frames.pack_message_head(0, size_bytes)
        self.send_parts((prefix, *views), size_bytes + _HEAD_BYTES)
        self.finish()

    def _respond(self, connection: Requests, encoding: bytes) -> None:
        if not self.responded:
            self.responded = True
            self.fresh = False
            block = connection.response_block(encoding)
            connection.send_headers(self.stream_id, block, end_stream=False)

    def fail(self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an error status (gRPC code 1 to 16) and its text.

        `metadata` travels in the trailers; values of names that end in `-bin` may be any bytes.
        Unsent messages of a stream are dropped.
        """
        fields = grpc.encode_metadata(metadata)
        connection = self.connection
        if connection is None:
            return
        if self.unsent_bytes:
            assert self.queue is not None
            mid_message = isinstance(self.queue[0], memoryview)
            connection.drop_queue(self)
            if mid_message:
                # A status behind half a message would look like a broken message.
                connection.reset_stream(self, frames.CANCEL)
                return
        self.ending = (code, text, fields)
        self.end()

    def send(self, message: bytes) -> bool:
        """Queue one message of a stream.

        Returns:
            False when the stream now holds more than `Limits.stream_high_bytes` unsent (the
            message is queued all the same; wait for `StreamHandler.writable`), or when the call
            is gone.
        """
        connection = self.connection
        if connection is None or self.ending is not None:
            return False
        route = self.head.route
        if route is not None:
            route.sent += 1
        flag = 0
        gzip = self.head.encoding == b"gzip"
        if gzip:
            packed = grpc.maybe_gzip(message)
            if packed is not None:
                message, flag = packed, 1
        self._respond(connection, b"gzip" if gzip else b"")
        length = len(message)
        size = length + _HEAD_BYTES
        prefix = frames.pack_message_head(flag, length)
        if self._may_write(connection, size):
            self._write(connection, prefix + message, size)
            return True
        if length <= _JOIN_BYTES_MAX:
            return self.send_parts((prefix + message,), size)
        # The first part of a queue is a memoryview exactly when its message is partly sent.
        rest = memoryview(message)[_JOIN_BYTES_MAX:]
        return self.send_parts((prefix + message[:_JOIN_BYTES_MAX], rest), size)

    def send_all(self, messages: Sequence[bytes]) -> bool:
        """Queue several messages of a stream, as `send` does each; about 16 KiB at a time is best.

        A third of the time of single sends, for messages of some hundred bytes.
        """
        connection = self.connection
        if connection is None or self.ending is not None:
            return False
        if self.head.encoding == b"gzip" or len(messages) == 1:
            room = False
            for message in messages:
                room = self.send(message)
            return room
        route = self.head.route
        if route is not None:
            route.sent += len(messages)
        self._respond(connection, b"")
        body = frames.join_messages(messages)
        size = len(body)
        if self._may_write(connection, size):
            self._write(connection, body, size)
            return True
        return self.send_parts((body,), size)

    def _may_write(self, connection: Requests, size: int) -> bool:
        """Tell whether nothing waits and one frame of that size passes every window now."""
        return (
            not self.unsent_bytes
            and size <= connection.credit
            and size <= connection.frame_bytes_max
            and size <= connection.stream_window + self.delta
        )

    def _write(self, connection: Requests, body: bytes, size: int) -> None:
        connection.credit -= size
        self.delta -= size
        connection.write(frames.head(frames.DATA, 0, self.stream_id, size) + body)

    def send_parts(self, parts: Sequence[bytes | memoryview], size_bytes: int) -> bool:
        """Queue body bytes as they are; as `send` otherwise."""
        connection = self.connection
        if connection is None or self.ending is not None:
            return False
        engine = connection.engine
        bytes_max = engine.limits.unsent_bytes_max
        waiting = connection.held_bytes
        if engine.counters.unsent_bytes + size_bytes > bytes_max or (
            # Any one reply may wait, however large; streams have their own bound.
            waiting and waiting + size_bytes > bytes_max // 4 and self.stream is None
        ):
            engine.counters.refused_replies += 1
            self.fail(grpc.RESOURCE_EXHAUSTED, _OVERLOADED_TEXT)
            if self.stream is not None:
                # Its handler has not ended it and would wait for `writable` for ever. Told later:
                # it is in the middle of its own `send`.
                self.cancelled = True
                engine.loop.call_soon(self.notify_cancelled, engine)
            return False
        connection.enqueue(self, parts, size_bytes)
        if self.unsent_bytes > engine.limits.stream_high_bytes:
            self.throttled = True
            return False
        return True

    def finish(
        self, code: int = 0, text: str = "", metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """End the call with a status, after everything that was sent."""
        fields = grpc.encode_metadata(metadata)
        if self.connection is None or self.ending is not None:
            return
        self.ending = (code, text, fields)
        if not self.unsent_bytes:
            self.end()

    def pause_receiving(self) -> None:
        """Take no more messages for now: the client may send as far as its window reaches."""
        self.receive_paused = True

    def resume_receiving(self) -> None:
        """Take the messages that arrived meanwhile, and those to come."""
        self.receive_paused = False
        if self.connection is not None:
            self.connection.continue_receiving(self)

    # The engine's side

    def over(self) -> None:
        """Take note that nothing more happens with the call; see `TimedCall`."""

    def end(self) -> None:
        """Send the status; everything queued is out or dropped."""
        connection = self.connection
        assert connection is not None
        assert self.ending is not None
        code, text, metadata = self.ending
        if self.head.route is None:
            self._end_plain(connection, code)
            return
        block = connection.status_block(code, text, metadata)
        if not self.responded:  # a trailers-only response
            block = connection.response_block(b"") + block
        connection.send_headers(self.stream_id, block, end_stream=True)
        connection.close_stream(self)

    def _end_plain(self, connection: Requests, code: int) -> None:
        # A plain HTTP response has no trailers: its end says all, or a reset does.
        if code == 0:
            connection.headers_sent = True
            connection.write(frames.head(frames.DATA, frames.END_STREAM, self.stream_id, 0))
            connection.close_stream(self)
        else:
            connection.reset_stream(self, frames.INTERNAL_ERROR)

    def expire(self) -> None:
        """End the call because its deadline is over."""
        self.deadline_slot = None
        self.stop(grpc.DEADLINE_EXCEEDED, grpc.DEADLINE_TEXT)

    def stop(self, code: int, text: str) -> None:
        """End the call from the server's side, and tell the handler."""
        connection = self.connection
        if connection is None:
            return
        ended = self.ending is not None
        self.cancelled = True
        self.fail(code, text)
        if not ended:
            self.notify_cancelled(connection.engine)

    def notify_cancelled(self, engine: Engine) -> None:
        """Tell the handler that nobody waits any more."""
        try:
            if self.on_cancel is not None:
                self.on_cancel()
            if self.stream is not None:
                self.stream.cancelled()
        except Exception as error:  # noqa: BLE001  # a handler's bug is reported, not raised
            engine.report(error)

    def notify_writable(self) -> None:
        """Tell the handler that it may send again."""
        connection = self.connection
        if connection is None or self.stream is None or self.ending is not None:
            return
        try:
            self.stream.writable()
        except Exception as error:  # noqa: BLE001  # as above
            connection.handler_failed(self, error)


class TimedCall(Call):
    """A call whose route wants to know how long it took."""

    __slots__ = ("_began_s",)

    def __init__(self, connection: Requests, stream_id: int, head: Head) -> None:
        super().__init__(connection, stream_id, head)
        self._began_s = perf_counter()

    def over(self) -> None:
        """Tell the route."""
        route = self.head.route
        assert route is not None
        assert route.on_handled is not None
        route.on_handled(perf_counter() - self._began_s)
