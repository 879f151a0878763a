"""Runs with made-up figures, for tests of what is said of them; nothing here is measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.clusters import ETCD, KVSTORE
from bench.growth import Series
from bench.load import Outcome
from bench.measure import Sample
from bench.record import DONE, GROWTH, RIVALS, ROW, SCENARIO, Part, Run
from bench.rivals import Sample as RivalSample

WAITS = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 9.0, "max": 10.0}


def row(name: str, rates: dict[str, list[float]], **fields: Any) -> Part:
    """Return a finished row with the rates of each system's rounds."""
    samples = [
        Sample(
            *(name, system, number, rate, 1.0, 3.0, 20.0, 10.0, 1e6),
            command=f"drive {system}",
            outcome=asdict(Outcome(rate=rate, put_ms=WAITS)),
        )
        for system, found in rates.items()
        for number, rate in enumerate(found)
    ]
    data = [asdict(sample) | fields for sample in samples]
    return Part(name, name.split("-", maxsplit=1)[0], f"work of {name}", ROW, DONE, 1.0, [], data)


def scenario(name: str, figures: dict[str, list[dict[str, Any]]]) -> Part:
    """Return a finished scenario with the figures of each system's rounds."""
    samples = [
        {"system": system, "round": number, "figures": found}
        for system, rounds in figures.items()
        for number, found in enumerate(rounds)
    ]
    return Part(name, name, f"scenario {name}", SCENARIO, DONE, 1.0, [], samples)


def rival(rates: dict[str, float]) -> Part:
    """Return the finished comparison with other systems."""
    samples = [
        asdict(RivalSample(system, "a client", Outcome(rate=rate, put_ms=WAITS)))
        for system, rate in rates.items()
    ]
    return Part("rivals", "rivals", "puts", RIVALS, DONE, 1.0, [], samples)


def growing(holding: str = "keys") -> Part:
    """Return a finished dimension with an operation that grows and one that does not."""
    samples = [
        asdict(Series(holding, "put", True, {10: 20.0, 1000: 21.0})),
        asdict(Series(holding, "scan", True, {10: 20.0, 1000: 2000.0})),
    ]
    return Part(f"growth-{holding}", "growth", f"cost by {holding}", GROWTH, DONE, 1.0, [], samples)


def run_of(*parts: Part, **fields: Any) -> Run:
    """Return a run of those parts on kvstore and etcd."""
    settings = {"systems": [KVSTORE, ETCD], "rounds": 3, "scale": 1.0, "is_short": False}
    given: dict[str, Any] = {
        "name": "a run",
        "command": "python -m bench",
        "started_at": "2026-01-01T00:00+00:00",
        "settings": settings,
        "machine": {"cpu": "a processor", "cores": 2},
        "versions": {"kvstore": "0.1.0, pure Python"},
    }
    return Run(**given | fields, parts=list(parts))
