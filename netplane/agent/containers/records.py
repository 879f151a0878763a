"""What is known of the containers that have an address here: values and their file.

The file serves agents of this boot: with the machine all containers end, and their devices.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

from netplane.agent.containers.errors import CniError
from netplane.agent.files import write_whole
from netplane.cni import plugin
from netplane.subnet.family import (
    VERSION4,
    VERSION6,
    Address,
    Interface,
    parse_address,
    parse_interface,
)
from netplane.subnet.jsontext import loads

log = logging.getLogger("netplane.containers")

FORMAT = 1
PROTOCOLS = ("tcp", "udp", "sctp")
EVERYWHERE: Mapping[int, Address] = {VERSION4: IPv4Address(0), VERSION6: IPv6Address(0)}
"""All addresses of the host, by family."""


class Key(NamedTuple):
    """What an attachment goes by: a runtime names all three in every call."""

    network: str
    container: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.ifname} of container {self.container} in network {self.network}"


class PortMapping(NamedTuple):
    """A port of the host that leads to one of a container."""

    protocol: str
    host_ip: str
    """Empty: all addresses of the host; `0.0.0.0` or `::`: all of that family."""
    host_port: int
    container_port: int

    def __str__(self) -> str:
        return f"{self.protocol} {self.host_ip or '*'}:{self.host_port}"

    @property
    def host_ips(self) -> Mapping[int, Address]:
        """Return the address that it is published on in each family."""
        if not self.host_ip:
            return EVERYWHERE
        address = parse_address(self.host_ip)
        return {address.version: address}

    def collides(self, other: PortMapping) -> bool:
        """Tell whether both cannot be."""
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        theirs = other.host_ips
        return any(
            address == theirs[version] or address.is_unspecified or theirs[version].is_unspecified
            for version, address in self.host_ips.items()
            if version in theirs
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment."""

    key: Key
    addresses: tuple[Interface, ...]
    """At most one of each family, IPv4 first; with the lengths of the subnets they are from."""
    link: str
    """The host's end."""
    mac: str
    """Of the container's end."""
    ports: tuple[PortMapping, ...] = ()

    def of(self, version: int) -> Interface | None:
        """Return the address of a family; None: it has none."""
        return next((one for one in self.addresses if one.version == version), None)


class Store:
    """The records of one instance, in memory and in a file.

    Args:
        path: of the file.
        boot: which boot this is; a file of another one tells of containers that are gone.
    """

    def __init__(self, path: Path, boot: str) -> None:
        self.path = path
        self.records: dict[Key, Record] = {}
        self.last: dict[int, Address] = {}
        """What was given out last of each family."""
        self._boot = boot
        self._changes = 0
        self._written = 0
        self._writing = asyncio.Lock()

    def load(self) -> str:
        """Read the file; return a complaint when it is there and of no use. Blocks.

        It is set aside then: what is in the kernel tells the addresses that are in use.
        """
        try:
            records, last, boot = decode(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            bad = self.path.with_name(self.path.name + ".bad")
            try:
                os.replace(self.path, bad)
                where = f"set aside as {bad}"
            except OSError as failure:
                where = f"and cannot be set aside: {failure}"
            return (
                f"{self.path}, where containers are written down, is of no use ({error}), {where}"
            )
        self.last = last
        if boot == self._boot:
            self.records = {record.key: record for record in records}
        elif records:
            log.info("%d containers of an earlier boot are gone", len(records))
        return ""

    def unpublished(self, key: Key, ports: Iterable[PortMapping]) -> tuple[PortMapping, ...]:
        """Return the ports that lead to the container by none of its other interfaces.

        podman hands the ports of a container to each network that it is on.
        """
        others = {
            port
            for other, record in self.records.items()
            if other.container == key.container and other != key
            for port in record.ports
        }
        return tuple(port for port in ports if port not in others)

    def put(self, record: Record) -> None:
        """Note an attachment; `save` writes it."""
        self.records[record.key] = record
        self._changes += 1

    def remove(self, key: Key) -> None:
        """Forget an attachment; `save` writes it."""
        if self.records.pop(key, None) is not None:
            self._changes += 1

    async def save(self) -> None:
        """Return when the file has what is here now; what comes during a write shares the next.

        Raises:
            CniError: It cannot be written.
        """
        wanted = self._changes
        async with self._writing:
            if self._written >= wanted:
                return
            wanted, text = self._changes, self.encode()
            try:
                await asyncio.to_thread(_write, self.path, text)
            except OSError as error:
                text = error.strerror or str(error)
                raise CniError(plugin.IO, f"cannot write {self.path}", text) from error
            self._written = wanted

    def encode(self) -> str:
        """Return the file's text."""
        records = ",\n  ".join(_encoded(record) for record in self.records.values())
        head: dict[str, Any] = {"format": FORMAT, "boot": self._boot, "last": None}
        for version, address in self.last.items():
            head[_LAST[version]] = str(address)
        text = json.dumps(head, indent=1).removesuffix("\n}")
        return f'{text},\n "records": [\n  {records}\n ]\n}}\n'


def _write(path: Path, text: str) -> None:
    # What a power cut spoils is of no use after it.
    write_whole(path, text, mode=0o600, durable=False)


_LAST = {VERSION4: "last", VERSION6: "last6"}


def _encoded(record: Record) -> str:
    # Of IPv4 alone it is as files were before there was IPv6.
    first, *second = map(str, record.addresses)
    return json.dumps(
        {
            **record.key._asdict(),
            "address": first,
            **({"address6": second[0]} if second else {}),
            "link": record.link,
            "mac": record.mac,
            "ports": record.ports,
        }
    )


def decode(text: str) -> tuple[list[Record], dict[int, Address], str]:
    """Return the records of a file, the last addresses, and of which boot it is.

    Raises:
        ValueError: It is not one of ours, or of another format.
    """
    content = loads(text)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        records = [_decoded(fields) for fields in content["records"]]
        last = {
            version: parse_address(content[name])
            for version, name in _LAST.items()
            if content.get(name) is not None
        }
        boot = str(content["boot"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks or misplaces {error}") from error
    return records, last, boot


def decode_key(fields: Mapping[str, Any]) -> Key:
    """Read what an attachment goes by. Raises ValueError, KeyError, TypeError."""
    key = Key(fields["network"], fields["container"], fields["ifname"])
    if (
        not all(isinstance(one, str) for one in key)
        or not (plugin.is_name(key.network) and plugin.is_name(key.container))
        or not key.ifname
    ):
        raise ValueError(f"{key} is none")
    return key


def _decoded(fields: dict[str, Any]) -> Record:
    key = decode_key(fields)
    ports = tuple(
        PortMapping(protocol, str(host_ip), int(host_port), int(container_port))
        for protocol, host_ip, host_port, container_port in fields["ports"]
    )
    for one in ports:
        numbers = (one.host_port, one.container_port)
        if one.protocol not in PROTOCOLS or not all(0 < number < 1 << 16 for number in numbers):
            raise ValueError(f"{one} is no port")
        if one.host_ip:
            parse_address(one.host_ip)
    addresses = tuple(
        parse_interface(fields[name])
        for name in ("address", "address6")
        if name == "address" or name in fields
    )
    return Record(key, addresses, str(fields["link"]), str(fields["mac"]), ports)
