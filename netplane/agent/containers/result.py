"""What ADD returns, in the format of each version of CNI: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any

CONTAINER = 2
"""Which of the interfaces is the container's."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What was made."""

    bridge: str
    bridge_mac: str
    link: str
    """The host's end."""
    link_mac: str
    ifname: str
    mac: str
    """Of the container's end."""
    netns: str
    mtu: int
    address: IPv4Interface
    gateway: str
    is_default: bool
    """Whether the container has its default route here."""


def render(attached: Attached, version: str, dns: object) -> Mapping[str, Any]:
    """Return a result of one version."""
    interfaces: list[dict[str, Any]] = [
        {"name": attached.bridge, "mac": attached.bridge_mac},
        {"name": attached.link, "mac": attached.link_mac},
        {"name": attached.ifname, "mac": attached.mac, "sandbox": attached.netns},
    ]
    ip: dict[str, Any] = {
        "address": str(attached.address),
        "gateway": attached.gateway,
        "interface": CONTAINER,
    }
    if version.startswith("0."):
        ip["version"] = "4"
    if version not in {"0.3.1", "0.4.0", "1.0.0"}:
        for interface in interfaces:
            interface["mtu"] = attached.mtu
    routes = [{"dst": "0.0.0.0/0", "gw": attached.gateway}] if attached.is_default else []
    return {
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": [ip],
        "routes": routes,
        "dns": dns if isinstance(dns, dict) else {},
    }
