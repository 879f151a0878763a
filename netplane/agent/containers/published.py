"""Ports of the host that lead to containers: who may have which, and the table that leads there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path

from netplane.agent.containers.errors import CniError
from netplane.agent.containers.records import Key, PortMapping, Record
from netplane.cni import plugin
from netplane.netlink.connection import NetlinkError, NetlinkLostError
from netplane.nft import portmap
from netplane.nft.portmap import Portmaps, PortTakenError
from netplane.nft.rules import NftError
from netplane.nft.table import FirewallReport, KeptTable

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
TCP_LISTEN, UDP_BOUND = "0A", "07"


def table_name(instance: str) -> str:
    """Return the name of an instance's table."""
    return "netplane_ports" if instance == "default" else f"netplane_ports-{instance}"


class Published:
    """The published ports of one instance. Without any there is no table.

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
        self._maps: Portmaps | None = None
        self._begun = asyncio.Event()

    def close(self) -> None:
        """Give thread and sockets back; the table stays."""
        if self._maps is not None:
            self._maps.close()

    async def run(self) -> None:
        """Heal until cancelled."""
        await self._begun.wait()
        assert self._maps is not None
        await self._maps.run()

    async def restore(self, records: Iterable[Record]) -> None:
        """Have exactly these published: what an agent before us did. `run` tries again."""
        those = [record for record in records if record.ports]
        if not those:
            return
        try:
            await self._of(those[0]).restore({_name(one.key): _mappings(one) for one in those})
        except (NftError, PortTakenError) as error:
            self._on_problem(str(error))

    async def publish(self, record: Record) -> None:
        """Publish the ports of a container.

        Raises:
            CniError: One of them is in use, or the table cannot be written. None is published.
        """
        if not record.ports:
            return
        maps = self._of(record)
        for port, mapping in zip(record.ports, _mappings(record), strict=True):
            holder = maps.holder(mapping.protocol, mapping.host_ip, mapping.host_port)
            # Of this name, but of another time: it is published instead of that.
            if holder is not None and holder != _name(record.key):
                raise _taken(port, f"container {holder}")
        await asyncio.to_thread(_must_be_free, record.ports)
        try:
            await maps.publish(_name(record.key), _mappings(record))
        except PortTakenError as error:
            raise _taken(error.mapping, f"container {error.holder}") from error
        except (NftError, NetlinkError, NetlinkLostError) as error:
            raise CniError(plugin.KERNEL, "cannot publish ports", str(error)) from error

    async def withdraw(self, key: Key) -> None:
        """Publish nothing more for a container. Raises CniError."""
        if self._maps is None:
            return
        try:
            await self._maps.withdraw(_name(key))
        except (NftError, NetlinkError, NetlinkLostError) as error:
            raise CniError(plugin.KERNEL, "cannot take published ports back", str(error)) from error

    async def differences(self) -> list[str]:
        """Say what the table lacks, or has beyond what it should."""
        return [] if self._maps is None else await self._maps.read()

    def _of(self, record: Record) -> Portmaps:
        """Return the table; the first time it is needed, it is kept from then on."""
        if self._maps is None:
            self._maps = Portmaps(
                self.table, subnet=record.address.network, bridge=self._bridge,
                interval_s=self._interval_s, on_report=self._take_report,
            )  # fmt: skip
            self._begun.set()
        return self._maps

    def _take_report(self, report: FirewallReport) -> None:
        self._on_problem(report.problem or report.contested)


async def clear(instance: str) -> FirewallReport:
    """Remove the table of an instance."""
    with contextlib.closing(KeptTable(table_name(instance))) as table:
        return await table.clear()


def _name(key: Key) -> str:
    # In a namespace there is one interface of a name, whatever networks it is in.
    return f"{key.container} ({key.ifname})"


def _mappings(record: Record) -> tuple[portmap.PortMapping, ...]:
    return tuple(
        portmap.PortMapping(
            one.protocol, one.host_port, record.address.ip, one.container_port,
            IPv4Address(one.host_ip) if one.host_ip else portmap.ANY,
        )
        for one in record.ports
    )  # fmt: skip


def _taken(port: object, holder: str) -> CniError:
    return CniError(plugin.IN_USE, "a port of the host is in use", f"{port} by {holder}")


def _must_be_free(ports: Iterable[PortMapping]) -> None:
    """Raise CniError when a program of this host listens there: it would hear nothing more."""
    for port in ports:
        kind = KINDS.get(port.protocol)
        if kind is not None:
            _try(port, kind)


def _try(port: PortMapping, kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as trying:
        if kind == socket.SOCK_STREAM:
            # Connections that have ended there are nobody's.
            trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trying.bind((port.host_ip, port.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(port, listener(port)) from error
            text = f"{port}: {error.strerror}"
            raise CniError(plugin.CONFIG, "no port of this host", text) from error


def listener(port: PortMapping) -> str:
    """Return which program has a port of this host, in words."""
    state = TCP_LISTEN if port.protocol == "tcp" else UDP_BOUND
    links = set()
    for name in (port.protocol, f"{port.protocol}6"):
        with contextlib.suppress(OSError):  # a kernel without IPv6
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
            rows = (line.split() for line in lines)
            links |= {
                f"socket:[{row[9]}]"
                for row in rows
                if row[3] == state and int(row[1].rpartition(":")[2], 16) == port.host_port
            }
    for process in Path("/proc").glob("[0-9]*"):
        # Others end while they are looked at.
        with contextlib.suppress(OSError):
            for one in os.scandir(process / "fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(one.path) in links:
                        return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return "a program that cannot be found"
