"""Prints a line for each run of a cell at the end: a pass that did little should be seen."""

from __future__ import annotations

import pytest

from tests.cluster.faults import LINE
from tests.cluster.faults.run import Report

lines: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        lines.extend(str(text) for name, text in report.user_properties if name == LINE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines:
        terminalreporter.write_sep("=", "faults")
        terminalreporter.write_line(Report.HEAD)
        for line in lines:
            terminalreporter.write_line(line)
