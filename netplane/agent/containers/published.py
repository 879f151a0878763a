"""Ports of the host that lead to containers: who may have which, and the table that leads there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from pathlib import Path

from netplane.agent.containers.errors import CniError
from netplane.agent.containers.records import EVERYWHERE, Key, PortMapping, Record
from netplane.cni import plugin
from netplane.netlink.connection import NetlinkError, NetlinkLostError
from netplane.nft import portmap
from netplane.nft.portmap import Portmaps, PortTakenError
from netplane.nft.rules import NftError, family_of
from netplane.nft.table import FirewallReport, KeptTable
from netplane.subnet.family import VERSION4, VERSION6, Address, Interface, Subnet
from netplane.udp.sockets import open_sockets

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
FAMILIES = {VERSION4: socket.AF_INET, VERSION6: socket.AF_INET6}
LOOPBACK6 = IPv6Address("::1")
TCP_LISTEN, UDP_BOUND = "0A", "07"


def table_name(instance: str) -> str:
    """Return the name of an instance's table."""
    return "netplane_ports" if instance == "default" else f"netplane_ports-{instance}"


class Published:
    """The published ports of one instance: a table of each family that has any.

    Args:
        instance: of the agent.
        bridge: what its containers are on.
        interval_s: how often the table is read though it told no change.
        on_problem: hears why the table is not as it should be, and an empty text when it is.
    """

    def __init__(
        self, instance: str, bridge: str, interval_s: float, on_problem: Callable[[str], None]
    ) -> None:
        self.table = table_name(instance)
        self._bridge = bridge
        self._interval_s = interval_s
        self._on_problem = on_problem
        self._maps: dict[int, Portmaps] = {}
        """By version."""
        self._problems: dict[int, str] = {}
        self._left: set[int] = set()
        """Families that an agent before us may have a table of."""
        self._begun = {version: asyncio.Event() for version in FAMILIES}

    def close(self) -> None:
        """Give threads and sockets back; the tables stay."""
        for maps in self._maps.values():
            maps.close()

    async def run(self) -> None:
        """Heal until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for version in FAMILIES:
                tasks.create_task(self._run(version))

    async def _run(self, version: int) -> None:
        await self._begun[version].wait()
        await self._maps[version].run()

    def remember(self, records: Iterable[Record]) -> None:
        """Know what an agent before us has published: a table that is to go by the next records."""
        self._left |= {
            one.version for record in records if record.ports for one in record.addresses
        }

    async def restore(self, records: Iterable[Record], subnets: Iterable[Subnet]) -> None:
        """Have exactly these published: what an agent before us did. `run` tries again.

        Of a family that the network has no more nothing is, as packets would lead nowhere. Raises
        CniError when that cannot be taken back.
        """
        by_version = {subnet.version: subnet for subnet in subnets}
        those = [record for record in records if record.ports]
        for version in FAMILIES:
            published = {
                _name(record.key): _mappings(record, one)
                for record in those
                if (one := record.of(version)) is not None
            }
            if not published and version not in self._left:
                continue
            if version not in by_version:
                await self._take_back(version)
                self._left.discard(version)
                continue
            try:
                await self._of(by_version[version]).restore(published)
            except (NftError, PortTakenError) as error:
                self._note(version, str(error))

    async def _take_back(self, version: int) -> None:
        maps = self._maps.get(version)
        if maps is not None:
            report = await maps.clear()
        else:
            report = await _clear(self.table, EVERYWHERE[version])
        if report.problem:
            raise CniError(plugin.KERNEL, "cannot take published ports back", report.problem)
        self._note(version, "")

    async def publish(self, record: Record) -> None:
        """Publish the ports of a container, in each family that it has an address of.

        Raises:
            CniError: One of them is in use, or a table cannot be written. What is published by
                then is for the caller to withdraw.
        """
        if not record.ports:
            return
        versions = [one.version for one in record.addresses]
        for port in record.ports:
            if port.host_ips.get(VERSION6) == LOOPBACK6:
                text = f"{port}: the kernel leads nothing from ::1 elsewhere"
                raise CniError(plugin.UNSUPPORTED, "a port cannot be published", text)
            if not port.host_ips.keys() & set(versions):
                text = f"{port}: the network has no addresses of that family"
                raise CniError(plugin.CONFIG, "a port cannot be published", text)
        for address in record.addresses:
            for mapping in _mappings(record, address):
                holder = self._of(address.network).holder(
                    mapping.protocol, mapping.host_ip, mapping.host_port
                )
                # Of this name, but of another time: it is published instead of that.
                if holder is not None and holder != _name(record.key):
                    raise _taken(mapping, f"container {holder}")
        await asyncio.to_thread(_must_be_free, record, versions)
        for address in record.addresses:
            mappings = _mappings(record, address)
            if not mappings:
                continue
            try:
                await self._of(address.network).publish(_name(record.key), mappings)
            except PortTakenError as error:
                raise _taken(error.mapping, f"container {error.holder}") from error
            except (NftError, NetlinkError, NetlinkLostError) as error:
                raise CniError(plugin.KERNEL, "cannot publish ports", str(error)) from error

    async def withdraw(self, key: Key) -> None:
        """Publish nothing more for a container. Raises CniError."""
        for maps in list(self._maps.values()):
            try:
                await maps.withdraw(_name(key))
            except (NftError, NetlinkError, NetlinkLostError) as error:
                text = "cannot take published ports back"
                raise CniError(plugin.KERNEL, text, str(error)) from error

    async def differences(self) -> list[str]:
        """Say what the tables lack, or have beyond what they should."""
        return [line for maps in list(self._maps.values()) for line in await maps.read()]

    def _of(self, subnet: Subnet) -> Portmaps:
        """Return the table of a family; the first time it is needed, it is kept from then on."""
        version = subnet.version
        if version not in self._maps:
            self._maps[version] = Portmaps(
                self.table, subnet=subnet, bridge=self._bridge,
                interval_s=self._interval_s,
                on_report=lambda report: self._note(version, report.problem or report.contested),
            )  # fmt: skip
            self._begun[version].set()
        return self._maps[version]

    def _note(self, version: int, problem: str) -> None:
        self._problems[version] = problem
        self._on_problem("; ".join(dict.fromkeys(filter(None, self._problems.values()))))


async def clear(instance: str) -> tuple[int, str]:
    """Remove the tables of an instance; return how many, and why one cannot be removed."""
    removed, problem = 0, ""
    for anywhere in EVERYWHERE.values():
        report = await _clear(table_name(instance), anywhere)
        removed += report.removed
        problem = problem or report.problem
    return removed, problem


async def _clear(name: str, anywhere: Address) -> FirewallReport:
    with contextlib.closing(KeptTable(name, family=family_of(anywhere))) as table:
        return await table.clear()


def _name(key: Key) -> str:
    # In a namespace there is one interface of a name, whatever networks it is in.
    return f"{key.container} ({key.ifname})"


def _mappings(record: Record, address: Interface) -> tuple[portmap.PortMapping, ...]:
    return tuple(
        portmap.PortMapping(
            one.protocol, one.host_port, address.ip, one.container_port,
            one.host_ips[address.version],
        )
        for one in record.ports
        if address.version in one.host_ips
    )  # fmt: skip


def _taken(port: object, holder: str) -> CniError:
    return CniError(plugin.IN_USE, "a port of the host is in use", f"{port} by {holder}")


def _must_be_free(record: Record, versions: Iterable[int]) -> None:
    """Raise CniError when a program of this host listens there: it would hear nothing more."""
    for port in record.ports:
        kind = KINDS.get(port.protocol)
        for version in versions:
            if kind is not None and version in port.host_ips:
                _try(port, kind, version, record.key.container)


def _try(port: PortMapping, kind: int, version: int, container: str) -> None:
    with socket.socket(FAMILIES[version], kind) as trying:
        if version == VERSION6:
            # What is published over IPv4 is tried by itself.
            trying.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            # Connections that have ended there are nobody's.
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind((str(port.host_ips[version]), port.host_port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                text = f"{port}: {error.strerror}"
                raise CniError(plugin.CONFIG, "no port of this host", text) from error
            holder = _holder(port, version, container)
            if holder is not None:
                raise _taken(port, holder) from error


def _holder(port: PortMapping, version: int, container: str) -> str | None:
    """Return which program has a port of this host, in words; None: the container's own runtime.

    podman's conmon keeps each published port as long as its container runs, and has the container's
    id as an argument: `podman network reload` and `connect` add a container that runs.
    """
    sockets = _sockets(port, version)
    processes: dict[int, bool] = {}
    for pid, _, inode in open_sockets():
        if inode in sockets:
            processes[pid] = processes.get(pid, False) or sockets[inode]
    found: dict[str, bool] = {}
    for pid, listens in processes.items():
        process = Path(f"/proc/{pid}")
        # Others end while they are looked at.
        with contextlib.suppress(OSError):
            if container.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                return None
            found[f"{(process / 'comm').read_text().strip()} (process {pid})"] = listens
    return max(found, key=lambda name: found[name], default="a program that cannot be found")


def _sockets(port: PortMapping, version: int) -> dict[int, bool]:
    """Return the inodes of the sockets at a port, and whether each listens.

    Others have been accepted by one that does, or have called from this port by chance.
    """
    listens = TCP_LISTEN if port.protocol == "tcp" else UDP_BOUND
    # A socket of IPv6 may have the port of IPv4 as well.
    names = (f"{port.protocol}6", *([port.protocol] if version == VERSION4 else ()))
    found = {}
    for name in names:
        with contextlib.suppress(OSError):  # a kernel without IPv6
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
            for row in map(str.split, lines):
                if int(row[1].rpartition(":")[2], 16) == port.host_port:
                    found[int(row[9])] = row[3] == listens
    return found
