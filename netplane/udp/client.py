"""The agent's end of the control socket, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

from netplane.udp.control import (
    MESSAGE_BYTES_MAX,
    ControlError,
    Hello,
    SilentError,
    answer,
    encode,
    make_socket,
)
from netplane.udp.owner import Owner

ANSWER_S = 5.0
PIECES = 5
"""That this is waited in. Who has had no CPU himself wakes up with the time over and the answer
unread; so no more than one piece is lost to that."""


class Client:
    """A connection to a process; `lost` is set when it is of no use any more."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.is_silent = False
        """It is lost because a question was not answered."""
        self._socket = make_socket()
        self._socket.setblocking(False)
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[bytes] | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, path: str) -> None:
        """Begin.

        Raises:
            SilentError: Somebody listens, and takes no more connections.
            OSError: Nobody listens there.
        """
        for _ in range(PIECES):
            try:
                self._socket.connect(path)
            except BlockingIOError:
                # So many wait already, and nothing tells when there is room.
                await asyncio.sleep(ANSWER_S / PIECES)
            else:
                self._reading = asyncio.create_task(self._read())
                return
        raise SilentError(f"it takes no connections, for {ANSWER_S:g} s")

    def owner(self) -> Owner:
        """Return whose process it is. Raises OSError."""
        return Owner.connected_to(self._socket)

    async def hello(self) -> Hello:
        """Return what it says of itself. Raises ControlError."""
        return Hello.parse(await self.ask("hello"))

    async def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Return the answer to a question.

        Raises ControlError: the process has ended, or refuses. SilentError: it keeps silent.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            self._waiting = loop.create_future()
            try:
                if self.lost.is_set():
                    return answer(b"")
                async with asyncio.timeout(ANSWER_S):
                    await loop.sock_sendall(self._socket, encode({"ask": what, **more}))
                return answer(await self._answered(self._waiting))
            except TimeoutError as error:
                self.is_silent = True
                self.lost.set()
                raise SilentError(f"no answer within {ANSWER_S:g} s") from error
            except OSError as error:
                raise ControlError(f"the process has ended: {error.strerror}") from error
            except asyncio.CancelledError:
                # As above: a late answer would be taken for that to the next question.
                self.lost.set()
                raise
            finally:
                self._waiting = None

    async def _answered(self, waiting: asyncio.Future[bytes]) -> bytes:
        for _ in range(PIECES):
            await asyncio.wait({waiting}, timeout=ANSWER_S / PIECES)
            if waiting.done():
                return waiting.result()
        raise TimeoutError

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            data = b"-"
            while data:
                data = await loop.sock_recv(self._socket, MESSAGE_BYTES_MAX)
                if self._waiting is not None and not self._waiting.done():
                    self._waiting.set_result(data)
        except OSError:
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(b"")
        finally:
            self.lost.set()

    def close(self) -> None:
        """Leave the process, which goes on."""
        self.lost.set()
        if self._reading is not None:
            self._reading.cancel()
        self._socket.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()
        if self._reading is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
