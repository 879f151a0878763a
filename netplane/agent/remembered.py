"""What the memory of the last agent here comes to for this one."""

from __future__ import annotations

import logging
import secrets
from ipaddress import IPv4Interface, IPv6Address

from netplane.agent import subnet_env
from netplane.agent.interface import ExternalInterface
from netplane.agent.ports import Who
from netplane.agent.settings import Settings
from netplane.agent.state import State, read_boot_id
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import ConfigError
from netplane.subnet.family import Address
from netplane.subnet.lease import Lease

log = logging.getLogger("netplane.agent")


def describe(settings: Settings, state: State, external: ExternalInterface) -> Who:
    """Return what we say about ourselves when we ask for a subnet. Reads subnet.env."""
    public_ip, public_ip6 = reached_by(settings, external)
    return Who(
        state.host_id,
        public_ip,
        secrets.token_hex(8),
        state.session,
        read_boot_id(),
        # Others may write the file, so it counts only where we remember nothing.
        state.pair or subnet_env.read_subnets(settings.subnet_file),
        state.peers,
        public_ip6,
    )


def left(state: State, own: Lease | None) -> str:
    """Return our subnet of the family that the network has no more; empty: it has not lost one."""
    before = state.pair
    if own is None or before is None:
        return ""
    gone = [one for one in before.all() if own.pair.of(one.version) is None]
    return str(gone[0]) if gone else ""


def reached_by(
    settings: Settings, external: ExternalInterface
) -> tuple[Address, IPv6Address | None]:
    """Return the addresses that other hosts are to use, as the subnet layer wants them.

    The second beside an IPv4 one only.
    """
    found6 = external.address6.ip if external.address6 is not None else None
    address6 = settings.public_ipv6 or found6
    if settings.public_ip is not None:
        return settings.public_ip, address6
    if isinstance(external.address, IPv4Interface):
        return external.address.ip, address6
    return settings.public_ipv6 or external.address.ip, None


def remembered_config(state: State) -> NetworkConfig | None:
    """Return the configuration that was programmed last; None: none, or it is of no use."""
    try:
        return parse_config(state.config.encode()) if state.config else None
    except ConfigError as error:
        log.warning("the remembered configuration is of no use: %s", error)
        return None
