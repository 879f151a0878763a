"""Real servers for tests: starting, killing and stopping clusters; asserts nothing."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 30.0
_LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Let the kernel choose ports; all are held until all are known, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Cluster(ABC):
    """Some members in a folder of their own. The logs stay where `folder` says when a start fails.

    `with` starts and stops it. `nodes` members listen at `endpoints`, in the order of their names.
    """

    def __init__(self, nodes: int = 1) -> None:
        self.nodes = nodes
        self.folder = Path(tempfile.mkdtemp(prefix=f"kvstore-test-{type(self).__name__.lower()}-"))
        self.endpoints: list[str] = []
        self.keep_folder = False

    @staticmethod
    @abstractmethod
    def missing() -> str | None:
        """Say why such servers cannot be started here; None when they can."""

    @abstractmethod
    def start(self) -> None:
        """Start all members and return when each serves."""

    @abstractmethod
    def stop(self) -> None:
        """End all members and remove the folder."""

    @abstractmethod
    def kill(self, index: int) -> None:
        """SIGKILL one member."""

    @abstractmethod
    def restart(self, index: int) -> None:
        """Start a killed member again, with its data."""

    def leader(self) -> int:
        """Return the index of the leader."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < ends_at:
            for index, endpoint in enumerate(self.endpoints):
                answer = post(endpoint, "/v3/maintenance/status", {})
                if answer is None:
                    continue
                if answer.get("leader", "0") == answer["header"]["member_id"]:
                    return index
            time.sleep(0.02)
        raise AssertionError("no leader")

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

    def _remove_folder(self) -> None:
        if not self.keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def post(endpoint: str, path: str, body: dict[str, object]) -> dict[str, object] | None:
    """POST JSON to a member's gateway; None when it does not answer with 200."""
    host, _, port = endpoint.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=2)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def is_healthy(endpoint: str) -> bool:
    """Tell whether a member serves, by its /health."""
    host, _, port = endpoint.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=2)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        return response.status == 200 and json.loads(response.read())["health"] == "true"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


class Etcd(Cluster):
    """Members of the etcd that is installed."""

    def __init__(self, nodes: int = 1, flags: tuple[str, ...] = ()) -> None:
        super().__init__(nodes)
        self._flags = flags
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._peer_ports: list[int] = []

    @staticmethod
    def missing() -> str | None:
        if shutil.which("etcd") is None:
            return "no etcd on this machine (Debian package etcd-server)"
        return None

    def start(self) -> None:
        ports = free_ports(2 * self.nodes)
        self.endpoints = [f"{_LOOPBACK}:{port}" for port in ports[: self.nodes]]
        self._peer_ports = ports[self.nodes :]
        for index in range(self.nodes):
            self._spawn(index)
        for index in range(self.nodes):
            self._wait(index)

    def _spawn(self, index: int) -> None:
        client_url = f"http://{self.endpoints[index]}"
        peer_urls = [f"http://{_LOOPBACK}:{port}" for port in self._peer_ports]
        initial = ",".join(f"e{number + 1}={url}" for number, url in enumerate(peer_urls))
        command = [
            *("etcd", "--name", f"e{index + 1}", "--data-dir", str(self.folder / f"e{index + 1}")),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", peer_urls[index]),
            *("--initial-advertise-peer-urls", peer_urls[index]),
            *("--initial-cluster", initial, "--initial-cluster-state", "new"),
            *("--log-level", "error", *self._flags),
        ]
        # The environment configures etcd too: a test must not inherit what a developer has set.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ETCD")
        }
        with (self.folder / f"e{index + 1}.log").open("ab") as log:
            self._processes[index] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _wait(self, index: int) -> None:
        ends_at = time.monotonic() + START_TIMEOUT_S
        while not is_healthy(self.endpoints[index]):
            if self._processes[index].poll() is not None or time.monotonic() > ends_at:
                log = (self.folder / f"e{index + 1}.log").read_text(errors="replace")
                raise AssertionError(f"etcd member {index} does not serve:\n{log[-2000:]}")
            time.sleep(0.02)  # nothing to await: another process's port

    def kill(self, index: int) -> None:
        process = self._processes.pop(index)
        process.kill()
        process.wait()

    def pause(self, index: int) -> None:
        """SIGSTOP one member: it keeps its connections and says nothing."""
        self._processes[index].send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """Let a paused member go on."""
        self._processes[index].send_signal(signal.SIGCONT)

    def restart(self, index: int) -> None:
        self._spawn(index)
        self._wait(index)

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        self._remove_folder()


class Kvstore(Cluster):
    """Members of our own server, by `kvstore up`."""

    def __init__(self, nodes: int = 1, flags: tuple[str, ...] = ()) -> None:
        super().__init__(nodes)
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None

    @staticmethod
    def missing() -> str | None:
        if importlib.util.find_spec("kvstore.cli.kvstore") is None:
            return "kvstore.cli.kvstore does not exist yet"
        return None

    def start(self) -> None:
        # The ports of `up` lie 20000, 30000 apart for clients and one above for peers.
        base = self._free_base()
        offsets = [0, 20_000, 30_000, 40_000, 50_000]
        self.endpoints = [f"{_LOOPBACK}:{base + offsets[index]}" for index in range(self.nodes)]
        command = [
            *(sys.executable, "-m", "kvstore.cli.kvstore", "up", "--nodes", str(self.nodes)),
            *("--client-port", str(base), "--data-dir", str(self.folder / "data"), "--no-ui"),
            *self._flags,
        ]
        with (self.folder / "stderr.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read_stdout, args=(ready,), daemon=True)
        self._reader.start()
        if not ready.wait(START_TIMEOUT_S) or self._process.poll() is not None:
            log_text = (self.folder / "stderr.log").read_text(errors="replace")
            raise AssertionError(f"kvstore up did not say `ready`:\n{log_text[-2000:]}")

    def _read_stdout(self, ready: threading.Event) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with (self.folder / "stdout.log").open("a") as log:
            for line in self._process.stdout:
                log.write(line)
                if line.strip() == "ready":
                    ready.set()
        ready.set()  # it has ended; start() looks at the exit code

    def _free_base(self) -> int:
        for _ in range(100):
            [base] = free_ports(1)
            if base > 15_000:
                continue
            return base
        # The kernel's range lies above: probe for a base whose whole family of ports is free.
        for base in range(12_000 + os.getpid() % 1000, 15_000, 2):
            if all(
                _is_free(base + offset + step)
                for offset in (0, 20_000, 30_000)[: self.nodes]
                for step in (0, 1)
            ):
                return base
        raise AssertionError("no free ports for a cluster")

    def kill(self, index: int) -> None:
        raise NotImplementedError("needs the process ids of the members")

    def restart(self, index: int) -> None:
        raise NotImplementedError("needs the process ids of the members")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
        self._remove_folder()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
    return True


SERVERS: dict[str, type[Etcd | Kvstore]] = {"etcd": Etcd, "kvstore": Kvstore}
