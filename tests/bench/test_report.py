"""What a report's files have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import report as reporting
from bench.h2load import H2loadError
from bench.h2load import parse as parse_h2load
from bench.report import Report, write

H2LOAD = """
finished in 650.63ms, 461092.27 req/s, 41.78MB/s
requests: 300000 total, 300000 done, 299998 succeeded, 2 failed, 2 errored, 0 timeout
"""


@dataclass
class Sample:
    rate: float
    command: str = "drive it"


def test_files_have_machine_command_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    report = Report({"cores": 2}, "python -m bench", samples=[Sample(5.0)])

    page = write(report, [("put", "5")], "name", ("workload", "op/s"))

    text = page.read_text()
    assert "python -m bench" in text
    assert "| cores | 2 |" in text
    assert "| put | 5 |" in text
    assert "drive it" in text
    assert json.loads((tmp_path / "name.json").read_text())["samples"][0]["rate"] == 5.0


def test_h2loads_report_is_read() -> None:
    assert parse_h2load(H2LOAD) == (pytest.approx(0.65063), 299_998, 2)
    with pytest.raises(H2loadError):
        parse_h2load("nothing of the kind")
