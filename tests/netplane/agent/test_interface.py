"""Which interface carries the overlay: the order of preference, and every refusal's words."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

import pytest

from netplane.agent.errors import InterfaceError
from netplane.agent.interface import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_PERMANENT,
    IFA_F_SECONDARY,
    IFA_F_TENTATIVE,
    IFF_LOOPBACK,
    IFF_UP,
    Address,
    DefaultRoute,
    Host,
    Link,
    choose,
)


def link(
    index: int, name: str, *addresses: str | Address, flags: int = IFF_UP, kind: str = ""
) -> Link:
    found = [Address(IPv4Interface(each)) if isinstance(each, str) else each for each in addresses]
    return Link(index, name, 1500, flags, tuple(found), kind)


LOOPBACK = link(1, "lo", "127.0.0.1/24", flags=IFF_UP | IFF_LOOPBACK)
ETH0 = link(2, "eth0", "192.0.2.10/24")
ETH1 = link(3, "eth1", "198.51.100.7/24", "198.51.100.8/24")
BARE = link(4, "eth2")
LINKS = (LOOPBACK, ETH0, ETH1, BARE)


def host(*routes: tuple[int, int]) -> Host:
    return Host(LINKS, tuple(DefaultRoute(index, metric) for index, metric in routes))


def test_the_default_route_of_the_lowest_metric_tells_the_interface() -> None:
    found = choose(host((2, 200), (3, 100)))
    assert (found.index, found.name, found.mtu, str(found.address)) == (
        3, "eth1", 1500, "198.51.100.7/24",
    )  # fmt: skip


def test_two_routes_over_one_interface_are_no_doubt() -> None:
    assert choose(host((2, 100), (2, 100))).name == "eth0"


def test_two_equal_default_routes_are_refused_with_both_names() -> None:
    # Flannel takes the first of them, so a reboot may move the overlay to another network.
    with pytest.raises(InterfaceError) as refused:
        choose(host((2, 100), (3, 100)))
    assert str(refused.value) == (
        "the default route leads over eth0 (192.0.2.10/24), eth1 (198.51.100.7/24); "
        "name the interface to the other hosts with --iface"
    )


def test_without_a_default_route_the_candidates_are_named_and_not_the_loopback() -> None:
    with pytest.raises(InterfaceError, match=r"no default route") as refused:
        choose(host())
    assert "eth0 (192.0.2.10/24), eth1 (198.51.100.7/24), eth2 (no address)" in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)


def test_a_name_wins_over_the_default_route() -> None:
    assert choose(host((2, 0)), iface=["eth1"]).name == "eth1"


def test_an_address_picks_that_address_also_if_another_ranks_higher() -> None:
    found = choose(host((2, 0)), iface=["198.51.100.8"])
    assert (found.name, str(found.address)) == ("eth1", "198.51.100.8/24")


def test_the_first_that_is_there_counts_and_patterns_come_last() -> None:
    assert (
        choose(host(), iface=["wlan0", "10.9.9.9/24", "eth0"], iface_regex=["eth1"]).name == "eth0"
    )
    assert choose(host(), iface=["wlan0"], iface_regex=["wl", "^eth1$"]).name == "eth1"


def test_a_pattern_also_matches_addresses() -> None:
    assert choose(host(), iface_regex=[r"^198\.51\."]).name == "eth1"


def test_a_pattern_that_several_interfaces_match_is_refused() -> None:
    with pytest.raises(InterfaceError, match=r"'eth\[01\]' matches eth0 .*, eth1 .*more exact"):
        choose(host(), iface_regex=["eth[01]"])


OVERLAYS = (
    link(5, "np.1", "10.5.42.0/32", kind="vxlan"),
    link(6, "flannel0", "10.6.42.0/16", kind="tun"),
    link(7, "cilium_vxlan", "10.7.42.0/32", kind="vxlan"),
)


def test_a_pattern_never_means_a_device_of_an_overlay() -> None:
    # Ours is there as soon as the agent is started again.
    underlay = link(2, "eth0", "10.0.0.1/24")
    assert choose(Host((*OVERLAYS, underlay)), iface_regex=[r"^10\."]).name == "eth0"
    with pytest.raises(InterfaceError, match=r"there are: eth0 \(10.0.0.1/24\)$"):
        choose(Host((*OVERLAYS, underlay)), iface_regex=["np|flannel|cilium"])


@pytest.mark.parametrize("wanted", ["np.1", "flannel0", "10.7.42.0"])
def test_a_device_of_an_overlay_is_refused_also_by_name_and_address(wanted: str) -> None:
    with pytest.raises(InterfaceError, match="is a device of an overlay itself"):
        choose(Host(OVERLAYS), iface=[wanted])


def test_nothing_found_names_what_was_tried_and_what_there_is() -> None:
    with pytest.raises(InterfaceError) as refused:
        choose(host((2, 0)), iface=["wlan0"], iface_regex=["wl"])
    assert str(refused.value).startswith("no interface for --iface wlan0 or --iface-regex 'wl'; ")


@pytest.mark.parametrize("wanted", ["eth2", "lo"])
def test_an_interface_without_a_usable_address_is_refused(wanted: str) -> None:
    with pytest.raises(InterfaceError, match=f"interface {wanted} has no address"):
        choose(host(), iface=[wanted])


def test_the_address_that_reaches_farthest_and_stays_longest_is_taken() -> None:
    worse = [
        Address(IPv4Interface("203.0.113.9/24"), flags=IFA_F_PERMANENT | IFA_F_DEPRECATED),
        Address(IPv4Interface("169.254.3.3/24")),
        Address(IPv4Interface("203.0.113.3/24"), scope=253),
        Address(IPv4Interface("203.0.113.2/24"), flags=0),
        Address(IPv4Interface("203.0.113.1/24"), flags=IFA_F_PERMANENT | IFA_F_SECONDARY),
    ]
    best = Address(IPv4Interface("203.0.113.7/24"))
    for rest in range(len(worse)):
        assert link(9, "x", *worse[rest:], best).best_address() == best.at
    assert link(9, "x", worse[0]).best_address() is None
    assert link(9, "x", *worse[:2]).best_address() == worse[1].at


GLOBAL6 = IPv6Interface("2001:db8::7/64")


@pytest.mark.parametrize(
    "flags", [IFA_F_SECONDARY, IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_DADFAILED]
)
def test_an_ipv6_address_that_does_not_stay_is_not_told_to_others(flags: int) -> None:
    # Temporary ones change by the day; of the others it is not sure that they are ours.
    left = Address(IPv6Interface("2001:db8::bad/64"), flags=flags)
    local = Address(IPv6Interface("fe80::1/64"), scope=253)
    both = link(2, "eth0", "192.0.2.10/24", left, local, Address(GLOBAL6))
    found = choose(Host((LOOPBACK, both), (DefaultRoute(2, 0),)))
    assert (str(found.of(4)), found.of(6)) == ("192.0.2.10/24", GLOBAL6)
    bare = choose(
        Host(
            (LOOPBACK, link(2, "eth0", "192.0.2.10/24", left, local)),
        ),
        ["eth0"],
    )
    assert bare.of(6) is None


def test_both_families_are_of_one_interface_which_that_of_ipv4_tells() -> None:
    # Flannel looks for each by itself, and may send the two over different networks.
    six = link(3, "eth1", Address(GLOBAL6))
    routes6 = (DefaultRoute(3, 0),)
    assert choose(Host((ETH0, six), (DefaultRoute(2, 0),), routes6)).address6 is None
    alone = choose(Host((ETH0, six), (), routes6))
    assert (alone.name, alone.of(4), alone.of(6)) == ("eth1", None, GLOBAL6)


def test_an_ipv6_address_names_interface_and_address() -> None:
    other = IPv6Interface("2001:db8::8/64")
    both = link(2, "eth0", "192.0.2.10/24", Address(GLOBAL6), Address(other))
    found = choose(Host((ETH1, both)), ["2001:db8::8"])
    assert (found.name, str(found.of(4)), found.of(6)) == ("eth0", "192.0.2.10/24", other)


def test_an_address_that_is_in_use_goes_before_others_of_its_interface() -> None:
    # Of IPv6 the kernel lists the newest first: here one that floats between hosts.
    floating = Address(IPv6Interface("2001:db8::99/64"))
    both = link(2, "eth0", "192.0.2.10/24", "192.0.2.11/24", floating, Address(GLOBAL6))
    now = Host((LOOPBACK, both), (DefaultRoute(2, 0),))
    assert choose(now).address6 == floating.at
    kept = (IPv4Interface("192.0.2.11/24").ip, GLOBAL6.ip)
    for named in ((), ("eth0",), ("192.0.2.11",)):
        found = choose(now, named, kept=kept)
        assert found.ips == kept, named
    # One that cannot be used any more, or is on another interface, is not.
    gone = Address(GLOBAL6, flags=IFA_F_DEPRECATED)
    both = link(2, "eth0", "192.0.2.10/24", floating, gone)
    now = Host((LOOPBACK, both, ETH1), (DefaultRoute(2, 0),))
    found = choose(now, kept=(GLOBAL6.ip, IPv4Interface("198.51.100.8/24").ip))
    assert (str(found.address), found.address6) == ("192.0.2.10/24", floating.at)
