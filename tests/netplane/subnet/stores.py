"""A registry's contents by hand, for the pure parts; asserts nothing."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from netplane.subnet.family import Pair
from netplane.subnet.lease import encode_value
from netplane.subnet.records import HostRecord, Layout, Registered, life_value
from netplane.subnet.registry import Change, Head, KeyValue, Listing

LAYOUT = Layout("/net")
CLUSTER = 0xC1


def mac(number: int) -> str:
    """Return a host's MAC."""
    return f"0e:00:00:00:00:{number:02x}"


def vxlan(number: int, vni: int = 1) -> dict[str, Any]:
    """Return a host's BackendData."""
    return {"VNI": vni, "VtepMAC": mac(number)}


DUAL = {
    "EnableIPv6": True,
    "Network": "10.5.0.0/16",
    "IPv6Network": "fd00:5::/48",
    "Backend": {"Type": "vxlan"},
}
ONLY_IPV6 = {
    "EnableIPv4": False,
    "EnableIPv6": True,
    "IPv6Network": "fd00:5::/48",
    "Backend": {"Type": "vxlan"},
}


def mac6(number: int) -> str:
    """Return the MAC of a host's device of IPv6."""
    return f"0e:06:00:00:00:{number:02x}"


def vxlan6(number: int, vni: int = 1) -> dict[str, Any]:
    """Return a host's BackendV6Data."""
    return {"VNI": vni, "VtepMAC": mac6(number)}


def pair(number: int) -> Pair:
    """Return a host's subnets of both families."""
    return Pair(IPv4Network(f"10.5.{number}.0/24"), six(number))


def six(number: int) -> IPv6Network:
    """Return a host's IPv6 subnet."""
    return IPv6Network(f"fd00:5:0:{number:x}::/64")


def address6(number: int) -> IPv6Address:
    """Return a host's IPv6 address."""
    return IPv6Address(f"2001:db8::{number:x}")


class Store:
    """Keys with their revisions. Host `n` has 10.5.n.0/24 and 192.0.2.n unless told otherwise.

    In a network with IPv6 it has fd00:5:0:n::/64 and 2001:db8::n.
    """

    def __init__(self, config: dict[str, Any] | None = None, layout: Layout = LAYOUT) -> None:
        self.layout = layout
        self.cluster_id = CLUSTER
        self.revision = 1
        self.kvs: dict[bytes, KeyValue] = {}
        text = (
            {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}} if config is None else config
        )
        self.put(layout.config, json.dumps(text).encode(), 0)

    def put(self, key: bytes, value: bytes, lease_id: int = 7) -> Change:
        self.revision += 1
        known = self.kvs.get(key)
        created = self.revision if known is None else known.create_revision
        kv = self.kvs[key] = KeyValue(key, value, created, self.revision, lease_id)
        return Change(key, kv)

    def delete(self, key: bytes) -> Change:
        self.revision += 1
        del self.kvs[key]
        return Change(key, None)

    def lease(
        self, number: int, *, subnet: str = "", ip: str = "", kind: str = "vxlan",
        data: object = None, reserved: bool = False,
    ) -> Change:  # fmt: skip
        value = encode_value(
            IPv4Address(ip or f"192.0.2.{number}"), kind, vxlan(number) if data is None else data
        )
        return self.put(self.key(number, subnet), value, 0 if reserved else 7)

    def both(
        self, number: int, *, key: Pair | None = None, ip: str = "", ip6: str = "",
        data: object = None, data6: object = None, reserved: bool = False,
    ) -> Change:  # fmt: skip
        """Put a lease of both families."""
        value = encode_value(
            IPv4Address(ip or f"192.0.2.{number}"),
            "vxlan",
            vxlan(number) if data is None else data,
            IPv6Address(ip6) if ip6 else address6(number),
            vxlan6(number) if data6 is None else data6,
        )
        return self.put(self.layout.lease(*(key or pair(number))), value, 0 if reserved else 7)

    def only6(self, number: int, *, ip6: str = "", data6: object = None) -> Change:
        """Put a lease of IPv6 alone, as Flannel writes it."""
        address = IPv6Address(ip6) if ip6 else address6(number)
        value = encode_value(address, "vxlan", vxlan6(number) if data6 is None else data6)
        return self.put(self.layout.lease(six(number)), value)

    def key(self, number: int, subnet: str = "") -> bytes:
        return self.layout.lease(IPv4Network(subnet or f"10.5.{number}.0/24"))

    def host(
        self, host_id: str, number: int, *, session: str = "s1", ip: str = "", boot_id: str = "b"
    ) -> Change:
        record = HostRecord(
            host_id,
            IPv4Network(f"10.5.{number}.0/24"),
            IPv4Address(ip or f"192.0.2.{number}"),
            session,
            boot_id,
        )
        return self.put(self.layout.host(host_id), record.encode())

    def host_both(self, host_id: str, number: int, *, session: str = "s1") -> Change:
        record = HostRecord(
            host_id, pair(number).first, IPv4Address(f"192.0.2.{number}"), session, "b",
            subnet6=six(number), public_ip6=address6(number),
        )  # fmt: skip
        return self.put(self.layout.host(host_id), record.encode())

    def alive(self, host_id: str, session: str = "s1") -> Change:
        return self.put(self.layout.life(host_id), life_value(session), 8)

    def listing(self) -> Listing:
        return Listing(Head(self.cluster_id, self.revision), tuple(self.kvs.values()))

    def registered(self) -> Registered:
        registered = Registered(self.layout)
        registered.load(self.listing())
        return registered
