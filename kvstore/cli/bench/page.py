"""The report as one HTML page: plots are inline SVG, nothing is fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 760, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 36
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700")

Points = Sequence[tuple[float, float]]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 2rem auto;
       max-width: 800px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #d1d9e0; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; } .lead { font-size: 1.1rem; } .warn { color: #9a6700; }
.figures { display: flex; gap: 2.5rem; margin: 1rem 0; } .figures b { font-size: 1.6rem; }
.figures span { color: #59636e; display: block; }
"""


def page_of(report: dict[str, Any], remarks: Sequence[str]) -> str:
    """Return the page."""
    settings, server = report["settings"], report["server"]
    every = report["all"]
    title = f"kvctl bench {report['workload']}"
    way = "session" if server["session"] else "unary calls"
    clients = f"{settings['clients']} clients, {settings['connections']} connections"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(report['started_at'])}: {_text(clients)} ({way})<br>",
        f"server {_text(server['version'])} at {_text(', '.join(server['endpoints']))}</p>",
        "<div class='figures'>",
        _figure(f"{report['operations_per_s']:,.0f}", "operations per second"),
        _figure(f"{every['p50_ms']:.2f} ms", "half are faster"),
        _figure(f"{every['p99_ms']:.2f} ms", "99 % are faster"),
        _figure(f"{sum(report['errors'].values()):,}", "errors"),
        "</div>",
        *(f"<p class='warn'>{_text(remark)}</p>" for remark in remarks),
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
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value))


def _figure(value: str, name: str) -> str:
    return f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>"


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>"
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
                f"<tr><td>{_text(kind + suffix)}</td>"
                + "".join(f"<td>{cell}</td>" for cell in cells)
                + "</tr>"
            )
    return f"<table>{''.join(rows)}</table>"


class _Frame:
    """The area of a plot: axes, grid, and where a value lies."""

    def __init__(
        self,
        x_span: tuple[float, float],
        y_max: float,
        x_ticks: Sequence[tuple[float, str]],
        y_name: str = "",
    ) -> None:
        self._x_from, x_to = x_span
        self._x_size = (x_to - self._x_from) or 1.0
        self._y_ticks = _ticks(y_max)
        self._y_max = max(self._y_ticks[-1], y_max) or 1.0
        self._x_ticks = x_ticks
        self._y_name = y_name

    def x(self, value: float) -> float:
        part = (value - self._x_from) / self._x_size
        return round(_LEFT + part * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - _BOTTOM - value / self._y_max * (HEIGHT - _TOP - _BOTTOM), 1)

    def draw(self, shapes: Sequence[str], legend: Sequence[str] = ()) -> str:
        parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{self._y_name}'>"]
        for value in self._y_ticks:
            y = self.y(value)
            parts.append(
                f"<line class='grid' x1='{_LEFT}' x2='{WIDTH - _RIGHT}' y1='{y}' y2='{y}'/>"
            )
            parts.append(f"<text x='{_LEFT - 6}' y='{y + 4}' text-anchor='end'>{value:,g}</text>")
        for value, name in self._x_ticks:
            x = self.x(value)
            parts.append(f"<text x='{x}' y='{HEIGHT - 16}' text-anchor='middle'>{name}</text>")
        parts += shapes
        for number, name in enumerate(legend):
            x = WIDTH - _RIGHT - 90 * (len(legend) - number)
            colour = _COLOURS[number % len(_COLOURS)]
            parts.append(f"<rect x='{x}' y='{_TOP - 8}' width='10' height='10' fill='{colour}'/>")
            parts.append(f"<text x='{x + 14}' y='{_TOP + 1}'>{_text(name)}</text>")
        parts.append("</svg>")
        return "".join(parts)

    def line(self, points: Points, number: int = 0) -> str:
        colour = _COLOURS[number % len(_COLOURS)]
        if len(points) == 1:
            [(x, y)] = points
            return f"<circle cx='{self.x(x)}' cy='{self.y(y)}' r='4' fill='{colour}'/>"
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>"


def _ticks(largest: float) -> list[float]:
    """Return round values from 0 to the largest or a little above."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [round(step * number, 10) for number in range(math.ceil(largest / step) + 1)]


def _over(report: dict[str, Any], name: str) -> list[tuple[float, float]]:
    """Return a value of the timeline, each over the end of its interval."""
    points = [(second["at_s"], second[name]) for second in report["timeline"]]
    return [(0.0, points[0][1]), *points]


def _time_frame(report: dict[str, Any], y_max: float, y_name: str) -> _Frame:
    end_s = max(second["at_s"] for second in report["timeline"])
    ticks = [(value, f"{value:g} s") for value in _ticks(end_s) if value <= end_s]
    return _Frame((0.0, end_s), y_max, ticks, y_name)


def _throughput(report: dict[str, Any]) -> str:
    points = _over(report, "operations_per_s")
    frame = _time_frame(report, max(y for _, y in points), "operations per second over time")
    return frame.draw([frame.line(points)])


def _over_time(report: dict[str, Any]) -> str:
    lines = [_over(report, name) for name in ("p50_ms", "p99_ms")]
    y_max = max(y for points in lines for _, y in points)
    frame = _time_frame(report, y_max, "latency over time in milliseconds")
    shapes = [frame.line(points, number) for number, points in enumerate(lines)]
    return frame.draw(shapes, ["p50", "p99"])


def _distribution(every: dict[str, Any]) -> str:
    """Draw bars over a logarithmic axis: eight to a doubling."""
    bars: dict[int, int] = {}
    for edge_ms, count in every["buckets"]:
        place = math.floor(math.log2(edge_ms) * 8)
        bars[place] = bars.get(place, 0) + count
    first, last = min(bars), max(bars) + 1
    powers = range(math.ceil(first / 8), math.floor(last / 8) + 1)
    ticks = [(power * 8.0, f"{2.0**power:.3g} ms") for power in powers]
    every_n = math.ceil(len(ticks) / 10) or 1
    frame = _Frame((first, last), max(bars.values()), ticks[::every_n], "latencies by count")
    shapes = []
    for place, count in sorted(bars.items()):
        left, right, top = frame.x(place), frame.x(place + 1), frame.y(count)
        height = round(HEIGHT - _BOTTOM - top, 1)
        width = round(max(right - left - 1, 1), 1)
        shapes.append(
            f"<rect x='{left}' y='{top}' width='{width}' height='{height}' fill='{_COLOURS[0]}'/>"
        )
    return frame.draw(shapes)


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
    ticks = [(float(each), f"{100 - 10.0 ** (2 - each):.10g} %") for each in nines]
    frame = _Frame((0.0, nines_max), y_max, ticks, "latency by percentile in milliseconds")
    return frame.draw([frame.line(points, number) for number, points in enumerate(lines)], names)
