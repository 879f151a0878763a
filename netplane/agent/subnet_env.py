"""subnet.env: what Flannel's CNI plugin and Docker's --bip read; Flannel's keys and order."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from netplane.agent.files import write_whole

log = logging.getLogger("netplane.subnet_env")


@lru_cache(1)  # asked for whenever a lease of the network changes
def render(network: IPv4Network, subnet: IPv4Network, mtu: int, *, ip_masq: bool = False) -> str:
    """Return the file's text. FLANNEL_SUBNET is the gateway: the subnet's first address."""
    return (
        f"FLANNEL_NETWORK={network}\n"
        f"FLANNEL_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
        f"FLANNEL_MTU={mtu}\n"
        f"FLANNEL_IPMASQ={str(ip_masq).lower()}\n"
    )


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


def read_subnet(path: Path) -> IPv4Network | None:
    """Return the subnet this host had, to ask for it again; None when the file does not tell.

    A host that lost its other memory keeps the addresses of its containers so.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        log.warning("cannot read %s, so it says nothing about our subnet: %s", path, error)
        return None
    for line in text.splitlines():
        key, _, value = line.strip().partition("=")
        if key == "FLANNEL_SUBNET":
            try:
                return IPv4Interface(value.strip("\"'")).network
            except ValueError:
                log.warning("%s has no usable FLANNEL_SUBNET (%r)", path, value)
    return None
