"""Hosts of one namespace each, on one cable; what they have, and what we do to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from netplane.agent.reconcile import Reconciler, Report
from netplane.backend import External, Planned
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.netlink.namespace import inside
from netplane.nft.table import KeptTable
from netplane.subnet.lease import Lease
from tests.net.namespaces import Namespace

NETWORK = IPv4Network("10.128.0.0/9")
UNDERLAY = IPv4Network("10.77.0.0/16")


class Host(Namespace):
    """One namespace, with `eth0` once it is joined to another."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.address = IPv4Interface((UNDERLAY[number], 16))
        self.subnet = IPv4Network((NETWORK.network_address + number * 256, 24))
        self.mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        super().__init__(f"host-{number}")
        # Whatever a fresh namespace starts with here: who needs it must switch it on.
        self.sysctl("ipv4/ip_forward", "0")
        self.sysctl("ipv4/conf/all/rp_filter", "1")

    def join(self, other: Host) -> None:
        """Lay a cable to another host."""
        self.run(
            "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", other.path
        )  # fmt: skip
        for host in (self, other):
            host.run("ip", "addr", "add", str(host.address), "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
        for host in (self, other):
            # The kernel finds out in its own time that the cable is in; tests compare texts.
            while (host.link("eth0") or {}).get("operstate") != "UP":
                pass  # each look is a process of its own, that is pause enough

    def do(self, *commands: str) -> None:
        """Run commands as one types them."""
        for command in commands:
            self.run(*command.split())

    # what `ip` and `bridge` say

    def routes(self) -> dict[str, tuple[str | None, str]]:
        """Return gateway and link by destination, of the routes with our protocol number."""
        found = self.json("ip", "-j", "route", "show", "proto", "181")
        return {item["dst"]: (item.get("gateway"), item["dev"]) for item in found}

    def neighbours(self, link: str = "np.1") -> dict[str, str]:
        """Return MAC by address."""
        found = self.json("ip", "-j", "neigh", "show", "dev", link, "nud", "permanent")
        return {item["dst"]: item["lladdr"] for item in found}

    def fdb(self, link: str = "np.1") -> dict[str, str]:
        """Return remote host by MAC."""
        found = self.json("bridge", "-j", "fdb", "show", "dev", link)
        return {item["mac"]: item["dst"] for item in found if "dst" in item}

    def link(self, name: str = "np.1") -> dict[str, Any] | None:
        links = self.json("ip", "-j", "-d", "link", "show")
        return next((item for item in links if item["ifname"] == name), None)

    def indices(self) -> dict[str, int]:
        """Return the links' indices by name."""
        return {item["ifname"]: item["ifindex"] for item in self.json("ip", "-j", "link")}

    def addresses(self, link: str = "np.1") -> list[str]:
        found = self.json("ip", "-j", "-4", "addr", "show", "dev", link)
        return [f"{a['local']}/{a['prefixlen']}" for item in found for a in item["addr_info"]]

    # what we do

    def backend(self, *, config: VxlanConfig | None = None, **options: Any) -> VxlanBackend:
        external = External("eth0", self.address, 1500)
        return VxlanBackend(
            config or VxlanConfig(), network=NETWORK, external=external, mac=self.mac, **options
        )

    def plan(self, peers: Mapping[IPv4Network, Lease], **options: Any) -> Planned:
        return self.backend(**options).plan(self.subnet, peers)

    def reconciler(self, **options: Any) -> Reconciler:
        return Reconciler(self.backend().scope, namespace=self.path, **options)


def lease(number: int, *, mac: str | None = None) -> Lease:
    """Return the lease of a host with this number."""
    return Lease(
        subnet=IPv4Network((NETWORK.network_address + number * 256, 24)),
        public_ip=IPv4Address(UNDERLAY[number]),
        backend_type="vxlan",
        backend_data={
            "VNI": 1,
            "VtepMAC": mac or f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        },
        create_revision=number,
    )


def peers(*numbers: int) -> dict[IPv4Network, Lease]:
    return {item.subnet: item for item in map(lease, numbers)}


def assert_serves(host: Host, *numbers: int) -> None:
    """The kernel has what these peers need, and nothing of any other peer."""
    wanted = [lease(number) for number in numbers]
    gateways = [str(item.subnet.network_address) for item in wanted]
    macs = [item.backend_data["VtepMAC"] for item in wanted]  # type: ignore[index]
    assert host.routes() == {
        str(item.subnet): (gateway, "np.1") for item, gateway in zip(wanted, gateways, strict=True)
    }
    assert host.neighbours() == dict(zip(gateways, macs, strict=True))
    assert host.fdb() == {mac: str(item.public_ip) for mac, item in zip(macs, wanted, strict=True)}
    assert host.addresses() == [f"{host.subnet.network_address}/32"]


def kinds(items: tuple[object, ...]) -> dict[str, int]:
    """Count objects by class."""
    names = [type(item).__name__ for item in items]
    return {name: names.count(name) for name in sorted(set(names))}


def clean(report: Report) -> Report:
    """Return the report if nothing failed."""
    assert report.failed == ()
    assert report.contested == ()
    return report


def arrives(sender: Host, receiver: Host, *, wait_s: float = 2.0) -> bool:
    """Send a packet from the overlay address of one host to that of another."""

    def listening() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((str(receiver.subnet.network_address), 0))
        opened.settimeout(wait_s)
        return opened

    with (
        inside(receiver.path, listening) as target,
        inside(sender.path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as source,
    ):
        source.bind((str(sender.subnet.network_address), 0))
        try:
            source.sendto(b"probe", target.getsockname())
            data, address = target.recvfrom(100)
        except (TimeoutError, OSError):
            return False
    return data == b"probe" and address[0] == str(sender.subnet.network_address)


@contextlib.asynccontextmanager
async def running(kept: Reconciler | KeptTable) -> AsyncIterator[None]:
    """Let it heal meanwhile; that it ends by itself fails the test."""
    task = asyncio.create_task(kept.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
