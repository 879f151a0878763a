"""What our table says, as nft's words: pure. Who speaks them to the kernel is in `firewall`.

The table and all that is in it carry comments, so `nft list ruleset` explains itself. Names are
fixed; docs/netplane.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

VTEPS = "vteps"
UNKNOWN_VTEPS = "unknown-vteps"
UNDERLAY, FORWARD, POSTROUTING = "underlay", "forward", "postrouting"

COMMENT = 'comment "'
"""Everything that our texts make has one, and no comment has it in it."""
SET_IN_RULE = "{ "
"""Blocks begin at the end of a line."""

KUBE_PROXY_MARK = "0x4000"
"""Of packets that kube-proxy masquerades itself."""

_TABLE = re.compile(r"netplane(_ports)?(-[a-z0-9-]+)?")
"""No instance can have an underscore in its name, so nobody else's table is of ports."""
INTERFACE = re.compile(r'[^\s"*\\/]{1,15}')
"""What nft takes for a name and nothing else: an asterisk at the end would match others too."""


class NftError(Exception):
    """nft or the kernel refused; nothing of what was asked was done.

    Args:
        text: as nft says it; the lines that point at the place in what was asked are left out.
        asked: what was asked for.
    """

    def __init__(self, text: str, asked: str = "") -> None:
        said = re.findall(r"^.*?\bError: (.*)$", text, re.MULTILINE) or [" ".join(text.split())]
        self.text = "; ".join(dict.fromkeys(said))
        self.asked = asked
        lines = asked.strip().splitlines() or [""]
        shown = lines[0] if len(lines) == 1 and len(lines[0]) < 80 else f"{lines[0][:70]} ..."
        super().__init__(f"{self.text} ({shown})" if shown else self.text)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the firewall of one network says, apart from its peers."""

    table: str
    """`netplane`, or `netplane-INSTANCE`; its family is ip."""
    network: IPv4Network
    subnet: IPv4Network
    """Our own."""
    external: str
    """The interface to the other hosts."""
    vxlan_port: int
    """What comes to this UDP port over `external`, and from no VTEP, is dropped; 0: nothing is."""
    masquerade: bool = False
    fully_random: bool = True
    """How the masquerade chooses ports: two containers then seldom choose the same at a time."""

    def __post_init__(self) -> None:
        check_table(self.table)
        if not INTERFACE.fullmatch(self.external):
            raise ValueError(f"{self.external!r} does not fit a rule of nftables")


def check_table(name: str) -> None:
    """Raise ValueError for a name that cannot be a table of ours."""
    if not _TABLE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a table of ours")


def text(rules: Rules) -> str:
    """Return what is in the table, but for the hosts in their set."""
    parts = [
        'comment "netplane: kept by its agent, which undoes what others change here"',
        *(_underlay(rules) if rules.vxlan_port else ()),
        *_forward(rules),
        *(_postrouting(rules) if rules.masquerade else ()),
    ]
    return "".join(f"  {line}\n" for part in parts for line in part.splitlines())


def removal(table: str) -> str:
    """Return the transaction after which there is no such table, whether there was one or not."""
    return f"add table ip {table}\ndelete table ip {table}\n"


def elements(verb: str, table: str, name: str, members: Iterable[object]) -> str:
    """Return the command that adds members to a set or deletes them; none: no command."""
    joined = ", ".join(sorted(map(str, members)))
    return f"{verb} element ip {table} {name} {{ {joined} }}\n" if joined else ""


def _underlay(rules: Rules) -> list[str]:
    # Before connections are tracked, so who floods us from outside fills no table.
    return [
        f'counter {UNKNOWN_VTEPS} {{\n  comment "dropped: overlay packets from no host of it"\n}}',
        f'set {VTEPS} {{\n  type ipv4_addr\n  comment "the other hosts of the overlay"\n}}',
        chain(
            UNDERLAY,
            "overlay packets are taken from its hosts only",
            "type filter hook prerouting priority raw; policy accept;",
            [
                (
                    (
                        f'iifname "{rules.external}" udp dport {rules.vxlan_port}'
                        f" ip saddr != @{VTEPS} counter name {UNKNOWN_VTEPS} drop"
                    ),
                    "from no host of the overlay",
                )
            ],
        ),
    ]


def _forward(rules: Rules) -> list[str]:
    return [
        chain(
            FORWARD,
            "a drop in a chain of another table counts all the same",
            "type filter hook forward priority filter - 10; policy accept;",
            [
                (f"ip saddr {rules.network} accept", "from containers"),
                (f"ip daddr {rules.network} accept", "to containers"),
            ],
        )
    ]


def _postrouting(rules: Rules) -> list[str]:
    """Masquerade as Flannel does it with iptables.

    Its rules for nftables differ in the fourth: there packets from this host to containers of
    others keep a source that the others may have no way back to.
    """
    network, subnet = rules.network, rules.subnet
    masquerade = "masquerade fully-random" if rules.fully_random else "masquerade"
    return [
        chain(
            POSTROUTING,
            "inside of the overlay packets keep their source; outside they get this host's",
            "type nat hook postrouting priority srcnat; policy accept;",
            [
                (
                    f"meta mark & {KUBE_PROXY_MARK} == {KUBE_PROXY_MARK} return",
                    "kube-proxy sees to these",
                ),
                (f"ip saddr {subnet} ip daddr {network} return", "from our containers to others"),
                (f"ip saddr {network} ip daddr {subnet} return", "from others to our containers"),
                (
                    f"ip saddr != {network} ip daddr {subnet} return",
                    "from outside to our containers: they see who it is",
                ),
                (
                    f"ip saddr {network} ip daddr != 224.0.0.0/4 {masquerade}",
                    "from containers to the outside: nobody there knows their addresses",
                ),
                (
                    f"ip saddr != {network} ip daddr {network} {masquerade}",
                    "from outside to containers of others: the answers come back here",
                ),
            ],
        )
    ]


def chain(name: str, comment: str, kind: str, lines: list[tuple[str, str]]) -> str:
    """Return a chain; every rule comes with the reason that it is there for."""
    rules = "".join(f'  {line} comment "{why}"\n' for line, why in lines)
    return f'chain {name} {{\n  comment "{comment}"\n  {kind}\n{rules}}}'
