"""A registry's contents by hand, for the pure parts; asserts nothing."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

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


class Store:
    """Keys with their revisions. Host `n` has 10.5.n.0/24 and 192.0.2.n unless told otherwise."""

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

    def alive(self, host_id: str, session: str = "s1") -> Change:
        return self.put(self.layout.life(host_id), life_value(session), 8)

    def listing(self) -> Listing:
        return Listing(Head(self.cluster_id, self.revision), tuple(self.kvs.values()))

    def registered(self) -> Registered:
        registered = Registered(self.layout)
        registered.load(self.listing())
        return registered
