"""One session with one endpoint: frames of many operations on one stream (docs/session.md).

Which endpoint a call goes to and what is repeated is the transport's matter; here every operation
gets its honest outcome: the answer, or what is known when none came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from kvstore.client.errors import (
    KvError,
    OutcomeUnknownError,
    ReadFailedError,
    UnreachableError,
    UnsupportedError,
    error_from,
)
from kvstore.client.methods import PUT
from kvstore.client.session_frames import FORMAT, MALFORMED, read_hello, turns, without
from kvstore.client.session_stream import SessionStream
from kvstore.client.status import EOF, UNAVAILABLE, CallError, ChannelClosedError, name_of
from kvstore.pb import session_pb2
from kvstore.pb.session_pb2 import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.client.channel import Channel
    from kvstore.client.methods import Method

OPEN_PATH = "/kvstore.Session/Open"
_CALL = session_pb2.CALL
_REPLY = session_pb2.REPLY
_PUTS = session_pb2.PUTS
_WRITTEN = session_pb2.WRITTEN

_ITEM_BYTES = 32
# Upper bound of what an operation takes in a frame besides its payload.
_FRAME_BYTES_MAX = 1 << 20
# A frame is no longer than this, so that answers of its first operations do not wait for its last.
_OTHERS_BYTES = 128 << 10
# What a frame may hold besides its largest operation.
_SWEEP_S = 0.025
# How late a deadline may fire. One timer for all operations, while there are any.

_GOES_ELSEWHERE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})
# Refusals of the stream that do not mean that this server has no sessions.

_NO_FLAG = session_pb2.NO_FLAG

_pack = msgpack.Packer(autoreset=True).pack
_unpack = msgpack.unpackb


class Failure(NamedTuple):
    """How an operation ended that got no reply."""

    code: str
    """Name of the gRPC status; "" where none came, because the session broke."""
    text: str
    is_sent: bool

    def error(self, *, write: bool) -> KvError:
        """Return what to raise, as a unary call would."""
        if not self.is_sent:
            return UnreachableError(self.text)
        if not self.code:
            kind = OutcomeUnknownError if write else ReadFailedError
            return kind(self.text, grpc_code="UNAVAILABLE")
        return error_from(self.code, self.text, write=write)


class Session:
    """An open session. `open_session` makes it; it ends by itself, and then says so once."""

    def __init__(
        self, target: str, stream: Any, hello: dict[str, Any], on_end: Callable[[Session], None]
    ) -> None:
        self.methods: dict[str, int] = {path: n for n, path in enumerate(hello["methods"])}
        """What the server serves in sessions; the rest goes over unary calls."""
        self.payload_bytes_max: int = hello["frame_bytes"] - _OTHERS_BYTES
        """Payload that one operation may have here; a longer one goes over a unary call."""
        self._frame_bytes_max = min(_FRAME_BYTES_MAX, self.payload_bytes_max)
        # Servers before parts do not name their size, and must not be asked for them.
        self._flags = session_pb2.PARTS if "part_bytes" in hello else session_pb2.NO_FLAG
        self._puts_max: int = hello.get("puts", 0)
        self.takes_puts = self._puts_max > 0 and PUT.path in self.methods
        """Whether `submit_put` may be used; servers of earlier releases take no such items."""
        self._put_item: tuple[Any, ...] = (_PUTS,)
        """Takes more puts while it is the last one of the next frame."""
        self._put_payloads: list[bytes] = []
        self._put_end = 0
        """The id behind its last put's."""
        self.last_id = 0
        self.is_over = False
        self.is_leaving = False
        """The server is about to stop: what runs is finished, new work goes elsewhere."""
        self._target = target
        self._stream = stream
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self.time_s = self._loop.time
        self._operations_max: int = hello["operations"]
        self._bytes_max: int = hello["bytes"]
        self._calls: dict[int, tuple[asyncio.Future[Any], float, int]] = {}
        self._streams: dict[int, SessionStream] = {}
        self._parts: dict[int, list[bytes]] = {}
        """What has come of long replies."""
        self._inflight = 0
        self._inflight_bytes = 0
        self._out: list[Any] = [FORMAT]
        self._out_bytes = 0
        self._admitted_id = 0
        self._sent_id = 0
        """Ids leave in their order: up to this one, operations may have reached the server."""
        self._backlog: deque[tuple[Any, ...]] = deque()
        """What the server's window or the frame has no room for; in order of ids."""
        self._sleeping: asyncio.Future[None] | None = None
        self._is_sweeping = False
        self._writer = self._loop.create_task(self._write(), name="kvstore-session-writer")
        self._reader = self._loop.create_task(self._read(), name="kvstore-session-reader")

    # operations

    def submit(
        self, number: int, payload: bytes, deadline_s: float, left_s: float, flags: int
    ) -> asyncio.Future[Any]:
        """Send one operation; its id is `last_id` then.

        Returns a future that ends with the reply's bytes or a `Failure`; it raises nothing.
        """
        self.last_id = call_id = self.last_id + 1
        size_bytes = len(payload) + _ITEM_BYTES
        future = self._loop.create_future()
        self._calls[call_id] = (future, deadline_s, size_bytes)
        item = (_CALL, call_id, number, int(left_s * 1000) or 1, flags | self._flags, payload)
        if (
            self._backlog
            or self._inflight >= self._operations_max
            or self._out_bytes + size_bytes > self._frame_bytes_max
            or self._inflight_bytes + size_bytes > self._bytes_max
        ):
            self._queue(item)
        else:
            self._inflight += 1
            self._inflight_bytes += size_bytes
            self._out_bytes += size_bytes
            self._admitted_id = call_id
            self._out.append(item)
            if self._sleeping is not None:
                self._wake()
        if not self._is_sweeping:
            self._is_sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        return future

    def submit_put(self, payload: bytes, deadline_s: float, left_s: float) -> asyncio.Future[Any]:
        """Send a put that wants no more than to be done, together with those that come with it.

        As `submit`, but the future may also end with the revision that the put made.
        """
        size_bytes = len(payload) + _ITEM_BYTES
        if (
            self._backlog
            or self._inflight >= self._operations_max
            or self._out_bytes + size_bytes > self._frame_bytes_max
            or self._inflight_bytes + size_bytes > self._bytes_max
        ):
            return self.submit(self.methods[PUT.path], payload, deadline_s, left_s, _NO_FLAG)
        self.last_id = self._admitted_id = call_id = self.last_id + 1
        future = self._loop.create_future()
        self._calls[call_id] = (future, deadline_s, size_bytes)
        self._inflight += 1
        self._inflight_bytes += size_bytes
        self._out_bytes += size_bytes
        payloads = self._put_payloads
        left_ms = int(left_s * 1000) or 1
        if (
            self._out[-1] is self._put_item
            and self._put_end == call_id
            and self._put_item[2] == left_ms
            and len(payloads) < self._puts_max
        ):
            payloads.append(payload)
        else:
            self._put_payloads = [payload]
            self._put_item = (_PUTS, call_id, left_ms, self._flags, self._put_payloads)
            self._out.append(self._put_item)
        self._put_end = call_id + 1
        if self._sleeping is not None:
            self._wake()
        if not self._is_sweeping:
            self._is_sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        return future

    def submit_pipeline(
        self, operations: Sequence[tuple[int, bytes]], deadline_s: float, left_s: float
    ) -> list[asyncio.Future[Any]]:
        """Send operations that take effect in their order. The caller keeps them within a frame."""
        first_id = self.last_id + 1
        self.last_id += len(operations)
        futures = []
        for call_id, (_, payload) in enumerate(operations, first_id):
            future = self._loop.create_future()
            self._calls[call_id] = (future, deadline_s, len(payload) + _ITEM_BYTES)
            futures.append(future)
        left_ms = int(left_s * 1000) or 1
        self._queue((session_pb2.PIPELINE, first_id, left_ms, self._flags, operations))
        if not self._is_sweeping:
            self._is_sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        return futures

    def cancel(self, call_id: int) -> None:
        """Forget an operation that nobody waits for, and tell the server."""
        if call_id not in self._calls:
            return
        self._forget(call_id)
        if call_id <= self._admitted_id:
            self._push((session_pb2.CANCEL, call_id))

    def open_stream(self, method: Method[Any, Any]) -> SessionStream:
        """Open a stream inside the session."""
        self.last_id = stream_id = self.last_id + 1
        stream = SessionStream(self, stream_id, method.response)
        self._streams[stream_id] = stream
        number = self.methods[method.path]
        self.queue_item(
            (session_pb2.OPEN, stream_id, number, session_pb2.NO_FLAG, stream.window_bytes)
        )
        return stream

    def set_metadata(self, fields: dict[str, str]) -> None:
        """Replace metadata for all operations that are sent from now on."""
        self._push((session_pb2.METADATA, fields))

    # for the streams

    def queue_item(self, item: tuple[Any, ...]) -> None:
        """Send an item of a stream in the order of ids."""
        if not self.is_over:
            self._queue(item)

    def push_credit(self, stream_id: int, size_bytes: int) -> None:
        """Let the server send more on a stream."""
        self._push((session_pb2.CREDIT, stream_id, size_bytes))

    def drop_stream(self, stream_id: int) -> None:
        """Forget a stream, and tell the server unless it has ended it."""
        if self._streams.pop(stream_id, None) is not None:
            # Behind its OPEN, which may still wait.
            self.queue_item((session_pb2.CANCEL, stream_id))
            self._leave_if_done()

    # sending

    def _push(self, item: tuple[Any, ...]) -> None:
        if not self.is_over:
            self._out.append(item)
            if self._sleeping is not None:
                self._wake()

    def _queue(self, item: tuple[Any, ...]) -> None:
        self._backlog.append(item)
        self._admit()

    def _wake(self) -> None:
        assert self._sleeping is not None
        self._sleeping.set_result(None)
        self._sleeping = None

    def _admit(self) -> None:
        """Move what has room now from the backlog into the next frame."""
        backlog = self._backlog
        while backlog:
            item = backlog[0]
            kind, first_id = item[0], item[1]
            if kind == _CALL:
                ids: range | tuple[()] = range(first_id, first_id + 1)
            elif kind == session_pb2.PIPELINE:
                ids = range(first_id, first_id + len(item[4]))
            else:
                ids = ()
                size_bytes = len(item[2]) if kind == session_pb2.MESSAGE else 0
                if self._out_bytes and self._out_bytes + size_bytes > self._frame_bytes_max:
                    break
                self._out_bytes += size_bytes + _ITEM_BYTES
            if ids:
                sizes = [self._calls[each][2] for each in ids if each in self._calls]
                if len(sizes) < len(ids):  # given up meanwhile, by cancel or deadline, whole
                    backlog.popleft()
                    continue
                size_bytes = sum(sizes)
                busy = self._inflight > 0
                if (
                    (busy and self._inflight + len(ids) > self._operations_max)
                    or (busy and self._inflight_bytes + size_bytes > self._bytes_max)
                    or (self._out_bytes and self._out_bytes + size_bytes > self._frame_bytes_max)
                ):
                    break
                self._inflight += len(ids)
                self._inflight_bytes += size_bytes
                self._out_bytes += size_bytes
                self._admitted_id = ids[-1]
            elif kind == session_pb2.OPEN:
                self._admitted_id = first_id
            backlog.popleft()
            self._out.append(item)
        if len(self._out) > 1 and self._sleeping is not None:
            self._wake()

    async def _write(self) -> None:
        """Send frames: while one is on its way, what arrives becomes the next."""
        write = self._stream.write
        try:
            while True:
                if len(self._out) == 1 and self._backlog:
                    self._out_bytes = 0  # what was taken out again, because its time was over
                    self._admit()
                if len(self._out) == 1:
                    self._out_bytes = 0
                    if self.is_leaving and not self._calls and not self._streams:
                        await self._stream.done_writing()
                        return
                    self._sleeping = self._loop.create_future()
                    await self._sleeping
                    continue
                items = self._out
                self._out = [FORMAT]
                self._out_bytes = 0
                self._sent_id = self._admitted_id
                await write(Frame(body=_pack(items)))
                if self._backlog:
                    self._admit()
        except (CallError, ChannelClosedError, asyncio.InvalidStateError):
            return  # the reader meets the same end, with its status

    # receiving

    async def _read(self) -> None:
        read = self._stream.read
        text = "the server ended the session"
        try:
            while (frame := await read()) is not EOF:
                items = _unpack(frame.body, use_list=False, strict_map_key=False)
                first, *later = turns(items, self._operations_max)
                self._take(first)
                for turn in later:
                    await asyncio.sleep(0)
                    self._take(turn)
        except CallError as error:
            text = f"the session broke: {error.text or error.name}"
        except MALFORMED as error:
            text = f"the server sent a frame that makes no sense ({error!r})"
        except asyncio.CancelledError:
            text = "the session was closed"
            if not self.is_over:  # not `close`: gRPC cancels what runs when a channel closes
                raise
        finally:
            self._break(text)

    def _take(self, items: list[tuple[Any, ...]]) -> None:
        calls = self._calls
        for item in items:
            kind = item[0]
            if kind == _REPLY:
                if type(item[2]) is not bytes:
                    raise TypeError("a reply without bytes")
                call = calls.pop(item[1], None)
                if call is not None:  # else it was given up, and the answer crossed the cancel
                    self._inflight -= 1
                    self._inflight_bytes -= call[2]
                    future = call[0]
                    payload = item[2]
                    if self._parts and (parts := self._parts.pop(item[1], None)):
                        payload = b"".join((*parts, payload))
                    if not future.done():
                        future.set_result(payload)
            elif kind == _WRITTEN:
                self._written(item[1], item[2], item[3])
            elif kind == session_pb2.MESSAGE:
                if type(item[2]) is not bytes:
                    raise TypeError("a message without bytes")
                stream = self._streams.get(item[1])
                if stream is not None:
                    stream.take(item[2])
            elif kind == session_pb2.PART:
                if item[1] in calls:
                    self._parts.setdefault(item[1], []).append(item[2])
            elif kind == session_pb2.END:
                call_id, code, text = item[1:4]
                if type(code) is not int or type(text) is not str:
                    raise TypeError("an end without code and text")
                self._ended(call_id, code, text)
            elif kind == session_pb2.GOAWAY:
                self._leave()
        if self._backlog:
            self._admit()
        self._leave_if_done()

    def _written(self, first_id: int, revision: int, count: int) -> None:
        calls = self._calls
        freed_bytes = 0
        for call_id in range(first_id, first_id + count):
            call = calls.pop(call_id, None)
            if call is not None:
                self._inflight -= 1
                freed_bytes += call[2]
                if not call[0].done():
                    call[0].set_result(revision)
            revision += 1
        self._inflight_bytes -= freed_bytes

    def _ended(self, call_id: int, code: int, text: str) -> None:
        stream = self._streams.pop(call_id, None)
        if stream is not None:
            stream.end(code, text)
        elif call_id in self._calls:
            self._forget(call_id, Failure(name_of(code), text, is_sent=True))

    def _forget(self, call_id: int, failure: Failure | None = None) -> None:
        future, _, size_bytes = self._calls.pop(call_id)
        self._parts.pop(call_id, None)
        if call_id <= self._admitted_id:
            self._inflight -= 1
            self._inflight_bytes -= size_bytes
        if failure is not None and not future.done():
            future.set_result(failure)

    def _sweep(self) -> None:
        """End the operations whose time is over."""
        now_s = self._loop.time()
        late = [call_id for call_id, call in self._calls.items() if call[1] <= now_s]
        unsent = {call_id for call_id in late if call_id > self._sent_id}
        if unsent:
            # Never sent, so it must not be sent now. A pipeline's operations are late together.
            out = self._out[1:]
            del self._out[1:]
            for item in out:
                self._out += without(item, unsent)
        for call_id in late:
            if call_id in unsent:
                text = f"{self._target}: no time left to send"
                self._forget(call_id, Failure("", text, is_sent=False))
            else:
                self._forget(
                    call_id, Failure("DEADLINE_EXCEEDED", "Deadline Exceeded", is_sent=True)
                )
                self._push((session_pb2.CANCEL, call_id))
        if self._backlog:
            self._admit()
        self._is_sweeping = bool(self._calls)
        if self._is_sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)

    # ends

    def _leave(self) -> None:
        """The server is about to stop: take nothing new, finish what runs."""
        if not self.is_leaving:
            self.is_leaving = True
            self._on_end(self)
            for stream in list(self._streams.values()):
                stream.end(UNAVAILABLE, "the server is shutting down")
                self.drop_stream(stream.id)

    def _leave_if_done(self) -> None:
        if self.is_leaving and not self._calls and not self._streams and self._sleeping:
            self._wake()

    def _break(self, text: str) -> None:
        if self.is_over and not self._calls and not self._streams:
            return
        self.is_over = True
        self._on_end(self)
        self._writer.cancel()
        self._stream.cancel()
        text = f"{self._target}: {text}"
        for call_id in list(self._calls):
            self._forget(call_id, Failure("", text, is_sent=call_id <= self._sent_id))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end(UNAVAILABLE, text)
        self._backlog.clear()

    async def close(self) -> None:
        """End the session; operations under way get their outcome."""
        self.is_over = True
        self._reader.cancel()
        self._writer.cancel()
        await asyncio.wait({self._reader, self._writer})
        self._break("the session was closed")


async def open_session(
    target: str,
    channel: Channel,
    metadata: Any,
    on_end: Callable[[Session], None],
) -> Session:
    """Open a session. `on_end` runs when it takes no more operations.

    Raises UnsupportedError when the server offers none (that this client can read), and
    UnreachableError when it could not be asked.
    """
    stream = channel.stream_stream(
        OPEN_PATH,
        request_serializer=Frame.SerializeToString,
        response_deserializer=Frame.FromString,
    )(metadata=metadata)
    try:
        frame = await stream.read()
    except CallError as error:
        text = f"{target}: {error.text or error.name}"
        if error.name in _GOES_ELSEWHERE:
            raise UnreachableError(text) from error
        raise UnsupportedError(text, grpc_code=error.name) from error
    except BaseException:
        stream.cancel()
        raise
    if frame is EOF:
        raise UnreachableError(f"{target}: the server ended the session")
    try:
        hello = read_hello(_unpack(frame.body))
    except MALFORMED as error:
        stream.cancel()
        raise UnsupportedError(f"{target}: no hello of a session: {error}") from error
    return Session(target, stream, hello, on_end)
