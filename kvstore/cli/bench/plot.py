"""What HTML reports are made of: style, tables, plots as inline SVG. Knows no benchmark.

Colours are classes (`c0`, `c1`, ...), so that the reader's light or dark scheme decides.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 240
COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 14, 36

Points = Sequence[tuple[float, float]]

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --dim: #59636e; --line: #d1d9e0; --back: #fff;
        --good: #1a7f37; --warn: #9a6700; --bad: #d1242f; }
.c0 { color: #1f6feb; } .c1 { color: #d1242f; } .c2 { color: #1a7f37; } .c3 { color: #9a6700; }
.c4 { color: #8250df; } .c5 { color: #0a7c86; } .c6 { color: #bf3989; } .c7 { color: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --dim: #9198a1; --line: #3d444d; --back: #0d1117;
          --good: #3fb950; --warn: #d29922; --bad: #f85149; }
  .c0 { color: #58a6ff; } .c1 { color: #ff7b72; } .c2 { color: #3fb950; } .c3 { color: #d29922; }
  .c4 { color: #bc8cff; } .c5 { color: #39c5cf; } .c6 { color: #f778ba; } .c7 { color: #9198a1; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back);
       margin: 2rem auto; max-width: 800px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid var(--line); }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12px; fill: var(--dim); }
.grid { stroke: var(--line); stroke-width: 1; } .good { color: var(--good); }
.warn { color: var(--warn); } .bad { color: var(--bad); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; }
.figures b { font-size: 1.6rem; } .figures span { color: var(--dim); display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: 13px; margin: .2rem 0; }
.legend i { display: inline-block; width: .7em; height: .7em; background: currentColor;
            margin-right: .4em; } .legend b { font-weight: normal; color: var(--dim); }
"""


def text(value: object) -> str:
    """Return the value as text that HTML shows as it is."""
    return html.escape(str(value))


def colour(number: int) -> str:
    """Return the class of the colour with that number."""
    return f"c{number % COLOURS}"


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """Return a page that fetches nothing."""
    return "\n".join(
        (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width'>",
            f"<title>{text(title)}</title><style>{STYLE}{style}</style></head><body>",
            *parts,
            "</body></html>\n",
        )
    )


def figure(value: str, name: str) -> str:
    """Return a large figure with its name below."""
    return f"<div><b>{text(value)}</b><span>{text(name)}</span></div>"


def legend(names: Sequence[str]) -> str:
    """Return the names beside their colours, in the order of the plot's colours."""
    items = (
        f"<span class='{colour(number)}'><i></i><b>{text(name)}</b></span>"
        for number, name in enumerate(names)
    )
    return f"<div class='legend'>{''.join(items)}</div>"


def short(value: float) -> str:
    """Return a number as an axis shows it: 50,000 is 50 k."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value lies on an axis, and what stands beside it."""

    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def part(self, value: float) -> float:
        """Return 0 for the start, 1 for the end. On a logarithmic axis values are positive."""
        start, end = self.start, self.end
        if self.is_log:
            start, end, value = math.log(start), math.log(end), math.log(value)
        return (value - start) / ((end - start) or 1.0)


def linear(largest: float) -> Scale:
    """Return an axis from 0 to the largest value or a little above."""
    values = ticks(largest)
    end = max(values[-1], largest) or 1.0
    return Scale(0.0, end, [(value, short(value)) for value in values])


def logarithmic(smallest: float, largest: float) -> Scale:
    """Return an axis over positive values that begins and ends at 1, 2 or 5 times a power of 10."""
    steps = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(smallest)), math.ceil(math.log10(largest)) + 2)
        for factor in (1, 2, 5)
    ]
    start = max(step for step in steps if step <= smallest * (1 + 1e-9))
    end = min(step for step in steps if step >= largest * (1 - 1e-9) and step > start)
    inside = [step for step in steps if start <= step <= end]
    if len(inside) > 8:
        inside = [step for step in inside if math.isclose(math.log10(step) % 1, 0, abs_tol=1e-9)]
    return Scale(start, end, [(step, short(float(f"{step:.3g}"))) for step in inside], is_log=True)


def ticks(largest: float) -> list[float]:
    """Return round values from 0 to the largest or a little above."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [round(step * number, 10) for number in range(math.ceil(largest / step) + 1)]


class Frame:
    """The area of a plot: axes, grid, and where a value lies."""

    def __init__(
        self, x: Scale, y: Scale, name: str, *, width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        self._x, self._y, self._name = x, y, name
        self.width, self.height = width, height

    def x(self, value: float) -> float:
        """Return the place of a value on the horizontal axis."""
        return round(_LEFT + self._x.part(value) * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the place of a value on the vertical axis."""
        room = self.height - _TOP - _BOTTOM
        return round(self.height - _BOTTOM - self._y.part(value) * room, 1)

    @property
    def bottom(self) -> int:
        """The place of the horizontal axis."""
        return self.height - _BOTTOM

    def draw(self, shapes: Sequence[str]) -> str:
        """Return the plot."""
        right = self.width - _RIGHT
        area = f"viewBox='0 0 {self.width} {self.height}'"
        parts = [f"<svg {area} role='img' aria-label='{text(self._name)}'>"]
        for value, name in self._y.ticks:
            y = self.y(value)
            parts.append(f"<line class='grid' x1='{_LEFT}' x2='{right}' y1='{y}' y2='{y}'/>")
            parts.append(f"<text x='{_LEFT - 6}' y='{y + 4}' text-anchor='end'>{text(name)}</text>")
        for value, name in self._x.ticks:
            x = self.x(value)
            y = self.height - 16
            parts.append(f"<text x='{x}' y='{y}' text-anchor='middle'>{text(name)}</text>")
        return "".join((*parts, *shapes, "</svg>"))

    def line(self, points: Points, number: int = 0, *, marks: bool = False) -> str:
        """Return a line in the colour with that number, or a dot for a single point."""
        places = [(self.x(x), self.y(y)) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        drawn = f"<polyline points='{path}' fill='none' stroke='currentColor' stroke-width='2'/>"
        if marks or len(points) == 1:
            drawn += "".join(f"<circle cx='{x}' cy='{y}' r='3'/>" for x, y in places)
        return f"<g class='{colour(number)}' fill='currentColor'>{drawn}</g>"
