"""One member's simulated storage: the log with written and durable parts, and the durable store.

Survives the processes that use it. An fsync takes time and is one event; a crash keeps a prefix of
what was written but not yet durable. The unit is one `AppendWork`, because the real log checksums
batches: a batch is good or absent. This is the seam where `kvstore.wal` on a simulated
`kvstore.ports.Disk` will stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kvstore.raft.messages import AppendWork, Entry, HardState
from tests.sim.machine import Image
from tests.sim.world import World


@dataclass(slots=True)
class DiskOptions:
    """How fast a run's disks are."""

    sync_ns: int
    jitter_bits: int
    """An fsync takes `sync_ns` plus up to 2**jitter_bits ns more."""

    skew: int = 1
    """Some member's disk is up to this many times slower: a leader's may be the slowest."""


@dataclass(slots=True)
class Recovered:
    """What a starting process finds."""

    hard_state: HardState
    entries: list[Entry]
    compacted_index: int
    compacted_term: int
    image: Image


class Storage(Protocol):
    """What a process needs of its disk."""

    def start(self, durable: Callable[[list[AppendWork]], None]) -> Recovered:
        """Recover what survived, and tell the new process through `durable` from now on."""

    def submit(self, work: AppendWork) -> None:
        """Queue a work; strictly in order."""

    def stage(self, image: Image) -> None:
        """Keep a received snapshot safe beside the store until the log names it."""

    def commit_store(self, image: Image) -> None:
        """Make the state machine durable; never ahead of the durable log."""

    def release(self, index: int) -> None:
        """Forget entries up to `index`."""

    def crash(self) -> None:
        """Lose what was not durable, but for a random prefix of it."""


class Disk:
    """`Storage` as plain objects."""

    def __init__(self, world: World, options: DiskOptions, image: Image) -> None:
        self._world = world
        self._options = options
        self.usual_factor = self.slow_factor = world.between(1, options.skew)
        self.hard_state = HardState(0, 0, 0)
        self.entries: list[Entry] = []
        self.compacted_index = 0
        self.compacted_term = 0
        self.named_index = 0
        """The snapshot that the log names; the store must reach at least it."""
        self.store = image
        self._staged: Image | None = None
        self._queue: list[AppendWork] = []
        self._syncing: list[AppendWork] = []
        self._unsynced: list[AppendWork] = []
        self._life = 0
        self._durable: Callable[[list[AppendWork]], None] | None = None

    @property
    def last_index(self) -> int:
        """Index of the newest durable entry."""
        return self.compacted_index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        """Term of a durable entry; None if it is not there or compacted away."""
        if index == self.compacted_index:
            return self.compacted_term
        if self.compacted_index < index <= self.last_index:
            return self.entries[index - self.compacted_index - 1].term
        return None

    def start(self, durable: Callable[[list[AppendWork]], None]) -> Recovered:
        """See `Storage`."""
        self._durable = durable
        if self.named_index > self.store.index:
            # Died between naming the snapshot in the log and swapping the store.
            assert self._staged is not None
            assert self._staged.index == self.named_index
            self.store = self._staged
        self._staged = None
        state = self.hard_state
        return Recovered(
            HardState(state.term, state.vote, state.commit),
            list(self.entries),
            self.compacted_index,
            self.compacted_term,
            self.store,
        )

    def submit(self, work: AppendWork) -> None:
        """See `Storage`."""
        self._queue.append(work)
        if not self._syncing:
            self._begin()

    def _begin(self) -> None:
        # What arrived during the last fsync is the next batch: group commit without a timer.
        self._syncing, self._queue = self._queue, []
        options = self._options
        wait_ns = options.sync_ns + self._world.random.getrandbits(options.jitter_bits)
        self._world.after(wait_ns * self.slow_factor, self._finish, self._life)

    def _finish(self, life: int) -> None:
        if life != self._life:
            return  # the machine died meanwhile
        world = self._world
        world.events += 1
        works, self._syncing = self._syncing, []
        self._unsynced += works
        for work in works:
            if work.must_sync:
                for written in self._unsynced:
                    self._keep(written)
                self._unsynced.clear()
                break
        # Else: written, acknowledged, not durable. Only what the core says may be lost.
        if self._queue:
            self._begin()
        assert self._durable is not None
        self._durable(works)

    def _keep(self, work: AppendWork) -> None:
        """Make one work durable."""
        snapshot = work.snapshot
        if snapshot is not None:
            assert self._staged is not None, "the log names a snapshot that is not safe"
            assert self._staged.index == snapshot.index
            self.entries.clear()
            self.compacted_index = snapshot.index
            self.compacted_term = snapshot.term
            self.named_index = snapshot.index
            self.store = self._staged
            self._staged = None
        if work.entries:
            position = work.entries[0].index - self.compacted_index - 1
            assert 0 <= position <= len(self.entries), "a hole in the log, or compacted entries"
            del self.entries[position:]
            self.entries.extend(work.entries)
        if work.hard_state is not None:
            self.hard_state = work.hard_state

    def stage(self, image: Image) -> None:
        """See `Storage`."""
        self._staged = image

    def commit_store(self, image: Image) -> None:
        """See `Storage`."""
        same = self.term_at(image.index) == image.term
        assert same, "the store would be ahead of the durable log"
        self.store = image

    def release(self, index: int) -> None:
        """See `Storage`."""
        assert index <= self.store.index, "the log would be released ahead of the store"
        if index > self.compacted_index:
            term = self.term_at(index)
            assert term is not None
            del self.entries[: index - self.compacted_index]
            self.compacted_index = index
            self.compacted_term = term

    def crash(self) -> None:
        """See `Storage`."""
        self._life += 1
        works = self._unsynced + self._syncing
        for work in works[: self._world.between(0, len(works))]:
            self._keep(work)
        self._unsynced = []
        self._syncing = []
        self._queue = []
        self._durable = None

    def statistics(self) -> dict[str, Any]:
        """Say what is there, for traces."""
        return {
            "term": self.hard_state.term,
            "vote": self.hard_state.vote,
            "first": self.compacted_index + 1,
            "last": self.last_index,
            "store": self.store.index,
        }
