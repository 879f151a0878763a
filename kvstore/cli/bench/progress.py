"""The progress bar on standard error; silent where that is no terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from kvstore.cli.bench.measure import Measure
    from kvstore.cli.bench.plan import Plan
    from kvstore.cli.bench.runner import Runner


class Progress:
    """How far a run is, and how fast it is now."""

    def __init__(self, plan: Plan, measure: Measure, *, wanted: bool) -> None:
        self._plan = plan
        self._measure = measure
        self._bar: Bar | None = None
        self._task: TaskID
        if wanted and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = self._make()

    def _make(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            console=Console(stderr=True),
            auto_refresh=False,  # its thread would compete with what is measured
            transient=True,
        )
        self._task = bar.add_task(self._plan.workload, total=1.0, speed="")
        return bar

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, runner: Runner) -> None:
        """Draw it as it is now."""
        if self._bar is None:
            return
        seconds = self._measure.seconds
        speed = f"{self._measure.rate_now():,.0f}/s"
        if seconds:
            speed += f"  p50 {seconds[-1].p50_s * 1e3:.2f} ms  p99 {seconds[-1].p99_s * 1e3:.2f} ms"
        if self._measure.errors:
            speed += f"  [red]{sum(self._measure.errors.values())} errors"
        self._bar.update(self._task, completed=runner.progress, speed=speed, refresh=True)
