"""Which addresses of the host's subnets a container gets: pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_interface

from netplane.subnet.family import VERSION6, Address, Interface, Subnet

FIRST = 2
"""The network's own address and the gateway come before it."""


def gateway(subnet: Subnet) -> Interface:
    """Return the address that the bridge has, as in subnet.env."""
    return within(subnet, subnet.network_address + 1)


def within(subnet: Subnet, address: Address) -> Interface:
    """Return an address with the length of its subnet."""
    return ip_interface(f"{address}/{subnet.prefixlen}")


def capacity(subnet: Subnet) -> int:
    """Return how many containers there can be."""
    return max(0, _end(subnet) - FIRST)


def _end(subnet: Subnet) -> int:
    # In IPv4 the last address is everybody's.
    return subnet.num_addresses - (0 if subnet.version == VERSION6 else 1)


def choose(subnet: Subnet, used: Mapping[Address, object], last: Address | None) -> Address | None:
    """Return the next free address after the last that was given out; None: all are in use.

    In turn, so that one that is given back is not somebody else's at once: others may still send
    there, and names may still lead there. Looks at one more than are in use, however many there
    are.
    """
    count = capacity(subnet)
    offset = 0
    if last is not None and last in subnet:
        offset = int(last) - int(subnet.network_address) - FIRST + 1
    for step in range(min(count, len(used) + 1)):
        candidate = subnet[FIRST + (offset + step) % count]
        if candidate not in used:
            return candidate
    return None


def objection(subnet: Subnet, used: Mapping[Address, object], wanted: Address) -> str:
    """Say why a container cannot have an address that it asks for; empty: it can."""
    if wanted not in subnet:
        return f"{wanted} is not in this host's subnet {subnet}"
    offset = int(wanted) - int(subnet.network_address)
    if offset < FIRST or offset >= _end(subnet):
        return f"{wanted} is of the subnet {subnet} itself, no container can have it"
    holder = used.get(wanted)
    return "" if holder is None else f"{wanted} is in use by {holder}"
