"""Which address of the host's subnet a container gets: pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

FIRST = 2
"""The network's own address and the gateway come before it."""


def gateway(subnet: IPv4Network) -> IPv4Interface:
    """Return the address that the bridge has, as in subnet.env."""
    return IPv4Interface((subnet.network_address + 1, subnet.prefixlen))


def capacity(subnet: IPv4Network) -> int:
    """Return how many containers there can be."""
    return max(0, subnet.num_addresses - FIRST - 1)


def choose(
    subnet: IPv4Network, used: Mapping[IPv4Address, object], last: IPv4Address | None
) -> IPv4Address | None:
    """Return the next free address after the last that was given out; None: all are in use.

    In turn, so that one that is given back is not somebody else's at once: others may still send
    there, and names may still lead there.
    """
    count = capacity(subnet)
    offset = 0
    if last is not None and last in subnet:
        offset = int(last) - int(subnet.network_address) - FIRST + 1
    for step in range(count):
        candidate = subnet[FIRST + (offset + step) % count]
        if candidate not in used:
            return candidate
    return None


def objection(subnet: IPv4Network, used: Mapping[IPv4Address, object], wanted: IPv4Address) -> str:
    """Say why a container cannot have an address that it asks for; empty: it can."""
    if wanted not in subnet:
        return f"{wanted} is not in this host's subnet {subnet}"
    offset = int(wanted) - int(subnet.network_address)
    if offset < FIRST or offset >= subnet.num_addresses - 1:
        return f"{wanted} is of the subnet {subnet} itself, no container can have it"
    holder = used.get(wanted)
    return "" if holder is None else f"{wanted} is in use by {holder}"
