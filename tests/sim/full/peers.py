"""The connections between processes: messages over the simulated network, snapshots as streams.

Stands in for `kvstore.peer.link.Links`. A message reaches only the process that the connection led
to: who restarts gets nothing that was meant for the process before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvstore.peer.link import (
    Channel,
    Endpoint,
    HelloError,
    Inbound,
    Receiver,
    SnapshotSink,
)
from tests.sim.world import MS

if TYPE_CHECKING:
    from tests.sim.full.machine import Host, Process

HEAD_BYTES = 14
DIAL_NS = 100 * MS


def pack(source: int, channel: Channel, life: int, sender: int, payload: bytes) -> bytes:
    """Return the frame that the network carries."""
    return bytes((source, channel)) + life.to_bytes(4) + sender.to_bytes(8) + payload


class SimLinks:
    """All connections of one process to its peers."""

    def __init__(
        self,
        process: Process,
        own_id: int,
        receiver: Receiver,
        on_lost: Callable[[int, Channel], None],
        on_removed: Callable[[int], None],
    ) -> None:
        self.removed: set[int] = set()
        self.inbound: set[Inbound] = set()
        self.received_bytes: dict[int, int] = {}
        self.sent_bytes = 0
        self.receiver = receiver
        self.own_id = own_id
        self.on_lost = on_lost
        self.on_removed = on_removed
        self.connections: dict[SnapshotConnection, None] = {}
        self._process = process
        self._peers: dict[int, Endpoint] = {}
        self._up: dict[int, tuple[Process, float]] = {}
        """By peer: the process that our connection leads to, and since when."""

    async def listen(self, host: str, port: int) -> int:
        if self._process.profile.machines:
            # Whoever has nothing to say learns only so that it was removed.
            self._process.world.after(DIAL_NS, self._dial_all)
        return port

    def set_peers(self, peers: dict[int, Endpoint]) -> None:
        self._peers = dict(peers)
        for peer in [peer for peer in self._up if peer not in peers]:
            del self._up[peer]

    def endpoint(self, peer: int) -> Endpoint | None:
        return self._peers.get(peer)

    def is_up(self, peer: int, *, since_s: float | None = None) -> bool:
        process, up_since_s = self._up.get(peer, (None, 0.0))
        return (
            process is not None and process.alive() and (since_s is None or up_since_s <= since_s)
        )

    def drop_inbound(self, member: int) -> None:
        """End the connections of a member that was removed: it dials again and is told."""
        host = self._process.cluster.by_member_id.get(member)
        other = host.process if host is not None else None
        if (
            other is None
            or not hasattr(other, "links")
            or not other.links._up.pop(self.own_id, None)
        ):
            return
        for channel in (Channel.CONTROL, Channel.BULK):
            other.world.after(0, lambda _, channel=channel: other.lost(self.own_id, channel))  # type: ignore[misc]

    def send(self, peer: int, channel: Channel, payload: bytes) -> bool:
        host = self._connected(peer)
        if host is None:
            return False
        process = self._process
        source = process.host.id
        process.cluster.network.send(
            source, host.id, pack(source, channel, host.incarnation, self.own_id, payload)
        )
        return True

    def _connected(self, peer: int) -> Host | None:
        """Return the machine that a peer's connection leads to, None when there is none."""
        process = self._process
        cluster = process.cluster
        endpoint = self._peers.get(peer)
        host = cluster.by_address.get(endpoint.host) if endpoint is not None else None
        target = host.process if host is not None else None
        if host is None or target is None:
            return None
        if peer in self._up and self._up[peer][0] is target:
            return host
        hears = hasattr(target, "links") and not cluster.is_cut(process.host.id, host.id)
        if hears and self.own_id in target.links.removed:
            process.world.after(process.profile.client_ns, self._told, peer)
            return None
        # A machine that belongs to another member by now refuses who asks for the one before.
        if host.member_id != peer:
            return None
        if hears:
            self._up[peer] = (target, process.loop.time())
        return host

    def is_told(self) -> bool:
        """Tell whether a peer that this process dials knows that it was removed."""
        cluster = self._process.cluster
        hosts = [cluster.by_address[one.host] for one in self._peers.values()]
        return any(
            host.process is not None
            and host.process.up
            and self.own_id in host.process.links.removed
            for host in hosts
        )

    def _told(self, peer: int) -> None:
        self._process.enter(self.on_removed, peer)

    def _dial_all(self, _: object) -> None:
        if self._process.alive():
            for peer in self._peers:
                self._connected(peer)
            self._process.world.after(DIAL_NS, self._dial_all)

    async def dial(self, peer: int, endpoint: Endpoint, channel: Channel) -> SnapshotConnection:
        process = self._process
        await asyncio.sleep(process.client_delay_ns() / 1e9)
        host = self._connected(peer)
        target = host.process if host is not None else None
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
        process, own_id = self._process, self.own_id
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
                        own_id, channel
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
            self._source.links.own_id, self._pause, self._answer
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
