"""The comparison of what there is with what there should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.agent.desired import ORDER, Change, Desired, Item, difference, is_flannels, is_ours
from netplane.backend import Scope, Step
from netplane.backend.versions import SetVersion
from netplane.netlink.objects import (
    BLACKHOLE,
    BOOT,
    LAST,
    Address,
    FdbEntry,
    KernelObject,
    Neighbour,
    Route,
    Sysctl,
    Uplink,
    identity,
)

SCOPE = Scope("np.1", "eth0", ((bytes([10, 5, 0, 0]), 16),))
GATEWAY = bytes([10, 5, 2, 0])
MAC, OTHER_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000003")
HOST = bytes([192, 0, 2, 2])
NEIGHBOUR = Neighbour("np.1", GATEWAY, MAC)
FDB = FdbEntry("np.1", MAC, HOST)
ROUTE = Route("np.1", GATEWAY, 24, GATEWAY, onlink=True)
PEER: frozenset[Item] = frozenset({NEIGHBOUR, FDB, ROUTE})


def steps(desired: frozenset[Item], actual: frozenset[Item]) -> list[tuple[str, Item]]:
    return [
        ("remove" if change.removed else "replace" if change.replace else "add", change.item)
        for change in difference(desired, actual)
    ]


@given(st.data())
def test_what_is_desired_from_now_on_is_as_if_it_were_read_anew(data: st.DataObject) -> None:
    # Worked out from what was desired before, and from what is there when that is just this.
    items = [
        NEIGHBOUR, NEIGHBOUR._replace(mac=OTHER_MAC), FDB, FDB._replace(mac=OTHER_MAC), ROUTE,
        Route("eth0", GATEWAY, 24, HOST), Address("np.1", GATEWAY, 32),
        Sysctl("ipv4/ip_forward", "1"), Uplink("eth0", HOST),
    ]  # fmt: skip
    # The kernel keeps one of those with the same identity, so no backend plans two.
    sets = st.lists(st.sampled_from(items), unique_by=identity).map(frozenset)
    desired = Desired(data.draw(sets))
    for _ in range(4):
        if data.draw(st.booleans()):
            assert desired.identities == Desired(desired.objects).identities
        before, objects = desired, data.draw(sets)
        since = before.objects
        if not isinstance(since, SetVersion) or data.draw(st.booleans()):
            since = SetVersion(since)  # of somebody else's
        step = Step.of(since, frozenset(since), objects)
        desired = Desired(step.objects, before, step)
        anew = Desired(desired.objects)
        assert (desired.link, desired.sysctls, desired.uplink, desired.items) == (
            anew.link, anew.sysctls, anew.uplink, anew.items,
        )  # fmt: skip
        assert desired.identities == anew.identities
        actual = data.draw(st.sampled_from([before.items, frozenset(items[:2])]))
        for remove in (True, False):
            found = desired.changes(actual, remove=remove)
            assert set(found) == set(difference(anew.items, actual, remove=remove))
            assert [ORDER[type(change.item)] for change in found if not change.removed] == sorted(
                ORDER[type(change.item)] for change in found if not change.removed
            )


def test_the_interface_is_told_to_listen_to_routers_before_forwarding_is_on() -> None:
    # In the other order the host would lose the default route that a router gave it.
    forwarding = Sysctl("ipv6/conf/all/forwarding", "1")
    listens = Sysctl("ipv6/conf/eth0/accept_ra", "2", also="0")
    assert Desired(frozenset({forwarding, listens})).sysctls == [listens, forwarding]


def test_the_route_comes_last_and_goes_first() -> None:
    # Else packets would be sent to where nothing answers, and the kernel would ask for the MAC.
    assert steps(PEER, frozenset()) == [("add", NEIGHBOUR), ("add", FDB), ("add", ROUTE)]
    assert steps(frozenset(), PEER) == [("remove", ROUTE), ("remove", FDB), ("remove", NEIGHBOUR)]


@pytest.mark.parametrize("remove", [True, False])
def test_our_own_subnet_of_before_can_be_another_hosts(remove: bool) -> None:
    # The kernel takes no address of its own host for a gateway.
    before, now = Address("np.1", GATEWAY, 32), Address("np.1", bytes([10, 5, 3, 0]), 32)
    changes = difference(PEER | {now}, frozenset({before}), remove=remove)
    assert changes[0] == Change(before, removed=True)
    assert {change.item for change in changes[1:]} == PEER | {now}


def test_what_is_new_is_there_before_what_is_old_goes() -> None:
    neighbour, fdb = NEIGHBOUR._replace(mac=OTHER_MAC), FDB._replace(mac=OTHER_MAC)
    assert steps(frozenset({neighbour, fdb, ROUTE}), PEER) == [
        ("replace", neighbour), ("add", fdb), ("remove", FDB),
    ]  # fmt: skip


def test_a_route_that_moves_to_another_link_is_replaced_in_one_step() -> None:
    direct = Route("eth0", GATEWAY, 24, HOST)
    assert steps(frozenset({direct}), frozenset({ROUTE})) == [("replace", direct)]


def test_a_route_with_another_metric_is_another_route() -> None:
    stale = ROUTE._replace(metric=7)
    assert steps(frozenset({ROUTE}), frozenset({stale})) == [("add", ROUTE), ("remove", stale)]


@pytest.mark.parametrize("written", [frozenset[Item](), frozenset({NEIGHBOUR})])
def test_all_that_others_have_appended_to_one_entry_goes(written: frozenset[Item]) -> None:
    # `bridge fdb append`: one MAC, several hosts.
    appended = {FDB, FDB._replace(destination=bytes([192, 0, 2, 9]))}
    found = difference(written, frozenset(appended))
    assert {change.item for change in found if change.removed} == appended


def test_without_removal_only_what_is_in_the_way_goes() -> None:
    moved = FDB._replace(destination=bytes([192, 0, 2, 9]))
    found = difference(frozenset({moved}), PEER, remove=False)
    assert [(change.item, change.replace) for change in found] == [(moved, True)]


def test_foreign_objects_are_not_ours() -> None:
    assert all(is_ours(item, SCOPE) for item in PEER)
    assert is_ours(Route("eth0", GATEWAY, 24, HOST), SCOPE)
    assert is_ours(Address("np.1", GATEWAY, 32), SCOPE)
    black = Route("", GATEWAY, 24, b"", metric=LAST, kind=BLACKHOLE)
    assert is_ours(black, SCOPE)
    foreign: list[Item] = [
        ROUTE._replace(protocol=4),
        ROUTE._replace(link="np.2"),
        ROUTE._replace(link=""),
        black._replace(protocol=4),
        black._replace(destination=bytes([10, 4, 0, 0])),
        Route("eth0", bytes([198, 51, 100, 0]), 24, HOST),
        Route("eth0", bytes([10, 4, 0, 0]), 15, HOST),
        NEIGHBOUR._replace(protocol=0),
        NEIGHBOUR._replace(link="eth0"),
        FDB._replace(link="vx9"),
        Address("eth0", GATEWAY, 32),
        Address("np.1", HOST, 32),
    ]
    assert not [item for item in foreign if is_ours(item, SCOPE)]


def test_without_a_device_of_ours_our_routes_are_ours_over_whichever_link_they_lead() -> None:
    # What lies on no link that we know would otherwise be taken for what lies on ours, and routes
    # over an interface that we had before would be in the way for ever.
    scope = Scope("", "eth0", SCOPE.networks)
    over_another = Route("", GATEWAY, 24, HOST)
    assert is_ours(Route("eth0", GATEWAY, 24, HOST), scope)
    assert is_ours(over_another, scope)
    foreign: list[Item] = [
        over_another._replace(destination=bytes([10, 4, 0, 0])),
        over_another._replace(protocol=BOOT),
        NEIGHBOUR._replace(link=""),
        FDB._replace(link=""),
        Address("", GATEWAY, 32),
    ]
    assert not [item for item in foreign if is_ours(item, scope)]


def test_flannels_routes_are_known_by_writer_interface_and_length() -> None:
    scope = Scope("", "eth0", SCOPE.networks, adopts_routes=24)
    route = Route("eth0", GATEWAY, 24, HOST, protocol=BOOT)
    assert is_flannels(route, scope)
    others: list[Item] = [
        route._replace(link=""),
        route._replace(link="eth1"),
        route._replace(protocol=4),
        route._replace(prefix_len=25),
        route._replace(gateway=b""),
        route._replace(destination=bytes([10, 4, 0, 0])),
        NEIGHBOUR._replace(link=""),
    ]
    assert not [item for item in others if is_flannels(item, scope)]
    assert not is_flannels(route, SCOPE)


def test_objects_of_different_classes_are_never_one() -> None:
    # They are tuples, and tuples compare by their items.
    items: list[KernelObject] = [
        NEIGHBOUR, FDB, ROUTE, Address("np.1", GATEWAY, 32), Uplink("np.1", GATEWAY),
    ]  # fmt: skip
    assert len(set(items)) == len({identity(item) for item in items}) == 5


def test_a_route_of_ipv6_over_the_device_takes_no_place_but_waits_until_it_is_free() -> None:
    # The kernel refuses it while its gateway is behind another link; see tests/net/kernel.
    subnet = bytes.fromhex("fd00" + "00" * 14)
    direct = Route("eth0", subnet, 64, bytes.fromhex("fd77" + "00" * 13 + "02"), metric=1024)
    over = Route("np6.1", subnet, 64, subnet, onlink=True, metric=1024)
    assert steps(frozenset({over}), frozenset({direct})) == [("remove", direct), ("add", over)]
    assert steps(frozenset({direct}), frozenset({over})) == [("replace", direct)]
    assert steps(frozenset({ROUTE}), frozenset({ROUTE._replace(link="eth0")})) == [
        ("replace", ROUTE)
    ]
