from __future__ import annotations

import json
from ipaddress import IPv4Network, IPv6Network

import pytest

from netplane.subnet.config import NetworkConfig, Range, parse_config
from netplane.subnet.errors import ConfigError
from netplane.subnet.family import Pair


def parsed(**fields: object) -> NetworkConfig:
    return parse_config(json.dumps(fields).encode())


def net(text: str) -> IPv4Network:
    return IPv4Network(text)


def test_defaults_are_flannels() -> None:
    config = parsed(Network="10.5.0.0/16")

    assert (config.network, config.subnet_len) == (net("10.5.0.0/16"), 24)
    # The first subnet is left out: its address is the network's own.
    assert (config.subnet_min, config.subnet_max) == (net("10.5.1.0/24"), net("10.5.255.0/24"))
    # Without Backend it is udp, whatever the documentation says.
    assert (config.backend_type, dict(config.backend)) == ("udp", {})
    assert config.first.capacity == 255


@pytest.mark.parametrize(
    ("network", "length"),
    [("10.0.0.0/8", 24), ("10.0.0.0/22", 24), ("10.0.0.0/23", 25), ("10.0.0.0/28", 30)],
)
def test_the_default_length_follows_from_the_network(network: str, length: int) -> None:
    assert parsed(Network=network).subnet_len == length


def test_names_match_in_any_case_and_host_bits_are_masked_off() -> None:
    # Go's decoder is that lenient, so configurations written by hand are.
    config = parse_config(
        b'{"network":"10.5.7.9/16","SUBNETLEN":26,"subnetMin":"10.5.2.64",'
        b'"SubnetMax":"10.5.2.192","backend":{"type":"VXLAN","vni":7}}'
    )

    assert config.network == net("10.5.0.0/16")
    assert (config.subnet_min, config.subnet_max) == (net("10.5.2.64/26"), net("10.5.2.192/26"))
    assert (config.backend_type, config.vni, config.first.capacity) == ("vxlan", 7, 3)


def test_zero_and_null_mean_absent_as_in_go() -> None:
    config = parsed(
        Network="10.5.0.0/16", SubnetLen=0, SubnetMin="0.0.0.0", SubnetMax=None,
        Backend={"Type": "vxlan", "VNI": None},
    )  # fmt: skip

    assert (config.subnet_len, config.first.capacity, config.vni) == (24, 255, 1)


def test_positions_and_subnets_are_each_others_inverse() -> None:
    config = parsed(Network="10.5.0.0/16", SubnetMin="10.5.3.0")

    assert config.first.subnet_at(0) == net("10.5.3.0/24")
    assert config.first.position(net("10.5.9.0/24")) == 6
    assert config.first.subnet_at(config.first.capacity - 1) == config.subnet_max


V6 = {"EnableIPv6": True, "EnableIPv4": False}


def test_defaults_of_ipv6_are_flannels() -> None:
    config = parsed(**V6, IPv6Network="fd00:5:0:7::9/48")

    assert config.second is None
    assert config.first == Range(
        IPv6Network("fd00:5::/48"), 64, IPv6Network("fd00:5:0:1::/64"),
        IPv6Network("fd00:5:0:ffff::/64"),
    )  # fmt: skip
    assert config.network == config.networks.first == IPv6Network("fd00:5::/48")
    assert config.first.capacity == 65_535


@pytest.mark.parametrize(
    ("network", "length"),
    [("fd00::/32", 64), ("fd00::/62", 64), ("fd00::/63", 65), ("fd00::/124", 126)],
)
def test_the_default_length_of_ipv6_follows_from_the_network(network: str, length: int) -> None:
    assert parsed(**V6, IPv6Network=network).subnet_len == length


def test_a_network_of_both_families_has_ipv4_first() -> None:
    config = parse_config(
        b'{"enableipv6":true,"Network":"10.5.0.0/16","ipv6network":"fd00:5::/48","IPv6SubnetLen":56,'
        b'"IPv6SubnetMin":"fd00:5:0:200::","IPv6SubnetMax":"FD00:5:0:0f00::"}'
    )

    assert config.network == net("10.5.0.0/16")
    assert config.second is not None
    assert config.ranges == (config.first, config.second)
    assert config.networks == (net("10.5.0.0/16"), IPv6Network("fd00:5::/48"))
    assert config.second.capacity == 14
    assert config.second.subnet_at(13) == config.second.subnet_max
    assert str(config.second.subnet_max) == "fd00:5:0:f00::/56"
    assert config.second.position(IPv6Network("fd00:5:0:300::/56")) == 1


def test_ipv6_counts_only_where_it_is_enabled() -> None:
    # As by Flannel: what is said of a family that is off is not even read.
    assert parsed(Network="10.5.0.0/16", IPv6Network="x").second is None
    assert parsed(**V6, Network="x", IPv6Network="fd00::/48").network.version == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "IPv6Network is missing"),
        ({"Network": "fd00::/48"}, "IPv6Network is missing"),
        ({"IPv6Network": "fd00::"}, "not a CIDR"),
        ({"IPv6Network": "10.5.0.0/16"}, "not an IPv6 CIDR"),
        ({"IPv6Network": "fd00::%eth0/48"}, "not an IPv6 CIDR"),
        ({"IPv6Network": 7}, "IPv6Network is not a string"),
        ({"IPv6Network": "fd00::/125"}, "IPv6Network fd00::/125 is too small"),
        ({"IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}, "126 is the most"),
        ({"IPv6Network": "fd00::/48", "IPv6SubnetLen": 129}, "not a whole number"),
        ({"IPv6Network": "fd00::/48", "IPv6SubnetLen": 49}, "take 50 or more"),
        ({"IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd01::"}, "outside of IPv6Network"),
        ({"IPv6Network": "fd00::/48", "IPv6SubnetMin": "10.5.1.0"}, "not an IPv6 address"),
        ({"IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd00::1"}, "not the first .* of a /64"),
        (
            {
                "IPv6Network": "fd00::/48",
                "IPv6SubnetMin": "fd00:0:0:2::",
                "IPv6SubnetMax": "fd00:0:0:1::",
            },
            "IPv6SubnetMin fd00:0:0:2:: is above IPv6SubnetMax fd00:0:0:1::",
        ),
    ],
)
def test_what_cannot_be_used_of_ipv6_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(**V6, **fields)
    with pytest.raises(ConfigError):
        # Beside IPv4 it is looked at no less.
        parsed(**{"Network": "10.5.0.0/16", "EnableIPv6": True} | fields)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair(net("10.5.9.0/24"), IPv6Network("fd00:5:0:9::/64")), ""),
        (Pair(net("10.6.9.0/24"), IPv6Network("fd00:5:0:9::/64")), "outside of Network"),
        (Pair(net("10.5.9.0/24"), IPv6Network("fd00:6:0:9::/64")), "outside of IPv6Network"),
        (Pair(net("10.5.9.0/24"), IPv6Network("fd00:5:0:9::/65")), "IPv6SubnetLen is 64"),
        (Pair(net("10.5.9.0/24"), IPv6Network("fd00:5::/64")), "IPv6SubnetMin is fd00:5:0:1::"),
        (Pair(net("10.5.9.0/24")), "it has no subnet of IPv6Network"),
        (Pair(IPv6Network("fd00:5:0:9::/64")), "outside of Network"),
    ],
)
def test_a_pair_of_subnets_fits_or_not(pair: Pair, words: str) -> None:
    config = parsed(Network="10.5.0.0/16", EnableIPv6=True, IPv6Network="fd00:5::/48")

    reason = config.misfit(pair)

    assert words in reason if words else reason == ""
    alone = parsed(Network="10.5.0.0/16").misfit(pair)
    assert pair.second is None or alone


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "Network is missing"),
        ({"Network": "10.5.0.0"}, "not a CIDR"),
        ({"Network": "fd00::/48"}, "not an IPv4 CIDR"),
        ({"Network": 7}, "Network is not a string"),
        ({"Network": "10.5.0.0/29"}, "too small"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 31}, "leaves no room"),
        ({"Network": "10.5.0.0/16", "SubnetLen": 17}, "take 18 or more"),
        ({"Network": "10.5.0.0/16", "SubnetLen": "24"}, "not a whole number"),
        ({"Network": "10.5.0.0/16", "SubnetLen": True}, "not a whole number"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "10.6.0.0"}, "outside of Network"),
        ({"Network": "10.5.0.0/16", "SubnetMax": "10.5.1.7"}, "not the first address of a /24"),
        ({"Network": "10.5.0.0/16", "SubnetMin": "x"}, "not an IPv4 address"),
        (
            {"Network": "10.5.0.0/16", "SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"},
            "above SubnetMax",
        ),
        ({"Network": "10.5.0.0/16", "Backend": "vxlan"}, "Backend is not an object"),
        ({"Network": "10.5.0.0/16", "Backend": {"VNI": 1}}, "Backend has no Type"),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1 << 24}}, "VNI 16777216"),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 0}}, "VNI 0 is not"),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": -1}}, "Port -1"),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Learning": 1}}, "neither true"),
        ({"Network": "10.5.0.0/16", "EnableIPv4": False}, "take one of them"),
        ({"Network": "127.0.0.0/8"}, "127.0.0.0/8 has addresses that no host forwards to"),
        ({"Network": "224.0.0.0/8"}, "no host forwards to"),
        (
            {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fe80::/48"},
            "no host forwards to; take one such as fd00:10:5::/48",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_change(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parsed(**fields)
    assert "netplane ctl init" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b"\xff", b'{"Network":NaN}', b"[" * 100_000, b"7" * 70_000],
)
def test_bytes_that_are_no_configuration_are_an_error_in_words(data: bytes) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        parse_config(data)


@pytest.mark.parametrize(
    ("subnet", "reserved", "words"),
    [
        ("10.5.9.0/24", False, ""),
        ("10.5.1.0/24", False, "SubnetMin is 10.5.4.0"),
        ("10.5.1.0/24", True, ""),
        ("10.5.9.0/25", True, "SubnetLen is 24"),
        ("10.6.9.0/24", True, "outside of Network"),
    ],
)
def test_a_subnet_fits_or_not(subnet: str, reserved: bool, words: str) -> None:
    config = parsed(Network="10.5.0.0/16", SubnetMin="10.5.4.0")

    reason = config.first.misfit(net(subnet), reserved=reserved)

    assert words in reason if words else reason == ""
