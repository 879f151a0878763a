"""What only the kernel's IPv6 does otherwise; the whole of it is tried in test_dual."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Interface, IPv6Network

import pytest

from netplane.agent.reconcile import Reconciler
from netplane.backend import External
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.subnet.lease import Lease
from tests.net.kernel.hosts import Host

pytestmark = pytest.mark.net

SUBNET = IPv6Network("fd00:5:0:1::/64")
PEER = Lease(
    IPv6Network("fd00:5:0:2::/64"),
    IPv6Address("fd77::2"),
    "vxlan",
    {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"},
)


def backend(*, direct: bool) -> VxlanBackend:
    return VxlanBackend(
        VxlanConfig(direct_routing=direct),
        network=IPv6Network("fd00:5::/48"),
        external=External("eth0", IPv6Interface("fd77::1/64"), 1500),
        mac="02:00:00:00:00:01",
    )


ROUTE = "route fd00:5:0:2::/64 via fd00:5:0:2:: dev np6.1 onlink"
THEIRS = "route fd00:5:0:2::/64 via fd77::9 dev eth0"
WAYS = {
    "over the device": (False, "via fd00:5:0:2:: dev np6.1"),
    "direct": (True, "via fd77::2 dev eth0"),
}


@pytest.fixture
def host6(host: Host) -> Host:
    host.run("ip", "addr", "add", "fd77::1/64", "dev", "eth0", "nodad")
    return host


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ["replace", "append"])
async def test_a_route_of_others_that_takes_the_place_of_ours_or_half_of_it_goes(
    host6: Host, how: str, way: str
) -> None:
    # What is appended with the same metric makes one route of several ways out of ours.
    direct, wanted = WAYS[way]
    plan = backend(direct=direct).plan(SUBNET, {PEER.subnet: PEER}).objects
    async with Reconciler(backend(direct=direct).scope, namespace=host6.path) as here:
        await here.apply(plan)
        host6.do(f"ip -6 route {how} {PEER.subnet} via fd77::9 dev eth0 metric 1024")
        report = await here._pass("timer", read=True)
        assert (report.failed, [str(item) for item in report.healed]) == (
            (),
            [f"route {PEER.subnet} {wanted}{'' if direct else ' onlink'}"],
        )
        [line] = host6.run("ip", "-6", "route", "show", str(PEER.subnet)).splitlines()
        assert wanted in line


@pytest.mark.parametrize(
    ("theirs", "where"), [(THEIRS, "place"), ("route fd00:5::/56 via fd77::9 dev eth0", "way")]
)
async def test_a_route_of_others_that_was_there_first_is_named(
    host6: Host, theirs: str, where: str
) -> None:
    # Of the second the kernel says no more than that the gateway is not right.
    host6.do(f"ip -6 {theirs.replace('route', 'route add')}")
    async with Reconciler(backend(direct=False).scope, namespace=host6.path) as here:
        plan = backend(direct=False).plan(SUBNET, {PEER.subnet: PEER}).objects
        for _ in range(2):
            [failure] = (await here.apply(plan)).failed
            assert str(failure).startswith(f"{ROUTE}: ")
            said = f"a route that is not ours is in its {where}: {theirs}; remove it"
            assert said in failure.text
    assert theirs.removeprefix("route ") in host6.run("ip", "-6", "route")


async def test_a_direct_route_gives_way_to_one_over_the_device_and_back(host: Host) -> None:
    # The kernel refuses to put the second in the place of the first: its gateway, which is in the
    # subnet itself, is behind eth0 as long as the first is there.
    host.run("ip", "addr", "add", "fd77::1/64", "dev", "eth0", "nodad")
    peers = {PEER.subnet: PEER}
    plans = {direct: backend(direct=direct).plan(SUBNET, peers) for direct in (True, False)}
    async with Reconciler(backend(direct=True).scope, namespace=host.path) as here:
        for direct, way in ((True, "via fd77::2 dev eth0"), (False, "via fd00:5:0:2:: dev np6.1")):
            report = await here.apply(plans[direct].objects)
            assert report.failed == ()
            assert way in host.run("ip", "-6", "route", "show", "proto", "181")
        report = await here.apply(plans[True].objects)
        assert report.failed == ()
        assert "dev np6.1" not in host.run("ip", "-6", "route", "show", "proto", "181")
        await here.clear()
