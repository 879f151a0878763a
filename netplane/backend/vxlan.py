"""vxlan over either family, on the wire as Flannel's: a device, and three objects for each peer.

A peer's subnet is routed to its first address, which a permanent neighbour entry gives the peer's
MAC, which a forwarding entry gives the peer's host. So the kernel asks nobody anything. A network
of both families has two devices: what is IPv6 inside is IPv6 outside.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netplane.backend import (
    BackendError,
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
from netplane.netlink.messages import IPV6_BYTES
from netplane.netlink.objects import (
    Address,
    FdbEntry,
    KernelObject,
    Neighbour,
    Route,
    Sysctl,
    VxlanLink,
)
from netplane.subnet.family import VERSION6, Subnet, by_address, is_same
from netplane.subnet.family import Address as PublicAddress
from netplane.subnet.fields import vxlan
from netplane.subnet.jsontext import FormatError, lowered
from netplane.subnet.lease import Lease, Peers, packed_mac

OVERHEAD_BYTES = 50
"""Inner Ethernet 14, vxlan 8, UDP 8, IPv4 20."""

OVERHEAD6_BYTES = 70
"""IPv6 has 40 where IPv4 has 20. Flannel takes 50, and the kernel cuts its device to 70."""

MTU_MIN = 576
"""Of the device: below it, hosts need not take a packet in one piece (RFC 791)."""

MTU6_MIN = 1280
"""Below it, the kernel has no IPv6 on a device (RFC 8200)."""

PORT = 8472
"""Linux's and Flannel's, not the 4789 of RFC 7348."""

LOOSE = "2"


@dataclass(frozen=True, slots=True)
class VxlanConfig:
    """The network configuration's `Backend` object."""

    vni: int = 1
    port: int = PORT
    mtu: int = 0
    """Of the underlay; 0: the external interface's."""
    learning: bool = False
    gbp: bool = False
    direct_routing: bool = False

    @property
    def link(self) -> str:
        """The name of our device. It fits 15 characters for every VNI."""
        return f"np.{self.vni}"

    @property
    def link6(self) -> str:
        """The name of our device for IPv6."""
        return f"np6.{self.vni}"

    @property
    def flannels_link(self) -> str:
        """The name of Flannel's."""
        return f"flannel.{self.vni}"

    @property
    def flannels_link6(self) -> str:
        """The name of Flannel's for IPv6."""
        return f"flannel-v6.{self.vni}"

    @classmethod
    def parse(cls, backend: Mapping[str, object]) -> VxlanConfig:
        """Read the JSON object; keys match whatever their case, as Go's decoder has it.

        Raises:
            BackendError: a value has the wrong type or range.
        """
        try:
            given = vxlan(lowered(backend))
        except FormatError as error:
            raise BackendError(f"Backend: {error}") from error
        # Flannel takes 0 as "the kernel's".
        return cls(*given._replace(port=given.port or PORT))


@dataclass(frozen=True, slots=True)
class _Served:
    """What one peer comes to, without a look at the others."""

    objects: frozenset[KernelObject] = frozenset()
    mac: bytes = b""
    """Empty: none is used."""
    reason: str = ""


@dataclass(slots=True)
class _Plan:
    """The last plan, and what it was made of."""

    subnet: Subnet | None
    peers: Mapping[Subnet, Lease]
    served: dict[int, _Served]
    """By the ids of the leases."""
    planned: Planned
    macs: set[bytes]
    """In use, ours among them."""


def random_mac() -> str:
    """Return a MAC for a new host: unicast, locally administered."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")


def overhead_bytes(local: bytes) -> int:
    """Return how much smaller packets inside are, by the packed address that they leave with."""
    return OVERHEAD6_BYTES if len(local) == IPV6_BYTES else OVERHEAD_BYTES


def second_mac(mac: str) -> str:
    """Return the MAC of the device for IPv6 on a host with two: always the same, and another."""
    first, *rest = hashlib.sha256(f"IPv6 beside {mac}".encode()).digest()[:6]
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")


class VxlanBackend:
    """Plans the kernel objects of one host.

    Args:
        config: the network configuration's `Backend` object.
        network: the whole overlay.
        external: the interface to the other hosts. Its address is the source of our packets, which
            behind NAT differs from the PublicIP that peers send to.
        mac: of our device, the same after every restart: peers have it in their kernels.
        subnet_len: prefix length of the hosts' subnets; 0: Flannel's direct routes are not adopted.
        adopts_flannel: whether the device of Flannel becomes ours, and its direct routes do.
        blackhole: whether packets to addresses of our subnet that no container has end here, where
            they would otherwise leave by the default route.
    """

    type = "vxlan"

    def __init__(
        self,
        config: VxlanConfig,
        *,
        network: Subnet,
        external: External,
        mac: str,
        subnet_len: int = 0,
        adopts_flannel: bool = False,
        blackhole: bool = False,
    ) -> None:
        self.config = config
        self.mac = mac.lower()
        is_ipv6 = network.version == VERSION6
        overhead = overhead_bytes(external.address.ip.packed)
        least = MTU6_MIN if is_ipv6 else MTU_MIN
        self.mtu = (config.mtu or external.mtu) - overhead
        if self.mtu < least:
            raise BackendError(
                f"MTU {self.mtu + overhead} leaves {self.mtu} bytes inside vxlan; at least"
                f" {least + overhead} are needed"
            )
        if packed_mac(mac) is None:
            raise BackendError(f"{mac} is no unicast MAC address")
        self.link = config.link6 if is_ipv6 else config.link
        flannels_link = config.flannels_link6 if is_ipv6 else config.flannels_link
        self.scope = Scope(
            self.link,
            external.name,
            ((network.network_address.packed, network.prefixlen),),
            flannels_link if adopts_flannel else "",
            subnet_len if adopts_flannel and config.direct_routing else 0,
        )
        self._external = external
        self._blackhole = blackhole
        direct = [external.name] if config.direct_routing else []
        self._last = _Plan(None, Peers({}), {}, Planned(Objects(), {}), set())
        self._own: frozenset[KernelObject] = frozenset(
            {
                VxlanLink(
                    name=self.link,
                    vni=config.vni,
                    parent=external.name,
                    local=external.address.ip.packed,
                    port=config.port,
                    mtu=self.mtu,
                    mac=bytes.fromhex(mac.replace(":", "")),
                    learning=config.learning,
                    gbp=config.gbp,
                ),
                *forwarding_of(network, external, self.link, *direct),
                *_settings(network, self.link),
            }
        )

    def lease_data(self) -> dict[str, object]:
        """Return the BackendData of our own lease."""
        return {"VNI": self.config.vni, "VtepMAC": self.mac}

    def plan(self, subnet: Subnet, peers: Mapping[Subnet, Lease]) -> Planned:
        """Return all objects that serve these peers, our own link and address among them.

        Of two peers with one MAC the older is served: the kernel holds one destination for each.
        """
        # One peer of a thousand has changed, as a rule.
        last = self._last
        came, gone = Peers.changed(last.peers, peers)
        served, macs = last.served, last.macs
        goes_on = (
            last.subnet is not None and is_same(last.subnet, subnet) and not last.planned.refused
        )
        before, after = set[KernelObject](), set[KernelObject]()
        for peer in gone:
            one = served.pop(id(peer))
            macs.discard(one.mac)
            before |= one.objects
        for peer in came:
            one = served[id(peer)] = self._serve(peer)
            goes_on = goes_on and not one.reason and one.mac not in macs
            if goes_on:
                after |= one.objects
                if one.mac:
                    macs.add(one.mac)
        if goes_on:
            step = Step.of(last.planned.objects, before, after)
            planned = Planned(step.objects, {}, _vteps(last, peers, came, gone), step)
        else:
            planned, macs = self._planned(subnet, peers, served)
        self._last = _Plan(subnet, peers, served, planned, macs)
        return planned

    def _planned(
        self, subnet: Subnet, peers: Mapping[Subnet, Lease], served: Mapping[int, _Served]
    ) -> tuple[Planned, set[bytes]]:
        """Look at all peers. Returns the MACs that are in use, too."""
        objects: set[KernelObject] = set(self._own)
        objects.add(Address(self.link, subnet.network_address.packed, subnet.max_prefixlen))
        if self._blackhole:
            objects.add(blackhole_of(subnet))
        refused: dict[str, str] = {}
        owners: dict[bytes, Lease | None] = {packed_mac(self.mac) or b"": None}
        for peer in sorted(peers.values(), key=_by_age):
            one = served[id(peer)]
            reason = one.reason
            if one.mac and one.mac in owners:
                owner = owners[one.mac]
                whose = "us" if owner is None else owner.subnet
                reason = f"its VtepMAC {one.mac.hex(':')} is also that of {whose}"
            if reason:
                refused[str(peer.subnet)] = reason
                continue
            if one.mac:
                owners[one.mac] = peer
            objects.update(one.objects)
        vteps = frozenset(peer.public_ip for peer in peers.values())
        return Planned(Objects(objects), refused, vteps), set(owners)

    def _serve(self, peer: Lease) -> _Served:
        gateway, host = peer.subnet.network_address.packed, peer.public_ip.packed
        length, metric = peer.subnet.prefixlen, metric_of(peer.subnet)
        if self._is_direct(peer):
            direct = Route(self._external.name, gateway, length, host, metric=metric)
            return _Served(frozenset({direct}))
        reason, mac = self._vtep(peer)
        if reason:
            return _Served(reason=reason)
        return _Served(
            frozenset(
                {
                    Neighbour(self.link, gateway, mac),
                    FdbEntry(self.link, mac, host),
                    Route(self.link, gateway, length, gateway, onlink=True, metric=metric),
                }
            ),
            mac,
        )

    def _is_direct(self, peer: Lease) -> bool:
        return (
            self.config.direct_routing
            and peer.backend_type == self.type
            and peer.public_ip in self._external.address.network
        )

    def _vtep(self, peer: Lease) -> tuple[str, bytes]:
        """Return why a peer cannot be served, or "" and its MAC."""
        if reason := other_backend(peer, self.type):
            return reason, b""
        data = peer.backend_data
        if not isinstance(data, Mapping):
            return "it has no BackendData", b""
        given = {str(key).lower(): value for key, value in data.items()}
        # Older Flannel writes only the MAC.
        vni = given.get("vni", self.config.vni)
        if vni != self.config.vni:
            return f"its VNI is {vni}, ours {self.config.vni}", b""
        mac = packed_mac(given.get("vtepmac"))
        if mac is None:
            return f"its VtepMAC {given.get('vtepmac')!r} is no unicast MAC address", b""
        return "", mac


def _by_age(peer: Lease) -> tuple[int, int, int, int]:
    # Subnets compare, too, in ten times the time.
    return peer.create_revision, *by_address(peer.subnet)


def _settings(network: Subnet, link: str) -> list[Sysctl]:
    """Return the settings of our own device."""
    if network.version == VERSION6:
        # On hosts where new devices are to have no IPv6, or where they listen to routers.
        place = f"ipv6/conf/{link}"
        return [Sysctl(f"{place}/disable_ipv6", "0"), Sysctl(f"{place}/accept_ra", "0")]
    # Strict filtering drops what comes in from a host whose route is not yet there.
    # 0 would not switch it off: the kernel takes the higher one of this and `all`.
    return [Sysctl(f"ipv4/conf/{link}/rp_filter", LOOSE)]


def _vteps(
    last: _Plan, peers: Mapping[Subnet, Lease], came: Iterable[Lease], gone: Iterable[Lease]
) -> frozenset[PublicAddress]:
    """Return the hosts of all leases, going on from the last ones; see `VxlanBackend.plan`."""
    found = last.planned.vteps
    if len(found) != len(last.peers):  # one of two that have it may have gone
        return frozenset(peer.public_ip for peer in peers.values())
    if gone:
        found = found.difference([peer.public_ip for peer in gone])
    return found.union([peer.public_ip for peer in came]) if came else found
