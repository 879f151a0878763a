"""One host's subnet as the registry's key and value say it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


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
