"""What becomes of leases that can be used, and of those that cannot."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.subnet.family import Pair
from netplane.subnet.lease import encode_value
from netplane.subnet.plan import Identity, Wish, plan
from netplane.subnet.records import Registered
from tests.netplane.subnet.stores import DUAL, ONLY_IPV6, Store, address6, mac, pair, vxlan
from tests.netplane.subnet.views import (
    OURS,
    applied,
    assert_changes_are_told,
    assert_only_second_peer,
    builder,
    peers,
    viewed,
)


@given(st.data())
def test_a_view_that_goes_on_from_the_last_is_as_one_made_anew(data: st.DataObject) -> None:
    # Two builders see the same; one of them is told each time that anything may have changed.
    store = Store()
    store.lease(1)
    store.lease(2)
    registered = store.registered()
    quick, thorough = builder(store), builder(store)
    view = quick.build(registered)
    assert view == thorough.build(registered)
    numbers = st.integers(1, 4) | st.just(100)
    for _ in range(data.draw(st.integers(1, 12))):
        number = data.draw(numbers)
        key = store.layout.lease(IPv4Network(f"10.5.{number}.0/24"))
        fields: dict[str, Any] = data.draw(
            st.sampled_from(
                [
                    {},
                    {"data": vxlan(data.draw(st.integers(1, 9)))},
                    {"data": "x"},
                    {"ip": "192.0.2.77"},
                    {"ip": "0.0.0.0"},
                    {"subnet": f"10.5.{number}.0/25"},
                    {"subnet": f"10.5.{number}.128/25", "data": vxlan(number + 10)},
                    {"subnet": "10.5.0.0/16", "data": vxlan(20)},
                ]
            )
        )
        match data.draw(
            st.sampled_from(["put", "put", "junk", "reserve", "delete", "config", "move"])
        ):
            case "put":
                change = store.lease(number, **fields)
            case "reserve":
                address = IPv4Address(f"192.0.2.{number}")
                change = store.put(key, encode_value(address, "vxlan"), 0)
            case "junk":
                change = store.put(key, b"{")
            case "delete" if key in store.kvs:
                change = store.delete(key)
            case "config":
                change = store.put(store.layout.config, b"{")
            case "move":
                quick.local.pair = thorough.local.pair = data.draw(st.just(Pair(OURS)) | st.none())
                continue
            case _:
                continue
        untold = applied(registered, store, change)
        before, view = view, quick.build(registered)
        assert view == thorough.build(untold)
        assert_changes_are_told(before.peers, view.peers)


def test_what_often_happens_needs_no_look_at_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a thousand hosts that would take longer than to program the one that has changed.
    store = Store()
    for number in range(1, 4):
        store.lease(number)
    registered = store.registered()
    made = builder(store)
    made.build(registered)

    def rebuild(_: object) -> bool:
        raise AssertionError("everybody was looked at")

    monkeypatch.setattr(made, "_rebuild", rebuild)
    key = store.key(2)
    for change, left in (
        (store.lease(4), 4),
        (store.lease(2, ip="192.0.2.77"), 4),
        (store.put(key, b"{"), 4),
        (store.delete(key), 3),
        (store.lease(2, data=vxlan(9)), 4),
        (store.host("host2", 2), 4),
        (store.lease(100), 4),
    ):
        revision = change.kv.mod_revision if change.kv is not None else store.revision
        registered.apply(max(revision, registered.head.revision + 1), [change])
        assert len(made.build(registered).peers) == left


@pytest.mark.parametrize(("ours", "anew"), [("10.5.100.0/24", 0), ("10.5.2.0/25", 1)])
def test_only_what_somebody_has_of_our_new_subnet_needs_a_look_at_everybody(
    ours: str, anew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All were looked at while the registry wrote down what is ours.
    store = Store()
    for number in range(1, 4):
        store.lease(number)
    registered = store.registered()
    made = builder(store)
    made.local.pair = None
    assert len(made.build(registered).peers) == 3
    rebuilt: list[Registered] = []
    monkeypatch.setattr(made, "_rebuild", rebuilt.append)
    made.local.pair = Pair(IPv4Network(ours))
    registered.apply(store.revision + 1, [store.lease(100, subnet=ours)])
    view = made.build(registered)
    assert len(rebuilt) == anew
    assert anew or (len(view.peers), view.own is not None) == (3, True)


def test_every_peer_and_our_own_lease_are_there() -> None:
    store = Store()
    store.lease(1)
    store.lease(100)
    store.lease(2, reserved=True)

    view = viewed(store)

    assert (view.cluster_id, view.revision) == (store.cluster_id, store.revision)
    assert view.own is not None
    assert view.own.subnet == OURS
    assert peers(view) == ["10.5.1.0/24", "10.5.2.0/24"]
    lease = view.peers[IPv4Network("10.5.2.0/24")]
    assert (lease.public_ip, lease.backend_data, lease.expires) == (
        IPv4Address("192.0.2.2"), vxlan(2), False,
    )  # fmt: skip
    assert view.quarantined == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"subnet": "10.6.1.0/24"}, "outside of Network"),
        ({"subnet": "10.5.100.128/25"}, "overlaps our own subnet"),
        ({"subnet": "10.5.100.0/24"}, "overlaps our own subnet 10.5.100.0/24; PublicIP 192.0.2.1"),
        ({"ip": "0.0.0.0"}, "no host's address"),
        ({"ip": "224.0.0.5"}, "no host's address"),
        ({"ip": "127.0.0.1"}, "no host's address"),
        ({"ip": "255.255.255.255"}, "everybody's"),
        ({"ip": "10.5.7.7"}, "inside of the overlay's own Network"),
        ({"ip": "192.0.2.100"}, "is our own"),
        ({"kind": "host-gw"}, "its backend is 'host-gw', ours 'vxlan'"),
        ({"kind": "udp"}, "its backend is 'udp', ours 'vxlan'"),
        ({"data": "x"}, "BackendData is missing"),
        ({"data": {"VtepMAC": mac(1)}}, "VNI None"),
        ({"data": vxlan(1, vni=0)}, "VNI 0"),
        ({"data": vxlan(1, vni=1 << 24)}, "VNI 16777216"),
        ({"data": {"VNI": True, "VtepMAC": mac(1)}}, "VNI True"),
        ({"data": vxlan(1, vni=2)}, "its VNI is 2, ours 1"),
        ({"data": {"VNI": 1}}, "VtepMAC None"),
        ({"data": {"VNI": 1, "VtepMAC": "0e:00:00:00:00"}}, "no MAC address"),
        ({"data": {"VNI": 1, "VtepMAC": "00:00:00:00:00:00"}}, "of one interface"),
        ({"data": {"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"}}, "of one interface"),
        ({"data": {"VNI": 1, "VtepMAC": "ff:ff:ff:ff:ff:ff"}}, "of one interface"),
        ({"data": {"VNI": 1, "VtepMAC": mac(100).upper()}}, "is our own"),
    ],
)
def test_what_cannot_be_used_is_named_and_takes_nobody_else_along(
    fields: dict[str, Any], words: str
) -> None:
    store = Store()
    store.lease(2)
    change = store.lease(1, **fields)

    assert_only_second_peer(store, change, words)


def test_a_reservation_whose_host_has_not_come_yet_is_neither_peer_nor_junk() -> None:
    # Else every host of the network tells of junk as long as a spare machine is switched off.
    store = Store()
    change = store.lease(2)
    store.put(store.key(1), encode_value(IPv4Address("192.0.2.1"), "vxlan"), 0)
    made = builder(store)

    view = made.build(store.registered())

    assert (peers(view), view.quarantined) == (["10.5.2.0/24"], {})
    # The same while we run: `ctl reserve` is no reason for a note on every host.
    registered = store.registered()
    made.build(registered)
    reserved = store.put(store.key(3), encode_value(IPv4Address("192.0.2.3"), "vxlan"), 0)
    registered.apply(store.revision, [reserved])
    view = made.build(registered)
    assert (peers(view), view.quarantined) == (["10.5.2.0/24"], {})
    # One that lost what it said is another matter: its last good state stays, and it is named.
    store.put(change.key, encode_value(IPv4Address("192.0.2.2"), "vxlan"), 0)
    view = made.build(store.registered())
    assert peers(view) == ["10.5.2.0/24"]
    assert view.quarantined == {change.key: "BackendData is missing"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"/net/subnets/x", b"{}"),
        (b"/net/subnets/10.5.9.0-24", b"\xff"),
        (b"/net/subnets/10.5.9.0-24", b"null"),
        (b"/net/subnets/", b""),
        (b"/net/netplane/hosts/h", b"{}"),
        (b"/net/netplane/hosts/\xff", b'{"Subnet":"","PublicIP":"","Session":"","BootID":""}'),
        (b"/net/netplane/alive/h", b"x"),
    ],
)
def test_junk_is_named_and_not_taken_for_the_absence_of_peers(key: bytes, value: bytes) -> None:
    # One such key made Flannel remove every peer.
    store = Store()
    store.lease(1)
    store.put(key, value)

    view = viewed(store)

    assert peers(view) == ["10.5.1.0/24"]
    assert list(view.quarantined) == [key]


def test_keys_that_are_nobodys_business_are_left_alone() -> None:
    store = Store()
    store.put(b"/net/other", b"\xff")
    store.put(b"/net/subnetsX", b"\xff")

    assert viewed(store).quarantined == {}


@pytest.mark.parametrize(
    "fields", [{"data": "x"}, {"ip": "127.0.0.1"}, {"kind": "host-gw"}], ids=str
)
def test_a_peers_last_good_state_stays_while_its_newest_value_is_bad(
    fields: dict[str, Any],
) -> None:
    store = Store()
    good = store.lease(1)
    build = builder(store)
    registered = store.registered()
    before = build.build(registered)

    registered.apply(store.revision + 1, [store.lease(1, **fields)])
    bad = build.build(registered)
    registered.apply(store.revision + 1, [store.put(good.key, b"\xff")])
    worse = build.build(registered)
    registered.load(store.listing())  # nor does listing again change that
    again = build.build(registered)

    for view in (bad, worse, again):
        assert dict(view.peers) == dict(before.peers)
        assert list(view.quarantined) == [good.key]

    registered.apply(store.revision + 1, [store.lease(1, ip="192.0.2.11")])
    mended = build.build(registered)
    assert [str(lease.public_ip) for lease in mended.peers.values()] == ["192.0.2.11"]
    assert mended.quarantined == {}


def test_a_last_good_state_survives_a_restart_and_ends_with_its_key() -> None:
    store = Store()
    store.lease(1)
    known = viewed(store).peers.values()
    store.put(store.key(1), b"junk")
    build = builder(store, known=known)
    registered = store.registered()

    assert peers(build.build(registered)) == ["10.5.1.0/24"]

    registered.apply(store.revision + 1, [store.delete(store.key(1))])
    assert peers(build.build(registered)) == []
    registered.apply(store.revision + 1, [store.put(store.key(1), b"junk")])
    assert peers(build.build(registered)) == []


@pytest.mark.parametrize("older", ["10.5.8.0/24", "10.5.8.0/23", "10.5.8.128/25"])
def test_of_two_peers_that_overlap_the_older_stays(older: str) -> None:
    store = Store()
    store.lease(1)
    store.lease(2, subnet=older)
    store.lease(8, subnet="10.5.8.0/24" if older != "10.5.8.0/24" else "10.5.8.0/22")
    # Not who wrote last: a renewal is no claim.
    store.lease(2, subnet=older)

    view = viewed(store)

    assert sorted(peers(view)) == sorted(["10.5.1.0/24", older])
    [reason] = view.quarantined.values()
    assert f"overlaps {older} of 192.0.2.2, which is older" in reason


def test_of_two_peers_with_one_mac_the_older_stays() -> None:
    store = Store()
    store.lease(1)
    store.lease(2, data=vxlan(1))

    view = viewed(store)

    assert peers(view) == ["10.5.1.0/24"]
    assert "VtepMAC 0e:00:00:00:00:01 is that of 10.5.1.0/24" in view.quarantined[store.key(2)]


def test_a_lease_of_flannels_udp_fits_a_network_of_udp() -> None:
    store = Store({"Network": "10.5.0.0/16"})
    store.lease(1, kind="udp")

    assert peers(viewed(store)) == ["10.5.1.0/24"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is gone"),
        (b"junk{", "cannot be used (not JSON"),
        (b"{}", "cannot be used (Network is missing"),
        (b'{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan"}}', "has changed"),
        (b'{ "network": "10.5.0.0/16", "Backend": {"type": "vxlan"} }', ""),
    ],
)
def test_a_changed_configuration_is_reported_and_not_half_applied(
    value: bytes | None, words: str
) -> None:
    store = Store()
    store.lease(1)
    build = builder(store)
    key = store.layout.config
    if value is None:
        store.delete(key)
    else:
        store.put(key, value, 0)

    view = build.build(store.registered())

    assert view.config == build.config
    assert peers(view) == ["10.5.1.0/24"]
    said = view.quarantined.get(key, "")
    assert words in said
    assert bool(words) == (key in view.quarantined)
    # With a new one of no use an agent that starts anew waits for another one.
    assert ("do not restart agents before" in said) == ("cannot be used" in words)
    assert ("until the agent is started again" in said) == (words == "has changed")


def test_events_that_a_listing_has_shown_change_nothing() -> None:
    # The watch brings them all the same, when the listing was made for another reason.
    store = Store()
    registered = store.registered()
    put, revision = store.lease(1), store.revision
    gone = store.delete(store.key(1))
    registered.load(store.listing())

    registered.apply(revision, [put])

    assert registered.leases == {}
    registered.apply(store.revision, [gone])
    assert registered.head.revision == store.revision


def test_our_own_newer_write_is_not_undone_by_an_older_event() -> None:
    store = Store()
    registered = store.registered()
    older, revision = store.lease(100, data="x"), store.revision
    newer = store.lease(100)
    assert newer.kv is not None
    registered.put(newer.kv)  # noted when it was acknowledged

    registered.apply(revision, [older])

    assert registered.kvs[newer.key] == newer.kv


def test_a_last_good_state_that_has_become_ours_is_not_used() -> None:
    # The peer of before the restart had the subnet that is ours now; its key holds junk.
    store = Store()
    store.lease(100, ip="192.0.2.7", data=vxlan(7))
    lease = store.registered().leases[store.key(100)]
    store.put(store.key(100), b"junk")

    view = builder(store, known=[lease]).build(store.registered())

    assert peers(view) == []


WRITES = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from(["put", "junk", "delete", "host", "alive", "overlap"]),
    ),
    max_size=20,
)


@given(WRITES, st.integers(0, 20))
def test_a_listing_and_events_come_to_what_a_later_listing_shows(
    writes: list[tuple[int, str]], listed_after: int
) -> None:
    store = Store()
    registered = store.registered()
    for position, (number, kind) in enumerate(writes):
        if position == listed_after:
            registered.load(store.listing())
        key = store.key(number)
        if kind == "delete" and key not in store.kvs:
            continue
        change = {
            "put": store.lease,
            "junk": lambda n: store.put(store.key(n), b"junk"),
            "delete": lambda n: store.delete(store.key(n)),
            "host": lambda n: store.host(f"h{n}", n),
            "alive": lambda n: store.alive(f"h{n}"),
            "overlap": lambda n: store.lease(n + 10, subnet=f"10.5.{n}.128/25"),
        }[kind](number)
        registered.apply(store.revision, [change])

    assert registered == store.registered()


JUNK = st.binary(max_size=30) | st.text("0123456789abcdf.:-&", max_size=40).map(str.encode)
ADDRESSES = st.sampled_from(["192.0.2.1", "10.5.1.1", "::1", "2001:db8::1", "x", "", 7, None])
SUBNETS = st.sampled_from(["10.5.1.0/24", "fd00:5:0:1::/64", "fd00:5::/0", "10.5.1.1/24", "", 7])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"subnets/", b"netplane/hosts/", b"netplane/alive/", b"netplane/ipv6/"]
            ),
            JUNK
            | st.sampled_from([b"10.5.1.0-24", b"10.5.1.0-24&fd00:5:0:1::-64", b"0.0.0.0-0&::-0"]),
            JUNK
            | st.fixed_dictionaries(
                {},
                optional={
                    "PublicIP": ADDRESSES,
                    "PublicIPv6": ADDRESSES,
                    "Subnet": SUBNETS,
                    "IPv6Subnet": SUBNETS,
                    "Session": ADDRESSES,
                    "BootID": ADDRESSES,
                    "BackendData": ADDRESSES,
                    "BackendV6Data": ADDRESSES,
                },
            ).map(lambda fields: json.dumps(fields).encode()),
        ),
        max_size=6,
    ),
    st.sampled_from([None, DUAL, ONLY_IPV6]),
)
def test_no_contents_of_a_registry_keep_anybody_from_a_view_and_a_subnet(
    puts: list[tuple[bytes, bytes, bytes]], config: dict[str, Any] | None
) -> None:
    store = Store(config)
    registered = store.registered()
    made = builder(store)
    us = Identity(
        "a name that is no junk", IPv4Address("192.0.2.9"), "s", "b", public_ip6=address6(9)
    )
    for kind, name, value in puts:
        key = store.layout.everything + kind + name
        registered.apply(store.revision + 1, [store.put(key, value)])
        made.build(registered)
        plan(registered, made.config, us, Wish.of(pair(1)))
    # None of them says where it is reached.
    assert not made.build(registered).peers
