"""The connections between processes: messages over the simulated network, snapshots as streams.

Stands in for `kvstore.peer.link.Links`. A message reaches only the process that the connection led
to: who restarts gets nothing that was meant for the process before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvstore.peer.link import Channel, Endpoint, HelloError, Receiver, SnapshotSink

if TYPE_CHECKING:
    from tests.sim.full.machine import Process

HEAD_BYTES = 6


def pack(source: int, channel: Channel, life: int, payload: bytes) -> bytes:
    """Return the frame that the network carries."""
    return bytes((source, channel)) + life.to_bytes(4) + payload


class SimLinks:
    """All connections of one process to its peers."""

    def __init__(
        self,
        process: Process,
        receiver: Receiver,
        on_lost: Callable[[int, Channel], None],
    ) -> None:
        self.removed: set[int] = set()
        self.sent_bytes = self.received_bytes = 0
        self.receiver = receiver
        self.on_lost = on_lost
        self.connections: dict[SnapshotConnection, None] = {}
        self._process = process
        self._peers: dict[int, Endpoint] = {}

    async def listen(self, host: str, port: int) -> int:
        return port

    def set_peers(self, peers: dict[int, Endpoint]) -> None:
        self._peers = dict(peers)

    def endpoint(self, peer: int) -> Endpoint | None:
        return self._peers.get(peer)

    def is_up(self, peer: int, *, since_s: float | None = None) -> bool:
        return peer in self._peers

    def drop_inbound(self, member: int) -> None:
        """Nothing to do: frames of a member that was removed are the receiver's to refuse."""

    def send(self, peer: int, channel: Channel, payload: bytes) -> bool:
        process = self._process
        host = process.cluster.by_member_id.get(peer)
        if host is None or peer not in self._peers or host.process is None:
            return False
        source = process.host.id
        process.cluster.network.send(
            source, host.id, pack(source, channel, host.incarnation, payload)
        )
        return True

    async def dial(self, peer: int, endpoint: Endpoint, channel: Channel) -> SnapshotConnection:
        process = self._process
        await asyncio.sleep(process.client_delay_ns() / 1e9)
        target = process.cluster.by_member_id[peer].process
        if (
            target is None
            or not target.up
            or process.cluster.is_cut(process.host.id, target.host.id)
        ):
            raise ConnectionRefusedError("nobody there")
        connection = SnapshotConnection(process, target)
        self.connections[connection] = None
        target.links.connections[connection] = None
        return connection

    async def close(self) -> None: ...

    def died(self) -> None:
        """The process is gone: peers learn that their connections broke."""
        process = self._process
        for connection in list(self.connections):
            connection.break_off()
        for other in process.cluster.hosts:
            peer = other.process
            if peer is None or peer is process or process.cluster.is_cut(other.id, process.host.id):
                continue
            for channel in (Channel.CONTROL, Channel.BULK):
                process.world.after(
                    process.client_delay_ns(),
                    lambda _, peer=peer, channel=channel: peer.lost(  # type: ignore[misc]
                        process.host.member_id, channel
                    ),
                )


class SnapshotConnection:
    """One snapshot on its way: `Outbound` to the sender, what feeds the sink to the receiver."""

    def __init__(self, source: Process, target: Process) -> None:
        loop = source.loop
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport = self
        self.moved = 0
        self._source, self._target = source, target
        self._world = source.world
        self._queue: deque[bytes] = deque()
        self._moving = self._paused = self._ended = False
        self._sink: SnapshotSink | None = None
        target.enter(self._open)

    def _open(self) -> None:
        self._sink = self._target.links.receiver.snapshot_opened(
            self._source.host.member_id, self._pause, self._answer
        )

    # the sender's side

    def write(self, data: bytes) -> None:
        if self._ended:
            return  # as asyncio: a transport that is lost never pauses its writer again
        self._queue.append(data[4:])
        if len(self._queue) > self._source.profile.snapshot_window:
            self.writable.clear()
        self._move_soon()

    def abort(self) -> None:
        self.break_off()

    # the network

    def _move_soon(self) -> None:
        if not self._moving and not self._paused and not self._ended and self._queue:
            self._moving = True
            self._world.after(
                self._source.profile.snapshot_chunk_ns + self._source.client_delay_ns(), self._move
            )

    def _move(self, _: object) -> None:
        self._moving = False
        if self._ended or self._paused:
            return
        source, target = self._source, self._target
        if source.cluster.is_cut(source.host.id, target.host.id) or not target.alive():
            self.break_off()
            return
        payload = self._queue.popleft()
        self._world.events += 1
        self.moved += 1
        if self.moved > 1 and payload:
            target.enter(lambda: target.point("snapshot half received"))
        if not target.alive() or self._ended:
            return
        target.enter(self._frame, payload)
        if source.alive():
            if payload:
                source.enter(lambda: source.point("snapshot half sent"))
            if len(self._queue) <= source.profile.snapshot_window // 2 and source.alive():
                source.enter(self.writable.set)
        self._move_soon()

    def _frame(self, payload: bytes) -> None:
        # Looked up only now: a paused process has not opened the sink when the frame is sent.
        assert self._sink is not None
        self._sink.frame(payload)

    def break_off(self) -> None:
        """The connection breaks; both sides learn of it."""
        if self._ended:
            return
        self._ended = True
        if self._queue:
            self._world.mark("snapshot stream broken")
        for process in (self._source, self._target):
            process.links.connections.pop(self, None)
        delay_ns = self._source.client_delay_ns()
        self._world.after(delay_ns, lambda _: self._target.enter(self._close_sink))
        self._world.after(
            delay_ns, lambda _: self._source.enter(self._fail, ConnectionResetError("broken"))
        )

    def _close_sink(self) -> None:
        if self._sink is not None:
            self._sink.closed()

    # the receiver's side

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._move_soon()

    def _answer(self, text: str) -> None:
        def arrive(_: object) -> None:
            if text:
                self._source.enter(self._fail, HelloError(text))
            else:
                self._source.enter(self._accept)

        if not self._ended:
            self._world.after(self._source.client_delay_ns(), arrive)

    def _accept(self) -> None:
        if not self.accepted.done():
            self.accepted.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(error)
            self.accepted.exception()
        if not self.lost.done():
            self.lost.set_result(None)
        self.writable.set()
