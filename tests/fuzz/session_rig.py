"""The client's end of a session, fed with frames of the fuzzer's by a stream of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack

from kvstore.client import methods
from kvstore.client.errors import KvError
from kvstore.client.session import Failure, Session, open_session
from kvstore.client.status import EOF, CallError
from kvstore.client.transport import parse_answer
from kvstore.pb import rpc_pb2
from kvstore.pb.session_pb2 import Frame

HELLO = {
    "methods": ["/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch"],
    "frame_bytes": 1 << 20,
    "operations": 100,
    "bytes": 1 << 20,
}


class Stream:
    """A bidirectional stream in the form of grpc.aio's: plays the frames, then ends."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = list(frames)

    async def read(self) -> Any:
        await asyncio.sleep(0)
        return Frame(body=self._frames.pop(0)) if self._frames else EOF

    async def write(self, frame: Any) -> None:
        assert msgpack.unpackb(frame.body)[0] == 1

    async def done_writing(self) -> None: ...

    def cancel(self) -> None: ...


class Channel:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def stream_stream(self, *_: Any, **__: Any) -> Any:
        return lambda **_: self._stream


class ClientRig:
    """A session with two operations and a stream under way."""

    async def run(self, frames: list[bytes]) -> None:
        strays: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: strays.append(context))
        ended: list[Session] = []
        stream = Stream(frames)
        try:
            session = await open_session("fuzz", Channel(stream), None, ended.append)  # type: ignore[arg-type]
        except KvError:
            session = None
        if session is not None:
            await session.close()
        session = Session("fuzz", Stream(frames), HELLO, ended.append)  # type: ignore[arg-type]
        deadline_s = loop.time() + 60
        futures = [session.submit(0, b"request", deadline_s, 60.0, 0) for _ in range(2)]
        watch = session.open_stream(methods.WATCH)
        for _ in range(100 + 10 * len(frames)):
            if session._reader.done():
                break
            await asyncio.sleep(0)
        assert session._reader.done(), "it goes on reading for ever"
        if session._reader.exception() is not None:
            raise session._reader.exception()  # type: ignore[misc]
        assert session.is_over
        for future in futures:
            assert future.done(), "an operation without an outcome"
            answer = future.result()
            assert isinstance(answer, bytes | Failure)
            if isinstance(answer, bytes):
                parsed = parse_answer(methods.RANGE, answer, write=False)
                assert isinstance(parsed, rpc_pb2.RangeResponse | KvError)
        for _ in range(len(frames) + 1000):
            try:
                if await watch.read() is EOF:
                    break
            except CallError:
                break
        else:
            raise AssertionError("a stream that does not end")
        await session.close()
        assert not strays, strays
