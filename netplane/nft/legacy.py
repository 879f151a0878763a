"""iptables that keep their rules themselves, beside nftables: asked by their own program only.

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


class LegacyError(Exception):
    """The program is missing, or failed; the text tells what helps."""


def look(network: IPv4Network) -> Chain | None:
    """Return the chain of forwarded packets; None where the kernel has no such table.

    To ask for a table that is not there would make it. Raises LegacyError.
    """
    try:
        tables = TABLES.read_text().split()
    except OSError:  # no such module: nothing can drop there
        return None
    if "filter" not in tables:
        return None
    policy, own = legacy_lines(_run(_program(), "-w", LOCK_S, "-S", FORWARD), network)
    docker = None
    if any(line.jumps == DOCKER for line in own):
        _, docker = legacy_lines(_run(_program(), "-w", LOCK_S, "-S", DOCKER), network)
    return Chain(NAME, policy, own, docker, is_iptables=True)


def write(commands: str) -> None:
    """Do what `iptables-restore --noflush` reads, all or nothing. Raises LegacyError."""
    _run(f"{_program()}-restore", "-w", LOCK_S, "--noflush", text=commands)


def _program() -> str:
    for name in ("iptables-legacy", "iptables"):
        # The other form of the same name keeps its rules in nftables, and is not asked for these.
        if shutil.which(name) and "nf_tables" not in _run(name, "--version"):
            return name
    raise LegacyError(
        "the kernel has iptables' table filter, and there is no program to read it: install"
        " iptables, or rmmod iptable_filter"
    )


def _run(*command: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (our own words)
            command, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LegacyError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise LegacyError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
