"""The network's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The value of `<prefix>/config`."""

    network: IPv4Network
