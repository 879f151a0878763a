"""Rules for tests, and what `nft` says of them: the program, in a process of its own."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from netplane.nft.rules import Rules
from tests.net.kernel.hosts import Host

RULES = Rules(
    table="netplane",
    network=IPv4Network("10.128.0.0/9"),
    subnet=IPv4Network("10.128.1.0/24"),
    external="eth0",
    vxlan_port=8472,
    masquerade=True,
)


def vteps(*numbers: int) -> frozenset[IPv4Address]:
    """Return the addresses of hosts."""
    return frozenset(IPv4Address("10.77.0.0") + number for number in numbers)


def said(host: Host) -> str:
    """Return all that there is of nftables in a host, without counts."""
    return host.run("nft", "--stateless", "list", "ruleset")


def elements(host: Host, table: str = "netplane") -> set[str]:
    """Return what is in the set of a table."""
    found: dict[str, Any] = host.json("nft", "-j", "list", "set", "ip", table, "vteps")  # type: ignore[assignment]
    [members] = [entry["set"] for entry in found["nftables"] if "set" in entry]
    return set(members.get("elem", ()))
