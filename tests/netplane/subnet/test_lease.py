"""Keys and values as Flannel's documentation shows them, and as its code writes them."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.subnet.family import Pair
from netplane.subnet.jsontext import text_of
from netplane.subnet.lease import decode_value, encode_value, parse_name, subnet_name

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
    ],
)
def test_other_values_are_refused_in_words(value: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_value(value, SUBNET)


@given(st.binary(max_size=60))
def test_no_bytes_do_worse_than_a_refusal(data: bytes) -> None:
    for read in (parse_name, lambda value: decode_value(value, SUBNET)):
        with contextlib.suppress(ValueError):
            read(data)
