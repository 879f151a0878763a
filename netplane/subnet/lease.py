"""Leases: their keys and values, byte for byte as Flannel writes them. Reads no registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from netplane.subnet.config import NetworkConfig
from netplane.subnet.jsontext import FormatError, parse_object, text_of

_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([0-9a-f:]+)-(\d+))?", re.ASCII)
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", re.ASCII)
_BROADCAST = IPv4Address("255.255.255.255")
_ONLY_IPV6 = "0.0.0.0-0"
WITHOUT_TYPE = frozenset(("udp", "alloc"))
# Flannel leaves BackendType out for these.


@dataclass(frozen=True, slots=True)
class Lease:
    """One host's subnet as its key and value say it."""

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str
    """Lower case; "" where Flannel omits it (udp, alloc)."""
    backend_data: object = None
    """The JSON of BackendData."""
    key: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    expires: bool = True
    """False: a reservation, no etcd lease attached."""


@dataclass(frozen=True, slots=True)
class View:
    """Every peer's lease at one revision; complete, valid, and never guessed."""

    cluster_id: int
    revision: int
    own: Lease | None
    """What the registry says of us."""
    peers: Mapping[IPv4Network, Lease]
    quarantined: Mapping[bytes, str]
    """Key -> reason, in words for an operator."""
    config: NetworkConfig


def address_problem(address: IPv4Address, network: IPv4Network) -> str:
    """Say why no host of a network can have this PublicIP; "" when one can."""
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        return f"PublicIP {address} is no host's address"
    if address == _BROADCAST:
        return f"PublicIP {address} is everybody's address"
    if address in network:
        return f"PublicIP {address} is inside of the overlay's own Network {network}"
    return ""


def packed_mac(text: object) -> bytes | None:
    """Return a MAC that one interface can have; None for whatever else it is."""
    if not isinstance(text, str) or not MAC.fullmatch(text):
        return None
    packed = bytes.fromhex(text.replace(":", ""))
    return None if packed[0] & 1 or not any(packed) else packed


def subnet_name(subnet: IPv4Network) -> str:
    """Return the last part of a lease's key."""
    return f"{subnet.network_address}-{subnet.prefixlen}"


def parse_name(name: bytes) -> IPv4Network:
    """Return the IPv4 subnet that the last part of a key names. Raises FormatError."""
    try:
        found = _KEY.fullmatch(name.decode("ascii"))
    except UnicodeDecodeError:
        found = None
    if found is None:
        raise FormatError("the key is not <address>-<length>")
    if found.group(0).startswith(_ONLY_IPV6 + "&"):
        raise FormatError("an IPv6 lease, which is not supported")
    address, length = found.group(1), found.group(2)
    try:
        subnet = IPv4Network(f"{address}/{length}")
    except ValueError as error:
        raise FormatError(f"the key is no subnet: {error}") from error
    if subnet_name(subnet) != f"{address}-{length}":
        # Else one subnet could have several keys.
        raise FormatError(f"the key is not written as {subnet_name(subnet)}")
    return subnet


def encode_value(public_ip: IPv4Address, backend_type: str, backend_data: object = None) -> bytes:
    """Return a lease's value: the bytes that Flannel would write."""
    fields: dict[str, object] = {"PublicIP": str(public_ip), "PublicIPv6": None}
    if backend_type and backend_type not in WITHOUT_TYPE:
        fields["BackendType"] = backend_type
    if backend_data is not None:
        fields["BackendData"] = backend_data
    return text_of(fields)


def decode_value(value: bytes, subnet: IPv4Network, **places: Any) -> Lease:
    """Read a lease's value as Flannel does; `places` are its key, revisions and `expires`.

    Raises FormatError.
    """
    fields = parse_object(value)
    address = fields.get("publicip")
    try:
        # Not str() of whatever is there: a number would be taken for an address, too.
        public_ip = IPv4Address(address if isinstance(address, str) else "")
    except ValueError as error:
        raise FormatError(f"PublicIP {address!r} is not an IPv4 address") from error
    backend_type = fields.get("backendtype") or ""
    if not isinstance(backend_type, str):
        raise FormatError("BackendType is not a string")
    data = fields.get("backenddata")
    return Lease(subnet, public_ip, backend_type.lower(), data, **places)
