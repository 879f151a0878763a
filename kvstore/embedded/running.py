"""One embedded member on one event loop, from start to stop; who asks for it is in `api`."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvstore.embedded.member import LOOPBACK, GuestMember, MemberFailedError, bind
from kvstore.server.config import ServerConfig

Closer = Callable[[str], Awaitable[None]]
"""Closes a client and takes the reason, empty when there is none to tell."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `embed` was asked for."""

    data_dir: str | os.PathLike[str] | None
    port: int
    fsync: bool
    tune_process: bool
    settings: dict[str, Any] = field(default_factory=dict)


class Running:
    """A member and the clients that it gave out. `start`, then `stop` once; both on one loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._bound: socket.socket | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._failed = asyncio.Event()  # binds to a loop when it is waited for
        self._abandoning: asyncio.Task[None] | None = None
        self._closers: list[Closer] = []
        self._member: GuestMember | None = None
        self.endpoint = ""
        self.data_dir = Path()

    @property
    def failure(self) -> MemberFailedError | None:
        """Why the member stopped by itself; None while it serves."""
        return self._member.failure if self._member is not None else None

    def add_client(self, close: Closer) -> None:
        """Close this client when the member stops or fails."""
        self._closers.append(close)

    async def start(self) -> None:
        """Start the member; when that fails everything is as before.

        Raises:
            StartError, ConfigError, MemberFailedError: The text says what to do.
        """
        options = self._options
        try:
            if options.data_dir is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="kvstore-")
                self.data_dir = Path(self._temporary.name)
            else:
                self.data_dir = Path(options.data_dir)
            self._bound = bind(options.port)
            self.endpoint = f"{LOOPBACK}:{self._bound.getsockname()[1]}"
            config = ServerConfig(
                data_dir=str(self.data_dir),
                listen_client_urls=f"http://{self.endpoint}",
                **options.settings,
            ).check()
            self._member = GuestMember(
                config,
                self._bound,
                fsync=options.fsync,
                tune_process=options.tune_process,
                on_failure=self._begin_to_abandon,
            )
            await self._member.start_alone()
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        """Close the clients, stop the member, remove what is temporary.

        Raises:
            MemberFailedError: It had failed, or did so now.
        """
        await self._close_clients("")
        await self._end()
        if self.failure is not None:
            raise self.failure

    async def _end(self) -> None:
        try:
            if self._member is not None:
                await self._stop_member(self._member)
        finally:
            if self._bound is not None:
                self._bound.close()  # the server has, if it came so far
            if self._temporary is not None:
                self._temporary.cleanup()

    async def _stop_member(self, member: GuestMember) -> None:
        if not self._failed.is_set():
            stopping = asyncio.ensure_future(member.stop())
            failed = asyncio.ensure_future(self._failed.wait())
            try:
                await asyncio.wait({stopping, failed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # After a failure an orderly stop may wait for ever for the disk.
                for task in (stopping, failed):
                    task.cancel()
                results = await asyncio.gather(stopping, failed, return_exceptions=True)
            if member.failure is None and isinstance(results[0], Exception):
                raise results[0]
        if member.failure is not None:
            self._begin_to_abandon()
        if self._abandoning is not None:
            await self._abandoning

    def _begin_to_abandon(self) -> None:
        if self._abandoning is None:
            self._failed.set()
            self._abandoning = asyncio.get_running_loop().create_task(self._abandon())

    async def _abandon(self) -> None:
        member = self._member
        assert member is not None
        assert member.failure is not None
        # First, so that no call finds a closed port and tries again until its time is over.
        await self._close_clients(f"the embedded member failed: {member.failure}")
        await member.abandon()

    async def _close_clients(self, because: str) -> None:
        closers, self._closers = self._closers, []
        await asyncio.gather(*(close(because) for close in closers))
