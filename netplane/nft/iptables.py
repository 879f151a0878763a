"""The programs of iptables: of the form that keeps its rules itself, and of the one that uses nft.

Everything here blocks, and acts in the namespace of the calling thread.
"""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

from netplane.nft.chains import DOCKER, FORWARD, Chain, legacy_lines

TABLES = Path("/proc/thread-self/net/ip_tables_names")
TIMEOUT_S = 10.0
LOCK_S = "5"
"""How long the program waits for another one that writes."""
NAME = "FORWARD of iptables-legacy"


class IptablesError(Exception):
    """The program is missing, or failed; the text tells what helps."""


def look_at_legacy(network: IPv4Network) -> Chain | None:
    """Return the chain of forwarded packets; None where the kernel has no such table.

    To ask for a table that is not there would make it. Raises IptablesError.
    """
    try:
        tables = TABLES.read_text().split()
    except OSError:  # no such module: nothing can drop there
        return None
    if "filter" not in tables:
        return None
    policy, own = legacy_lines(_run(_legacy(), "-w", LOCK_S, "-S", FORWARD), network)
    docker = None
    if any(line.jumps == DOCKER for line in own):
        _, docker = legacy_lines(_run(_legacy(), "-w", LOCK_S, "-S", DOCKER), network)
    return Chain(NAME, policy, own, docker, is_iptables=True)


def write_legacy(commands: str) -> None:
    """Do what `iptables-restore --noflush` reads, all or nothing. Raises IptablesError."""
    _run(f"{_legacy()}-restore", "-w", LOCK_S, "--noflush", text=commands)


def print_chain(chain: str) -> str:
    """Return what iptables on nftables say of a chain; "" where there is no such program.

    Raises IptablesError.
    """
    name = _program("iptables-nft", uses_nft=True)
    return _run(name, "-S", chain) if name else ""


def _legacy() -> str:
    name = _program("iptables-legacy", uses_nft=False)
    if name:
        return name
    raise IptablesError(
        "the kernel has iptables' table filter, and there is no program to read it: install"
        " iptables, or rmmod iptable_filter"
    )


def _program(name: str, *, uses_nft: bool) -> str:
    # Which form the short name means is the choice of the machine.
    for each in (name, "iptables"):
        if shutil.which(each) and ("nf_tables" in _run(each, "--version")) is uses_nft:
            return each
    return ""


def _run(*command: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (our own words)
            command, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IptablesError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise IptablesError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
