"""Which subnets are free, and which one to take: pure, with the randomness as an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from netplane.subnet.config import Range
from netplane.subnet.errors import ExhaustedError
from netplane.subnet.family import Pair, Subnet, last_of
from netplane.subnet.lease import Lease

_SHOWN = 5
_SAMPLED_MAX = 1 << 62
"""`Random.sample` asks for a length, which has 63 bits; IPv6 has room for more subnets."""


def free_ranges(given: Range, taken: Iterable[Subnet]) -> list[tuple[int, int]]:
    """Return the positions (see `Range.position`) that are free, as [start, stop).

    A subnet of any length takes every position that it touches; all are of the range's family.
    """
    step, capacity = given.step, given.capacity
    base = int(given.subnet_min.network_address)
    spans = sorted(
        (
            (int(subnet.network_address) - base) // step,
            (last_of(subnet) - base) // step + 1,
        )
        for subnet in taken
    )
    free = []
    at = 0
    for start, stop in spans:
        if start > at:
            free.append((at, min(start, capacity)))
        at = max(at, stop)
        if at >= capacity:
            return free
    free.append((at, capacity))
    return free


def choose(given: Range, taken: Iterable[Subnet], random: Random, count: int) -> list[Subnet]:
    """Return up to `count` different free subnets, each as likely as any; none when all are taken.

    Random, so that hosts which start together seldom choose the same.
    """
    ranges = free_ranges(given, taken)
    free = sum(stop - start for start, stop in ranges)
    chosen = []
    for number in _sample(random, free, min(count, free)):
        left = number
        for start, stop in ranges:
            if left < stop - start:
                chosen.append(given.subnet_at(start + left))
                break
            left -= stop - start
    return chosen


def _sample(random: Random, free: int, count: int) -> Iterable[int]:
    if free <= _SAMPLED_MAX:
        return random.sample(range(free), count)
    # That two of so many are the same happens to nobody, and does no harm but one try less.
    return dict.fromkeys(random.randrange(free) for _ in range(count))


def exhausted(given: Range, leases: Sequence[Lease], live: frozenset[Pair]) -> ExhaustedError:
    """Return the error for a network without a free subnet: who has them, and who seems gone.

    Args:
        given: What there is of the family that ran out.
        leases: Everybody's.
        live: Subnets whose hosts are known to be up.
    """
    version = given.network.version
    having = [(lease, lease.pair.of(version)) for lease in leases]
    having = [(lease, subnet) for lease, subnet in having if subnet is not None]
    reserved = sum(not lease.expires for lease, _ in having)
    owners = Counter(str(lease.public_ip) for lease, _ in having).most_common(_SHOWN)
    oldest = sorted(having, key=lambda one: (one[0].pair in live, one[0].create_revision))
    shown = [
        f"{subnet} of {lease.public_ip} (revision {lease.create_revision}, "
        f"{'up' if lease.pair in live else 'no sign of life'}"
        f"{'' if lease.expires else ', reserved'})"
        for lease, subnet in oldest[:_SHOWN]
    ]
    name = f"{given.prefix}Network"
    text = (
        f"out of subnets: {name} {given.network} has {given.capacity} of /{given.subnet_len}, "
        f"and {len(having)} leases, {reserved} of them reservations, take them all; most are "
        f"owned by {', '.join(f'{owner} ({number})' for owner, number in owners)}; the oldest "
        f"leases: {'; '.join(shown)}. Give back what is not used with `netplane ctl release`, or "
        f"take a larger {name}"
    )
    return ExhaustedError(text, capacity=given.capacity)
