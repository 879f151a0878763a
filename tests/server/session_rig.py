"""Sessions over a real connection, with handlers that a test holds in its hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc.aio
import msgpack

from kvstore.apply.ops import Op
from kvstore.apply.state import open_state
from kvstore.mvcc.backend_memory import MemoryBackend
from kvstore.pb import session_pb2
from kvstore.pb.session_pb2 import Frame
from kvstore.rpc import Limits, Server
from kvstore.server.errors import TooManyRequestsError
from kvstore.server.header import Headers
from kvstore.server.proposals import Run
from kvstore.server.services.session import OPEN_PATH, SessionService
from kvstore.server.services.writes import Writes
from tests.rpc.conftest import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MESSAGE_BYTES_MAX = 2 << 20
SIZE_MAX = 10_000
"""Bytes that a put may have to pass the door."""


class KvHold:
    """KV methods that are answered by the test; for pipelines, which know these paths."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, Any]] = []
        self.depth = 0
        self.groups: list[int] = []
        """How many writes each group proposed."""

    def register(self, routes: SessionService) -> None:
        for name in ("Put", "Range", "Compact"):
            routes.unary(f"/etcdserverpb.KV/{name}", self._note(name))

    def _note(self, name: str) -> Callable[[Any, bytes], None]:
        def handler(call: Any, data: bytes) -> None:
            assert name == "Put" or not self.depth, "only writes are proposed together"
            self.calls.append((name, data, call))

        return handler

    @contextlib.contextmanager
    def together(self) -> Any:
        self.depth += 1
        before = len(self.calls)
        yield
        self.depth -= 1
        self.groups.append(len(self.calls) - before)

    def seen(self) -> list[tuple[str, bytes]]:
        return [(name, data) for name, data, _ in self.calls]


class PutLog:
    """Takes runs of puts as the node does, and holds them for the test to answer."""

    def __init__(self, sessions: SessionService) -> None:
        self.runs: list[tuple[list[Op], int, Run]] = []
        self.is_full = False
        self.is_serving = True
        self.size_bytes = 0
        self.a_turn_later: list[int] = []
        """How many runs there were in the turn after each."""

        state = open_state(MemoryBackend(), minimum_ttl_s=1)
        writes = Writes(
            self, state.store, Headers(1, 2),
            size_bytes=lambda: self.size_bytes, request_size_max=SIZE_MAX, quota_bytes=1 << 20,
        )  # fmt: skip
        sessions.open_door(writes, lambda: self.is_serving)

    def propose(self, kind: int, payload: bytes, done: Any) -> None:
        raise AssertionError("one by one they go to the handler")

    def propose_run(self, ops: list[Op], size_bytes: int, run: Run) -> None:
        if self.is_full:
            raise TooManyRequestsError
        self.runs.append((ops, size_bytes, run))
        later = asyncio.get_running_loop().call_soon
        later(lambda: self.a_turn_later.append(len(self.runs)))

    def linearizable(self, done: Any) -> None:
        raise AssertionError("puts are no reads")


class Client:
    """The client's end of a session: sends items and returns items."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.items: deque[Any] = deque()
        self.frames = 0
        self.methods: dict[str, int] = {}
        self.hello: dict[str, Any] = {}

    async def greet(self) -> None:
        kind, self.hello = await self.next()
        assert kind == session_pb2.HELLO
        self.methods = {path: number for number, path in enumerate(self.hello["methods"])}

    async def send(self, *items: Any) -> None:
        await self.send_body(msgpack.packb([1, *items]))

    async def send_body(self, body: bytes) -> None:
        await self.stream.write(Frame(body=body))

    def call(
        self, call_id: int, name: str, payload: bytes = b"", timeout_ms: int = 0, flags: int = 0
    ) -> list[Any]:
        path = name if name.startswith("/") else f"/t.Test/{name}"
        return [session_pb2.CALL, call_id, self.methods[path], timeout_ms, flags, payload]

    def open(self, stream_id: int, name: str, window_bytes: int = 1 << 20) -> list[Any]:
        return [session_pb2.OPEN, stream_id, self.methods[f"/t.Test/{name}"], 0, window_bytes]

    async def next(self) -> Any:
        """Return the next item; the stream's status is raised, its end is EOF."""
        while not self.items:
            frame = await asyncio.wait_for(self.stream.read(), 10)
            if frame is grpc.aio.EOF:
                return grpc.aio.EOF
            format_, *items = msgpack.unpackb(frame.body)
            assert format_ == 1
            self.frames += 1
            self.items.extend(items)
        return self.items.popleft()

    async def status(self) -> tuple[str, str]:
        """Read on until the server ends the session; return code and text."""
        try:
            while await self.next() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
        return "OK", ""


class Rig:
    """A server with sessions, on this loop."""

    def __init__(self, limits: Limits | None) -> None:
        loop = asyncio.get_running_loop()
        self.service = Service()
        self.kv = KvHold()
        self.server = Server(
            limits=limits or Limits(message_bytes_max=MESSAGE_BYTES_MAX),
            on_error=self.service.errors.append,
        )
        self.sessions = SessionService(
            self.server,
            frame_bytes_max=MESSAGE_BYTES_MAX,
            together=self.kv.together,
            later=loop.call_soon,
            later_s=loop.call_later,
            time_s=loop.time,
            on_error=self.service.errors.append,
        )
        self.service.register(self.sessions)  # type: ignore[arg-type]
        self.kv.register(self.sessions)
        self.sessions.register()
        self.channel: Any = None
        self.endpoint = ""

    async def open(self, metadata: Any = ()) -> Client:
        stream = self.channel.stream_stream(
            OPEN_PATH,
            request_serializer=Frame.SerializeToString,
            response_deserializer=Frame.FromString,
        )(metadata=metadata)
        client = Client(stream)
        await client.greet()
        return client

    @property
    def session(self) -> Any:
        [session] = self.sessions.sessions
        return session

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for inner state that no event announces."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def rig(limits: Limits | None = None) -> AsyncIterator[Rig]:
    ours = Rig(limits)
    port = await ours.server.listen("127.0.0.1", 0)
    ours.endpoint = f"127.0.0.1:{port}"
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.http2.bdp_probe", 0),  # the window stays small: a reader that stops shows soon
    ]
    try:
        async with grpc.aio.insecure_channel(ours.endpoint, options) as channel:
            ours.channel = channel
            yield ours
    finally:
        await ours.server.drain(0.0)
    await asyncio.sleep(0.005)  # gRPC's own thread reports the end of cancelled streams
    assert ours.sessions.queued_bytes == 0
