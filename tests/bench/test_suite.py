"""A run of parts: what breaks is noted and counts, everything else still runs and is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command_line
from bench import scenarios
from bench.clusters import KVSTORE, ClusterError
from bench.record import DONE, FAILED, RUNNING, WAITING, Run

pytestmark = pytest.mark.cluster


def bench(folder: Path, only: str, *more: str) -> tuple[int, Run]:
    """Run the benchmark of our own system into the folder; return its exit code and the run."""
    arguments = ["--only", only, "--systems", KVSTORE, "--name", "it", "--results", str(folder)]
    code = command_line.run([*arguments, *more])
    return code, Run.load(folder / "it")


def test_a_row_is_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, run = bench(tmp_path, "P2", "--seconds", "0.3", "--rounds", "2")

    assert code == 0
    [part] = run.parts
    assert (part.name, part.state, part.failures) == ("P2", DONE, [])
    assert [sample["round"] for sample in part.samples] == [0, 1]
    assert all(sample["rate"] > 0 for sample in part.samples)
    assert "fdatasync" in str(run.machine)
    assert run.versions[KVSTORE].startswith("0.1.0, ")
    written = sorted(file.name for file in (tmp_path / "it").iterdir())
    assert written == ["index.html", "report.md", "results.json"]
    out = capsys.readouterr().out
    assert "[1/2, 0 min] P2, kvstore, round 1 of 2" in out
    assert "etcd was not measured" in out


def test_a_part_that_breaks_counts_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def broken(kind: str, **_: Any) -> dict[str, object]:
        calls.append("P7")
        if calls.count("P7") == 1:
            return {"log entries": 0}
        raise ClusterError("m1 ended")

    def whole(kind: str, **_: Any) -> dict[str, object]:
        calls.append("P8")
        return {"p50": 1.0}

    monkeypatch.setitem(scenarios.SCENARIOS, "P7", broken)
    monkeypatch.setitem(scenarios.SCENARIOS, "P8", whole)
    # P8 stands before P7: the order of the scenarios, not that of the command line.
    monkeypatch.setitem(scenarios.SCENARIOS, "idle", whole)

    code, run = bench(tmp_path, "P7,P8,idle", "--rounds", "3")

    assert code == 1
    states = {part.name: part.state for part in run.parts}
    assert states == {"P8": DONE, "P7": FAILED, "idle": DONE}
    broke = run.part("P7")
    assert broke is not None
    assert broke.failures == [{"system": KVSTORE, "round": 2, "error": "ClusterError: m1 ended"}]
    assert len(broke.samples) == 1
    # No third round of what broke; idle is measured once.
    assert calls == ["P8"] * 3 + ["P7"] * 2 + ["P8"]
    text = (tmp_path / "it" / "index.html").read_text()
    assert "Measurements failed in: P7. The others ran." in text
    assert "m1 ended" in capsys.readouterr().err


def test_each_result_is_on_disk_before_the_next_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run takes hours; one that is killed must not take what it has found with it.
    seen: list[tuple[str, int]] = []

    def look(kind: str, **_: Any) -> dict[str, object]:
        part = Run.load(tmp_path / "it").parts[0]
        seen.append((part.state, len(part.samples)))
        return {"p50": 1.0}

    monkeypatch.setitem(scenarios.SCENARIOS, "P8", look)

    bench(tmp_path, "P8", "--rounds", "3")

    assert seen == [(RUNNING, 0), (RUNNING, 1), (RUNNING, 2)]


def test_an_interrupted_run_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(kind: str, **_: Any) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setitem(scenarios.SCENARIOS, "P8", lambda kind, **_: {"p50": 1.0})
    monkeypatch.setitem(scenarios.SCENARIOS, "P5", interrupted)

    code, run = bench(tmp_path, "P8,P5,P7", "--rounds", "1")

    assert code == 130
    assert [(part.name, part.state) for part in run.parts] == [
        ("P8", DONE),
        ("P5", "stopped"),
        ("P7", WAITING),
    ]
    assert "stopped; what was measured until then: " in capsys.readouterr().err
    assert "The run was broken off" in (tmp_path / "it" / "index.html").read_text()
