"""Which address a container gets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.agent.containers.addresses import capacity, choose, gateway, objection, within
from netplane.subnet.family import Address

SUBNET = IPv4Network("10.5.7.0/29")
"""Containers have .2 to .6."""


def address(last: int) -> IPv4Address:
    return IPv4Address(f"10.5.7.{last}")


def used(*last: int) -> dict[Address, str]:
    return {address(number): f"box-{number}" for number in last}


def test_addresses_go_round_so_that_none_is_given_out_again_at_once() -> None:
    last, given_out = None, list[Address]()
    for _ in range(7):
        last = choose(SUBNET, {}, last)
        assert last is not None
        given_out.append(last)
    assert given_out == [address(number) for number in (2, 3, 4, 5, 6, 2, 3)]


def test_what_is_in_use_is_left_out_and_an_end_is_an_end() -> None:
    assert choose(SUBNET, used(2, 3), None) == address(4)
    assert choose(SUBNET, used(2, 6), address(5)) == address(3)
    assert choose(SUBNET, used(2, 3, 4, 5, 6), address(5)) is None
    # The last of another subnet, that this host had before, means nothing.
    assert choose(SUBNET, {}, IPv4Address("10.9.0.4")) == address(2)
    # One that was asked for by name may be the last one.
    assert choose(SUBNET, {}, address(6)) == address(2)


@given(st.integers(24, 30), st.data())
def test_every_address_is_used_before_the_subnet_is_said_to_be_full(
    length: int, data: st.DataObject
) -> None:
    subnet = IPv4Network((0x0A050700, length))
    taken: dict[Address, int] = {}
    last: Address | None
    last = data.draw(st.none() | st.integers(0x0A050700, 0x0A0507FF).map(IPv4Address))
    while (last := choose(subnet, taken, last)) is not None:
        assert last in subnet
        assert last not in taken
        taken[last] = 1
    assert len(taken) == capacity(subnet) == subnet.num_addresses - 3
    assert not taken.keys() & {
        subnet.network_address, gateway(subnet).ip, subnet.broadcast_address,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "word"),
    [("10.5.8.2", "not in"), ("10.5.7.0", "itself"), ("10.5.7.1", "itself"),
     ("10.5.7.7", "itself"), ("10.5.7.3", "box-3"), ("10.5.7.4", "")],
)  # fmt: skip
def test_an_address_that_is_asked_for_is_had_or_refused_with_the_reason(
    wanted: str, word: str
) -> None:
    said = objection(SUBNET, used(3), IPv4Address(wanted))
    assert word in said
    assert bool(said) is bool(word)


def test_a_subnet_of_ipv6_is_not_walked_through_and_has_no_broadcast_address() -> None:
    large = IPv6Network("fd00:5:0:7::/64")
    taken: dict[Address, str] = {large[number]: "box" for number in range(2, 500)}
    assert choose(large, taken, None) == large[500]
    assert choose(large, taken, large[7]) == large[500]
    # After the last one it begins anew.
    assert choose(large, {}, large[-1]) == large[2]
    assert str(within(large, large[2])) == "fd00:5:0:7::2/64"
    assert objection(large, taken, large[-1]) == ""
    for refused in (large[0], large[1], large[2], IPv6Address("fd00:5:0:8::2"), address(2)):
        assert objection(large, taken, refused)

    small = IPv6Network("fd00:5::/126")
    given_out: dict[Address, str] = {}
    last: Address | None = None
    while (last := choose(small, given_out, last)) is not None:
        given_out[last] = "box"
    assert list(given_out) == [small[2], small[3]]
    assert capacity(small) == 2
    assert choose(IPv6Network("fd00:5::/127"), {}, None) is None
