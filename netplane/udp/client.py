"""The agent's end of the control socket, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Self

from netplane.udp.control import MESSAGE_BYTES_MAX, ControlError, answer, encode, make_socket

ANSWER_S = 5.0


class Client:
    """A connection to a process; `lost` is set when it has ended."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self._socket = make_socket()
        self._socket.setblocking(False)
        self._lock = asyncio.Lock()
        self._waiting: asyncio.Future[bytes] | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, path: str) -> None:
        """Raise OSError when nobody listens there."""
        await asyncio.get_running_loop().sock_connect(self._socket, path)
        self._reading = asyncio.create_task(self._read())

    async def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Return the answer to a question.

        Raises ControlError: the process has ended, keeps silent or refuses.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            self._waiting = loop.create_future()
            try:
                async with asyncio.timeout(ANSWER_S):
                    await loop.sock_sendall(self._socket, encode({"ask": what, **more}))
                    return answer(b"" if self.lost.is_set() else await self._waiting)
            except TimeoutError as error:
                # A late answer would be taken for that to the next question.
                self.close()
                raise ControlError(f"no answer within {ANSWER_S:g} s") from error
            except OSError as error:
                raise ControlError(f"the process has ended: {error.strerror}") from error
            finally:
                self._waiting = None

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
