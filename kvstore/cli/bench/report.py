"""The report of a run: as data (the JSON file) and as text. Starts nothing, measures nothing."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import platform
from typing import TYPE_CHECKING, Any

from kvstore import __version__

if TYPE_CHECKING:
    from kvstore.cli.bench.histogram import Histogram
    from kvstore.cli.bench.measure import Measure
    from kvstore.cli.bench.plan import Plan

SCHEMA = "kvctl-bench/1"
"""Fields are added under the same number; a field that changes or goes away makes the next one."""

PERCENTILES = (("p50_ms", 50.0), ("p90_ms", 90.0), ("p99_ms", 99.0), ("p99_9_ms", 99.9))
_BAR = 40


def make_report(
    plan: Plan,
    measure: Measure,
    *,
    endpoints: list[str],
    server_version: str,
    session: bool,
    started_at: dt.datetime,
    client_cpu_s: float,
    is_interrupted: bool,
) -> dict[str, Any]:
    """Return the report; docs/bench.md says what its fields mean."""
    settings = dataclasses.asdict(plan)
    settings["prefix"] = plan.prefix.decode("utf-8", "backslashreplace")
    return {
        "schema": SCHEMA,
        "workload": plan.workload,
        "started_at": started_at.isoformat(timespec="seconds"),
        "duration_s": round(measure.duration_s, 3),
        "interrupted": is_interrupted,
        "operations": measure.operations,
        "operations_per_s": round(measure.operations_per_s, 1),
        "errors": dict(measure.errors),
        "error_texts": dict(measure.error_texts),
        "unsent": measure.unsent,
        "latency": _summaries(measure.latency),
        "service": _summaries(measure.service),
        "notes": _summaries(measure.notes),
        "all": summary(measure.all_latencies()),
        "timeline": [
            {
                "at_s": round(second.at_s, 3),
                "operations_per_s": round(second.operations_per_s, 1),
                "p50_ms": _ms(second.p50_s),
                "p99_ms": _ms(second.p99_s),
                "errors": second.errors,
            }
            for second in measure.seconds
        ],
        "settings": settings,
        "server": {"endpoints": endpoints, "version": server_version, "session": session},
        "client": {
            "kvctl": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "cpu_percent": round(100 * client_cpu_s / max(measure.duration_s, 1e-9), 1),
        },
    }


def _summaries(histograms: dict[str, Histogram]) -> dict[str, Any]:
    return {kind: summary(histogram) for kind, histogram in sorted(histograms.items())}


def summary(histogram: Histogram) -> dict[str, Any]:
    """Return a histogram in milliseconds; `buckets` are upper edge and count, ascending."""
    count = histogram.count
    values: dict[str, Any] = {
        "count": count,
        "mean_ms": _ms(histogram.mean_s),
        "min_ms": _ms(histogram.min_s if count else 0.0),
    }
    for name, percent in PERCENTILES:
        values[name] = _ms(histogram.percentile_s(percent))
    values["max_ms"] = _ms(histogram.max_s)
    values["buckets"] = [[round(edge_s * 1e3, 6), many] for edge_s, many in histogram.buckets()]
    return values


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def text_of(report: dict[str, Any], latencies: Histogram) -> str:
    """Return the report for people."""
    server, settings = report["server"], report["settings"]
    way = "session" if server["session"] else "unary calls"
    clients = f"{settings['clients']} clients, {settings['connections']} connections"
    lines = [
        f"{report['workload']}: {clients} ({way})",
        f"server {server['version']} at {', '.join(server['endpoints'])}",
    ]
    if report["interrupted"]:
        lines.append("interrupted: this is what ran until then")
    lines.append(
        f"{report['operations']} operations in {report['duration_s']:.2f} s: "
        f"{report['operations_per_s']:.1f} per second"
    )
    if settings["rate"] is not None:
        lines.append(
            f"asked for {settings['rate']:.1f} per second; latencies count from when an operation "
            "was due"
        )
    lines += ["", *_table(report)]
    rows = latencies.doublings()
    if rows:
        lines += ["", "latency up to", *_bars(rows)]
    lines += ["", *remarks_of(report)]
    return "\n".join(lines).rstrip() + "\n"


def _table(report: dict[str, Any]) -> list[str]:
    names = ["mean_ms", *(name for name, _ in PERCENTILES), "max_ms"]
    heads = ["mean", "p50", "p90", "p99", "p99.9", "max"]
    lines = [f"{'milliseconds':<24}{'count':>10}" + "".join(f"{head:>10}" for head in heads)]
    groups = (("", "latency"), (" (from sending)", "service"), (" (beside)", "notes"))
    for suffix, group in groups:
        for kind, values in report[group].items():
            cells = "".join(f"{values[name]:>10.2f}" for name in names)
            lines.append(f"{kind + suffix:<24}{values['count']:>10}{cells}")
    return lines


def _bars(rows: list[tuple[float, int]]) -> list[str]:
    most = max(count for _, count in rows)
    lines = []
    for edge_s, count in rows:
        bar = "#" * max(round(_BAR * count / most), 1 if count else 0)
        lines.append(f"{edge_s * 1e3:>12.3f} ms {count:>10} {bar}".rstrip())
    return lines


def remarks_of(report: dict[str, Any]) -> list[str]:
    """Return what a reader of the figures must know."""
    lines = []
    for name, count in report["errors"].items():
        lines.append(f"{count} failed with {name}: {report['error_texts'][name]}")
    if report["unsent"]:
        lines.append(
            f"{report['unsent']} operations were due and never sent: all clients were waiting. "
            "They count with their wait so far, so the true latencies are higher still"
        )
    if report["client"]["cpu_percent"] > 90:
        lines.append(
            f"kvctl itself used {report['client']['cpu_percent']:.0f} % of a core: the figures may "
            "be its limit, not the server's; run several of it, on other machines"
        )
    return lines
