"""Histograms for the metrics page: cheap to feed, rendered when asked for; knows no metric."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


def doubling(start: float, count: int) -> tuple[float, ...]:
    """Return `count` bounds, each twice the one before, as Go's ExponentialBuckets."""
    return tuple(start * 2**step for step in range(count))


class Series:
    """The values of one set of labels. Feed it on the loop's thread only."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or many operations that took it on average. About 0.2 us."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulated counts by upper bound, and the sum of the values."""
        total = 0
        found: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append((_as_go(bound), total))
        return found, self._sum


def _as_go(bound: float) -> str:
    # The library's form of whole numbers is its own, Go's are "1" and "1.048576e+06".
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text.removesuffix(".0")


class Histogram:
    """One metric: a series for each set of label values."""

    def __init__(
        self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        """Begin without values; without labels its one series is there from the start, as Go's."""
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labels = labels
        self._series: dict[tuple[str, ...], Series] = {}
        if not labels:
            self.series()

    def series(self, *values: str) -> Series:
        """Return the series of these label values; keep it where calls are many."""
        found = self._series.get(values)
        if found is None:
            assert len(values) == len(self._labels)
            found = self._series[values] = Series(self._bounds)
        return found

    def collect(self) -> HistogramMetricFamily:
        """Return what the page shows."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in self._series.items():
            buckets, total = series.buckets()
            family.add_metric(values, buckets, total)
        return family
