"""The rig with a registry member and an agent on its hosts, as processes; asserts nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self, cast

from netplane.agent.ask import ask
from netplane.agent.subnet_env import read_subnets
from netplane.subnet.family import Pair
from tests.net.namespaces import CommandError
from tests.net.packets import Flow, Loss, mesh, mesh6, ping_all
from tests.net.rig import Container, Host, Rig
from tests.net.udp import stop_process
from tests.servers import Cluster, Etcd, Kvstore, is_healthy

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 30.0
LATE_MAX = 100
"""Packets of a flow, of thousands."""
PREFIX = "/coreos.com/network/"
NETWORK = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
DUAL = (
    '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48",'
    '"Backend":{"Type":"vxlan"}}'
)
NO_IPV4 = '"EnableIPv4":false'
ONLY_IPV6 = DUAL.replace('"Network":"10.5.0.0/16"', NO_IPV4)
HOST_GW = NETWORK.replace("vxlan", "host-gw")
ALLOC = NETWORK.replace("vxlan", "alloc")


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Return the seconds until the condition was true. Raises AssertionError when it never was."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)  # nothing to await: what other processes and their kernels do
    return time.monotonic() - begun


def patience(timeout_s: float) -> float:
    """Return how long to wait for what a sound agent does in the end; less with a planted bug."""
    return timeout_s / 3 if os.environ.get("NETPLANE_MUTANT") else timeout_s


class OnHosts(Cluster):
    """Registry members, each on a host of a rig."""

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        super().__init__(len(hosts))

    def start(self) -> None:
        """Start all members and return when each serves."""
        self.endpoints = [f"{host.authority}:2379" for host in self.hosts]
        self.peer_urls = [f"http://{host.authority}:2380" for host in self.hosts]
        for index in range(self.nodes):
            self.spawn(index)
        for index in range(self.nodes):
            self.wait(index)

    def wrapper(self, index: int) -> list[str]:
        """Start members on their hosts."""
        return self.hosts[index].namespace.command()

    def _serves(self, index: int) -> bool:
        return self.hosts[index].namespace.within(is_healthy, self.endpoints[index])


class HostMembers(OnHosts, Kvstore):
    """Members of our own server."""


class HostEtcd(OnHosts, Etcd):
    """Members of the etcd that is installed."""


SERVERS: dict[str, type[OnHosts]] = {"kvstore": HostMembers, "etcd": HostEtcd}


class AgentProcess:
    """`netplane agent` on one host, with folders of its own."""

    def __init__(self, host: Host, endpoints: list[str], folder: Path, *flags: str) -> None:
        self.host = host
        self.folder = folder / host.name
        self.folder.mkdir(exist_ok=True)
        self.flags = flags
        self.wrapper: tuple[str, ...] = ()
        """What is put before its command."""
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
    def process_socket(self) -> Path:
        """Where the process of the udp backend listens, if there is one."""
        return self.folder / "default.udp"

    @property
    def subnet_file(self) -> Path:
        """What containers are made by."""
        return self.folder / "subnet.env"

    @property
    def subnet(self) -> IPv4Network:
        """The first that subnet.env says."""
        # The few tests of networks without IPv4 know what they get.
        return cast("IPv4Network", self.subnets.first)

    @property
    def subnets(self) -> Pair:
        """What subnet.env says."""
        found = read_subnets(self.subnet_file)
        assert found is not None
        return found

    def remembers(self, *subnets: IPv4Network) -> bool:
        """Whether its state file has these peers: what changes fast is written once a second."""
        peers = json.loads((self.folder / "default.json").read_text())["peers"]
        return {str(subnet) for subnet in subnets} <= {peer["subnet"] for peer in peers}

    @property
    def mtu(self) -> int:
        """What subnet.env says."""
        pairs = (line.split("=") for line in self.subnet_file.read_text().splitlines())
        return int(dict(pairs)["FLANNEL_MTU"])

    def start(self) -> None:
        """Start it without waiting."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ETCD", "FLANNELD_", "NOTIFY_"))
        }
        command = self.host.namespace.command(*self.wrapper, sys.executable, *self._arguments())
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environment
            )

    def _arguments(self) -> list[str]:
        return [
            *("-m", "netplane.cli.netplane", "agent"),
            *("--etcd-endpoints", ",".join(self._endpoints)),
            *("--host-id", self.host.name, "--state-dir", str(self.folder)),
            *("--run-dir", str(self.folder)),
            *("--subnet-file", str(self.subnet_file)),
            *self.flags,
        ]

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

    def missing(self) -> str:
        """Return what /readyz says."""
        return ask(self.socket, "GET", "/readyz").body.decode()

    def pause(self) -> None:
        """SIGSTOP: what happens now can be seen before it is put right."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused agent go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ended(self) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        assert self._process is not None
        return self._process.wait(timeout=READY_TIMEOUT_S)

    def ctl(self, *arguments: str) -> str:
        """Run a command of `netplane ctl` that asks this agent. Raises CommandError."""
        return self.host.namespace.run(
            *(sys.executable, "-m", "netplane.cli.netplane", "ctl", *arguments),
            *("--run-dir", str(self.folder)),
        )

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


def lost_without(
    agent: AgentProcess, here: Container, there: Container, rate: int, end: Callable[[], object]
) -> list[Loss]:
    """End an agent under packets both ways, start it again, and return what was lost."""
    with Flow(here, there, rate) as out, Flow(there, here, rate) as back:
        flows = out, back
        until(lambda: min(flow.received for flow in flows) > 1000, 20, "packets arrive")
        end()
        mark = out.sent
        until(lambda: out.sent > mark + 1000, 20, "packets are sent without an agent")
        agent.start()
        agent.wait_ready()
        mark = out.sent
        until(lambda: out.sent > mark + 500, 20, "packets are sent with the next")
        until_on_time(flows)
        return [flow.stop() for flow in flows]


def until_on_time(flows: Iterable[Flow]) -> None:
    """Wait until there has been sent what should have been: each says how many a second."""
    until(lambda: max(flow.late for flow in flows) < LATE_MAX, 20, "packets are sent on time")


class Overlay:
    """Hosts with members and agents. `with` starts and ends everything."""

    def __init__(
        self,
        hosts: int = 3,
        members: int = 1,
        flags: tuple[str, ...] = (),
        network: str = NETWORK,
        *,
        agents: int | None = None,
        server: str = "kvstore",
    ) -> None:
        """`agents` are on the first hosts; None: on all."""
        self.rig = Rig(hosts, ipv6="IPv6" in network, ipv4=NO_IPV4 not in network)
        self._count = hosts if agents is None else agents
        self._server = SERVERS[server]
        self._members = members
        self._flags = flags
        self._network = network
        self._stack = ExitStack()
        self.members: OnHosts
        self.agents: list[AgentProcess] = []

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.rig)
            hosts = self.rig.hosts
            self.members = self._stack.enter_context(self._server(hosts[: self._members]))
            self._stack.callback(self._stop_agents)
            self.ctl("init", self._network)
            for host in hosts[: self._count]:
                self.add_agent(host).start()
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
            stop_process(agent.process_socket)

    def add_agent(self, host: Host, *flags: str) -> AgentProcess:
        """Prepare one more agent; it is not started."""
        agent = AgentProcess(
            host, self.members.endpoints, self.members.folder, *self._flags, *flags
        )
        self.agents.append(agent)
        return agent

    def add_container(self, agent: AgentProcess) -> Container:
        """Put a container behind an agent's host, as subnet.env says."""
        first, second = agent.subnets
        return agent.host.add_container(first, mtu=agent.mtu, subnet6=second)

    def add_containers(self, each: int = 2) -> list[Container]:
        """Put containers behind every host with an agent."""
        for agent in self.agents:
            for _ in range(each):
                self.add_container(agent)
        return self.rig.containers

    def everybody_answers(self) -> bool:
        """Tell whether every container answers every other."""
        containers = self.rig.containers
        return None not in ping_all(mesh(containers) + mesh6(containers), timeout_s=0.2)

    def kvctl(self, *arguments: str) -> str:
        """Run a command of an etcd client on the first host. Raises CommandError."""
        return self.rig.hosts[0].namespace.run(
            *(sys.executable, "-m", "kvstore.cli.kvctl"),
            *("--endpoints", ",".join(self.members.endpoints), *arguments),
        )

    def registered(self, below: str = "subnets/") -> dict[str, bytes]:
        """Return keys and values of the registry."""
        found = json.loads(self.kvctl("get", "--prefix", PREFIX + below, "-w", "json"))
        return {
            b64decode(kv["key"]).decode(): b64decode(kv.get("value", ""))
            for kv in found.get("kvs", ())
        }

    def peers(self) -> list[tuple[IPv4Network, str, str]]:
        """Return subnet, MAC and address of every lease, read from its bytes."""
        found = []
        for key, value in self.registered().items():
            attributes = json.loads(value)
            subnet = IPv4Network(key.removeprefix(PREFIX + "subnets/").replace("-", "/"))
            mac = attributes["BackendData"]["VtepMAC"]
            found.append((subnet, mac, attributes["PublicIP"]))
        return found

    def put_leased(self, key: str, value: str, ttl_s: int = 86_400) -> None:
        """Write a key that goes with an etcd lease of its own."""
        granted = json.loads(self.kvctl("lease", "grant", str(ttl_s), "-w", "json"))
        self.kvctl("put", f"--lease={granted['ID']:x}", key, value)

    def second_agent(self, *flags: str) -> str:
        """Start another agent beside the first, which has to end by itself; return its log."""
        folder = self.members.folder / "second"
        folder.mkdir()
        second = AgentProcess(self.agents[0].host, self.members.endpoints, folder, *flags)
        second.start()
        try:
            second.ended()
        finally:
            if second.is_running:
                second.kill()
        return second.log()

    def reconfigure(self, network: str) -> None:
        """Replace the network's configuration, and start all agents anew."""
        self.ctl("init", network, "--force")
        for agent in self.agents:
            agent.terminate()
            agent.start()
        for agent in self.agents:
            agent.wait_ready()

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
