"""What is drawn from an attachment: names, MACs, and what the kernel keeps of it. Pure."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Interface

from netplane.agent.containers.records import Key
from netplane.netlink.containers import ALIAS_BYTES_MAX

BRIDGE_PREFIX, PORT_PREFIX = "npb-", "npv"
NAME_MAX = 15
PORT_DIGITS = NAME_MAX - len(PORT_PREFIX)
ALIAS_MARK = "netplane"

_INSIDE, _OUTSIDE, _BRIDGE = b"\x02\x6e", b"\x02\x6f", b"\x02\x70"
"""Of the MACs on both ends and of the bridge: unicast, locally administered."""


def bridge_name(instance: str) -> str:
    """Return the name of an instance's bridge."""
    name = BRIDGE_PREFIX + instance
    if len(name) <= NAME_MAX:
        return name
    digest = hashlib.sha256(instance.encode()).hexdigest()
    return f"{name[: NAME_MAX - 5]}-{digest[:4]}"


def port_name(instance: str, key: Key) -> str:
    """Return the name of the host's end of an attachment."""
    digest = hashlib.sha256("\0".join((instance, *key)).encode()).hexdigest()
    return PORT_PREFIX + digest[:PORT_DIGITS]


def bridge_mac(instance: str) -> bytes:
    """Return the MAC of an instance's bridge: containers keep it in memory."""
    return _BRIDGE + hashlib.sha256(instance.encode()).digest()[:4]


def mac_of(address: IPv4Address) -> bytes:
    """Return the MAC that goes with an address.

    Always the same: who has it in memory is right, also when the address has another container.
    """
    return _INSIDE + address.packed


def outer_mac(address: IPv4Address) -> bytes:
    """Return the MAC of the host's end that goes with an address."""
    return _OUTSIDE + address.packed


def alias_of(key: Key, address: IPv4Interface) -> str:
    """Return what is written on a port; without the attachment if that is too long."""
    text = f"{ALIAS_MARK} {address} {key.network} {key.container} {key.ifname}"
    fits = len(text.encode()) <= ALIAS_BYTES_MAX
    return text if fits else f"{ALIAS_MARK} {address}"


def read_alias(alias: str) -> tuple[IPv4Interface, Key | None] | None:
    """Return what a port's alias tells; None: it is not of ours."""
    words = alias.split(" ", 4)
    if words[0] != ALIAS_MARK or len(words) not in {2, 5}:
        return None
    try:
        address = IPv4Interface(words[1])
    except ValueError:
        return None
    return address, Key(*words[2:]) if len(words) == 5 else None
