"""The rules of identity, one by one, on contents written by hand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from netplane.subnet.config import parse_config
from netplane.subnet.errors import (
    ConfigError,
    IdentityError,
    SubnetMisfitError,
    SubnetTakenError,
)
from netplane.subnet.family import Pair, parse_address
from netplane.subnet.plan import Claim, Identity, Wish, plan
from netplane.subnet.registry import Change
from tests.netplane.subnet.stores import DUAL, ONLY_IPV6, Store, address6, pair, six


def who(number: int = 5, **others: str) -> Identity:
    fields = {"host_id": "me", "session": "new", "boot_id": "boot"} | others
    return Identity(public_ip=IPv4Address(f"192.0.2.{number}"), **fields)


def planned(store: Store, identity: Identity | None = None, wish: Wish | None = None) -> Claim:
    config = parse_config(store.kvs[store.layout.config].value)
    return plan(store.registered(), config, identity or who(), wish or Wish())


def net(number: int) -> IPv4Network:
    return IPv4Network(f"10.5.{number}.0/24")


def test_a_new_host_takes_any_free_subnet() -> None:
    store = Store()
    store.lease(1)

    assert planned(store) == Claim(None)


def test_a_restarted_host_keeps_its_subnet() -> None:
    store = Store()
    store.host("me", 9, ip="192.0.2.5", session="old")
    change = store.lease(9, ip="192.0.2.5")

    claim = planned(store)

    assert change.kv is not None
    assert claim == Claim(net(9), change.kv.mod_revision, expires=True)


def test_a_host_whose_address_has_changed_keeps_its_subnet() -> None:
    # Flannel knows hosts by their address only: a new one is a new subnet under running containers.
    store = Store()
    store.host("me", 9, ip="192.0.2.77")
    store.lease(9, ip="192.0.2.77")

    assert planned(store).subnet == net(9)


def test_same_id_with_another_live_session_is_refused() -> None:
    store = Store()
    store.host("me", 9, session="other", boot_id="other boot")
    store.lease(9)
    store.alive("me", "other")

    with pytest.raises(IdentityError, match="cloned machine-id") as caught:
        planned(store)
    assert caught.value.other == "me"


def test_the_sign_of_life_of_our_own_killed_agent_is_no_reason() -> None:
    # It stays for up to 30 s, and the agent is started again within one.
    store = Store()
    store.host("me", 9, ip="192.0.2.5", session="old", boot_id="boot before")
    store.lease(9, ip="192.0.2.5")
    store.alive("me", "old")

    assert planned(store, who(previous_session="old")).subnet == net(9)
    with pytest.raises(IdentityError):
        planned(store, who(previous_session="older"))


def test_the_same_boot_at_the_same_address_needs_no_state_file() -> None:
    store = Store()
    store.host("me", 9, ip="192.0.2.5", session="old", boot_id="boot")
    store.lease(9, ip="192.0.2.5")
    store.alive("me", "old")

    assert planned(store).subnet == net(9)
    with pytest.raises(IdentityError):
        planned(store, who(boot_id="another"))
    with pytest.raises(IdentityError):
        # Namespaces of one machine share the boot id.
        planned(store, who(6))


def test_same_id_without_sign_of_life_is_us() -> None:
    store = Store()
    store.host("me", 9, ip="192.0.2.5", session="other", boot_id="other")
    store.lease(9, ip="192.0.2.5")

    assert planned(store).subnet == net(9)


def test_same_address_with_another_live_id_is_refused() -> None:
    store = Store()
    store.host("other", 9, ip="192.0.2.5")
    store.lease(9, ip="192.0.2.5")
    store.alive("other")

    with pytest.raises(IdentityError, match=r"192\.0\.2\.5 is used by the host 'other'") as caught:
        planned(store)
    assert caught.value.other == "other"


def test_an_address_inside_of_the_overlay_is_refused() -> None:
    # The others quarantine such a lease: this host would be ready, and nobody would send to it.
    store = Store({"Network": "192.0.0.0/8", "Backend": {"Type": "vxlan"}})

    with pytest.raises(ConfigError, match=r"192\.0\.2\.5 is inside of .* Network 192\.0\.0\.0/8"):
        planned(store)


def test_same_address_of_a_dead_host_is_taken_over() -> None:
    store = Store()
    store.host("other", 9, ip="192.0.2.5")
    change = store.lease(9, ip="192.0.2.5")

    claim = planned(store)

    assert change.kv is not None
    assert (claim.subnet, claim.replaces) == (net(9), change.kv.mod_revision)
    assert claim.ends is not None
    assert claim.ends.host_id == "other"
    assert "taken over from host 'other'" in claim.why


def test_a_lease_of_flannel_with_our_address_is_adopted() -> None:
    store = Store()
    change = store.lease(9, ip="192.0.2.5")

    claim = planned(store)

    assert change.kv is not None
    assert (claim.subnet, claim.replaces, claim.expires) == (
        net(9), change.kv.mod_revision, True,
    )  # fmt: skip
    assert "a lease of Flannel" in claim.why


def test_a_reservation_for_our_address_is_taken_and_stays_one() -> None:
    # Also outside of what is given out by chance.
    store = Store({"Network": "10.5.0.0/16", "SubnetMin": "10.5.100.0"})
    store.lease(9, ip="192.0.2.5", reserved=True)

    claim = planned(store)

    assert (claim.subnet, claim.expires) == (net(9), False)
    assert "reserved for our address" in claim.why


def test_a_subnet_that_does_not_fit_any_more_is_given_back() -> None:
    store = Store({"Network": "10.5.0.0/16", "SubnetMin": "10.5.100.0"})
    store.host("me", 9, ip="192.0.2.5")
    store.lease(9, ip="192.0.2.5")

    claim = planned(store)

    assert claim.subnet is None
    assert [lease.subnet for lease in claim.drops] == [net(9)]
    assert "given back: SubnetMin is 10.5.100.0" in claim.why


@pytest.mark.parametrize("keep", [False, True])
def test_the_subnet_of_before_is_taken_again_when_it_is_free(keep: bool) -> None:
    # From the state file, or subnet.env.
    assert planned(Store(), wish=Wish(net(9), keep=keep)) == Claim(net(9))


def test_the_subnet_of_our_expired_lease_is_taken_again() -> None:
    store = Store()
    store.host("me", 9, ip="192.0.2.5")

    assert planned(store) == Claim(net(9))


def test_the_subnet_of_before_is_left_to_others_when_nothing_uses_it() -> None:
    store = Store()
    store.lease(9)

    assert planned(store, wish=Wish(net(9))) == Claim(None)
    # A smaller one inside of it counts as well, and a key whose value cannot be read.
    store.lease(10, subnet="10.5.10.128/25")
    assert planned(store, wish=Wish(net(10))) == Claim(None)
    store.put(store.key(11), b"junk")
    assert planned(store, wish=Wish(net(11))) == Claim(None)


@pytest.mark.parametrize("is_ours_by_record", [False, True])
def test_the_subnet_of_our_containers_is_never_stolen(is_ours_by_record: bool) -> None:
    store = Store()
    if is_ours_by_record:
        store.host("me", 9, ip="192.0.2.5")
    else:
        store.host("thief", 9)
    store.lease(9)

    with pytest.raises(SubnetTakenError, match=r"PublicIP 192\.0\.2\.9") as caught:
        planned(store, wish=Wish(net(9), keep=True))
    assert caught.value.subnet == net(9)
    # Our own record says nothing of who has written over our lease, as Flannel does.
    who = "a host without an agent of netplane" if is_ours_by_record else "host 'thief'"
    assert caught.value.owner == f"{who}, PublicIP 192.0.2.9"
    # As long as it runs, an agent takes no other one.
    assert "start the agent anew" in str(caught.value)


def test_a_subnet_inside_that_of_our_containers_counts_as_taken() -> None:
    store = Store()
    store.lease(9, subnet="10.5.9.128/25")

    with pytest.raises(SubnetTakenError, match=r"PublicIP 192\.0\.2\.9"):
        planned(store, wish=Wish(net(9), keep=True))


def test_containers_keep_their_subnet_against_a_lease_elsewhere() -> None:
    # Flannel ran here, too: its lease is not a reason to leave ours.
    store = Store()
    store.lease(3, ip="192.0.2.5")

    assert planned(store, wish=Wish(net(9), keep=True)) == Claim(net(9))


def test_a_value_of_ours_that_was_garbled_is_written_anew() -> None:
    store = Store()
    store.host("me", 9, ip="192.0.2.5")
    change = store.put(store.key(9), b"junk", 0)

    claim = planned(store, wish=Wish(net(9), keep=True))

    assert change.kv is not None
    assert claim == Claim(net(9), change.kv.mod_revision, expires=False)


def test_a_garbled_value_of_somebody_else_is_his() -> None:
    store = Store()
    store.host("other", 9)
    store.put(store.key(9), b"junk")

    with pytest.raises(SubnetTakenError, match="host 'other'"):
        planned(store, wish=Wish(net(9), keep=True))


def test_a_configuration_that_excludes_our_containers_is_an_error() -> None:
    store = Store({"Network": "10.5.0.0/16", "SubnetLen": 26})

    with pytest.raises(SubnetMisfitError, match=r"SubnetLen is 26; .* start the agent anew"):
        planned(store, wish=Wish(net(9), keep=True))


def test_a_host_that_keeps_another_subnet_gives_back_the_one_it_has_on_record() -> None:
    store = Store()
    store.host("me", 3, ip="192.0.2.5")
    store.lease(3, ip="192.0.2.5")

    claim = planned(store, wish=Wish(net(9), keep=True))

    assert claim.subnet == net(9)
    assert [lease.subnet for lease in claim.drops] == [net(3)]
    # But not what belongs to another by now, nor a reservation.
    store.lease(3, ip="192.0.2.5", reserved=True)
    assert planned(store, wish=Wish(net(9), keep=True)) == Claim(net(9))
    store.lease(3)
    assert planned(store, wish=Wish(net(9), keep=True)) == Claim(net(9))


def both(number: int = 5, **others: str) -> Identity:
    """Return us as a host with addresses of both families."""
    return replace(who(number, **others), public_ip6=address6(number))


def revision(change: Change) -> int:
    assert change.kv is not None
    return change.kv.mod_revision


def both_of(claim: Claim) -> tuple[object, object]:
    return claim.subnet, claim.subnet6


def test_a_new_host_takes_any_free_subnet_of_each_family() -> None:
    assert planned(Store(DUAL), both()) == Claim(None)
    assert planned(Store(ONLY_IPV6), both()) == Claim(None)


def test_a_host_needs_an_address_of_each_family_of_the_network() -> None:
    with pytest.raises(ConfigError, match="IPv6Network fd00:5::/48, and this host no IPv6 addr"):
        planned(Store(DUAL))
    six_only = replace(who(), public_ip=address6(5))
    with pytest.raises(ConfigError, match=r"Network 10\.5\.0\.0/16, and this host no IPv4 address"):
        planned(Store(DUAL), six_only)
    assert planned(Store(ONLY_IPV6), six_only) == Claim(None)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("fe80::1", "PublicIPv6 fe80::1 is of one link only"),
        ("fd00:5::1", "inside of the overlay's own IPv6Network"),
        ("::ffff:192.0.2.1", "an IPv4 address in disguise"),
        ("ff02::1", "no host's address"),
    ],
)
def test_an_ipv6_address_of_no_use_is_refused(address: str, words: str) -> None:
    us = replace(who(), public_ip6=IPv6Address(address))
    with pytest.raises(ConfigError, match=words):
        planned(Store(DUAL), us)
    assert planned(Store(), us) == Claim(None)  # where there is no IPv6 it does not matter


def test_a_restarted_host_keeps_both_subnets() -> None:
    store = Store(DUAL)
    store.host_both("me", 5)
    change = store.both(5)

    assert planned(store, both()) == Claim(pair(5).first, revision(change), subnet6=six(5))
    # Also when one of its addresses has become another.
    moved = replace(both(), public_ip6=address6(77))
    assert both_of(planned(store, moved)) == pair(5)


@pytest.mark.parametrize("fields", [{"ip": "192.0.2.99"}, {"ip6": "2001:db8::99"}])
def test_a_lease_with_one_of_our_addresses_is_adopted_in_a_network_of_both(
    fields: dict[str, str],
) -> None:
    # Flannel knows us by IPv4 only; the other address is the one that may have changed.
    store = Store(DUAL)
    store.both(1)
    change = store.both(5, **fields)

    claim = planned(store, both())

    assert (claim.subnet, claim.subnet6, claim.replaces) == (*pair(5), revision(change))
    assert "a lease of Flannel" in claim.why


def test_hosts_without_ipv4_do_not_take_each_others_leases() -> None:
    # All have PublicIP 0.0.0.0 as Flannel writes it: its second host takes the first one's lease.
    store = Store(ONLY_IPV6)
    store.only6(1)
    change = store.only6(5)

    assert planned(store, both(2)) == Claim(None)
    assert planned(store, both(5)).replaces == revision(change)


@pytest.mark.parametrize("address", ["192.0.2.5", "2001:db8::5"])
def test_either_address_of_another_live_host_is_refused(address: str) -> None:
    store = Store(DUAL)
    store.host_both("other", 5)
    store.alive("other")
    us = Identity("me", IPv4Address("192.0.2.7"), "new", "boot", public_ip6=address6(7))
    found = parse_address(address)
    if isinstance(found, IPv6Address):
        us = replace(us, public_ip6=found)
    else:
        us = replace(us, public_ip=found)

    with pytest.raises(IdentityError, match=f"PublicIP(v6)? {address} is used by the host 'other'"):
        planned(store, us)


@pytest.mark.parametrize("reserved", [False, True])
def test_a_network_that_gets_ipv6_leaves_hosts_their_ipv4_subnets(reserved: bool) -> None:
    # Flannel deletes the lease and takes two others, under running containers.
    store = Store(DUAL)
    store.host("me", 5)
    store.lease(5, reserved=reserved)

    claim = planned(store, both())

    assert both_of(claim) == (pair(5).first, None)
    assert [lease.pair for lease in claim.drops] == [Pair(pair(5).first)]
    assert (claim.replaces, claim.expires) == (0, not reserved)
    assert "10.5.5.0/24 is kept" in claim.why


def test_a_network_that_loses_a_family_leaves_hosts_the_other_subnet() -> None:
    for config, left in ((None, pair(5).first), (ONLY_IPV6, six(5))):
        store = Store(config)
        store.host_both("me", 5)
        store.both(5)

        claim = planned(store, both())

        assert both_of(claim) == (left, None)
        assert [lease.pair for lease in claim.drops] == [pair(5)]


def test_of_a_pair_only_what_does_not_fit_is_given_back() -> None:
    store = Store(DUAL | {"IPv6SubnetMin": "fd00:5:0:100::"})
    store.host_both("me", 5)
    store.both(5)

    claim = planned(store, both())

    assert both_of(claim) == (pair(5).first, None)
    assert "IPv6SubnetMin is fd00:5:0:100::" in claim.why


def test_of_the_pair_of_before_is_taken_again_what_is_free() -> None:
    store = Store(DUAL)
    assert both_of(planned(store, both(), Wish.of(pair(9)))) == pair(9)
    # As the IPv6 half of another's lease, of which the rest cannot be read either.
    store.put(store.layout.lease(pair(8).first, six(9)), b"junk")
    assert planned(store, both(), Wish.of(pair(9))) == Claim(pair(9).first)
    assert planned(store, both(), Wish.of(pair(8))) == Claim(None, subnet6=six(8))
    # subnet.env of a host that had one family only.
    assert planned(store, both(), Wish(pair(7).first)) == Claim(pair(7).first)
    assert planned(store, both(), Wish(six(7))) == Claim(None, subnet6=six(7))


def test_a_subnet_of_our_containers_is_never_stolen_in_either_family() -> None:
    store = Store(DUAL)
    store.put(store.layout.lease(pair(8).first, six(9)), store.both(3).kv.value)  # type: ignore[union-attr]

    with pytest.raises(SubnetTakenError, match=r"10\.5\.9\.0/24 with fd00:5:0:9::/64 belongs to"):
        planned(store, both(), Wish.of(pair(9), keep=True))


def test_containers_keep_their_subnet_when_the_network_gets_ipv6() -> None:
    store = Store(DUAL)
    store.host("me", 5)
    store.lease(5)

    claim = planned(store, both(), Wish(pair(5).first, keep=True))

    assert both_of(claim) == (pair(5).first, None)
    assert [lease.pair for lease in claim.drops] == [Pair(pair(5).first)]


def test_containers_of_a_family_that_the_network_has_no_more_are_an_error() -> None:
    with pytest.raises(SubnetMisfitError, match="no subnet of IPv6Network"):
        planned(Store(ONLY_IPV6), both(), Wish(pair(5).first, keep=True))
