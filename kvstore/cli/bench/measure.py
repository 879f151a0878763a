"""Takes what was measured: latencies, errors, a line for each second. Starts no operation.

An operation is timed from when it was due. Without a rate that is when its client was free. With a
rate it is its place in the schedule, whether a client was free or not: a server that stalls delays
all operations due meanwhile, and each of them counts with its wait. (To time only what was sent
would leave out just the bad moments: "coordinated omission".)
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kvstore.cli.bench.histogram import Histogram

SECOND_S = 1.0


@dataclass(frozen=True, slots=True)
class Second:
    """What one interval of about a second was like."""

    at_s: float
    """Its end, from the start of the run."""

    operations_per_s: float
    p50_s: float
    p99_s: float
    errors: int


class Measure:
    """The results of one run, while it goes on and afterwards."""

    def __init__(self) -> None:
        self.latency: dict[str, Histogram] = {}
        """From when an operation was due, by kind."""

        self.service: dict[str, Histogram] = {}
        """From when it was sent; only where the two differ."""

        self.notes: dict[str, Histogram] = {}
        """What a workload measures beside its operations."""

        self.errors: dict[str, int] = {}
        self.error_texts: dict[str, str] = {}
        """The first text of each."""

        self.operations = 0
        self.unsent = 0
        """Operations that were due before the end and never sent."""

        self.seconds: list[Second] = []
        self.started_s = 0.0
        self.ended_s = 0.0
        self._now = Histogram()
        self._errors_now = 0
        self._second_began_s = 0.0

    def start(self) -> None:
        """Begin to count time."""
        self.started_s = self._second_began_s = time.perf_counter()

    def end(self) -> None:
        """Stop the clock."""
        self.ended_s = time.perf_counter()
        # A last interval much shorter than the others would draw a spike from a few operations.
        if self.ended_s - self._second_began_s >= SECOND_S / 2 or not self.seconds:
            self._close_second(self.ended_s)

    def done(self, kind: str, due_s: float, sent_s: float | None = None) -> None:
        """Count an operation that has its answer now."""
        now_s = time.perf_counter()
        _of(self.latency, kind).record(now_s - due_s)
        self._now.record(now_s - due_s)
        if sent_s is not None:
            _of(self.service, kind).record(now_s - sent_s)
        self.operations += 1

    def note(self, kind: str, duration_s: float) -> None:
        """Count something that is no operation."""
        _of(self.notes, kind).record(duration_s)

    def failed(self, error: Exception) -> None:
        """Count an operation that failed; its time is in no histogram."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1
        self.error_texts.setdefault(name, str(error))
        self._errors_now += 1

    def never_sent(self, kind: str, waited_s: float) -> None:
        """Count an operation that waited for a client until the end: it took at least so long."""
        _of(self.latency, kind).record(waited_s)
        self.unsent += 1

    def tick(self) -> None:
        """Close the second when it is over."""
        now_s = time.perf_counter()
        if now_s - self._second_began_s >= SECOND_S:
            self._close_second(now_s)

    def rate_now(self) -> float:
        """Return the operations a second of the last full second, or since the start."""
        if self.seconds:
            return self.seconds[-1].operations_per_s
        return self.operations / max(time.perf_counter() - self.started_s, 1e-9)

    @property
    def duration_s(self) -> float:
        """How long it ran."""
        return self.ended_s - self.started_s

    @property
    def operations_per_s(self) -> float:
        """The throughput over the whole run."""
        return self.operations / self.duration_s if self.duration_s > 0 else 0.0

    def all_latencies(self) -> Histogram:
        """Return the latencies of all kinds together."""
        together = Histogram()
        for histogram in self.latency.values():
            together.add(histogram)
        return together

    def _close_second(self, now_s: float) -> None:
        took_s = now_s - self._second_began_s
        now = self._now
        self.seconds.append(
            Second(
                now_s - self.started_s,
                now.count / took_s if took_s > 0 else 0.0,
                now.percentile_s(50),
                now.percentile_s(99),
                self._errors_now,
            )
        )
        self._now = Histogram()
        self._errors_now = 0
        self._second_began_s = now_s


def _of(histograms: dict[str, Histogram], kind: str) -> Histogram:
    found = histograms.get(kind)
    if found is None:
        found = histograms[kind] = Histogram()
    return found
