"""Many hosts with an agent each and one registry member on a host of its own; asserts nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from tests import bytecode
from tests.net.overlay import (
    NETWORK,
    READY_TIMEOUT_S,
    SERVERS,
    AgentProcess,
    OnHosts,
    until,
)
from tests.net.rig import Host, Rig
from tests.servers import is_healthy

MEMORY = Path("/dev/shm")
CALLS = re.compile(
    r'^(?:kvstore_session_operations_total|grpc_server_started_total)\{.*grpc_method="(\w+)".*\}'
    r" ([0-9.e+]+)$",
    re.MULTILINE,
)
"""kvstore counts what travels in a session by itself; etcd knows the second only."""


class Fleet:
    """A registry, and agents that are not started yet. Everything ends with the `with`.

    What the agents remember is kept in memory: in life each has a disk of its own, and a hundred
    that share the registry's would measure that disk.
    """

    def __init__(
        self,
        agents: int,
        *,
        server: str = "kvstore",
        network: str = NETWORK,
        flags: tuple[str, ...] = (),
        process: type[AgentProcess] = AgentProcess,
    ) -> None:
        self.rig = Rig(agents + 1)
        self.agents: list[AgentProcess] = []
        self.registry: OnHosts
        self._server = server
        self._network = network
        self._flags = flags
        self._process = process
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        bytecode.compile_all()
        with self._stack:
            self._stack.enter_context(self.rig)
            *hosts, apart = self.rig.hosts
            self.registry = self._stack.enter_context(SERVERS[self._server]([apart]))
            folder = tempfile.mkdtemp(
                prefix="netplane-fleet-", dir=MEMORY if MEMORY.is_dir() else None
            )
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._stack.callback(self._stop)
            apart.namespace.run(
                *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "init", self._network),
                *("--etcd-endpoints", self.registry.endpoints[0]),
            )
            self.agents = [
                self._process(host, self.registry.endpoints, Path(folder), *self._flags)
                for host in hosts
            ]
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.registry.keep_folder = self.registry.keep_folder or error is not None
        self._stack.close()

    @property
    def apart(self) -> Host:
        """The registry's host."""
        return self.rig.hosts[-1]

    def shut_registry(self) -> None:
        """End the member; what is registered stays on its disk."""
        self.registry.kill(0)

    def open_registry(self) -> float:
        """Start the member again; return the moment from which on it served, or just before."""
        self.registry.spawn(0)
        asked_s = 0.0

        def serves() -> bool:
            nonlocal asked_s
            asked_s = time.monotonic()
            return self.apart.namespace.within(is_healthy, self.registry.endpoints[0])

        until(serves, READY_TIMEOUT_S, "the member serves")
        return asked_s

    def boot(self) -> float:
        """Start all agents at once; return the moment before the first."""
        begun_s = time.monotonic()
        for agent in self.agents:
            agent.start()
        return begun_s

    def wait_for_agents(self, word: str, timeout_s: float) -> None:
        """Return when every agent has logged a word."""
        ends_s = time.monotonic() + timeout_s
        for agent in self.agents:
            while word not in agent.log():
                if time.monotonic() > ends_s:
                    raise AssertionError(
                        f"not within {timeout_s} s: {agent.host.name} logs {word!r}"
                    )
                # Nothing to await: what others write. Seldom, as all the cores are theirs.
                time.sleep(0.1)

    def calls(self) -> Counter[str]:
        """Return how many calls the member has got, by method, as it counts them itself."""
        url = f"http://{self.registry.endpoints[0]}/metrics"
        page = self.apart.namespace.within(lambda: urlopen(url).read().decode())
        found: Counter[str] = Counter()
        for method, count in CALLS.findall(page):
            found[method] += int(float(count))
        return found

    def cpu_s(self) -> float:
        """Return the CPU time of all agents, their threads' and the kernel's for them included."""
        return sum(cpu_s(agent.pid) for agent in self.agents)

    def pss_bytes(self) -> list[int]:
        """Return each agent's memory; what they share is divided among them."""
        return [pss_bytes(agent.pid) for agent in self.agents]

    def _stop(self) -> None:
        for agent in self.agents:
            if agent.is_running:
                agent.kill()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process to the nanosecond: of its threads that live."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def pss_bytes(pid: int) -> int:
    """Return the memory of a process; what it shares counts in parts."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss:") * 1024


def rss_bytes(pid: int) -> int:
    """Return the memory of a process; what it shares counts in full."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmRSS:") * 1024


def _kilobytes(text: str, name: str) -> int:
    [line] = [line for line in text.splitlines() if line.startswith(name)]
    return int(line.split()[1])


def routes_by_ip(hosts: Iterable[Host]) -> list[set[str]]:
    """Return the subnets that each host has routes of ours to, as `ip` sees it."""
    return [
        {found["dst"] for found in host.namespace.json("ip", "-j", "route", "show", "proto", "181")}
        for host in hosts
    ]
