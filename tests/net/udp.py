"""`netplane-udp` on simulated hosts, fed by hand: what an agent does for it, without an agent."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Self

from netplane.udp.control import MESSAGE_BYTES_MAX, Config, answer, encode, make_socket
from tests.net.handmade import subnet_of
from tests.net.rig import Host, Rig

ROOT = Path(__file__).parents[2]
NETWORK = IPv4Network("10.5.0.0/16")
PORT = 8285
MTU = 1472
DEVICE = "npu.8285"


class UdpHost:
    """A host with a process; its subnet is `handmade.subnet_of`."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.subnet = subnet_of(host)
        self.path = str(folder / f"{host.name}.udp")
        self.config = Config(DEVICE, MTU, host.address, PORT, str(self.subnet))

    def start(self, *flags: str, version: str = "") -> None:
        """Start it; it moves packets when this returns."""
        config = self.config
        program = ["-m", "netplane.udp"]
        if version:
            code = f"import netplane.udp.process as p; p.__version__ = {version!r}; p.main()"
            program = ["-c", code]
        self.host.namespace.run(
            *("env", f"PYTHONPATH={ROOT}", sys.executable, *program, "--socket", self.path),
            *("--device", config.device, "--mtu", str(config.mtu), "--address", config.address),
            *("--port", str(config.port), "--subnet", config.subnet, *flags),
        )

    def give_routes(self) -> None:
        """Do what the agent does in the kernel."""
        self.host.namespace.sysctl("ipv4.ip_forward", "1")
        self.host.namespace.ip(
            f"addr replace {self.subnet.network_address}/32 dev {DEVICE}",
            f"route replace {NETWORK} dev {DEVICE}",
        )

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Return its answer. Raises ControlError, OSError."""
        with make_socket() as asking:
            asking.settimeout(10)
            asking.connect(self.path)
            asking.send(encode({"ask": what, **more}))
            return answer(asking.recv(MESSAGE_BYTES_MAX))

    def tell_peers(self, others: Sequence[UdpHost]) -> None:
        """Make it know these hosts."""
        told = [[str(one.subnet), one.host.address, PORT] for one in others if one is not self]
        self.ask("peers", peers=told)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        found: int = self.ask("hello")["pid"]
        return found

    def stop(self) -> None:
        """End it, if there is one, and wait for that."""
        with make_socket() as asking:
            asking.settimeout(10)
            try:
                asking.connect(self.path)
            except OSError:
                return
            asking.send(encode({"ask": "stop"}))
            while asking.recv(MESSAGE_BYTES_MAX):
                pass


class UdpOverlay:
    """Hosts joined by processes, a container behind each. `with` starts and ends everything."""

    def __init__(self, hosts: int, containers: int = 1) -> None:
        self.rig = Rig(hosts)
        self.hosts: list[UdpHost] = []
        self._containers = containers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.rig)
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="udp-"))
            for host in self.rig.hosts:
                made = UdpHost(host, Path(folder))
                self._stack.callback(made.stop)
                made.start()
                made.give_routes()
                for _ in range(self._containers):
                    host.add_container(made.subnet, mtu=MTU)
                self.hosts.append(made)
            for made in self.hosts:
                made.tell_peers(self.hosts)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def start_foreground(host: UdpHost) -> subprocess.Popen[bytes]:
    """Start a process as a child, for who wants to see its end."""
    config = host.config
    return subprocess.Popen(
        host.host.namespace.command(
            *(sys.executable, "-m", "netplane.udp", "--foreground", "--socket", host.path),
            *("--device", config.device, "--mtu", str(config.mtu), "--address", config.address),
            *("--port", str(config.port), "--subnet", config.subnet),
        ),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env=os.environ,
    )
