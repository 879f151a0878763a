"""The client port of a process: calls and streams that take time, get lost and end with it.

Stands in for `kvstore.rpc`: the product's services register here and see `UnaryCall` and
`StreamCall` where they see `kvstore.rpc.Call` in production.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kvstore.rpc import StreamHandler

if TYPE_CHECKING:
    from tests.sim.full.machine import Process

LOST = -1
"""Stands where a gRPC code is: the connection broke before an answer came."""

Answer = Callable[[int, "bytes | str"], None]
"""Takes 0 and the reply, a gRPC code and its text, or LOST and why."""


class UnaryCall:
    """One call, as its handler sees it."""

    __slots__ = (
        "_answer",
        "_needs_leader",
        "_process",
        "cancelled",
        "deadline_s",
        "on_cancel",
        "path",
    )

    peer_certificate = None
    peer = "client"
    unsent_bytes = 0

    def __init__(
        self, process: Process, path: str, answer: Answer | None, *, needs_leader: bool
    ) -> None:
        self._process = process
        self._answer = answer
        self._needs_leader = needs_leader
        self.path = path
        self.cancelled = False
        self.deadline_s: float | None = None
        self.on_cancel: Callable[[], None] | None = None

    def metadata(self, name: bytes) -> bytes | None:
        return b"true" if name == b"hasleader" and self._needs_leader else None

    def reply(self, message: bytes) -> None:
        self.end(0, message)

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        self.reply(b"".join(parts))

    def fail(self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.end(code, text)

    def end(self, code: int, body: bytes | str) -> None:
        """Send the answer on its way."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        process = self._process
        process.server.calls.pop(self, None)
        world, profile = process.world, process.profile
        if code != LOST and world.chance(profile.reply_loss):
            world.mark("reply lost")
            return
        world.after(process.client_delay_ns(), lambda _: answer(code, body))


class Client(Protocol):
    """The client's side of a stream."""

    def message(self, data: bytes) -> None:
        """Take a message of the server."""

    def ended(self, code: int, text: str) -> None:
        """The stream is over; LOST when the connection broke."""


class StreamCall:
    """One stream, as its handler sees it, and the client's end of it."""

    peer_certificate = None
    peer = "client"
    deadline_s = None

    def __init__(self, process: Process, path: str, client: Client, *, room_bytes: int) -> None:
        self.path = path
        self.fields: dict[bytes, bytes] = {}
        """What the client sent as metadata."""
        self.cancelled = False
        self.on_cancel: Callable[[], None] | None = None
        self.unsent_bytes = 0
        self.handler: StreamHandler | None = None
        self.reading = True
        """False: the client does not read, as one that is busy or stuck."""
        self._process = process
        self._client: Client | None = client
        self._room_bytes = room_bytes
        self._throttled = False
        self._queue: deque[bytes] = deque()
        self._moving = False
        self._end: tuple[int, str] | None = None

    # the handler's side

    def metadata(self, name: bytes) -> bytes | None:
        return self.fields.get(name)

    def send(self, message: bytes) -> bool:
        if self._client is None or self._end is not None:
            return True
        self._queue.append(message)
        self.unsent_bytes += len(message)
        self._move_soon()
        if self.unsent_bytes > self._room_bytes:
            self._throttled = True
            return False
        return True

    def send_all(self, messages: Sequence[bytes]) -> bool:
        return [self.send(message) for message in messages][-1]

    def finish(
        self, code: int = 0, text: str = "", metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        if self._end is None:
            self._end = (code, text)
            self._move_soon()

    def fail(self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._queue.clear()
        self.unsent_bytes = 0
        self.finish(code, text)

    def pause_receiving(self) -> None: ...

    def resume_receiving(self) -> None: ...

    # the network

    def _move_soon(self) -> None:
        if not self._moving and self._client is not None:
            self._moving = True
            self._process.world.after(self._process.client_delay_ns(), self._move)

    def _move(self, _: object) -> None:
        self._moving = False
        client, process = self._client, self._process
        if client is None or not self.reading:
            return
        if self._queue:
            process.world.events += 1
            message = self._queue.popleft()
            self.unsent_bytes -= len(message)
            client.message(message)
            if self._throttled and self.unsent_bytes <= self._room_bytes // 2:
                self._throttled = False
                if process.alive() and self.handler is not None:
                    process.enter(self.handler.writable)
        if self._queue or self._end is not None:
            if not self._queue and self._end is not None:
                self.drop(*self._end)
            else:
                self._move_soon()

    def drop(self, code: int, text: str) -> None:
        """End the client's side."""
        client, self._client = self._client, None
        self._process.server.calls.pop(self, None)
        if client is not None:
            client.ended(code, text)

    # the client's side

    def request(self, message: bytes) -> None:
        """Send a message to the server."""

        def arrive(_: object) -> None:
            process = self._process
            if self._client is not None and process.alive() and self.handler is not None:
                process.world.events += 1
                process.enter(self.handler.message, message)

        self._process.world.after(self._process.client_delay_ns(), arrive)

    def read_on(self) -> None:
        """Read again."""
        self.reading = True
        self._move_soon()

    def cancel(self) -> None:
        """Leave without a word."""
        self._client = None
        self.cancelled = True
        self._process.server.calls.pop(self, None)
        if self._process.alive() and self.handler is not None:
            self._process.enter(self.handler.cancelled)


class SimServer:
    """`kvstore.rpc.Server` of one process."""

    def __init__(self, process: Process) -> None:
        self.calls: dict[UnaryCall | StreamCall, None] = {}
        self._process = process
        self._unary: dict[str, Callable[[Any, bytes], None]] = {}
        self._streams: dict[str, Callable[[Any], StreamHandler]] = {}
        self.listening = False

    # the product's side

    def unary(self, path: str, handler: Callable[[Any, bytes], None]) -> None:
        self._unary[path] = handler

    def stream(self, path: str, handler: Callable[[Any], StreamHandler]) -> None:
        self._streams[path] = handler

    async def listen(self, host: str, port: int, *, tls: Any = None) -> int:
        self.listening = True
        return port

    async def drain(self, grace_s: float) -> None:
        self.listening = False

    # the clients' side

    def call(self, path: str, data: bytes, answer: Answer, *, needs_leader: bool = True) -> None:
        """Make a unary call; `answer` may never run, when the reply is lost.

        `needs_leader`: as our own client, ask to be refused at once where there is no leader;
        other clients wait.
        """
        process = self._process

        def arrive(_: object) -> None:
            if not process.alive() or not self.listening:
                answer(LOST, "connection refused")
                return
            process.world.events += 1
            call = UnaryCall(process, path, answer, needs_leader=needs_leader)
            self.calls[call] = None
            process.enter(self._unary[path], call, data)

        process.world.after(process.client_delay_ns(), arrive)

    def open(self, path: str, client: Client, room_bytes: int) -> StreamCall:
        """Open a stream."""
        process = self._process
        call = StreamCall(process, path, client, room_bytes=room_bytes)
        self.calls[call] = None

        def arrive(_: object) -> None:
            if not process.alive() or not self.listening:
                call.drop(LOST, "connection refused")
            elif not call.cancelled:

                def begin() -> None:
                    call.handler = self._streams[path](call)

                process.enter(begin)

        process.world.after(0, arrive)
        return call

    def died(self) -> None:
        """The process is gone: every connection breaks."""
        world = self._process.world
        for call in list(self.calls):
            if isinstance(call, UnaryCall):
                call.end(LOST, "connection lost")
            else:
                world.after(
                    self._process.client_delay_ns(),
                    lambda _, call=call: call.drop(LOST, "connection lost"),  # type: ignore[misc]
                )
        self.calls.clear()
