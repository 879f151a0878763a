"""A snapshot on its way from one process to another: chunks that take time and can fail.

The core sees only its beginning (`InstallSnapshot`), its end at the sender (`snapshot_sent`) and,
when the data is safe, the message at the receiver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.peer import codec
from kvstore.raft.messages import InstallSnapshot, SnapshotMeta

if TYPE_CHECKING:
    from tests.sim.machine import Image
    from tests.sim.node import Process


class Transfer:
    """One attempt. Each chunk that arrives is an event."""

    def __init__(self, sender: Process, message: InstallSnapshot, image: Image) -> None:
        self.sender = sender
        self.receiver: Process | None = None
        self.image = image
        # The store may have moved on since the core asked. Any snapshot will do that lets the
        # log reconnect, so it says what it is, not what was asked for.
        assert image.index >= message.snapshot.index
        meta = SnapshotMeta(image.index, image.term, image.configuration)
        self.source, self.target = message.sender, message.target
        self.frame = codec.encode(InstallSnapshot(self.source, self.target, message.term, meta))
        self.chunks = sender.knobs.snapshot_chunks
        self.arrived = 0

    def start(self) -> None:
        """Send the first chunk."""
        world = self.sender.world
        world.mark("snapshot started")
        world.after(self._chunk_ns(), self._chunk)

    def _chunk_ns(self) -> int:
        knobs = self.sender.knobs
        return self.sender.world.between(knobs.snapshot_chunk_ns, 2 * knobs.snapshot_chunk_ns)

    def _chunk(self, _: object) -> None:
        sender, world = self.sender, self.sender.world
        if not sender.alive():
            self._free_slot()
            return
        member = sender.cluster.members[self.target]
        link = sender.network.links[self.source][self.target]
        if link.clogged or sender.member.paused or member.paused:
            world.after(10 * self._chunk_ns(), self._chunk)
            return
        process = member.process
        if link.cut or process is None:
            self._fail()
            return
        if self.receiver is None:
            if process.incoming is not None or process.installing:
                # One slot: two snapshots close together crashed etcd (#18055).
                world.mark("snapshot turned away")
                self._fail()
                return
            self.receiver = process
            process.incoming = self
        elif self.receiver is not process:
            self._fail()  # the receiver restarted and knows nothing of the first chunks
            return
        world.events += 1
        self.arrived += 1
        if self.arrived == (self.chunks + 1) // 2:
            sender.hit("snapshot half sent")
            process.hit("snapshot half received")
            if not (sender.alive() and process.alive()):
                world.after(self._chunk_ns(), self._chunk)
                return
        if self.arrived < self.chunks:
            world.after(self._chunk_ns(), self._chunk)
            return
        world.mark("snapshot received")
        sender.snapshot_sent(self.target, ok=True)
        if process.alive() and process.incoming is self:
            process.take_snapshot(self.frame)

    def _fail(self) -> None:
        self.sender.world.mark("snapshot failed")
        self._free_slot()
        self.sender.snapshot_sent(self.target, ok=False)

    def _free_slot(self) -> None:
        receiver = self.receiver
        if receiver is not None and receiver.incoming is self:
            receiver.incoming = None
