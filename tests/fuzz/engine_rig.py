"""A connection of the RPC engine without a socket: bytes in, bytes out, time stands still."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from kvstore.rpc import Limits
from kvstore.rpc.connection import Connection
from kvstore.rpc.engine import Engine
from kvstore.rpc.server import Server
from tests.rpc.conftest import Service

TURNS_MAX = 2000


class StillLoop(asyncio.SelectorEventLoop):
    """A loop whose timers never fire, so that none of one input meets the next."""

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, **_: Any) -> Any:
        return asyncio.TimerHandle(when, callback, args, self)


class Pipe(asyncio.Transport):
    """Keeps what the engine sends."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.ended = False
        self.reading = True

    def write(self, data: Any) -> None:
        assert not self.ended, "bytes behind the end"
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    abort = close

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert (high or 0) >= (low or 0)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default


class EngineRig:
    """One engine with the handlers of the RPC tests; a connection for each input."""

    def __init__(self) -> None:
        self._loop = StillLoop()
        self._service = Service()
        server = Server(http=self._service.http)
        self._service.register(server)
        self._strays: list[Any] = []
        self._loop.set_exception_handler(lambda _loop, context: self._strays.append(context))
        self._make = lambda: Engine(
            Limits(), self._service.errors.append, server._routes, server._services,
            self._service.http,
        )  # fmt: skip

    def attack(self, data: bytes, chunk_bytes: int) -> None:
        """Feed the bytes, then end the connection; nothing may be left of it."""
        self._loop.run_until_complete(self._attack(data, chunk_bytes))
        # Handlers that fail when told to are the tests' own.
        errors = [e for e in self._service.errors if "a bug in a" not in str(e)]
        errors = [e for e in errors if not isinstance(e, ValueError)]  # `int(message)` in them
        self._service.__init__()  # type: ignore[misc]  # what it kept of this input
        assert not errors, errors
        assert not self._strays, self._strays

    async def _attack(self, data: bytes, chunk_bytes: int) -> None:
        pipe = Pipe()
        engine = self._make()
        connection = Connection(engine, pipe)
        connection.start(b"")
        size = chunk_bytes or len(data) or 1
        at = 0
        for _ in range(TURNS_MAX + len(data)):
            if at >= len(data) and not connection.yielding:
                break
            if pipe.reading and at < len(data):
                connection.data_received(data[at : at + size])
                at += size
            elif not connection.yielding:
                break  # it holds us back until we read: that is as far as this client comes
            await asyncio.sleep(0)
        else:
            raise AssertionError("it goes on for ever")
        await asyncio.sleep(0)
        check_frames(bytes(pipe.sent))
        pipe.ended = True
        connection.connection_lost(None)
        for _ in range(20):
            if not engine.tasks:
                break
            await asyncio.sleep(0)
        assert not engine.tasks
        assert not connection.streams
        counters = engine.counters
        assert (counters.unsent_bytes, counters.receiving_bytes) == (0, 0)
        assert (connection.held_bytes, connection.backlog_bytes) == (0, 0)


def check_frames(sent: bytes) -> None:
    """Check that whole frames were sent, none of them longer than any client must take."""
    at = 0
    while at < len(sent):
        word, _, stream = struct.unpack_from(">LBL", sent, at)
        assert word & 0xFF <= 9
        assert stream < 1 << 31
        at += 9 + (word >> 8)
    assert at == len(sent), "half a frame"
