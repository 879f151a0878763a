"""Netlink requests with their answers, on an asyncio loop; what they mean is not known here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

from netplane.netlink.decode import (
    DUMP_INTERRUPTED,
    SUCCESS,
    Message,
    Outcome,
    is_success,
    messages,
    outcome,
)
from netplane.netlink.messages import Request, Type
from netplane.netlink.namespace import inside

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
SO_RCVBUFFORCE = 33

SEND_MAX = 150
"""Messages in one send. The answers of more overflow a receive buffer of the usual size."""

READ_MAX_BYTES = 64 * 1024
"""The kernel fills a dump's reads up to 32 KiB, so nothing is cut off."""

BUFFER_BYTES = 1024 * 1024
DUMPS_MAX = 4
TIMEOUT_S = 5.0


class NetlinkError(Exception):
    """The kernel refused a request; `code` is its errno."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class NetlinkLostError(Exception):
    """No answer came in time, or answers were lost. What was asked for may have happened."""


def open_socket(namespace: str | None, protocol: int = NETLINK_ROUTE) -> socket.socket:
    """Return a bound netlink socket that does not block, made in a namespace."""

    def action() -> socket.socket:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)

    opened = inside(namespace, action)
    try:
        opened.setblocking(False)
        opened.bind((0, 0))
    except OSError:
        opened.close()
        raise
    return opened


def drain(requests: socket.socket) -> None:
    """Take what is left of the answers to requests that were given up.

    After an overflow the kernel throws away all that comes until the socket is empty, and that
    would be the next answer.
    """
    while True:
        try:
            requests.recv(READ_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


class Connection:
    """A socket for requests. One caller at a time has it: others wait for their turn.

    Use as `async with Connection(namespace) as kernel`, or end with `close`.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        protocol: int = NETLINK_ROUTE,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._socket = open_socket(namespace, protocol)
        self._timeout_s = timeout_s
        self._sequence = 0
        self._turn = asyncio.Lock()
        self._is_clean = True
        """All that was asked for is answered."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        # Without it the kernel ignores what a dump asks to leave out, and sends everything.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        with contextlib.suppress(PermissionError):  # then 150 answers fit the usual buffer too
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self.port: int = self._socket.getsockname()[0]
        """Notifications about what we wrote carry it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    async def perform(self, requests: Sequence[Request]) -> list[Outcome]:
        """Send requests, in order, and return how each ended; one that fails stops no other.

        Those whose answer is lost end with ENOBUFS or ETIMEDOUT: they may have taken effect.
        """
        outcomes: list[Outcome] = []
        async with self._turn:
            for start in range(0, len(requests), SEND_MAX):
                if start:
                    await asyncio.sleep(0)  # answers come at once, so nothing else lets others in
                outcomes += await self._chunk(requests[start : start + SEND_MAX])
        return outcomes

    async def _chunk(self, requests: Sequence[Request]) -> list[Outcome]:
        numbers = range(self._sequence + 1, self._sequence + 1 + len(requests))
        self._sequence = last = numbers[-1]
        found: dict[int, Outcome] = {}
        untold = SUCCESS
        # The kernel goes by their order, and tells of each refusal: what has not been refused when
        # the last is answered has succeeded. To make and read each answer takes longer than a
        # third of what the requests do.
        encoded = [
            request.encode(number, quiet=number != last)
            for request, number in zip(requests, numbers, strict=True)
        ]
        try:
            self._send(encoded)
            try:
                # Each answer is a read of its own, and all are there already: neither the loop is
                # to be asked nor a timer to be set.
                data = self._socket.recv(READ_MAX_BYTES)
                if is_success(data, last):
                    self._is_clean = True
                    return [SUCCESS] * len(requests)
                _take(data, numbers, found)
                while last not in found:
                    _take(self._socket.recv(READ_MAX_BYTES), numbers, found)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(self._timeout_s):
                    while last not in found:
                        data = await loop.sock_recv(self._socket, READ_MAX_BYTES)
                        _take(data, numbers, found)
            # An answer for which there was no room is told of before any other is read.
            self._is_clean = True
        except TimeoutError:
            untold = Outcome(errno.ETIMEDOUT, f"no answer within {self._timeout_s:g} s")
        except OSError as error:
            untold = Outcome(error.errno or errno.EIO, f"the answer is lost: {error.strerror}")
        return [found.get(number, untold) for number in numbers]

    async def get(self, request: Request) -> Message | None:
        """Return the one message that answers a request, None if there is no such thing.

        Raises:
            NetlinkError: the kernel refused.
            NetlinkLostError: no answer.
        """
        async with self._turn, self._deadline():
            self._sequence = number = self._sequence + 1
            self._send([request.encode(number)])
            answer = None
            while True:
                for message in await self._read():
                    if message.sequence != number:
                        continue
                    if message.type != Type.ERROR:
                        answer = message
                        continue
                    ended = outcome(message)
                    self._is_clean = True
                    if ended.code in {errno.ENODEV, errno.ENOENT}:
                        return None
                    if ended.code:
                        raise NetlinkError(ended.code, ended.text)
                    return answer

    async def dump(self, request: Request) -> list[Message]:
        """Return all messages of a dump.

        A dump that others disturbed is repeated; when that goes on, the last one is returned:
        something may be missing from it, but nothing is in it that was not there.

        Raises:
            NetlinkError: the kernel refused.
            NetlinkLostError: no answer.
        """
        async with self._turn:
            for _ in range(DUMPS_MAX):
                async with self._deadline():
                    found, disturbed = await self._dump_once(request)
                if not disturbed:
                    break
        return found

    async def _dump_once(self, request: Request) -> tuple[list[Message], bool]:
        self._sequence = number = self._sequence + 1
        self._send([request.encode(number)])
        found: list[Message] = []
        disturbed = False
        while True:
            for message in await self._read():
                if message.sequence != number:
                    continue
                disturbed = disturbed or bool(message.flags & DUMP_INTERRUPTED)
                if message.type not in {Type.DONE, Type.ERROR}:
                    found.append(message)
                    continue
                ended = outcome(message)
                self._is_clean = True
                if ended.code:
                    raise NetlinkError(ended.code, ended.text)
                return found, disturbed
            await asyncio.sleep(0)

    def _send(self, encoded: list[bytes]) -> None:
        if not self._is_clean:
            drain(self._socket)
        self._is_clean = False
        # The kernel does the work within this call; it never answers "try again later" here.
        data = b"".join(encoded)
        if self._socket.send(data) != len(data):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))

    async def _read(self) -> list[Message]:
        try:
            # Each answer is a read of its own, and it is there already: no need to ask the loop.
            data = self._socket.recv(READ_MAX_BYTES)
        except BlockingIOError:
            data = await asyncio.get_running_loop().sock_recv(self._socket, READ_MAX_BYTES)
        return list(messages(data))

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise NetlinkLostError(f"no answer within {self._timeout_s:g} s") from error
        except OSError as error:
            raise NetlinkLostError(f"answers are lost: {error.strerror}") from error


def _take(data: bytes, numbers: range, found: dict[int, Outcome]) -> None:
    """Note how requests with these numbers ended."""
    for message in messages(data):
        # Answers to a request that was given up earlier may still come.
        if message.type == Type.ERROR and message.sequence in numbers:
            found[message.sequence] = outcome(message)
