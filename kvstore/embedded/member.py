"""The member that `kvstore.embed` runs: parts of the server, arranged to live in a guest's process.

What differs from `kvstore serve`: no signals, no log set-up, no tuning of the interpreter unless
asked for; no port for peers; and a failure that would end the process there ends the member here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.raft.messages import Role
from kvstore.server.config import ServerConfig, Url
from kvstore.server.member import Member
from kvstore.server.platform import RealPlatform
from kvstore.server.startup import RemovedError, StartError, explain_bind
from kvstore.wal import Options, RealDisk
from kvstore.wal.disk import RealFile

log = logging.getLogger("kvstore.embed")

LOOPBACK = "127.0.0.1"
READY_S = 30.0
SEGMENT_BYTES = 4 << 20
"""Two are allocated at the start; in a folder that lives in memory each takes its size there."""


class MemberFailedError(Exception):
    """The embedded member met what it cannot go on after, a failed fsync for example.

    It serves no more. Writes it had acknowledged are in its data directory; of those under way
    when it failed the outcome is unknown. `__cause__` is the error that it met.
    """


class _UnsyncedFile(RealFile):
    __slots__ = ()

    def sync(self) -> None:
        """Leave it to the system when the disk gets the bytes."""


class _UnsyncedDisk(RealDisk):
    __slots__ = ()

    def open(self, path: str, *, create: bool = False) -> RealFile:
        """Open a file whose `sync` does not wait."""
        return _UnsyncedFile(self.open_descriptor(path, create=create))

    def sync_folder(self, path: str) -> None:
        """Leave that to the system too."""


class _Platform(RealPlatform):
    """The system, for a member that is a guest in its process."""

    def __init__(
        self,
        failed: Callable[..., MemberFailedError],
        *,
        fsync: bool,
        tune_process: bool,
    ) -> None:
        super().__init__()
        self._failed = failed
        self._tune_process = tune_process
        self.fatal = self._fail
        self.disk_failed = partial(failed, what="the disk failed")
        if not fsync:
            self.disk = _UnsyncedDisk()
            self.open_backend = partial(LmdbBackend, sync=False)

    def _fail(self, error: BaseException, *, what: str = "the disk failed") -> NoReturn:
        raise self._failed(error, what=what)

    @staticmethod
    def wal_options() -> Options:
        """See `Platform`."""
        return Options(segment_bytes=SEGMENT_BYTES)

    def starting(self) -> None:
        """Leave the process as it is, unless it may be changed."""
        if self._tune_process:
            super().starting()

    def started(self) -> None:
        """Leave the process as it is, unless it may be changed."""
        if self._tune_process:
            super().started()


class GuestMember(Member):
    """A member alone in its cluster, on a socket that is bound already."""

    def __init__(
        self,
        config: ServerConfig,
        bound: socket.socket,
        *,
        fsync: bool,
        tune_process: bool,
        on_failure: Callable[[], None],
    ) -> None:
        """Take checked settings; `on_failure` runs on the loop, once, when `failure` is set."""
        platform = _Platform(self._note_failure, fsync=fsync, tune_process=tune_process)
        super().__init__(config, platform)
        self.failure: MemberFailedError | None = None
        self.on_removed = self._removed_from_cluster
        self._bound = bound
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._is_published = False
        self._news = asyncio.Event()

    async def start_alone(self) -> None:
        """Start, and return when a write would be taken.

        Raises:
            StartError: As `start`; also when the data is of a cluster with more members.
            MemberFailedError: The disk failed on the way.
        """
        await self.start()
        others = len(self.cluster.configuration().voters) - 1
        if others:
            raise StartError(
                f"{self.config.data_dir} is of a cluster with {others} more members, which an "
                "embedded member cannot reach; run it with kvstore serve"
            )
        try:
            async with asyncio.timeout(READY_S):
                while not (self.failure or (self._is_published and self.node.leader)):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise StartError(f"not ready after {READY_S:.0f} s: does the disk answer?") from error
        if self.failure is not None:
            raise self.failure

    async def _publish(self) -> None:
        await super()._publish()
        self._is_published = True
        self._news.set()

    def _role_changed(self, role: Role, leader: int, term: int) -> None:
        super()._role_changed(role, leader, term)
        self._news.set()

    async def _listen_peers(self) -> None:
        """Nobody comes: the member is alone."""

    async def _listen_clients(self, url: Url) -> None:
        await self.server.listen(bound=self._bound)

    def _note_failure(self, error: BaseException, *, what: str) -> MemberFailedError:
        """Remember the first failure; may be called on any thread of the member."""
        if self.failure is None:
            failure = MemberFailedError(f"{what}: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self.failure = failure
            log.critical("the embedded member stops: %s", failure)
            self._loop.call_soon_threadsafe(self._tell)
        return self.failure

    def _tell(self) -> None:
        self._news.set()
        self._on_failure()

    def _removed_from_cluster(self, error: RemovedError) -> None:
        self._note_failure(error, what="removed")

    async def abandon(self) -> None:
        """Stop after a failure: acknowledge nothing more, wait for nothing that cannot come."""
        if hasattr(self, "node"):
            self.node.stop()
        if hasattr(self, "server"):
            await self.server.drain(0.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "storage"):
            await self.storage.abandon()
        if hasattr(self, "peers"):
            self.peers.close()
        if hasattr(self, "links"):
            await self.links.close()
        if hasattr(self, "disk"):
            self.disk.close()
        if hasattr(self, "wal"):
            # The disk thread has closed it, unless it was the one to fail.
            self.wal.close()
        if hasattr(self, "replica"):
            self.replica.backend.close()


def bind(port: int) -> socket.socket:
    """Return a socket of this machine's own address; port 0 is any free one.

    Raises:
        StartError: The port is taken, or not ours to use.
    """
    # With the protocol named: asyncio sets TCP_NODELAY only on sockets that say that they are TCP,
    # and what is accepted inherits it. Without, an answer may wait 40 ms for the client's ACK.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port))
    except OSError as error:
        bound.close()
        raise explain_bind(LOOPBACK, port, "port", error) from error
    return bound
