"""Counts of one agent, and their Prometheus page; prometheus-client is loaded at the first read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from kvstore import __version__

DRIFTS = (
    *("address", "fdbentry", "neighbour", "route", "sysctl", "vxlanlink"),
    *("firewall", "forward", "process", "hung-process"),
)
"""Kinds of what may be healed."""

APPLY_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Counts:
    """What an agent has done so far."""

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        """Objects written or removed, by kind."""
        self.healed: Counter[str] = Counter()
        """Of these: those that were right before and that somebody had changed."""
        self.found: Counter[str] = Counter()
        """Healed, or left waiting as contested; as many as healed when nothing waits."""
        self.failed = 0
        """Objects that the kernel refused; each try counts."""
        self.applies = 0
        self.apply_ms_sum = 0.0
        self._apply_buckets = [0] * (len(APPLY_BOUNDS_MS) + 1)

    def applied(self, milliseconds: float) -> None:
        """Count a round of comparing and programming."""
        self.applies += 1
        self.apply_ms_sum += milliseconds
        self._apply_buckets[bisect_left(APPLY_BOUNDS_MS, milliseconds)] += 1

    def apply_buckets(self) -> list[tuple[str, float]]:
        """Return cumulated counts with their bounds in seconds, as Prometheus has them."""
        total, rows = 0, []
        for bound, count in zip([*APPLY_BOUNDS_MS, None], self._apply_buckets, strict=True):
            total += count
            rows.append(("+Inf" if bound is None else repr(bound / 1000), float(total)))
        return rows


def render(
    counts: Counts,
    gauges: Mapping[str, float],
    missing: Mapping[str, str],
    notes: Mapping[str, str],
    dropped: int | None = None,
    process: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the page.

    Args:
        counts: What was done.
        gauges: Values of now, by name without the prefix; see HELP.
        missing: What keeps the host from being ready, by code.
        notes: What else an operator should know, by code.
        dropped: Packets of unknown hosts; None: not known.
        process: What the process that moves packets has done; None: there is none.
    """
    # ruff: noqa: PLC0415 (0.05 s, for agents that are asked)
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )

    class Page:
        def collect(self) -> Any:
            for name, value in gauges.items():
                yield GaugeMetricFamily(f"netplane_{name}", HELP[name], value)
            for name, text, codes in (
                ("netplane_missing", "What keeps the host from being ready.", missing),
                ("netplane_note", "What else an operator should know.", notes),
            ):
                family = GaugeMetricFamily(name, f"{text} Texts: ctl status.", labels=["code"])
                for code in sorted(codes):
                    family.add_metric([code], 1)
                yield family
            for name, text, numbers, kinds in (
                ("netplane_written", "Kernel objects written or removed.", counts.written, ()),
                # From 0 on: `increase()` does not see a first sample that is 1.
                ("netplane_healed", "What others had changed, put right.", counts.healed, DRIFTS),
                (
                    "netplane_drift_found",
                    "The same, and what is left waiting as contested (a note).",
                    counts.found,
                    DRIFTS,
                ),
            ):
                objects = CounterMetricFamily(name, text, labels=["kind"])
                for kind in sorted({*kinds, *numbers}):
                    objects.add_metric([kind], numbers[kind])
                yield objects
            yield CounterMetricFamily(
                "netplane_refused", "Objects that the kernel refused, each try.", counts.failed
            )
            if dropped is not None:
                yield CounterMetricFamily(
                    "netplane_dropped",
                    "Overlay packets that came from no host of it. Starts anew with the table.",
                    dropped,
                )
            if process is not None:
                yield from _of_process(process)
            apply = HistogramMetricFamily(
                "netplane_apply_seconds", "Rounds of comparing and programming the kernel."
            )
            apply.add_metric([], counts.apply_buckets(), counts.apply_ms_sum / 1000)
            yield apply
            yield InfoMetricFamily("netplane_build", "This agent.", {"version": __version__})

    registry = CollectorRegistry()
    registry.register(Page())
    ProcessCollector(namespace="", registry=registry)
    page: bytes = generate_latest(registry)
    return page


def _of_process(told: Mapping[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    for name, text, keys in (
        ("netplane_udp_packets", "Packets moved by the process.", ("sent", "received")),
        ("netplane_udp_bytes", "Their bytes.", ("sent_bytes", "received_bytes")),
    ):
        family = CounterMetricFamily(name, text, labels=["direction"])
        for direction, key in zip(("sent", "received"), keys, strict=True):
            family.add_metric([direction], told[key])
        yield family
    family = CounterMetricFamily(
        "netplane_udp_dropped", "Packets that the process did not move.", labels=["reason"]
    )
    for reason, count in sorted(told["dropped"].items()):
        family.add_metric([reason], count)
    yield family


HELP = {
    "ready": "1 when the network of this host works.",
    "peers": "Hosts whose subnets are routed.",
    "vteps": "Hosts whose overlay packets are let in.",
    "quarantined": "Keys of the registry that are of no use and are not applied.",
    "view_revision": "Revision of the registry that the kernel follows.",
    "view_age_seconds": "Time since the registry last told a change.",
    "lease_age_seconds": "Time since this host's lease was last known to be ours.",
}
