"""Keys and values as Flannel's documentation shows them, and as its code writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netplane.subnet.config import parse_config
from netplane.subnet.family import Pair, ipv4_address
from netplane.subnet.jsontext import text_of
from netplane.subnet.lease import (
    Lease,
    _plain_subnet,
    address_problem,
    decode_value,
    encode_value,
    parse_name,
    subnet_name,
)

SUBNET = IPv4Network("10.5.34.0/24")
FLANNELS = {
    "vxlan": (
        b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":'
        b'{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}'
    ),
    "host-gw": b'{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
    "udp": b'{"PublicIP":"192.168.64.3","PublicIPv6":null}',
}
DATA = {"vxlan": {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}}


@pytest.mark.parametrize("kind", FLANNELS)
def test_values_are_flannels_byte_for_byte(kind: str) -> None:
    value = encode_value(IPv4Address("192.168.64.3"), kind, DATA.get(kind))

    assert value == FLANNELS[kind]


@pytest.mark.parametrize("kind", FLANNELS)
def test_flannels_values_are_read(kind: str) -> None:
    lease = decode_value(FLANNELS[kind], SUBNET, key=b"k", mod_revision=7)

    assert lease.public_ip == IPv4Address("192.168.64.3")
    assert lease.backend_type == ("" if kind == "udp" else kind)
    assert lease.backend_data == DATA.get(kind)
    assert (lease.key, lease.mod_revision, lease.expires) == (b"k", 7, True)


SUBNET6, ADDRESS6 = IPv6Network("fd00:5:0:22::/64"), IPv6Address("2001:db8::3")
FLANNELS6 = {
    "both": (
        b"10.5.34.0-24&fd00:5:0:22::-64",
        (
            b'{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},'
            b'"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:66"}}'
        ),
    ),
    "both host-gw": (
        b"10.5.34.0-24&fd00:5:0:22::-64",
        b'{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"host-gw"}',
    ),
    "only IPv6": (
        b"0.0.0.0-0&fd00:5:0:22::-64",
        (
            b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3","BackendType":"vxlan",'
            b'"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:66"}}'
        ),
    ),
}


@pytest.mark.parametrize("kind", FLANNELS6)
def test_leases_with_ipv6_are_flannels_byte_for_byte(kind: str) -> None:
    key, value = FLANNELS6[kind]

    pair = parse_name(key)
    lease = decode_value(value, *pair)

    assert subnet_name(*lease.pair).encode() == key
    assert value == encode_value(
        lease.public_ip, lease.backend_type, lease.backend_data, lease.public_ip6,
        lease.backend_data6,
    )  # fmt: skip


def test_a_lease_of_both_families_has_a_half_of_each() -> None:
    key, value = FLANNELS6["both"]
    lease = decode_value(value, *parse_name(key), key=key, mod_revision=7, expires=False)

    assert (lease.subnet, lease.public_ip) == (SUBNET, IPv4Address("192.168.64.3"))
    assert lease.addresses == (IPv4Address("192.168.64.3"), ADDRESS6)
    data6 = {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:66"}
    assert lease.second() == Lease(
        SUBNET6, ADDRESS6, "vxlan", data6, key, mod_revision=7, expires=False
    )
    assert lease.without_second().pair == Pair(SUBNET)
    assert lease.without_second().second() is None


def test_a_host_without_ipv4_is_known_by_its_ipv6_address() -> None:
    # All of Flannel's have PublicIP 0.0.0.0: by that the second host takes the first one's lease.
    key, value = FLANNELS6["only IPv6"]
    lease = decode_value(value, *parse_name(key))

    assert lease.pair == Pair(SUBNET6)
    assert lease.addresses == (ADDRESS6,)
    assert lease.backend_data == {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:66"}


@pytest.mark.parametrize(
    "value",
    [
        b'{"PublicIP":"1.2.3.4","PublicIPv6":7}',
        b'{"PublicIP":"1.2.3.4","PublicIPv6":"1.2.3.4"}',
        b'{"PublicIP":"1.2.3.4","PublicIPv6":"fe80::1%eth0"}',
        b'{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::/64"}',
    ],
)
def test_other_addresses_of_ipv6_are_refused_in_words(value: bytes) -> None:
    for pair in (Pair(SUBNET, SUBNET6), Pair(SUBNET6)):
        with pytest.raises(ValueError, match=r"PublicIPv6 .* is not an IPv6 address"):
            decode_value(value, *pair)
    assert decode_value(value, SUBNET).public_ip6 is None  # nobody asks for it


def test_the_first_releases_values_are_read() -> None:
    # Before dual stack there was no PublicIPv6; names match in any case, types are lowered.
    lease = decode_value(b'{"publicip":"1.2.3.4","BackendType":"VXLAN"}', SUBNET)

    assert (str(lease.public_ip), lease.backend_type) == ("1.2.3.4", "vxlan")


def test_text_is_escaped_as_go_does_it() -> None:
    assert text_of({"a": "<&>\u2028", "b": "é"}) == (
        '{"a":"\\u003c\\u0026\\u003e\\u2028","b":"é"}'.encode()
    )


def test_keys_are_flannels() -> None:
    assert subnet_name(SUBNET) == "10.5.34.0-24"
    assert parse_name(b"10.5.34.0-24") == Pair(SUBNET)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_the_subnet_of_a_key_is_as_any_other(address: int, length: int) -> None:
    plain = IPv4Network((address, length), strict=False)
    [leased] = {parse_name(subnet_name(plain).encode()).first}
    assert (leased, plain) == (plain, leased)
    assert hash(leased) == hash(plain)
    assert (leased.version, leased.prefixlen, leased.max_prefixlen) == (4, length, 32)
    assert [str(one) for one in (leased, leased.supernet())] == [str(plain), str(plain.supernet())]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (b"", "not <address>-<length>"),
        (b"10.5.34.0", "not <address>-<length>"),
        (b"10.5.34.0-24/x", "not <address>-<length>"),
        (b"x10.5.34.0-24", "not <address>-<length>"),
        (b"\xff", "not <address>-<length>"),
        (b"10.5.34.7-24", "no subnet"),
        (b"10.5.34.0-33", "no subnet"),
        (b"10.5.300.0-24", "no subnet"),
        (b"10.5.34.0-024", "not written as 10.5.34.0-24"),
        (b"10.5.34.0-24&", "not <address>-<length>"),
        (b"10.5.34.0-24&fd00::%1-64", "not <address>-<length>"),
        (b"10.5.34.0-24&::ffff:1.2.3.4-128", "not <address>-<length>"),
        (b"10.5.34.0-24&fd00::1-64", "no subnet"),
        (b"10.5.34.0-24&fd00::-129", "no subnet"),
        (b"10.5.34.0-24&fd00:::-64", "no subnet"),
        (b"10.5.34.0-24&fd00:0::-64", "not written as 10.5.34.0-24&fd00::-64"),
        (b"10.5.34.0-24&fd00::-064", "not written as 10.5.34.0-24&fd00::-64"),
        (b"10.5.34.0-24&FD00::-64", "not <address>-<length>"),
        (b"0.0.0.0-00&fd00::-64", "not written as 0.0.0.0-0&fd00::-64"),
        (b"0.0.0.0-0&fd00:0::-64", "not written as 0.0.0.0-0&fd00::-64"),
    ],
)
def test_other_keys_are_refused_in_words(name: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_name(name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"null", "not a JSON object but null"),
        (b"7", "not a JSON object but a number"),
        (b"{}", "PublicIP None is not"),
        (b'{"PublicIP":16909060}', "PublicIP 16909060 is not"),
        (b'{"PublicIP":"1.2.3"}', "PublicIP '1.2.3' is not"),
        (b'{"PublicIP":"::1"}', "PublicIP '::1' is not"),
        (b'{"PublicIP":"1.2.3.4","BackendType":1}', "BackendType is not a string"),
        (b'{"PublicIP":"1.2.3.4","BackendData":' + b"[" * 50_000, "nested too deeply"),
        (b" " * 70_000, "at most 65536"),
        (b"\xef\xbb\xbf{}", "not JSON: Unexpected UTF-8 BOM"),
        (b"{} {}", "not JSON: Extra data"),
        (b'{"PublicIP":NaN}', "not JSON: NaN is not JSON"),
    ],
)
def test_other_values_are_refused_in_words(value: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_value(value, SUBNET)


NAMES = st.text("0123456789abcdf.:-&%/", max_size=40).map(str.encode)


@given(st.binary(max_size=60) | NAMES)
def test_no_bytes_do_worse_than_a_refusal(data: bytes) -> None:
    pairs = (Pair(SUBNET), Pair(SUBNET6), Pair(SUBNET, SUBNET6))
    for read in (
        parse_name,
        lambda value: [decode_value(value, *pair) for pair in pairs],
    ):
        with contextlib.suppress(ValueError):
            read(data)


OCTETS = st.sampled_from(
    [*"0127", "00", "01", "10", "24", "128", "255", "256", "1000", "", "\u0661"]
)
DOTTED = st.lists(OCTETS, min_size=3, max_size=5).map(".".join)


@given(DOTTED, st.sampled_from([*map(str, range(35)), "00", "024", "+8", " 8", "", "8&", "\u0661"]))
@example("10.5.34.0", "024")
@example("10.5.34.0", "24")
@example("10.5.34.1", "24")
def test_a_plain_key_is_read_as_every_other(address: str, length: str) -> None:
    # There is a short way for nearly all keys, and one that says what is wrong. Both are one rule.
    name = f"{address}-{length}"

    found = _plain_subnet(name)

    try:
        meant = IPv4Network(f"{address}/{length}")
    except ValueError:
        meant = None
    if meant is not None and subnet_name(meant) != name:
        meant = None  # another way of writing it
    assert found == meant


@given(DOTTED | st.text("0123456789.:/x\0 \u0661", max_size=16))
def test_addresses_are_those_of_ipaddress(text: str) -> None:
    def outcome(read: Callable[[str], object]) -> object:
        try:
            return read(text)
        except ValueError as error:
            return str(error)

    assert outcome(ipv4_address) == outcome(IPv4Address)


@given(
    st.sampled_from([0, 1, 10, 126, 127, 128, 223, 224, 239, 240, 255]), st.integers(0, 2**24 - 1)
)
@example(0, 0)
@example(255, 2**24 - 1)
def test_addresses_of_no_host_are_those_that_ipaddress_knows(first: int, rest: int) -> None:
    address = IPv4Address(first << 24 | rest)

    is_special = (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or address == IPv4Address("255.255.255.255")
    )

    network = parse_config(b'{"Network":"10.5.0.0/16"}').first
    problem = address_problem(address, network)
    assert bool(problem) == (is_special or address in network.network)
