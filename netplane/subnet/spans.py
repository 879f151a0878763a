"""Subnets that do not overlap each other, and which of them another one touches."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from netplane.subnet.family import Subnet, last_of, overlap


class Spans:
    """A set of subnets of one family without overlaps. Asking is a search, not a walk."""

    def __init__(self, subnets: Iterable[Subnet] = ()) -> None:
        # By number: subnets of both families would not compare.
        self._subnets = sorted(subnets, key=lambda subnet: int(subnet.network_address))
        self._starts = [int(subnet.network_address) for subnet in self._subnets]

    def add(self, subnet: Subnet) -> None:
        """Take one more, which overlaps none of them."""
        start = int(subnet.network_address)
        position = bisect_left(self._starts, start)
        self._starts.insert(position, start)
        self._subnets.insert(position, subnet)

    def remove(self, subnet: Subnet) -> None:
        """Take out one that is there."""
        position = bisect_left(self._starts, int(subnet.network_address))
        del self._starts[position], self._subnets[position]

    def are_apart(self) -> bool:
        """Tell whether those that it was made with have no overlaps: all else relies upon it."""
        behind = self._starts[1:]
        return all(
            last_of(subnet) < start for subnet, start in zip(self._subnets, behind, strict=False)
        )

    def touched_by(self, subnet: Subnet) -> list[Subnet]:
        """Return those that a subnet overlaps."""
        end = bisect_right(self._starts, last_of(subnet))
        begin = bisect_left(self._starts, int(subnet.network_address), 0, end)
        if begin and overlap(self._subnets[begin - 1], subnet):
            begin -= 1  # begins before it, and ends inside or behind it
        return self._subnets[begin:end]
