"""A server on each event loop, in a thread of its own, for blocking and asynchronous clients."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import uvloop

from kvstore.rpc import Call, HttpRequest, HttpResponse, Limits, Server
from tests.certificates import Authority

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Echo:
    """A bidirectional stream: every message comes back; `fail` ends it with an error.

    `all N` is answered with `numbered_parts(N)`, handed over together.
    """

    def __init__(self, call: Call, log: list[str]) -> None:
        self.call = call
        self.log = log

    def message(self, data: bytes) -> None:
        if data == b"fail":
            self.call.fail(9, "asked to fail", [(b"why-bin", b"\x00\x01"), (b"why", b"text")])
        elif data == b"raise":
            raise RuntimeError("a bug in a handler")
        elif data.startswith(b"all "):
            self.log.append(f"room {self.call.send_all(numbered_parts(int(data[4:])))}")
        else:
            self.call.send(data)

    def half_closed(self) -> None:
        self.call.finish()

    def cancelled(self) -> None:
        self.log.append("cancelled")

    def writable(self) -> None:
        self.log.append("writable")


class Collect(Echo):
    """A client stream: one reply with the sizes of all messages."""

    def __init__(self, call: Call, log: list[str]) -> None:
        super().__init__(call, log)
        self.sizes: list[int] = []

    def message(self, data: bytes) -> None:
        self.sizes.append(len(data))

    def half_closed(self) -> None:
        self.call.reply(b",".join(b"%d" % size for size in self.sizes))


class Produce(Echo):
    """A server stream: the request `count size` asks for that many messages of that size."""

    def __init__(self, call: Call, log: list[str]) -> None:
        super().__init__(call, log)
        self.left = 0
        self.size = 0

    def message(self, data: bytes) -> None:
        self.left, self.size = map(int, data.split())

    def half_closed(self) -> None:
        self.writable()

    def writable(self) -> None:
        while self.left:
            self.left -= 1
            if not self.call.send(b"x" * self.size):
                break
        if not self.left:
            self.call.finish()


def numbered_parts(count: int) -> list[bytes]:
    """Return the parts of the reply to `Parts`; one in three is empty."""
    return [b"%d," % number * (number % 3 * 500) for number in range(count)]


class Service:
    """The handlers that the tests call, and what they saw."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.held: list[Call] = []
        self.errors: list[BaseException] = []
        self.calls: list[Call] = []
        self.chunks_made = 0

    def register(self, server: Server) -> None:
        server.unary("/t.Test/Echo", lambda call, message: call.reply(message))
        server.unary("/t.Test/Big", lambda call, message: call.reply(b"x" * int(message)))
        server.unary("/t.Test/Parts", self.parts)
        server.unary("/t.Test/Fail", self.fail)
        server.unary("/t.Test/Raise", self.boom)
        server.unary("/t.Test/Hold", self.hold)
        server.unary("/t.Test/Metadata", self.metadata)
        server.stream("/t.Test/Chat", lambda call: self.note(Echo(call, self.log)))
        server.stream("/t.Test/Collect", lambda call: self.note(Collect(call, self.log)))
        server.stream("/t.Test/Produce", lambda call: self.note(Produce(call, self.log)))

    def note(self, handler: Echo) -> Echo:
        self.calls.append(handler.call)
        return handler

    def fail(self, call: Call, message: bytes) -> None:
        call.fail(5, message.decode(), [(b"detail-bin", b"\xff\x00"), (b"detail", b"some text")])

    def parts(self, call: Call, message: bytes) -> None:
        parts = numbered_parts(int(message))
        self.calls.append(call)
        call.reply_parts(parts, sum(map(len, parts)))

    def boom(self, call: Call, message: bytes) -> None:
        raise RuntimeError("a bug in a handler")

    def hold(self, call: Call, message: bytes) -> None:
        call.on_cancel = lambda: self.log.append("cancelled")
        self.held.append(call)

    def metadata(self, call: Call, message: bytes) -> None:
        call.reply(call.metadata(message) or b"absent")

    async def http(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/stream":

            async def chunks() -> Any:
                try:
                    for number in range(1000 if request.query == "long" else 3):
                        yield b"chunk %d\n" % number
                        if request.query == "long":
                            await asyncio.sleep(0.001)
                finally:
                    self.log.append("chunks closed")

            return HttpResponse(200, [("content-type", "text/plain")], chunks())
        if request.path == "/flood":

            async def flood() -> Any:
                for _ in range(100):
                    self.chunks_made += 1
                    yield bytes(65536)

            return HttpResponse(200, [], flood())
        if request.path == "/broken":

            async def half() -> Any:
                yield b"half"
                raise RuntimeError("a bug in a body")

            return HttpResponse(200, [("content-type", "text/plain")], half())
        if request.path == "/headers":
            text = "".join(f"{name}: {value}\n" for name, value in sorted(request.headers.items()))
            return HttpResponse(200, [("content-type", "text/plain")], text.encode())
        if request.path == "/raise":
            raise RuntimeError("a bug in a handler")
        if request.path == "/big":
            return HttpResponse(200, [], b"x" * int(request.query))
        text = f"{request.method} {request.path} {request.query} {len(request.body)}\n"
        return HttpResponse(200, [("content-type", "text/plain")], text.encode())


class Running:
    """A server in its own thread."""

    def __init__(self, server: Server, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.service = service
        self.loop = loop
        self.port = 0
        self.stray: list[dict[str, Any]] = []
        """Exceptions that reached the loop."""

    @property
    def connections(self) -> list[Any]:
        """The engine's own objects of the open HTTP/2 connections."""
        return self.run(lambda: list(self.server._engine.connections))

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a plain function on the server's loop and return its result."""
        result: Future[Any] = Future()

        def work() -> None:
            try:
                result.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001  # raised again by the caller
                result.set_exception(error)

        self.loop.call_soon_threadsafe(work)
        return result.result(10)

    def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Wait until the condition, looked at on the server's loop after each turn, is true."""

        async def poll() -> None:
            async with asyncio.timeout(timeout_s):
                # Conditions are about the engine's inner state, which has no event to await.
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(poll(), self.loop).result(timeout_s + 5)

    def drain(self, grace_s: float) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(self.server.drain(grace_s), self.loop)


def server_tls(authority: Authority, *, clients: bool = False) -> ssl.SSLContext:
    """A server's context as the member makes it; with `clients` they must show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(*authority.issue("server"))
    if clients:
        context.load_verify_locations(authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def running(
    loop_name: str,
    *,
    limits: Limits | None = None,
    http: bool = True,
    tls: Any = None,
) -> Iterator[Running]:
    """Serve `Service` until the block ends; an exception that reached the loop fails the test."""
    service = Service()
    loop = LOOPS[loop_name]()
    server = Server(
        limits=limits,
        http=service.http if http else None,
        on_error=service.errors.append,
    )
    service.register(server)
    ours = Running(server, service, loop)
    loop.set_exception_handler(lambda _loop, context: ours.stray.append(context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        listening = asyncio.run_coroutine_threadsafe(server.listen("127.0.0.1", 0, tls=tls), loop)
        ours.port = listening.result(10)
        yield ours
    finally:
        ours.drain(0.0).result(20)  # also after a failure: uvloop waits for open handles
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
    assert ours.stray == []


@pytest.fixture(params=sorted(LOOPS))
def loop_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(loop_name: str) -> Iterator[Running]:
    with running(loop_name) as server:
        yield server
