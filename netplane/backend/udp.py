"""udp over IPv4, on the wire as Flannel's: all packets for others go through a process of ours.

The process (`netplane.udp`) makes the device and keeps it; planned here is what lies on it, and
what the process is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network

from netplane.backend import FORWARDING, BackendError, External, Planned, Scope, blackhole_of
from netplane.netlink.objects import Address, KernelObject, Route
from netplane.subnet.fields import number
from netplane.subnet.jsontext import FormatError, lowered
from netplane.subnet.lease import Lease

OVERHEAD_BYTES = 28
"""UDP 8, IPv4 20."""

MTU_MIN = 576
PORT = 8285
"""Flannel's."""


class UdpBackend:
    """Plans the kernel objects of one host, and the peers of its process.

    Args:
        backend: the network configuration's `Backend` object.
        network: the whole overlay.
        external: the interface to the other hosts. Its address is the source of our packets.
        blackhole: whether packets to addresses of our subnet that no container has end here, where
            they would otherwise go to the process, which knows nobody who has them.
    """

    type = "udp"

    def __init__(
        self,
        backend: Mapping[str, object],
        *,
        network: IPv4Network,
        external: External,
        blackhole: bool = False,
    ) -> None:
        self.port = parse_port(backend)
        self.mtu = external.mtu - OVERHEAD_BYTES
        if self.mtu < MTU_MIN:
            raise BackendError(
                f"MTU {external.mtu} of {external.name} leaves {self.mtu} bytes inside of UDP; at"
                f" least {MTU_MIN + OVERHEAD_BYTES} are needed"
            )
        self.link = f"npu.{self.port}"
        self.address = str(external.address.ip)
        packed, length = network.network_address.packed, network.prefixlen
        self.scope = Scope(self.link, external.name, ((packed, length),))
        self._network = network
        self._blackhole = blackhole

    def lease_data(self) -> None:
        """Return the BackendData of our own lease: none, as Flannel's."""

    def plan(self, subnet: IPv4Network, peers: Mapping[IPv4Network, Lease]) -> Planned:
        """Return what lies on the device, and whom the process is told of.

        One route serves all peers, so they make no kernel objects.
        """
        packed, length = self._network.network_address.packed, self._network.prefixlen
        objects: set[KernelObject] = {
            FORWARDING,
            Address(self.link, subnet.network_address.packed, 32),
            Route(self.link, packed, length, b""),
        }
        if self._blackhole:
            objects.add(blackhole_of(subnet))
        refused: dict[str, str] = {}
        told: list[tuple[str, str, int]] = []
        for peer in peers.values():
            if peer.backend_type in {"", self.type}:
                told.append((str(peer.subnet), str(peer.public_ip), self.port))
            else:
                refused[str(peer.subnet)] = f"its backend is {peer.backend_type}, ours {self.type}"
        return Planned(frozenset(objects), refused, told=tuple(told))


def parse_port(backend: Mapping[str, object]) -> int:
    """Read the only field that there is. Raises BackendError."""
    try:
        # Flannel takes 0 as the default.
        return number(lowered(backend), "Port", 0, 65535) or PORT
    except FormatError as error:
        raise BackendError(f"Backend: {error}") from error
