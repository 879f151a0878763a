"""Load on a schedule and without: what is counted, from when, and how a run ends."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
import uvloop

from kvstore.cli.bench.measure import Measure
from kvstore.cli.bench.plan import Plan
from kvstore.cli.bench.runner import Runner
from kvstore.cli.bench.workloads import WORKLOADS, Operation, Workload, together
from kvstore.client import UnreachableError

PLAN = Plan(
    workload="put",
    clients=4,
    connections=1,
    total=None,
    duration_s=None,
    rate=None,
    key_size=8,
    value_size=12,
    keys=10,
    range_limit=1,
    reads_percent=50,
    serializable=False,
    txn_ops=1,
    watchers=1,
    leases=1,
    locks=1,
    transport="auto",
    prefix=b"t/",
    keep=False,
    seed=1,
)


class Server(Workload):
    """An operation takes as long as the test says; it is no server's."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, [])
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.most = 0
        self.is_full = asyncio.Event()

    async def operate(self, operation: Operation) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if self.under_way == self.plan.clients:
            self.is_full.set()
        await asyncio.sleep(0)
        await self.gate.wait()
        self.under_way -= 1
        operation.done("put")


def runner(**settings: object) -> tuple[Runner, Server, Measure]:
    plan = dataclasses.replace(PLAN, **settings)
    server, measure = Server(plan), Measure()
    return Runner(plan, server, measure), server, measure


def no_show(_: Runner) -> None:
    """Nobody looks."""


async def test_a_total_is_met_exactly_by_that_many_clients() -> None:
    load, server, measure = runner(total=101)
    await load.run(no_show)
    assert measure.operations == measure.latency["put"].count == 101
    assert server.most == 4
    assert load.progress == 1.0
    assert measure.service == {}  # the same as latency without a schedule


async def test_a_stall_counts_for_all_that_were_due_meanwhile() -> None:
    # 200 a second for a second; the server answers nothing for the middle half. A closed loop
    # would count 4 slow operations, one for each client.
    load, server, measure = runner(total=200, rate=200.0)
    loop = asyncio.get_running_loop()
    loop.call_later(0.25, server.gate.clear)
    loop.call_later(0.75, server.gate.set)
    await load.run(no_show)
    slow = sum(count for edge_s, count in measure.latency["put"].buckets() if edge_s > 0.1)
    assert slow > 60
    # From sending, only what was with the server was slow.
    sent_slow = sum(count for edge_s, count in measure.service["put"].buckets() if edge_s > 0.1)
    assert sent_slow <= 4
    assert measure.operations == 200
    assert measure.unsent == 0


async def test_what_was_due_and_never_sent_counts_with_its_wait() -> None:
    load, server, measure = runner(duration_s=0.5, rate=1000.0)
    server.gate.clear()
    asyncio.get_running_loop().call_later(0.6, server.gate.set)
    await load.run(no_show)
    assert measure.operations == 4
    assert measure.unsent == pytest.approx(496, abs=60)  # a busy machine ends it late
    assert measure.latency["put"].count == measure.operations + measure.unsent
    assert measure.latency["put"].percentile_s(50) == pytest.approx(0.25, abs=0.06)


async def test_a_rate_is_kept_from_above() -> None:
    load, _, measure = runner(duration_s=0.5, rate=100.0)
    await load.run(no_show)
    assert 40 <= measure.operations + measure.unsent <= 51


def test_a_timer_that_is_early_makes_no_operation_faster() -> None:
    # uvloop's timers are exact to a millisecond: what was sent before it was due once counted with
    # less than the time that it took.
    async def main() -> Measure:
        load, server, measure = runner(total=200, rate=1000.0)

        async def operate(operation: Operation) -> None:
            await asyncio.sleep(0)
            operation.done("put")

        server.operate = operate  # type: ignore[method-assign]
        await load.run(no_show)
        return measure

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        measure = loop.run(main())
    assert measure.latency["put"].min_s >= measure.service["put"].min_s


async def test_stopping_waits_for_answers_and_begins_nothing() -> None:
    load, server, measure = runner(duration_s=1000.0)
    server.gate.clear()
    run = asyncio.create_task(load.run(no_show))
    await server.is_full.wait()
    load.stop()
    await asyncio.sleep(0)
    server.gate.set()
    await run
    assert measure.operations == 4
    assert load.is_interrupted


async def test_failures_are_counted_and_not_timed() -> None:
    load, server, measure = runner(total=10)
    answered = server.operate

    async def sometimes(operation: Operation) -> None:
        if operation.number % 2:
            raise UnreachableError("nobody there")
        await answered(operation)

    server.operate = sometimes  # type: ignore[method-assign]
    await load.run(no_show)
    assert measure.errors == {"UnreachableError": 5}
    assert "nobody there" in measure.error_texts["UnreachableError"]
    assert measure.operations == measure.latency["put"].count == 5


async def test_a_defect_of_the_workload_ends_the_run() -> None:
    load, server, _ = runner(duration_s=1000.0)

    async def broken(operation: Operation) -> None:
        raise ZeroDivisionError

    server.operate = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await load.run(no_show)


@pytest.mark.parametrize("name", WORKLOADS)
async def test_what_was_not_prepared_can_be_finished(name: str) -> None:
    # The preparation may fail at once, and the clean-up must not hide why.
    await WORKLOADS[name](dataclasses.replace(PLAN, leases=3), []).finish()


async def test_what_runs_together_ends_together() -> None:
    ended: list[str] = []

    async def go_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise UnreachableError("nobody there")

    with pytest.raises(UnreachableError):
        await together([go_on(), fail()])
    assert ended == ["cancelled"]


async def test_seconds_add_up() -> None:
    load, _, measure = runner(duration_s=1.6)
    shown: list[float] = []
    await load.run(lambda each: shown.append(each.progress))
    assert len(measure.seconds) == 2
    counted = 0.0
    before_s = 0.0
    for second in measure.seconds:
        counted += second.operations_per_s * (second.at_s - before_s)
        before_s = second.at_s
    assert counted == pytest.approx(measure.operations, rel=1e-6)
    assert shown == sorted(shown)
    assert shown[-1] > 0.5
