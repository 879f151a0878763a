"""The comparison of RPC engines: servers that work, figures that are checked, clear errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from bench import engine, h2load
from bench.clusters import unary, wait_until
from bench.engine import ENGINES, GENERATOR, NULL, OURS, Run, Server, cores, drive, parse, table
from bench.load import Outcome
from bench.messages import PUT, put
from bench.null_server import message
from tests.bench.test_clusters import running

STARTS_AND_WAITS = """
import sys
from bench.engine import Server
print(Server("kvstore.rpc", int(sys.argv[1])).pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cpu() -> int:
    return max(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", [*ENGINES, NULL])
def test_every_engine_answers_the_same_on_one_core(name: str, cpu: int) -> None:
    server = Server(name, cpu)
    try:
        replies = {unary(server.target, PUT, put(b"k", b"v")) for _ in range(3)}
        affinity = psutil.Process(server.pid).cpu_affinity()
        handled = server.end()
    finally:
        server.kill()

    assert replies == {message("put")}
    assert affinity == [cpu]
    assert handled == (0 if name == NULL else 3)
    assert not running(server.pid)


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_has_a_rate_and_a_cost_and_every_call_reached_the_handler(
    name: str, cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WARMUP_S", 0.1)

    run = drive(GENERATOR, name, 0, cpu, 0.3)

    assert run.problems == []
    assert run.rate > 0
    assert run.cpu_us > 0
    assert run.p99_ms >= run.p50_ms > 0


@pytest.mark.h2load
def test_h2load_drives_for_about_the_time_asked(cpu: int) -> None:
    if not h2load.available():
        pytest.skip("h2load is not installed (Debian package nghttp2-client)")

    run = drive("h2load", "grpcio-sync", 0, cpu, 0.3)

    assert run.problems == []
    assert run.rate > 0
    assert run.command.startswith("h2load -n ")


def test_calls_that_never_reached_the_handler_are_found() -> None:
    # What answers with 200 and an error would be fast, and h2load would not notice.
    outcomes = [Outcome(acknowledged=10), Outcome(acknowledged=90)]

    assert engine.problems_of(OURS, outcomes, 100) == []
    assert engine.problems_of(OURS, outcomes, 99) == ["100 calls answered, the handler saw 99"]
    assert engine.problems_of(NULL, outcomes, 0) == []
    assert engine.problems_of(OURS, [Outcome(unanswered=2)], 0) == ["2 requests unanswered"]


def test_engines_alternate_and_carry_the_drivers_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {NULL: 150.0, OURS: 100.0, "grpcio-aio": 5.0, "grpcio-sync": 6.0}

    def fake(tool: str, name: str, number: int, cpu: int, seconds: float) -> Run:
        return Run(tool, name, number, rates[name], 1.0, 2.0, 3.0, 0.0)

    monkeypatch.setattr(engine, "drive", fake)

    runs = list(engine.run_all(ENGINES, [GENERATOR], 2, 1.0))

    assert [run.engine for run in runs] == [*ENGINES, *reversed(ENGINES)]
    assert {run.driver_rate for run in runs} == {150.0}
    assert {row[1] for row in table(runs) if "the driver reaches only 150/s" in row[-1]} == {OURS}


def test_the_table_has_medians_and_the_ratio_to_ours() -> None:
    runs = [
        Run(GENERATOR, name, number, rate, 1.0, 2.0, cpu_us, 1e6)
        for name, cpu_us, rates in ((OURS, 4.0, (100, 900, 80)), ("grpcio-aio", 200.0, (5, 4, 9)))
        for number, rate in enumerate(rates)
    ]

    ours, other = table(runs)

    assert ours[:4] == (GENERATOR, OURS, "100", "80 to 900")
    assert other[:4] == (GENERATOR, "grpcio-aio", "5", "4 to 9")
    assert other[6] == "200.0"
    assert other[8] == "20.0x as fast, 50.0x less CPU"
    assert ours[8] == ""


def test_the_drivers_stay_off_the_servers_core() -> None:
    usable = os.sched_getaffinity(0)

    with cores() as cpu:
        inside = os.sched_getaffinity(0)

    assert os.sched_getaffinity(0) == usable
    assert cpu in usable
    assert inside == (usable - {cpu} or usable)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--engines", "kvstore.rpc,twisted"], "no such engine: twisted; there are kvstore.rpc"),
        (["--tools", "wrk"], "no such tool: wrk; there are h2load, generator"),
        (["--tools", "h2load"], "Debian package nghttp2-client"),
        (["--rounds", "0"], "must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(h2load, "available", lambda: False)

    with pytest.raises(SystemExit):
        parse(arguments)

    assert text in capsys.readouterr().err


def test_without_h2load_the_generator_drives_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(["--tools", "generator"]).tools == [GENERATOR]
    for here, tools in ((True, ["h2load", GENERATOR]), (False, [GENERATOR])):
        monkeypatch.setattr(h2load, "available", lambda here=here: here)

        assert parse([]).tools == tools
        assert parse([]).engines == list(ENGINES)


def test_a_server_does_not_outlive_a_benchmark_that_is_killed(cpu: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, str(cpu)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    pid = int(owner.stdout.readline())
    try:
        assert running(pid)
        owner.kill()
        owner.wait()
        wait_until(lambda: not running(pid), 10.0, "the end of the server")
    finally:
        owner.stdin.close()
        owner.stdout.close()
        if running(pid):
            os.kill(pid, signal.SIGKILL)
