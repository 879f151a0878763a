"""What a whole run found, part by part, kept in one file as it comes; measures nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.clusters import ETCD

SCHEMA = "kvstore-bench/1"
"""Fields are added under the same number; a field that changes or goes away makes the next one."""

FILE = "results.json"
WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"

ROW, SCENARIO, RIVALS, GROWTH = "row", "scenario", "rivals", "growth"
"""Kinds of parts: what their samples are. A `measure.Sample`; figures by name; a `load.Outcome` of
another system's program; a `growth.Series`."""


class RecordError(Exception):
    """There is no run in the folder, or of another form."""


@dataclass
class Part:
    """One row, scenario or dimension: what is measured in turn on each system."""

    name: str
    target: str
    """P1 to P8, or the part's own name."""

    title: str
    kind: str
    state: str = WAITING
    took_s: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """`system`, `round` and `error` of each measurement that broke."""

    samples: list[dict[str, Any]] = field(default_factory=list)

    def of(self, system: str) -> list[dict[str, Any]]:
        """Return the samples of one system, in order of the rounds."""
        return [sample for sample in self.samples if sample.get("system") == system]

    def problems(self, system: str) -> list[str]:
        """Return what was wrong with the measurements of a system: failures come first."""
        found = [
            f"round {failure['round']}: {failure['error']}"
            for failure in self.failures
            if failure["system"] == system
        ]
        for sample in self.of(system):
            found += sample.get("problems", [])
            for name, value in sample.get("figures", {}).items():
                if name.endswith("problems"):
                    found += [f"{name.removesuffix('problems')}{value}"]
        return list(dict.fromkeys(found))


@dataclass
class Run:
    """A run: settings, machine, and its parts."""

    name: str
    command: str
    started_at: str
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """What is not installed: why, and the command that installs it."""

    notes: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    schema: str = SCHEMA

    def part(self, name: str) -> Part | None:
        """Return the part with that name, if the run has it."""
        return next((part for part in self.parts if part.name == name), None)

    def of_kind(self, kind: str) -> list[Part]:
        """Return the parts of a kind that measured something."""
        return [part for part in self.parts if part.kind == kind and part.samples]

    def systems(self) -> list[str]:
        """Return the systems that the run was to measure, ours first."""
        return [str(system) for system in self.settings["systems"]]

    def ours(self) -> list[str]:
        """Return ours: the pure form, the compiled one, or both."""
        return [system for system in self.systems() if system != ETCD]

    def failed(self) -> list[Part]:
        """Return the parts in which a measurement broke."""
        return [part for part in self.parts if part.failures]

    def unfinished(self) -> list[Part]:
        """Return the parts that did not run to their end."""
        return [part for part in self.parts if part.state in (WAITING, RUNNING, STOPPED)]

    def save(self, folder: Path) -> None:
        """Write it into the folder; a reader finds the whole old file or the whole new one."""
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{FILE}.new"
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(fresh, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Return the run of a folder. Raises RecordError."""
        path = folder / FILE
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise RecordError(f"there is no {path}") from error
        except json.JSONDecodeError as error:
            raise RecordError(f"{path} is no JSON: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise RecordError(f"{path} is no {SCHEMA}")
        return cls(**data | {"parts": [Part(**part) for part in data["parts"]]})


def values(samples: Iterable[dict[str, Any]], name: str) -> list[float]:
    """Return the numbers with that name, of the samples that have it."""
    found = (sample.get("figures", sample).get(name) for sample in samples)
    return [
        float(value)
        for value in found
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
