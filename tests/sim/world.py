"""The simulated world: event heap, virtual clock, the one source of randomness, counters, trace.

Knows nothing of Raft. Nothing in `tests/sim` may read a real clock, draw other randomness or
iterate over a set of str or bytes: a run is a function of its seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000

Act = Callable[[Any], None]


class World:
    """Virtual time and everything that decides a run.

    `events` counts delivered messages, disk completions, client operations and faults: whoever
    handles one adds one. Ticks and other timers are free.
    """

    __slots__ = (
        "digest",
        "events",
        "heap",
        "lines",
        "marks",
        "now_ns",
        "random",
        "seed",
        "sequence",
    )

    def __init__(self, seed: int, *, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now_ns = 0
        self.events = 0
        self.digest = 0
        """crc32 chain over delivered frames and their times, equal for equal runs."""
        self.marks: dict[str, int] = {}
        self.lines = trace
        # (time, sequence) is unique, so a tie never compares what follows.
        self.heap: list[tuple[int, int, Act, Any]] = []
        self.sequence = 0

    def after(self, delay_ns: int, act: Act, argument: Any = None) -> None:
        """Call `act(argument)` when `delay_ns` of virtual time have passed."""
        self.sequence = sequence = self.sequence + 1
        heappush(self.heap, (self.now_ns + delay_ns, sequence, act, argument))

    def at(self, time_ns: int, act: Act, argument: Any) -> None:
        """Call `act(argument)` at a time that has not passed."""
        self.sequence = sequence = self.sequence + 1
        heappush(self.heap, (time_ns, sequence, act, argument))

    def run(self, events_max: int, until_ns: int | None = None) -> None:
        """Run until `events` reaches `events_max`, or nothing is due before `until_ns`."""
        heap, pop = self.heap, heappop
        end = until_ns if until_ns is not None else 1 << 62
        while self.events < events_max and heap:
            item = time_ns, _, act, argument = pop(heap)
            if time_ns > end:
                heappush(heap, item)
                self.now_ns = end
                return
            self.now_ns = time_ns
            act(argument)

    def chance(self, probability: float) -> bool:
        """Draw once."""
        return self.random.random() < probability

    def between(self, low: int, high: int) -> int:
        """Draw an integer in [low, high]."""
        return low + int(self.random.random() * (high - low + 1))

    def geometric(self, probability: float) -> int:
        """Draw after how many occasions something of this probability happens (at least 1).

        One draw replaces one draw per occasion, which matters for hooks on every message.
        """
        if probability <= 0:
            return 1 << 62
        count = 1
        while not self.chance(probability):
            count += 1
        return count

    def mark(self, name: str) -> None:
        """Count a state that was reached."""
        self.marks[name] = self.marks.get(name, 0) + 1

    def trace(self, text: str) -> None:
        """Write a trace line; callers on hot paths test `lines` first."""
        if self.lines is not None:
            self.lines(f"{self.events:>9} {self.now_ns / MS:>12.3f}ms {text}")
