"""An address finds the longest subnet with it; what is no peer is refused by name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.udp.peers import Peer, Peers, PeersError

SUBNETS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(8, 30),
)


@given(st.lists(SUBNETS, unique=True, max_size=12), st.data())
def test_the_longest_subnet_with_an_address_is_found(
    subnets: list[IPv4Network], data: st.DataObject
) -> None:
    peers = Peers(Peer.parse([str(subnet), "192.0.2.1", 8285, ""]) for subnet in subnets)
    near = st.sampled_from(subnets).flatmap(
        lambda subnet: st.integers(int(subnet.network_address), int(subnet.broadcast_address))
    )
    every = st.integers(0, 2**32 - 1)
    address = data.draw(st.one_of(near, every) if subnets else every)
    with_it = [subnet for subnet in subnets if IPv4Address(address) in subnet]
    longest = max(with_it, key=lambda subnet: subnet.prefixlen, default=None)
    found = peers.find(address)
    assert (found.subnet if found else None) == longest


def test_a_peer_is_told_as_it_is_read() -> None:
    told = ["10.5.2.0/24", "192.0.2.2", 8285, ""]
    assert Peer.parse(told).told() == told


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        ["10.5.2.0/24", "192.0.2.2"],
        ["10.5.2.0/24", "192.0.2.2", 0, ""],
        ["10.5.2.0/24", "192.0.2.2", "8285", ""],
        ["10.5.2.1/24", "192.0.2.2", 8285, ""],
        ["10.5.2.0/24", "host", 8285, ""],
        ["10.5.2.0/24", "", 8285, ""],
    ],
)
def test_what_is_no_peer_is_refused(told: object) -> None:
    with pytest.raises(PeersError):
        Peer.parse(told)
