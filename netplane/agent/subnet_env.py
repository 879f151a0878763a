"""subnet.env: what Flannel's CNI plugin and Docker's --bip read; Flannel's keys and order."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path

from netplane.agent.files import write_whole
from netplane.subnet.family import VERSION6, Pair

log = logging.getLogger("netplane.subnet_env")


@lru_cache(1)  # asked for whenever a lease of the network changes
def render(networks: Pair, subnets: Pair, mtu: int, *, ip_masq: bool = False) -> str:
    """Return the file's text. FLANNEL_SUBNET is the gateway: the subnet's first address."""
    text = ""
    for subnet in subnets.all():
        network = networks.of(subnet.version)
        prefix = "FLANNEL_IPV6" if subnet.version == VERSION6 else "FLANNEL"
        text += (
            f"{prefix}_NETWORK={network}\n"
            f"{prefix}_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
        )
    return f"{text}FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={str(ip_masq).lower()}\n"


def write(path: Path, text: str) -> bool:
    """Write the file unless it says the same already; return whether it was written.

    Blocks for the fsync. Raises OSError.
    """
    try:
        if path.read_text() == text:
            return False
    except (FileNotFoundError, UnicodeDecodeError):
        pass  # to be written, or nothing of ours
    write_whole(path, text)
    return True


class SubnetFile:
    """The file of an agent that runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = ""

    async def keep(self, text: str) -> str:
        """Have the file say this; return why it cannot, or "".

        To look whether a file is there blocks for no disk. A thread for each lease in the network
        that changes would cost more than what is done for it in the kernel.
        """
        if text == self._written and self._path.exists():
            return ""
        self._written = ""
        try:
            await asyncio.to_thread(write, self._path, text)
        except OSError as error:
            return f"cannot write {self._path}: {error.strerror}"
        self._written = text
        return ""


def read_subnets(path: Path) -> Pair | None:
    """Return the subnets this host had, to ask for them again; None when the file does not tell.

    A host that lost its other memory keeps the addresses of its containers so.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        log.warning("cannot read %s, so it says nothing about our subnet: %s", path, error)
        return None
    first: IPv4Network | None = None
    second: IPv6Network | None = None
    for line in text.splitlines():
        key, _, value = line.strip().partition("=")
        value = value.strip("\"'")
        try:
            if key == "FLANNEL_SUBNET":
                first = IPv4Interface(value).network
            elif key == "FLANNEL_IPV6_SUBNET":
                second = IPv6Interface(value).network
        except ValueError:
            log.warning("%s has no usable %s (%r)", path, key, value)
    if first is None:
        return None if second is None else Pair(second)
    return Pair(first, second)
