"""Runs the parts of a benchmark one after the other and keeps what each finds; renders nothing.

A measurement that breaks ends its system's share of the part, is noted, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import uvloop

from bench import growth, machine, rivals, scenarios
from bench.capacity import fsync_s
from bench.clusters import ETCD, KVSTORE, Cluster, choose_ports
from bench.measure import Ceilings, Sample, measure, preload
from bench.record import DONE, FAILED, GROWTH, RIVALS, ROW, RUNNING, SCENARIO, STOPPED, Part, Run
from bench.rival_programs import IN_FLIGHT
from bench.workloads import KEYS, Workload

VERSIONS = ("python", "etcd", "h2load", "uvloop", "grpcio", "commit")
"""Facts that are versions, not the machine."""

PURE = "pure Python"
GROWTH_PREFIX = "growth-"


@dataclass(frozen=True)
class Settings:
    """What the parts need to know."""

    kinds: Sequence[str]
    """Of kvstore, kvstore-compiled and etcd: those to measure that are installed."""

    rivals: Sequence[str]
    """Of `rivals.SYSTEMS`: the same."""

    rounds: int
    scenario_rounds: int
    seconds: float
    ceiling_s: float
    scale: float = 1.0
    growth_s: float = growth.SECONDS
    growth_max: int = 10**9
    """Larger sizes are left out."""

    data_root: str | None = None
    cpu_list: str | None = None


def parts_of(rows: Sequence[Workload], others: Sequence[str]) -> list[Part]:
    """Return the parts in the order in which they run: rows, scenarios, rivals, growth."""
    parts = [Part(row.name, row.name.split("-")[0], row.title, ROW) for row in rows]
    for name in others:
        if name == "rivals":
            title = f"puts from a Python program, {IN_FLIGHT} in flight"
            parts.append(Part(name, name, title, RIVALS))
        elif name.startswith(GROWTH_PREFIX):
            parts.append(Part(name, "growth", f"cost by {_dimension(name)}", GROWTH))
        else:
            parts.append(Part(name, name, scenarios.TITLES[name], SCENARIO))
    return parts


def _dimension(name: str) -> str:
    """Return the dimension that a part with that name measures."""
    return next(
        dimension
        for dimension in growth.DIMENSIONS
        if dimension.replace(" ", "-") == name.removeprefix(GROWTH_PREFIX)
    )


class Suite:
    """A run under way."""

    def __init__(
        self, run: Run, settings: Settings, rows: Sequence[Workload], folder: Path
    ) -> None:
        self._run = run
        self._settings = settings
        self._rows = {row.name: row for row in rows}
        self._folder = folder
        self._ceilings = Ceilings(settings.ceiling_s)
        self._begin_s = time.monotonic()
        self._step = 0
        self._steps = sum(map(self._steps_of, run.parts))

    def execute(self) -> None:
        """Run every part. An interruption goes through; what was measured is kept."""
        self._describe()
        ways: dict[str, Callable[[Part], None]] = {
            ROW: self._row,
            SCENARIO: self._scenario,
            RIVALS: self._rivals,
            GROWTH: self._growth,
        }
        for part in self._run.parts:
            begin_s = time.monotonic()
            part.state = RUNNING
            self._save()
            try:
                ways[part.kind](part)
                part.state = FAILED if part.failures else DONE
            except BaseException:
                part.state = STOPPED
                raise
            finally:
                part.took_s = round(time.monotonic() - begin_s, 1)
                self._save()

    def _describe(self) -> None:
        """Note machine and versions."""
        run, settings = self._run, self._settings
        facts: dict[str, Any] = machine.facts(settings.data_root)
        run.versions = {name: facts.pop(name) for name in VERSIONS}
        fsync_us = 1e6 * fsync_s(settings.data_root)
        run.machine = facts | {"write + fdatasync": f"{fsync_us:,.0f} us (median of 500)"}
        for kind in settings.kinds:
            if kind != ETCD:
                run.versions = {kind: self._version_of(kind)} | run.versions
        if "zookeeper" in settings.rivals:
            run.versions["zookeeper"] = rivals.zookeeper_version()
        for package in ("kazoo", "pysyncobj"):
            with contextlib.suppress(PackageNotFoundError):
                run.versions[package] = version(package)
        self._save()

    def _version_of(self, kind: str) -> str:
        """Return what a member of ours says of itself. Raises ClusterError when none comes up."""
        with Cluster(kind, ports=choose_ports(1)) as cluster:
            address = f"http://127.0.0.1:{cluster.members[0].ports.client}/version"
            with urllib.request.urlopen(address, timeout=10.0) as page:
                told = json.load(page)
        return f"{told['kvstore']}, {told.get('modules', PURE)}, as etcd {told['etcdserver']}"

    def _save(self) -> None:
        self._run.save(self._folder)

    def _rounds(self, part: Part) -> int:
        if part.name in scenarios.ONCE or part.kind == GROWTH:
            return 1
        settings = self._settings
        return settings.scenario_rounds if part.kind == SCENARIO else settings.rounds

    def _systems(self, part: Part) -> list[str]:
        if part.kind == GROWTH:
            return [KVSTORE]
        return list(self._settings.rivals if part.kind == RIVALS else self._settings.kinds)

    def _steps_of(self, part: Part) -> int:
        return self._rounds(part) * len(self._systems(part))

    def _turns(self, part: Part) -> Iterator[tuple[int, str]]:
        """Yield rounds and systems; none is always the first, since the machine's speed drifts.

        A system whose measurement broke has no further turn in the part.
        """
        systems = self._systems(part)
        for number in range(self._rounds(part)):
            for system in systems if number % 2 == 0 else reversed(systems):
                self._step += 1
                broken = _broke(part, system)
                minutes = (time.monotonic() - self._begin_s) / 60
                print(
                    f"[{self._step}/{self._steps}, {minutes:.0f} min] {part.name}, {system}, "
                    f"round {number + 1} of {self._rounds(part)}"
                    + (": left out, it failed before" if broken else ""),
                    flush=True,
                )
                if not broken:
                    yield number, system

    @contextmanager
    def _noted(self, part: Part, system: str, number: int) -> Iterator[None]:
        """Note what breaks inside, so that the rest of the run goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, it is reported and counts
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            part.failures.append({"system": system, "round": number + 1, "error": text[:2000]})
        self._save()

    def _row(self, part: Part) -> None:
        row = self._rows[part.name]
        clusters: dict[str, Cluster] = {}
        with ExitStack() as stack:
            for number, system in self._turns(part):
                with self._noted(part, system, number):
                    if system not in clusters:
                        clusters[system] = self._start(stack, system, row)
                    with clusters[system].awake():
                        sample = measure(
                            row.name, clusters[system], row.driver, self._ceilings, number
                        )
                    part.samples.append(asdict(sample))
                    _show(sample)
                if _broke(part, system) and system in clusters:
                    clusters[system].close()  # what is left of it would disturb the others

    def _start(self, stack: ExitStack, kind: str, row: Workload) -> Cluster:
        settings = self._settings
        cluster = stack.enter_context(
            Cluster(kind, data_root=settings.data_root, cpu_list=settings.cpu_list)
        )
        if row.reads:
            preload(cluster, KEYS)
        cluster.freeze()
        return cluster

    def _scenario(self, part: Part) -> None:
        settings = self._settings
        for number, system in self._turns(part):
            with self._noted(part, system, number):
                figures = scenarios.SCENARIOS[part.name](
                    system, data_root=settings.data_root, scale=settings.scale
                )
                part.samples.append({"system": system, "round": number, "figures": figures})
                print(f"  {figures}", flush=True)

    def _rivals(self, part: Part) -> None:
        settings = self._settings
        for number, system in self._turns(part):
            with self._noted(part, system, number):
                sample = rivals.measure(system, number, settings.seconds, settings.data_root)
                part.samples.append(asdict(sample))
                print(f"  {sample.outcome.rate:,.0f}/s", flush=True)

    def _growth(self, part: Part) -> None:
        name = _dimension(part.name)
        settings = self._settings
        sizes, left_out = growth.fitting(name, settings.growth_max)
        self._run.notes += left_out

        def keep(table: growth.Table) -> None:
            part.samples = [asdict(series) for series in table.series.values()]
            self._save()

        for number, system in self._turns(part):
            with self._noted(part, system, number):
                dimension, _ = growth.DIMENSIONS[name]
                uvloop.run(dimension(growth.Table(name, keep), sizes, settings.growth_s))


def _broke(part: Part, system: str) -> bool:
    return any(failure["system"] == system for failure in part.failures)


def _show(sample: Sample) -> None:
    print(
        f"  {sample.rate:,.0f}/s, p50 {sample.p50_ms:.2f} ms, p99 {sample.p99_ms:.2f} ms, "
        f"{sample.leader_us:.1f} us leader, {sample.follower_us:.1f} us follower"
        + "".join(f" [{problem}]" for problem in sample.problems),
        flush=True,
    )
