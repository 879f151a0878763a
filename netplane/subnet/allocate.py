"""Which subnets are free, and which one to take: pure, with the randomness as an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network
from random import Random

from netplane.subnet.config import NetworkConfig
from netplane.subnet.errors import ExhaustedError
from netplane.subnet.lease import Lease

_SHOWN = 5


def free_ranges(config: NetworkConfig, taken: Iterable[IPv4Network]) -> list[tuple[int, int]]:
    """Return the positions (see `NetworkConfig.position`) that are free, as [start, stop).

    A subnet of any length takes every position that it touches.
    """
    step = 1 << (32 - config.subnet_len)
    base = int(config.subnet_min.network_address)
    spans = sorted(
        (
            (int(subnet.network_address) - base) // step,
            (int(subnet.broadcast_address) - base) // step + 1,
        )
        for subnet in taken
    )
    free = []
    at = 0
    for start, stop in spans:
        if start > at:
            free.append((at, min(start, config.capacity)))
        at = max(at, stop)
        if at >= config.capacity:
            return free
    free.append((at, config.capacity))
    return free


def choose(
    config: NetworkConfig, taken: Iterable[IPv4Network], random: Random, count: int
) -> list[IPv4Network]:
    """Return up to `count` different free subnets, each as likely as any; none when all are taken.

    Random, so that hosts which start together seldom choose the same.
    """
    ranges = free_ranges(config, taken)
    free = sum(stop - start for start, stop in ranges)
    chosen = []
    for number in random.sample(range(free), min(count, free)):
        left = number
        for start, stop in ranges:
            if left < stop - start:
                chosen.append(config.subnet_at(start + left))
                break
            left -= stop - start
    return chosen


def exhausted(
    config: NetworkConfig, leases: Sequence[Lease], live: frozenset[IPv4Network]
) -> ExhaustedError:
    """Return the error for a network without a free subnet: who has them, and who seems gone.

    Args:
        config: The network's.
        leases: Everybody's.
        live: Subnets whose hosts are known to be up.
    """
    reserved = sum(not lease.expires for lease in leases)
    owners = Counter(str(lease.public_ip) for lease in leases).most_common(_SHOWN)
    oldest = sorted(leases, key=lambda lease: (lease.subnet in live, lease.create_revision))
    shown = [
        f"{lease.subnet} of {lease.public_ip} (revision {lease.create_revision}, "
        f"{'up' if lease.subnet in live else 'no sign of life'}"
        f"{'' if lease.expires else ', reserved'})"
        for lease in oldest[:_SHOWN]
    ]
    text = (
        f"out of subnets: Network {config.network} has {config.capacity} of /{config.subnet_len}, "
        f"and {len(leases)} leases, {reserved} of them reservations, take them all; most are "
        f"owned by {', '.join(f'{owner} ({number})' for owner, number in owners)}; the oldest "
        f"leases: {'; '.join(shown)}. Give back what is not used with `netplane ctl release`, or "
        "take a larger Network"
    )
    return ExhaustedError(text, capacity=config.capacity)
