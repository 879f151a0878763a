"""The benchmark's command line: clear refusals, and nothing left behind when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench import __main__ as command_line
from bench import clusters, h2load
from bench.__main__ import chosen, main, parse, result_name, systems
from bench.clusters import ETCD, KVSTORE, wait_until
from tests.bench.test_clusters import running


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--systems", "kvstore,consul"], "no such system: consul; there are kvstore, etcd"),
        (["--data-root", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["--rounds", "-1"], "must be positive"),
        (["--scenario-rounds", "-1"], "must be positive"),
        (["--scale", "0"], "must be positive"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)

    assert text in capsys.readouterr().err


def test_the_command_line_chooses_rows() -> None:
    rows, scenarios = chosen(parse(["--only", "P1,P8"]))
    brief, none = chosen(parse(["--ci"]))

    assert {row.name.split("-")[0] for row in rows} == {"P1"}
    assert len(rows) > 8
    assert scenarios == ["P8"]
    assert {row.name for row in brief} >= {"P1-h2load", "P1-uniform", "P3-serializable"}
    assert none == []
    quick_rows, quick = chosen(parse(["--quick"]))
    assert {row.name.split("-")[0] for row in quick_rows} == {"P1", "P2", "P3", "P4"}
    assert quick == ["gate", "P8", "P5", "P6", "P7", "rivals"]
    assert "growth-keys" not in chosen(parse([]))[1]
    assert {"rivals", "growth-keys"} <= {*chosen(parse(["--growth"]))[1]}
    assert chosen(parse(["--only", "P8", "--growth"]))[1][:2] == ["P8", "growth-keys"]
    assert chosen(parse(["--only", "growth"]))[1][:2] == ["growth-keys", "growth-value-bytes"]
    with pytest.raises(SystemExit, match=r"no such workload: P77; there are P1-h2load, .*, P8, "):
        chosen(parse(["--only", "P1,P77"]))


def test_a_partial_run_does_not_replace_the_whole_ones_results() -> None:
    names = [
        result_name(parse(arguments))
        for arguments in ([], ["--quick"], ["--only", "P2,gate"], ["--only", "P2", "--name", "x"])
    ]

    cores = f"{os.cpu_count()}-cores"
    assert names == [cores, f"{cores}-quick", f"{cores}-P2-gate", "x"]


def test_a_missing_system_is_noted_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command_line, "available", lambda kind: "etcd is not here" if kind == ETCD else None
    )

    assert systems([]) == ([KVSTORE], {ETCD: "etcd is not here"})
    assert systems([KVSTORE]) == ([KVSTORE], {})
    with pytest.raises(SystemExit, match="etcd is not here"):
        systems([ETCD])
    with pytest.raises(SystemExit, match="etcd is not here"):
        systems([KVSTORE, ETCD])


def test_a_compiled_tree_that_was_never_built_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the sources would be measured under the other name.
    monkeypatch.setattr(clusters, "COMPILED_TREE", tmp_path)

    with pytest.raises(SystemExit, match="`make compiled` builds it"):
        systems([clusters.COMPILED])


def test_nothing_to_measure_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h2load, "available", lambda: False)

    with pytest.raises(SystemExit, match=r"nothing to measure: .*nghttp2-client"):
        main(["--only", "P1-h2load", "--systems", "kvstore"])


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("row", "drivers", "how"),
    [
        ("P2", 1, signal.SIGINT),
        ("P2", 1, signal.SIGTERM),
        pytest.param("gate", 2, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_benchmark_leaves_nothing_behind(
    row: str, drivers: int, how: signal.Signals, tmp_path: Path
) -> None:
    data, results = tmp_path / "data", tmp_path / "results"
    data.mkdir()
    # The signal goes to the benchmark alone: a terminal would send it to the drivers as well.
    bench = subprocess.Popen(
        [
            *(sys.executable, "-m", "bench", "--only", row, "--systems", "kvstore"),
            *("--seconds", "60", "--data-root", str(data), "--results", str(results)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started: list[psutil.Process] = []

    def at_work() -> bool:
        started[:] = psutil.Process(bench.pid).children(recursive=True)
        commands = [command_of(process) for process in started]
        loads = [command for command in commands if "bench.generator" in command]
        # Not yet while the members are loaded: that has a number of requests.
        return (
            sum("kvstore.cli.kvstore" in command for command in commands) == 3
            and sum('"requests": 0' in load for load in loads) == drivers
        )

    try:
        wait_until(at_work, 60.0, "the benchmark at work")
        bench.send_signal(how)
        _, errors = bench.communicate(timeout=30)
    finally:
        bench.kill()
        bench.communicate()

    assert bench.returncode == 130
    [folder] = results.iterdir()
    page = folder / "index.html"
    assert errors.strip() == f"stopped; what was measured until then: {page}"
    assert f"only in part: {row}." in page.read_text()
    # One that was just being started dies with the benchmark, by the kernel and a moment later.
    left = [process.pid for process in started]
    wait_until(lambda: not any(map(running, left)), 10.0, "the end of what the benchmark started")
    assert list(data.iterdir()) == []


def command_of(process: psutil.Process) -> str:
    """Return the command line, or nothing for a process that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
