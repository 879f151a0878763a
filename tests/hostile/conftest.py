"""Prints what each attack did, at the end: a pass that attacked little should be seen."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.hostile import LINE

HEAD = (
    f"{'attack':28} {'calm p50/p99':>14} {'under it':>14} {'worst':>8} {'put':>8} {'memory':>9}"
    "  ends"
)
lines: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def many_files() -> Iterator[None]:
    """Let this process and its attackers open thousands of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        lines.extend(str(text) for name, text in report.user_properties if name == LINE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines:
        terminalreporter.write_sep("=", "hostile input")
        terminalreporter.write_line(HEAD)
        for line in lines:
            terminalreporter.write_line(line)
