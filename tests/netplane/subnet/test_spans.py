from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from netplane.subnet.family import Subnet, last_of, overlap
from netplane.subnet.spans import Spans

NETWORKS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(st.lists(NETWORKS, max_size=12), NETWORKS, st.booleans())
def test_those_are_found_that_overlap(
    networks: list[IPv4Network], asked: IPv4Network, at_once: bool
) -> None:
    apart: list[IPv4Network] = []
    spans = Spans()
    for network in networks:
        if not any(one.overlaps(network) for one in apart):
            apart.append(network)
            spans.add(network)
    if at_once:
        spans = Spans(apart)

    assert spans.touched_by(asked) == sorted(one for one in apart if one.overlaps(asked))


NETWORKS6 = st.builds(
    lambda address, length: IPv6Network((address, length), strict=False),
    st.integers(0, 255),
    st.integers(120, 128),
)


@given(NETWORKS | NETWORKS6, NETWORKS | NETWORKS6)
def test_numbers_tell_of_subnets_what_ipaddress_does(one: Subnet, other: Subnet) -> None:
    assert overlap(one, other) is one.overlaps(other)
    assert last_of(one) == int(one.broadcast_address)
