"""Chains of others that see forwarded packets: what they say, and where our rules go. Pure.

Every base chain of a hook is asked, so an accept in our table does not help against a drop in
another. What helps is an accept in the chain that drops, before the rule that does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from netplane.nft.fate import BOTH, FROM, NONE, TO, Chain, Does, Line
from netplane.nft.rules import family_of
from netplane.subnet.family import Subnet, is_within, overlap, parse_subnet

FORWARD, DOCKER = "FORWARD", "DOCKER-USER"
FIREWALLD = "firewalld"

SIDES = {FROM: ("saddr", "-s"), TO: ("daddr", "-d")}
DEVICES = {"iif", "iifname", "oif", "oifname", "-i", "-o"}
OURS = re.compile(r"netplane(-[a-z0-9-]+)?: ")
"""How the comments of all agents of a host begin."""

ASKS_NOTHING = {"log", "mangle", "notrack", "ct helper", "ct timeout"}
"""What of nft is true of every packet, beside counters."""
GOES_ON = ASKS_NOTHING | {"match", "limit", "quota", "set", "flow", "dup"}
"""What lets the next rule be asked when it is the end of one."""
VERDICTS = {
    "accept": Does.ACCEPT,
    "drop": Does.DROP,
    "reject": Does.DROP,
    "return": Does.RETURN,
    "jump": Does.JUMP,
    "goto": Does.GOTO,
    "continue": Does.NOTHING,
}
TARGETS = {
    "ACCEPT": Does.ACCEPT,
    "DROP": Does.DROP,
    "REJECT": Does.DROP,
    "RETURN": Does.RETURN,
    **dict.fromkeys(
        ("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "DSCP", "HL", "LOG", "MARK")
        + ("NFLOG", "SECMARK", "SET", "TCPMSS", "TEE", "TOS", "TRACE", "TTL"),
        Does.NOTHING,
    ),
}
"""Of iptables (man iptables-extensions), where nft shows no more than a name."""


class Condition(NamedTuple):
    """What a rule asks of a packet."""

    sides: frozenset[str] = NONE
    """It is true of packets of these; none: not known."""
    is_whole: bool = False
    """Of all of them."""


UNREADABLE = Condition()


def iptables_of(network: Subnet) -> tuple[str, str, str]:
    """Return where iptables have their chain for such a network, when nftables keep it."""
    return family_of(network), "filter", FORWARD


@dataclass(frozen=True, slots=True)
class Pair:
    """The two rules that accept what comes from the network and what goes to it.

    Args:
        owner: the name of our table, which their comments begin with.
        devices: what only packets of the network come over.
    """

    owner: str
    network: Subnet
    devices: tuple[str, ...] = ()

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
    docker = chain.others.get(DOCKER, ())
    has_docker = DOCKER in chain.others and any(
        line.does is Does.JUMP and line.target == DOCKER for line in chain.own
    )
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


def in_the_way(chains: Iterable[Chain], pair: Pair, *, wanted: bool) -> tuple[list[str], list[str]]:
    """Say which chains drop packets of the network and what helps, and of which it is not known.

    Args:
        chains: all base chains of the hook but our own, read as far as packets come.
        pair: the rules that would help.
        wanted: whether they are kept in the chains that are iptables' own.
    """
    network = pair.network
    drops, unsure = [], []
    for chain in chains:
        fate = chain.fate()
        where = [*fate.drops, *fate.drops_some]
        if where:
            what = "what" if fate.drops else f"packets of {network} that"
            inside = f", in {where[0]}" if where[0] else ""
            drops.append(
                f"chain {chain.name} drops {what} no rule of it accepts{inside}:"
                f" {_what_helps(chain, network, wanted=wanted)}"
            )
        elif fate.is_unsure:
            unsure.append(f"whether rules of chain {chain.name} drop packets of {network}")
    return drops, unsure


def _what_helps(chain: Chain, network: Subnet, *, wanted: bool) -> str:
    if chain.is_iptables:
        helps = f"let packets from and to {network} pass"
        # With them it is what stands before the chain that they are in.
        return helps if wanted else f"{helps}, or start the agent with --iptables-forward-rules"
    if chain.command:
        return f"{chain.command} -I {FORWARD} -s {network} -j ACCEPT, and so for -d"
    if chain.name.split()[1] == FIREWALLD:
        return f"firewall-cmd --permanent --zone=trusted --add-source={network}, and --reload"
    return (
        f"nft insert rule {chain.name} {family_of(network)} saddr {network} accept,"
        " and so for daddr"
    )


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


def nft_lines(listed: Mapping[str, Any], pair: Pair) -> list[Line]:
    """Read the rules in the answer to `list chain`, or `list table`."""
    return [_nft_line(entry["rule"], pair) for entry in listed["nftables"] if "rule" in entry]


def _nft_line(rule: Mapping[str, Any], pair: Pair) -> Line:
    hidden = {"xt": {"type": "match", "name": "comment"}}
    expressions = rule.get("expr", ())
    parts = [part for part in expressions if _kind(part) != "counter" and part != hidden]
    does, target = _does(parts[-1]) if parts else (Does.NOTHING, "")
    # What a map or a chain without a name takes depends on what is in it.
    tests = parts if parts and _kind(parts[-1]) in {"vmap", ""} else parts[:-1]
    takes, some = _taken(
        [_nft_test(part, pair) for part in tests if _kind(part) not in ASKS_NOTHING]
    )
    return Line(
        str(rule["handle"]),
        rule.get("comment", ""),
        does,
        takes,
        some,
        target,
        hidden in expressions,
    )


def _kind(part: Mapping[str, Any] | str) -> str:
    # nft has no JSON for a chain without a name, and prints it as text: `jump { accept }`.
    return "" if isinstance(part, str) else next(iter(part))


def _does(part: Mapping[str, Any] | str) -> tuple[Does, str]:
    """Read the end of a rule: what it does, and to which chain it leads."""
    if isinstance(part, str):
        return Does.JUMP if part.startswith("jump ") else Does.UNKNOWN, ""
    kind = _kind(part)
    if kind == "xt":
        found = part[kind] or {}  # older nft tell nothing more
        if found.get("type") == "match":
            return Does.NOTHING, ""
        return TARGETS.get(found.get("name", ""), Does.UNKNOWN), ""
    if kind == "vmap":
        found = part[kind]["data"]
        verdicts = {_kind(one) for _, one in found["set"]} if "set" in found else {"goto"}
        if verdicts <= {"accept", "continue"}:
            return Does.ACCEPT, ""
        return Does.UNKNOWN if verdicts & {"goto", "return"} else Does.DROP, ""
    if kind in VERDICTS:
        return VERDICTS[kind], (part[kind] or {}).get("target", "")
    return Does.NOTHING if kind in GOES_ON else Does.UNKNOWN, ""


def _taken(tests: Sequence[Condition]) -> tuple[frozenset[str], frozenset[str]]:
    """Return `takes` and `some` of a rule."""
    if not tests:
        return BOTH, NONE
    all_whole = all(test.is_whole for test in tests)
    if len(tests) == 1:
        return (tests[0].sides, NONE) if all_whole else (NONE, tests[0].sides)
    # Two that are each true of some packets may be true of none together.
    return NONE, NONE.union(*(test.sides for test in tests)) if all_whole else NONE


def _nft_test(part: Mapping[str, Any] | str, pair: Pair) -> Condition:
    test = {} if isinstance(part, str) else part.get("match") or {}
    if test.get("op") not in {"==", "in"}:
        return UNREADABLE
    left = test.get("left")
    for side, (name, _) in SIDES.items():
        if left == {"payload": {"protocol": family_of(pair.network), "field": name}}:
            return _address_test(side, _texts(test.get("right")), pair)
    if isinstance(left, Mapping) and (left.get("meta") or {}).get("key") in DEVICES:
        return _device_test(_texts(test.get("right")), pair)
    return UNREADABLE


def _texts(right: object) -> list[str]:
    """Return the addresses, prefixes or names that are compared with."""
    if isinstance(right, Mapping):
        if "set" in right:
            return [text for one in right["set"] for text in _texts(one)]
        prefix = right.get("prefix")
        return [f"{prefix['addr']}/{prefix['len']}"] if prefix else []
    return [right] if isinstance(right, str) else []


def _address_test(side: str, texts: Iterable[str], pair: Pair) -> Condition:
    found = UNREADABLE
    for text in texts:
        try:
            subnet = parse_subnet(text)
        except ValueError:  # the name of a set
            continue
        if is_within(pair.network, subnet):
            return Condition(frozenset({side}), is_whole=True)
        if overlap(pair.network, subnet):
            found = Condition(frozenset({side}))
    return found


def _device_test(texts: Iterable[str], pair: Pair) -> Condition:
    for text in texts:
        begins = text.rstrip("*+") if text.endswith(("*", "+")) else ""
        for device in pair.devices:
            if device == text or (begins and device.startswith(begins)):
                return Condition(BOTH)
    return UNREADABLE


def with_comments(lines: list[Line], printed: str, name: str, pair: Pair) -> list[Line]:
    """Return rules of nft with the comments that `iptables -S` shows of the same chain."""
    shown = legacy_lines(printed, name, pair)
    if len(shown) != len(lines):  # somebody wrote in between; that is told, and looked at anew
        return lines
    return [
        line._replace(comment=other.comment) if line.hides_comment else line
        for line, other in zip(lines, shown, strict=True)
    ]


def names_network(listed: Mapping[str, Any], pair: Pair) -> bool:
    """Tell whether any rule of a table looks for packets from the network, whatever it does."""
    rules = [entry["rule"] for entry in listed["nftables"] if "rule" in entry]
    wanted = Condition(frozenset({FROM}), is_whole=True)
    return any(_nft_test(part, pair) == wanted for rule in rules for part in rule.get("expr", ()))


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


def legacy_policy(printed: str) -> str:
    """Return the policy of the chain of forwarded packets, of what `iptables -S` prints."""
    [policy] = [
        line.split()[2].lower()
        for line in printed.splitlines()
        if line.startswith(f"-P {FORWARD} ")
    ]
    return policy


def legacy_lines(printed: str, name: str, pair: Pair) -> list[Line]:
    """Read the rules of one chain, of what `iptables -S` prints."""
    lines = printed.splitlines()
    chains = {line.split()[1] for line in lines if line.startswith("-N ")}
    return [
        _legacy_line(line, shlex.split(line)[2:], chains, pair)
        for line in lines
        if line.startswith(f"-A {name} ")
    ]


def _legacy_line(text: str, words: Sequence[str], chains: Container[str], pair: Pair) -> Line:
    comment, target = "", ""
    does = Does.NOTHING
    tests: list[Condition] = []
    sides = {flag: side for side, (_, flag) in SIDES.items()}
    options = iter(words)
    for option in options:
        if option == "-m":
            if next(options) != "comment":
                tests.append(UNREADABLE)
        elif option == "--comment":
            comment = next(options)
        elif option in sides:
            tests.append(_address_test(sides[option], [next(options)], pair))
        elif option in DEVICES:
            tests.append(_device_test([next(options)], pair))
        elif option in {"-j", "-g"}:
            target = next(options)
            if target in chains:
                does = Does.JUMP if option == "-j" else Does.GOTO
            else:
                does, target = TARGETS.get(target, Does.UNKNOWN), ""
            break  # what follows is about the target
        else:
            tests.append(UNREADABLE)
    takes, some = _taken(tests)
    return Line(text.removeprefix("-A "), comment, does, takes, some, target)


def legacy_commands(placing: Placing, pair: Pair) -> str:
    """Return what `iptables-restore --noflush` makes one transaction of."""
    lines = [f"-D {line.name}" for _, line in placing.stale]
    for side, (_, flag) in SIDES.items() if placing.write else ():
        comment = pair.comment(side)
        lines.append(
            f'-I {placing.place} 1 {flag} {pair.network} -m comment --comment "{comment}" -j ACCEPT'
        )
    return "\n".join(["*filter", *lines, "COMMIT", ""])
