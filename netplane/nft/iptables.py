"""The programs of iptables: of the form that keeps its rules itself, and of the one that uses nft.

Everything here blocks, and acts in the namespace of the calling thread.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from netplane.nft.chains import DOCKER, FORWARD, Pair, legacy_lines, legacy_policy
from netplane.nft.fate import Chain
from netplane.nft.rules import family_of
from netplane.subnet.family import VERSION6, Subnet

TABLES = Path("/proc/thread-self/net/")
SEE_FORWARDED = ("filter", "mangle", "security")
"""The tables with a chain of forwarded packets; our rules go to the first."""
TIMEOUT_S = 10.0
LOCK_S = "5"
"""How long the program waits for another one that writes."""


class IptablesError(Exception):
    """The program is missing, or failed; the text tells what helps."""


def look_at_legacy(pair: Pair) -> list[Chain]:
    """Return the chains of forwarded packets, of the tables that the kernel has.

    To ask for a table that is not there would make it. Raises IptablesError.
    """
    network = pair.network
    try:
        tables = (TABLES / f"{family_of(network)}_tables_names").read_text().split()
    except OSError:  # no such module: nothing can drop there
        return []
    return [_look_at_table(table, pair) for table in SEE_FORWARDED if table in tables]


def _look_at_table(table: str, pair: Pair) -> Chain:
    network = pair.network
    is_filter = table == SEE_FORWARDED[0]
    printed = _run(_legacy(network, table), "-w", LOCK_S, "-t", table, "-S")
    command = f"{_short(network)}-legacy" + ("" if is_filter else f" -t {table}")
    others = {DOCKER: legacy_lines(printed, DOCKER, pair)} if f"-N {DOCKER}\n" in printed else {}
    own = legacy_lines(printed, FORWARD, pair)
    chain = Chain(
        f"{FORWARD} of {command}", legacy_policy(printed), own, others, is_filter, command
    )
    while unread := chain.fate().unread:
        others |= {name: legacy_lines(printed, name, pair) for name in unread}
    return chain


def write_legacy(commands: str, network: Subnet) -> None:
    """Do what `iptables-restore --noflush` reads, all or nothing. Raises IptablesError."""
    _run(f"{_legacy(network, SEE_FORWARDED[0])}-restore", "-w", LOCK_S, "--noflush", text=commands)


def print_chain(chain: str, network: Subnet) -> str:
    """Return what iptables on nftables say of a chain; "" where there is no such program.

    Raises IptablesError.
    """
    name = _program(_short(network), "nft", uses_nft=True)
    return _run(name, "-S", chain) if name else ""


def _short(network: Subnet) -> str:
    return "ip6tables" if network.version == VERSION6 else "iptables"


def _legacy(network: Subnet, table: str) -> str:
    name = _program(_short(network), "legacy", uses_nft=False)
    if name:
        return name
    raise IptablesError(
        f"the kernel has iptables' table {table}, and there is no program to read it: install"
        f" iptables, or rmmod {_short(network).removesuffix('s')}_{table}"
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
