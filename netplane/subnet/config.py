"""The network's configuration, Flannel's net-conf: keys, defaults, checks. Reads no registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from types import MappingProxyType
from typing import NamedTuple, cast

from netplane.subnet.errors import ConfigError
from netplane.subnet.family import (
    VERSION6,
    Pair,
    Subnet,
    ipv6_address,
    ipv6_network,
    is_within,
    subnet_from,
)
from netplane.subnet.fields import flag, number, text, vni, vxlan
from netplane.subnet.jsontext import FormatError, lowered, parse_object


class _Family(NamedTuple):
    """Flannel's rules for one family."""

    prefix: str
    """Of its keys."""
    label: str
    len_default: int
    network_len_for_default: int
    len_max: int
    network_len_max: int
    example: str


_IPV4 = _Family("", "IPv4", 24, 22, 30, 28, "10.5.0.0/16")
_IPV6 = _Family("IPv6", "IPv6", 64, 62, 126, 124, "fd00:10:5::/48")
_FIELDS = {
    *("backend", "enablenftables"),
    *("enableipv4", "network", "subnetlen", "subnetmin", "subnetmax"),
    *("enableipv6", "ipv6network", "ipv6subnetlen", "ipv6subnetmin", "ipv6subnetmax"),
}
_BACKEND_FIELDS = {
    "alloc": set[str](),
    "host-gw": set[str](),
    "netplane-udp": {"port"},
    "udp": {"port"},
    "vxlan": {"vni", "port", "mtu", "learning", "gbp", "directrouting"},
}
_NO_BACKEND = MappingProxyType({"type": "udp"})
# Flannel's documentation says vxlan; what it does without the object is udp.


@dataclass(frozen=True, slots=True)
class Range:
    """What the subnets of one family are given out of."""

    network: Subnet
    subnet_len: int
    """Prefix length of a host's subnet."""
    subnet_min: Subnet
    """First subnet that is given out, `subnet_max` the last."""
    subnet_max: Subnet

    @property
    def prefix(self) -> str:
        """What the configuration's keys for this family begin with."""
        return "IPv6" if self.network.version == VERSION6 else ""

    @property
    def step(self) -> int:
        """How many addresses a subnet has."""
        return 1 << (self.network.max_prefixlen - self.subnet_len)

    @property
    def capacity(self) -> int:
        """How many subnets there are to give out."""
        return self.position(self.subnet_max) + 1

    def position(self, subnet: Subnet) -> int:
        """Return where a subnet of our length stands, counted from `subnet_min`."""
        first = int(self.subnet_min.network_address)
        return (int(subnet.network_address) - first) // self.step

    def subnet_at(self, position: int) -> Subnet:
        """Return the subnet at a position; the inverse of `position`."""
        first = int(self.subnet_min.network_address)
        return subnet_from(self.network, first + position * self.step, self.subnet_len)

    def misfit(self, subnet: Subnet, *, reserved: bool = False) -> str:
        """Say why a host may not have this subnet; "" when it may.

        A reservation may lie outside of SubnetMin and SubnetMax: that is what it is good for.
        """
        name = self.prefix
        if not is_within(subnet, self.network):
            return f"it is outside of {name}Network {self.network}"
        if subnet.prefixlen != self.subnet_len:
            return f"{name}SubnetLen is {self.subnet_len}"
        low, high = self.subnet_min.network_address, self.subnet_max.network_address
        if not (reserved or int(low) <= int(subnet.network_address) <= int(high)):
            return f"{name}SubnetMin is {low}, {name}SubnetMax {high}"
        return ""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The value of `<prefix>/config`, checked, with defaults filled in."""

    first: Range
    """IPv4, unless the network has IPv6 only."""
    backend_type: str
    """Lower case."""
    backend: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """The other fields of Backend, by their names in lower case: `vni`, `port`, `mtu` ..."""
    second: Range | None = None
    """IPv6 beside IPv4."""

    @property
    def network(self) -> Subnet:
        """All addresses of the first family."""
        return self.first.network

    @property
    def subnet_len(self) -> int:
        """Of the first family, as the next two."""
        return self.first.subnet_len

    @property
    def subnet_min(self) -> Subnet:
        """See `Range`."""
        return self.first.subnet_min

    @property
    def subnet_max(self) -> Subnet:
        """See `Range`."""
        return self.first.subnet_max

    @property
    def networks(self) -> Pair:
        """Return the addresses of both families."""
        second = None if self.second is None else self.second.network
        assert second is None or isinstance(second, IPv6Network)
        return Pair(self.network, second)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Return what there is of both families."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def halves(self) -> tuple[NetworkConfig, ...]:
        """Return a configuration for each family alone."""
        if self.second is None:
            return (self,)
        return tuple(replace(self, first=one, second=None) for one in self.ranges)

    @property
    def vni(self) -> int:
        """The vxlan backend's network identifier."""
        return vni(self.backend)

    def misfit(self, pair: Pair, *, reserved: bool = False) -> str:
        """Say why a host may not have these subnets; "" when it may. See `Range.misfit`."""
        if self.second is None:
            reason = self.first.misfit(pair.first, reserved=reserved)
            if not reason and pair.second is not None:
                return f"the network has no IPv6, and it has {pair.second}"
            return reason
        reason = self.first.misfit(pair.first, reserved=reserved)
        if reason:
            return reason
        if pair.second is None:
            return f"it has no subnet of IPv6Network {self.second.network}"
        return self.second.misfit(pair.second, reserved=reserved)


def read_config(data: bytes) -> NetworkConfig:
    """Read a configuration as Flannel does. Raises FormatError that says what is wrong."""
    return _parsed(parse_object(data))


def strange_fields(data: bytes) -> list[str]:
    """Name the fields of a configuration that mean nothing here, as one that is misspelt does.

    They are no error: Flannel takes no notice of them either. Raises FormatError.
    """
    # Backend is an object, or there is none: whoever asks has read the configuration before.
    fields = parse_object(data)
    backend = lowered(cast("dict[str, object]", fields.get("backend") or _NO_BACKEND))
    known = _BACKEND_FIELDS.get(str(backend.get("type")).lower())
    found = sorted(fields.keys() - _FIELDS)
    if known is not None:  # else it is one of Flannel's alone
        found += sorted(f"backend.{name}" for name in backend.keys() - known - {"type"})
    return found


def parse_config(data: bytes) -> NetworkConfig:
    """Read the registered configuration. Raises ConfigError that says what to change."""
    try:
        return read_config(data)
    except ValueError as error:
        raise ConfigError(
            f"the network's configuration cannot be used: {error}; correct it with "
            "`netplane ctl init --force`"
        ) from error


def _parsed(fields: dict[str, object]) -> NetworkConfig:
    ranges = []
    if flag(fields, "EnableIPv4", default=True):
        ranges.append(_range(fields, _IPV4))
    if flag(fields, "EnableIPv6"):
        ranges.append(_range(fields, _IPV6))
    if not ranges:
        raise FormatError("EnableIPv4 is false and EnableIPv6 is not true: take one of them")
    backend = _backend(fields)
    kind = cast("str", backend.pop("type")).lower()
    second = ranges[1] if len(ranges) > 1 else None
    return NetworkConfig(ranges[0], kind, MappingProxyType(backend), second)


def _range(fields: dict[str, object], family: _Family) -> Range:
    network = _network(fields, family)
    length = _subnet_len(fields, family, network)
    step = 1 << (network.max_prefixlen - length)
    first = int(network.network_address)
    # The first subnet's address is the network's own, so it is left out, as by Flannel.
    low = _bound(fields, family, "SubnetMin", network, length, first + step)
    last = int(network.broadcast_address) + 1 - step
    high = _bound(fields, family, "SubnetMax", network, length, last)
    if int(low.network_address) > int(high.network_address):
        name = family.prefix
        raise FormatError(
            f"{name}SubnetMin {low.network_address} is above {name}SubnetMax {high.network_address}"
        )
    return Range(network, length, low, high)


def _network(fields: dict[str, object], family: _Family) -> Subnet:
    name, example = f"{family.prefix}Network", family.example
    given = text(fields, name)
    if not given:
        raise FormatError(f'{name} is missing; an example: {{"{name}":"{example}"}}')
    if "/" not in given:
        raise FormatError(f"{name} {given!r} is not a CIDR such as {example}")
    network: Subnet
    try:
        if family is _IPV4:
            network = IPv4Network(given, strict=False)
        else:
            network = ipv6_network(given, strict=False)
    except ValueError as error:
        text_ = f"{name} {given!r} is not an {family.label} CIDR such as {example}"
        raise FormatError(text_) from error
    # Flannel takes them, and no packet ever arrives. (Linux does forward IPv4's of one link.)
    is_of_one_link = family is _IPV6 and network.is_link_local
    if network.is_loopback or network.is_multicast or is_of_one_link:
        raise FormatError(
            f"{name} {network} has addresses that no host forwards to; take one such as {example}"
        )
    return network


def _subnet_len(fields: dict[str, object], family: _Family, network: Subnet) -> int:
    name = f"{family.prefix}SubnetLen"
    given = number(fields, name, 0, network.max_prefixlen)
    if not given:
        if network.prefixlen > family.network_len_max:
            raise FormatError(
                f"{family.prefix}Network {network} is too small to divide; take a "
                f"/{family.network_len_max} or larger"
            )
        if network.prefixlen <= family.network_len_for_default:
            return family.len_default
        return network.prefixlen + 2
    if given > family.len_max:
        raise FormatError(
            f"{name} {given} leaves no room for containers; {family.len_max} is the most"
        )
    if given < network.prefixlen + 2:
        raise FormatError(
            f"{name} {given} gives fewer than 4 subnets in {network}; take "
            f"{network.prefixlen + 2} or more"
        )
    return given


def _bound(
    fields: dict[str, object], family: _Family, key: str, network: Subnet, length: int, default: int
) -> Subnet:
    name = f"{family.prefix}{key}"
    given = text(fields, name)
    try:
        if family is _IPV4:
            address = int(IPv4Address(given)) if given else 0
        else:
            address = int(ipv6_address(given)) if given else 0
    except ValueError as error:
        raise FormatError(f"{name} {given!r} is not an {family.label} address") from error
    if not address:
        return subnet_from(network, default, length)
    if not int(network.network_address) <= address <= int(network.broadcast_address):
        raise FormatError(f"{name} {given} is outside of {family.prefix}Network {network}")
    try:
        return subnet_from(network, address, length)
    except ValueError as error:
        raise FormatError(f"{name} {given} is not the first address of a /{length}") from error


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
