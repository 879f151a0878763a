"""What the table says, in words; that nft and the kernel take them is tested in tests/net/nft."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from netplane.nft.rules import NftError, Rules, elements, removal, text

RULES = Rules(
    table="netplane",
    network=IPv4Network("10.5.0.0/16"),
    subnet=IPv4Network("10.5.42.0/24"),
    vxlan_port=8472,
    masquerade=True,
)


def chain(said: str, name: str) -> list[str]:
    """Return what the rules of a chain say, without their comments."""
    lines = said.partition(f"  chain {name} {{\n")[2].partition("\n  }")[0].splitlines()
    return [line.strip().partition(" comment ")[0] for line in lines if 'comment "' in line][1:]


def test_masquerading_is_what_flannel_does_with_iptables() -> None:
    # FLANNEL-POSTRTG, rule by rule; see reference 1.6.
    assert chain(text(RULES), "postrouting") == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip saddr 10.5.42.0/24 ip daddr 10.5.0.0/16 return",
        "ip saddr 10.5.0.0/16 ip daddr 10.5.42.0/24 return",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.42.0/24 return",
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
    ]
    plain = text(replace(RULES, fully_random=False))
    assert [line for line in chain(plain, "postrouting") if "masq" in line] == [
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade",
    ]


def test_overlay_packets_are_told_from_others_by_port_and_number() -> None:
    said = text(replace(RULES, vni=257))
    drop = "counter name unknown-vteps drop"
    assert chain(said, "underlay") == [
        "udp dport 8472 @th,96,24 != 257 accept",
        f"udp dport 8472 ip saddr != @vteps {drop}",
    ]
    assert chain(said, "forward")[0] == (
        f"udp dport 8472 @th,96,24 257 ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 {drop}"
    )
    # Of any number.
    assert chain(text(RULES), "underlay") == [f"udp dport 8472 ip saddr != @vteps {drop}"]


def test_the_same_is_said_of_ipv6() -> None:
    network, subnet = "fd00:5::/48", "fd00:5:0:1::/64"
    said = text(replace(RULES, network=IPv6Network(network), subnet=IPv6Network(subnet), vni=257))
    drop = "counter name unknown-vteps drop"
    assert chain(said, "underlay") == [
        "udp dport 8472 @th,96,24 != 257 accept",
        f"udp dport 8472 ip6 saddr != @vteps {drop}",
    ]
    assert chain(said, "forward")[0] == (
        f"udp dport 8472 @th,96,24 257 ip6 saddr {network} ip6 daddr != {network} {drop}"
    )
    assert "type ipv6_addr" in said
    assert chain(said, "postrouting") == [
        "meta mark & 0x4000 == 0x4000 return",
        "icmpv6 type 133-137 return",  # neighbours: what they say is of their own addresses
        f"ip6 saddr {subnet} ip6 daddr {network} return",
        f"ip6 saddr {network} ip6 daddr {subnet} return",
        f"ip6 saddr != {network} ip6 daddr {subnet} return",
        f"ip6 saddr {network} ip6 daddr != ff00::/8 masquerade fully-random",
        f"ip6 saddr != {network} ip6 daddr {network} masquerade fully-random",
    ]


def test_what_is_not_asked_for_is_not_there() -> None:
    said = text(replace(RULES, masquerade=False, vxlan_port=0))
    assert re.findall(r"(?:chain|set|counter) (\S+) {", said) == ["forward"]


def test_everything_says_why_it_is_there_and_fits() -> None:
    said = text(RULES)
    blocks = re.findall(r"^ *(?:table|chain|set|counter) .*\{\n *(.*)\n", said, re.MULTILINE)
    assert len(blocks) == 5
    for line in said.splitlines():
        if re.search(r"\b(accept|drop|return|masquerade|fully-random)\b", line):
            assert "policy accept;" in line or ' comment "' in line, line
    comments = re.findall(r'comment "(.*)"', said)
    assert len(comments) == 6 + 10
    # The kernel keeps 128 bytes of each.
    assert max(map(len, comments)) <= 127


def test_members_are_written_in_order_and_none_is_no_command() -> None:
    hosts = {IPv4Address("10.0.0.3"), IPv4Address("10.0.0.2")}
    assert elements("add", "ip netplane-b", "vteps", hosts) == (
        "add element ip netplane-b vteps { 10.0.0.2, 10.0.0.3 }\n"
    )
    assert elements("delete", "ip netplane", "vteps", []) == ""
    assert removal("ip netplane") == "add table ip netplane\ndelete table ip netplane\n"


@pytest.mark.parametrize("name", ["filter", "netplane x", "netplane-A", "netplane-", ""])
def test_no_foreign_table_can_be_named(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a table of ours"):
        replace(RULES, table=name)


def test_an_error_says_what_nft_says_and_what_was_asked() -> None:
    said = (
        "/dev/stdin:1:24-28: Error: Could not process rule: No such file or directory\n"
        "delete table ip netplane\n                ^^^^^\n"
        "netlink: Error: cache initialization failed\n"
    )
    error = NftError(said, "delete table ip netplane")
    assert error.text == (
        "Could not process rule: No such file or directory; cache initialization failed"
    )
    assert str(error) == f"{error.text} (delete table ip netplane)"
    assert str(NftError("no\n  answer")) == "no answer"
    assert str(NftError("x", "add table ip a\nadd table ip b")) == "x (add table ip a ...)"
