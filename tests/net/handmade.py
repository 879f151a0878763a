"""The overlay as an administrator would make it with `ip`: what ours is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

from tests.net.rig import Host

DEVICE = "hand.1"


def subnet_of(host: Host) -> IPv4Network:
    """Return the subnet that a host has here."""
    return IPv4Network(f"10.5.{host.number + 1}.0/24")


def mac_of(host: Host) -> str:
    """Return the MAC of a host's device."""
    return f"02:00:00:00:00:{host.number + 1:02x}"


def make_overlay(hosts: Sequence[Host], vni: int = 1, device: str = DEVICE) -> None:
    """Give every host a vxlan device, and a route, neighbour and FDB entry for each other."""
    for host in hosts:
        others = [other for other in hosts if other is not host]
        zero = subnet_of(host).network_address
        host.namespace.sysctl("ipv4.ip_forward", "1")
        host.namespace.ip(
            f"link add {device} address {mac_of(host)} mtu 1450 type vxlan id {vni} dev eth0 "
            f"local {host.address} dstport 8472 nolearning",
            f"addr add {zero}/32 dev {device}",
            f"link set {device} up",
        )
        for other in others:
            add_peer(host, other, device)


def add_peer(host: Host, other: Host, device: str = DEVICE) -> None:
    """Make one host reach the containers of another."""
    zero = subnet_of(other).network_address
    host.namespace.ip(
        f"neigh replace {zero} lladdr {mac_of(other)} dev {device} nud permanent",
        f"route replace {subnet_of(other)} via {zero} dev {device} onlink",
    )
    host.namespace.bridge(
        f"fdb replace {mac_of(other)} dev {device} dst {other.address} self permanent"
    )
