"""The report as one HTML page: plots are inline SVG, nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kvstore.cli.bench.plot import (
    Frame,
    Points,
    Scale,
    colour,
    document,
    figure,
    legend,
    linear,
    text,
    ticks,
)


def page_of(report: dict[str, Any], remarks: Sequence[str]) -> str:
    """Return the page."""
    settings, server = report["settings"], report["server"]
    every = report["all"]
    title = f"kvctl bench {report['workload']}"
    way = "session" if server["session"] else "unary calls"
    clients = f"{settings['clients']} clients, {settings['connections']} connections"
    parts = [
        f"<h1>{text(title)}</h1>",
        f"<p>{text(report['started_at'])}: {text(clients)} ({way})<br>",
        f"server {text(server['version'])} at {text(', '.join(server['endpoints']))}</p>",
        "<div class='figures'>",
        figure(f"{report['operations_per_s']:,.0f}", "operations per second"),
        figure(f"{every['p50_ms']:.2f} ms", "half are faster"),
        figure(f"{every['p99_ms']:.2f} ms", "99 % are faster"),
        figure(f"{sum(report['errors'].values()):,}", "errors"),
        "</div>",
        *(f"<p class='warn'>{text(remark)}</p>" for remark in remarks),
    ]
    if report["interrupted"]:
        parts.append("<p class='warn'>Interrupted: this is what ran until then.</p>")
    parts += ["<h2>Throughput, operations per second</h2>", _throughput(report)]
    parts += ["<h2>Latency over time, milliseconds</h2>", _over_time(report)]
    if every["buckets"]:
        parts += ["<h2>Latencies: how many took how long</h2>", _distribution(every)]
        parts += ["<h2>Latency by percentile, milliseconds</h2>", _percentiles(report)]
    parts += ["<h2>Latencies, milliseconds</h2>", _latencies(report)]
    parts += ["<h2>Settings</h2>", _pairs(settings), "<h2>Client</h2>", _pairs(report["client"])]
    return document(title, parts)


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    return f"<table>{rows}</table>"


def _latencies(report: dict[str, Any]) -> str:
    names = ("count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
    heads = ("", "count", "mean", "p50", "p90", "p99", "p99.9", "max")
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    groups = (("", "latency"), (" (from sending)", "service"), (" (beside)", "notes"))
    for suffix, group in groups:
        for kind, values in report[group].items():
            cells = [f"{values['count']:,}", *(f"{values[name]:.2f}" for name in names[1:])]
            rows.append(
                f"<tr><td>{text(kind + suffix)}</td>"
                + "".join(f"<td>{cell}</td>" for cell in cells)
                + "</tr>"
            )
    return f"<table>{''.join(rows)}</table>"


def _over(report: dict[str, Any], name: str) -> list[tuple[float, float]]:
    """Return a value of the timeline, each over the end of its interval."""
    points = [(second["at_s"], second[name]) for second in report["timeline"]]
    return [(0.0, points[0][1]), *points]


def _time_frame(report: dict[str, Any], y_max: float, name: str) -> Frame:
    end_s = max(second["at_s"] for second in report["timeline"])
    seconds = [(value, f"{value:g} s") for value in ticks(end_s) if value <= end_s]
    return Frame(Scale(0.0, end_s, seconds), linear(y_max), name)


def _throughput(report: dict[str, Any]) -> str:
    points = _over(report, "operations_per_s")
    frame = _time_frame(report, max(y for _, y in points), "operations per second over time")
    return frame.draw([frame.line(points)])


def _over_time(report: dict[str, Any]) -> str:
    lines = [_over(report, name) for name in ("p50_ms", "p99_ms")]
    y_max = max(y for points in lines for _, y in points)
    frame = _time_frame(report, y_max, "latency over time in milliseconds")
    shapes = [frame.line(points, number) for number, points in enumerate(lines)]
    return frame.draw(shapes) + legend(["p50", "p99"])


def _distribution(every: dict[str, Any]) -> str:
    """Draw bars over a logarithmic axis: eight to a doubling."""
    bars: dict[int, int] = {}
    for edge_ms, count in every["buckets"]:
        place = math.floor(math.log2(edge_ms) * 8)
        bars[place] = bars.get(place, 0) + count
    first, last = min(bars), max(bars) + 1
    powers = range(math.ceil(first / 8), math.floor(last / 8) + 1)
    names = [(power * 8.0, f"{2.0**power:.3g} ms") for power in powers]
    every_n = math.ceil(len(names) / 10) or 1
    scale = Scale(first, last, names[::every_n])
    frame = Frame(scale, linear(max(bars.values())), "latencies by count")
    shapes = []
    for place, count in sorted(bars.items()):
        left, right, top = frame.x(place), frame.x(place + 1), frame.y(count)
        height = round(frame.bottom - top, 1)
        width = round(max(right - left - 1, 1), 1)
        shapes.append(f"<rect x='{left}' y='{top}' width='{width}' height='{height}'/>")
    return frame.draw([f"<g class='{colour(0)}' fill='currentColor'>{''.join(shapes)}</g>"])


def _percentiles(report: dict[str, Any]) -> str:
    """Draw latency over 1 / (1 - percentile): each nine takes as much room as the one before."""
    names = list(report["latency"])
    lines: list[Points] = []
    nines_max = 1.0
    for name in names:
        values = report["latency"][name]
        points = [(0.0, values["min_ms"])]
        below = 0
        for edge_ms, count in values["buckets"]:
            below += count
            if below < values["count"]:
                points.append((-math.log10(1 - below / values["count"]), edge_ms))
        points.append((math.log10(max(values["count"], 1)) or 1.0, values["max_ms"]))
        nines_max = max(nines_max, points[-1][0])
        lines.append(points)
    y_max = max(y for points in lines for _, y in points)
    nines = range(math.floor(nines_max) + 1)
    percents = [(float(each), f"{100 - 10.0 ** (2 - each):.10g} %") for each in nines]
    scale = Scale(0.0, nines_max, percents)
    frame = Frame(scale, linear(y_max), "latency by percentile in milliseconds")
    shapes = [frame.line(points, number) for number, points in enumerate(lines)]
    return frame.draw(shapes) + legend(names)
