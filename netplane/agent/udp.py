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
from netplane.udp.client import ANSWER_S, Client
from netplane.udp.control import (
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    Config,
    ControlError,
    Hello,
    SilentError,
    answer,
    encode,
    make_socket,
)
from netplane.udp.owner import Owner

log = logging.getLogger("netplane.udp")

START_S = 20.0
SHOW_S = 0.1
"""How often it is looked whether its file is there again."""
END_S = 5.0
ASK_S = 1.0
PULSE_S = 5.0
"""How often it is asked for a sign of life."""
SILENCES_MAX = 2
"""Questions in a row without an answer, each for `ANSWER_S`, before it is killed."""
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
        self.hangs = 0
        """How often it was killed, as it gave no answer."""
        self._config = config
        self._path = path
        self._on_change = on_change
        self._peers: Sequence[ToldPeer] = ()
        self._remove = False
        self._client: Client | None = None
        self._owner: Owner | None = None
        """Whom we were connected to last, if that is known."""
        self._has_run = False
        """So one that is not there has ended by itself."""
        self._silences = 0
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
        """Start it again when it ends or hangs, until cancelled."""
        delay_s = RETRY_FIRST_S
        while True:
            client = self._client
            if client is None or self.trouble:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)
            else:
                delay_s = RETRY_FIRST_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PULSE_S):
                        await client.lost.wait()
            async with self._lock:
                if self._client is not client:
                    continue  # somebody was quicker
                if client is None or self.trouble or not await _answers(client):
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
        """End it, also one that hangs, and take the device away."""
        async with self._lock:
            try:
                for _ in range(SILENCES_MAX):
                    if await self._stop():
                        break
                else:
                    tun.remove(tun.attach(self._config.device))
            except OSError as error:
                self.trouble = f"cannot remove {self._config.device}: {error.strerror}"
                self._on_change()
            self._leave()

    async def _stop(self) -> bool:
        """Tell whether it has ended and the device is gone; it is killed if it never answers."""
        try:
            if self._client is None or self._client.lost.is_set():
                self._leave()
                await self._connect()
            await self._end(remove=True)
        except SilentError as error:
            await self._bear(error)
            return False
        except (ControlError, OSError):
            # It does not run; the device may be there all the same.
            tun.remove(tun.attach(self._config.device))
        return True

    def close(self) -> None:
        """Leave it alone; it goes on."""
        self._leave()
        self._set_owner(None)

    # with the lock

    async def _feed(self) -> None:
        before = self.trouble, self.restarts, self.hangs, self.key
        try:
            client = self._client
            if client is not None and client.lost.is_set():
                self._leave()
                if client.is_silent:
                    raise SilentError(f"no answer within {ANSWER_S:g} s")  # noqa: TRY301
            if self._client is None:
                await self._find()
            assert self._client is not None
            await self._client.ask("peers", peers=self._peers, add=not self._remove)
            self.trouble = ""
        except SilentError as error:
            await self._bear(error)
        except (ControlError, OSError, subprocess.SubprocessError) as error:
            self.trouble = f"the process that moves packets does not run: {error}"
            self._leave()
        if before != (self.trouble, self.restarts, self.hangs, self.key):
            self._on_change()

    async def _bear(self, error: SilentError) -> None:
        """Note that it keeps silent, and kill it when it was asked often enough.

        It has no work that takes as long, so it is stopped, or turns in a circle; a machine that is
        too busy for it for as long has no CPU for another one either.
        """
        self._leave()
        self._silences += 1
        self.trouble = f"the process that moves packets hangs: {error}"
        if self._silences < SILENCES_MAX:
            return
        self._silences = 0
        try:
            if self._owner is None:
                # It has taken no connection, which would tell.
                self._set_owner(await asyncio.to_thread(Owner.listening_at, self._path))
        except OSError as problem:
            self.trouble += (
                f"; it cannot be found to be killed ({problem.strerror}),"
                " so do that by hand: `ss -xlp`"
            )
            return
        owner = self._owner
        assert owner is not None
        try:
            await owner.kill(END_S)
        except TimeoutError:
            self.trouble += f"; process {owner.pid} does not even end by SIGKILL"
            return
        self.trouble += f"; process {owner.pid} is killed, and another one started"
        log.warning("%s", self.trouble)
        self.hangs += 1
        self._has_run = False
        self._set_owner(None)

    async def _find(self) -> None:
        """Be connected to a process of our configuration and version."""
        try:
            await self._connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if self._has_run:
                log.warning("the process that moves packets has ended; it is started again")
            await self._start()
            await self._connect()
            self.restarts += self._has_run
        assert self._client is not None
        hello = await self._client.hello()
        self.key = hello.key  # also while it is not what we want, and none can follow it yet
        if not await self._is_right(hello):
            self._leave()
            await self._connect()
            self.key = (await self._client.hello()).key
        self._has_run = True
        self._silences = 0

    async def _is_right(self, hello: Hello) -> bool:
        """Tell whether a process is what we want; else another one runs in its place then."""
        config, speaks_ours = self._config, hello.protocol == PROTOCOL
        if speaks_ours and (hello.config, hello.version) == (config, __version__):
            return True
        log.info("the process that moves packets, %s, is followed by another one", hello)
        if config.follows(hello.config):
            try:
                await self._start("--take-over")
            except ControlError as error:
                if config.sealed:
                    raise  # or its key were lost, which cannot be told to others at any time
                log.warning("it cannot be followed, and is ended: %s", error)
            else:
                return False
        await self._end()
        await self._start()
        return False

    async def _connect(self) -> None:
        """Be connected; raises FileNotFoundError or ConnectionRefusedError where none runs."""
        try:
            await self._reach()
        except (FileNotFoundError, ConnectionRefusedError) as absent:
            try:
                owner = await asyncio.to_thread(Owner.listening_at, self._path)
            except OSError:
                raise absent from None
            # Others have removed its file, and it puts it back: see `Process`.
            self._set_owner(owner)
            await self._reach_again()

    async def _reach_again(self) -> None:
        """Be connected once the file is there. Raises SilentError."""
        log.warning("%s is gone, and the process that moves packets is to put it back", self._path)
        try:
            async with asyncio.timeout(ANSWER_S):
                while self._client is None:
                    await asyncio.sleep(SHOW_S)
                    with contextlib.suppress(FileNotFoundError):
                        await self._reach()
        except TimeoutError:
            raise SilentError(f"{self._path} is gone, and it does not put it back") from None

    async def _reach(self) -> None:
        client = Client()
        try:
            await client.connect(str(self._path))
        except BaseException:
            client.close()
            raise
        self._client = client
        try:
            self._set_owner(client.owner())
        except OSError as error:
            log.warning("it is not known which process moves packets: %s", error)
            self._set_owner(None)

    def _set_owner(self, owner: Owner | None) -> None:
        if self._owner is not None:
            self._owner.close()
        self._owner = owner

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

    async def _end(self, *, remove: bool = False) -> None:
        client = self._client
        assert client is not None
        await client.ask("stop", remove=remove)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await client.lost.wait()
        self._leave()

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


async def _answers(client: Client) -> bool:
    try:
        await client.hello()
    except ControlError:
        return False
    return True


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
