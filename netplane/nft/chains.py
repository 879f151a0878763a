"""Chains of others that see forwarded packets: what they say, and where our rules go. Pure.

Every base chain of a hook is asked, so an accept in our table does not help against a drop in
another. What helps is an accept in the chain that drops, before the rule that does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from netplane.nft.rules import family_of
from netplane.subnet.family import Subnet, is_within, parse_subnet

FORWARD, DOCKER = "FORWARD", "DOCKER-USER"
FIREWALLD = "firewalld"

FROM, TO = "from", "to"
SIDES = {FROM: ("saddr", "-s"), TO: ("daddr", "-d")}
OURS = re.compile(r"netplane(-[a-z0-9-]+)?: ")
"""How the comments of all agents of a host begin."""


class Line(NamedTuple):
    """One rule, as far as it matters here."""

    name: str
    """By which it is deleted: its handle, or its own words."""
    comment: str = ""
    accepts: str = ""
    """`from` or `to` when it does no more than accept what comes from, or goes to, our network."""
    jumps: str = ""
    """To which chain."""
    drops: bool = False
    """All that comes to it."""
    hides_comment: bool = False
    """It has one that nft does not show: iptables write theirs so."""


def iptables_of(network: Subnet) -> tuple[str, str, str]:
    """Return where iptables have their chain for such a network, when nftables keep it."""
    return family_of(network), "filter", FORWARD


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of forwarded packets, and what it may jump to first."""

    name: str
    """For people, and in the commands of nft: `ip filter FORWARD`."""
    policy: str
    own: Sequence[Line]
    docker: Sequence[Line] | None = None
    """Of the chain DOCKER-USER beside it."""
    is_iptables: bool = False
    """It is where our rules go."""

    @property
    def drops(self) -> bool:
        """Whether it drops or refuses what no rule of it accepts."""
        return self.policy == "drop" or any(line.drops for line in self.own)

    @property
    def accepts(self) -> bool:
        """Whether it has rules that accept all packets of our network, whatever is before them."""
        return {FROM, TO} <= {line.accepts for line in self.own}


@dataclass(frozen=True, slots=True)
class Pair:
    """The two rules that accept what comes from the network and what goes to it.

    Args:
        owner: the name of our table, which their comments begin with.
    """

    owner: str
    network: Subnet

    def comment(self, side: str) -> str:
        """Return the comment of the rule of one side."""
        return f"{self.owner}: {side} {self.network}"


@dataclass(frozen=True, slots=True)
class Placing:
    """What is to be done about the pair in one chain."""

    place: str
    """The chain that it belongs to."""
    stale: tuple[tuple[str, Line], ...] = field(default=())
    """Rules of ours that go, with their chains."""
    write: bool = False
    """Both are written anew, at the head."""

    @property
    def is_done(self) -> bool:
        """Nothing is to be done."""
        return not (self.stale or self.write)


def place(chain: Chain, pair: Pair, *, wanted: bool) -> Placing:
    """Say where the pair goes, and what has to be written for that.

    It has to be in front, as whatever is before it may drop; only pairs of other agents may be.
    Docker's chain for users is the first one that its own ask; what stands in FORWARD itself is
    behind Docker's rules after its next start.
    """
    docker = chain.docker or ()
    has_docker = chain.docker is not None and any(line.jumps == DOCKER for line in chain.own)
    where, lines = (DOCKER, docker) if has_docker else (FORWARD, chain.own)
    ours = [
        (name, line)
        for name, found in ((FORWARD, chain.own), (DOCKER, docker))
        for line in found
        if line.comment.startswith(f"{pair.owner}: ")
    ]
    head = lines[: _leading(lines)]
    wanted_lines = {(side, pair.comment(side)) for side in (FROM, TO)}
    right = [line for line in head if (line.accepts, line.comment) in wanted_lines]
    if not wanted:
        return Placing(where, tuple(ours))
    if len(ours) == len({line.accepts for line in right}) == 2:
        return Placing(where)
    return Placing(where, tuple(ours), write=True)


def _leading(lines: Sequence[Line]) -> int:
    """Return how many rules in front are of agents of this host."""
    for number, line in enumerate(lines):
        if not OURS.match(line.comment):
            return number
    return len(lines)


def in_the_way(chains: Iterable[Chain], pair: Pair, *, kept: bool) -> list[str]:
    """Say which chains drop packets of the network, as far as can be known, and what helps.

    Args:
        chains: all base chains of the hook but our own.
        pair: the rules that would help.
        kept: whether they are in the chain that is iptables' own.
    """
    network = pair.network
    found = []
    for chain in chains:
        if not chain.drops or chain.accepts or (chain.is_iptables and kept):
            continue
        if chain.is_iptables:
            helps = f"let packets from and to {network} pass, or start the agent with"
            helps += " --iptables-forward-rules"
        elif chain.name.split()[1] == FIREWALLD:
            helps = f"firewall-cmd --permanent --zone=trusted --add-source={network}, and --reload"
        else:
            helps = f"nft insert rule {chain.name} {family_of(network)} saddr {network} accept,"
            helps += " and so for daddr"
        found.append(f"chain {chain.name} drops what no rule of it accepts: {helps}")
    return found


# nftables


def forward_chains(listed: Mapping[str, Any], kind: str = "ip") -> list[tuple[str, str, str, str]]:
    """Return family, table, name and policy of the base chains that see forwarded packets.

    Args:
        listed: the answer to `list chains`.
        kind: the family of the packets; see `rules.family_of`.
    """
    return [
        (chain["family"], chain["table"], chain["name"], chain.get("policy", "accept"))
        for entry in listed["nftables"]
        if (chain := entry.get("chain")) is not None
        and chain.get("hook") == "forward"
        and chain["family"] in (kind, "inet")
        and not re.fullmatch(r"netplane(-[a-z0-9-]+)?", chain["table"])
    ]


def has_chain(listed: Mapping[str, Any], family: str, table: str, name: str) -> bool:
    """Tell whether a chain is in the answer to `list chains`."""
    return any(
        (chain["family"], chain["table"], chain["name"]) == (family, table, name)
        for entry in listed["nftables"]
        if (chain := entry.get("chain")) is not None
    )


def nft_lines(listed: Mapping[str, Any], network: Subnet) -> list[Line]:
    """Read the rules in the answer to `list chain`, or `list table`."""
    return [_nft_line(entry["rule"], network) for entry in listed["nftables"] if "rule" in entry]


def _nft_line(rule: Mapping[str, Any], network: Subnet) -> Line:
    hidden = {"xt": {"type": "match", "name": "comment"}}
    expressions = rule.get("expr", ())
    parts = [part for part in expressions if "counter" not in part and part != hidden]
    verdict = parts[-1] if parts else {}
    tests = parts[:-1]
    target = verdict.get("jump") or {}
    return Line(
        str(rule["handle"]),
        rule.get("comment", ""),
        _side(tests[0], network) if "accept" in verdict and len(tests) == 1 else "",
        target.get("target", ""),
        not tests and ("drop" in verdict or "reject" in verdict),
        hidden in expressions,
    )


def with_comments(lines: list[Line], printed: str, network: Subnet) -> list[Line]:
    """Return rules of nft with the comments that `iptables -S` shows of the same chain."""
    _, shown = legacy_lines(printed, network)
    if len(shown) != len(lines):  # somebody wrote in between; that is told, and looked at anew
        return lines
    return [
        line._replace(comment=other.comment) if line.hides_comment else line
        for line, other in zip(lines, shown, strict=True)
    ]


def names_network(listed: Mapping[str, Any], network: Subnet) -> bool:
    """Tell whether any rule of a table looks for packets from the network, whatever it does."""
    rules = [entry["rule"] for entry in listed["nftables"] if "rule" in entry]
    return any(_side(part, network) == FROM for rule in rules for part in rule.get("expr", ()))


def _side(part: Mapping[str, Any], network: Subnet) -> str:
    test = part.get("match") or {}
    if test.get("op") not in ("==", "in"):
        return ""
    for side, (name, _) in SIDES.items():
        if test.get("left") == {"payload": {"protocol": family_of(network), "field": name}}:
            return side if _holds(test.get("right"), network) else ""
    return ""


def _holds(right: object, network: Subnet) -> bool:
    """Tell whether an address, prefix or set has the whole network in it."""
    if isinstance(right, Mapping):
        if "set" in right:
            return any(_holds(one, network) for one in right["set"])
        prefix = right.get("prefix")
        return prefix is not None and _is_within(network, f"{prefix['addr']}/{prefix['len']}")
    return isinstance(right, str) and _is_within(network, right)


def _is_within(network: Subnet, text: str) -> bool:
    try:
        return is_within(network, parse_subnet(text))
    except ValueError:  # the name of a set
        return False


def nft_commands(placing: Placing, pair: Pair) -> str:
    """Return one transaction of nft's commands."""
    family, table, _ = iptables_of(pair.network)
    lines = [
        f"delete rule {family} {table} {chain} handle {line.name}" for chain, line in placing.stale
    ]
    network = pair.network
    for side, (name, _) in SIDES.items() if placing.write else ():
        # With the mask in words: as a prefix nft would compare two bytes instead of four for a /16,
        # which iptables before 1.8.6 reads as a whole address.
        lines.append(
            f"insert rule {family} {table} {placing.place}"
            f" {family} {name} & {network.netmask} == {network.network_address}"
            f' counter accept comment "{pair.comment(side)}"'
        )
    return "\n".join(lines)


# iptables without nftables


def legacy_lines(printed: str, network: Subnet) -> tuple[str, list[Line]]:
    """Read what `iptables -S CHAIN` prints; returns the policy, empty for a chain without one."""
    policy, lines = "", []
    for text in printed.splitlines():
        words = shlex.split(text)
        if words[0] == "-P":
            policy = words[2].lower()
        elif words[0] == "-A":
            lines.append(_legacy_line(text, words[2:], network))
    return policy, lines


def _legacy_line(text: str, words: Sequence[str], network: Subnet) -> Line:
    comment, tests, target = "", [], ""
    options = iter(words)
    for option in options:
        if option == "-m":
            if (module := next(options)) != "comment":
                tests.append(module)
        elif option == "--comment":
            comment = next(options)
        elif option == "-j":
            target = next(options)
            break  # what follows is about the target
        else:
            tests.append(option)
    accepts = ""
    if target == "ACCEPT" and len(tests) == 2:
        for side, (_, flag) in SIDES.items():
            if tests[0] == flag and _is_within(network, tests[1]):
                accepts = side
    ends = not tests and target in {"DROP", "REJECT"}
    return Line(text.removeprefix("-A "), comment, accepts, target, ends)


def legacy_commands(placing: Placing, pair: Pair) -> str:
    """Return what `iptables-restore --noflush` makes one transaction of."""
    lines = [f"-D {line.name}" for _, line in placing.stale]
    for side, (_, flag) in SIDES.items() if placing.write else ():
        comment = pair.comment(side)
        lines.append(
            f'-I {placing.place} 1 {flag} {pair.network} -m comment --comment "{comment}" -j ACCEPT'
        )
    return "\n".join(["*filter", *lines, "COMMIT", ""])
