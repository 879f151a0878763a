"""A host's subnet and all of them together, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from netplane.subnet.config import NetworkConfig


@dataclass(frozen=True, slots=True)
class Lease:
    """One host's subnet as its key and value say it."""

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str  # lower case; "" where Flannel omits it (udp, alloc)
    backend_data: object = None  # the JSON of BackendData
    key: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    expires: bool = True  # False: a reservation, no etcd lease attached


@dataclass(frozen=True, slots=True)
class View:
    """Every peer's lease at one revision; complete, valid, and never guessed."""

    cluster_id: int
    revision: int
    own: Lease | None  # what the registry says of us
    peers: Mapping[IPv4Network, Lease]
    quarantined: Mapping[bytes, str]  # key -> reason, in words for an operator
    config: NetworkConfig
