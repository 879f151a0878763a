"""A TCP proxy between client and server that can swallow and cut; knows nothing of gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Self


class Proxy:
    """Forwards one port to another.

    `hold_answers` lets requests pass while nothing comes back; `cut` closes every connection;
    `refuse` also closes the port.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self.endpoint = ""
        self.requests_seen = asyncio.Event()
        """Set when a client has sent something since `hold_answers`."""

    async def __aenter__(self) -> Self:
        # A server of asyncio does not tell of a connection at once: it would outlive `refuse`.
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        host, port = listener.getsockname()
        self.endpoint = f"{host}:{port}"
        self._accepting = asyncio.create_task(self._accept(listener))
        self._accepting.add_done_callback(lambda _: listener.close())
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
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        await self.cut()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
            task = asyncio.create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # One that is cut before its first step has done nothing at all.
            task.add_done_callback(lambda _, client=client: client.close())

    async def _serve(self, client: socket.socket) -> None:
        # A cut, or either side has closed: the end of this connection in any case.
        with contextlib.suppress(asyncio.CancelledError, OSError, ExceptionGroup):
            reader, writer = await asyncio.open_connection(sock=client)
            try:
                server_reader, server_writer = await asyncio.open_connection(*self._target)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._copy(reader, server_writer, is_request=True))
                        group.create_task(self._copy(server_reader, writer, is_request=False))
                finally:
                    server_writer.transport.abort()
            finally:
                writer.transport.abort()

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
