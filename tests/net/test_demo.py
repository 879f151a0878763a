"""`make net-demo` itself: what it says, what it leaves, and how it ends when it must not go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import demo
from tests.net.namespaces import missing, run
from tests.net.overlay import ROOT, until

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.alone,  # there is one report and one demo in a checkout
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
MUTANTS = Path(__file__).parent / "mutants"
COMMAND = (sys.executable, "-m", "tests.net.demo")


def traces(folder: Path) -> tuple[object, ...]:
    """What a demo may leave: links, named namespaces, processes, files."""
    processes = [
        path.name
        for path in Path("/proc").glob("[0-9]*")
        if str(folder).encode() in _command_line(path)
    ]
    return run("ip", "-j", "-br", "link"), run("ip", "netns"), processes, list(folder.iterdir())


def _command_line(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the demo's own; whatever it leaves fails the test."""
    # Not pytest's: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="nd-") as name:
        before = traces(Path(name))
        yield Path(name)
        until(lambda: traces(Path(name)) == before, 10, "everything is gone")


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(folder)}


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *flags],
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_demo_stays_up_when_asked_and_goes_when_told(folder: Path) -> None:
    with start(folder, "--keep") as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    report = json.loads(demo.REPORT.read_text())
    assert report["ok"]
    assert report["failed"] == []
    assert (report["pairs"], report["reached"]) == (30, 30)
    assert report["seconds"]["demo"] <= 45
    assert all(lost == 0 for title, (lost, _) in report["loss"].items() if "agent" in title)
    # The kernel told of each loss and each return, also where no packet was lost meanwhile.
    assert len(report["heal_ms"]) == 6
    assert all(ms > 0 for ms in report["heal_ms"].values())
    assert report["gbit_s"] is None or report["gbit_s"] > 0
    try:
        kept = json.loads(demo.KEPT.read_text())
        pid = kept["namespaces"]["host-0"]
        assert f"nsenter --net --target {pid}" in said
        routes = run("nsenter", "--net", "--target", str(pid), "ip", "route")
        assert routes.count("dev np.1 proto 181 onlink") == 2
        # Nobody would guess where the demo's agents have their sockets.
        [command] = [line for line in said.splitlines() if "netplane ctl status" in line]
        arguments = command.partition("netplane ")[2].split()
        shown = run(
            *("nsenter", "--net", "--target", str(pid), sys.executable),
            *("-m", "netplane.cli.netplane", *arguments),
        )
        assert shown.split()[:2] == ["ready", "yes"]
        again = subprocess.run([*COMMAND], cwd=ROOT, capture_output=True, text=True, check=False)
        assert again.returncode == 2
        assert "up already" in again.stderr
    finally:
        down = subprocess.run([*COMMAND, "--down"], cwd=ROOT, capture_output=True, check=False)
    assert down.returncode == 0
    assert list(folder.iterdir()) == []
    again = subprocess.run(
        [*COMMAND, "--down"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "nothing is up" in again.stdout


@pytest.mark.parametrize("said", ["a registry member", "every container pings"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(
    number: signal.Signals, said: str, folder: Path
) -> None:
    with start(folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if said in line:
                break
        # Again and again, as an impatient user does, and `make` beside the group that it is in.
        while process.poll() is None:
            process.send_signal(number)
            time.sleep(0.005)  # else the kernel takes several for one
    assert process.returncode != 0


def test_of_two_that_are_to_stay_up_the_second_is_refused(folder: Path) -> None:
    with start(folder, "--keep") as process:
        assert process.stdout is not None
        assert "three hosts" in process.stdout.readline()
        again = subprocess.run(
            [*COMMAND, "--keep"], cwd=ROOT, env=environment(folder),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        process.terminate()
        process.communicate(timeout=30)
    assert again.returncode == 2
    assert "another is about to stay up" in again.stderr


@pytest.mark.parametrize(
    ("said", "stays"), [("1", True), ("yes", True), ("", False), ("0", False), ("no", False)]
)
def test_make_keeps_a_demo_only_when_asked(said: str, *, stays: bool) -> None:
    commands = run("make", "-C", str(ROOT), "--dry-run", "net-demo", f"KEEP={said}")
    assert ("--keep" in commands) is stays


def test_a_demo_in_which_something_does_not_heal_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The timer at an hour and no ear for the kernel: what is broken stays so. A demo that says
    # "ok" then would show nothing.
    monkeypatch.setenv("PYTHONPATH", f"{MUTANTS}:{ROOT}")
    monkeypatch.setenv("NETPLANE_MUTANT", "deaf")
    monkeypatch.setenv("FLANNELD_HEAL_INTERVAL", "1h")
    with start(folder) as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert "FAILED  the vxlan device is deleted" in said
    assert "FAILED  all neighbours are flushed" in said
    assert not json.loads(demo.REPORT.read_text())["ok"]
