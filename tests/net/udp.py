"""`netplane-udp` on simulated hosts, fed by hand: what an agent does for it, without an agent."""

from __future__ import annotations

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
MTU, SEALED_MTU = 1472, 1436
DEVICE = "npu.8285"


def start_process(
    host: Host, path: str | Path, config: Config, *flags: str, version: str = ""
) -> None:
    """Start a process, if need be of another version; it moves packets when this returns."""
    program = ["-m", "netplane.udp"]
    if version:
        code = f"import netplane.udp.process as p; p.__version__ = {version!r}; p.main()"
        program = ["-c", code]
    host.namespace.run(
        *("env", f"PYTHONPATH={ROOT}", sys.executable, *program, "--socket", str(path)),
        *("--device", config.device, "--mtu", str(config.mtu), "--address", config.address),
        *("--port", str(config.port), "--subnet", config.subnet, *flags),
        *(("--sealed",) if config.sealed else ()),
    )


def ask_process(path: str | Path, what: str, **more: Any) -> dict[str, Any]:
    """Return the answer of a process. Raises ControlError, OSError."""
    with make_socket() as asking:
        asking.settimeout(10)
        asking.connect(str(path))
        asking.send(encode({"ask": what, **more}))
        return answer(asking.recv(MESSAGE_BYTES_MAX))


def stop_process(path: str | Path) -> None:
    """End the process that listens there, if there is one, and wait for that."""
    with make_socket() as asking:
        asking.settimeout(10)
        try:
            asking.connect(str(path))
        except OSError:
            return
        asking.send(encode({"ask": "stop"}))
        while asking.recv(MESSAGE_BYTES_MAX):
            pass


class UdpHost:
    """A host with a process; its subnet is `handmade.subnet_of`."""

    def __init__(self, host: Host, folder: Path, *, sealed: bool = False) -> None:
        self.host = host
        self.subnet = subnet_of(host)
        self.path = str(folder / f"{host.name}.udp")
        mtu = SEALED_MTU if sealed else MTU
        self.config = Config(DEVICE, mtu, host.address, PORT, str(self.subnet), sealed)

    def start(self, *flags: str, version: str = "") -> None:
        """Start it; it moves packets when this returns."""
        start_process(self.host, self.path, self.config, *flags, version=version)

    def give_routes(self) -> None:
        """Do what the agent does in the kernel."""
        self.host.namespace.sysctl("ipv4.ip_forward", "1")
        self.host.namespace.ip(
            f"addr replace {self.subnet.network_address}/32 dev {DEVICE}",
            f"route replace {NETWORK} dev {DEVICE}",
        )

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Return its answer. Raises ControlError, OSError."""
        return ask_process(self.path, what, **more)

    def tell_peers(self, others: Sequence[UdpHost]) -> None:
        """Make it know these hosts."""
        told = [
            [str(one.subnet), one.host.address, PORT, one.key] for one in others if one is not self
        ]
        self.ask("peers", peers=told)

    @property
    def key(self) -> str:
        """Of the process that runs; nothing where packets are plain."""
        found: str = self.ask("hello")["key"]
        return found

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        found: int = self.ask("hello")["pid"]
        return found

    def stop(self) -> None:
        """End it, if there is one, and wait for that."""
        stop_process(self.path)


class UdpOverlay:
    """Hosts joined by processes, a container behind each. `with` starts and ends everything."""

    def __init__(self, hosts: int, containers: int = 1, *, sealed: bool = False) -> None:
        self.rig = Rig(hosts)
        self.hosts: list[UdpHost] = []
        self._containers = containers
        self._sealed = sealed
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.rig)
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="udp-"))
            for host in self.rig.hosts:
                made = UdpHost(host, Path(folder), sealed=self._sealed)
                self._stack.callback(made.stop)
                made.start()
                made.give_routes()
                for _ in range(self._containers):
                    host.add_container(made.subnet, mtu=made.config.mtu)
                self.hosts.append(made)
            for made in self.hosts:
                made.tell_peers(self.hosts)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
