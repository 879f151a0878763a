"""What the table says, in words; that nft and the kernel take them is tested in tests/net/nft."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from netplane.nft.rules import NftError, Rules, elements, removal, whole

RULES = Rules(
    table="netplane",
    network=IPv4Network("10.5.0.0/16"),
    subnet=IPv4Network("10.5.42.0/24"),
    external="eth0",
    vxlan_port=8472,
    masquerade=True,
)
HOSTS = [IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")]


def chain(text: str, name: str) -> list[str]:
    """Return what the rules of a chain say, without their comments."""
    lines = text.partition(f"  chain {name} {{\n")[2].partition("\n  }")[0].splitlines()
    return [line.strip().partition(" comment ")[0] for line in lines if 'comment "' in line][1:]


def test_masquerading_is_what_flannel_does_with_iptables() -> None:
    # FLANNEL-POSTRTG, rule by rule; see reference 1.6.
    assert chain(whole(RULES, HOSTS), "postrouting") == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip saddr 10.5.42.0/24 ip daddr 10.5.0.0/16 return",
        "ip saddr 10.5.0.0/16 ip daddr 10.5.42.0/24 return",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.42.0/24 return",
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
    ]
    plain = whole(replace(RULES, fully_random=False), HOSTS)
    assert [line for line in chain(plain, "postrouting") if "masq" in line] == [
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade",
    ]


def test_what_is_not_asked_for_is_not_there() -> None:
    text = whole(replace(RULES, masquerade=False, vxlan_port=0), HOSTS)
    assert re.findall(r"(?:chain|set|counter) (\S+)", text) == ["forward"]
    assert "10.0.0.2" not in text


def test_hosts_stand_in_their_set_and_an_empty_set_is_no_error() -> None:
    assert "elements = { 10.0.0.2, 10.0.0.3 }" in whole(RULES, HOSTS)
    assert "elements" not in whole(RULES, [])


def test_everything_says_why_it_is_there_and_fits() -> None:
    text = whole(RULES, HOSTS)
    blocks = re.findall(r"^ *(?:table|chain|set|counter) .*\{\n *(.*)\n", text, re.MULTILINE)
    assert len(blocks) == 6
    for line in text.splitlines():
        if re.search(r"\b(accept|drop|return|masquerade|fully-random)\b", line):
            assert "policy accept;" in line or ' comment "' in line, line
    comments = re.findall(r'comment "(.*)"', text)
    assert len(comments) == 6 + 9
    # The kernel keeps 128 bytes of each.
    assert max(map(len, comments)) <= 127


def test_only_hosts_that_differ_are_written() -> None:
    assert elements("netplane-b", HOSTS, []) == (
        "add element ip netplane-b vteps { 10.0.0.2, 10.0.0.3 }\n"
    )
    assert elements("netplane", HOSTS[:1], HOSTS[1:]) == (
        "add element ip netplane vteps { 10.0.0.2 }\ndelete element ip netplane vteps { 10.0.0.3 }\n"
    )
    assert removal("netplane") == "add table ip netplane\ndelete table ip netplane\n"


@pytest.mark.parametrize("name", ["eth0; flush ruleset", 'a"', "eth*", "", "x" * 16, "a/b"])
def test_a_name_that_is_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        replace(RULES, external=name)


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
