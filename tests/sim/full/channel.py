"""What stands for the client's `Channel`: its connection to one simulated member.

Sessions, retries, failover and resumption above it are the library's own. Requests of a stream stay
in order, a connection ends with the process that it leads to, and of a call that was under way then
nobody can say whether it arrived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kvstore.client.status import CANCELLED, DEADLINE_EXCEEDED, EOF, UNAVAILABLE, CallError
from tests.sim.full.rpc import LOST, StreamCall

if TYPE_CHECKING:
    from tests.sim.full.loop import SimLoop
    from tests.sim.full.machine import Host, Process
    from tests.sim.world import World

NEVER_SENT = "failed to connect to all addresses"
ROOM_BYTES = 1 << 20


def failure(code: int, text: str) -> CallError:
    """Return what the library is told of the end of a call."""
    return CallError(UNAVAILABLE if code == LOST else code, text)


class Weather:
    """What all connections of one client suffer: for a while nothing comes in, or nothing goes out.

    Triggered by what goes out, so that often its answer is what is held up.
    """

    def __init__(self, world: World, clogs: float = 0.0, longest_ns: int = 1) -> None:
        self._world, self._clogs, self._longest_ns = world, clogs, longest_ns
        self.in_ns = self.out_ns = 0
        """Before these times nothing arrives here, or there."""

    def wrote(self) -> None:
        """A message of a stream is on its way and will arrive."""
        world = self._world
        if self._clogs and world.chance(self._clogs):
            world.mark("library: clogged")
            self.in_ns = world.now_ns + world.between(1, self._longest_ns)
            self.out_ns = world.now_ns + world.between(1, 2 * self._longest_ns)


class SimChannel:
    """A channel to the client port of one machine."""

    def __init__(self, loop: SimLoop, host: Host, weather: Weather) -> None:
        self.loop = loop
        self.weather = weather
        self._host = host
        self._world = loop.world
        self._process: Process | None = None
        self._is_closed = False

    # the connection

    async def connect(self) -> None:
        if self._is_up():
            return
        arrived = self.loop.create_future()

        def arrive(_: object) -> None:
            if not arrived.done():
                arrived.set_result(None)

        self._world.after(self._delay_ns(), arrive)
        await arrived
        process = self._host.process
        if process is None or not process.server.listening:
            raise ConnectionRefusedError("nobody listens")
        self._process = process

    def _is_up(self) -> bool:
        process = self._process
        return process is not None and process.alive() and process.server.listening

    def _delay_ns(self) -> int:
        world = self._world
        return self._host.cluster.profile.client_ns + world.random.getrandbits(16)

    def connected(self) -> Process:
        """Return the process at the other end. Raises CallError when nothing can be sent."""
        if self._is_closed or not self._is_up():
            raise failure(LOST, NEVER_SENT)
        assert self._process is not None
        return self._process

    async def close(self) -> None:
        self._is_closed = True

    # calls

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Any]:
        async def call(request: Any, *, timeout_s: float, metadata: Any = ()) -> Any:
            process = self.connected()
            ended: asyncio.Future[tuple[int, Any]] = self.loop.create_future()

            def answer(code: int, body: bytes | str) -> None:
                if not ended.done():
                    # Also of a connection that was refused: who writes to it learns no more.
                    ended.set_result((code, "Socket closed" if code == LOST else body))

            process.server.call(
                path, request_serializer(request), answer,
                needs_leader=("hasleader", "true") in metadata,
            )  # fmt: skip
            try:
                async with asyncio.timeout(timeout_s):
                    code, body = await ended
            except TimeoutError:
                raise failure(DEADLINE_EXCEEDED, "Deadline") from None
            if code:
                raise failure(code, body)
            return response_deserializer(body)

        return call

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., SimStream]:
        def call(metadata: Any = ()) -> SimStream:
            fields = {name.encode(): value.encode() for name, value in metadata}
            return SimStream(self, path, request_serializer, response_deserializer, fields)

        return call


class SimStream:
    """A stream, as `kvstore.client.channel.Stream`."""

    def __init__(
        self,
        channel: SimChannel,
        path: str,
        serialize: Any,
        parse: Any,
        fields: dict[bytes, bytes],
    ) -> None:
        self._loop = channel.loop
        self._world = channel.loop.world
        self._weather = channel.weather
        self._serialize, self._parse = serialize, parse
        self._messages: deque[bytes] = deque()
        self._end: tuple[int, str] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_end: Callable[[], None] | None = None
        self._last_ns = self._heard_ns = 0
        self._call: StreamCall | None = None
        try:
            self._process = channel.connected()
        except CallError as error:
            self._end = (LOST, error.text)
        else:
            self._call = self._process.server.open(path, self, ROOM_BYTES)
            self._call.fields = fields

    # the connection

    def message(self, data: bytes) -> None:
        self._hear(partial(self._messages.append, data))

    def ended(self, code: int, text: str) -> None:
        def end() -> None:
            self._end = (code, "Socket closed" if code == LOST else text)
            if self._on_end is not None:
                self._loop.call_soon(self._on_end)

        self._hear(end)

    def _hear(self, take: Callable[[], None]) -> None:
        """Take what comes, in its order, when the weather lets it through."""

        def arrive(_: object) -> None:
            if self._end is None:
                take()
                self._wake()

        self._heard_ns = max(self._heard_ns, self._weather.in_ns)
        if self._heard_ns > self._world.now_ns:
            self._world.at(self._heard_ns, arrive, None)
        else:
            arrive(None)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # the library

    async def write(self, message: Any) -> None:
        if self._end is not None:
            raise asyncio.InvalidStateError("the stream is over")
        self._deliver("message", self._serialize(message))
        self._weather.wrote()

    async def done_writing(self) -> None:
        if self._end is None:
            self._deliver("half_closed")

    def on_end(self, call: Callable[[], None]) -> None:
        self._on_end = call
        if self._end is not None:
            self._loop.call_soon(call)

    def _deliver(self, what: str, *arguments: bytes) -> None:
        arrival_ns = self._world.now_ns + self._process.client_delay_ns()
        self._last_ns = max(self._last_ns, arrival_ns, self._weather.out_ns)

        def take() -> None:
            # Looked up only now: a paused process has not opened the stream when this arrives.
            call = self._call
            if self._end is None and call is not None and call.handler is not None:
                getattr(call.handler, what)(*arguments)

        def arrive(_: object) -> None:
            if self._end is None:
                self._world.events += 1
                self._process.enter(take)

        self._world.at(self._last_ns, arrive, None)

    async def read(self) -> Any:
        while not self._messages:
            if self._end is not None:
                code, text = self._end
                if code == 0:
                    return EOF
                raise failure(code, text)
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._parse(self._messages.popleft())

    def cancel(self) -> bool:
        if self._end is None:
            self._end = (CANCELLED, "cancelled")
            if self._call is not None:
                self._call.cancel()
            self._wake()
        return True
