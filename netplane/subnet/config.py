"""The network's configuration, Flannel's net-conf: keys, defaults, checks. Reads no registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType
from typing import cast

from netplane.subnet.errors import ConfigError
from netplane.subnet.fields import flag, number, text, vni, vxlan
from netplane.subnet.jsontext import FormatError, lowered, parse_object

_LEN_DEFAULT = 24
_NETWORK_LEN_FOR_DEFAULT = 22
_LEN_MAX = 30
_NETWORK_LEN_MAX = 28
_NO_BACKEND = MappingProxyType({"type": "udp"})
# Flannel's documentation says vxlan; what it does without the object is udp.


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The value of `<prefix>/config`, checked, with defaults filled in."""

    network: IPv4Network
    subnet_len: int
    """Prefix length of a host's subnet."""
    subnet_min: IPv4Network
    """First subnet that is given out, `subnet_max` the last."""
    subnet_max: IPv4Network
    backend_type: str
    """Lower case."""
    backend: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """The other fields of Backend, by their names in lower case: `vni`, `port`, `mtu` ..."""

    @property
    def vni(self) -> int:
        """The vxlan backend's network identifier."""
        return vni(self.backend)

    @property
    def capacity(self) -> int:
        """How many subnets there are to give out."""
        return self.position(self.subnet_max) + 1

    def position(self, subnet: IPv4Network) -> int:
        """Return where a subnet of our length stands, counted from `subnet_min`."""
        step = 1 << (32 - self.subnet_len)
        return (int(subnet.network_address) - int(self.subnet_min.network_address)) // step

    def subnet_at(self, position: int) -> IPv4Network:
        """Return the subnet at a position; the inverse of `position`."""
        step = 1 << (32 - self.subnet_len)
        return IPv4Network(
            (int(self.subnet_min.network_address) + position * step, self.subnet_len)
        )

    def misfit(self, subnet: IPv4Network, *, reserved: bool = False) -> str:
        """Say why a host may not have this subnet; "" when it may.

        A reservation may lie outside of SubnetMin and SubnetMax: that is what it is good for.
        """
        if not subnet.subnet_of(self.network):
            return f"it is outside of Network {self.network}"
        if subnet.prefixlen != self.subnet_len:
            return f"SubnetLen is {self.subnet_len}"
        if not reserved and not self.subnet_min <= subnet <= self.subnet_max:
            low, high = _address(self.subnet_min), _address(self.subnet_max)
            return f"SubnetMin is {low}, SubnetMax {high}"
        return ""


def parse_config(data: bytes) -> NetworkConfig:
    """Read the configuration as Flannel does. Raises ConfigError that says what to change."""
    try:
        return _parsed(parse_object(data))
    except ValueError as error:
        raise ConfigError(
            f"the network's configuration cannot be used: {error}; correct it with "
            "`netplane ctl init --force`"
        ) from error


def _parsed(fields: dict[str, object]) -> NetworkConfig:
    if not flag(fields, "EnableIPv4", default=True) or flag(fields, "EnableIPv6"):
        raise FormatError("only IPv4 networks are supported: leave EnableIPv4 and EnableIPv6 out")
    network = _network(fields)
    length = _subnet_len(fields, network)
    step = 1 << (32 - length)
    first = int(network.network_address)
    # The first subnet's address is the network's own, so it is left out, as by Flannel.
    subnet_min = _bound(fields, "SubnetMin", network, length, first + step)
    last = int(network.broadcast_address) + 1 - step
    subnet_max = _bound(fields, "SubnetMax", network, length, last)
    if subnet_min > subnet_max:
        raise FormatError(
            f"SubnetMin {_address(subnet_min)} is above SubnetMax {_address(subnet_max)}"
        )
    backend = _backend(fields)
    kind = cast("str", backend.pop("type")).lower()
    return NetworkConfig(network, length, subnet_min, subnet_max, kind, MappingProxyType(backend))


def _network(fields: dict[str, object]) -> IPv4Network:
    given = text(fields, "Network")
    if not given:
        raise FormatError('Network is missing; an example: {"Network":"10.5.0.0/16"}')
    if "/" not in given:
        raise FormatError(f"Network {given!r} is not a CIDR such as 10.5.0.0/16")
    try:
        return IPv4Network(given, strict=False)
    except ValueError as error:
        raise FormatError(f"Network {given!r} is not an IPv4 CIDR such as 10.5.0.0/16") from error


def _subnet_len(fields: dict[str, object], network: IPv4Network) -> int:
    given = number(fields, "SubnetLen", 0, 32)
    if not given:
        if network.prefixlen > _NETWORK_LEN_MAX:
            raise FormatError(f"Network {network} is too small to divide; take a /28 or larger")
        if network.prefixlen <= _NETWORK_LEN_FOR_DEFAULT:
            return _LEN_DEFAULT
        return network.prefixlen + 2
    if given > _LEN_MAX:
        raise FormatError(
            f"SubnetLen {given} leaves no room for containers; {_LEN_MAX} is the most"
        )
    if given < network.prefixlen + 2:
        raise FormatError(
            f"SubnetLen {given} gives fewer than 4 subnets in {network}; take "
            f"{network.prefixlen + 2} or more"
        )
    return given


def _bound(
    fields: dict[str, object], name: str, network: IPv4Network, length: int, default: int
) -> IPv4Network:
    given = text(fields, name)
    try:
        address = IPv4Address(given) if given else IPv4Address(0)
    except ValueError as error:
        raise FormatError(f"{name} {given!r} is not an IPv4 address") from error
    if not int(address):
        return IPv4Network((default, length))
    if address not in network:
        raise FormatError(f"{name} {address} is outside of Network {network}")
    try:
        return IPv4Network((address, length))
    except ValueError as error:
        raise FormatError(f"{name} {address} is not the first address of a /{length}") from error


def _backend(fields: dict[str, object]) -> dict[str, object]:
    value = fields.get("backend")
    if value is None:
        return dict(_NO_BACKEND)
    if not isinstance(value, dict):
        raise FormatError('Backend is not an object such as {"Type":"vxlan"}')
    found = lowered(value)
    if not text(found, "Type"):
        raise FormatError('Backend has no Type; an example: {"Type":"vxlan"}')
    if cast("str", found["type"]).lower() == "vxlan":
        vxlan(found)
    return found


def _address(subnet: IPv4Network) -> str:
    return str(subnet.network_address)
