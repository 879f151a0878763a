"""Rules for the whole suite.

- In CI a skip fails the run unless it is listed with a reason.
- Tests run side by side in several processes (pytest-xdist); one marked `alone` has the machine for
  itself, because it measures time or load.
- hypothesis draws the same examples in every run, in CI and elsewhere; `--hypothesis-profile=fresh`
  draws others.
- Processes that tests start keep their bytecode, below build/, whatever the environment says.
- What a test notes with `record_property(TABLE + title, [head, line])` is printed at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from kvstore.compiled import form
from tests import bytecode

ALLOWED = Path(__file__).parent / "allowed_skips.txt"
OTHER_FORM = "compiled" if form() == "pure Python" else "pure_python"
TABLE = "table: "
skipped: dict[str, str] = {}
unfit: set[str] = set()
"""Tests that only the other form can run, pure Python or compiled modules."""
tables: dict[str, list[str]] = {}
held = contextlib.ExitStack()
holds = False
"""The turn of this process goes on with the next test."""


# A suite that fails or passes by luck tells nothing about the change that it was run for. Neither
# does one that fails because the machine was busy.
settings.register_profile(
    "gate", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fresh", settings.get_profile("gate"), derandomize=False)
settings.load_profile("gate")


def pytest_configure() -> None:
    bytecode.keep()
    # A shell starts background jobs with SIGINT ignored, and every process inherits that: etcdctl
    # and others that tests interrupt would never end.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where a form is asked for, tests of the other would prove nothing.
    wanted = os.environ.get("KVSTORE_TEST_FORM", form())
    if wanted != form():
        raise pytest.UsageError(f"KVSTORE_TEST_FORM={wanted}, but kvstore is {form()} here")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = [item for item in items if item.get_closest_marker(OTHER_FORM)]
    if other:
        unfit.update(item.nodeid for item in other)
        items[:] = [item for item in items if item.nodeid not in unfit]
        config.hook.pytest_deselected(items=other)
    # All in one block of one process, at the start: the others wait once and not for each.
    items.sort(key=lambda item: not is_alone(item))


def allowed_skips() -> list[str]:
    lines = [line.split(" # ")[0].strip() for line in ALLOWED.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def surprising_skips() -> list[str]:
    allowed = tuple(allowed_skips())
    return [name for name in skipped if not name.startswith(allowed)]


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait until a test may run beside those of the other processes, or for its turn alone.

    Two files of the suite serve as locks, so that other runs in the same checkout count as well.
    Everybody passes the door one by one: who wants to be alone keeps it shut until the room is
    empty, and is not kept waiting by those who come later.
    """
    with ALLOWED.open() as door, Path(__file__).open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            # Not only by closing: a process that a test has forked may hold a copy for longer.
            fcntl.flock(room, fcntl.LOCK_UN)


def is_alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout of the test
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):
        return (yield)  # one process: always alone
    global holds  # noqa: PLW0603 (a process has one turn)
    alone = is_alone(item)
    if not holds:
        held.enter_context(turn(alone=alone))
    try:
        return (yield)
    finally:
        holds = alone and is_alone(nextitem)
        if not holds:
            held.close()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped[report.nodeid] = str(report.longrepr)
    if report.when == "call":
        for name, value in report.user_properties:
            if name.startswith(TABLE):
                head, line = value  # type: ignore[misc]
                tables.setdefault(name.removeprefix(TABLE), [str(head)]).append(str(line))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # The process that prints the summary has collected nothing itself.
    unfit.update(getattr(node, "workeroutput", {}).get("unfit", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["unfit"] = sorted(unfit)
    # A machine without root, etcd or curl may skip; the gate may not pass by testing less.
    if os.environ.get("CI") != "true":
        return
    if surprising_skips():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name in sorted(unfit):
        terminalreporter.write_line(f"left out, marked {OTHER_FORM}: {name}")
    for title, lines in tables.items():
        # A pass that did little should be seen.
        terminalreporter.write_sep("=", title)
        for line in lines:
            terminalreporter.write_line(line)
    if os.environ.get("CI") != "true":
        return
    for name in surprising_skips():
        terminalreporter.write_line(
            f"skipped in CI and not listed in {ALLOWED.name}: {name}: {skipped[name]}", red=True
        )
