"""What becomes of leases in networks with IPv6, alone and beside IPv4."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.subnet.family import Pair
from tests.netplane.subnet.stores import DUAL, ONLY_IPV6, Store, address6, pair, six, vxlan, vxlan6
from tests.netplane.subnet.views import applied, assert_only_second_peer, builder, peers, viewed


@given(st.data())
def test_a_view_of_both_families_goes_on_from_the_last_as_one_made_anew(
    data: st.DataObject,
) -> None:
    store = Store(DUAL)
    store.both(1)
    store.both(2)
    registered = store.registered()
    quick, thorough = builder(store), builder(store)
    view = quick.build(registered)
    assert view == thorough.build(registered)
    numbers = st.integers(1, 4)
    for _ in range(data.draw(st.integers(1, 12))):
        number, other = data.draw(numbers | st.just(100)), data.draw(numbers)
        key = data.draw(
            st.sampled_from(
                [
                    pair(number),
                    Pair(pair(number).first, six(other)),
                    Pair(pair(number).first, IPv6Network("fd00:5::/56")),
                    Pair(pair(number).first),
                ]
            )
        )
        fields: dict[str, Any] = data.draw(
            st.sampled_from(
                [
                    {},
                    {"data": vxlan(other)},
                    {"data6": vxlan6(other)},
                    {"data6": "x"},
                    {"ip6": "2001:db8::77"},
                    {"ip6": "::1"},
                ]
            )
        )
        match data.draw(st.sampled_from(["put", "put", "put", "junk", "delete", "move"])):
            case "put":
                change = store.both(number, key=key, **fields)
            case "junk":
                change = store.put(store.layout.lease(*key), b"{")
            case "delete" if store.layout.lease(*key) in store.kvs:
                change = store.delete(store.layout.lease(*key))
            case "move":
                quick.local.pair = thorough.local.pair = data.draw(st.just(pair(100)) | st.none())
                continue
            case _:
                continue
        untold = applied(registered, store, change)
        view = quick.build(registered)
        assert view == thorough.build(untold)
        halves = [lease.second() for lease in view.peers.values()]
        subnets = [half.subnet for half in halves if half is not None]
        assert len(subnets) == len(view.peers)
        assert not any(one.overlaps(two) for one, two in combinations(subnets, 2))


def test_peers_of_both_families_and_our_own_lease_are_there() -> None:
    store = Store(DUAL)
    store.both(1)
    store.both(100)

    view = viewed(store)

    assert view.own is not None
    assert view.own.pair == pair(100)
    [lease] = view.peers.values()
    assert view.peers.keys() == {pair(1).first}
    assert (lease.pair, lease.public_ip6, lease.backend_data6) == (pair(1), address6(1), vxlan6(1))
    assert view.quarantined == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key": Pair(pair(1).first)}, "it has no subnet, and the network has IPv6Network"),
        ({"key": Pair(pair(1).first, IPv6Network("fd00:6::/64"))}, "outside of IPv6Network"),
        ({"key": Pair(IPv4Network("10.6.1.0/24"), six(1))}, "outside of Network"),
        ({"key": Pair(pair(1).first, six(100))}, "overlaps our own subnet 10.5.100.0/24 with fd00"),
        ({"key": Pair(pair(1).first, IPv6Network("fd00:5::/56"))}, "overlaps our own subnet"),
        ({"key": Pair(six(1))}, "outside of Network"),
        ({"ip": "0.0.0.0"}, "PublicIP 0.0.0.0 is no host's address"),
        ({"ip6": "::"}, "PublicIPv6 :: is no host's address"),
        ({"ip6": "::1"}, "no host's address"),
        ({"ip6": "ff0e::1"}, "no host's address"),
        ({"ip6": "fe80::1"}, "of one link only"),
        ({"ip6": "::ffff:192.0.2.1"}, "in disguise"),
        ({"ip6": "::192.0.2.1"}, "in disguise"),
        ({"ip6": "fd00:5::1"}, "inside of the overlay's own IPv6Network fd00:5::/48"),
        ({"ip6": "2001:db8::64"}, "PublicIPv6 2001:db8::64 is our own"),
        ({"ip": "192.0.2.100"}, "PublicIP 192.0.2.100 is our own"),
        ({"data6": "x"}, "BackendV6Data is missing"),
        ({"data6": vxlan6(1, vni=2)}, "its VNI is 2"),
        ({"data6": {"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"}}, "of one interface"),
        ({"data6": vxlan6(100)}, "is our own"),
        ({"data": vxlan(100)}, "is our own"),
    ],
)
def test_a_lease_with_one_half_of_no_use_is_named_and_used_in_neither(
    fields: dict[str, Any], words: str
) -> None:
    store = Store(DUAL)
    store.both(2)
    change = store.both(1, **fields)

    assert_only_second_peer(store, change, words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"key": Pair(pair(2).first, six(1))},
            "subnet fd00:5:0:1::/64 overlaps fd00:5:0:1::/64 of 192.0.2.1, which is older",
        ),
        ({"data6": vxlan6(1)}, "VtepMAC 0e:06:00:00:00:01 is that of fd00:5:0:1::/64"),
        ({"data": vxlan(1)}, "VtepMAC 0e:00:00:00:00:01 is that of 10.5.1.0/24"),
    ],
)
def test_of_two_peers_that_contradict_in_one_family_the_older_stays(
    fields: dict[str, Any], words: str
) -> None:
    store = Store(DUAL)
    store.both(1)
    change = store.both(2, **fields)
    store.both(1)  # a renewal is no claim

    view = viewed(store)

    assert peers(view) == ["10.5.1.0/24"]
    assert words in view.quarantined[change.key]


def test_one_mac_may_be_that_of_a_host_in_both_families() -> None:
    store = Store(DUAL)
    store.both(1, data6=vxlan(1))
    store.both(2, data6=vxlan(2))

    assert len(viewed(store).peers) == 2


def test_a_peers_last_good_half_stays_while_its_newest_is_bad() -> None:
    store = Store(DUAL)
    store.both(1)
    build = builder(store)
    registered = store.registered()
    before = build.build(registered)

    registered.apply(store.revision + 1, [store.both(1, ip6="::1")])

    after = build.build(registered)
    assert dict(after.peers) == dict(before.peers)
    assert len(after.quarantined) == 1


def test_peers_without_ipv4_are_all_there() -> None:
    # Flannel's hosts have all PublicIP 0.0.0.0 there.
    store = Store(ONLY_IPV6)
    for number in (1, 2, 100):
        store.only6(number)

    view = viewed(store)

    assert view.own is not None
    assert view.own.public_ip == address6(100)
    assert peers(view) == ["fd00:5:0:1::/64", "fd00:5:0:2::/64"]
    assert view.peers[six(2)].backend_data == vxlan6(2)
    assert view.quarantined == {}


def test_in_a_network_of_ipv4_the_rest_of_a_lease_is_nothing() -> None:
    # Of a network that had both: two of them may even contradict each other there.
    store = Store()
    store.both(1)
    store.both(2, key=Pair(pair(2).first, six(1)), ip6="::1")

    view = viewed(store)

    assert peers(view) == ["10.5.1.0/24", "10.5.2.0/24"]
    assert all(lease.second() is None for lease in view.peers.values())
