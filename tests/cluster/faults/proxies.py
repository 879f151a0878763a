"""Links that can be cut without root: members on loopback reach each other through proxies.

One proxy stands before each member. Who calls is read from the hello, the first frame. A cut link
holds what is sent, as a network that drops packets does; what was held goes on when it heals.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from kvstore.peer.link import Channel, FrameReader, decode_hello

STRANGER = -1
"""A caller that is no member; no link of it is ever cut."""


class Proxies:
    """The proxies of all members, on a loop of their own thread. As `Namespaces`."""

    kind = "proxy"

    def __init__(self, members: int) -> None:
        self.members = members
        self.ports: list[int] = []
        self._targets: list[int] = []
        self._ids: dict[int, int] = {}
        """Member id to index; a caller that is not in it yet is held until it is."""
        self.cuts = 0
        self.held = 0
        """Pieces of data and new connections that had to wait at cut links."""

        self._cuts: set[tuple[int, int]] = set()
        self._changed: asyncio.Event
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Begin to listen; connections wait until `targets` are known."""
        self._thread.start()
        self._do(self._listen())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._changed = asyncio.Event()
        self._servers = []
        for index in range(self.members):

            def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, index: int = index
            ) -> Coroutine[Any, Any, None]:
                return self._serve(index, reader, writer)

            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])

    def know(self, ids: dict[int, int], targets: list[int]) -> None:
        """Say which member has which id, and where each really listens."""

        async def take() -> None:
            self._ids, self._targets = ids, targets

        self._do(take())

    def know_also(self, member_id: int, index: int) -> None:
        """Say that a member with this id is about to take a removed one's place."""

        async def take() -> None:
            self._ids[member_id] = index

        self._do(take())

    def stop(self) -> None:
        """Close every connection."""

        async def close() -> None:
            for server in self._servers:
                server.close()
            own = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not own]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def host(self, index: int) -> str:
        """Return a member's address."""
        return "127.0.0.1"

    def wrapper(self, index: int) -> list[str]:
        """Return nothing: members run here."""
        return []

    def cut(self, sender: int, receiver: int) -> None:
        """Hold whatever one member sends to another."""
        self.cuts += 1
        self._change(self._cuts.union({(sender, receiver)}))

    def heal(self) -> None:
        """Let every link work again."""
        self._change(set())

    def _change(self, cuts: set[tuple[int, int]]) -> None:
        async def change() -> None:
            self._cuts = cuts
            self._changed.set()
            self._changed = asyncio.Event()

        self._do(change())

    async def _passable(self, sender: int, receiver: int) -> None:
        if (sender, receiver) in self._cuts:
            self.held += 1
        while (sender, receiver) in self._cuts:
            await self._changed.wait()

    async def _serve(
        self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writers = [writer]
        try:
            head = await reader.readexactly(4)
            head += await reader.readexactly(int.from_bytes(head))
            [hello] = FrameReader().feed(head)
            shown = decode_hello(hello)
            # Who is to join asks for a description of the cluster before it knows who it is.
            is_stranger = shown.channel is Channel.DESCRIBE
            caller = STRANGER if is_stranger else self._ids[shown.sender]
            await self._passable(caller, target)
            there = await asyncio.open_connection("127.0.0.1", self._targets[target])
            writers.append(there[1])
            there[1].write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, there[1], caller, target))
                group.create_task(self._copy(there[0], writer, target, caller))
        except (OSError, ExceptionGroup, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass  # either side has closed, or the test ends
        finally:
            for each in writers:
                each.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: int, receiver: int
    ) -> None:
        while data := await reader.read(65536):
            await self._passable(sender, receiver)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # ends the copy of the other direction too
