"""The members of a fault run: where they live, and what can be done to each; asserts nothing."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kvstore.client import Member
from kvstore.server.identity import parse_initial_cluster
from tests.cluster.faults.namespaces import Namespaces
from tests.cluster.faults.proxies import Proxies
from tests.net.namespaces import run
from tests.servers import START_TIMEOUT_S, Kvstore, free_ports

Network = Namespaces | Proxies


class Members(Kvstore):
    """A cluster whose network, disks and failpoints a test holds in its hands."""

    def __init__(
        self,
        nodes: int,
        network: Network,
        *,
        flags: tuple[str, ...] = (),
        wrappers: dict[int, list[str]] | None = None,
        small_disk: bool = False,
        bug: str = "",
    ) -> None:
        """Prepare; `with` starts the members.

        Args:
            nodes: How many.
            network: Started.
            flags: More flags of every member.
            wrappers: By member: what to start it with, besides.
            small_disk: Put each member's data on a tmpfs of its own (root, own mounts).
            bug: One of `planted.BUGS`, for runs that must fail.
        """
        super().__init__(nodes, ("--enable-failpoints", "--log-level", "info", *flags))
        if bug:
            self.command = (sys.executable, "-m", "tests.cluster.faults.planted", bug, "serve")
        self.network = network
        self.wrappers = wrappers or {}
        self.exits: dict[int, int] = {}
        """The exit codes of members that ended by themselves."""
        self.extra_environment: dict[int, dict[str, str]] = {}
        self._small_disk = small_disk
        self._listen_urls: list[str] = []

    def start(self) -> None:
        """Start all members and return when each serves."""
        network = self.network
        hosts = [network.host(index) for index in range(self.nodes)]
        if isinstance(network, Namespaces):
            self.endpoints = [f"{host}:2379" for host in hosts]
            self._listen_urls = self.peer_urls = [f"http://{host}:2380" for host in hosts]
        else:
            ports = free_ports(2 * self.nodes)
            self.endpoints = [f"{hosts[0]}:{port}" for port in ports[: self.nodes]]
            self._listen_urls = [f"http://{hosts[0]}:{port}" for port in ports[self.nodes :]]
            self.peer_urls = [f"http://{hosts[0]}:{port}" for port in network.ports]
            initial = ",".join(f"e{number + 1}={url}" for number, url in enumerate(self.peer_urls))
            ids = {
                member.id: self.peer_urls.index(member.peer_urls[0])
                for member in parse_initial_cluster(initial, "etcd-cluster")
            }
            network.know(ids, ports[self.nodes :])
        if self._small_disk:
            for index in range(self.nodes):
                self.disk(index).mkdir()
                # Two segments of the log and the store; the rest is what a test can fill.
                run("mount", "-t", "tmpfs", "-o", "size=160m", "none", str(self.disk(index)))
        for index in range(self.nodes):
            self.spawn(index)
        for index in range(self.nodes):
            self.wait(index)

    def stop(self) -> None:
        """End all members."""
        super().stop()
        if self._small_disk:
            for index in range(self.nodes):
                if self.disk(index).exists():
                    run("umount", str(self.disk(index)))

    def disk(self, index: int) -> Path:
        """Return the folder of a member's data."""
        return self.folder / f"e{index + 1}"

    def fill(self, index: int) -> None:
        """Leave no room on a member's disk."""
        with (self.disk(index) / "ballast").open("wb", buffering=0) as ballast:
            block = bytes(1 << 16)
            try:
                while True:
                    ballast.write(block)
            except OSError:
                pass  # full, which is the aim

    def free(self, index: int) -> None:
        """Give the room back."""
        (self.disk(index) / "ballast").unlink()

    def wrapper(self, index: int) -> list[str]:
        """Start members in their namespaces."""
        return [*self.network.wrapper(index), *self.wrappers.get(index, [])]

    def environment(self, index: int) -> dict[str, str]:
        """Give a member what a test wants it to find."""
        return self.extra_environment.get(index, {})

    def wipe(self, index: int) -> None:
        """Take everything that a dead member has stored."""
        shutil.rmtree(self.disk(index))

    def rejoin(self, index: int, member: Member) -> None:
        """Start a member without data that was added at the addresses of a removed one."""
        if isinstance(self.network, Proxies):
            self.network.know_also(member.member_id, index)
        self.join(index, range(self.nodes))
        self.wait(index)

    def start_only(self, index: int) -> None:
        """Start a member and do not wait: it may be about to die."""
        self.spawn(index)

    def peer_listen_url(self, index: int) -> str:
        """Listen behind the proxy, where there is one."""
        return self._listen_urls[index]

    def process(self, index: int) -> subprocess.Popen[bytes]:
        """Return a member's process."""
        return self._processes[index]

    def running(self) -> list[int]:
        """Return the members whose processes have not ended, and note how the others did."""
        for index, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                self.exits[index] = code
                del self._processes[index]
        return sorted(self._processes)

    def failpoint(self, index: int, point: str, action: str | None) -> None:
        """Set a failpoint of a running member over HTTP; None turns it off."""
        connection = http.client.HTTPConnection(*self.endpoints[index].split(":"), timeout=10)
        try:
            connection.request(
                "PUT" if action else "DELETE", f"/failpoints/{point}", body=action or ""
            )
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise RuntimeError(f"{point}={action}: {text}")
        except (ConnectionError, http.client.HTTPException):
            # Its log writes all the time: it may meet the point and end before it has answered.
            # Whoever asked for a panic sees by the process whether there was one.
            if action != "panic":
                raise
        finally:
            connection.close()

    def leader(self) -> int:
        """Return the index of the leader. By HTTP: gRPC takes badly to a second event loop."""
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            for index in list(self._processes):
                try:
                    if self.metric(index, "etcd_server_is_leader", timeout_s=1):
                        return index
                except (OSError, http.client.HTTPException):
                    continue  # dead, frozen or cut off: not the one
            time.sleep(0.02)
        raise AssertionError("no leader")

    def metric(self, index: int, name: str, timeout_s: float = 10) -> float:
        """Return one number of a member's metrics page."""
        host, _, port = self.endpoints[index].partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
        try:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        finally:
            connection.close()
        [line] = [line for line in page.splitlines() if line.startswith(name + " ")]
        return float(line.split()[1])

    def keep(self, target: Path) -> None:
        """Copy the members' logs to a folder that outlives this one."""
        target.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.log"):
            shutil.copy(path, target)
