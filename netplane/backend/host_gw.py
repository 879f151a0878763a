"""host-gw: a peer's subnet is routed to its host, which is on the same link; nothing is wrapped.

There is no device of ours. So all depends on the interface to the other hosts: routes through it go
without a word when it goes down or loses its address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netplane.backend import (
    External,
    Objects,
    Planned,
    Scope,
    Step,
    blackhole_of,
    forwarding_of,
    metric_of,
    other_backend,
)
from netplane.netlink.objects import KernelObject, Route, Uplink
from netplane.subnet.family import Subnet, is_same
from netplane.subnet.lease import Lease, Peers


@dataclass(frozen=True, slots=True)
class _Plan:
    """The last plan, and what it was made of."""

    subnet: Subnet | None
    peers: Mapping[Subnet, Lease]
    planned: Planned


class HostGwBackend:
    """Plans the kernel objects of one host.

    Args:
        network: the whole overlay.
        subnet_len: prefix length of the hosts' subnets.
        external: the interface to the other hosts.
        adopts_flannel: whether routes that Flannel has made become ours.
        blackhole: whether packets to addresses of our subnet that no container has end here.
    """

    type = "host-gw"

    def __init__(
        self,
        *,
        network: Subnet,
        subnet_len: int,
        external: External,
        adopts_flannel: bool = False,
        blackhole: bool = False,
    ) -> None:
        self.mtu = external.mtu
        self.scope = Scope(
            "",
            external.name,
            ((network.network_address.packed, network.prefixlen),),
            adopts_routes=subnet_len if adopts_flannel else 0,
        )
        self._external = external
        self._blackhole = blackhole
        self._last = _Plan(None, {}, Planned(Objects(), {}))

    def lease_data(self) -> None:
        """Return the BackendData of our own lease: none, as Flannel's."""

    def plan(self, subnet: Subnet, peers: Mapping[Subnet, Lease]) -> Planned:
        """Return all objects that serve these peers.

        No peer depends on another, so those that stayed the same since the last plan are not
        looked at again.
        """
        last = self._last
        if last.subnet is None or not is_same(last.subnet, subnet):
            last = _Plan(subnet, {}, self._own(subnet))
        came, left = Peers.changed(last.peers, peers)
        refused = last.planned.refused.copy()
        for peer in left:
            refused.pop(str(peer.subnet), None)
        served = []
        for peer in came:
            reason = self._why_not(peer)
            if reason:
                refused[str(peer.subnet)] = reason
            else:
                served.append(peer)
        since = last.planned.objects
        before = frozenset(route for route in map(self._route, left) if route in since)
        step = Step.of(since, before, frozenset(map(self._route, served)))
        planned = Planned(step.objects, refused, step=step)
        self._last = _Plan(subnet, peers, planned)
        return planned

    def _own(self, subnet: Subnet) -> Planned:
        """Return what is planned without peers."""
        objects: set[KernelObject] = {
            *forwarding_of(subnet, self._external, self._external.name),
            Uplink(self._external.name, self._external.address.ip.packed),
        }
        if self._blackhole:
            objects.add(blackhole_of(subnet))
        return Planned(Objects(objects), {})

    def _route(self, peer: Lease) -> Route:
        packed, length = peer.subnet.network_address.packed, peer.subnet.prefixlen
        metric = metric_of(peer.subnet)
        return Route(self._external.name, packed, length, peer.public_ip.packed, metric=metric)

    def _why_not(self, peer: Lease) -> str:
        """Return why a peer cannot be served, or ""."""
        if reason := other_backend(peer, self.type):
            return reason
        external = self._external
        link = external.address.network
        # A lone address tells nothing of who else is on the link; there the kernel knows by its
        # routes, and refuses what it cannot reach.
        if link.num_addresses == 1 or peer.public_ip in link:
            return ""
        return (
            f"its host {peer.public_ip} is not on the link of {external.name}"
            f" ({external.address}), and host-gw sends to neighbours only: connect it there, or"
            " take vxlan, with DirectRouting for those that are"
        )
