"""What a member stands on: disk, clock, randomness, network, threads. The simulator has another.

Everything of a member that touches the world outside of its event loop is made here.
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, Protocol

from kvstore.mvcc.backend_lmdb import LmdbBackend
from kvstore.peer.link import Channel, Links, Receiver
from kvstore.ports import Backend, Clock, Disk, Random
from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import AppendWork
from kvstore.raft.raft import Raft
from kvstore.rpc import HttpHandler, Limits, Server
from kvstore.server.disk import DiskThread
from kvstore.wal import Options, RealDisk, Wal, fatal

SWITCH_INTERVAL_S = 0.0005
"""How long a busy loop may keep the disk thread from reporting an fsync (docs/decisions)."""

FILES_RESERVED = 150
"""Open files that clients cannot take from log, store and peers, as in etcd: without one for the
next segment of the log a member would have to end."""

GC_THRESHOLDS = (50_000, 20, 100)


class RealClock:
    """The system's clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


class Platform(Protocol):
    """What `Member` needs of the world; `RealPlatform` is the system."""

    disk: Disk
    clock: Clock
    random: Random

    def wal_options(self) -> Options:
        """Return how the log uses the disk."""

    def open_backend(self, path: str, *, map_size_bytes: int) -> Backend:
        """Open or create a store file."""

    def core(self, settings: Mapping[str, Any], restored: Restored) -> Raft:
        """Make the consensus core; `settings` are arguments of `Config`."""

    def disk_thread(
        self, wal: Wal, on_saved: Callable[[list[AppendWork], float], None]
    ) -> DiskThread:
        """Start what saves to the log; `on_saved` runs on the loop."""

    def links(
        self,
        cluster_id: int,
        member_id: int,
        receiver: Receiver,
        *,
        on_lost: Callable[[int, Channel], None],
        on_removed: Callable[[int], None],
    ) -> Links:
        """Make the connections to the peers."""

    def server(
        self, limits: Limits, http: Any, on_error: Callable[[BaseException], None]
    ) -> Server:
        """Make what serves the clients."""

    def fatal(self, error: BaseException, *, what: str = "the disk failed") -> NoReturn:
        """End the process at once."""

    def starting(self) -> None:
        """Tune the process before the first thread starts."""

    def started(self) -> None:
        """Tune the process now that the long-lived objects exist."""


def connections_max() -> int:
    """Return how many connections clients may open, by the process's limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else max(1, soft - FILES_RESERVED)


class RealPlatform:
    """The system under a member."""

    def __init__(self) -> None:
        self.disk: Disk = RealDisk()
        self.clock: Clock = RealClock()
        self.random: Random = random.SystemRandom()
        self.open_backend: Callable[..., Backend] = LmdbBackend
        self.server = _server
        self.fatal = fatal
        self.disk_failed: Callable[[BaseException], object] = fatal

    @staticmethod
    def wal_options() -> Options:
        """See `Platform`."""
        return Options()

    @staticmethod
    def core(settings: Mapping[str, Any], restored: Restored) -> Raft:
        """See `Platform`."""
        return Raft(Config(**settings), restored)

    def disk_thread(
        self, wal: Wal, on_saved: Callable[[list[AppendWork], float], None]
    ) -> DiskThread:
        """See `Platform`."""
        post = asyncio.get_running_loop().call_soon_threadsafe
        thread = DiskThread(wal, post, on_saved, self.disk_failed)
        thread.start()
        return thread

    def links(
        self,
        cluster_id: int,
        member_id: int,
        receiver: Receiver,
        *,
        on_lost: Callable[[int, Channel], None],
        on_removed: Callable[[int], None],
    ) -> Links:
        """See `Platform`."""
        return Links(
            cluster_id,
            member_id,
            receiver,
            self.random,
            on_lost=on_lost,
            on_removed=on_removed,
        )

    def starting(self) -> None:
        """See `Platform`."""
        # The disk thread reports an fsync through the interpreter lock; a loop saturated with
        # reads would keep it waiting for many default intervals of 5 ms.
        sys.setswitchinterval(SWITCH_INTERVAL_S)

    def started(self) -> None:
        """See `Platform`."""
        # What exists now lives as long as the process; collections need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)


def _server(limits: Limits, http: HttpHandler, on_error: Callable[[BaseException], None]) -> Server:
    limits = replace(limits, connections_max=connections_max())
    return Server(limits=limits, http=http, on_error=on_error, tally_by=b"client-api-version")
