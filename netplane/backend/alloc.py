"""Leases only: every host has a subnet of its own, and others see to how packets get there."""

from __future__ import annotations

from collections.abc import Mapping

from netplane.backend import External, Objects, Planned, Scope, blackhole_of, forwarding_of
from netplane.netlink.objects import KernelObject
from netplane.subnet.family import Subnet
from netplane.subnet.lease import Lease


class AllocBackend:
    """Plans what a host needs for its own containers, and nothing for any peer.

    Args:
        network: all subnets are in it.
        external: the interface to the other hosts.
        blackhole: whether packets to addresses of our subnet that no container has end here.
    """

    type = "alloc"

    def __init__(self, *, network: Subnet, external: External, blackhole: bool = False) -> None:
        self.mtu = external.mtu
        self.scope = Scope(
            "", external.name, ((network.network_address.packed, network.prefixlen),)
        )
        self._external = external
        self._blackhole = blackhole

    def lease_data(self) -> None:
        """Return the BackendData of our own lease: none, as Flannel's."""

    def plan(self, subnet: Subnet, peers: Mapping[Subnet, Lease]) -> Planned:
        """Return what our own subnet needs; no peer is refused, as none is served."""
        own: set[KernelObject] = set(forwarding_of(subnet, self._external))
        if self._blackhole:
            own.add(blackhole_of(subnet))
        return Planned(Objects(own), {})
