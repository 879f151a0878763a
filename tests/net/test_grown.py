"""A network that gets IPv6 and loses it: hosts keep their IPv4 subnets, containers work on."""

from __future__ import annotations

import pytest

from tests.net.overlay import DUAL, NETWORK, Overlay, until

pytestmark = pytest.mark.net

ONLY_IPV4 = NETWORK.replace('{"Network"', '{"EnableIPv6":false,"Network"')
"""On a rig whose hosts have IPv6 addresses, too."""


def test_a_network_gets_and_loses_ipv6_under_its_containers() -> None:
    # Flannel gives the IPv4 subnets away with the old keys, while containers have their addresses.
    with Overlay(2, network=ONLY_IPV4) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 10, "all answer over IPv4")
        before = [agent.subnets.first for agent in overlay.agents]

        overlay.reconfigure(DUAL)

        assert [agent.subnets.first for agent in overlay.agents] == before
        until(overlay.everybody_answers, 10, "all answer as before")
        for agent in overlay.agents:
            second = agent.subnets.second
            assert second is not None
            gateway = second.network_address + 1
            agent.host.namespace.ip(f"addr add {gateway}/64 dev br0 nodad")
        overlay.add_containers(1)
        until(overlay.everybody_answers, 10, "those that came since answer over both")

        overlay.reconfigure(ONLY_IPV4)

        assert [agent.subnets.all() for agent in overlay.agents] == [(one,) for one in before]
        keys = {key.rpartition("/")[2] for key in overlay.registered()}
        assert keys == {f"{one.network_address}-{one.prefixlen}" for one in before}
