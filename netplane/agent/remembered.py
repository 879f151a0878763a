"""What the memory of the last agent here comes to for this one."""

from __future__ import annotations

import logging
import secrets

from netplane.agent import subnet_env
from netplane.agent.interface import ExternalInterface
from netplane.agent.ports import Who
from netplane.agent.settings import Settings
from netplane.agent.state import State, read_boot_id
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import ConfigError

log = logging.getLogger("netplane.agent")


def describe(settings: Settings, state: State, external: ExternalInterface) -> Who:
    """Return what we say about ourselves when we ask for a subnet. Reads subnet.env."""
    previous = state.own.pair if state.own is not None else None
    return Who(
        state.host_id,
        settings.public_ip or external.address.ip,
        secrets.token_hex(8),
        state.session,
        read_boot_id(),
        # Others may write the file, so it counts only where we remember nothing.
        previous or subnet_env.read_subnets(settings.subnet_file),
        state.peers,
    )


def remembered_config(state: State) -> NetworkConfig | None:
    """Return the configuration that was programmed last; None: none, or it is of no use."""
    try:
        return parse_config(state.config.encode()) if state.config else None
    except ConfigError as error:
        log.warning("the remembered configuration is of no use: %s", error)
        return None
