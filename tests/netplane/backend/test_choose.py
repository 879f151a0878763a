"""A configuration leads to its backend; one that is not offered is refused with what helps."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface

import pytest

from netplane.backend import FORWARDING, BackendError, External, blackhole_of, choose
from netplane.backend.choose import OFFERED, check, make
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.lease import Lease, encode_value

EXTERNAL = External("eth0", IPv4Interface("192.0.2.1/24"), 1500)


def config(**backend: object) -> NetworkConfig:
    fields: dict[str, object] = {"Network": "10.5.0.0/16"}
    if backend:
        fields["Backend"] = backend
    return parse_config(json.dumps(fields).encode())


@pytest.mark.parametrize("kind", OFFERED)
def test_what_is_offered_is_made_whatever_the_case_of_its_name(kind: str) -> None:
    given = config(Type=kind.upper())
    check(given)
    made = make(given, external=EXTERNAL, mac="02:00:00:00:00:01")
    assert made.type == kind
    assert made.scope.networks == ((IPv4Address("10.5.0.0").packed, 16),)


def test_flags_reach_the_backend() -> None:
    for kind in OFFERED:
        made = make(
            config(Type=kind, DirectRouting=True), external=EXTERNAL, mac="02:00:00:00:00:01",
            adopts_flannel=True, blackhole=True,
        )  # fmt: skip
        subnet = config().first.subnet_at(3)
        assert blackhole_of(subnet) in made.plan(subnet, {}).objects
        assert made.scope.adopts_routes == (0 if kind in {"alloc", "udp", "netplane-udp"} else 24)


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (
            {"Type": "wireguard"},
            "'wireguard', which is not offered: WireGuard is not set up here; take netplane-udp",
        ),
        ({"Type": "ipip"}, "take vxlan"),
        ({"Type": "ipsec"}, "or vxlan inside of a VPN"),
        ({"Type": "extension"}, "runs commands of the configuration as root"),
        ({"Type": "tencent-vpc"}, "the routes of one cloud"),
        (
            {"Type": "vx-lan"},
            "nobody knows it; take vxlan or host-gw or udp or netplane-udp",
        ),
    ],
)
def test_what_is_not_offered_is_refused_by_name(backend: dict[str, object], text: str) -> None:
    given = config(**backend)
    for refuse in (
        lambda: check(given),
        lambda: make(given, external=EXTERNAL, mac="02:00:00:00:00:01"),
    ):
        with pytest.raises(BackendError, match=text.replace("'", ".")):
            refuse()


def test_only_vxlan_has_a_network_identifier() -> None:
    assert choose.vxlan(config(Type="host-gw")) is None
    found = choose.vxlan(config(Type="vxlan", VNI=7))
    assert found is not None
    assert found.vni == 7


def test_alloc_leases_a_subnet_and_leads_nowhere() -> None:
    made = make(config(Type="alloc"), external=EXTERNAL, mac="02:00:00:00:00:01")
    subnet, other = config().first.subnet_at(3), config().first.subnet_at(4)
    plan = made.plan(subnet, {other: Lease(other, IPv4Address("198.51.100.2"), "")})
    assert (plan.objects, plan.refused, plan.vteps) == ({FORWARDING}, {}, frozenset())
    assert made.mtu == 1500
    value = encode_value(IPv4Address("192.0.2.1"), made.type, made.lease_data())
    assert value == b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
