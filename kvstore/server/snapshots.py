"""Snapshots between members: streams the store to a slow peer, takes one in and makes it ours.

What is durable when, on the receiving side: the stream is written to a `.part` file, verified,
fsynced and renamed to `snapshot-INDEX.lmdb`; then the log marks the snapshot (all older entries are
void from there); then the file takes the place of `store.lmdb`. A crash between any two of these
steps is settled at the next start by `settle`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import lmdb

from kvstore.mvcc.errors import StorageError
from kvstore.mvcc.marks import AppliedMark, Marks
from kvstore.mvcc.snapshot import SnapshotReceiver, snapshot_chunks
from kvstore.peer.codec import CodecError, decode, encode
from kvstore.peer.link import Channel, Links, frame
from kvstore.ports import Backend, Disk
from kvstore.raft.messages import InstallSnapshot, SnapshotMeta
from kvstore.server.cluster import Cluster
from kvstore.server.config import ServerConfig
from kvstore.server.platform import Platform
from kvstore.server.replica import map_size_bytes

log = logging.getLogger("kvstore.snapshot")

T = TypeVar("T")

STORE_NAME = "store.lmdb"
RECEIVED_PREFIX = "snapshot-"
QUEUE_BYTES_MAX = 16 << 20
"""Received and not yet written; beyond it the sender has to wait."""

IDLE_TIMEOUT_S = 30.0
"""Without progress for this long a transfer is given up."""


async def send(backend: Backend, links: Links, request: InstallSnapshot) -> None:
    """Stream the last commit to the peer that `request` names.

    Any snapshot that lets the peer's log go on will do, so what is sent is what is committed now.

    Raises:
        OSError, HelloError, TimeoutError: The peer does not have it.
    """
    peer = request.target
    endpoint = links.endpoint(peer)
    if endpoint is None:
        raise OSError(f"member {peer:x} is not a peer")
    connection = await links.dial(peer, endpoint, Channel.SNAPSHOT)
    assert connection.transport is not None
    view = backend.view()
    try:
        mark = Marks.applied_in(view)
        # That of the same commit: a change may have been applied meanwhile.
        configuration = Cluster.load(view, None).configuration()
        meta = SnapshotMeta(mark.index, mark.term, configuration)
        message = InstallSnapshot(request.sender, peer, request.term, meta)
        connection.transport.write(frame(encode(message)))
        chunks = snapshot_chunks(view)
        loop = asyncio.get_running_loop()
        while (chunk := await loop.run_in_executor(None, _next, chunks)) is not None:
            connection.transport.write(frame(chunk))
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await connection.writable.wait()
            if connection.lost.done():
                break
        connection.transport.write(frame(b""))
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            await connection.accepted
    finally:
        view.close()
        connection.transport.abort()


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)


class Transfers:
    """Counts snapshots one way, by peer."""

    def __init__(self) -> None:
        self.inflight: Counter[int] = Counter()
        self.succeeded: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()

    def begin(self, peer: int) -> Callable[[bool], float]:
        """Count one as under way; call the result with its success: it returns the seconds."""
        start_s = time.perf_counter()
        self.inflight[peer] += 1

        def end(ok: bool) -> float:
            self.inflight[peer] -= 1
            (self.succeeded if ok else self.failed)[peer] += 1
            return time.perf_counter() - start_s

        return end


class Installer(Protocol):
    """The member, as a received snapshot needs it."""

    receiving: set[int]
    """Indexes of the snapshots that are on their way in."""

    def snapshot_saved(self, save_s: float, fsync_s: float) -> None:
        """Take note of how long it took to receive a file, and of its fsync."""

    async def install(self, message: InstallSnapshot) -> bool:
        """Take the file at `received_path`, which is durable, as the new state.

        Returns:
            False when it would not bring us forward any more.

        Raises:
            SnapshotRefused: It cannot be used. Nothing has changed.
        """

    def wants_snapshot(self, meta: SnapshotMeta) -> bool:
        """Tell whether this snapshot would bring us forward."""


class Incoming:
    """One snapshot being received (`kvstore.peer.link.SnapshotSink`)."""

    def __init__(
        self,
        installer: Installer,
        platform: Platform,
        config: ServerConfig,
        *,
        pause: Callable[[bool], None],
        answer: Callable[[str], None],
    ) -> None:
        """Wait for frames.

        Args:
            installer: Takes the finished file.
            platform: Has the disk where the file is built.
            config: Names the folder and the map's size.
            pause: Stops (True) or continues (False) reading from the connection.
            answer: Tells the sender how it ended; an empty text is success.

        Whoever makes it watches `task`: an exception that comes out of there is one of ours.
        """
        self._installer = installer
        self._platform = platform
        self._config = config
        self._pause = pause
        self._answer = answer
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._more = asyncio.Event()
        self._lost = False
        self.task = asyncio.get_running_loop().create_task(self._run())

    def frame(self, payload: bytes) -> None:
        """Queue the next frame."""
        self._frames.append(payload)
        self._queued_bytes += len(payload)
        self._more.set()
        if self._queued_bytes > QUEUE_BYTES_MAX and not self._paused:
            self._paused = True
            self._pause(True)

    def closed(self) -> None:
        """The connection has ended; what is not complete is thrown away."""
        self._lost = True
        self._more.set()

    async def _next(self) -> bytes:
        while not self._frames:
            if self._lost:
                raise ConnectionResetError("the connection ended before the snapshot did")
            self._more.clear()
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await self._more.wait()
        payload = self._frames.popleft()
        self._queued_bytes -= len(payload)
        if self._paused and self._queued_bytes < QUEUE_BYTES_MAX // 2:
            self._paused = False
            if not self._lost:
                self._pause(False)
        return payload

    async def _run(self) -> None:
        try:
            await self._receive()
        except (OSError, TimeoutError, CodecError, SnapshotRefused) as error:
            log.warning("snapshot not taken: %s", error)
            self._answer(str(error) or type(error).__name__)
        else:
            self._answer("")

    async def _receive(self) -> None:
        message = decode(await self._next())
        if not isinstance(message, InstallSnapshot):
            raise SnapshotRefused("the first frame of a snapshot must describe it")
        if not self._installer.wants_snapshot(message.snapshot):
            return  # we have caught up meanwhile; the sender learns so from our answers
        index = message.snapshot.index
        receiving = self._installer.receiving
        if index in receiving:
            # Both would build the same file. The sender that is alive asks again.
            raise SnapshotRefused(f"a snapshot of entry {index} is being received already")
        receiving.add(index)
        try:
            await self._build(message)
        finally:
            receiving.remove(index)

    async def _build(self, message: InstallSnapshot) -> None:
        meta = message.snapshot
        path = received_path(self._config.data_dir, meta.index)
        receiver = SnapshotReceiver(
            path,
            map_size_bytes=map_size_bytes(self._config),
            disk=self._platform.disk,
            open_backend=self._platform.open_backend,
        )
        start_s = time.perf_counter()
        try:
            while payload := await self._next():
                await _on_thread(receiver.write, payload)
            mark = await _on_thread(receiver.finish)
            self._installer.snapshot_saved(time.perf_counter() - start_s, receiver.fsync_s)
        except BaseException:
            receiver.abort()
            raise
        # Turned away, the file goes at once: it can be as large as the store. Not so when the
        # member stops meanwhile: the log may have marked it, and the next start settles that.
        try:
            _check_mark(mark, meta)
            taken = await self._installer.install(message)
        except SnapshotRefused:
            await _on_thread(_remove, self._platform.disk, path)
            raise
        if not taken:
            await _on_thread(_remove, self._platform.disk, path)


class SnapshotRefused(Exception):  # noqa: N818 (the name says what happened)
    """The stream cannot be used."""


async def _on_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run one step on a thread, to its end: the file must not be closed under it when we stop."""
    step = asyncio.get_running_loop().run_in_executor(None, partial(work, *arguments))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        raise
    except (StorageError, ValueError, lmdb.Error) as error:
        raise SnapshotRefused(str(error)) from error


def _check_mark(mark: AppliedMark, announced: SnapshotMeta) -> None:
    if (mark.index, mark.term) != (announced.index, announced.term):
        raise SnapshotRefused(f"the snapshot is of entry {mark.index}, announced {announced.index}")


def _remove(disk: Disk, path: str) -> None:
    for name in (path, f"{path}-lock"):
        if disk.exists(name):
            disk.remove(name)


def received_path(folder: str, index: int) -> str:
    """Return where a received snapshot lies until it takes the store's place.

    Every snapshot has a name of its own, as LMDB opens a path only once in a process.
    """
    return f"{folder}/{RECEIVED_PREFIX}{index:016x}.lmdb"


def swap_in(disk: Disk, folder: str, index: int) -> None:
    """Put a received file in the store's place, durably. It may be open."""
    disk.rename(received_path(folder, index), f"{folder}/{STORE_NAME}")
    disk.sync_folder(folder)


def settle(disk: Disk, config: ServerConfig, marked: SnapshotMeta | None) -> None:
    """At start: finish or drop an installation that a crash interrupted.

    Args:
        disk: The folder's disk.
        config: Names the folder.
        marked: The snapshot that the log says replaced the state, if any.
    """
    folder = config.data_dir
    if marked is not None and disk.exists(received_path(folder, marked.index)):
        log.info("finishing the installation of the snapshot of entry %d", marked.index)
        swap_in(disk, folder, marked.index)
    # Whatever else is there was never marked: the log still leads from the store to now.
    leftovers = [name for name in disk.list(folder) if name.startswith(RECEIVED_PREFIX)]
    for name in leftovers:
        disk.remove(f"{folder}/{name}")
    if leftovers:
        disk.sync_folder(folder)
