"""What the leader knows about one member's log, and how much may be on its way there.

No messages are built here; `leader` asks and is told.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from kvstore.raft.messages import Index


class ProgressState(IntEnum):
    """How a member is fed."""

    PROBE = 0
    """Where its log agrees is not known: one append at a time, then wait for an answer."""

    REPLICATE = 1
    """In step: appends are pipelined and `next` moves when they are sent."""

    SNAPSHOT = 2
    """Its next entry is compacted: nothing is sent until it has a snapshot."""


class Progress:
    """The leader's view of one member."""

    __slots__ = (
        "active",
        "commit_sent",
        "heard_tick",
        "inflight",
        "inflight_bytes",
        "match",
        "next",
        "paused",
        "recheck",
        "snapshot_index",
        "state",
    )

    def __init__(self, next_index: Index) -> None:
        self.match: Index = 0
        """Highest index known durable there. Never decreases within a term."""

        self.next: Index = next_index
        """First index to send. Invariant: match < next."""

        self.state = ProgressState.PROBE
        self.paused = False
        """PROBE: an append is on its way, wait for its answer or for a heartbeat's."""

        self.active = False
        """Heard from since the last check of the quorum."""

        self.heard_tick = 0
        """`Raft.ticks` at its last answer, or when it was added."""

        self.recheck: Index | None = None
        """`match` when the last periodic heartbeat left, None when its answer has come. If `match`
        has not moved by then, what is on its way may be lost."""

        self.snapshot_index: Index = 0
        """SNAPSHOT: the index of the snapshot on its way."""

        self.commit_sent: Index = 0
        """Highest commit index sent. Only saves messages; losing one is repaired by heartbeats."""

        self.inflight: deque[tuple[Index, int]] = deque()
        """REPLICATE: last index and bytes of every append that is not answered."""

        self.inflight_bytes = 0

    def heard(self, tick: int) -> None:
        """Note a sign of life."""
        self.active = True
        self.heard_tick = tick

    def acknowledge(self, index: Index) -> bool:
        """Note that the member holds the log up to `index`; True if that is news."""
        if index >= self.next:
            self.next = index + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        return True

    def sent(self, last_index: Index, size_bytes: int) -> None:
        """Note an append up to `last_index` in REPLICATE."""
        self.next = last_index + 1
        self.inflight.append((last_index, size_bytes))
        self.inflight_bytes += size_bytes

    def reject(self, rejected: Index, agree_at_most: Index) -> bool:
        """Note that an append after `rejected` did not fit; False if that is old news.

        The logs agree at `agree_at_most` at the latest, so the next append starts behind it; but
        never at or below `match`, which a late rejection must not undo.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.become_probe()
            # The window was optimistic: what the member named is a better guess than `match`
            # only when it lies above.
            self.next = max(self.match, min(rejected - 1, agree_at_most)) + 1
            return True
        if self.state is ProgressState.SNAPSHOT or rejected != self.next - 1:
            return False
        self.next = max(self.match, min(rejected - 1, agree_at_most)) + 1
        self.paused = False
        return True

    def become_probe(self) -> None:
        """Go back to one append at a time, after what is known to match."""
        after_snapshot = self.snapshot_index if self.state is ProgressState.SNAPSHOT else 0
        self._enter(ProgressState.PROBE)
        self.next = max(self.match, after_snapshot) + 1

    def become_replicate(self) -> None:
        """Start to pipeline."""
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: Index) -> None:
        """Send nothing but the snapshot at `index`."""
        self._enter(ProgressState.SNAPSHOT)
        self.snapshot_index = index

    def is_replicating(self) -> bool:
        """Tell whether appends are pipelined."""
        return self.state is ProgressState.REPLICATE

    def snapshot_sent(self, *, ok: bool) -> None:
        """Note that sending the snapshot ended. Waits for the member's answer or a heartbeat's."""
        if self.state is not ProgressState.SNAPSHOT:
            return  # the member's answer was faster
        if not ok:
            self.snapshot_index = 0
        self.become_probe()
        self.paused = True

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.snapshot_index = 0
        self.inflight.clear()
        self.inflight_bytes = 0
