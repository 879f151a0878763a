"""Runs a workload with many clients: closed loop, or on a schedule; measures nothing but time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from kvstore.cli.bench.workloads import Operation
from kvstore.client import KvError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.cli.bench.measure import Measure
    from kvstore.cli.bench.plan import Plan
    from kvstore.cli.bench.workloads import Workload

TICK_S = 0.1
ERROR_PAUSE_S = 0.01
"""After an error a client waits so long: a refusal at once must not become a busy loop."""

LAST_ANSWERS_S = 10.0
"""For the answers of what was sent before the end."""


class Runner:
    """One run. `run` returns when the plan is done, or soon after `stop`."""

    def __init__(self, plan: Plan, workload: Workload, measure: Measure) -> None:
        self._plan = plan
        self._workload = workload
        self._measure = measure
        self._issued = 0
        self._is_over = asyncio.Event()
        self._over_s = 0.0
        self.is_interrupted = False

    def stop(self) -> None:
        """End early: no more operations are begun, the answers under way are awaited."""
        self.is_interrupted = True
        self._end()

    def _end(self) -> None:
        if not self._is_over.is_set():
            self._over_s = time.perf_counter()
            self._is_over.set()

    @property
    def progress(self) -> float:
        """How much of the plan is done, 0 to 1."""
        if self._plan.total is not None:
            return min(self._issued / self._plan.total, 1.0)
        assert self._plan.duration_s is not None
        ran_s = time.perf_counter() - self._measure.started_s
        return min(ran_s / self._plan.duration_s, 1.0)

    async def run(self, show: Callable[[Runner], None]) -> None:
        """Run the plan; `show` is called some times a second."""
        self._measure.start()
        loop = asyncio.get_running_loop()
        end = None
        if self._plan.duration_s is not None:
            end = loop.call_later(self._plan.duration_s, self._end)
        workers = [loop.create_task(self._work(number)) for number in range(self._plan.clients)]
        watch = loop.create_task(self._tick(show))
        try:
            await self._wait(workers)
        finally:
            if end is not None:
                end.cancel()
            for task in (watch, *workers):
                task.cancel()
            results = await asyncio.gather(watch, *workers, return_exceptions=True)
            self._measure.end()
        for result in results:
            if isinstance(result, Exception):
                raise result
        self._count_unsent()

    async def _wait(self, workers: list[asyncio.Task[None]]) -> None:
        """Return when all clients are done, one has failed, or the time for the last is over."""
        over: asyncio.Future[Any] = asyncio.ensure_future(self._is_over.wait())
        everything: asyncio.Future[Any] = asyncio.gather(*workers)
        try:
            await asyncio.wait({over, everything}, return_when=asyncio.FIRST_COMPLETED)
            # What hangs beyond this is cancelled by our caller.
            await asyncio.wait({everything}, timeout=LAST_ANSWERS_S)
        finally:
            over.cancel()
            if everything.done() and not everything.cancelled():
                everything.exception()  # our caller takes it from the worker

    async def _tick(self, show: Callable[[Runner], None]) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._measure.tick()
            show(self)

    def _due_s(self, number: int) -> float:
        assert self._plan.rate is not None
        return self._measure.started_s + number / self._plan.rate

    def _is_done(self) -> bool:
        total = self._plan.total
        return self._is_over.is_set() or (total is not None and self._issued >= total)

    async def _work(self, client: int) -> None:
        measure = self._measure
        while not self._is_done():
            number = self._issued
            self._issued += 1
            if self._plan.rate is None:
                due_s = time.perf_counter()
                sent_s = None
            else:
                due_s = self._due_s(number)
                if not await self._sleep_until(due_s):
                    return  # it was due after the end
                sent_s = time.perf_counter()
                # A timer may be early by its resolution, a millisecond with uvloop. The server must
                # not be credited with it.
                due_s = min(due_s, sent_s)
            try:
                await self._workload.operate(Operation(measure, client, number, due_s, sent_s))
            except KvError as error:
                measure.failed(error)
                await asyncio.sleep(ERROR_PAUSE_S)

    async def _sleep_until(self, due_s: float) -> bool:
        """Wait for the moment; False when the run ends before."""
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._is_over.wait()
                    return False
        return True

    def _count_unsent(self) -> None:
        """Count what the schedule had for clients that never became free."""
        if self._plan.rate is None or not self._is_over.is_set():
            return
        number = self._issued
        while self._due_s(number) < self._over_s and number != self._plan.total:
            waited_s = self._over_s - self._due_s(number)
            self._measure.never_sent(self._workload.main_kind, waited_s)
            number += 1
