"""A TCP proxy between client and server that can swallow and cut; knows nothing of gRPC."""

from __future__ import annotations

import asyncio
from typing import Self


class Proxy:
    """Forwards one port to another.

    `hold_answers` lets requests pass while nothing comes back; `cut` closes every connection;
    `refuse` also closes the port.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self.endpoint = ""
        self.requests_seen = asyncio.Event()
        """Set when a client has sent something since `hold_answers`."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.endpoint = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    def hold_answers(self) -> None:
        """Forward requests; keep what the server says."""
        self._answers.clear()
        self.requests_seen.clear()

    async def cut(self) -> None:
        """Close every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._answers.set()

    async def refuse(self) -> None:
        """Close every connection and take no new one."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, server_writer, is_request=True))
                group.create_task(self._copy(server_reader, writer, is_request=False))
        except (asyncio.CancelledError, OSError, ExceptionGroup):
            pass  # a cut, or either side has closed: the end of this connection in any case
        finally:
            self._tasks.discard(task)
            for each in writers:
                each.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        while data := await reader.read(65536):
            if not is_request:
                await self._answers.wait()
            writer.write(data)
            await writer.drain()
            if is_request:
                self.requests_seen.set()
        raise ConnectionResetError  # ends the copy of the other direction too
