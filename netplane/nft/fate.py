"""What a chain of others does with packets of our network, by its rules in their order. Pure.

Rules are followed as the kernel does, as far as what they ask is known here. What is not known is
said to be so: never that a packet is dropped, nor that none is.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FROM, TO = "from", "to"
NONE: frozenset[str] = frozenset()
BOTH = frozenset({FROM, TO})
"""Packets that come from our network, and those that go to it; between containers they do both."""


class Does(enum.Enum):
    """What a rule does with a packet."""

    ACCEPT = enum.auto()
    DROP = enum.auto()
    """Or it refuses it."""
    RETURN = enum.auto()
    JUMP = enum.auto()
    GOTO = enum.auto()
    """As a jump, but that it comes back to where this chain was called from."""
    NOTHING = enum.auto()
    """The next rule is asked."""
    UNKNOWN = enum.auto()


class Line(NamedTuple):
    """One rule, as far as it matters here."""

    name: str
    """By which it is deleted: its handle, or its own words."""
    comment: str = ""
    does: Does = Does.NOTHING
    takes: frozenset[str] = NONE
    """All packets of these sides."""
    some: frozenset[str] = NONE
    """Not all, but certainly some that are of all these sides."""
    target: str = ""
    """The chain that it jumps or goes to."""
    hides_comment: bool = False
    """It has one that nft does not show: iptables write theirs so."""

    @property
    def accepts(self) -> str:
        """`from` or `to` when it does no more than accept what comes from, or goes to, us."""
        side, *more = self.takes or ("",)
        return side if self.does is Does.ACCEPT and not more else ""


@dataclass(slots=True)
class Fate:
    """What becomes of packets of our network in a base chain."""

    drops: list[str] = field(default_factory=list)
    """Where all are dropped that no rule accepts: chains that it jumps to; "" is itself."""
    drops_some: list[str] = field(default_factory=list)
    """The same, of some."""
    is_unsure: bool = False
    """There are rules that may drop more, or let pass what others would drop."""
    unread: list[str] = field(default_factory=list)
    """Chains that packets come to and that were not given."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of forwarded packets, and what it may jump to."""

    name: str
    """For people, and in the commands of nft: `ip filter FORWARD`."""
    policy: str
    own: Sequence[Line]
    others: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    """Chains beside it."""
    is_iptables: bool = False
    """It is where our rules go."""
    command: str = ""
    """The program of iptables that keeps it; empty: nftables do."""

    def fate(self) -> Fate:
        """Follow packets of our network through it."""
        walk = _Walk(self.others)
        left = walk.follow(self.own, BOTH)
        if left and self.policy == "drop":
            walk.fate.drops.append("")
        return walk.fate


class _Walk:
    def __init__(self, others: Mapping[str, Sequence[Line]]) -> None:
        self.fate = Fate()
        self._others = others
        self._path: list[str] = []

    def follow(
        self, lines: Sequence[Line], left: frozenset[str], *, is_sure: bool = True
    ) -> frozenset[str]:
        """Ask the rules of a chain, and return the sides that come to its end.

        Args:
            lines: its rules.
            left: the sides whose packets come to it.
            is_sure: that they do: no rule before can have let all of them pass unseen.
        """
        back = NONE
        for line in lines:
            here = line.takes & left
            asks = line.takes or line.some
            if not left:
                break
            if line.does is Does.NOTHING or (asks and not asks & left):
                continue
            if line.does is Does.ACCEPT:
                left -= here
            elif line.does is Does.DROP and is_sure and (here or (asks and asks <= left)):
                drops = self.fate.drops if here == BOTH else self.fate.drops_some
                drops.append(self._path[-1] if self._path else "")
                left -= here
            elif line.does is Does.RETURN and here:
                left -= here
                back |= here
            elif line.target and here:
                left -= here
                came = self._call(line.target, here, is_sure=is_sure)
                if line.does is Does.JUMP:
                    left |= came
                else:
                    back |= came
            else:
                self.fate.is_unsure = True
                # Behind these two comes what no rule has accepted; others may lead past what drops.
                is_sure = is_sure and line.does in {Does.DROP, Does.JUMP}
        return left | back

    def _call(self, name: str, sides: frozenset[str], *, is_sure: bool) -> frozenset[str]:
        if name not in self._others:
            self.fate.unread.append(name)
        elif name not in self._path:  # the kernel allows no circle, but may have changed meanwhile
            self._path.append(name)
            came = self.follow(self._others[name], sides, is_sure=is_sure)
            self._path.pop()
            return came
        self.fate.is_unsure = True
        return sides
