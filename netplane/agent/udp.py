"""Keeps the userspace overlay's process: starts it, finds it again, tells it who the others are.

The process is not ours to end: it outlives the agent, and the next one goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvstore import __version__
from netplane.backend import ToldPeer
from netplane.udp import tun
from netplane.udp.client import Client
from netplane.udp.control import (
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    Config,
    ControlError,
    answer,
    encode,
    make_socket,
)

log = logging.getLogger("netplane.udp")

START_S = 20.0
END_S = 5.0
ASK_S = 1.0
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0


class ProcessKeeper:
    """One process of one configuration. Nothing is started before the first `apply`.

    Args:
        config: what it does; one that does something else is ended.
        path: of its socket.
        on_change: called when there is trouble, or none any more, and when it was started again.
    """

    def __init__(self, config: Config, path: Path, on_change: Callable[[], None]) -> None:
        self.trouble = ""
        """Why packets are not moved."""
        self.key = ""
        """Of the process, where packets are sealed; nothing until it is known."""
        self.restarts = 0
        """How often it was found to have ended."""
        self._config = config
        self._path = path
        self._on_change = on_change
        self._peers: Sequence[ToldPeer] = ()
        self._remove = False
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def apply(self, config: Config, peers: Sequence[ToldPeer], *, remove: bool) -> None:
        """Have the process do this and know these peers; what fails is tried again by `run`.

        Without `remove` it goes on with peers that it knows beyond these.
        """
        async with self._lock:
            if config != self._config:
                self._config = config
                self._leave()
            self._peers, self._remove = peers, remove
            await self._feed()

    async def run(self) -> None:
        """Start it again when it ends, until cancelled."""
        delay_s = RETRY_FIRST_S
        while True:
            client = self._client
            if client is None or self.trouble:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            else:
                delay_s = RETRY_FIRST_S
                await client.lost.wait()
            async with self._lock:
                if self._client is client:  # else somebody was quicker
                    await self._feed()

    async def counters(self) -> dict[str, Any] | None:
        """Return what it has done so far; None: it cannot tell now."""
        if self._client is None:
            return None
        try:
            return await self._client.ask("counters")
        except ControlError:
            return None  # `run` sees to it

    async def clear(self) -> None:
        """End it, and take the device away."""
        async with self._lock:
            try:
                client = self._client or await self._connect()
                await self._end(client, remove=True)
            except (ControlError, OSError):
                # It does not run; the device may be there all the same.
                try:
                    tun.remove(tun.attach(self._config.device))
                except OSError as error:
                    self.trouble = f"cannot remove {self._config.device}: {error.strerror}"
                    self._on_change()
            self._leave()

    def close(self) -> None:
        """Leave it alone; it goes on."""
        self._leave()

    # with the lock

    async def _feed(self) -> None:
        before = self.trouble, self.restarts, self.key
        try:
            if self._client is not None and self._client.lost.is_set():
                log.warning("the process that moves packets has ended; it is started again")
                self.restarts += 1
                self._leave()
            if self._client is None:
                self._client = await self._find()
                self.key = (await self._client.ask("hello"))["key"]
            await self._client.ask("peers", peers=self._peers, add=not self._remove)
            self.trouble = ""
        except (ControlError, OSError, subprocess.SubprocessError) as error:
            self.trouble = f"the process that moves packets does not run: {error}"
            self._leave()
        if before != (self.trouble, self.restarts, self.key):
            self._on_change()

    async def _find(self) -> Client:
        """Return a connection to a process of our configuration and version."""
        try:
            client = await self._connect()
        except OSError:
            await self._start()
            return await self._connect()
        try:
            if await self._is_right(client):
                return client
        except BaseException:
            client.close()
            raise
        client.close()
        return await self._connect()

    async def _is_right(self, client: Client) -> bool:
        """Tell whether a process is what we want; else another one runs in its place then."""
        hello = await client.ask("hello")
        if hello.get("protocol") != PROTOCOL or hello.get("config") != self._config.told():
            log.info("the process that moves packets is told to do something else: a new one")
            await self._end(client)
            await self._start()
        elif hello["version"] != __version__:
            log.info("a process of version %s is followed by one of ours", hello["version"])
            await self._start("--take-over")
        else:
            return True
        return False

    async def _connect(self) -> Client:
        client = Client()
        try:
            await client.connect(str(self._path))
        except OSError:
            client.close()
            raise
        return client

    async def _start(self, *flags: str) -> None:
        """Start one; it moves packets when this returns. Raises ControlError."""
        config = self._config
        command = [
            *(sys.executable, "-m", "netplane.udp", "--socket", str(self._path)),
            *("--device", config.device, "--mtu", str(config.mtu), "--address", config.address),
            *("--port", str(config.port), "--subnet", config.subnet, *flags),
            *(("--sealed",) if config.sealed else ()),
        ]
        # In a thread, as it ends by itself in a moment: what stays is the child of nobody here.
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ControlError(lines[-1] if lines else f"it ended with {done.returncode}")

    async def _end(self, client: Client, *, remove: bool = False) -> None:
        await client.ask("stop", remove=remove)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await client.lost.wait()
        client.close()

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def key_of_running(path: Path) -> str:
    """Return the key of a process that an agent before us has started; nothing where none runs.

    Blocks for a moment: it answers at once, or not at all.
    """
    with make_socket() as asking:
        asking.settimeout(ASK_S)
        try:
            asking.connect(str(path))
            asking.send(encode({"ask": "hello"}))
            return str(answer(asking.recv(MESSAGE_BYTES_MAX))["key"])
        except (OSError, ControlError, KeyError):
            return ""  # what is the matter with it is told when it is needed
