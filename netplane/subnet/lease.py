"""Leases: their keys and values, byte for byte as Flannel writes them. Reads no registry."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from netplane.subnet.config import NetworkConfig, Range
from netplane.subnet.family import (
    VERSION6,
    Address,
    LeasedSubnet,
    Pair,
    Subnet,
    ipv4_address,
    ipv6_address,
    ipv6_network,
)
from netplane.subnet.jsontext import FormatError, parse_object, text_of

_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([0-9a-f:]+)-(\d+))?", re.ASCII)
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", re.ASCII)
_BROADCAST = IPv4Address("255.255.255.255")
_HOSTS = frozenset(range(1, 224)) - {127}
"""First bytes of IPv4 addresses that any host may have: not of this host, nor of many."""
_ONLY_IPV6 = "0.0.0.0-0"
_NO_ADDRESS = "0.0.0.0"  # noqa: S104 (what Flannel writes where there is no IPv4)
WITHOUT_TYPE = frozenset(("udp", "alloc"))
# Flannel leaves BackendType out for these.
_IPV4_BITS = 32
_LENGTHS = {str(length): length for length in range(_IPV4_BITS + 1)}


@dataclass(frozen=True, slots=True)
class Lease:
    """What one host has, as its key and value say it: one object for both families.

    So it is valid or not, ours or not, gone or there as a whole.
    """

    subnet: Subnet
    """IPv4, unless the network has IPv6 only."""
    public_ip: Address
    """Of the same family."""
    backend_type: str
    """Lower case; "" where Flannel omits it (udp, alloc)."""
    backend_data: object = None
    """The JSON of BackendData; that of BackendV6Data where there is only IPv6."""
    key: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    expires: bool = True
    """False: a reservation, no etcd lease attached."""
    subnet6: IPv6Network | None = None
    """Beside an IPv4 one; so are the next two."""
    public_ip6: IPv6Address | None = None
    backend_data6: object = None

    @property
    def pair(self) -> Pair:
        """Return the subnets of both families."""
        return Pair(self.subnet, self.subnet6)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return the addresses of both families."""
        return addresses(self.public_ip, self.public_ip6)

    def second(self) -> Lease | None:
        """Return the IPv6 half as a lease of its own; None: there is no second half."""
        if self.subnet6 is None or self.public_ip6 is None:
            return None
        return replace(
            self,
            subnet=self.subnet6,
            public_ip=self.public_ip6,
            backend_data=self.backend_data6,
            subnet6=None,
            public_ip6=None,
            backend_data6=None,
        )

    def without_second(self) -> Lease:
        """Return what a network of one family goes by."""
        if self.subnet6 is None:
            return self
        return replace(self, subnet6=None, public_ip6=None, backend_data6=None)


class Peers(dict[Subnet, Lease]):
    """Leases by subnet, which nobody changes, and how they come from those of the view before.

    One of a thousand is another, as a rule, and to find out which takes as long as to program it.
    """

    __slots__ = ("mark", "step")

    def __init__(
        self, leases: Mapping[Subnet, Lease], before: Peers | None = None,
        came: Sequence[Lease] = (), gone: Sequence[Lease] = (),
    ) -> None:  # fmt: skip
        super().__init__(leases)
        self.mark = object()
        # Not the others themselves, or all that ever were would be kept.
        self.step = (None if before is None else before.mark, came, gone)

    @staticmethod
    def changed(
        before: Mapping[Subnet, Lease], after: Mapping[Subnet, Lease]
    ) -> tuple[Sequence[Lease], Sequence[Lease]]:
        """Return the leases that came and those that are gone: of one that changed, both."""
        if isinstance(after, Peers) and isinstance(before, Peers):
            if after is before:
                return (), ()
            since, came, gone = after.step
            if since is before.mark:
                return came, gone
        # That a lease is the very same object can be seen at once.
        old, new = ({id(lease): lease for lease in all_.values()} for all_ in (before, after))
        return (
            [lease for key, lease in new.items() if key not in old],
            [lease for key, lease in old.items() if key not in new],
        )


@dataclass(frozen=True, slots=True)
class View:
    """Every peer's lease at one revision; complete, valid, and never guessed."""

    cluster_id: int
    revision: int
    own: Lease | None
    """What the registry says of us."""
    peers: Mapping[Subnet, Lease]
    quarantined: Mapping[bytes, str]
    """Key -> reason, in words for an operator."""
    config: NetworkConfig


def addresses(public_ip: Address, public_ip6: IPv6Address | None) -> tuple[Address, ...]:
    """Return what there is of both."""
    return (public_ip,) if public_ip6 is None else (public_ip, public_ip6)


def public(address: Address) -> str:
    """Name a host's address for an operator, as the lease does."""
    return f"PublicIP{'v6' if address.version == VERSION6 else ''} {address}"


def address_problem(address: Address, given: Range) -> str:
    """Say why no host of a network can have this PublicIP; "" when one can."""
    what = _special(address)
    if not what and address in given.network:
        what = f"inside of the overlay's own {given.prefix}Network {given.network}"
    return f"{public(address)} is {what}" if what else ""


def _special(address: Address) -> str:
    """Say what an address is that no host has anywhere; "" for nothing."""
    if isinstance(address, IPv4Address):
        if int(address) >> 24 in _HOSTS:
            return ""  # as nearly all are
        if address == _BROADCAST:
            return "everybody's address"
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        return "no host's address"
    if isinstance(address, IPv6Address):
        if address.is_link_local:
            return "of one link only"
        if address.ipv4_mapped is not None or not int(address) >> _IPV4_BITS:
            return "an IPv4 address in disguise"
    return ""


def packed_mac(text: object) -> bytes | None:
    """Return a MAC that one interface can have; None for whatever else it is."""
    if not isinstance(text, str) or not MAC.fullmatch(text):
        return None
    packed = bytes.fromhex(text.replace(":", ""))
    return None if packed[0] & 1 or not any(packed) else packed


def subnet_name(subnet: Subnet, subnet6: IPv6Network | None = None) -> str:
    """Return the last part of a lease's key."""
    name = f"{subnet.network_address}-{subnet.prefixlen}"
    if subnet.version == VERSION6:
        return f"{_ONLY_IPV6}&{name}"
    if subnet6 is not None:
        return f"{name}&{subnet6.network_address}-{subnet6.prefixlen}"
    return name


def parse_name(name: bytes) -> Pair:
    """Return the subnets that the last part of a key names. Raises FormatError."""
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if (plain := _plain_subnet(text)) is not None:
        return Pair(plain)
    found = _KEY.fullmatch(text)
    if found is None:
        raise FormatError("the key is not <address>-<length>")
    address, length, address6, length6 = found.groups()
    try:
        pair = Pair(IPv4Network(f"{address}/{length}"))
        if address6 is not None:
            second = ipv6_network(f"{address6}/{length6}")
            # Of hosts without IPv4 only the IPv6 part says who is who.
            is_only = not pair.first.prefixlen
            pair = Pair(second) if is_only else Pair(pair.first, second)
    except ValueError as error:
        raise FormatError(f"the key is no subnet: {error}") from error
    if subnet_name(*pair) != found.group():
        # Else one subnet could have several keys.
        raise FormatError(f"the key is not written as {subnet_name(*pair)}")
    return pair


def _plain_subnet(name: str) -> IPv4Network | None:
    """Read a name as nearly all are, of IPv4 alone; None: another, or one of no use.

    In a third of the time that the rest of `parse_name` takes, which finds the same.
    """
    address, _, length = name.partition("-")
    try:
        # Both take one way of writing only.
        return LeasedSubnet((socket.inet_pton(socket.AF_INET, address), _LENGTHS[length]))
    except (OSError, ValueError, KeyError):
        return None


def encode_value(
    public_ip: Address,
    backend_type: str,
    backend_data: object = None,
    public_ip6: IPv6Address | None = None,
    backend_data6: object = None,
) -> bytes:
    """Return a lease's value: the bytes that Flannel would write.

    Without IPv4 the first address is IPv6, and the first data are those of IPv6.
    """
    public_ip4 = str(public_ip)
    if isinstance(public_ip, IPv6Address):
        public_ip4, public_ip6 = _NO_ADDRESS, public_ip
        backend_data, backend_data6 = None, backend_data
    fields: dict[str, object] = {
        "PublicIP": public_ip4,
        "PublicIPv6": None if public_ip6 is None else str(public_ip6),
    }
    if backend_type and backend_type not in WITHOUT_TYPE:
        fields["BackendType"] = backend_type
    if backend_data is not None:
        fields["BackendData"] = backend_data
    if backend_data6 is not None:
        fields["BackendV6Data"] = backend_data6
    return text_of(fields)


def decode_value(
    value: bytes, subnet: Subnet, subnet6: IPv6Network | None = None, **places: Any
) -> Lease:
    """Read a lease's value as Flannel does; `places` are its key, revisions and `expires`.

    Raises FormatError.
    """
    fields = parse_object(value)
    backend_type = fields.get("backendtype") or ""
    if not isinstance(backend_type, str):
        raise FormatError("BackendType is not a string")
    backend_type = backend_type.lower()
    if subnet.version == VERSION6:
        data = fields.get("backendv6data")
        return Lease(subnet, _address6(fields), backend_type, data, **places)
    address = fields.get("publicip")
    try:
        # Not str() of whatever is there: a number would be taken for an address, too.
        public_ip = ipv4_address(address if isinstance(address, str) else "")
    except ValueError as error:
        raise FormatError(f"PublicIP {address!r} is not an IPv4 address") from error
    data = fields.get("backenddata")
    if subnet6 is None:
        return Lease(subnet, public_ip, backend_type, data, **places)
    return Lease(
        subnet, public_ip, backend_type, data,
        subnet6=subnet6,
        # Without one it lacks what a network of both families demands; one of IPv4 asks for none.
        public_ip6=None if fields.get("publicipv6") is None else _address6(fields),
        backend_data6=fields.get("backendv6data"),
        **places,
    )  # fmt: skip


def _address6(fields: Mapping[str, object]) -> IPv6Address:
    address = fields.get("publicipv6")
    try:
        return ipv6_address(address if isinstance(address, str) else "")
    except ValueError as error:
        raise FormatError(f"PublicIPv6 {address!r} is not an IPv6 address") from error
