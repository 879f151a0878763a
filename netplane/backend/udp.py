"""udp over IPv4, on the wire as Flannel's: all packets for others go through a process of ours.

The process (`netplane.udp`) makes the device and keeps it; planned here is what lies on it, and
what the process is told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from netplane.backend import (
    BackendError,
    External,
    Objects,
    Planned,
    Scope,
    ToldPeer,
    blackhole_of,
    forwarding_of,
    other_backend,
)
from netplane.netlink.objects import Address, KernelObject, Route
from netplane.subnet.family import Subnet
from netplane.subnet.fields import number
from netplane.subnet.jsontext import FormatError, lowered
from netplane.subnet.lease import Lease

OVERHEAD_BYTES = 28
"""UDP 8, IPv4 20."""

SEAL_BYTES = 36
"""Header 20, tag 16."""

_KEY = re.compile("[0-9a-f]{64}", re.ASCII)
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
    overhead_bytes = OVERHEAD_BYTES

    def __init__(
        self,
        backend: Mapping[str, object],
        *,
        network: Subnet,
        external: External,
        blackhole: bool = False,
    ) -> None:
        self.port = parse_port(backend)
        self.mtu = external.mtu - self.overhead_bytes
        if self.mtu < MTU_MIN:
            raise BackendError(
                f"MTU {external.mtu} of {external.name} leaves {self.mtu} bytes inside of UDP; at"
                f" least {MTU_MIN + self.overhead_bytes} are needed"
            )
        self.link = f"npu.{self.port}"
        self.address = str(external.address.ip)
        packed, length = network.network_address.packed, network.prefixlen
        self.scope = Scope(self.link, external.name, ((packed, length),))
        self._network = network
        self._external = external
        self._blackhole = blackhole

    def lease_data(self) -> None:
        """Return the BackendData of our own lease: none, as Flannel's."""

    def plan(self, subnet: Subnet, peers: Mapping[Subnet, Lease]) -> Planned:
        """Return what lies on the device, and whom the process is told of.

        One route serves all peers, so they make no kernel objects.
        """
        packed, length = self._network.network_address.packed, self._network.prefixlen
        objects: set[KernelObject] = {
            *forwarding_of(subnet, self._external, self.link),
            Address(self.link, subnet.network_address.packed, 32),
            Route(self.link, packed, length, b""),
        }
        if self._blackhole:
            objects.add(blackhole_of(subnet))
        refused: dict[str, str] = {}
        told: list[ToldPeer] = []
        for peer in peers.values():
            reason, key = self._key_of(peer)
            if reason:
                refused[str(peer.subnet)] = reason
            else:
                told.append((str(peer.subnet), str(peer.public_ip), self.port, key))
        return Planned(Objects(objects), refused, told=tuple(told))

    def _key_of(self, peer: Lease) -> tuple[str, str]:
        """Return why a peer cannot be served, or "" and its key, if it needs one."""
        return other_backend(peer, self.type), ""


class SealedUdpBackend(UdpBackend):
    """The same with packets that are encrypted between hosts; Flannel has none such.

    The key of each host's process is in its lease.
    """

    type = "netplane-udp"
    overhead_bytes = OVERHEAD_BYTES + SEAL_BYTES

    def _key_of(self, peer: Lease) -> tuple[str, str]:
        if reason := other_backend(peer, self.type):
            return reason, ""
        data = peer.backend_data
        key = data.get("PublicKey") if isinstance(data, Mapping) else None
        if key == "":
            return "its process has not told its key yet", ""
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            return f"its PublicKey {key!r} is no key", ""
        return "", key


def with_key(data: object, before: Lease) -> object:
    """Return data of our lease with the key that it has, where no other one is known yet.

    The process that has it may run and be out of reach, and others cannot do without its key.
    """
    if data != {"PublicKey": ""}:
        return data
    told = before.backend_data
    key = told.get("PublicKey") if isinstance(told, Mapping) else None
    return {"PublicKey": key} if isinstance(key, str) and _KEY.fullmatch(key) else data


def parse_port(backend: Mapping[str, object]) -> int:
    """Read the only field that there is. Raises BackendError."""
    try:
        # Flannel takes 0 as the default.
        return number(lowered(backend), "Port", 0, 65535) or PORT
    except FormatError as error:
        raise BackendError(f"Backend: {error}") from error
