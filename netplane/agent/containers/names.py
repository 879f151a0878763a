"""What is drawn from an attachment: names, MACs, and what the kernel keeps of it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from netplane.agent.containers.records import Key
from netplane.netlink.containers import ALIAS_BYTES_MAX
from netplane.subnet.family import VERSION6, Address, Interface, parse_interface

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


def mac_of(address: Address) -> bytes:
    """Return the MAC that goes with a container's first address.

    Always the same: who has it in memory is right, also when the address has another container.
    """
    return _INSIDE + _four(address)


def outer_mac(address: Address) -> bytes:
    """Return the MAC of the host's end that goes with a container's first address."""
    return _OUTSIDE + _four(address)


def _four(address: Address) -> bytes:
    if address.version == VERSION6:
        return hashlib.sha256(address.packed).digest()[:4]
    return address.packed


def alias_of(key: Key, addresses: Sequence[Interface]) -> str:
    """Return what is written on a port; without the attachment if that is too long."""
    told = ",".join(map(str, addresses))
    text = f"{ALIAS_MARK} {told} {key.network} {key.container} {key.ifname}"
    fits = len(text.encode()) <= ALIAS_BYTES_MAX
    return text if fits else f"{ALIAS_MARK} {told}"


def read_alias(alias: str) -> tuple[tuple[Interface, ...], Key | None] | None:
    """Return what a port's alias tells; None: it is not of ours."""
    words = alias.split(" ", 4)
    if words[0] != ALIAS_MARK or len(words) not in {2, 5}:
        return None
    try:
        addresses = tuple(map(parse_interface, words[1].split(",")))
    except ValueError:
        return None
    return addresses, Key(*words[2:]) if len(words) == 5 else None
