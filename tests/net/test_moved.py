"""The interface to the other hosts gets another address or MTU, or is made anew."""

from __future__ import annotations

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import AgentProcess, Overlay, until
from tests.net.rig import UNDERLAY
from tests.net.witnesses import kernel_of

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
PATIENCE_S = 10.0
"""A connection to the registry that has lost its address would by itself be given up after 15 s."""


def is_at(overlay: Overlay, agent: AgentProcess, mac: str, address: str) -> bool:
    """Tell whether the agent's device and lease, and its peer's kernel, say this address."""
    [other] = [one for one in overlay.agents if one is not agent]
    links = agent.host.namespace.json("ip", "-j", "-d", "link")
    local = [
        link["linkinfo"]["info_data"].get("local") for link in links if link["ifname"] == "np.1"
    ]
    return (
        local == [address]
        and (agent.subnet, mac, address) in overlay.peers()
        and (mac, address) in kernel_of(other.host)["fdb"]
    )


def mtu_of(agent: AgentProcess) -> int:
    [link] = [
        link for link in agent.host.namespace.json("ip", "-j", "link") if link["ifname"] == "np.1"
    ]
    found: int = link["mtu"]
    return found


def test_another_address_and_mtu_are_followed_and_the_subnet_stays() -> None:
    with Overlay(2, flags=("--heal-interval", "1h")) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent = overlay.agents[1]
        host, subnet, mac = agent.host, agent.subnet, kernel_of(agent.host)["mac"]

        host.namespace.ip(
            f"addr del {host.address}/16 dev eth0",
            f"addr add {UNDERLAY}.9.9/16 dev eth0",
            f"route add default via {UNDERLAY}.255.254",
        )
        until(
            lambda: is_at(overlay, agent, mac, f"{UNDERLAY}.9.9"), PATIENCE_S, "the address is told"
        )
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent.wait_ready()

        for mtu in (1400, 1500):  # smaller and larger
            host.namespace.ip(f"link set eth0 mtu {mtu}")
            until(lambda mtu=mtu: agent.mtu == mtu_of(agent) == mtu - 50, 20, "the MTU is taken")
        agent.wait_ready()

        # The card is replaced: nothing of ours is left, and the address is another.
        host.unplug()
        until(lambda: "there is no interface eth0" in agent.missing(), 20, "that is said")
        host.plug(f"{UNDERLAY}.9.10")
        until(
            lambda: is_at(overlay, agent, mac, f"{UNDERLAY}.9.10"),
            PATIENCE_S,
            "the address is told",
        )
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent.wait_ready()
        assert (agent.subnet, kernel_of(host)["mac"]) == (subnet, mac)
        assert len(overlay.registered()) == 2
