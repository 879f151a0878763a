"""Real servers for tests: starting, killing and stopping clusters; asserts nothing."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import pytest

from kvstore.client import Client, KvError

START_TIMEOUT_S = 30.0
_LOOPBACK = "127.0.0.1"


def _own_ports() -> range:
    """Return this process's part of the ports, where tests run side by side (pytest-xdist).

    Whoever asked for a port has not bound it yet, and a member that was killed has let it go.
    """
    ports = range(15_000, 32_000)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % workers
    size = len(ports) // workers
    return ports[number * size : (number + 1) * size]


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on, below the kernel's ephemeral range.

    A member that is killed and started again must find its port free: one of the ephemeral range
    could have become the local end of somebody's connection meanwhile.
    """
    own = _own_ports()
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            port = random.choice(own)
            with contextlib.suppress(OSError):  # taken: draw again
                probe.bind((_LOOPBACK, port))
                ports.append(port)
    return ports


def free_base_port() -> int:
    """Return a client port for `kvstore up` with three members: all six ports are free now."""
    own = _own_ports()
    while True:
        base = random.choice(own[:-1])
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in (base, base + 20_000, base + 30_000):
                for number in (port, port + 1):
                    held.enter_context(socket.socket()).bind((_LOOPBACK, number))
            return base


def is_healthy(endpoint: str) -> bool:
    """Tell whether a member serves, by its /health."""
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=2)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status == 200 and json.loads(response.read())["health"] == "true"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def curl(url: str, *arguments: str, body: bytes = b"") -> tuple[str, bytes]:
    """Return `status version` as curl saw them, and the answer's body.

    Skips where curl is missing. `--data-binary @-` among the arguments sends `body`.
    """
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        [
            *("curl", "-sS", "--max-time", "30", *arguments),
            *("-w", "%{stderr}%{http_code} %{http_version}", url),
        ],
        input=body,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.decode(), done.stdout


def leads(endpoint: str) -> bool:
    """Tell whether a member answers and takes itself for the leader."""
    with Client([endpoint], timeout_s=2) as client:
        try:
            status = client.status(endpoint)
        except KvError:
            return False
    return status.leader_id == status.member_id


class Cluster:
    """Some members, each a process of its own, in a folder of their own.

    `with` starts and stops them. `endpoints` are host:port, in the order of the members' names
    (e1, e2 ...). After a failure the folder stays, with a log for each member.
    """

    command: tuple[str, ...]
    """What runs one member; it takes etcd's flags."""

    def __init__(
        self,
        nodes: int = 1,
        flags: tuple[str, ...] = (),
        scheme: str = "http",
        ports: Callable[[int], list[int]] = free_ports,
    ) -> None:
        self.nodes = nodes
        self._ports = ports
        self.folder = Path(tempfile.mkdtemp(prefix=f"kvstore-test-{type(self).__name__.lower()}-"))
        self.endpoints: list[str] = []
        self.keep_folder = False
        self.flags = flags
        """More flags for a member, from its next start on."""
        self._scheme = scheme
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.peer_urls: list[str] = []
        self._initial = ""
        self._joined: dict[int, str] = {}
        """What members that were added later take for --initial-cluster."""

    @staticmethod
    def missing() -> str | None:
        """Say why such members cannot be started here; None when they can."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.keep_folder = True
            self.stop()
            raise
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.keep_folder = self.keep_folder or error is not None
        self.stop()

    def start(self) -> None:
        """Start all members and return when each serves."""
        ports = self._ports(2 * self.nodes)
        self.endpoints = [f"{_LOOPBACK}:{port}" for port in ports[: self.nodes]]
        self.peer_urls = [f"http://{_LOOPBACK}:{port}" for port in ports[self.nodes :]]
        for index in range(self.nodes):
            self.spawn(index)
        for index in range(self.nodes):
            self.wait(index)

    def stop(self) -> None:
        """End all members; remove the folder unless something failed."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        if not self.keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def reserve(self) -> int:
        """Choose name, ports and folder for one more member, and return its index."""
        client_port, peer_port = self._ports(2)
        self.endpoints.append(f"{_LOOPBACK}:{client_port}")
        self.peer_urls.append(f"http://{_LOOPBACK}:{peer_port}")
        self.nodes += 1
        return self.nodes - 1

    def join(self, index: int, members: Iterable[int]) -> None:
        """Start a reserved member that was added; `members` are all, by index, it among them."""
        self._joined[index] = ",".join(f"e{each + 1}={self.peer_urls[each]}" for each in members)
        self.spawn(index)

    def ended(self, index: int) -> int:
        """Wait until a member has ended by itself, and return its exit code."""
        code = self._processes[index].wait(timeout=START_TIMEOUT_S)
        del self._processes[index]
        return code

    def kill(self, index: int) -> None:
        """SIGKILL one member."""
        process = self._processes.pop(index)
        process.kill()
        process.wait()

    def terminate(self, index: int) -> int:
        """SIGTERM one member and return its exit code."""
        process = self._processes.pop(index)
        process.terminate()
        return process.wait(timeout=START_TIMEOUT_S)

    def log_of(self, index: int) -> str:
        """Return what a member has written to its output so far."""
        return (self.folder / f"e{index + 1}.log").read_text(errors="replace")

    def restart(self, index: int) -> None:
        """Start a killed member again, with its data, and return when it serves."""
        self.spawn(index)
        self.wait(index)

    def pause(self, index: int) -> None:
        """SIGSTOP one member: it keeps its connections and says nothing."""
        self._processes[index].send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """Let a paused member go on."""
        self._processes[index].send_signal(signal.SIGCONT)

    def heal(self) -> None:
        """Let all members run again, killed or paused, and return when each serves."""
        for index in range(self.nodes):
            if index in self._processes:
                self.resume(index)
            else:
                self.spawn(index)
        for index in range(self.nodes):
            self.wait(index)

    def pid(self, index: int) -> int:
        """Return the process of a member that runs."""
        return self._processes[index].pid

    def leader(self) -> int:
        """Return the index of the leader."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends_at:
            for index in self._processes:
                if leads(self.endpoints[index]):
                    return index
            time.sleep(0.02)
        raise AssertionError("no leader")

    def wait_leaderless(self, index: int) -> None:
        """Return when a member knows that it has no leader: check-quorum takes a moment."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        with Client([self.endpoints[index]], timeout_s=2) as client:
            while client.status(self.endpoints[index]).leader_id:
                if time.monotonic() > ends_at:
                    raise AssertionError("it still has a leader")
                time.sleep(0.02)  # nothing to await: another process's state

    def spawn(self, index: int) -> None:
        """Start a member without waiting."""
        client_url = f"{self._scheme}://{self.endpoints[index]}"
        if not self._initial:
            # The members of the beginning, whoever chose their URLs: subclasses start otherwise.
            named = enumerate(self.peer_urls, 1)
            self._initial = ",".join(f"e{number}={url}" for number, url in named)
        initial = self._joined.get(index, self._initial)
        state = "existing" if index in self._joined else "new"
        command = [
            *self.wrapper(index),
            *self.command,
            *("--name", f"e{index + 1}", "--data-dir", str(self.folder / f"e{index + 1}")),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", self.peer_listen_url(index)),
            *("--initial-advertise-peer-urls", self.peer_urls[index]),
            *("--initial-cluster", initial, "--initial-cluster-state", state),
            *("--log-level", "error", *self.flags),
        ]
        # The environment configures members too: a test must not inherit what a developer has set.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ETCD")
        } | self.environment(index)
        with (self.folder / f"e{index + 1}.log").open("ab") as log:
            self._processes[index] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wrapper(self, index: int) -> list[str]:
        """Return what is put before the command of a member."""
        return []

    def environment(self, index: int) -> dict[str, str]:
        """Return what is added to the environment of a member."""
        return {}

    def peer_listen_url(self, index: int) -> str:
        """Return where a member listens for its peers, who may know it by another address."""
        return self.peer_urls[index]

    def wait(self, index: int) -> None:
        """Return when a member serves."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        while not self._serves(index):
            if self._processes[index].poll() is not None or time.monotonic() > ends_at:
                raise AssertionError(
                    f"member {index} does not serve:\n{self.log_of(index)[-2000:]}"
                )
            time.sleep(0.02)  # nothing to await: another process's port

    def _serves(self, index: int) -> bool:
        if self._scheme == "http":
            return is_healthy(self.endpoints[index])
        with socket.socket() as probe:
            host, _, port = self.endpoints[index].partition(":")
            return probe.connect_ex((host, int(port))) == 0


class Etcd(Cluster):
    """Members of the etcd that is installed."""

    command = ("etcd",)

    @staticmethod
    def missing() -> str | None:
        """Say why such members cannot be started here; None when they can."""
        if shutil.which("etcd") is None:
            return "no etcd on this machine (Debian package etcd-server)"
        return None


class Kvstore(Cluster):
    """Members of our own server."""

    command = (sys.executable, "-m", "kvstore.cli.kvstore", "serve")

    @staticmethod
    def missing() -> str | None:
        """Say why such members cannot be started here; None when they can."""
        for module in ("kvstore.cli.kvstore", "kvstore.server.member"):
            if importlib.util.find_spec(module) is None:
                return f"{module} does not exist yet, so our own server cannot be started"
        return None


SERVERS: dict[str, type[Cluster]] = {"etcd": Etcd, "kvstore": Kvstore}
