"""kvstore.Session: operations of the etcd API as items of one stream's frames (docs/session.md).

No operation is implemented here: an item is handed to the handler that also serves the call on an
HTTP/2 stream of its own, so semantics, codes and texts are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
from google.protobuf.message import DecodeError

from kvstore.pb import session_pb2
from kvstore.server.errors import Code, TooManyRequestsError
from kvstore.server.services.session_call import PART_BYTES, SessionCall, SessionStream
from kvstore.server.services.session_outbound import FORMAT
from kvstore.server.services.session_pipeline import Pipeline, PipelineCall
from kvstore.server.services.session_puts import PUTS_MAX, PutDoor, SessionPuts

if TYPE_CHECKING:
    from kvstore.server.services.base import Routes, ServiceCall, Stream, Unary
    from kvstore.server.services.writes import Writes

OPEN_PATH = "/kvstore.Session/Open"
PUT_PATH = "/etcdserverpb.KV/Put"
OPERATIONS_MAX = 8_192
"""Calls of one session without an answer; beyond it new ones are refused."""

UNANSWERED_BYTES_MAX = 32 << 20
"""The same bound in bytes of request."""

STREAMS_MAX = 4_096
"""Open streams of one session, as of one HTTP/2 connection."""

TURN_ITEMS = 1_024
"""Items taken in one turn of the loop, so that a large frame does not hold it."""

_CALL = session_pb2.CALL
_PUTS = session_pb2.PUTS
_NUMBER_MAX = 1 << 63


@dataclass(slots=True)
class Served:
    """A method of the member; its number in a session is its place in the hello."""

    path: str
    unary: Unary | None = None
    stream: Stream | None = None
    started: int = 0
    """Calls that came in sessions."""


@dataclass(slots=True)
class Traffic:
    """What passed in all sessions since the start."""

    opened: int = 0
    frames_received: int = 0
    frames_sent: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class Fault(Exception):  # noqa: N818  # a fault of the client, not an error of ours
    """The client broke a rule of the frames, which ends the session."""

    def __init__(self, text: str, code: int = Code.INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.code = code


class SessionService:
    """Opens sessions, and remembers the routes of all services for them.

    Services register through it: what they serve on streams of their own, sessions serve too.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        frame_bytes_max: int,
        together: Callable[[], AbstractContextManager[None]],
        later: Callable[..., object],
        later_s: Callable[..., object],
        time_s: Callable[[], float],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Stand in front of `routes`.

        Args:
            routes: Where the services' methods are registered.
            frame_bytes_max: What the server takes as one message.
            together: Keeps the operations proposed inside in one batch.
            later: `loop.call_soon`.
            later_s: `loop.call_later`.
            time_s: `loop.time`.
            on_error: Takes what a handler raised; its call ends with UNKNOWN.
        """
        self.methods: list[Served] = []
        self.sessions: dict[Session, None] = {}
        self.queued_bytes = 0
        self.traffic = Traffic()
        self.door: PutDoor | None = None
        """Lets plain puts in without a handler; None where nobody opened it."""
        self.together = together
        self.later = later
        self.later_s = later_s
        self.time_s = time_s
        self.on_error = on_error
        self._routes = routes
        self._frame_bytes_max = frame_bytes_max

    def unary(self, path: str, handler: Unary) -> None:
        """Serve a method with one request and one reply, in sessions too."""
        self.methods.append(Served(path, unary=handler))
        self._routes.unary(path, handler)

    def stream(self, path: str, handler: Stream) -> None:
        """Serve a method with streams, in sessions too."""
        self.methods.append(Served(path, stream=handler))
        self._routes.stream(path, handler)

    def open_door(self, writes: Writes, is_serving: Callable[[], bool]) -> None:
        """Let clients send puts many to an item; the method is registered already.

        See `PutDoor` for the arguments.
        """
        put = next(method for method in self.methods if method.path == PUT_PATH)
        self.door = PutDoor(put, writes, is_serving)

    def register(self) -> None:
        """Serve sessions."""
        self._routes.stream(OPEN_PATH, self._open)

    def _open(self, call: ServiceCall) -> Session:
        session = Session(self, call)
        self.sessions[session] = None
        self.traffic.opened += 1
        return session

    def hello(self) -> dict[str, Any]:
        """Return what every session begins with."""
        return {
            "methods": [method.path for method in self.methods],
            "operations": OPERATIONS_MAX,
            "bytes": UNANSWERED_BYTES_MAX,
            "frame_bytes": self._frame_bytes_max,
            "streams": STREAMS_MAX,
            "part_bytes": PART_BYTES,
        } | ({"puts": PUTS_MAX} if self.door is not None else {})

    def drain(self) -> None:
        """Ask all clients to go elsewhere: the member is about to stop."""
        for session in list(self.sessions):
            session.push((session_pb2.GOAWAY,))


class Session(SessionPuts):
    """The handler of one Open stream: takes its items. Answers leave by the base."""

    def __init__(self, service: SessionService, call: ServiceCall) -> None:
        """Greet the client."""
        super().__init__(service, call)
        self._last_id = 0
        self._half_closed = False
        self._behind: tuple[tuple[Any, ...], int] | None = None
        self.push((session_pb2.HELLO, service.hello()))

    # what the engine calls

    def message(self, data: bytes) -> None:
        """Take a frame."""
        traffic = self.service.traffic
        traffic.frames_received += 1
        traffic.received_bytes += len(data)
        try:
            items = _parse(data)
            assert self._behind is None, "nothing arrives while receiving is paused"
            self._take(items, 1)
        except Fault as fault:
            self._end(fault.code, f"session: {fault}")

    def half_closed(self) -> None:
        """The client sends nothing more; what runs is answered yet."""
        self._half_closed = True
        if self._behind is None:
            self._take_half_close()

    def _take_half_close(self) -> None:
        for stream in list(self.streams.values()):
            self._half_close(stream.id)
        self._finish_if_done()

    def cancelled(self) -> None:
        """The client is gone."""
        self._close()

    def writable(self) -> None:
        """The client reads again."""
        if self.blocked:
            self.blocked = False
            self.pause(-1)
        for stream in [stream for stream in self.streams.values() if stream.waits]:
            if self.blocked:
                return
            stream.pump()
        self.has_drained()

    # items that arrive

    def _take(self, items: tuple[Any, ...], position: int) -> None:
        """Take items from `position` on, a bounded number in this turn. Raises Fault."""
        end, puts = position, 0
        methods = self.service.methods
        now_s = self.service.time_s()
        try:
            for item in items[position : position + TURN_ITEMS]:
                end += 1
                if item[0] != _CALL:
                    _TAKERS[item[0]](self, *item[1:])
                    if self.over:
                        return
                    if item[0] == _PUTS:
                        puts += len(item[4])
                        if puts >= TURN_ITEMS:
                            break
                    continue
                _, call_id, number, timeout_ms, flags, payload = item
                self._check_id(call_id)
                if type(payload) is not bytes or type(flags) is not int:
                    raise Fault("a payload must be binary, flags a number")
                served = methods[number] if 0 <= number < len(methods) else None
                handler = served.unary if served is not None else None
                if served is None or handler is None:
                    self.push_end(call_id, Code.UNIMPLEMENTED, f"no unary method {number}")
                    continue
                served.started += 1
                deadline_s = now_s + timeout_ms * 0.001 if timeout_ms > 0 else None
                self._start(served.path, handler, call_id, flags, deadline_s, payload)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise Fault(f"malformed item: {error}") from error
        self.sweep_later()
        if end < len(items):
            self.pause(1)
            self._behind = (items, end)
            self.later(self._go_on)

    def _start(
        self,
        path: str,
        handler: Unary,
        call_id: int,
        flags: int,
        deadline_s: float | None,
        payload: bytes,
    ) -> None:
        call = SessionCall(self, call_id, path, flags, len(payload), deadline_s)
        self.calls[call_id] = call
        self.unanswered_bytes += len(payload)
        if self._is_over_window():
            call.fail(TooManyRequestsError.code, TooManyRequestsError.text)
            return
        try:
            handler(call, payload)
        except Exception as error:  # noqa: BLE001  # a handler's bug ends its call only
            self.handler_failed(call, error)

    def _go_on(self) -> None:
        if self.over:
            return
        assert self._behind is not None
        items, position = self._behind
        self._behind = None
        try:
            self._take(items, position)
        except Fault as fault:
            self._end(fault.code, f"session: {fault}")
            return
        self.pause(-1)
        if self._half_closed and not self.over:
            self.half_closed()  # which looks anew at what is behind: the types above say nothing is

    def _check_id(self, call_id: Any) -> None:
        if type(call_id) is not int or not self._last_id < call_id < _NUMBER_MAX:
            raise Fault(f"ids must ascend: {call_id!r} after {self._last_id}")
        self._last_id = call_id

    def _pipeline(self, first_id: Any, timeout_ms: Any, flags: Any, operations: Any) -> None:
        if type(operations) is not tuple or not operations or type(flags) is not int:
            raise Fault("a pipeline has operations in an array, flags are a number")
        if len(operations) > OPERATIONS_MAX:
            raise Fault(f"a pipeline has at most {OPERATIONS_MAX} operations")
        self._check_id(first_id)
        self._last_id += len(operations) - 1
        methods = self.service.methods
        deadline_s = self.service.time_s() + timeout_ms * 0.001 if timeout_ms > 0 else None
        work = []
        for call_id, (number, payload) in enumerate(operations, first_id):
            if type(payload) is not bytes:
                raise Fault("a payload must be binary")
            served = methods[number] if 0 <= number < len(methods) else None
            handler = served.unary if served is not None else None
            if served is None or handler is None:
                raise Fault(f"no unary method {number} for a pipeline")
            size_bytes = len(payload)
            served.started += 1
            call = PipelineCall(self, call_id, served.path, flags, size_bytes, deadline_s)
            work.append((call, handler, payload))
        for call, _, payload in work:
            self.calls[call.id] = call
            self.unanswered_bytes += len(payload)
        pipeline = Pipeline(self, work)
        if self._is_over_window():
            pipeline.refuse()
        else:
            pipeline.start()

    def _take_puts(self, first_id: Any, timeout_ms: Any, flags: Any, payloads: Any) -> None:
        door = self.service.door
        if door is None:
            raise Fault("no puts were offered")
        if type(payloads) is not tuple or not payloads or type(flags) is not int:
            raise Fault("puts are payloads in an array, flags are a number")
        if len(payloads) > PUTS_MAX:
            raise Fault(f"an item has at most {PUTS_MAX} puts")
        self._check_id(first_id)
        self._last_id += len(payloads) - 1
        served = door.put
        served.started += len(payloads)
        end_s = self.service.time_s() + timeout_ms * 0.001 if timeout_ms > 0 else 0.0
        if (
            len(payloads) <= OPERATIONS_MAX - len(self.calls) - len(self.puts)
            and door.lets_in(payloads)
            and self.unanswered_bytes + sum(map(len, payloads)) <= UNANSWERED_BYTES_MAX
        ):
            self.propose_puts(door, range(first_id, first_id + len(payloads)), end_s, payloads)
            return
        handler = served.unary
        assert handler is not None
        for call_id, payload in enumerate(payloads, first_id):
            if type(payload) is not bytes:
                raise Fault("a payload must be binary")
            self._start(served.path, handler, call_id, flags, end_s or None, payload)

    def _is_over_window(self) -> bool:
        return (
            len(self.calls) + len(self.puts) > OPERATIONS_MAX
            or self.unanswered_bytes > UNANSWERED_BYTES_MAX
        )

    def _open_stream(self, call_id: Any, number: Any, flags: Any, credit_bytes: Any) -> None:
        self._check_id(call_id)
        if type(credit_bytes) is not int or credit_bytes < 0 or type(flags) is not int:
            raise Fault("a stream's window is a number of bytes, flags are a number")
        methods = self.service.methods
        served = methods[number] if 0 <= number < len(methods) else None
        handler = served.stream if served is not None else None
        if served is None or handler is None:
            self.push_end(call_id, Code.UNIMPLEMENTED, f"no streaming method {number}")
            return
        served.started += 1
        stream = SessionStream(self, call_id, served.path, flags, credit_bytes)
        self.streams[call_id] = stream
        if len(self.streams) > STREAMS_MAX:
            stream.fail(TooManyRequestsError.code, TooManyRequestsError.text)
            return
        try:
            stream.handler = handler(stream)
        except Exception as error:  # noqa: BLE001  # a handler's bug ends its call only
            self.handler_failed(stream, error)

    def _stream_message(self, call_id: Any, payload: Any) -> None:
        if type(payload) is not bytes:
            raise Fault("a payload must be binary")
        stream = self._stream(call_id)
        if stream is not None:
            if stream.half_closed:
                raise Fault(f"message on stream {call_id} after its end")
            self.guard(stream, stream.message, payload)

    def _half_close(self, call_id: Any) -> None:
        stream = self._stream(call_id)
        if stream is not None and not stream.half_closed:
            self.guard(stream, stream.half_close)

    def _cancel(self, call_id: Any) -> None:
        self._known(call_id)
        self.drop_long(call_id)
        call = self.calls.get(call_id) or self.streams.get(call_id)
        if call is not None:
            self.guard(call, call.drop)
        elif call_id in self.puts:
            self.forget_put(call_id)

    def _credit(self, call_id: Any, size_bytes: Any) -> None:
        if type(size_bytes) is not int or size_bytes <= 0:
            raise Fault("credit is a positive number of bytes")
        stream = self._stream(call_id)
        if stream is not None:
            stream.credit_bytes += size_bytes
            stream.pump()

    def _set_metadata(self, fields: Any) -> None:
        if type(fields) is not dict:
            raise Fault("metadata must be a map")
        for name, value in fields.items():
            if type(name) is not str or type(value) not in {str, bytes}:
                raise Fault("metadata must be text")
            self.replaced_metadata[name.encode()] = value.encode() if type(value) is str else value

    def _stream(self, call_id: Any) -> SessionStream | None:
        self._known(call_id)
        # None: it has ended here, and the client does not know yet.
        return self.streams.get(call_id)

    def _known(self, call_id: Any) -> None:
        if type(call_id) is not int or not 0 < call_id <= self._last_id:
            raise Fault(f"no call {call_id!r} was ever opened")

    # ends

    def sent(self) -> None:
        """The turn's frame is out."""
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        busy = self.calls or self.puts or self.streams or self.long or self._behind
        idle = not busy and len(self.out) == 1
        if self._half_closed and idle and not self.over:
            self._close()
            self.call.finish()

    def _end(self, code: int, text: str) -> None:
        if not self.over:
            self._close()
            self.call.fail(int(code), text)

    def _close(self) -> None:
        """Tell every handler that its client is gone."""
        self.over = True
        self._behind = None
        self.service.sessions.pop(self, None)
        self.puts.clear()
        for call in [*self.calls.values(), *self.streams.values()]:
            self.guard(call, call.drop)
        for call_id in list(self.long):
            self.drop_long(call_id)


_TAKERS: dict[int, Callable[..., None]] = {
    session_pb2.OPEN: Session._open_stream,  # noqa: SLF001  # its own table
    session_pb2.MESSAGE: Session._stream_message,  # noqa: SLF001
    session_pb2.HALF_CLOSE: Session._half_close,  # noqa: SLF001
    session_pb2.CANCEL: Session._cancel,  # noqa: SLF001
    session_pb2.CREDIT: Session._credit,  # noqa: SLF001
    session_pb2.METADATA: Session._set_metadata,  # noqa: SLF001
    session_pb2.PIPELINE: Session._pipeline,  # noqa: SLF001
    session_pb2.PUTS: Session._take_puts,  # noqa: SLF001
}


def _parse(data: bytes) -> tuple[Any, ...]:
    """Return a frame's format and items. Raises Fault."""
    try:
        body = session_pb2.Frame.FromString(data).body
        items = msgpack.unpackb(body, use_list=False, max_ext_len=0)
    except (DecodeError, ValueError, TypeError, OverflowError) as error:
        raise Fault(f"frame is no msgpack array: {error}") from error
    if type(items) is not tuple or not items or type(items[0]) is not int:
        raise Fault("frame is no array that begins with its format")
    if items[0] != FORMAT:
        raise Fault(f"format {items[0]} is not known, this is {FORMAT}", Code.UNIMPLEMENTED)
    return items
