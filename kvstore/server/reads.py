"""Linearizable reads: gathers waiters into ReadIndex rounds and releases them when applied."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from kvstore.ports import Clock
from kvstore.server.errors import StoppedError, TimedOutError

Fresh = Callable[[Exception | None], None]
"""Runs once: None when the store is fresh enough, else why it could not be made sure."""

RETRY_NS = 500_000_000
"""A round without an answer for this long is given up and asked again under a new id."""


class Reads:
    """At most one round is under way; reads that arrive meanwhile form the next one.

    A round's index may be served only to reads that were waiting when the round began, so a new
    read never joins a round under way. Round ids only grow: an answer to an old id proves nothing
    about a newer one.
    """

    def __init__(
        self, start: Callable[[int], None], timeout_ns: int, clock: Clock, first_id: int = 1
    ) -> None:
        """Start empty; `start(read_id)` asks the core for a round."""
        self.failed = 0
        self.slow = 0
        self._start = start
        self._timeout_ns = timeout_ns
        self._clock = clock
        self._next_id = first_id
        self._waiting: list[tuple[int, Fresh]] = []
        self._round_id = 0
        self._round: list[tuple[int, Fresh]] = []
        self._round_started_ns = 0
        self._confirmed: list[tuple[int, int, list[tuple[int, Fresh]]]] = []
        """Heap of (index, round id, reads) that wait for the state machine."""

    def add(self, fresh: Fresh) -> None:
        """Queue one read for the next round."""
        self._waiting.append((self._clock.monotonic_ns() + self._timeout_ns, fresh))

    @property
    def are_waiting(self) -> bool:
        """Whether reads wait for a round to begin."""
        return bool(self._waiting)

    def start(self) -> None:
        """Begin a round if reads wait and none is under way."""
        if self._waiting and not self._round:
            self._round, self._waiting = self._waiting, []
            self._round_id = self._next_id
            self._next_id += 1
            self._round_started_ns = self._clock.monotonic_ns()
            self._start(self._round_id)

    def ready(self, read_id: int, index: int | None, applied: int) -> None:
        """Take the core's answer: the index to wait for, or None for "ask again"."""
        if read_id != self._round_id or not self._round:
            return
        reads, self._round = self._round, []
        if index is None:
            self._waiting = reads + self._waiting
        elif index <= applied:
            for _, fresh in reads:
                fresh(None)
        else:
            heapq.heappush(self._confirmed, (index, read_id, reads))

    def applied(self, index: int) -> None:
        """Release what waited for the state machine to reach `index`."""
        while self._confirmed and self._confirmed[0][0] <= index:
            for _, fresh in heapq.heappop(self._confirmed)[2]:
                fresh(None)

    def expire(self, now_ns: int) -> None:
        """Ask again where a round was lost; end reads that waited too long."""
        if self._round and now_ns - self._round_started_ns >= RETRY_NS:
            self.slow += 1
            self._waiting = self._round + self._waiting
            self._round = []
        if self._waiting and self._waiting[0][0] <= now_ns:
            late = [fresh for deadline_ns, fresh in self._waiting if deadline_ns <= now_ns]
            self._waiting = [read for read in self._waiting if read[0] > now_ns]
            self._end(late, TimedOutError())
        while self._confirmed and self._confirmed[0][2][0][0] <= now_ns:
            late = [fresh for _, fresh in heapq.heappop(self._confirmed)[2]]
            self._end(late, TimedOutError("applied"))

    def skipped(self) -> None:
        """The store was replaced by a snapshot; what waits is asked again."""
        for _, _, reads in self._confirmed:
            self._waiting = reads + self._waiting
        self._confirmed.clear()

    def stop(self) -> None:
        """End everything: the member shuts down."""
        reads = self._waiting + self._round
        for _, _, confirmed in self._confirmed:
            reads += confirmed
        self._waiting, self._round, self._confirmed = [], [], []
        self._end([fresh for _, fresh in reads], StoppedError())

    def _end(self, reads: list[Fresh], error: Exception) -> None:
        self.failed += len(reads)
        for fresh in reads:
            fresh(error)
