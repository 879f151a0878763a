"""Rules for the whole suite: in CI a skip fails the run unless it is listed with a reason."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kvstore.compiled import form

ALLOWED = Path(__file__).parent / "allowed_skips.txt"
skipped: dict[str, str] = {}
unfit: list[pytest.Item] = []
"""Tests that a run on compiled modules leaves out."""


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, and every process inherits that: etcdctl
    # and others that tests interrupt would never end.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where a form is asked for, tests of the other would prove nothing.
    wanted = os.environ.get("KVSTORE_TEST_FORM", form())
    if wanted != form():
        raise pytest.UsageError(f"KVSTORE_TEST_FORM={wanted}, but kvstore is {form()} here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if form() == "pure Python":
        return
    unfit[:] = [item for item in items if item.get_closest_marker("pure_python")]
    items[:] = [item for item in items if item not in unfit]
    config.hook.pytest_deselected(items=unfit)


def allowed_skips() -> list[str]:
    lines = [line.split(" # ")[0].strip() for line in ALLOWED.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def surprising_skips() -> list[str]:
    allowed = tuple(allowed_skips())
    return [name for name in skipped if not name.startswith(allowed)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped[report.nodeid] = str(report.longrepr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A machine without root, etcd or curl may skip; the gate may not pass by testing less.
    if os.environ.get("CI") != "true":
        return
    if surprising_skips():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for item in unfit:
        terminalreporter.write_line(f"left out, needs pure Python: {item.nodeid}")
    if os.environ.get("CI") != "true":
        return
    for name in surprising_skips():
        terminalreporter.write_line(
            f"skipped in CI and not listed in {ALLOWED.name}: {name}: {skipped[name]}", red=True
        )
