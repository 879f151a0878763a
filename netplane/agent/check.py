"""A look at all that is programmed and at what may be in its way: what `netplane ctl check` shows.

It reads and changes nothing.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from netplane.agent.desired import Item, is_ours
from netplane.agent.inspection import (
    Finding,
    Known,
    State,
    index_of,
    look_at_device,
    look_at_firewall,
    look_at_source_address,
    reading,
    routes_to,
)
from netplane.backend.vxlan import VxlanBackend
from netplane.netlink import sysctl
from netplane.netlink.decode import Link
from netplane.netlink.kernel import Kernel

SHOWN_MAX = 5
SIOCETHTOOL, ETHTOOL_GTXCSUM = 0x8946, 0x16
IFNAME_BYTES = 16


async def check(
    halves: Sequence[Known], status: Mapping[str, Any], firewall: Mapping[str, Any] | None
) -> list[Finding]:
    """Compare the kernel with what the agent means to have, and look for what breaks that.

    Args:
        halves: what it means to have, by family; none: it has not joined a network yet.
        status: what it says of itself.
        firewall: what it has just read of the firewall; None: nothing.

    Raises:
        AgentError: The kernel could not be asked.
    """
    found = look_at_agent(status)
    if not halves:
        return found
    async with reading() as kernel:
        links = await kernel.links()
        for known in halves:
            found += look_at_device(known, links)
            found.append(await look_at_source_address(known, kernel, links))
            found += await _look_at_objects(kernel, known, links)
    for known in halves:
        found += _look_at_settings(known)
        found += _look_at_offload(known)
    return found + look_at_firewall(firewall)


def look_at_agent(status: Mapping[str, Any]) -> list[Finding]:
    """Repeat what the agent itself misses."""
    found = [
        Finding("agent", State.WRONG, f"{code}: {text}")
        for code, text in sorted(status["missing"].items())
    ]
    found += [
        Finding("agent", State.HINT, f"{code}: {text}")
        for code, text in sorted(status["notes"].items())
    ]
    return found or [Finding("agent", State.OK, "it misses nothing")]


async def _look_at_objects(kernel: Kernel, known: Known, links: Iterable[Link]) -> list[Finding]:
    names = {link.index: link.name for link in links}
    name = known.backend.scope.link
    index = index_of(name, links)
    there: list[Item] = []
    if index is not None:
        there += await kernel.on_link(known.family, index, name)
    there += await kernel.routes(known.family, names)
    wanted = known.desired.items.whole()
    missing = wanted - set(there)
    elsewhere = await _find_rivals(kernel, known, names, missing)
    extra = [item for item in there if item not in wanted and is_ours(item, known.backend.scope)]
    found = [
        *_some("objects", State.WRONG, [f"{item} is missing" for item in missing]),
        *_some("route", State.WRONG, elsewhere),
        *_some("objects", State.HINT, [f"{item} is left over" for item in extra]),
        *_some(
            "objects",
            State.WRONG,
            [f"{subnet} is not served: {reason}" for subnet, reason in known.refused.items()],
        ),
    ]
    peers = len(known.peers)
    return found or [
        Finding("objects", State.OK, f"{len(wanted)} as they should be, {peers} peers")
    ]


async def _find_rivals(
    kernel: Kernel, known: Known, names: Mapping[int, str], missing: AbstractSet[Item]
) -> list[str]:
    """Say which peers the kernel leads packets for elsewhere, though our routes may be there.

    Asked for the first and the last address of each: what leads to less than half may go unseen.
    """
    texts = set()
    for subnet, wanted in routes_to(known, known.peers).items():
        for address in (subnet[0], subnet[-1]):
            route = await kernel.lookup(address.packed, names)
            if route == wanted:
                continue
            if route is not None and route.prefix_len >= wanted.prefix_len:
                texts.add(f"{route} is in the way of {wanted}")
            elif wanted not in missing:  # of those that are, this is no more than what follows
                texts.add(f"{address} is led by {route or 'nothing'} in spite of {wanted}")
    return list(texts)


def _some(subject: str, state: State, texts: list[str]) -> list[Finding]:
    """Return the first few, and how many there are more."""
    found = [Finding(subject, state, text) for text in sorted(texts)[:SHOWN_MAX]]
    if len(texts) > SHOWN_MAX:
        found.append(Finding(subject, state, f"and {len(texts) - SHOWN_MAX} more"))
    return found


def _look_at_settings(known: Known) -> list[Finding]:
    there = sysctl.read([item.name for item in known.desired.sysctls])
    found = []
    for item in known.desired.sysctls:
        value = there.get(item.name)
        is_met = item.is_met_by(value)
        text = f"{item} is meant, it is {value}"
        if is_met:
            text = f"sysctl net/{item.name} = {value}"
        found.append(Finding("settings", State.OK if is_met else State.WRONG, text))
    return found


def _look_at_offload(known: Known) -> list[Finding]:
    """Name a feature that some drivers have wrong for packets inside of UDP."""
    link = known.backend.scope.link
    if not isinstance(known.backend, VxlanBackend):
        return []
    try:
        is_on = _tx_checksums_offloaded(link)
    except OSError as error:
        return [Finding("offload", State.UNSEEN, f"tx checksums of {link}: {error.strerror}")]
    if not is_on:
        return [Finding("offload", State.OK, f"tx checksums of {link} are made by the kernel")]
    text = (
        f"tx checksums of {link} are left to the card of {known.external.name}; if ping works and"
        f" TCP hangs, it may have them wrong: ethtool -K {link} tx-checksum-ip-generic off"
    )
    return [Finding("offload", State.HINT, text)]


def _tx_checksums_offloaded(name: str) -> bool:
    # linux/ethtool.h: struct ethtool_value, in a buffer that struct ifreq points to.
    value = array.array("B", struct.pack("II", ETHTOOL_GTXCSUM, 0))
    request = struct.pack(f"{IFNAME_BYTES}sP16x", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, SIOCETHTOOL, request)
    return bool(struct.unpack("II", value.tobytes())[1])
