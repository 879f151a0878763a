"""The overlay as an administrator would make it with `ip`: what ours is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from tests.net.rig import Host

DEVICE = "hand.1"


def subnet_of(host: Host) -> IPv4Network:
    """Return the subnet that a host has here."""
    return IPv4Network(f"10.5.{host.number + 1}.0/24")


def mac_of(host: Host) -> str:
    """Return the MAC of a host's device."""
    return f"02:00:00:00:00:{host.number + 1:02x}"


def make_device(
    host: Host, subnet: IPv4Network, mac: str, *, device: str = DEVICE, vni: int = 1
) -> None:
    """Give a host a vxlan device, and the address that others route its subnet by."""
    host.namespace.sysctl("ipv4.ip_forward", "1")
    host.namespace.ip(
        f"link add {device} address {mac} mtu 1450 type vxlan id {vni} dev eth0 "
        f"local {host.address} dstport 8472 nolearning",
        f"addr add {subnet.network_address}/32 dev {device}",
        f"link set {device} up",
    )


def reach(host: Host, subnet: IPv4Network, mac: str, address: str, *, device: str = DEVICE) -> None:
    """Let a host reach the subnet of another: route, neighbour and forwarding entry."""
    zero = subnet.network_address
    host.namespace.ip(
        f"neigh replace {zero} lladdr {mac} dev {device} nud permanent",
        f"route replace {subnet} via {zero} dev {device} onlink",
    )
    host.namespace.bridge(f"fdb replace {mac} dev {device} dst {address} self permanent")


def make_overlay(hosts: Sequence[Host], vni: int = 1, device: str = DEVICE) -> None:
    """Give every host a vxlan device, and a route, neighbour and FDB entry for each other."""
    for host in hosts:
        make_device(host, subnet_of(host), mac_of(host), device=device, vni=vni)
        for other in hosts:
            if other is not host:
                add_peer(host, other, device)


def add_peer(host: Host, other: Host, device: str = DEVICE) -> None:
    """Make one host reach the containers of another."""
    reach(host, subnet_of(other), mac_of(other), other.address, device=device)


@dataclass(frozen=True)
class FlannelHost:
    """A host of Flannel's: what Flannel would write into kernel and registry, written by hand."""

    host: Host
    subnet: IPv4Network
    mac: str
    device: str = "flannel.1"

    @property
    def key(self) -> str:
        """The key of its lease."""
        return f"/coreos.com/network/subnets/{self.subnet.network_address}-{self.subnet.prefixlen}"

    @property
    def value(self) -> str:
        """The value, byte for byte as in Flannel's documentation."""
        return flannel_value(self.host.address, self.mac)

    def make(self, peers: Iterable[tuple[IPv4Network, str, str]]) -> None:
        """Make the device, and the way to each peer's subnet, MAC and address."""
        make_device(self.host, self.subnet, self.mac, device=self.device)
        for subnet, mac, address in peers:
            reach(self.host, subnet, mac, address, device=self.device)


def flannel_value(address: str, mac: str) -> str:
    """Return a lease's value as Flannel's vxlan backend writes it."""
    return (
        f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":'
        f'{{"VNI":1,"VtepMAC":"{mac}"}}}}'
    )
