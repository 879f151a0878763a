"""Runs a planned benchmark from connecting to cleaning up, and hands out the report."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore.cli.bench.measure import Measure
from kvstore.cli.bench.page import page_of
from kvstore.cli.bench.progress import Progress
from kvstore.cli.bench.report import make_report, remarks_of, text_of
from kvstore.cli.bench.runner import Runner
from kvstore.cli.bench.workloads import WORKLOADS, BrokenPromiseError
from kvstore.cli.ctl.context import (
    BAD_CONNECTION,
    ERROR,
    INTERRUPTED,
    CtlError,
    error_text,
    failed,
    hint_for,
    write_error,
    write_line,
)
from kvstore.cli.loops import loop_factory
from kvstore.client import KvError, prefix_end

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvstore.cli.bench.plan import Plan
    from kvstore.cli.bench.workloads import Workload
    from kvstore.cli.ctl.context import Settings
    from kvstore.client import AsyncClient

CLEAN_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the report goes."""

    json_path: str | None
    html_path: str | None
    as_json: bool
    """Print it as JSON, not as text."""

    progress: bool


def run_bench(plan: Plan, flags: Settings, outputs: Outputs) -> int:
    """Run it and return the exit code: 1 when no operation succeeded.

    Raises:
        CtlError: Nothing could be measured.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        run = _Run(plan, flags, outputs)
        runner.run(run.main())
    report, measure = run.report, run.measure
    if outputs.json_path is not None:
        Path(outputs.json_path).write_text(json.dumps(report, indent=1) + "\n")
    if outputs.html_path is not None:
        Path(outputs.html_path).write_text(page_of(report, remarks_of(report)))
    write_line(
        json.dumps(report) if outputs.as_json else text_of(report, measure.all_latencies()).rstrip()
    )
    return 0 if measure.operations else ERROR


class _Run:
    """One benchmark."""

    def __init__(self, plan: Plan, flags: Settings, outputs: Outputs) -> None:
        self._plan = plan
        self._flags = flags
        self._outputs = outputs
        self.measure = Measure()
        self.report: dict[str, Any] = {}
        self._runner: Runner | None = None
        self._is_interrupted = False

    async def main(self) -> None:
        """Connect, prepare, run, clean up."""
        task = asyncio.current_task()
        assert task is not None
        with self._until_ctrl_c(task):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    connections = [
                        await stack.enter_async_context(self._connect(number))
                        for number in range(self._plan.connections)
                    ]
                    await self._measure(connections)
            except asyncio.CancelledError:
                if not self._is_interrupted:
                    raise
                # Before the first operation: there is nothing to report.
                raise CtlError("interrupted", INTERRUPTED) from None

    def _connect(self, number: int) -> AsyncClient:
        """Make a connection; each prefers another endpoint."""
        turn = number % len(self._flags.endpoints)
        endpoints = self._flags.endpoints[turn:] + self._flags.endpoints[:turn]
        return self._flags.client(endpoints, transport=self._plan.transport)

    @contextlib.contextmanager
    def _until_ctrl_c(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Let the first Ctrl-C end the run in order; the second one ends the process."""
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGINT)

        def restore() -> None:
            if loop.remove_signal_handler(signal.SIGINT):
                signal.signal(signal.SIGINT, before)

        def interrupt() -> None:
            restore()
            self._is_interrupted = True
            write_error("ending; once more Ctrl-C ends at once and leaves the keys")
            if self._runner is not None:
                self._runner.stop()
            else:
                task.cancel()

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            restore()

    async def _measure(self, connections: Sequence[AsyncClient]) -> None:
        plan = self._plan
        try:
            version = (await connections[0].status()).version
            # What costs a new connection its first call is no part of the figures.
            await asyncio.gather(*(client.get(plan.prefix) for client in connections))
            is_in_session = connections[0].is_in_session  # at the end it may be broken
        except KvError as error:
            failed(error, BAD_CONNECTION)
        workload = WORKLOADS[plan.workload](plan, connections)
        runner = Runner(plan, workload, self.measure)
        try:
            await workload.prepare()
            gc.collect()
            started_at = dt.datetime.now(dt.UTC)
            cpu_s = time.process_time()
            self._runner = runner
            with Progress(plan, self.measure, wanted=self._outputs.progress) as progress:
                await runner.run(progress.show)
            cpu_s = time.process_time() - cpu_s
        except KvError as error:
            failed(error, form="the benchmark could not be prepared: {}")
        except BrokenPromiseError as error:
            raise CtlError(
                str(error), ERROR, "that is a defect of the server; please report it"
            ) from error
        finally:
            await self._clean_up(connections[0], workload)
        self.report = make_report(
            plan,
            self.measure,
            endpoints=list(self._flags.endpoints),
            server_version=version,
            session=is_in_session,
            started_at=started_at,
            client_cpu_s=cpu_s,
            is_interrupted=runner.is_interrupted,
        )

    async def _clean_up(self, client: AsyncClient, workload: Workload) -> None:
        prefix = self._plan.prefix
        try:
            await client.get(prefix)  # whether nobody is there is known sooner than by a delete
            await workload.finish()
            if not self._plan.keep:
                await client.delete(prefix, prefix_end(prefix), timeout_s=CLEAN_UP_S)
        except KvError as error:
            name = prefix.decode("utf-8", "backslashreplace")
            write_error(f"Warning: not cleaned up: {error_text(error)}")
            write_error(f"Hint: {hint_for(error)}; then: kvctl del --prefix {name}")
        if self._plan.keep:
            sys.stdout.flush()
            write_error(f"kept: {prefix.decode('utf-8', 'backslashreplace')}")
