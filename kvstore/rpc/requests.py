"""Requests on an HTTP/2 connection: header blocks and bodies in, calls to handlers out.

Frames are parsed in `connection.py`, which extends this class; sending is in `outbound.py`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvstore.http2 import frames, hpack
from kvstore.rpc import grpc
from kvstore.rpc.budget import Budget
from kvstore.rpc.call import Call, TimedCall
from kvstore.rpc.head import Head, MalformedError, check_fields, check_trailers, parse
from kvstore.rpc.outbound import Outbound
from kvstore.rpc.plain import PlainExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.rpc.engine import Engine
    from kvstore.rpc.head import Route

_unpack_message_head = frames.unpack_message_head

# Heads kept by block. Clients use one to a handful; a head takes under 1 KiB.
_HEADS_MAX = 8
_HEAD_BLOCK_BYTES_MAX = 512

# What a header list over the limit costs its sender, in frames of no use: it took as long.
_TOO_LARGE_JUNK = 50

# Streams that we reset while the client may still be sending on them.
_RESET_IDS_MAX = 256


class ConnectionFault(Exception):  # noqa: N818  # a fault of the peer, not an error of ours
    """The peer broke a rule that ends the connection (RFC 9113 5.4.1)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Requests(Outbound):
    """Receive state of the streams of one connection."""

    __slots__ = (
        "_decoder",
        "_goaway_id",
        "_heads",
        "_junk",
        "_last_stream_id",
        "_receive_window",
        "_reset_ids",
        "_resets",
        "draining",
        "receiving_bytes",
    )

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        limits = engine.limits
        self.draining = False
        self._decoder = hpack.Decoder(limits.header_list_bytes_max)
        self._heads: dict[bytes, Head] = {}
        self._last_stream_id = 0
        self._goaway_id = frames.STREAM_ID_MAX
        self._receive_window = limits.connection_window_bytes
        self.receiving_bytes = 0
        """Of incomplete requests."""
        self._reset_ids: deque[int] | None = None
        self._resets = Budget(limits.resets_burst, limits.resets_per_s)
        self._junk = Budget(limits.junk_burst, limits.junk_per_s)

    # Header blocks

    def _decode(self, block: bytes) -> list[hpack.Field] | None:
        # None: decoded, but over the limit.
        generation = self._decoder.generation
        try:
            return self._decoder.decode(block)
        except hpack.HpackError as error:
            raise ConnectionFault(frames.COMPRESSION_ERROR, str(error)) from None
        except hpack.HeaderListTooLargeError:
            return None
        except hpack.BombError:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "header list too large") from None
        finally:
            if self._decoder.generation != generation:
                self._heads.clear()

    def _headers(self, stream_id: int, flags: int, block: bytes) -> None:
        if stream_id & 1 == 0:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "HEADERS on an even stream")
        if stream_id <= self._last_stream_id:
            self._trailers(stream_id, flags, block)
            return
        engine = self.engine
        head = self._heads.get(block)
        too_large = False
        if head is None:
            generation = self._decoder.generation
            fields = self._decode(block)
            if fields is None:
                too_large = True
            else:
                head = self._understand(fields)
                if (
                    head is not None
                    and self._decoder.generation == generation
                    and len(block) <= _HEAD_BLOCK_BYTES_MAX
                ):
                    if len(self._heads) >= _HEADS_MAX:
                        self._heads.clear()
                    self._heads[block] = head
        self._last_stream_id = stream_id
        if stream_id > self._goaway_id:
            return  # they have been told that it will not be looked at (RFC 9113 6.8)
        if len(self.streams) >= engine.limits.concurrent_streams_max:
            self._reset_id(stream_id, frames.REFUSED_STREAM)
            return
        if too_large:
            self._spend_junk(_TOO_LARGE_JUNK)
            self._answer_early(
                stream_id, flags, b"431", grpc.RESOURCE_EXHAUSTED, "header list too large"
            )
            return
        if head is None:
            self._reset_id(stream_id, frames.PROTOCOL_ERROR)
            return
        if head.refusal is not None:
            status = b"%d" % head.refusal.http_status
            self._answer_early(stream_id, flags, status, head.refusal.code, head.refusal.text)
            return
        route = head.route
        timed = route is not None and route.on_handled is not None
        self._open((TimedCall if timed else Call)(self, stream_id, head), flags)

    def _understand(self, fields: list[hpack.Field]) -> Head | None:
        engine = self.engine
        try:
            if self._decoder.suspect:
                check_fields(fields)
            return parse(fields, engine.routes, engine.services, http=engine.http is not None)
        except MalformedError:
            return None

    def _open(self, call: Call, flags: int) -> None:
        head = call.head
        self.streams[call.stream_id] = call
        if head.timeout_s is not None:
            call.deadline_slot = self.engine.deadlines.add(call, head.timeout_s)
        if head.tally is not None:
            head.tally.started += 1
        if head.route is None:
            assert self.engine.http is not None
            call.stream = PlainExchange(call, self.engine.http)
        elif not head.route.unary:
            try:
                call.stream = head.route.handler(call)
            except Exception as error:  # noqa: BLE001  # a handler's bug ends its call only
                self.handler_failed(call, error)
                return
        if flags & frames.END_STREAM and call.connection is not None:
            call.remote_closed = True
            self._end_of_stream(call)

    def _trailers(self, stream_id: int, flags: int, block: bytes) -> None:
        fields = self._decode(block)  # always: the tables must stay in step
        call = self.streams.get(stream_id)
        if call is None:
            if self._was_reset(stream_id):
                self._spend_junk()
                return
            raise ConnectionFault(frames.STREAM_CLOSED, "HEADERS on a closed stream")
        if call.remote_closed:
            self._fault(call, frames.STREAM_CLOSED)
            return
        try:
            if self._decoder.suspect:
                check_fields(fields or [])
            check_trailers(fields, ends=bool(flags & frames.END_STREAM))
        except MalformedError:
            self._fault(call, frames.PROTOCOL_ERROR)
            return
        self._remote_end(call)

    def _answer_early(
        self, stream_id: int, flags: int, status: bytes, code: int, text: str
    ) -> None:
        # The answer of grpc-go's writeEarlyAbort: no handler saw the request.
        block = hpack.encode(((b":status", status), (b"content-type", b"application/grpc")))
        self.send_headers(stream_id, block + self.status_block(code, text), end_stream=True)
        if not flags & frames.END_STREAM:
            self._reset_id(stream_id, frames.NO_ERROR, counted=False)

    # DATA

    def _data(self, call: Call | None, flags: int, stream_id: int, payload: bytes) -> None:
        if call is None:
            if stream_id == 0 or stream_id > self._last_stream_id or not stream_id & 1:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "DATA on an idle stream")
            self._spend_junk()
            if not self._was_reset(stream_id):
                self._reset_id(stream_id, frames.STREAM_CLOSED)
            return
        length = len(payload)
        if flags & frames.PADDED:
            if not payload:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "no room for the padding's length")
            if payload[0] >= length:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "more padding than payload")
            payload = payload[1 : length - payload[0]]
        if call.remote_closed:
            self._fault(call, frames.STREAM_CLOSED)
            return
        if length > call.receive_window:
            self._fault(call, frames.FLOW_CONTROL_ERROR)
            return
        call.receive_window -= length
        call.received_bytes += len(payload)
        announced = call.head.content_length
        if announced >= 0 and call.received_bytes > announced:
            self._fault(call, frames.PROTOCOL_ERROR)
            return
        ends = flags & frames.END_STREAM
        if not payload and not ends:
            self._spend_junk()
        if payload:
            self._body(call, payload)
        if call.connection is None:
            return
        if ends:
            self._remote_end(call)
        else:
            self._replenish_stream(call)

    def _replenish(self) -> None:
        if self._receive_window < 0:
            raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "more DATA than the window allows")
        full = self.engine.limits.connection_window_bytes
        self.write(frames.window_update(0, full - self._receive_window))
        self._receive_window = full

    def _replenish_stream(self, call: Call) -> None:
        full = self.engine.limits.stream_window_bytes
        if call.receive_window < full >> 1 and not call.receive_paused and not call.remote_closed:
            self.write(frames.window_update(call.stream_id, full - call.receive_window))
            call.receive_window = full

    def _remote_end(self, call: Call) -> None:
        announced = call.head.content_length
        if announced >= 0 and call.received_bytes != announced:
            self._fault(call, frames.PROTOCOL_ERROR)  # RFC 9113 8.1.1
            return
        call.remote_closed = True
        self._end_of_stream(call)

    def _body(self, call: Call, payload: bytes) -> None:
        route = call.head.route
        if route is None:
            self._guard(call, call.stream.body, payload)
        else:
            if call.buffer is None and not call.receive_paused and not route.unary:
                # A whole message in one frame goes to its handler without a buffer.
                flag, size = _unpack_message_head(payload) if len(payload) >= 5 else (1, 0)
                whole = flag == 0 and size == len(payload) - 5
                if whole and size <= self.engine.limits.message_bytes_max:
                    route.received += 1
                    self._guard(call, call.stream.message, payload[5:])
                    return
            self.keep(call, payload)
            self._take_messages(call)
        if call.connection is None or not call.buffer:
            return
        engine = self.engine
        if self.receiving_bytes > engine.limits.receive_buffer_bytes_max:
            call.fail(grpc.RESOURCE_EXHAUSTED, "too many incomplete messages on this connection")
        elif engine.counters.receiving_bytes > engine.limits.received_bytes_max:
            call.stop(grpc.RESOURCE_EXHAUSTED, "too many incomplete messages on this server")

    def keep(self, call: Call, payload: bytes) -> int:
        """Keep bytes of an incomplete request; returns how many this call has now."""
        buffer = call.buffer
        if buffer is None:
            buffer = call.buffer = bytearray()
        buffer += payload
        self._count_kept(len(payload))
        return len(buffer)

    def _take_messages(self, call: Call) -> None:
        # Deliver the complete messages of the buffer, refuse what can be refused already.
        buffer = call.buffer
        route = call.head.route
        assert buffer is not None
        assert route is not None
        bytes_max = self.engine.limits.message_bytes_max
        try:
            if route.unary:
                grpc.check_unary(buffer, bytes_max)
                return  # it is called at the stream's end
            # The handler may pause, resume or end the call: nothing is kept across `message`.
            while not call.receive_paused and call.connection is not None:
                before = len(buffer)
                try:
                    message = grpc.take_message(buffer, call.head.encoding, bytes_max)
                finally:
                    self._count_kept(len(buffer) - before)
                if message is None:
                    return
                route.received += 1
                self._guard(call, call.stream.message, message)
        except grpc.GrpcError as error:
            call.fail(error.code, error.text)
            self._tell_cancelled(call)

    def _end_of_stream(self, call: Call) -> None:
        # The client has sent everything. Messages that a paused handler has not taken come first.
        route = call.head.route
        if route is None:
            self._guard(call, call.stream.complete)
            return
        if route.unary:
            self._call_unary(call, route)
            return
        if call.receive_paused and call.buffer:
            return  # continue_receiving comes back here
        if call.buffer:
            call.fail(grpc.INTERNAL, grpc.UNEXPECTED_EOF_TEXT)
            self._tell_cancelled(call)
            return
        if not call.half_closed_told:
            call.half_closed_told = True
            self._guard(call, call.stream.half_closed)

    def _call_unary(self, call: Call, route: Route) -> None:
        bytes_max = self.engine.limits.message_bytes_max
        try:
            message = grpc.take_unary(call.buffer or b"", call.head.encoding, bytes_max)
        except grpc.GrpcError as error:
            call.fail(error.code, error.text)
            return
        self.release_buffer(call)
        self._guard(call, route.handler, call, message)

    def continue_receiving(self, call: Call) -> None:
        """Go on after `Call.resume_receiving`."""
        if call.buffer:
            self._take_messages(call)
        if call.connection is None or call.receive_paused:
            return
        if call.remote_closed:
            self._end_of_stream(call)
        else:
            self._replenish_stream(call)

    def release_buffer(self, call: Call) -> None:
        """Forget what `keep` has kept."""
        if call.buffer is not None:
            self._count_kept(-len(call.buffer))
            call.buffer = None

    def _count_kept(self, size_bytes: int) -> None:
        self.receiving_bytes += size_bytes
        self.engine.counters.receiving_bytes += size_bytes

    # Handlers

    def _guard(self, call: Call, method: Callable[..., object], *arguments: object) -> None:
        try:
            method(*arguments)
        except Exception as error:  # noqa: BLE001  # a handler's bug ends its call only
            self.handler_failed(call, error)

    def handler_failed(self, call: Call, error: BaseException) -> None:
        """Answer for a handler that raised; the connection goes on."""
        self.engine.report(error)
        call.fail(grpc.UNKNOWN, "internal error in the handler of this call")

    def _tell_cancelled(self, call: Call) -> None:
        # For streams that the engine ended: their handler must hear that they are over.
        call.cancelled = True
        call.notify_cancelled(self.engine)

    # Ends of streams

    def close_stream(self, call: Call) -> None:
        """Forget a stream whose last frame was written."""
        self._forget(call)
        if call.ending is not None:
            self._count(call, call.ending[0])
        if not call.remote_closed:
            # Tell the client to stop sending (RFC 9113 8.1).
            self._reset_id(call.stream_id, frames.NO_ERROR, counted=False)
        if self.draining:
            self.maybe_finish_drain()

    def reset_stream(self, call: Call, code: int) -> None:
        """End a stream with RST_STREAM; the handler is not told."""
        self._forget(call)
        self._count(call, grpc.INTERNAL)
        self._reset_id(call.stream_id, code, counted=False)
        if self.draining:
            self.maybe_finish_drain()

    def _fault(self, call: Call, code: int) -> None:
        # A stream error of the client's making (RFC 9113 5.4.2).
        self._cancel(call)
        self._reset_id(call.stream_id, code)
        if self.draining:
            self.maybe_finish_drain()

    def _forget(self, call: Call) -> None:
        self.release_buffer(call)
        if call.unsent_bytes:
            self.drop_queue(call)
        self.streams.pop(call.stream_id, None)
        call.connection = None
        if call.deadline_slot is not None:
            del call.deadline_slot[call]
            call.deadline_slot = None
        call.over()

    @staticmethod
    def _count(call: Call, code: int) -> None:
        route = call.head.route
        if code and route is not None:
            route.failed[code] = route.failed.get(code, 0) + 1

    def _cancel(self, call: Call) -> None:
        # The client gave the call up, or lost the right to it.
        self._forget(call)
        self._count(call, grpc.CANCELLED)
        if call.ending is None:
            call.cancelled = True
            call.notify_cancelled(self.engine)

    def _reset_id(self, stream_id: int, code: int, *, counted: bool = True) -> None:
        ids = self._reset_ids
        if ids is None:
            ids = self._reset_ids = deque(maxlen=_RESET_IDS_MAX)
        ids.append(stream_id)
        self.write(frames.rst_stream(stream_id, code))
        if counted:
            # A client may make us reset its streams as fast as it could itself (CVE-2025-8671).
            self.engine.counters.resets_sent += 1
            self._spend_reset()

    def _was_reset(self, stream_id: int) -> bool:
        return stream_id > self._goaway_id or (
            self._reset_ids is not None and stream_id in self._reset_ids
        )

    def _spend_reset(self) -> None:
        if not self._resets.spend(self.engine.loop):
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many reset streams")

    def _spend_junk(self, amount: int = 1) -> None:
        if not self._junk.spend(self.engine.loop, amount):
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many frames without work")

    def maybe_finish_drain(self) -> None:
        """Close when the connection drains and no stream is left."""
        raise NotImplementedError
