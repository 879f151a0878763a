from __future__ import annotations

import json
from ipaddress import IPv4Network

import pytest

from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import ConfigError


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
