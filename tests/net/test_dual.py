"""Networks of both families, and of IPv6 alone: real agents, kernels and packets."""

from __future__ import annotations

import pytest

from tests.net.overlay import DUAL, ONLY_IPV6, Overlay, until
from tests.net.packets import ping

pytestmark = pytest.mark.net


@pytest.mark.parametrize("network", [DUAL, ONLY_IPV6], ids=["dual", "only-ipv6"])
def test_containers_of_all_hosts_reach_each_other(network: str) -> None:
    with Overlay(3, network=network) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 10, "all answer")
        one, other, _ = overlay.rig.containers
        second = other.address6 or other.address
        # What fits the device of IPv6 is 20 bytes less than what Flannel says: 40 of IPv6 and 8 of
        # ICMPv6 are in it.
        assert overlay.agents[0].mtu == 1430
        assert ping(one, second, size=1430 - 48) is not None
