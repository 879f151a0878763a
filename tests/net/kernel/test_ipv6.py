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
