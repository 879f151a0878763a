"""Peers become what the process is told; on its device lie an address and one route."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from netplane.backend import (
    FORWARDING,
    BackendError,
    External,
    blackhole_of,
    choose,
    forwarding_over,
)
from netplane.backend.udp import SealedUdpBackend, UdpBackend, with_key
from netplane.netlink.objects import Address, Route
from netplane.subnet.config import parse_config
from netplane.subnet.lease import Lease

SUBNET = IPv4Network("10.5.1.0/24")
PEER = Lease(IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2"), "")


def backend(
    text: str = '{"Type":"udp"}', mtu: int = 1500, *, blackhole: bool = False
) -> UdpBackend:
    config = parse_config(b'{"Network":"10.5.0.0/16","Backend":' + text.encode() + b"}")
    external = External("eth0", IPv4Interface("192.0.2.1/24"), mtu)
    made = choose.make(config, external=external, mac="", blackhole=blackhole)
    assert isinstance(made, UdpBackend)
    return made


def test_one_route_serves_all_peers_and_the_process_knows_which_is_where() -> None:
    plan = backend().plan(SUBNET, {PEER.subnet: PEER})
    assert plan.objects == {
        FORWARDING,
        forwarding_over("npu.8285"),
        Address("npu.8285", bytes([10, 5, 1, 0]), 32),
        Route("npu.8285", bytes([10, 5, 0, 0]), 16, b""),
    }
    assert plan.told == (("10.5.2.0/24", "192.0.2.2", 8285, ""),)
    assert (plan.refused, plan.vteps) == ({}, frozenset())
    # No peers are something else than no process.
    assert backend().plan(SUBNET, {}).told == ()


def test_a_port_of_the_configuration_is_ours_and_the_peers() -> None:
    made = backend('{"Type":"udp","Port":9000}')
    assert made.scope.link == "npu.9000"
    assert made.plan(SUBNET, {PEER.subnet: PEER}).told == (("10.5.2.0/24", "192.0.2.2", 9000, ""),)
    # As Flannel takes it.
    assert backend('{"Type":"udp","Port":0}').port == 8285


def test_without_backend_it_is_udp_as_flannel_has_it() -> None:
    config = parse_config(b'{"Network":"10.5.0.0/16"}')
    choose.check(config)
    assert choose.port(config) == 8285


@pytest.mark.parametrize("port", ["-1", "65536", '"8285"', "true"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    config = parse_config(
        b'{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":' + port.encode() + b"}}"
    )
    with pytest.raises(BackendError, match="Port"):
        choose.check(config)


@pytest.mark.parametrize("kind", ["udp", "netplane-udp"])
def test_a_network_with_ipv6_is_refused(kind: str) -> None:
    text = '{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"'
    config = parse_config(f'{text},"Backend":{{"Type":"{kind}"}}}}'.encode())
    with pytest.raises(BackendError, match="carries IPv4 only"):
        choose.check(config)


def test_containers_may_send_what_fits_into_udp() -> None:
    assert backend(mtu=9000).mtu == 9000 - 28
    with pytest.raises(BackendError, match="at least 604 are needed"):
        backend(mtu=603)


def test_a_host_of_another_backend_is_named_and_no_other_suffers() -> None:
    other = replace(PEER, subnet=IPv4Network("10.5.3.0/24"), backend_type="vxlan")
    plan = backend().plan(SUBNET, {PEER.subnet: PEER, other.subnet: other})
    assert plan.refused == {"10.5.3.0/24": "its backend is vxlan, ours udp"}
    assert plan.told == (("10.5.2.0/24", "192.0.2.2", 8285, ""),)


def test_a_blackhole_ends_what_no_container_has() -> None:
    assert blackhole_of(SUBNET) in backend(blackhole=True).plan(SUBNET, {}).objects


def sealed(key: object) -> Lease:
    return replace(PEER, backend_type="netplane-udp", backend_data={"PublicKey": key})


def test_keys_of_the_others_are_in_their_leases() -> None:
    made = backend('{"Type":"netplane-udp"}')
    assert isinstance(made, SealedUdpBackend)
    assert made.mtu == 1436
    plan = made.plan(SUBNET, {PEER.subnet: sealed("ab" * 32)})
    assert plan.told == (("10.5.2.0/24", "192.0.2.2", 8285, "ab" * 32),)


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (sealed(""), "its process has not told its key yet"),
        (sealed("AB" * 32), "is no key"),
        (sealed("ab" * 31), "is no key"),
        (sealed(None), "is no key"),
        (replace(sealed(""), backend_data=None), "is no key"),
        (PEER, "its backend is udp, ours netplane-udp"),
    ],
)
def test_who_has_no_key_is_not_served_in_the_clear(peer: Lease, reason: str) -> None:
    plan = backend('{"Type":"netplane-udp"}').plan(SUBNET, {PEER.subnet: peer})
    assert plan.told == ()
    assert reason in plan.refused["10.5.2.0/24"]


def test_no_empty_key_is_told_over_one_that_was() -> None:
    unknown = {"PublicKey": ""}
    assert with_key(unknown, sealed("ab" * 32)) == {"PublicKey": "ab" * 32}
    assert with_key({"PublicKey": "cd" * 32}, sealed("ab" * 32)) == {"PublicKey": "cd" * 32}
    # What was told is none that others could use, or our lease was of another backend.
    for before in sealed(""), sealed(None), sealed("ab"), PEER:
        assert with_key(unknown, before) == unknown
    assert with_key(None, sealed("ab" * 32)) is None
