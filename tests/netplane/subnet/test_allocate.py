from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.subnet.allocate import choose, exhausted
from netplane.subnet.config import parse_config
from netplane.subnet.family import Pair, is_within
from netplane.subnet.lease import Lease

RANGE = parse_config(b'{"Network":"10.5.0.0/24","SubnetLen":28}').first  # 15 subnets
ALL = [RANGE.subnet_at(position) for position in range(RANGE.capacity)]


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network:
    length = draw(st.integers(20, 32))
    address = int(IPv4Address("10.4.255.0")) + draw(st.integers(0, 3 * 256))
    return IPv4Network((address, length), strict=False)


@given(st.lists(networks(), max_size=6), st.integers(0, 20), st.integers(0, 99))
def test_exactly_the_subnets_that_nobody_touches_are_free(
    taken: list[IPv4Network], count: int, seed: int
) -> None:
    # Of any length, also around or outside of what is given out.
    free = {one for one in ALL if not any(one.overlaps(other) for other in taken)}

    everything = choose(RANGE, taken, Random(seed), RANGE.capacity)
    some = choose(RANGE, taken, Random(seed), count)

    assert len(everything) == len(free)
    assert set(everything) == free
    assert len(some) == len(set(some)) == min(count, len(free))
    assert set(some) <= free


def test_every_free_subnet_is_as_likely() -> None:
    draw = Random(7)
    taken = [ALL[0], ALL[3], ALL[4]]

    found = Counter(choose(RANGE, taken, draw, 1)[0] for _ in range(3_000))

    assert len(found) == 12
    assert min(found.values()) > 150  # 250 expected


def test_a_large_network_is_not_walked_through() -> None:
    given = parse_config(b'{"Network":"10.0.0.0/8","SubnetLen":30}').first

    [chosen] = choose(given, [given.subnet_at(0)], Random(1), 1)

    assert given.capacity == 4_194_303
    assert is_within(chosen, given.network)


@given(st.lists(networks(), max_size=6), st.integers(0, 99))
def test_ipv6_is_given_out_by_the_same_rules(taken: list[IPv4Network], seed: int) -> None:
    # The same network a world further up.
    given_out = parse_config(
        b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::a05:0/120",'
        b'"IPv6SubnetLen":124}'
    ).first
    above = int(given_out.network.network_address) - int(RANGE.network.network_address)

    def lifted(subnet: IPv4Network) -> IPv6Network:
        return IPv6Network((int(subnet.network_address) + above, subnet.prefixlen + 96))

    found = choose(given_out, map(lifted, taken), Random(seed), 15)

    assert found == [lifted(one) for one in choose(RANGE, taken, Random(seed), 15)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "sub_len"), [(48, 64), (32, 64), (8, 126)])
def test_of_a_huge_network_everything_can_come(length: int, sub_len: int) -> None:
    # Flannel looks at the first hundred only, and walks.
    given_out = parse_config(
        f'{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/{length}",'
        f'"IPv6SubnetLen":{sub_len}}}'.encode()
    ).first
    taken = [given_out.subnet_at(number) for number in range(100)]

    found = choose(given_out, taken, Random(5), 4)

    assert len(set(found)) == 4
    assert not set(found) & set(taken)
    assert all(not given_out.misfit(subnet) for subnet in found)
    assert max(map(given_out.position, found)) > given_out.capacity // 4


def test_exhaustion_is_told_of_the_family_that_ran_out() -> None:
    config = parse_config(
        b'{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00::/124"}'
    )  # 3 subnets of IPv6
    assert config.second is not None
    leases = [
        Lease(
            subnet, IPv4Address("192.0.2.1"), "vxlan",
            subnet6=IPv6Network(config.second.subnet_at(number)),
        )
        for number, subnet in enumerate(ALL[:3])
    ]  # fmt: skip
    error = exhausted(config.second, [*leases, Lease(ALL[3], IPv4Address(1), "")], frozenset())

    assert error.capacity == 3
    assert "IPv6Network fd00::/124 has 3 of /126, and 3 leases" in str(error)
    assert "fd00::4/126 of 192.0.2.1" in str(error)
    assert "take a larger IPv6Network" in str(error)


def test_exhaustion_tells_capacity_owners_and_who_seems_gone() -> None:
    leases = [
        Lease(subnet, IPv4Address(f"192.0.2.{1 + number // 5}"), "vxlan", create_revision=number)
        for number, subnet in enumerate(ALL)
    ]
    leases[3] = replace(leases[3], expires=False)

    error = exhausted(RANGE, leases, live=frozenset(map(Pair, ALL[:3])))

    assert error.capacity == 15
    text = str(error)
    assert "15 of /28" in text
    assert "15 leases, 1 of them reservations" in text
    assert "192.0.2.1 (5)" in text
    # Those that show no sign of life come first, the oldest of them at the front.
    assert "the oldest leases: 10.5.0.64/28 of 192.0.2.1 (revision 3, no sign of life, res" in text
    assert "netplane ctl release" in text
