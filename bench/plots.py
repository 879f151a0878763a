"""The plots of a run as inline SVG: bars of throughput, latency by percentile, growth, gaps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.fanout import SHAPES
from bench.growth import Series
from bench.record import GROWTH, RIVALS, ROW, Part, Run, values
from bench.tables import IN_WORDS
from kvstore.cli.bench.plot import (
    Frame,
    Scale,
    colour,
    legend,
    linear,
    logarithmic,
    short,
    text,
)

PERCENTILES = ("p50", "p90", "p99", "p99.9")
SYSTEMS = ("kvstore", "etcd", "zookeeper", "pysyncobj", "kvstore-compiled")
"""A system has the same colour everywhere."""

WIDTH, LABEL, VALUE, BAR, GAP, AXIS = 1000, 320, 110, 15, 9, 26
HEIGHT = 320
SMALL_WIDTH, SMALL_HEIGHT = 380, 220


@dataclass(frozen=True)
class Bars:
    """One figure of several systems: by system the values of the rounds."""

    name: str
    rates: dict[str, list[float]]


def colour_of(system: str) -> int:
    """Return the number of a system's colour."""
    return SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS)


def systems_legend(systems: Sequence[str]) -> str:
    """Return the legend of plots over systems."""
    items = "".join(
        f"<span class='{colour(colour_of(system))}'><i></i><b>{text(system)}</b></span>"
        for system in systems
    )
    return f"<div class='legend'>{items}</div>"


def throughput(run: Run) -> list[tuple[str, str]]:
    """Return titles and plots: bars with the median, a line from the slowest to the fastest."""
    found = []
    for title, unit, bars in _groups(run):
        if bars:
            systems = [s for s in SYSTEMS if any(s in each.rates for each in bars)]
            found.append((title, bar_chart(bars, f"{title}, {unit}") + systems_legend(systems)))
    return found


def _groups(run: Run) -> list[tuple[str, str, list[Bars]]]:
    rows: dict[str, list[Bars]] = {name: [] for name in ("P1", "P2", "P3", "P4")}
    for part in run.of_kind(ROW):
        title = f"{part.name}: {part.title}"
        rates = {system: values(part.of(system), "rate") for system in run.systems()}
        rows.setdefault(part.target, []).append(Bars(title, _present(rates)))
    return [
        ("P1: puts", "puts per second", rows["P1"]),
        ("P2: one put after the other", "puts per second", rows["P2"]),
        ("P3: ranges", "ranges per second", rows["P3"]),
        ("P4: a Python program", "puts per second", rows["P4"]),
        ("Beside other systems, from a Python program", "puts per second", _rival_bars(run)),
        ("P5: events to watchers", "events per second", _scenario_bars(run, "P5", SHAPES)),
        *_million(run),
    ]


def _present(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    return {system: found for system, found in rates.items() if found}


def _rival_bars(run: Run) -> list[Bars]:
    rates: dict[str, list[float]] = {}
    for part in run.of_kind(RIVALS):
        for sample in part.samples:
            rates.setdefault(sample["system"], []).append(sample["outcome"]["rate"])
    return [Bars("put, 500 in flight", rates)] if rates else []


def _scenario_bars(run: Run, name: str, labels: Sequence[str] | dict[str, int]) -> list[Bars]:
    part = run.part(name)
    if part is None:
        return []
    found = [
        Bars(
            label,
            _present(
                {system: values(part.of(system), f"{label} events/s") for system in run.systems()}
            ),
        )
        for label in labels
    ]
    return [bars for bars in found if bars.rates]


def _million(run: Run) -> list[tuple[str, str, list[Bars]]]:
    part = run.part("P6")
    found = []
    for what in ("put", "range") if part is not None and part.samples else ():
        assert part is not None
        names = [name for name in part.samples[0]["figures"] if name.startswith(f"{what}/s at ")]
        bars = []
        for name in names:
            rates = {system: values(part.of(system), name) for system in run.systems()}
            keys = int(name.rpartition(" ")[2])
            bars.append(Bars(f"{what}, {keys:,} keys held", _present(rates)))
        found.append((f"P6: {what}s with more keys", f"{what}s per second", bars))
    return found


def bar_chart(groups: Sequence[Bars], name: str) -> str:
    """Return horizontal bars on one scale from zero, grouped, each with its figure."""
    scale = linear(max(max(found) for bars in groups for found in bars.rates.values()))
    room = WIDTH - LABEL - VALUE
    shapes, y = [], 4.0

    def x(value: float) -> float:
        return round(LABEL + scale.part(value) * room, 1)

    for bars in groups:
        systems = sorted(bars.rates, key=colour_of)
        middle = y + len(systems) * BAR / 2 + 4
        shapes.append(
            f"<text x='{LABEL - 8}' y='{middle}' text-anchor='end'>{_fit(bars.name)}</text>"
        )
        for system in systems:
            shapes.append(_bar(bars.rates[system], system, x, y))
            y += BAR
        y += GAP
    bottom = y - GAP / 2
    lines = []
    for value, label in scale.ticks:
        place = x(value)
        lines.append(f"<line class='grid' x1='{place}' x2='{place}' y1='0' y2='{bottom}'/>")
        lines.append(f"<text x='{place}' y='{bottom + 16}' text-anchor='middle'>{label}</text>")
    area = f"viewBox='0 0 {WIDTH} {bottom + AXIS}'"
    return f"<svg {area} role='img' aria-label='{text(name)}'>{''.join(lines + shapes)}</svg>"


def _bar(found: Sequence[float], system: str, x: Callable[[float], float], y: float) -> str:
    middle, low, high = statistics.median(found), x(min(found)), x(max(found))
    center = y + (BAR - 2) / 2
    width = max(x(middle) - LABEL, 1.0)
    parts = [
        f"<rect x='{LABEL}' y='{y}' width='{width:.1f}' height='{BAR - 2}' fill='currentColor'/>"
    ]
    if len(found) > 1:
        ends = "".join(f"M{end} {center - 4}V{center + 4}" for end in (low, high))
        parts.append(f"<path class='spread' d='M{low} {center}H{high}{ends}'/>")
    label = f"{middle:,.0f}"
    at = max(high, x(middle)) + 6
    parts.append(f"<text class='value' x='{at}' y='{y + BAR - 3}'>{label}</text>")
    return f"<g class='{colour(colour_of(system))}'>{''.join(parts)}</g>"


def _fit(name: str, most: int = 52) -> str:
    """Return a label no longer than its room, the whole of it in a tooltip."""
    return text(name) if len(name) <= most else f"{text(name[: most - 1])}…"


def latencies(run: Run) -> list[tuple[str, str]]:
    """Return titles and plots: p50 to p99.9 of each workload, medians over the rounds."""
    found = []
    for title, by_system in _latencies(run):
        points = {
            system: [
                (float(place), statistics.median(waits[name]))
                for place, name in enumerate(PERCENTILES)
                if waits.get(name)
            ]
            for system, waits in by_system.items()
        }
        points = {system: line for system, line in points.items() if line}
        if points:
            found.append((title, _percentile_chart(title, points)))
    return found


def _latencies(run: Run) -> list[tuple[str, dict[str, dict[str, list[float]]]]]:
    """Return titles, and by system the milliseconds of each percentile in all rounds."""
    found = []
    for part in (*run.of_kind(ROW), *run.of_kind(RIVALS)):
        by_system: dict[str, dict[str, list[float]]] = {}
        for sample in part.samples:
            outcome = sample["outcome"]
            waits = by_system.setdefault(sample["system"], {})
            for name, value in (outcome["put_ms"] or outcome["range_ms"]).items():
                waits.setdefault(name, []).append(value)
        found.append((f"{part.name}: {part.title}", by_system))
    fanout = run.part("P5")
    for shape in SHAPES if fanout is not None else ():
        assert fanout is not None
        found.append(
            (
                f"P5: delivery to watchers, {shape}",
                {
                    system: {
                        name: values(fanout.of(system), f"{shape} delivery {name} ms")
                        for name in PERCENTILES
                    }
                    for system in run.systems()
                },
            )
        )
    return found


def _percentile_chart(title: str, points: dict[str, list[tuple[float, float]]]) -> str:
    every = [max(y, 1e-3) for line in points.values() for _, y in line]
    x = Scale(-0.15, len(PERCENTILES) - 0.85, list(enumerate(PERCENTILES)))
    y = logarithmic(min(every), max(every))
    name = f"{title}: milliseconds by percentile"
    frame = Frame(x, y, name, width=SMALL_WIDTH, height=SMALL_HEIGHT)
    shapes = [
        frame.line([(at, max(wait, 1e-3)) for at, wait in line], colour_of(system), marks=True)
        for system, line in points.items()
    ]
    return frame.draw(shapes) + systems_legend(list(points))


def growth(run: Run) -> list[tuple[str, str]]:
    """Return titles and plots: the cost of each operation by size, both axes logarithmic."""
    found = []
    for part in run.of_kind(GROWTH):
        series = [Series.of(sample) for sample in part.samples]
        sizes = sorted({size for each in series for size in each.costs_us})
        costs = [cost for each in series for cost in each.costs_us.values()]
        marks = [(float(size), _size(size)) for size in sizes]
        x = Scale(sizes[0], max(sizes[-1], sizes[0] + 1), marks, is_log=True)
        y, name = logarithmic(min(costs), max(costs)), f"{part.title}: microseconds"
        frame = Frame(x, y, name, width=WIDTH, height=HEIGHT)
        shapes = [
            frame.line([(float(size), cost) for size, cost in each.costs_us.items()], n, marks=True)
            for n, each in enumerate(series)
        ]
        names = [f"{each.operation} (g = {each.growth:.2f})" for each in series]
        state = f", {IN_WORDS[part.state]}" if part.state in IN_WORDS else ""
        found.append((f"By {series[0].holding}{state}", frame.draw(shapes) + legend(names)))
    return found


def _size(size: int) -> str:
    """Return a size as an axis shows it; those that are powers of two are bytes."""
    for unit, suffix in ((1 << 20, " Mi"), (1 << 10, " Ki")):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return short(size)


def gaps(run: Run) -> str:
    """Return a plot of how long no write was acknowledged, for each kill; empty without any."""
    part: Part | None = run.part("P8")
    by_system = {
        system: [gap for sample in part.of(system) for gap in sample["figures"].get("gaps", [])]
        for system in (run.systems() if part is not None else ())
    }
    by_system = {system: sorted(found) for system, found in by_system.items() if found}
    if not by_system:
        return ""
    y = linear(max(max(found) for found in by_system.values()))
    frame = Frame(
        Scale(0.0, 100.0, [(value, f"{value:.0f} %") for value in (0, 25, 50, 75, 100)]),
        y,
        "seconds until writes resume, by the share of kills",
        width=WIDTH,
    )
    shapes = [
        frame.line(
            [(100.0 * (n + 1) / len(found), gap) for n, gap in enumerate(found)],
            colour_of(system),
            marks=True,
        )
        for system, found in by_system.items()
    ]
    return frame.draw(shapes) + systems_legend(list(by_system))
