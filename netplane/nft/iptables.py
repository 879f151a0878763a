"""The programs of iptables: of the form that keeps its rules itself, and of the one that uses nft.

Everything here blocks, and acts in the namespace of the calling thread.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from netplane.nft.chains import DOCKER, FORWARD, Chain, legacy_lines
from netplane.nft.rules import family_of
from netplane.subnet.family import VERSION6, Subnet

TABLES = Path("/proc/thread-self/net/")
TIMEOUT_S = 10.0
LOCK_S = "5"
"""How long the program waits for another one that writes."""


class IptablesError(Exception):
    """The program is missing, or failed; the text tells what helps."""


def name_of(network: Subnet) -> str:
    """Return the name of the chain that the form of its own keeps, for people."""
    return f"{FORWARD} of {_short(network)}-legacy"


def look_at_legacy(network: Subnet) -> Chain | None:
    """Return the chain of forwarded packets; None where the kernel has no such table.

    To ask for a table that is not there would make it. Raises IptablesError.
    """
    try:
        tables = (TABLES / f"{family_of(network)}_tables_names").read_text().split()
    except OSError:  # no such module: nothing can drop there
        return None
    if "filter" not in tables:
        return None
    program = _legacy(network)
    policy, own = legacy_lines(_run(program, "-w", LOCK_S, "-S", FORWARD), network)
    docker = None
    if any(line.jumps == DOCKER for line in own):
        _, docker = legacy_lines(_run(program, "-w", LOCK_S, "-S", DOCKER), network)
    return Chain(name_of(network), policy, own, docker, is_iptables=True)


def write_legacy(commands: str, network: Subnet) -> None:
    """Do what `iptables-restore --noflush` reads, all or nothing. Raises IptablesError."""
    _run(f"{_legacy(network)}-restore", "-w", LOCK_S, "--noflush", text=commands)


def print_chain(chain: str, network: Subnet) -> str:
    """Return what iptables on nftables say of a chain; "" where there is no such program.

    Raises IptablesError.
    """
    name = _program(_short(network), "nft", uses_nft=True)
    return _run(name, "-S", chain) if name else ""


def _short(network: Subnet) -> str:
    return "ip6tables" if network.version == VERSION6 else "iptables"


def _legacy(network: Subnet) -> str:
    name = _program(_short(network), "legacy", uses_nft=False)
    if name:
        return name
    raise IptablesError(
        "the kernel has iptables' table filter, and there is no program to read it: install"
        " iptables, or rmmod iptable_filter"
    )


def _program(short: str, form: str, *, uses_nft: bool) -> str:
    # Which form the short name means is the choice of the machine.
    for each in (f"{short}-{form}", short):
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
