"""Starts, freezes, kills and asks a local three-member cluster, etcd's or ours; no load here.

Both take etcd's flags, so one class starts both: `etcd ...` or `python -m kvstore.cli.kvstore
serve ...`. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
import psutil

from bench import messages, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ETCD = "etcd"
KVSTORE = "kvstore"
KINDS = (KVSTORE, ETCD)
COMPILED = "kvstore-compiled"
"""Ours from `make compiled`, for those who ask for it: beside the pure form in the same run."""

ROOT = Path(__file__).parent.parent
COMPILED_TREE = ROOT / "build" / "compiled"

READY_S = 60.0
STOP_S = 20.0
QUOTA_BYTES = 8 << 30
"""Above what any workload writes, for both, so that no alarm ends a run."""


class ClusterError(RuntimeError):
    """A cluster did not start, did not get ready, or has no leader; the text has the log's end."""


def python(kind: str) -> list[str]:
    """Return the command of the interpreter that has this kind's packages."""
    if kind != COMPILED:
        return [sys.executable]
    # -P: not from the current folder, which has the sources.
    return ["env", f"PYTHONPATH={COMPILED_TREE}", sys.executable, "-P"]


def shown(command: Sequence[str]) -> str:
    """Return a command as anybody can repeat it in a tree of their own."""
    return " ".join(command).replace(sys.executable, "python").replace(f"{ROOT}/", "")


def executable(kind: str) -> list[str]:
    """Return the command that runs one member. Raises ClusterError when it is not installed."""
    if kind == ETCD:
        path = shutil.which("etcd")
        if path is None:
            raise ClusterError("etcd is not installed: apt-get install etcd-server")
        return [path]
    if kind == COMPILED and not (COMPILED_TREE / "kvstore").is_dir():
        raise ClusterError("there is no compiled tree; `make compiled` builds it")
    return [*python(kind), "-m", "kvstore.cli.kvstore", "serve"]


def available(kind: str) -> str | None:
    """Return why this kind cannot run here, or None when it can."""
    try:
        command = executable(kind)
    except ClusterError as error:
        return str(error)
    if kind != ETCD:
        # A refusal proves that the program loads; nothing is started or written.
        probe = [*command, "--initial-cluster", "nonsense"]
        answer = subprocess.run(probe, capture_output=True, text=True, check=False)
        if "Traceback" in answer.stderr:
            return f"`kvstore serve` does not load: {answer.stderr.strip().splitlines()[-1]}"
    return None


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on, below the kernel's ephemeral range.

    A member that is killed and started again must find its port free: one of the ephemeral range
    could have become the local end of somebody's connection meanwhile.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            port = random.randrange(15_000, 32_000)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


@dataclass(frozen=True)
class Ports:
    """One member's ports."""

    client: int
    peer: int


@dataclass(frozen=True)
class Tls:
    """What a member needs for a client port behind TLS, and its clients."""

    cert_file: str
    key_file: str
    ca_file: str


def choose_ports(members: int) -> list[Ports]:
    """Return ports for that many members."""
    free = iter(free_ports(2 * members))
    return [Ports(client, peer) for client, peer in zip(free, free, strict=True)]


CALL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
"""A connection of its own, and replies of any size."""


def open_channel(
    target: str, ca_file: str, options: Sequence[tuple[str, int]] = CALL_OPTIONS
) -> grpc.Channel:
    """Return a channel; over TLS when the authority's file is given."""
    if not ca_file:
        return grpc.insecure_channel(target, options)
    trusted = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    return grpc.secure_channel(target, trusted, options)


def unary(
    target: str, path: str, request: bytes, timeout_s: float = 5.0, ca_file: str = ""
) -> bytes:
    """Call one method on a fresh connection and return the reply's bytes. Raises grpc.RpcError."""
    with open_channel(target, ca_file) as channel:
        reply: bytes = channel.unary_unary(path)(request, timeout=timeout_s, wait_for_ready=False)
        return reply


class Member:
    """One process of a cluster, and the command that starts it again."""

    def __init__(
        self, name: str, ports: Ports, command: list[str], log_path: Path, cpu_list: str | None
    ) -> None:
        self.name = name
        self.ports = ports
        pinned = ["taskset", "-c", cpu_list] if cpu_list else []
        self.command = [*process.bound(), *pinned, *command]
        self.log_path = log_path
        self.ca_file = ""
        """Set when clients come over TLS: the file of the authority that they trust."""

        self.process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """Return host:port for clients."""
        return f"127.0.0.1:{self.ports.client}"

    @property
    def pid(self) -> int:
        """Return the process id. The member must be running."""
        assert self.process is not None, f"{self.name} is not running"
        return self.process.pid

    @property
    def running(self) -> bool:
        """Tell whether the process exists."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the process; returns before it serves."""
        assert not self.running
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at the terminal is ours to handle
            )

    def signal_group(self, number: int) -> None:
        """Send a signal to the member and what it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.signal_group(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it does not end."""
        if self.process is None:
            return
        self.signal_group(signal.SIGCONT)
        if self.running:
            self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        # A helper process of a member that died by itself must not outlive the run.
        self.signal_group(signal.SIGKILL)

    def status(self, timeout_s: float = 2.0) -> messages.StatusReply:
        """Ask this member for its status. Raises grpc.RpcError."""
        return messages.status_reply(
            unary(self.target, messages.STATUS, b"", timeout_s, self.ca_file)
        )

    def channel(self) -> grpc.Channel:
        """Return a channel to this member; the caller closes it."""
        return open_channel(self.target, self.ca_file)

    def serves(self) -> bool:
        """Tell whether it answers a linearizable read now."""
        try:
            unary(self.target, messages.RANGE, messages.range_(b"\0"), 1.0, self.ca_file)
        except grpc.RpcError:
            return False
        return True

    def log_end(self) -> str:
        """Return the last lines that the process printed."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])


def _stopped(member: Member) -> bool:
    # A member that died needs no freezing; why it died is for the next measurement to find.
    return not member.running or psutil.Process(member.pid).status() == psutil.STATUS_STOPPED


class Cluster:
    """A local cluster; a context manager that starts it and removes its data."""

    def __init__(
        self,
        kind: str,
        *,
        ports: Sequence[Ports] | None = None,
        flags: Sequence[str] = (),
        data_root: str | None = None,
        cpu_list: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Prepare three members.

        Args:
            kind: "etcd", "kvstore" or "kvstore-compiled".
            ports: One entry per member; three free ones by default. The same ports, names and
                token give the same member and cluster ids.
            flags: More flags for every member.
            data_root: Folder on the disk to measure; the system's temporary folder by default.
            cpu_list: taskset list to pin the members to, or None.
            tls: Files for a client port behind TLS, or None for a plain one.
        """
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{kind}-", dir=data_root))
        ports = ports or choose_ports(3)
        names = [f"m{index + 1}" for index in range(len(ports))]
        initial = ",".join(
            f"{name}=http://127.0.0.1:{port.peer}" for name, port in zip(names, ports, strict=True)
        )
        self.members = []
        for name, port in zip(names, ports, strict=True):
            client = f"{'https' if tls else 'http'}://127.0.0.1:{port.client}"
            peer = f"http://127.0.0.1:{port.peer}"
            command = [
                *executable(kind),
                *("--name", name),
                *("--data-dir", str(self.folder / name)),
                *("--listen-client-urls", client),
                *("--advertise-client-urls", client),
                *("--listen-peer-urls", peer),
                *("--initial-advertise-peer-urls", peer),
                *("--initial-cluster", initial),
                *("--initial-cluster-state", "new"),
                *("--initial-cluster-token", "bench"),
                *("--quota-backend-bytes", str(QUOTA_BYTES)),
                *("--log-level", "error"),
                *(("--logger", "zap") if kind == ETCD else ()),
                *(("--cert-file", tls.cert_file, "--key-file", tls.key_file) if tls else ()),
                *flags,
            ]
            self.members.append(Member(name, port, command, self.folder / f"{name}.log", cpu_list))
            self.members[-1].ca_file = tls.ca_file if tls else ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start every member that is not running and wait until all serve."""
        for member in self.members:
            if not member.running:
                member.start()
        self.wait_ready()

    def stop(self) -> None:
        """Stop every member; the data stays."""
        for member in self.members:
            member.signal_group(signal.SIGCONT)
            if member.running:
                member.signal_group(signal.SIGTERM)
        for member in self.members:
            member.stop()

    def close(self) -> None:
        """Kill every member and remove the data; use `stop` first where a clean end matters."""
        for member in self.members:
            member.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_ready(
        self, members: Sequence[Member] | None = None, timeout_s: float = READY_S
    ) -> None:
        """Wait until every member answers a linearizable read. Raises ClusterError."""
        deadline = time.monotonic() + timeout_s
        for member in members or self.members:
            while not member.serves():
                if not member.running:
                    raise ClusterError(f"{self.kind} {member.name} ended:\n{member.log_end()}")
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{self.kind} {member.name} does not serve after {timeout_s:.0f} s:\n"
                        f"{member.log_end()}"
                    )
                time.sleep(0.02)

    def leader(self) -> Member:
        """Return the member that two of three call leader. Raises ClusterError after 20 s."""
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            votes: dict[int, int] = {}
            ids: dict[int, Member] = {}
            for member in self.members:
                if not member.running:
                    continue
                with contextlib.suppress(grpc.RpcError):
                    status = member.status()
                    ids[status.member_id] = member
                    votes[status.leader] = votes.get(status.leader, 0) + 1
            for identity, count in votes.items():
                if identity in ids and count > len(self.members) // 2:
                    return ids[identity]
            time.sleep(0.05)
        raise ClusterError(f"{self.kind} has no leader")

    def followers(self) -> list[Member]:
        """Return the other members, in order."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def revision(self) -> int:
        """Return the store's revision by a linearizable read."""
        leader = self.leader()
        request = messages.range_(b"\0")
        reply = unary(leader.target, messages.RANGE, request, 10.0, leader.ca_file)
        return messages.header_revision(reply)

    def term(self) -> int:
        """Return the highest Raft term that any member reports; an election moves it."""
        return max(member.status().raft_term for member in self.members if member.running)

    def version(self) -> str:
        """Return the version that the first member reports."""
        return self.members[0].status().version

    def ensure_running(self) -> None:
        """Raise ClusterError when a member ended: with one less to write to, the others are faster.

        For the end of a measurement that kills none.
        """
        for member in self.members:
            if not member.running:
                raise ClusterError(f"{self.kind} {member.name} ended:\n{member.log_end()}")

    def freeze(self) -> None:
        """SIGSTOP every member, so that this cluster costs nothing while the other is measured."""
        for member in self.members:
            member.signal_group(signal.SIGSTOP)
        # The signal takes effect a moment later, and the next measurement begins at once.
        wait_until(lambda: all(map(_stopped, self.members)), STOP_S, "the freeze of all members")

    def thaw(self) -> None:
        """SIGCONT every member and wait until the cluster serves again."""
        for member in self.members:
            member.signal_group(signal.SIGCONT)
        self.wait_ready()
        self.leader()

    @contextlib.contextmanager
    def awake(self) -> Iterator[Cluster]:
        """Thaw for the block, freeze after it."""
        self.thaw()
        try:
            yield self
        finally:
            self.freeze()


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Poll every 2 ms until the condition holds; return the seconds it took."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > timeout_s:
            raise ClusterError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(0.002)
    return time.monotonic() - begin
