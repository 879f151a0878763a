"""The rig with a registry member and an agent on its hosts, as processes; asserts nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self

from netplane.agent.ask import ask
from netplane.agent.subnet_env import read_subnet
from tests.net.namespaces import CommandError
from tests.net.rig import Container, Host, Rig
from tests.servers import Kvstore, is_healthy

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 30.0
NETWORK = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Return the seconds until the condition was true. Raises AssertionError when it never was."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)  # nothing to await: what other processes and their kernels do
    return time.monotonic() - begun


class HostMembers(Kvstore):
    """Registry members, each on a host of a rig."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        super().__init__(len(hosts))

    def start(self) -> None:
        """Start all members and return when each serves."""
        self.endpoints = [f"{host.address}:2379" for host in self.hosts]
        self.peer_urls = [f"http://{host.address}:2380" for host in self.hosts]
        for index in range(self.nodes):
            self.spawn(index)
        for index in range(self.nodes):
            self.wait(index)

    def wrapper(self, index: int) -> list[str]:
        """Start members on their hosts."""
        return self.hosts[index].namespace.command()

    def _serves(self, index: int) -> bool:
        return self.hosts[index].namespace.within(is_healthy, self.endpoints[index])


class AgentProcess:
    """`netplane agent` on one host, with folders of its own."""

    def __init__(self, host: Host, endpoints: list[str], folder: Path, *flags: str) -> None:
        self.host = host
        self.folder = folder / host.name
        self.folder.mkdir(exist_ok=True)
        self.flags = flags
        self.log_file = folder / f"{host.name}.log"
        self._endpoints = endpoints
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def socket(self) -> Path:
        """Where it listens for `netplane ctl`."""
        return self.folder / "default.sock"

    @property
    def subnet(self) -> IPv4Network:
        """What subnet.env says: what containers are made by."""
        found = read_subnet(self.folder / "subnet.env")
        assert found is not None
        return found

    def start(self) -> None:
        """Start it without waiting."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ETCD", "FLANNELD_", "NOTIFY_"))
        }
        command = self.host.namespace.command(
            *(sys.executable, "-m", "netplane.cli.netplane", "agent"),
            *("--etcd-endpoints", ",".join(self._endpoints)),
            *("--host-id", self.host.name, "--state-dir", str(self.folder)),
            *("--run-dir", str(self.folder)),
            *("--subnet-file", str(self.folder / "subnet.env")),
            *self.flags,
        )
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environment
            )

    def wait_ready(self) -> None:
        """Return when it says that nothing is missing."""
        until(self._is_ready, READY_TIMEOUT_S, f"{self.host.name} ready; its log:\n{self.log()}")

    def _is_ready(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"the agent of {self.host.name} ended:\n{self.log()}")
        try:
            return ask(self.socket, "GET", "/readyz").status == 200
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        """Return what it says of itself; no witness of anything."""
        found: dict[str, Any] = json.loads(ask(self.socket, "GET", "/v1/status").body)
        return found

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=READY_TIMEOUT_S)

    def log(self) -> str:
        """Return the end of what it has written."""
        return self.log_file.read_text(errors="replace")[-4000:]


class Overlay:
    """Hosts with members and agents. `with` starts and ends everything."""

    def __init__(
        self, hosts: int = 3, members: int = 1, flags: tuple[str, ...] = (), network: str = NETWORK
    ) -> None:
        self.rig = Rig(hosts)
        self._members = members
        self._flags = flags
        self._network = network
        self._stack = ExitStack()
        self.members: HostMembers
        self.agents: list[AgentProcess] = []

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.rig)
            hosts = self.rig.hosts
            self.members = self._stack.enter_context(HostMembers(hosts[: self._members]))
            self._stack.callback(self._stop_agents)
            self.ctl("init", self._network)
            self.agents = [
                AgentProcess(host, self.members.endpoints, self.members.folder, *self._flags)
                for host in hosts
            ]
            for agent in self.agents:
                agent.start()
            for agent in self.agents:
                agent.wait_ready()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.members.keep_folder = self.members.keep_folder or error is not None
        self._stack.close()

    def _stop_agents(self) -> None:
        for agent in self.agents:
            if agent.is_running:
                agent.kill()

    def add_containers(self, each: int = 2) -> list[Container]:
        """Put containers behind every host, with addresses of the subnet it has leased."""
        for agent in self.agents:
            mtu = 1450
            for _ in range(each):
                agent.host.add_container(agent.subnet, mtu=mtu)
        return self.rig.containers

    def ctl(self, *arguments: str) -> str:
        """Run `netplane ctl` with a command of the registry on the first host."""
        command, *rest = arguments
        try:
            return self.rig.hosts[0].namespace.run(
                *(sys.executable, "-m", "netplane.cli.netplane", "ctl", command),
                *("--etcd-endpoints", ",".join(self.members.endpoints), *rest),
            )
        except CommandError as error:
            raise AssertionError(str(error)) from error
