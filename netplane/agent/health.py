"""The agent's two small HTTP servers: a health port for others, a socket for `netplane ctl`.

Answers come whole, one to a connection. No web framework: its import would take longer than all
else that an agent does at its start, and a hundred of them start on one machine in the tests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from netplane.agent.errors import SettingsError

log = logging.getLogger("netplane.health")

HEAD_BYTES_MAX = 8192
HEAD_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
CONNECTIONS_MAX = 64
"""Beyond these a connection is closed at once: nobody may take the agent's files and memory."""


class Page(NamedTuple):
    """One answer."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"


Handler = Callable[[Mapping[str, str]], Awaitable[Page]]
"""Gets the query's parameters."""
Routes = Mapping[tuple[str, str], Handler]
"""By method and path."""


def text_page(text: str, status: int = 200) -> Page:
    """Return an answer of plain text."""
    return Page(status, text.encode())


def json_page(content: object, status: int = 200) -> Page:
    """Return an answer of JSON."""
    return Page(status, json.dumps(content).encode() + b"\n", "application/json")


class Server:
    """Serves routes on a TCP address or a unix socket."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._path: Path | None = None
        self.refused = 0
        """Connections closed because there were too many."""
        self.port = 0
        """Of a TCP server: what it listens on."""

    async def listen_tcp(self, host: str, port: int) -> None:
        """Serve on a port; 0 takes any. Raises SettingsError."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=HEAD_BYTES_MAX)
        except OSError as error:
            raise SettingsError(
                f"cannot serve the health page on {host}:{port}: {error.strerror}",
                "choose others with --healthz-ip and --healthz-port, or leave the port out",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def listen_unix(self, path: Path) -> None:
        """Serve on a socket that only our user may open; one of an agent that died is replaced.

        The caller holds the lock of the instance. Raises SettingsError.
        """
        self._server = await asyncio.start_unix_server(
            self._serve, sock=unix_listener(path, CONNECTIONS_MAX), limit=HEAD_BYTES_MAX
        )
        self._path = path

    async def close(self) -> None:
        """Stop serving. Answers that are ready still go out; who has not asked yet gets none."""
        if self._server is None:
            return
        self._server.close()
        if self._answering:
            await asyncio.wait(self._answering, timeout=CLOSE_TIMEOUT_S)
        for task in self._tasks:
            task.cancel()
        await self._server.wait_closed()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= CONNECTIONS_MAX:
            self.refused += 1
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Clients that come, say nothing or do not read must not stay for ever.
            async with asyncio.timeout(HEAD_TIMEOUT_S + ANSWER_TIMEOUT_S):
                head = await _read_head(reader)
                self._answering.add(task)
                method, page = await self._answer(head)
                writer.write(_head(page))
                if method != "HEAD":
                    writer.write(page.body)
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # gone or asleep: there is nobody to tell
        finally:
            self._tasks.discard(task)
            self._answering.discard(task)
            writer.close()

    async def _answer(self, head: bytes) -> tuple[str, Page]:
        if not head:
            return "", text_page("the request's head is too large\n", 431)
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "", text_page("this is no HTTP/1.1 request\n", 400)
        try:
            method, target = words[0], urlsplit(words[1])
        except ValueError:  # such as //[
            return "", text_page("the request's target is no path\n", 400)
        wanted = "GET" if method == "HEAD" else method
        handler = self._routes.get((wanted, target.path))
        if handler is None:
            known = any(path == target.path for _, path in self._routes)
            return method, text_page("", 405) if known else text_page("no such page\n", 404)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return method, await handler(dict(parse_qsl(target.query)))
        except TimeoutError:
            return method, text_page("the agent did not come to an answer in time\n", 504)
        except Exception:
            # A page that fails must not end the agent, whose work is the network.
            log.exception("the answer to %s %s failed", method, target.path)
            return method, text_page("the agent failed; its log tells more\n", 500)


def unix_listener(path: Path, backlog: int) -> socket.socket:
    """Return a listening socket that only our user may open; one that is there is replaced.

    Raises SettingsError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # It gets its name when it listens: who sees the socket is not refused a moment longer.
    unnamed = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unnamed.unlink(missing_ok=True)
        listener.bind(str(unnamed))
        # Before it listens: until then every connection is refused.
        os.chmod(unnamed, 0o600)
        listener.listen(backlog)
        unnamed.replace(path)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot make the socket {path}: {error.strerror}",
            "run as root, or choose another --run-dir",
        ) from error
    return listener


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Return a request's head; nothing when it is too large."""
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return b""


def _head(page: Page) -> bytes:
    reason = HTTPStatus(page.status).phrase
    return (
        f"HTTP/1.1 {page.status} {reason}\r\ncontent-type: {page.kind}\r\n"
        f"content-length: {len(page.body)}\r\nconnection: close\r\n\r\n"
    ).encode()
