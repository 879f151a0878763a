"""The choice of the interface, on what a real kernel says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from netplane.agent.errors import InterfaceError
from netplane.agent.interface import ExternalInterface, choose, read_host
from tests.net.namespaces import Namespace, missing

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
NAMES = ("eth0", "eth1", "bare", "ppp0")


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A machine with two networks, a bare interface, a tunnel and no default route."""
    with Namespace("host") as made:
        made.ip(
            *(f"link add {name} type veth peer name {name}-end" for name in NAMES),
            *(f"link set {name}-end up" for name in NAMES),
            "addr add 192.0.2.10/24 dev eth0",
            "addr add 169.254.9.9/16 scope link dev eth1",
            "addr add 198.51.100.7/25 dev eth1",
            "addr add 198.51.100.8/25 dev eth1",
            "addr add 203.0.113.1 peer 203.0.113.2/32 dev ppp0",
            "link set eth0 mtu 9000 up",
            "link set eth1 up",
            "link set bare up",
            "link set ppp0 up",
        )
        yield made


def chosen(host: Namespace, *iface: str) -> ExternalInterface:
    return choose(host.within(lambda: asyncio.run(read_host())), iface)


def test_the_default_route_that_the_kernel_prefers(host: Namespace) -> None:
    host.ip(
        "route add default via 192.0.2.1 metric 200",
        "route add default via 198.51.100.1 metric 100",
        # Neither is the default route of packets.
        "route add default via 192.0.2.1 table 100",
        "route add blackhole default metric 1",
    )
    found = chosen(host)
    assert (found.name, str(found.address), found.mtu) == ("eth1", "198.51.100.7/25", 1500)
    host.ip("route del default via 198.51.100.1")
    found = chosen(host)
    assert (found.name, str(found.address), found.mtu) == ("eth0", "192.0.2.10/24", 9000)
    [link] = host.json("ip", "-j", "link", "show", "eth0")
    assert found.index == link["ifindex"]


def test_a_default_route_over_two_interfaces_is_ambiguous(host: Namespace) -> None:
    host.ip("route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1")
    with pytest.raises(InterfaceError, match=r"leads over eth0 .*, eth1"):
        chosen(host)


def test_our_end_of_a_point_to_point_link_is_taken_and_not_the_other(host: Namespace) -> None:
    assert str(chosen(host, "ppp0").address.ip) == "203.0.113.1"
    with pytest.raises(InterfaceError, match=r"no interface for --iface 203\.0\.113\.2"):
        chosen(host, "203.0.113.2")


def test_a_device_of_an_overlay_is_known_by_its_kind(host: Namespace) -> None:
    host.ip(
        "link add other type vxlan id 9 dstport 4790 dev eth0",
        "addr add 10.5.42.0/32 dev other",
        "link set other up",
    )
    with pytest.raises(InterfaceError, match="other is a device of an overlay itself"):
        chosen(host, "other")


def test_names_addresses_and_what_has_none(host: Namespace) -> None:
    assert str(chosen(host, "eth1").address) == "198.51.100.7/25"
    assert str(chosen(host, "198.51.100.8").address) == "198.51.100.8/25"
    with pytest.raises(InterfaceError, match="bare has no address"):
        chosen(host, "bare")
    with pytest.raises(InterfaceError, match="there is no default route"):
        chosen(host)


def test_of_several_ipv6_addresses_one_that_stays_is_told_and_goes_on_to_be(
    host: Namespace,
) -> None:
    host.sysctl("ipv6/conf/eth0/use_tempaddr", "2")
    host.sysctl("ipv6/conf/eth0/dad_transmits", "1000")
    host.ip(
        "addr add 2001:db8::1/64 dev eth0 nodad",
        # It has a temporary one made beside it.
        "addr add 2001:db8:5::5/64 dev eth0 mngtmpaddr nodad",
        "addr add 2001:db8::d/64 dev eth0 preferred_lft 0 nodad",
        "addr add 2001:db8::7/64 dev eth0",
        "addr add 2001:db8::99/128 dev eth0 nodad",
    )
    [link] = host.json("ip", "-6", "-j", "addr", "show", "dev", "eth0")
    states = {
        one["local"]: {"deprecated", "tentative", "temporary"} & one.keys()
        for one in link["addr_info"]
        if one["scope"] == "global"
    }
    sound = {address for address, state in states.items() if not state}
    assert sound == {"2001:db8::1", "2001:db8:5::5", "2001:db8::99"}
    assert set.union(*states.values()) == {"deprecated", "tentative", "temporary"}
    found = chosen(host, "eth0").address6
    assert found is not None
    assert str(found.ip) in sound
    for address in sound:
        kept = choose(
            host.within(lambda: asyncio.run(read_host())), ["eth0"], kept=[IPv6Address(address)]
        )
        assert str(kept.ips[1]) == address
        assert chosen(host, address) == kept
