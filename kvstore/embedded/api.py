"""`embed`: a member inside this process, on the caller's event loop or on a thread of its own.

with kvstore.embed() as member:
    client = member.client()
    client.put(b"greeting", b"hello")

async with kvstore.embed() as member:
    client = member.client()
    await client.put(b"greeting", b"hello")
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore.client import AsyncClient, Client
from kvstore.embedded.member import MemberFailedError
from kvstore.embedded.running import Options, Running

if TYPE_CHECKING:
    from types import TracebackType

    from kvstore.client.transport import Mode


def embed(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    port: int = 0,
    fsync: bool = True,
    tune_process: bool = False,
    **settings: Any,
) -> Embedding:
    """Describe a member of its own cluster inside this process; `with` or `async with` starts it.

    It is `kvstore serve` in all that clients see, on 127.0.0.1, alone: other members cannot join.
    When the block is entered, writes are taken. When it is left, the clients it gave out are
    closed, the member is stopped, and a later `embed` with the same data directory goes on from
    there (so does `kvstore serve` with the same data directory).

    Args:
        data_dir: Where the data is kept; made if absent. None is a temporary folder that is removed
            at the end.
        port: The client port; 0 is any free one, see `endpoint`.
        fsync: Whether writes wait for the disk. Without, a crash of this process still loses
            nothing, one of the machine can lose and damage everything: for tests.
        tune_process: Whether to set the interpreter as `kvstore serve` does: a shorter switch
            interval and less garbage collection, `gc.freeze` included. It is for programs that are
            mostly this member.
        settings: More of `kvstore.server.config.ServerConfig`, as `kvstore serve` has flags:
            `quota_backend_bytes`, `max_request_bytes`, `max_txn_ops` and so on.

    Raises (when entered; then nothing is left behind):
        StartError: The port is taken, or the data directory cannot be used.
        ConfigError: A setting cannot be used.
        MemberFailedError: The disk failed on the way.

    When the disk fails later, the member stops and this process goes on: calls of the clients that
    the member gave out raise ClosedError (OutcomeUnknownError for writes under way) with the
    cause in the text, their watches end, and leaving the block raises `MemberFailedError`.
    """
    return Embedding(Options(data_dir, port, fsync, tune_process, settings))


class Embedding:
    """A member to be: `with` runs it on a thread, `async with` on the running event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._entered: EmbeddedMember | AsyncEmbeddedMember | None = None

    def _enter_once(self) -> None:
        if self._entered is not None:
            raise RuntimeError("it was entered before; call kvstore.embed() for another one")

    def __enter__(self) -> EmbeddedMember:
        self._enter_once()
        self._entered = member = EmbeddedMember(self._options)
        member._start()  # noqa: SLF001 (the two are one)
        return member

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert isinstance(self._entered, EmbeddedMember)
        try:
            self._entered._stop()  # noqa: SLF001 (the two are one)
        except MemberFailedError as failure:
            _raise_or_note(failure, error)

    async def __aenter__(self) -> AsyncEmbeddedMember:
        self._enter_once()
        running = Running(self._options)
        self._entered = member = AsyncEmbeddedMember(running)
        await running.start()
        return member

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert isinstance(self._entered, AsyncEmbeddedMember)
        try:
            await self._entered._running.stop()  # noqa: SLF001 (the two are one)
        except MemberFailedError as failure:
            _raise_or_note(failure, error)


def _raise_or_note(failure: MemberFailedError, error: BaseException | None) -> None:
    # What the block raised is often the consequence; it must not hide the cause, nor be hidden.
    if error is None:
        raise failure
    error.add_note(f"the embedded member failed: {failure}")


class _Embedded:
    """What both forms tell of the member."""

    _running: Running

    @property
    def endpoint(self) -> str:
        """Where clients reach it, as host:port."""
        return self._running.endpoint

    @property
    def data_dir(self) -> Path:
        """Where its data is."""
        return self._running.data_dir

    @property
    def failure(self) -> MemberFailedError | None:
        """Why it stopped by itself; None while it serves."""
        return self._running.failure

    def check(self) -> None:
        """Raise what `failure` holds, if anything."""
        if self.failure is not None:
            raise self.failure


class AsyncEmbeddedMember(_Embedded):
    """A member on the event loop that entered `async with embed()`."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def client(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = 5.0,
        transport: Mode = "auto",
    ) -> AsyncClient:
        """Return a client of it, closed with it; the arguments are those of `AsyncClient`."""
        self.check()
        client = AsyncClient(
            [self.endpoint], user=user, password=password, timeout_s=timeout_s, transport=transport
        )
        self._running.add_client(client.close)
        return client


class EmbeddedMember(_Embedded):
    """A member on a thread of its own. Its methods may be called on any thread."""

    def __init__(self, options: Options) -> None:
        self._running = Running(options)
        self._started: Future[None] = Future()
        self._stop_asked: Future[None] = Future()
        self._stopped: Future[None] = Future()
        # A daemon, so that a program that ends inside of the block ends; the log is made for that.
        self._thread = threading.Thread(target=self._run, name="kvstore-member", daemon=True)

    def client(
        self,
        *,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = 5.0,
        transport: Mode = "auto",
    ) -> Client:
        """Return a client of it, closed with it; the arguments are those of `Client`.

        Programs with an event loop of their own use `AsyncClient([member.endpoint])`.
        """
        self.check()
        client = Client(
            [self.endpoint], user=user, password=password, timeout_s=timeout_s, transport=transport
        )

        async def close(because: str) -> None:
            # It waits for its own thread, so not on the member's loop.
            await asyncio.get_running_loop().run_in_executor(None, client.close, because)

        self._running.add_client(close)
        return client

    def _start(self) -> None:
        self._thread.start()
        try:
            self._started.result()
        except BaseException:  # the member's, or an interrupt here
            self._join()
            raise

    def _stop(self) -> None:
        self._join()
        self._stopped.result()

    def _join(self) -> None:
        if not self._stop_asked.done():
            self._stop_asked.set_result(None)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            try:
                runner.run(self._main())
            except BaseException as error:  # noqa: BLE001 (raised by `_start` and `_stop`)
                (self._stopped if self._started.done() else self._started).set_exception(error)
            else:
                self._stopped.set_result(None)

    async def _main(self) -> None:
        await self._running.start()
        self._started.set_result(None)
        await asyncio.wrap_future(self._stop_asked)
        await self._running.stop()
