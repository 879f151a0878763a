"""What `netplane ctl trace` and `check` have in common: findings, and what an agent means to have.

Both read the kernel themselves: what the agent believes is there is not asked.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any, NamedTuple

from netplane.agent.desired import Desired, link_problem, plan_link
from netplane.agent.errors import AgentError
from netplane.backend import Backend, External, choose
from netplane.backend.udp import UdpBackend
from netplane.backend.vxlan import overhead_bytes
from netplane.netlink.connection import Connection, NetlinkError, NetlinkLostError
from netplane.netlink.decode import Link
from netplane.netlink.kernel import Kernel
from netplane.netlink.messages import AF_OF_LENGTH
from netplane.netlink.objects import Route, VxlanLink
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.family import (
    Subnet,
    ipv6_address,
    ipv6_network,
    parse_address,
    parse_subnet,
)
from netplane.subnet.lease import Lease


class State(enum.Enum):
    """How something is."""

    OK = "ok"
    WRONG = "wrong"
    """Packets are lost, or will be."""
    HINT = "hint"
    """It may be so on purpose."""
    UNSEEN = "unseen"
    """It matters and cannot be known from here."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    """`route`, `neighbour`, `device` ...: stable, scripts may rely on it."""
    state: State
    text: str
    """The object, and what is wrong with it and helps."""


@dataclass(frozen=True, slots=True)
class Known:
    """What an agent means to have of one family, by its own words."""

    config: NetworkConfig
    external: External
    own: Lease
    peers: Mapping[Subnet, Lease]
    quarantined: Mapping[str, str]
    backend: Backend
    desired: Desired
    refused: Mapping[str, str]
    """Subnet to reason, of peers that cannot be served."""
    masquerade: bool = False
    """What leaves the overlay gets this host as its source."""

    @property
    def family(self) -> int:
        """As the kernel numbers it."""
        return AF_OF_LENGTH[len(self.own.subnet.network_address.packed)]


@contextlib.asynccontextmanager
async def reading() -> AsyncIterator[Kernel]:
    """Lend a connection to the kernel. Raises AgentError for what fails of it."""
    try:
        async with Connection() as connection:
            yield Kernel(connection)
    except (NetlinkError, NetlinkLostError) as error:
        raise AgentError(f"cannot read the kernel's objects: {error}", "try again") from error


def known_of(status: Mapping[str, Any]) -> list[Known]:
    """Read what `/v1/status` says, by family; none when the agent has not joined a network yet."""
    own, network = status["own"], status["network"]
    if not (status["interface"] and own and network["config"]):
        return []
    config = parse_config(network["config"].encode())
    mine, peers = _lease(own), list(map(_lease, status["peers"]))
    first, *second = config.halves
    found = [_half(status, first, network["mac"], mine, peers)]
    mine6 = mine.second()
    if second and mine6 is not None:
        peers6 = [half for lease in peers if (half := lease.second()) is not None]
        found.append(_half(status, second[0], network["mac6"], mine6, peers6))
    return found


def _half(
    status: Mapping[str, Any], config: NetworkConfig, mac: str, mine: Lease, leases: list[Lease]
) -> Known:
    interface = status["interface"]
    addresses = [
        ip_interface(text) for text in (interface["address"], interface["address6"]) if text
    ]
    version = config.network.version
    external = External(
        interface["name"],
        next(one for one in addresses if one.version == version),
        int(interface["mtu"]),
    )
    backend = choose.make(
        config,
        external=external,
        mac=mac,
        blackhole=status["firewall"]["blackhole_route"],
    )
    peers = {lease.subnet: lease for lease in leases}
    plan = backend.plan(mine.subnet, peers)
    return Known(
        config,
        external,
        mine,
        peers,
        (status["registry"] or {}).get("quarantined", {}),
        backend,
        Desired(plan.objects),
        plan.refused,
        status["firewall"]["masquerade"],
    )


def _lease(fields: Mapping[str, Any]) -> Lease:
    return Lease(
        parse_subnet(fields["subnet"]),
        parse_address(fields["public_ip"]),
        fields["backend"],
        fields["data"],
        create_revision=fields["created"],
        subnet6=ipv6_network(fields["subnet6"]) if fields.get("subnet6") else None,
        public_ip6=ipv6_address(fields["public_ip6"]) if fields.get("public_ip6") else None,
        backend_data6=fields.get("data6"),
    )


def routes_to(known: Known, subnets: Iterable[Subnet]) -> dict[Subnet, Route]:
    """Return which route should lead to each of these peers; none to those that others see to."""
    planned = {
        (item.destination, item.prefix_len): item
        for item in known.desired.items
        if isinstance(item, Route)
    }
    found = {}
    for subnet in subnets:
        # One route for all with a process, which knows the rest.
        target = known.config.network if isinstance(known.backend, UdpBackend) else subnet
        route = planned.get((target.network_address.packed, target.prefixlen))
        if route is not None:
            found[subnet] = route
    return found


def look_at_firewall(look: Mapping[str, Any] | None, *, forwarded: bool = True) -> list[Finding]:
    """Say what is to be said of the firewall.

    Args:
        look: what `/v1/firewall` says; None: nobody has looked.
        forwarded: whether the chains count that packets of this host itself do not pass.
    """
    if look is None:
        return [Finding("firewall", State.UNSEEN, "our table and the chains of others")]
    found = [Finding("firewall", State.WRONG, text) for text in look["wrong"]]
    if not found:
        found.append(Finding("firewall", State.OK, "our table is as it should be"))
    if forwarded:
        chains = look["accepted_in"]
        found += [
            Finding("forward", State.OK, f"accepted in front of chain {chain}") for chain in chains
        ]
        found += [Finding("forward", State.HINT, text) for text in look["drops"]]
        found += [Finding("forward", State.UNSEEN, text) for text in look.get("unsure", ())]
        if not any(look.values()):
            text = "no chain drops what no rule of it accepts"
            found.append(Finding("forward", State.OK, text))
    return found + [Finding("firewall", State.UNSEEN, text) for text in look["unseen"]]


def index_of(name: str, links: Iterable[Link]) -> int | None:
    """Return a link's index; None: there is no such link."""
    return next((link.index for link in links if link.name == name), None)


def look_at_device(known: Known, links: Iterable[Link]) -> list[Finding]:
    """Compare our device and the interface below it with what they should be."""
    by_name = {link.name: link for link in links}
    wanted = known.desired.link
    if isinstance(known.backend, UdpBackend):
        return _look_at_process_device(known.backend, by_name)
    if wanted is None:
        return _look_at_external(known, by_name.get(known.external.name))
    own, parent = by_name.get(wanted.name), by_name.get(wanted.parent)
    plan = plan_link(wanted, own, parent, by_name.values())
    if plan.refused:
        return [Finding("device", State.WRONG, plan.refused)]
    assert parent is not None
    if own is None:
        return [Finding("device", State.WRONG, f"{wanted} is missing")]
    if plan.make:
        text = f"{wanted} has another VNI, port, interface or local address than it should"
        return [Finding("device", State.WRONG, text)]
    found = [Finding("device", State.OK, str(wanted))]
    if not own.up:
        found = [Finding("device", State.WRONG, f"{wanted} is down")]
    if own.mac != wanted.mac:
        text = f"MAC of {own.name} is {own.mac.hex(':')}, the others send to {wanted.mac.hex(':')}"
        found.append(Finding("device", State.WRONG, text))
    return found + _look_below(own, parent, wanted)


def _look_at_process_device(backend: UdpBackend, links: Mapping[str, Link]) -> list[Finding]:
    """Look at the device that the process makes and keeps."""
    own = links.get(backend.link)
    if own is None:
        text = f"device {backend.link} is missing: the process that makes it does not run"
    elif not own.up:
        text = f"device {own.name} is down"
    elif own.mtu != backend.mtu:
        text = f"device {own.name} has MTU {own.mtu}, not {backend.mtu}"
    else:
        return [Finding("device", State.OK, f"device {own.name} (tun), MTU {own.mtu}")]
    return [Finding("device", State.WRONG, text)]


def _look_at_external(known: Known, link: Link | None) -> list[Finding]:
    """Look at the interface to the other hosts where there is no device on it."""
    name = known.external.name
    problem = link_problem(name, link)
    if link is None or problem:
        return [Finding("interface", State.WRONG, problem)]
    text = f"containers {known.backend.mtu}, {name} {link.mtu}"
    fits = known.backend.mtu <= link.mtu
    return [Finding("mtu", State.OK if fits else State.WRONG, text)]


def _look_below(own: Link, parent: Link, wanted: VxlanLink) -> list[Finding]:
    found = []
    if not parent.up:
        found.append(Finding("interface", State.WRONG, f"{parent.name} is down"))
    fits = parent.mtu - overhead_bytes(wanted.local)
    text = f"{own.name} {own.mtu}, {parent.name} {parent.mtu}"
    if own.mtu > fits:
        text += f": packets of more than {fits} bytes do not fit"
        found.append(Finding("mtu", State.WRONG, text))
    elif own.mtu < fits:
        text += f": up to {fits} would fit"
        found.append(Finding("mtu", State.HINT, text))
    else:
        found.append(Finding("mtu", State.OK, text))
    return found


async def look_at_source_address(known: Known, kernel: Kernel, links: Iterable[Link]) -> Finding:
    """Find out whether the address that our packets leave with is still this host's."""
    name, address = known.external.name, known.external.address.ip
    index = index_of(name, links)
    if index is not None:
        found = await kernel.addresses(known.family, index, name)
        if any(item.address == address.packed for item in found):
            return Finding("interface", State.OK, f"{name} has {address}")
    why = "which our packets leave with" if known.backend.scope.link else "which the others send to"
    text = f"{name} has not {address}, {why}"
    return Finding("interface", State.WRONG, text)
