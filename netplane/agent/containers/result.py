"""What ADD returns, in the format of each version of CNI: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netplane.agent.containers.addresses import gateway
from netplane.agent.containers.call import LISTS
from netplane.subnet.family import VERSION6, Interface

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
    addresses: tuple[Interface, ...]
    defaults: tuple[Interface, ...]
    """Those whose family has its default route here."""


def render(attached: Attached, version: str, dns: object) -> Mapping[str, Any]:
    """Return a result of one version."""
    interfaces: list[dict[str, Any]] = [
        {"name": attached.bridge, "mac": attached.bridge_mac},
        {"name": attached.link, "mac": attached.link_mac},
        {"name": attached.ifname, "mac": attached.mac, "sandbox": attached.netns},
    ]
    ips: list[dict[str, Any]] = [
        {
            "address": str(one),
            "gateway": _gateway(one),
            "interface": CONTAINER,
            **({"version": str(one.version)} if version.startswith("0.") else {}),
        }
        for one in attached.addresses
    ]
    if version not in {"0.3.1", "0.4.0", "1.0.0"}:
        for interface in interfaces:
            interface["mtu"] = attached.mtu
    routes = [
        {"dst": "::/0" if one.version == VERSION6 else "0.0.0.0/0", "gw": _gateway(one)}
        for one in attached.defaults
    ]
    return {
        "cniVersion": version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": dns if isinstance(dns, dict) else {},
    }


def behind(earlier: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a result with that of the plugins before this one in front, if there are any."""
    if not earlier:
        return result
    before = {name: earlier.get(name) or [] for name in LISTS}
    moved = len(before["interfaces"])
    ips = [one | {"interface": one["interface"] + moved} for one in result["ips"]]
    return {
        **result,
        "interfaces": [*before["interfaces"], *result["interfaces"]],
        "ips": [*before["ips"], *ips],
        "routes": [*before["routes"], *result["routes"]],
        "dns": result["dns"] or earlier.get("dns") or {},
    }


def _gateway(address: Interface) -> str:
    return str(gateway(address.network).ip)
