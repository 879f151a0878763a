"""A local cluster of member processes: starts them, shows their state, stops them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kvstore.cli.flags import PARENT_VARIABLE, without_etcd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
VIEW_S = 1.0
SHAPE_NAME = "cluster.json"


class UpError(Exception):
    """The cluster cannot be started so; the text says what to do."""


class PortsError(UpError):
    """The ports of the members do not fit below 65536."""


@dataclass(slots=True)
class LocalMember:
    """One member process and its addresses."""

    name: str
    client_port: int
    peer_port: int
    data_dir: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether its process exists."""
        return self.process is not None and self.process.poll() is None

    @property
    def client_url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where its peers reach it."""
        return f"http://127.0.0.1:{self.peer_port}"


class LocalCluster:
    """Members as child processes on this machine, named m1, m2, ..."""

    def __init__(
        self,
        nodes: int,
        folder: Path,
        client_port: int,
        log_level: str,
        *,
        ports: Sequence[int] | None = None,
        log_files: bool = False,
    ) -> None:
        """Plan the members; nothing starts before `run` or `start`.

        Ports are those of etcd's usual local cluster: 2379, 22379, 32379 for clients, one above
        each for peers. `ports` names other client ports. With `log_files` each member logs to
        NAME.log in the folder, not to our standard error.

        Raises:
            PortsError: A port would be above 65535.
        """
        self._log_level = log_level
        self._log_files = log_files
        self._folder = folder
        self._shape = {"nodes": nodes, "client_port": client_port}
        self.members: list[LocalMember] = []
        for number in range(nodes):
            port = client_port + (10_000 * (number + 1) if number else 0)
            if ports is not None:
                port = ports[number]
            if port + 1 > 65_535:
                highest = 65_534 - 10_000 * nodes if nodes > 1 else 65_534
                raise PortsError(
                    f"--client-port {client_port}: member {number + 1} would need port {port}; "
                    f"with {nodes} nodes choose at most {highest}"
                )
            name = f"m{number + 1}"
            self.members.append(LocalMember(name, port, port + 1, folder / name))
        self._is_stopping = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()

    def run(self, *, live: bool) -> int:
        """Run until Ctrl-C, SIGTERM or SIGHUP; return the exit code.

        Raises:
            UpError: The data directory is of another cluster, or cannot be used.
        """
        # SIGHUP: somebody closed the terminal.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupted)
        try:
            if not self.start():
                return 0 if self._is_stopping else 1
            print(f"{len(self.members)} members, data in {self._folder}")
            for member in self.members:
                print(f"  {member.name}  clients {member.client_url}  peers {member.peer_url}")
            urls = ",".join(member.client_url for member in self.members)
            print(f"try: etcdctl --endpoints={urls} put greeting hello")
            print("ready", flush=True)
            return self._watch(live=live)
        finally:
            self.stop()

    def _interrupted(self, *_: object) -> None:
        # It may run anywhere in `_wait`: an Event would wait for the lock that its `wait` holds.
        self._is_stopping = True
        self._wakes.put(None)

    def _wait(self, at_most_s: float) -> bool:
        """Wait until a signal tells to stop; tell whether one did."""
        if not self._is_stopping:
            with contextlib.suppress(queue.Empty):
                self._wakes.get(timeout=at_most_s)
        return self._is_stopping

    def start(self) -> bool:
        """Start all members and wait; tell whether they serve, having said which does not.

        Raises:
            UpError: As `run`.
        """
        self._check_folder()
        for member in self.members:
            self.start_member(member)
        if not self.wait_ready():
            return False
        self._mark.write_text(json.dumps(self._shape) + "\n")
        return True

    @property
    def _mark(self) -> Path:
        return self._folder / SHAPE_NAME

    def _check_folder(self) -> None:
        """See that the data is of a cluster with just these members; their ids are the ports'."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            shape = json.loads(self._mark.read_text()) if self._mark.exists() else self._shape
        except (OSError, ValueError) as error:
            raise UpError(f"--data-dir {self._folder}: {error}") from error
        if shape != self._shape:
            flags = " ".join(f"--{key.replace('_', '-')} {shape[key]}" for key in shape)
            raise UpError(
                f"--data-dir {self._folder} holds a cluster that was made with {flags}; start it "
                "with these, or choose another --data-dir"
            )

    def start_member(self, member: LocalMember) -> None:
        """Start the process of one member, which must not run."""
        cluster = ",".join(f"{other.name}={other.peer_url}" for other in self.members)
        command = [
            sys.executable, "-m", "kvstore.cli.kvstore", "serve",
            "--name", member.name,
            "--data-dir", str(member.data_dir),
            "--listen-client-urls", member.client_url,
            "--advertise-client-urls", member.client_url,
            "--listen-peer-urls", member.peer_url,
            "--initial-advertise-peer-urls", member.peer_url,
            "--initial-cluster", cluster,
            "--initial-cluster-token", "kvstore-up",
            "--log-level", self._log_level,
        ]  # fmt: skip
        # A session of its own, so that Ctrl-C reaches only us and we stop the members in order.
        with self._log_file(member) as log_file:
            member.process = subprocess.Popen(  # noqa: S603 (our own module)
                command,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=log_file,
                env=without_etcd() | {PARENT_VARIABLE: str(os.getpid())},
            )

    def _log_file(self, member: LocalMember) -> contextlib.AbstractContextManager[IO[bytes] | None]:
        if not self._log_files:
            return contextlib.nullcontext()
        return member.data_dir.with_suffix(".log").open("ab")

    def wait_ready(self, members: Sequence[LocalMember] | None = None) -> bool:
        """Wait until these members, or all, serve; False, having said why, when one does not."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = list(self.members if members is None else members)
        while waiting and not self._is_stopping:
            for member in list(waiting):
                assert member.process is not None
                if (code := member.process.poll()) is not None:
                    print(f"member {member.name} ended with code {code}", file=sys.stderr)
                    return False
                if is_ready(member):
                    waiting.remove(member)
            if time.monotonic() > deadline:
                names = ", ".join(member.name for member in waiting)
                print(f"not ready after {READY_TIMEOUT_S:.0f} s: {names}", file=sys.stderr)
                return False
            self._wait(POLL_S)
        return not self._is_stopping

    def _watch(self, *, live: bool) -> int:
        if live:
            from rich.live import Live

            with Live(self._view(), auto_refresh=False, transient=True) as view:
                while not self._wait(VIEW_S):
                    view.update(self._view(), refresh=True)
                    if not any(member.runs for member in self.members):
                        break
            return 0 if self._is_stopping else 1
        known_dead: set[str] = set()
        while not self._wait(VIEW_S):
            for member in self.members:
                assert member.process is not None
                code = member.process.poll()
                if code is not None and member.name not in known_dead:
                    known_dead.add(member.name)
                    print(f"member {member.name} ended with code {code}", flush=True)
            if len(known_dead) == len(self.members):
                return 1
        return 0

    def _view(self) -> Table:
        from rich.table import Table

        table = Table(title="kvstore: local cluster, Ctrl-C stops it")
        for column in ("member", "clients", "state", "term", "revision", "ops/s", "db", "pid"):
            table.add_column(column, justify="left" if column in {"member", "clients"} else "right")
        for member in self.members:
            table.add_row(*self._row(member))
        return table

    def _row(self, member: LocalMember) -> list[str]:
        assert member.process is not None
        if (code := member.process.poll()) is not None:
            return [member.name, member.client_url, f"[red]ended ({code})", "", "", "", "", ""]
        status, body = fetch(f"{member.client_url}/debug/vars")
        if status != 200:
            return [member.name, member.client_url, "[yellow]no answer", "", "", "", "", ""]
        values: dict[str, Any] = json.loads(body)
        role = values["role"]
        state = (
            f"[green]{role}" if role == "leader" else role if values["leader"] else "[red]no leader"
        )
        return [
            member.name,
            member.client_url,
            state,
            str(values["term"]),
            str(values["revision"]),
            f"{values['operations_per_s']:.0f}",
            f"{values['db_size'] / (1 << 20):.1f} MiB",
            str(member.process.pid),
        ]

    def stop(self) -> None:
        """Stop all members, with SIGTERM first; none is left."""
        running = [
            member.process
            for member in self.members
            if member.process is not None and member.process.poll() is None
        ]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            if process.poll() is None:
                print(f"pid {process.pid} does not stop; killing it", file=sys.stderr)
                process.kill()
                process.wait()


def is_ready(member: LocalMember) -> bool:
    """Tell whether this member serves: it, and not another that has its port."""
    assert member.process is not None
    if fetch(f"{member.client_url}/readyz")[0] != 200:
        return False
    status, body = fetch(f"{member.client_url}/debug/vars")
    try:
        return status == 200 and json.loads(body).get("pid") == member.process.pid
    except ValueError:
        return False


def fetch(url: str) -> tuple[int, bytes]:
    """Return status and body of a GET on this machine; status 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as reply:  # noqa: S310 (http on loopback)
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""
