"""What a runtime asks for: environment and configuration to values, checked. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from netplane.agent.containers.errors import CniError
from netplane.agent.containers.records import PROTOCOLS, Key, PortMapping
from netplane.cni import plugin
from netplane.subnet.family import Address, Interface, Subnet, parse_address, parse_interface
from netplane.subnet.lease import packed_mac

BROADCAST = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the plugin, of a version and verb that we know."""

    command: str
    version: str
    network: str
    config: Mapping[str, Any]
    container: str = ""
    ifname: str = ""
    netns: str = ""
    """The namespace's path as the runtime knows it: only for results."""
    arguments: Mapping[str, str] | None = None
    """CNI_ARGS."""

    @property
    def key(self) -> Key:
        """What the attachment goes by."""
        return Key(self.network, self.container, self.ifname)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a container is to have, beyond what all get."""

    addresses: tuple[Address, ...] = ()
    """At most one of each family."""
    mac: str = ""
    ports: tuple[PortMapping, ...] = ()


def parse(variables: Mapping[str, str], text: bytes) -> Call:
    """Read a call. Raises CniError."""
    command = variables.get("CNI_COMMAND", "")
    problem = plugin.environment_problem(command, variables)
    if problem is not None:
        raise CniError(plugin.ENVIRONMENT, *problem)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter: nested too deep
        raise CniError(plugin.DECODING, "the configuration is no JSON", str(error)) from error
    if not isinstance(config, dict):
        raise CniError(plugin.DECODING, "the configuration is no JSON object")
    version = _version(config, command)
    network = config.get("name")
    if not isinstance(network, str) or not plugin.is_name(network):
        text_ = f"{network!r}: letters, digits, '_', '.' and '-' are meant"
        raise CniError(plugin.CONFIG, "the configuration has no usable name", text_)
    if config.get("ipam"):
        raise CniError(
            plugin.UNSUPPORTED, "ipam is not supported",
            "leave it out: addresses come from the subnet that the agent has leased",
        )  # fmt: skip
    return Call(
        command,
        version,
        network,
        config,
        variables.get("CNI_CONTAINERID", ""),
        variables.get("CNI_IFNAME", ""),
        variables.get("CNI_NETNS", ""),
        _arguments(variables.get("CNI_ARGS", "")),
    )


def _version(config: Mapping[str, Any], command: str) -> str:
    # The first versions had none.
    version = config.get("cniVersion") or "0.1.0"
    if version not in plugin.VERSIONS:
        raise CniError(
            plugin.INCOMPATIBLE, "incompatible CNI versions",
            f"the configuration is {version!r}, supported are {', '.join(plugin.VERSIONS)}",
        )  # fmt: skip
    assert isinstance(version, str)
    since = plugin.SINCE.get(command, plugin.VERSIONS[0])
    # The order of the table is that of the versions.
    if plugin.VERSIONS.index(version) < plugin.VERSIONS.index(since):
        raise CniError(
            plugin.INCOMPATIBLE,
            f"version {version} of CNI has no {command}",
            f"{since} is the first",
        )
    return version


def _arguments(text: str) -> dict[str, str]:
    found = {}
    for pair in text.split(";"):
        name, equals, value = pair.partition("=")
        if pair and not equals:
            raise CniError(plugin.ENVIRONMENT, "CNI_ARGS is no list of NAME=VALUE", f"{pair!r}")
        if pair:
            found[name] = value
    return found


def wishes(call: Call) -> Wishes:
    """Read what a container is to have. Raises CniError.

    The runtime's configuration goes before CNI_ARGS, which older runtimes use.
    """
    runtime = _object(call.config, "runtimeConfig")
    arguments = call.arguments or {}
    ips = runtime.get("ips") or ([arguments["IP"]] if arguments.get("IP") else [])
    mac = runtime.get("mac") or arguments.get("MAC", "")
    if mac and packed_mac(mac) is None:
        raise CniError(plugin.CONFIG, "mac is no unicast MAC address", f"{mac!r}")
    return Wishes(_addresses(ips), str(mac).lower(), _ports(runtime.get("portMappings") or []))


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise CniError(plugin.CONFIG, f"{name} is no object", f"{found!r}")
    return found


def _addresses(ips: object) -> tuple[Address, ...]:
    if not isinstance(ips, list):
        raise CniError(plugin.CONFIG, "ips is no list", f"{ips!r}")
    try:
        # With a length or without, as 10.5.1.7/24.
        found = {parse_interface(str(text)).ip for text in ips}
    except ValueError as error:
        raise CniError(plugin.CONFIG, "ips has what is no address", f"{ips!r}") from error
    if len({one.version for one in found}) < len(found):
        text = f"{ips!r}"
        raise CniError(plugin.CONFIG, "ips has to be one address of each family", text)
    return tuple(found)


def _ports(mappings: object) -> tuple[PortMapping, ...]:
    if not isinstance(mappings, list):
        raise CniError(plugin.CONFIG, "portMappings is no list", f"{mappings!r}")
    found: list[PortMapping] = []
    for fields in mappings:
        mapping = _port(fields)
        twice = next((other for other in found if other.collides(mapping)), None)
        if twice is not None:
            raise CniError(plugin.CONFIG, "portMappings has a port twice", f"{mapping}, {twice}")
        found.append(mapping)
    return tuple(found)


def _port(fields: object) -> PortMapping:
    if not isinstance(fields, dict):
        raise CniError(plugin.CONFIG, "portMappings has what is no object", f"{fields!r}")
    # podman leaves the protocol out, or writes it in capitals.
    protocol = str(fields.get("protocol") or "tcp").lower()
    if protocol not in PROTOCOLS:
        text = f"{protocol!r}; there are {', '.join(PROTOCOLS)}"
        raise CniError(plugin.CONFIG, "portMappings has an unknown protocol", text)
    ports = [fields.get("hostPort"), fields.get("containerPort")]
    for port in ports:
        # JSON's true is an instance of int, too.
        if type(port) is not int or not 0 < port < 1 << 16:
            raise CniError(plugin.CONFIG, "portMappings has what is no port", f"{port!r}")
    host_ip = str(fields.get("hostIP") or "")
    if host_ip:
        try:
            address = parse_address(host_ip)
        except ValueError as error:
            text = f"{host_ip!r}"
            raise CniError(plugin.CONFIG, "portMappings has no usable hostIP", text) from error
        if address.is_multicast or address == BROADCAST:
            text = f"{address} is of many hosts"
            raise CniError(plugin.CONFIG, "portMappings has no usable hostIP", text)
        host_ip = str(address)
    return PortMapping(protocol, host_ip, int(ports[0] or 0), int(ports[1] or 0))


def valid_attachments(call: Call) -> set[Key]:
    """Return the attachments of this network that there still are, as GC tells. Raises CniError."""
    listed = call.config.get("cni.dev/valid-attachments")
    if listed is None:
        return set()
    # To take what is none for an empty list would take all networks away.
    text = "cni.dev/valid-attachments is no list of attachments"
    if not isinstance(listed, list):
        raise CniError(plugin.CONFIG, text, f"{listed!r}")
    try:
        return {Key(call.network, str(one["containerID"]), str(one["ifname"])) for one in listed}
    except (TypeError, KeyError) as error:
        raise CniError(plugin.CONFIG, text, f"{listed!r}") from error


@dataclass(frozen=True, slots=True)
class Previous:
    """What an earlier ADD resulted in, as far as it concerns the container's own interface."""

    mac: str
    """Empty: not told."""
    addresses: tuple[Interface, ...]
    routes: tuple[tuple[Subnet, Address | None], ...]
    """Destination and gateway, if it tells one."""


LISTS = "interfaces", "ips", "routes"


def earlier(call: Call) -> Mapping[str, Any]:
    """Return the result of the plugins before this one in a network's list. Raises CniError."""
    result = call.config.get("prevResult") or {}
    if not isinstance(result, dict) or not all(
        isinstance(result.get(name) or [], list) for name in LISTS
    ):
        raise CniError(plugin.CONFIG, "prevResult is no result", f"{result!r}")
    return result


def previous(call: Call) -> Previous:
    """Read the result that CHECK is given. Raises CniError."""
    result = call.config.get("prevResult")
    if not isinstance(result, dict):
        raise CniError(plugin.CONFIG, "CHECK needs prevResult")
    try:
        interfaces = list(result.get("interfaces") or [])
        ours = [
            number
            for number, interface in enumerate(interfaces)
            if interface["name"] == call.ifname and interface.get("sandbox")
        ]
        if not ours:
            raise CniError(plugin.CONFIG, "prevResult has not the container's interface")
        addresses = tuple(
            parse_interface(str(one["address"]))
            for one in result.get("ips") or []
            if one.get("interface") in ours
        )
        routes = tuple(
            (
                parse_interface(str(one["dst"])).network,
                parse_address(str(one["gw"])) if one.get("gw") else None,
            )
            for one in result.get("routes") or []
        )
        mac = str(interfaces[ours[0]].get("mac") or "").lower()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CniError(plugin.CONFIG, "prevResult is of no use", f"{error!r}") from error
    return Previous(mac, addresses, routes)
