"""What the report says about figures that miss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report as reporting
from bench.h2load import H2loadError
from bench.h2load import parse as parse_h2load
from bench.measure import Sample
from bench.report import Report, over_budget, rows, write
from bench.workloads import workloads

H2LOAD = """
finished in 650.63ms, 461092.27 req/s, 41.78MB/s
requests: 300000 total, 300000 done, 299998 succeeded, 2 failed, 2 errored, 0 timeout
"""
ROWS = workloads(5.0, 1000)
PUT = next(row for row in ROWS if row.name == "P1-uniform")
ONE = next(row for row in ROWS if row.name == "P2")


def sample(workload: str, system: str, rate: float, p50_ms: float = 1.0) -> Sample:
    return Sample(workload, system, 0, rate, p50_ms, 2.0, 30.0, 12.0, 1e6, command="x")


def verdict(row_samples: list[Sample]) -> str:
    report = Report({}, "bench", samples=row_samples)
    return rows(report, ROWS)[0][-1]


def test_medians_and_spread_over_the_rounds() -> None:
    samples = [sample(PUT.name, "kvstore", rate) for rate in (10.0, 900.0, 30.0)]

    [row] = rows(Report({}, "bench", samples=samples), ROWS)

    assert row[1:4] == ("kvstore", "30", "10 to 900")


@pytest.mark.parametrize(("rate", "text"), [(240.0, "2.40x (reaches 1.2x)"), (110.0, "MISSES")])
def test_a_ratio_is_judged_by_its_target(rate: float, text: str) -> None:
    samples = [sample(PUT.name, "kvstore", rate), sample(PUT.name, "etcd", 100.0)]

    assert text in verdict(samples)


@pytest.mark.parametrize(("p50_ms", "text"), [(0.8, "reaches 0.9x"), (0.95, "MISSES 0.9x")])
def test_latency_is_judged_where_it_is_the_target(p50_ms: float, text: str) -> None:
    samples = [sample(ONE.name, "kvstore", 1.0, p50_ms), sample(ONE.name, "etcd", 1.0, 1.0)]

    assert text in verdict(samples)


def test_the_compiled_form_has_a_row_beside_the_pure_one() -> None:
    names = ("etcd", "kvstore-compiled", "kvstore")

    found = rows(Report({}, "bench", samples=[sample(PUT.name, name, 1.0) for name in names]), ROWS)

    assert [row[1] for row in found] == ["kvstore", "kvstore-compiled", "etcd"]
    assert "1.00x" in found[1][-1]


def test_budgets_are_flagged_at_a_fifth_above() -> None:
    assert over_budget(PUT, 35.9, 14.3) == []
    assert over_budget(PUT, 36.1, 14.5) == [
        "OVER BUDGET: leader 36.1 us, budget 30",
        "OVER BUDGET: follower 14.5 us, budget 12",
    ]


def test_problems_are_in_the_verdict() -> None:
    bad = replace(sample(PUT.name, "kvstore", 1.0), problems=["3 x grpc-status 14"])

    assert "3 x grpc-status 14" in verdict([bad])


def test_files_have_machine_command_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    report = Report({"cores": 2}, "python -m bench", samples=[sample(PUT.name, "etcd", 5.0)])

    page = write(report, rows(report, ROWS), "name")

    text = page.read_text()
    assert "python -m bench" in text
    assert "| cores | 2 |" in text
    assert json.loads((tmp_path / "name.json").read_text())["samples"][0]["rate"] == 5.0


def test_h2loads_report_is_read() -> None:
    assert parse_h2load(H2LOAD) == (pytest.approx(0.65063), 299_998, 2)
    with pytest.raises(H2loadError):
        parse_h2load("nothing of the kind")
