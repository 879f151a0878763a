"""`kvstore up` in the hands of somebody who hurries: taken ports, other flags, early Ctrl-C."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from kvstore.cli.up import LocalCluster
from kvstore.client import Client, KvError
from tests.servers import free_base_port, free_ports

if TYPE_CHECKING:
    from types import FrameType

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "kvstore.cli.kvstore", "up"]
STOP_S = 30.0


class Up:
    """A local cluster process without the live view; `with` ends it."""

    def __init__(self, folder: Path, port: int, *flags: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--data-dir", str(folder), "--client-port", str(port), "--no-ui", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    def ready(self) -> None:
        """Return when it says `ready`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "ready\n":
                return
        raise AssertionError(f"ended before it was ready: {self.process.communicate()}")

    def stop(self) -> int:
        """Interrupt it and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end()[0]

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return exit code and outputs."""
        out, err = self.process.communicate(timeout=STOP_S)
        return self.process.returncode, out, err


@pytest.fixture
def port() -> int:
    return free_base_port()


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(number) for number in text.split()]


def test_a_second_cluster_on_the_same_ports_is_never_ready(tmp_path: Path, port: int) -> None:
    # The first one answers on the ports: whoever asks only whether somebody does says `ready`.
    with Up(tmp_path / "one", port, "--nodes", "1") as first:
        first.ready()
        with Up(tmp_path / "two", port, "--nodes", "1") as second:
            code, out, err = second.end()
        assert code == 1
        assert "ready" not in out.split()
        assert f"127.0.0.1:{port + 1} is taken by pid {children(first.process.pid)[0]}" in err
        assert "member m1 ended with code 1" in err
        assert first.stop() == 0


def test_data_of_another_shape_is_refused_with_the_flags_that_fit(
    tmp_path: Path, port: int
) -> None:
    with Up(tmp_path, port, "--nodes", "1") as cluster:
        cluster.ready()
        with Client([f"127.0.0.1:{port}"]) as client:
            client.put(b"k", b"v")
        assert cluster.stop() == 0
    with Up(tmp_path, port) as other:
        code, out, err = other.end()
    assert (code, out) == (1, "")
    assert f"made with --nodes 1 --client-port {port}; start it with these" in err
    with Up(tmp_path, port, "--nodes", "1") as again:
        again.ready()
        with Client([f"127.0.0.1:{port}"]) as client:
            kv = client.get(b"k")
        assert kv is not None
        assert again.stop() == 0


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--nodes", "0"], "0 is not in the range 1<=x<=6"),
        (["--nodes", "7"], "7 is not in the range 1<=x<=6"),
        (["--nodes", "three"], "is not a valid integer"),
        (["--node", "3"], "--nodes"),
        (["--client-port", "0"], "0 is not in the range"),
        (["--nodes", "6", "--client-port", "6000"], "choose at most 5534"),
        (["--log-level", "loud"], "'debug', 'info', 'warn'"),
        (["3"], "unexpected extra argument"),
    ],
)
def test_wrong_flags_are_refused(tmp_path: Path, flags: list[str], advice: str) -> None:
    ended = subprocess.run(
        [*COMMAND, "--data-dir", str(tmp_path / "d"), *flags],
        capture_output=True, text=True, timeout=STOP_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert advice in ended.stderr
    assert not (tmp_path / "d").exists()


def test_a_file_in_the_place_of_the_data_is_explained(tmp_path: Path, port: int) -> None:
    (tmp_path / "d").write_text("a file")
    with Up(tmp_path / "d", port) as cluster:
        code, _, err = cluster.end()
    assert code == 1
    assert "--data-dir" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("members_started", [1, 3])
def test_ctrl_c_during_start_up_leaves_no_process(
    tmp_path: Path, port: int, members_started: int
) -> None:
    with Up(tmp_path, port) as cluster:
        ends_at = time.monotonic() + STOP_S
        while len(started := children(cluster.process.pid)) < members_started:
            assert time.monotonic() < ends_at
            assert cluster.process.poll() is None
        assert cluster.stop() == 0
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


def test_ctrl_c_under_load_keeps_what_was_acknowledged(tmp_path: Path, port: int) -> None:
    acknowledged: list[int] = []
    under_way = threading.Event()

    def write() -> None:
        with Client([f"127.0.0.1:{port}"], timeout_s=1) as client:
            for number in range(1_000_000):
                try:
                    client.put(b"k%07d" % number, b"v")
                except KvError:
                    return
                acknowledged.append(number)
                if number == 50:
                    under_way.set()

    with Up(tmp_path, port) as cluster:
        cluster.ready()
        writer = threading.Thread(target=write)
        writer.start()
        assert under_way.wait(STOP_S)
        assert cluster.stop() == 0
        writer.join()
    with Up(tmp_path, port) as cluster:
        cluster.ready()
        with Client([f"127.0.0.1:{port}"]) as client:
            kept = {int(kv.key[1:]) for kv in client.range(b"k", prefix=True).kvs}
        assert set(acknowledged) <= kept
        assert cluster.stop() == 0


def test_a_member_that_dies_is_reported_and_the_others_go_on(tmp_path: Path, port: int) -> None:
    with Up(tmp_path, port) as cluster:
        cluster.ready()
        os.kill(children(cluster.process.pid)[0], signal.SIGKILL)
        assert cluster.process.stdout is not None
        assert cluster.process.stdout.readline() == "member m1 ended with code -9\n"
        with Client([f"127.0.0.1:{port + 20_000}"]) as client:
            client.put(b"k", b"v")
        assert cluster.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_no_member_is_left(tmp_path: Path, port: int, number: int) -> None:
    # A closed terminal is SIGHUP; members that nobody sees would hold the ports.
    with Up(tmp_path, port, "--nodes", "1") as cluster:
        cluster.ready()
        [member] = children(cluster.process.pid)
        handle = os.pidfd_open(member)
        cluster.process.send_signal(number)
        cluster.end()
    ended, _, _ = select.select([handle], [], [], STOP_S)
    os.close(handle)
    assert ended, "the member is still there"


def test_a_signal_is_taken_wherever_it_comes() -> None:
    # Python runs a handler between any two steps of the main thread. With an Event the command
    # stood still when that was between two steps of its `wait`, which hold the lock of `set`.
    step = 0
    while ends_when_interrupted_at(step):
        step += 1
    assert step > 10


def ends_when_interrupted_at(step: int) -> bool:
    """Interrupt a wait at one of its steps; False when it has fewer."""
    cluster = LocalCluster(1, Path("unused"), 2379, "info")
    steps = itertools.count()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode" and next(steps) == step:
            cluster._interrupted()
        return trace

    def wait() -> None:
        sys.settrace(trace)
        cluster._wait(0.01)
        sys.settrace(None)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(STOP_S)
    assert not waiting.is_alive(), f"it waits for itself at step {step}"
    return cluster._wait(0)


def test_the_live_view_shows_every_member(tmp_path: Path) -> None:
    # `make up` on a terminal: a table that follows the cluster, gone after Ctrl-C.
    port = free_ports(1)[0]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="120")
        command = [*COMMAND, "--nodes", "1", "--data-dir", str(tmp_path)]
        os.execv(command[0], [*command, "--client-port", str(port)])
    try:
        seen = read_until(
            terminal, re.compile(rb"\r\nready\r\n.*m1.*leader.*m1.*leader", re.DOTALL)
        )
        for column in (b"member", b"clients", b"state", b"term", b"revision", b"ops/s", b"db"):
            assert column in seen
        os.write(terminal, b"\x03")
        read_until(terminal, None)
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def read_until(terminal: int, pattern: re.Pattern[bytes] | None) -> bytes:
    """Read a terminal until a pattern is there, or to its end."""
    seen = b""
    ends_at = time.monotonic() + STOP_S
    while pattern is None or not pattern.search(seen):
        assert time.monotonic() < ends_at, seen
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux: the other side is closed
            data = b""
        if not data:
            assert pattern is None, seen
            break
        seen += data
    return seen
