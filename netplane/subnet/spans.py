"""Subnets that do not overlap each other, and which of them another one touches."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network


class Spans:
    """A set of subnets without overlaps. Asking costs a search, not a walk through all."""

    def __init__(self, subnets: Iterable[IPv4Network] = ()) -> None:
        self._subnets = sorted(subnets)
        self._starts = [int(subnet.network_address) for subnet in self._subnets]

    def add(self, subnet: IPv4Network) -> None:
        """Take one more, which overlaps none of them."""
        start = int(subnet.network_address)
        position = bisect_left(self._starts, start)
        self._starts.insert(position, start)
        self._subnets.insert(position, subnet)

    def remove(self, subnet: IPv4Network) -> None:
        """Take out one that is there."""
        position = bisect_left(self._starts, int(subnet.network_address))
        del self._starts[position], self._subnets[position]

    def touched_by(self, subnet: IPv4Network) -> list[IPv4Network]:
        """Return those that a subnet overlaps."""
        end = bisect_right(self._starts, int(subnet.broadcast_address))
        begin = bisect_left(self._starts, int(subnet.network_address), 0, end)
        if begin and self._subnets[begin - 1].overlaps(subnet):
            begin -= 1  # begins before it, and ends inside or behind it
        return self._subnets[begin:end]
