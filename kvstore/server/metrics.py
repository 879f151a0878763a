"""Prometheus metrics under etcd's names, so that its dashboards and alerts work unchanged.

Counters live where the work is done and are read at scrape time; only durations are observed as
they happen, and those once per batch, never per operation.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FSYNC_BUCKETS = tuple(0.001 * 2**step for step in range(14))
"""etcd's buckets: 1 ms doubling to 8 s."""

LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class Reading:
    """One value of a metric, taken at scrape time."""

    name: str
    help: str
    value: float
    labels: dict[str, str] | None = None


Source = Callable[[], Iterable[Reading]]


class Metrics:
    """The registry of one member."""

    def __init__(self, gauges: Source, counters: Source) -> None:
        """Create the metrics; the sources are called at every scrape."""
        self.registry = CollectorRegistry()
        self.fsync = self._histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
            FSYNC_BUCKETS,
        )
        self.commit = self._histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend.",
            FSYNC_BUCKETS,
        )
        self.lag = self._histogram(
            "kvstore_loop_lag_seconds",
            "How late the event loop ran a timer: the time that other work held it.",
            LAG_BUCKETS,
        )
        self.registry.register(_Collector(gauges, counters))
        ProcessCollector(registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """Return the page that Prometheus reads."""
        page: bytes = generate_latest(self.registry)
        return page


class _Collector:
    def __init__(self, gauges: Source, counters: Source) -> None:
        self._gauges = gauges
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._gauges(), GaugeMetricFamily)
        yield from _families(self._counters(), CounterMetricFamily)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield GaugeMetricFamily("os_fd_limit", "The file descriptor limit.", value=soft)


def _families(readings: Iterable[Reading], kind: Any) -> Iterator[Metric]:
    families: dict[str, Any] = {}
    for reading in readings:
        labels = reading.labels or {}
        family = families.get(reading.name)
        if family is None:
            family = kind(reading.name, reading.help, labels=list(labels))
            families[reading.name] = family
        family.add_metric(list(labels.values()), reading.value)
    yield from families.values()
