"""Published ports of containers: who has which, and the table that leads packets there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from netplane.netlink import conntrack, decode
from netplane.netlink.connection import Connection, NetlinkError, NetlinkLostError
from netplane.netlink.messages import ADDRESS, AF_OF_LENGTH, dump_addresses
from netplane.nft.monitor import NETLINK_NETFILTER, opening
from netplane.nft.rules import INTERFACE, NftError, chain, family_of
from netplane.nft.table import INTERVAL_S, FirewallReport, KeptTable, Members
from netplane.subnet.family import VERSION6, Address, Subnet

log = logging.getLogger(__name__)

ANY = IPv4Address("0.0.0.0")  # noqa: S104  not to listen on: all addresses of the host
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
PORTS, SAME_PORTS = "ports", "same-ports"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One port of this host that leads to one of a container."""

    protocol: str
    """`tcp`, `udp` or `sctp`."""
    host_port: int
    address: Address
    """The container's."""
    port: int
    host_ip: Address = ANY
    """The only address of this host that it is published on; unspecified: all of that family."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"ports of {self.protocol!r} cannot be published")
        for number in (self.host_port, self.port):
            if not 0 < number < 65536:
                raise ValueError(f"{number} is no port")

    def __str__(self) -> str:
        host = f"[{self.host_ip}]" if self.host_ip.version == VERSION6 else str(self.host_ip)
        return f"{host}:{self.host_port}/{self.protocol}"


class PortTakenError(Exception):
    """A port is published for another container. Nothing was written."""

    def __init__(self, mapping: PortMapping, holder: str) -> None:
        super().__init__(f"port {mapping} of this host is published for container {holder}")
        self.mapping = mapping
        self.holder = holder


class Portmaps(KeptTable):
    """Keeps one table with all published ports of a family; see `KeptTable`.

    After a restart hand in with `restore` what was published before.

    Args:
        table: `netplane_ports`, or `netplane_ports-INSTANCE`.
        subnet: our own, which tells the family; containers that reach each other by a port of the
            host are masqueraded.
        bridge: what our containers are on. That 127.0.0.1 leads to them takes `route_localnet` on
            it, which the caller sets; this table then keeps containers away from the host's 127.
    """

    def __init__(
        self,
        table: str,
        *,
        subnet: Subnet,
        bridge: str,
        namespace: str | None = None,
        listen: bool = True,
        interval_s: float = INTERVAL_S,
        on_report: Callable[[FirewallReport], None] | None = None,
    ) -> None:
        if not INTERFACE.fullmatch(bridge):
            raise ValueError(f"{bridge!r} does not fit a rule of nftables")
        super().__init__(
            table,
            family=family_of(subnet),
            namespace=namespace,
            listen=listen,
            interval_s=interval_s,
            on_report=on_report,
        )
        self._body = text(subnet, bridge)
        self._published: dict[str, tuple[PortMapping, ...]] = {}

    async def restore(self, published: Mapping[str, Sequence[PortMapping]]) -> None:
        """Have exactly this published, by container.

        Raises:
            PortTakenError: Two want one port. Nothing was written.
            NftError: Nothing was written; `run` tries again.
        """
        before, self._published = self._published, {}
        try:
            for container, mappings in published.items():
                self._take(container, mappings)
        except PortTakenError:
            self._published = before
            raise
        report = await self._keep()
        if report.problem:
            raise NftError(report.problem)

    async def publish(self, container: str, mappings: Sequence[PortMapping]) -> None:
        """Publish ports for a container, instead of those that it had.

        Raises:
            PortTakenError: Another container has one of them. Nothing was written.
            NftError: Nothing was written.
        """
        before = self._published.get(container, ())
        self._take(container, mappings)
        report = await self._keep()
        if report.problem:
            self._published[container] = before
            await self._keep()
            raise NftError(report.problem)
        await self._forget({*before} ^ {*mappings})

    async def withdraw(self, container: str) -> None:
        """Publish nothing more for a container; no error if nothing was.

        Raises:
            NftError: It could not be written yet; `run` tries again.
        """
        gone = self._published.pop(container, ())
        if not gone:
            return
        report = await self._keep()
        if report.problem:
            raise NftError(report.problem)
        await self._forget({*gone})

    async def clear(self) -> FirewallReport:
        """As `KeptTable.clear`: nothing is published any more."""
        self._published.clear()
        return await super().clear()

    def holder(self, protocol: str, host_ip: Address, host_port: int) -> str | None:
        """Return the container that a port is published for, on that address or on all."""
        for container, mappings in self._published.items():
            for one in mappings:
                if (one.protocol, one.host_port) != (protocol, host_port):
                    continue
                everywhere = host_ip.is_unspecified or one.host_ip.is_unspecified
                if everywhere or host_ip == one.host_ip:
                    return container
        return None

    def _take(self, container: str, mappings: Iterable[PortMapping]) -> None:
        """Note that a container has these; nobody else comes between look and note."""
        before = self._published.pop(container, ())
        self._published[container] = ()
        for one in mappings:
            holder = self.holder(one.protocol, one.host_ip, one.host_port)
            if holder is not None:
                self._published[container] = before
                raise PortTakenError(one, holder)
            self._published[container] += (one,)

    async def _keep(self) -> FirewallReport:
        return await self.keep(self._body, members(self._published.values()))

    async def _forget(self, changed: set[PortMapping]) -> None:
        """Let flows of UDP that are under way go by the new table; they might never end."""
        ports = {(one.host_ip, one.host_port) for one in changed if one.protocol == "udp"}
        if not ports:
            return
        try:
            await self._forget_flows(ports)
        except (NetlinkError, NetlinkLostError, OSError) as error:
            # The ports are published all the same, and new flows go by them.
            log.warning("flows of UDP under way may go on as before: %s", error)

    async def _forget_flows(self, ports: set[tuple[Address, int]]) -> None:
        async with Connection(self._namespace) as kernel:
            found = await kernel.dump(dump_addresses(self._family, 0))
        told = [decode.attributes(message.body, ADDRESS.size) for message in found]
        # On IPv4 the local one; IPv6 has only the other.
        local = {one.get(2) or one.get(1) for one in told}
        everywhere = {port for address, port in ports if address.is_unspecified}

        def concerned(flow: conntrack.Flow) -> bool:
            if flow.protocol != PROTOCOLS["udp"]:
                return False
            if AF_OF_LENGTH.get(len(flow.destination)) != self._family:
                return False
            address = ip_address(flow.destination)
            is_local = flow.destination in local or address.is_loopback
            port = flow.destination_port
            return (address, port) in ports or (is_local and port in everywhere)

        with opening:
            connection = Connection(self._namespace, protocol=NETLINK_NETFILTER)
        with closing(connection):
            # Of many ports all flows are looked at; hosts may have a hundred thousand.
            only = next(iter(ports))[1] if len(ports) == 1 else 0
            asked = conntrack.dump_flows(PROTOCOLS["udp"], only, self._family)
            await conntrack.forget(connection, asked, concerned)


def members(published: Iterable[Sequence[PortMapping]]) -> Members:
    """Return what is in the maps. Ports in a row that are not changed are one member."""
    ports: set[Hashable] = set()
    rows: list[list[PortMapping]] = []
    found = [one for mappings in published for one in mappings]
    for one in sorted(found, key=lambda one: (one.protocol, one.host_ip, one.host_port)):
        if one.port != one.host_port:
            ports.add(f"{_key(one, one)} : {one.address} . {one.port}")
        elif rows and _follows(one, rows[-1][-1]):
            rows[-1].append(one)
        else:
            rows.append([one])
    same = {f"{_key(row[0], row[-1])} : {row[0].address}" for row in rows}
    return {PORTS: frozenset(ports), SAME_PORTS: frozenset(same)}


def _follows(one: PortMapping, last: PortMapping) -> bool:
    return one.host_port == last.host_port + 1 and (
        (one.protocol, one.host_ip, one.address) == (last.protocol, last.host_ip, last.address)
    )


def _key(first: PortMapping, last: PortMapping) -> str:
    address = f"{first.host_ip}/0" if first.host_ip.is_unspecified else str(first.host_ip)
    number = str(first.host_port)
    if last.host_port != first.host_port:
        number += f"-{last.host_port}"
    return f"{PROTOCOLS[first.protocol]} . {address} . {number}"


def text(subnet: Subnet, bridge: str) -> str:
    """Return what is in the table, but for the ports in their maps."""
    family = family_of(subnet)
    address = "ipv6_addr" if family == "ip6" else "ipv4_addr"
    key = f"inet_proto . {address} . inet_service"
    # The kernel loses what leaves the host with the source ::1. Left alone, who calls ::1 is
    # refused at once, and goes on with 127.0.0.1.
    local = "fib daddr type local" + (" ip6 daddr != ::1" if family == "ip6" else "")
    # nft leads to a port only where it sees that the protocol has some.
    lead = (
        f"meta l4proto {{ {', '.join(PROTOCOLS)} }} {local}"
        f" dnat {family} to meta l4proto . {family} daddr . th dport map"
    )
    leads = [
        (f"{lead} @{PORTS}", "a published port"),
        (f"{lead} @{SAME_PORTS}", "a published port that has the same number in the container"),
    ]
    from_loopback = [
        (
            f"ct status dnat ip saddr 127.0.0.0/8 ip daddr {subnet} masquerade",
            "from 127.0.0.1 of this host",
        )
    ]
    parts = [
        'comment "netplane: published ports of containers, kept by the agent"',
        _map(
            PORTS,
            "what arrives at this host, and where it leads",
            f"{key} : {address} . inet_service",
        ),
        _map(
            SAME_PORTS,
            "where the port stays the same, also many in a row",
            f"{key} : {address}",
        ),
        chain(
            "prerouting",
            "from other hosts and from containers",
            "type nat hook prerouting priority dstnat; policy accept;",
            leads,
        ),
        chain(
            "output", "from this host", "type nat hook output priority -100; policy accept;", leads
        ),
        chain(
            "postrouting",
            "who would be answered by another way than it asked",
            "type nat hook postrouting priority srcnat; policy accept;",
            [
                (
                    f"ct status dnat {family} saddr {subnet} {family} daddr {subnet} masquerade",
                    "from a container to another of this host, or to itself",
                ),
                *(from_loopback if family == "ip" else ()),
            ],
        ),
    ]
    if family == "ip":
        # Packets of IPv6 to ::1 never come in from a link.
        parts.append(
            chain(
                "loopback",
                "route_localnet lets 127.0.0.1 lead to containers, and must not lead from them",
                "type filter hook prerouting priority raw; policy accept;",
                [(f'iifname "{bridge}" ip daddr 127.0.0.0/8 drop', "this host's own")],
            )
        )
    return "".join(f"  {line}\n" for part in parts for line in part.splitlines())


def _map(name: str, comment: str, kind: str) -> str:
    return f'map {name} {{\n  type {kind}\n  flags interval\n  comment "{comment}"\n}}'
