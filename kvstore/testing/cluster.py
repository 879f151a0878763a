"""A cluster of member processes for tests, started as `kvstore up` does; asserts nothing."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING, Self

from kvstore.cli.up import LocalCluster
from kvstore.client import Client, LeaseNotFoundError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from kvstore.client.transport import Mode

RESET_S = 30.0
_PORTS = (12_000, 32_000)
"""Below the kernel's ephemeral range: a port there could become the local end of a connection while
its member is down."""


class ProcessCluster:
    """Members m1, m2, ... as processes; `with` starts and ends them. Numbers count from 0."""

    def __init__(self, nodes: int, folder: Path) -> None:
        """Plan them; their data and logs go to the folder."""
        self.folder = folder
        ports = _free_ports(nodes)
        self._local = LocalCluster(nodes, folder, ports[0], "info", ports=ports, log_files=True)
        self._clients: list[Client] = []

    @property
    def endpoints(self) -> list[str]:
        """Where clients reach the members, as host:port."""
        return [f"127.0.0.1:{member.client_port}" for member in self._local.members]

    def __enter__(self) -> Self:
        serves = False
        try:
            serves = self._local.start()
        finally:
            if not serves:  # or an interrupt came
                self._local.stop()
        if not serves:
            raise RuntimeError(f"the cluster does not start; see the logs in {self.folder}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_clients()
        self._local.stop()

    def client(self, *, timeout_s: float = 5.0, transport: Mode = "auto") -> Client:
        """Return a client of all members, closed after the test."""
        client = Client(self.endpoints, timeout_s=timeout_s, transport=transport)
        self._clients.append(client)
        return client

    def runs(self, number: int) -> bool:
        """Tell whether a member's process exists."""
        return self._local.members[number].runs

    def leader(self) -> int:
        """Return the number of the member that leads."""
        with Client(self.endpoints, timeout_s=RESET_S) as client:
            client.get(b"leader")  # from here on it asks a member that a majority stands behind
            leader = client.status().leader_id
            names = {member.member_id: member.name for member in client.member_list()}
        return [member.name for member in self._local.members].index(names[leader])

    def kill(self, number: int) -> None:
        """End a member with SIGKILL, as a crash would."""
        process = self._local.members[number].process
        assert process is not None
        process.kill()
        process.wait()

    def start(self, number: int) -> None:
        """Start a member that was killed; returns when it serves, which takes a majority."""
        member = self._local.members[number]
        if not member.runs:
            self._local.start_member(member)
        if not self._local.wait_ready([member]):
            raise RuntimeError(f"{member.name} does not start; see the logs in {self.folder}")

    def reset(self) -> None:
        """Start what was killed, close the clients, remove all keys and leases."""
        self._close_clients()
        for member in self._local.members:
            if not member.runs:
                self._local.start_member(member)
        if not self._local.wait_ready():
            raise RuntimeError(f"the cluster does not serve; see the logs in {self.folder}")
        with Client(self.endpoints, timeout_s=RESET_S) as client:
            client.get(b"k")  # members answer the next call from what they have: be up to date
            for lease_id in client.lease_list():
                with contextlib.suppress(LeaseNotFoundError):  # it has ended by itself
                    client.lease_revoke(lease_id)
            client.delete(b"", prefix=True)

    def _close_clients(self) -> None:
        clients, self._clients = self._clients, []
        for client in clients:
            client.close()


def _free_ports(nodes: int) -> list[int]:
    """Return client ports that are free now, as are the ports above each."""
    while True:
        base = random.randrange(*_PORTS)  # noqa: S311 (a port, not a secret)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(base, base + 2 * nodes):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(base, base + 2 * nodes, 2))
