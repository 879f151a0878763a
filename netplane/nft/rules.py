"""What our table says, as nft's words: pure. Who speaks them to the kernel is in `firewall`.

The table and all that is in it carry comments, so `nft list ruleset` explains itself. Names are
fixed; docs/netplane.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from netplane.subnet.family import VERSION6, Address, Subnet

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
    """`netplane`, or `netplane-INSTANCE`; its family is that of the network."""
    network: Subnet
    subnet: Subnet
    """Our own."""
    vxlan_port: int
    """What comes to this UDP port from no VTEP is dropped; 0: nothing is."""
    vni: int = 0
    """Only of this overlay: others may share the port, and have other hosts. 0: of any."""
    masquerade: bool = False
    fully_random: bool = True
    """How the masquerade chooses ports: two containers then seldom choose the same at a time."""

    def __post_init__(self) -> None:
        check_table(self.table)


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


def family_of(network: Subnet | Address) -> str:
    """Return the family of tables that see the packets of a network, and of the words for them."""
    return "ip6" if network.version == VERSION6 else "ip"


def removal(table: str) -> str:
    """Return the transaction after which a table is gone, whether there was one or not.

    Its family is a part of its name here and below, as in `ip netplane`.
    """
    return f"add table {table}\ndelete table {table}\n"


def elements(verb: str, table: str, name: str, members: Iterable[object]) -> str:
    """Return the command that adds members to a set or deletes them; none: no command."""
    joined = ", ".join(sorted(map(str, members)))
    return f"{verb} element {table} {name} {{ {joined} }}\n" if joined else ""


def _underlay(rules: Rules) -> list[str]:
    # Of all that comes to this host, by whatever kind of address, and over whatever interface: a
    # container of ours sends over its bridge. What is dropped fills no table of connections.
    family = family_of(rules.network)
    overlay = f"udp dport {rules.vxlan_port}"
    lines = []
    if rules.vni:
        # Behind a UDP header the number is at bit 32 of vxlan's. Where it cannot be read, as IPv6
        # puts fragments together only after this, the rule does not match.
        lines.append((f"{overlay} @th,96,24 != {rules.vni} accept", "of another overlay"))
    drop = f"{overlay} {family} saddr != @{VTEPS} counter name {UNKNOWN_VTEPS} drop"
    lines.append((drop, "from no host of the overlay"))
    addresses = "ipv6_addr" if family == "ip6" else "ipv4_addr"
    return [
        f'counter {UNKNOWN_VTEPS} {{\n  comment "dropped: overlay packets from no host of it"\n}}',
        f'set {VTEPS} {{\n  type {addresses}\n  comment "the other hosts of the overlay"\n}}',
        chain(
            UNDERLAY,
            "overlay packets are taken from its hosts only",
            "type filter hook input priority raw; policy accept;",
            lines,
        ),
    ]


def _forward(rules: Rules) -> list[str]:
    family = family_of(rules.network)
    lines = []
    if rules.vxlan_port:
        # On its way it would get this host's address, which the others let in; for that fragments
        # are put together before. Between containers there may be an overlay as well.
        overlay = f"udp dport {rules.vxlan_port}"
        if rules.vni:
            overlay += f" @th,96,24 {rules.vni}"
        to_a_host = f"{family} saddr {rules.network} {family} daddr != {rules.network}"
        drop = f"{overlay} {to_a_host} counter name {UNKNOWN_VTEPS} drop"
        lines.append((drop, "from a container to a host"))
    lines += [
        (f"{family} saddr {rules.network} accept", "from containers"),
        (f"{family} daddr {rules.network} accept", "to containers"),
    ]
    return [
        chain(
            FORWARD,
            "a drop in a chain of another table counts all the same",
            "type filter hook forward priority filter - 10; policy accept;",
            lines,
        )
    ]


def _postrouting(rules: Rules) -> list[str]:
    """Masquerade as Flannel does it with iptables.

    Its rules for nftables differ in the fourth: there packets from this host to containers of
    others keep a source that the others may have no way back to.
    """
    network, subnet, family = rules.network, rules.subnet, family_of(rules.network)
    many = "ff00::/8" if family == "ip6" else "224.0.0.0/4"
    # What neighbours tell each other is of their addresses.
    neighbours = [("icmpv6 type 133-137 return", "between neighbours")] if family == "ip6" else []
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
                *neighbours,
                (
                    f"{family} saddr {subnet} {family} daddr {network} return",
                    "from our containers to others",
                ),
                (
                    f"{family} saddr {network} {family} daddr {subnet} return",
                    "from others to our containers",
                ),
                (
                    f"{family} saddr != {network} {family} daddr {subnet} return",
                    "from outside to our containers: they see who it is",
                ),
                (
                    f"{family} saddr {network} {family} daddr != {many} {masquerade}",
                    "from containers to the outside: nobody there knows their addresses",
                ),
                (
                    f"{family} saddr != {network} {family} daddr {network} {masquerade}",
                    "from outside to containers of others: the answers come back here",
                ),
            ],
        )
    ]


def chain(name: str, comment: str, kind: str, lines: list[tuple[str, str]]) -> str:
    """Return a chain; every rule comes with the reason that it is there for."""
    rules = "".join(f'  {line} comment "{why}"\n' for line, why in lines)
    return f'chain {name} {{\n  comment "{comment}"\n  {kind}\n{rules}}}'
