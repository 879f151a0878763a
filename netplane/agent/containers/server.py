"""The socket that the plugin calls: frames and descriptors to calls, results to text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from netplane.agent.containers.call import Call, parse
from netplane.agent.containers.errors import CniError
from netplane.agent.health import unix_listener
from netplane.cni import plugin

log = logging.getLogger("netplane.containers")

HEAD_BYTES_MAX = 64
CALL_BYTES_MAX = 2 * plugin.CONFIG_BYTES_MAX
"""What the plugin passes on, with its environment."""

CALLS_MAX = 256
RECEIVE_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 10.0
DESCRIPTORS_MAX = 4
READ_BYTES = 65536

Perform = Callable[[Call, int], Awaitable[Mapping[str, Any] | None]]
Delete = Callable[[Call], Awaitable[None]]


class Frame(NamedTuple):
    """A call as it came."""

    variables: dict[str, str]
    config: bytes


class Server:
    """Serves calls of the plugin on a unix socket that only our user may open.

    Args:
        perform: does what a call asks for.
        undo: takes back what an ADD made whose caller is gone.
    """

    def __init__(self, perform: Perform, undo: Delete) -> None:
        self._perform = perform
        self._undo = undo
        self._listener: socket.socket | None = None
        self._path = Path()
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, path: Path) -> None:
        """Begin to serve. Raises SettingsError."""
        self._path = path
        self._listener = unix_listener(path, CALLS_MAX)
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def close(self) -> None:
        """Stop serving. Calls that were taken are done to their end, if that comes soon."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        self._listener.close()
        self._path.unlink(missing_ok=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            if len(self._tasks) >= CALLS_MAX:
                connection.close()  # the plugin says "try again later"
                continue
            task = asyncio.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with contextlib.closing(connection), contextlib.ExitStack() as stack:
            connection.setblocking(False)
            try:
                async with asyncio.timeout(RECEIVE_TIMEOUT_S):
                    frame, namespace = await receive(connection, stack)
            except (TimeoutError, OSError, ValueError) as error:
                log.warning("a call of the plugin came to nothing: %s", error)
                return
            status, text, call = await self._answer(frame, namespace, connection)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = b"%d %d\n%s" % (status, len(text), text)
                    await asyncio.get_running_loop().sock_sendall(connection, answer)
            except (TimeoutError, OSError):
                await self._take_back(status, call)

    async def _answer(
        self, frame: Frame, namespace: int, connection: socket.socket
    ) -> tuple[int, bytes, Call | None]:
        call = None
        try:
            call = parse(frame.variables, frame.config)
            _must_wait(connection)
            result = await self._perform(call, namespace)
        except CniError as error:
            log.warning("%s: %s", frame.variables.get("CNI_COMMAND"), error)
            failed = plugin.failure(frame.config, error.code, error.message, error.details)
            return *failed, call
        except Exception:
            # A call that fails must not end the agent, whose work is the network.
            log.exception("the call %s failed", frame.variables)
            text = "the agent failed; its log tells more"
            return *plugin.failure(frame.config, plugin.KERNEL, text), call
        return 0, b"" if result is None else json.dumps(result).encode() + b"\n", call

    async def _take_back(self, status: int, call: Call | None) -> None:
        if status or call is None or call.command != "ADD":
            return
        log.warning("%s is taken back: who asked for it is gone", call.key)
        try:
            await self._undo(call)
        except CniError as error:
            log.warning("%s", error)


async def receive(connection: socket.socket, stack: contextlib.ExitStack) -> tuple[Frame, int]:
    """Return a call and the descriptor that came with it, -1 for none; the stack closes it.

    Raises:
        ValueError: It is no call.
        OSError: The caller went away.
    """
    data = bytearray()
    descriptors: list[int] = []
    stack.callback(_close, descriptors)
    sizes: tuple[int, int] | None = None
    end = -1
    while sizes is None or len(data) < end + sum(sizes):
        await _readable(connection)
        room = socket.CMSG_SPACE(4 * DESCRIPTORS_MAX)
        part, ancillary, flags, _ = connection.recvmsg(READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, numbers in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += memoryview(numbers[: len(numbers) // 4 * 4]).cast("i")
        if flags & socket.MSG_CTRUNC:
            raise ValueError("it came with too many descriptors")
        if not part:
            raise ConnectionError("the caller went away")
        data += part
        if sizes is None and (end := data.find(b"\n") + 1):
            sizes = _sizes(bytes(data[: end - 1]))
        elif sizes is None and len(data) > HEAD_BYTES_MAX:
            raise ValueError("its first line has no end")
    assert sizes is not None
    variables, config = data[end : end + sizes[0]], data[end + sizes[0] : end + sum(sizes)]
    pairs = variables.decode(errors="surrogateescape").split("\0")
    known = dict(pair.partition("=")[::2] for pair in pairs)
    return Frame(known, bytes(config)), descriptors[0] if descriptors else -1


def _close(descriptors: Iterable[int]) -> None:
    for number in descriptors:
        os.close(number)


def _sizes(head: bytes) -> tuple[int, int]:
    magic = head.rpartition(b" ")[0].rpartition(b" ")[0]
    words = head[len(magic) :].split()
    if magic != plugin.MAGIC or len(words) != 2 or not all(word.isdigit() for word in words):
        raise ValueError(f"its first line is {head[:HEAD_BYTES_MAX]!r}: is the plugin another's?")
    found = int(words[0]), int(words[1])
    if sum(found) > CALL_BYTES_MAX:
        raise ValueError(f"it is of {sum(found)} bytes")
    return found


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _must_wait(connection: socket.socket) -> None:
    """Raise CniError when who called has gone: what it asked for is not wanted any more."""
    try:
        # It has nothing more to say, so what can be read is its end.
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return
    except OSError as error:
        raise CniError(plugin.TRY_LATER, "the caller is gone") from error
    raise CniError(plugin.TRY_LATER, "the caller is gone")
