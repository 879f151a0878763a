"""Prometheus metrics under etcd's names, so that its dashboards and alerts work unchanged.

Counters live where the work is done and are read at scrape time; only durations are observed as
they happen, and those once per batch, never per operation. (A range is a batch of its own: its
duration costs 0.2 us.)
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvstore.apply import ops
from kvstore.apply.applier import Applied
from kvstore.mvcc.errors import Compacted
from kvstore.server.histogram import Histogram, Series, doubling

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DISK_S = doubling(0.001, 14)
"""etcd's buckets for disks: 1 ms doubling to 8 s; the others likewise below."""

WORK_S = doubling(0.0001, 20)
ROUND_TRIP_S = doubling(0.0001, 16)
SNAPSHOT_S = doubling(0.1, 10)
LAG_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
HANDLING_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

OPERATIONS = {
    ops.PUT: "Put",
    ops.DELETE_RANGE: "DeleteRange",
    ops.TXN: "Txn",
    ops.COMPACT: "Compaction",
    ops.LEASE_GRANT: "LeaseGrant",
    ops.LEASE_REVOKE: "LeaseRevoke",
    ops.LEASE_CHECKPOINT: "LeaseCheckpoint",
    ops.ALARM: "Alarm",
    ops.CLUSTER_VERSION: "ClusterVersionSet",
    ops.MEMBER_ATTRIBUTES: "ClusterMemberAttrSet",
}
"""etcd's names of what is applied."""

SERVER_STREAMS = {"/grpc.health.v1.Health/Watch"}
"""Streaming methods with one request; all others of ours are streams both ways."""


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
        self._histograms: list[Histogram] = []
        self.last_purge_s = 0.0
        """Unix time at which the last compaction had removed its records; 0 before."""

        add = self._add
        self.fsync = add(
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
            DISK_S,
        ).series()
        self.commit = add(
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend.",
            DISK_S,
        ).series()
        self.lag = add(
            "kvstore_loop_lag_seconds",
            "How late the event loop ran a timer: the time that other work held it.",
            LAG_S,
        ).series()
        self.round_trip = add(
            "etcd_network_peer_round_trip_time_seconds",
            "Round-Trip-Time histogram between peers.",
            ROUND_TRIP_S,
            "To",
        )
        self.apply = add(
            "etcd_server_apply_duration_seconds",
            "The latency distributions of apply: the time of an entry, shared by its operations.",
            WORK_S,
            "version",
            "op",
            "success",
        )
        self._lease_ttl = add(
            "etcd_debugging_lease_ttl_total",
            "Bucketed histogram of lease TTLs.",
            doubling(1, 24),
        ).series()
        self.range = add(
            "etcd_server_range_duration_seconds",
            "The latency distributions of reading a range, from its first slice to its last.",
            WORK_S,
            "success",
        )
        self.hash_by_revision = add(
            "etcd_mvcc_hash_rev_duration_seconds",
            "The latency distribution of storage hash by revision operation.",
            doubling(0.01, 15),
        ).series()
        self._purge_pause_ms = add(
            "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
            "Bucketed histogram of db compaction pause duration: how long a slice held the loop.",
            doubling(1, 13),
        ).series()
        self._purge_total_ms = add(
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
            "Bucketed histogram of db compaction total duration.",
            doubling(100, 14),
        ).series()
        self.backend_snapshot = add(
            "etcd_disk_backend_snapshot_duration_seconds",
            "The latency distribution of backend snapshots.",
            doubling(0.01, 17),
        ).series()
        self.snapshot_save = add(
            "etcd_snap_db_save_total_duration_seconds",
            "The total latency distributions of v3 snapshot save.",
            SNAPSHOT_S,
        ).series()
        self.snapshot_fsync = add(
            "etcd_snap_db_fsync_duration_seconds",
            "The latency distributions of fsyncing a received store.",
            DISK_S,
        ).series()
        self.snapshot_send = add(
            "etcd_network_snapshot_send_total_duration_seconds",
            "Total latency distributions of v3 snapshot sends.",
            SNAPSHOT_S,
            "To",
        )
        self.snapshot_receive = add(
            "etcd_network_snapshot_receive_total_duration_seconds",
            "Total latency distributions of v3 snapshot receives.",
            SNAPSHOT_S,
            "From",
        )
        self._put = self.apply.series("v3", "Put", "true")
        self.registry.register(_Collector(gauges, counters, self._histograms))
        ProcessCollector(registry=self.registry)

    def _add(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(name, text, bounds, labels)
        self._histograms.append(histogram)
        return histogram

    def applied(self, applied: Applied) -> None:
        """Take the duration of one entry, in equal shares for its operations."""
        count = len(applied.results)
        if not count:
            return
        share_s = applied.duration_ns * 1e-9 / count
        if applied.kinds.count(ops.PUT) == count and set(map(type, applied.results)) == {tuple}:
            self._put.observe(share_s, count)  # nearly every entry; a third of the general way
            return
        tally = Counter(zip(applied.kinds, map(type, applied.results), strict=True))
        for (kind, outcome), times in tally.items():
            success = outcome is tuple or outcome is Compacted  # as etcd counts
            labels = ("v3", OPERATIONS.get(kind, "unknown"), str(success).lower())
            self.apply.series(*labels).observe(share_s, times)
            if kind == ops.LEASE_GRANT and outcome is tuple:
                for other, result in zip(applied.kinds, applied.results, strict=True):
                    if other == kind and isinstance(result, tuple):
                        self._lease_ttl.observe(result[2])

    def purged(self, held_s: float, total_s: float | None) -> None:
        """Take a slice of a compaction's removal, and what all took when it was the last."""
        self._purge_pause_ms.observe(held_s * 1e3)
        if total_s is not None:
            self._purge_total_ms.observe(total_s * 1e3)
            self.last_purge_s = time.time()  # shown, and nothing else

    def handled(self) -> Callable[[str, bool], Callable[[float], None]]:
        """Return what makes the observers of calls, by method (`kvstore.rpc.Server.time_calls`)."""
        handling = self._add(
            "grpc_server_handling_seconds",
            "Histogram of response latency (seconds) of gRPC that had been application-level "
            "handled by the server.",
            HANDLING_S,
            "grpc_type",
            "grpc_service",
            "grpc_method",
        )

        def observer(path: str, unary: bool) -> Callable[[float], None]:
            labels = method_labels(path, unary=unary)
            series: Series = handling.series(*labels.values())
            return series.observe

        return observer

    def render(self) -> bytes:
        """Return the page that Prometheus reads."""
        page: bytes = generate_latest(self.registry)
        return page


def method_labels(path: str, *, unary: bool) -> dict[str, str]:
    """Return the labels that grpc-go gives a method: type, service and name."""
    service, _, name = path[1:].partition("/")
    kind = "server_stream" if path in SERVER_STREAMS else "bidi_stream"
    return {
        "grpc_type": "unary" if unary else kind,
        "grpc_service": service,
        "grpc_method": name,
    }


class _Collector:
    def __init__(self, gauges: Source, counters: Source, histograms: list[Histogram]) -> None:
        self._gauges = gauges
        self._counters = counters
        self._histograms = histograms

    def collect(self) -> Iterator[Metric]:
        for histogram in self._histograms:
            yield histogram.collect()
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
