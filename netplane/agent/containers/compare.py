"""What an attachment lacks of what ADD made: what CHECK tells. Blocks, and changes nothing."""

from __future__ import annotations

from netplane.agent.containers.call import Previous
from netplane.agent.containers.devices import (
    AF_UNSPEC,
    Bridge,
    failing,
    forwards,
    item_of,
)
from netplane.agent.containers.records import Record
from netplane.netlink.blocking import Blocking
from netplane.netlink.messages import AF_OF_LENGTH
from netplane.netlink.namespace import inside


def differences(bridge: Bridge, record: Record, previous: Previous, namespace: int) -> list[str]:
    """Say what an attachment lacks, here and in its container; what others added does not count.

    Raises:
        CniError: The kernel cannot be read.
    """
    with failing("cannot read what is there"):
        with Blocking() as host:
            found = _outside(host, bridge, record)
        return found + inside(
            f"/proc/self/fd/{namespace}", lambda: _differences_within(record.key.ifname, previous)
        )


def _outside(host: Blocking, wanted: Bridge, record: Record) -> list[str]:
    bridge, port = host.link(wanted.name), host.link(record.link)
    if bridge is None:
        return [f"the bridge {wanted.name} is missing"]
    found = []
    if not bridge.up:
        found.append(f"the bridge {wanted.name} is down")
    if not forwards(wanted):
        found.append(f"the bridge {wanted.name} forwards nothing of IPv4")
    there = host.addresses(AF_UNSPEC, bridge.index, bridge.name)
    found += [f"{one} is missing" for one in sorted(wanted.missing(set(there)))]
    if port is None:
        found.append(f"the host's end {record.link} is missing")
    elif port.master != bridge.index:
        found.append(f"{record.link} is no port of {wanted.name}")
    elif not port.up:
        found.append(f"{record.link} is down")
    elif not port.hairpin:
        found.append(f"{record.link} lets no packet return through it (hairpin)")
    return found


def _differences_within(name: str, previous: Previous) -> list[str]:
    with Blocking() as container:
        link = container.link(name)
        if link is None:
            return [f"the container has no interface {name}"]
        found = []
        if not link.up:
            found.append(f"{name} is down")
        if previous.mac and link.mac.hex(":") != previous.mac:
            found.append(f"the MAC of {name} is {link.mac.hex(':')}, not {previous.mac}")
        addresses = container.addresses(AF_UNSPEC, link.index, name)
        for one in previous.addresses:
            item = item_of(name, one)
            if item not in addresses:
                found.append(f"{item} is missing")
        there = {
            (route.destination, route.prefix_len, gateway)
            for family in AF_OF_LENGTH.values()
            for route in container.routes(family)
            # Without a gateway told, the address's own is meant, or that of another plugin.
            for gateway in (route.gateway, None)
        }
        for network, gateway in previous.routes:
            via = "" if gateway is None else f" via {gateway}"
            told = None if gateway is None else gateway.packed
            if (network.network_address.packed, network.prefixlen, told) not in there:
                found.append(f"route {network}{via} is missing")
        return found
