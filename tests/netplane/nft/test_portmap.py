"""Who has which port, and what stands in the maps; packets are in tests/net/nft."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from netplane.nft.portmap import PortMapping, Portmaps, PortTakenError, members, text

ONE, TWO = IPv4Address("10.5.42.2"), IPv4Address("10.5.42.3")
WEB = PortMapping("tcp", 8080, ONE, 80)
HERE = IPv4Address("10.0.0.1")


@pytest.fixture
def portmaps() -> Iterator[Portmaps]:
    made = Portmaps("netplane_ports", subnet=IPv4Network("10.5.42.0/24"), bridge="np-br")
    with contextlib.closing(made):
        yield made


def test_ports_that_stay_the_same_and_follow_each_other_are_one_member() -> None:
    row = [PortMapping("udp", number, ONE, number) for number in (7002, 7000, 7001, 7004)]
    other = [PortMapping("udp", 7003, TWO, 7003)]
    assert members([row, other, [WEB]]) == {
        "ports": {"6 . 0.0.0.0/0 . 8080 : 10.5.42.2 . 80"},
        "same-ports": {
            "17 . 0.0.0.0/0 . 7000-7002 : 10.5.42.2",
            "17 . 0.0.0.0/0 . 7003 : 10.5.42.3",
            "17 . 0.0.0.0/0 . 7004 : 10.5.42.2",
        },
    }
    assert members([[PortMapping("sctp", 9, ONE, 9, HERE)]])["same-ports"] == {
        "132 . 10.0.0.1 . 9 : 10.5.42.2"
    }


def test_ipv6_has_a_table_of_its_own_with_the_same_in_it() -> None:
    box, everywhere = IPv6Address("fd00:5::2"), IPv6Address("::")
    mappings = [
        PortMapping("tcp", 8080, box, 80, everywhere),
        PortMapping("tcp", 443, box, 443, IPv6Address("fd77::1")),
    ]
    assert str(mappings[0]) == "[::]:8080/tcp"
    assert members([mappings]) == {
        "ports": {"6 . ::/0 . 8080 : fd00:5::2 . 80"},
        "same-ports": {"6 . fd77::1 . 443 : fd00:5::2"},
    }
    said = text(IPv6Network("fd00:5::/64"), "np-br")
    assert not re.search(r"ipv4_addr|\bip \w|127\.", said)


def test_a_port_has_one_holder_on_each_address(portmaps: Portmaps) -> None:
    portmaps._take("first", [WEB, PortMapping("tcp", 443, ONE, 443, HERE)])
    assert portmaps.holder("tcp", HERE, 8080) == "first"  # on all addresses, so on this one
    assert portmaps.holder("tcp", IPv4Address("0.0.0.0"), 443) == "first"
    assert portmaps.holder("tcp", IPv4Address("10.0.0.9"), 443) is None
    assert portmaps.holder("udp", HERE, 8080) is None
    with pytest.raises(PortTakenError, match=r"port 0\.0\.0\.0:8080/tcp .* for container first"):
        portmaps._take(
            "second", [PortMapping("tcp", 9090, TWO, 80), PortMapping("tcp", 8080, TWO, 1)]
        )
    # All or nothing.
    assert portmaps.holder("tcp", HERE, 9090) is None
    # Its own are no obstacle to whoever comes again, unless it asks twice for one.
    portmaps._take("first", [WEB])
    with pytest.raises(PortTakenError, match="for container first"):
        portmaps._take("first", [WEB, WEB])
    assert portmaps.holder("tcp", HERE, 8080) == "first"


@pytest.mark.parametrize(
    ("protocol", "host_port", "port"), [("icmp", 1, 1), ("tcp", 0, 1), ("tcp", 1, 65536)]
)
def test_what_is_no_port_is_refused(protocol: str, host_port: int, port: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be published|is no port"):
        PortMapping(protocol, host_port, ONE, port)


def test_the_bridge_is_a_name_and_every_rule_says_why() -> None:
    said = text(IPv4Network("10.5.42.0/24"), "np-br")
    rules = [line for line in said.splitlines() if re.search(r"\b(dnat ip to|masq|drop)", line)]
    assert len(rules) == 7
    assert all(' comment "' in line for line in rules)
    with pytest.raises(ValueError, match="does not fit"):
        Portmaps("netplane_ports", subnet=IPv4Network("10.5.42.0/24"), bridge='a" drop')
