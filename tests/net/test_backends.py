"""A network gets another backend: after a restart nothing of the old one is left."""

from __future__ import annotations

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import ALLOC, HOST_GW, NETWORK, Overlay, until
from tests.net.rig import Host
from tests.net.test_inspection import inspect, wrong
from tests.net.witnesses import PROTOCOL

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def found(host: Host) -> tuple[set[str], set[str]]:
    """Return the devices of our routes, and all vxlan devices."""
    routes = host.namespace.json("ip", "-j", "route", "show", "proto", str(PROTOCOL))
    links = host.namespace.json("ip", "-j", "link", "show", "type", "vxlan")
    return {one["dev"] for one in routes}, {one["ifname"] for one in links if one}


def change(overlay: Overlay, network: str) -> None:
    """Give the network another configuration, and start its agents again."""
    before = [found(agent.host) for agent in overlay.agents]
    overlay.ctl("init", network, "--force")
    for agent in overlay.agents:
        until(lambda agent=agent: "config: " in agent.missing(), 20, "the change is noted")
    # While they run, nothing of it is applied.
    assert [found(agent.host) for agent in overlay.agents] == before
    for agent in overlay.agents:
        agent.kill()
        agent.start()
    for agent in overlay.agents:
        agent.wait_ready()


def test_from_vxlan_to_host_gw_to_alloc_and_back() -> None:
    with Overlay(2) as overlay:
        subnets = [agent.subnet for agent in overlay.agents]
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        for network, there, mtu in (
            (HOST_GW, ({"eth0"}, set()), 1500),
            (ALLOC, (set(), set()), 1500),
            (NETWORK, ({"np.1"}, {"np.1"}), 1450),
        ):
            change(overlay, network)
            for agent in overlay.agents:
                until(lambda agent=agent, there=there: found(agent.host) == there, 20, "it is made")
                assert agent.mtu == mtu
                assert agent.host.namespace.sysctl("ipv4.ip_forward") == "1"
            assert [agent.subnet for agent in overlay.agents] == subnets
            code, rows = inspect(overlay.agents[0], "check")
            assert (code, wrong(rows)) == (0, [])
            if network == ALLOC:
                look_at_alloc(overlay)
            else:
                until(overlay.everybody_answers, 20, "every container answers every other")


def look_at_alloc(overlay: Overlay) -> None:
    """Make the way that is up to others, such as a router, and have it shown."""
    one, two = overlay.agents
    here, there = overlay.rig.containers
    assert not overlay.everybody_answers()
    one.host.namespace.ip(f"route add {two.subnet} via {two.host.address}")
    two.host.namespace.ip(f"route add {one.subnet} via {one.host.address}")
    until(overlay.everybody_answers, 20, "every container answers every other")
    code, rows = inspect(one, "trace", here.address, there.address)
    assert (code, wrong(rows)) == (0, [])
    texts = {subject: text for subject, _, text in rows}
    assert texts["route"] == f"route {two.subnet} via {two.host.address} dev eth0"
    assert "which others see to with backend alloc" in texts["peer"]
    [peer] = [line.split() for line in one.ctl("status").splitlines() if "leased" in line]
    assert peer == [str(two.subnet), two.host.address, "alloc", "leased"]
    one.host.namespace.ip(f"route del {two.subnet}")
    two.host.namespace.ip(f"route del {one.subnet}")
