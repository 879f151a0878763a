"""Byte streams between processes: what `asyncio.open_connection` gives in the simulated world.

A member that joins asks another who is a member (`kvstore.peer.describe`) before it has links of
its own; the other's end is the product's `Inbound`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from kvstore.peer.link import Inbound, Links

if TYPE_CHECKING:
    from tests.sim.full.machine import Process


class SimTransport(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, process: Process, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.other: SimTransport
        self._process = process
        self._closing = self._ended = False
        self._last_ns = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: Any) -> None:
        if not self._closing:
            self._send(self.other._arrive, bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(self.other._end, None)
            self._process.loop.call_soon(self._end, None)

    abort = close

    def _send(self, act: Callable[[Any], None], argument: Any) -> None:
        world = self._process.world
        # Bytes of one connection stay in order, and its end comes behind them.
        self._last_ns = max(self._last_ns, world.now_ns + self._process.client_delay_ns())
        world.at(self._last_ns, act, argument)

    def _arrive(self, data: bytes) -> None:
        process = self._process
        if self._ended:
            return
        if process.cluster.is_cut(process.host.id, self.other._process.host.id):
            self._end(None)
            self.other._end(None)
            return
        process.world.events += 1
        process.enter(self.protocol.data_received, data)

    def _end(self, _: object) -> None:
        if not self._ended:
            self._ended = self._closing = True
            self._process.sockets.pop(self, None)
            self._process.enter(self.protocol.connection_lost, None)

    def broken(self) -> None:
        """The process at this end is gone."""
        self._ended = self._closing = True
        self._send(self.other._end, None)


async def connect(
    process: Process, factory: Callable[[], asyncio.Protocol], address: str
) -> tuple[SimTransport, asyncio.Protocol]:
    """Connect to the peer port of whoever has this address (`loop.create_connection`)."""
    await asyncio.sleep(process.client_delay_ns() / 1e9)
    cluster = process.cluster
    host = cluster.by_address.get(address)
    target = host.process if host is not None else None
    if target is None or not target.up or cluster.is_cut(process.host.id, target.host.id):
        raise ConnectionRefusedError("nobody there")
    near = SimTransport(process, factory())
    far = SimTransport(target, Inbound(cast("Links", target.links)))
    near.other, far.other = far, near
    process.sockets[near] = target.sockets[far] = None
    target.enter(far.protocol.connection_made, far)
    near.protocol.connection_made(near)
    return near, near.protocol
