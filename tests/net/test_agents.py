"""Real agents on simulated hosts: what packets and kernels say when something happens to them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import NETWORK, AgentProcess, Overlay, until
from tests.net.packets import Flow, mesh, ping_all
from tests.net.rig import Host

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
LINK = "np.1"


@pytest.fixture
def overlay() -> Iterator[Overlay]:
    """Three hosts, one member, an agent on each, a container behind each; all reach each other."""
    with Overlay(3, flags=("--heal-interval", "1h")) as made:
        made.add_containers(1)
        until(lambda: everybody_answers(made), 5, "every container answers every other")
        yield made


def everybody_answers(overlay: Overlay) -> bool:
    return None not in ping_all(mesh(overlay.rig.containers), timeout_s=0.2)


def kernel_of(host: Host) -> dict[str, Any]:
    """Everything of ours in a host's kernel, as `ip` and `bridge` see it."""
    links = [found for found in host.namespace.json("ip", "-j", "link") if found["ifname"] == LINK]
    if not links:
        return {}
    return {
        "index": links[0]["ifindex"],
        "mac": links[0]["address"],
        "routes": sorted(
            (found["dst"], found["gateway"], found["dev"])
            for found in host.namespace.json("ip", "-j", "route", "show", "proto", "181")
        ),
        "neighbours": sorted(
            (found["dst"], found["lladdr"])
            for found in host.namespace.json("ip", "-j", "neigh", "show", "dev", LINK)
            if "PERMANENT" in found["state"]
        ),
        "fdb": sorted(
            (found["mac"], found["dst"])
            for found in host.namespace.json("bridge", "-j", "fdb", "show", "dev", LINK)
            if found.get("state") == "permanent"
        ),
    }


def ctl(agent: AgentProcess, *arguments: str) -> str:
    return agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", *arguments),
        *("--run-dir", str(agent.folder)),
    )


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_an_agent_that_ends_and_comes_back_costs_no_packet_and_touches_nothing(
    overlay: Overlay, how: str
) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    before = kernel_of(agent.host)
    assert len(before["routes"]) == len(before["neighbours"]) == len(before["fdb"]) == 2
    with subprocess.Popen(
        agent.host.namespace.command("ip", "monitor", "link", "route", "neigh", "address"),
        stdout=subprocess.PIPE, text=True,
    ) as monitor:  # fmt: skip
        flows = Flow(here, there), Flow(there, here)
        until(lambda: flows[0].received > 1500, 10, "packets arrive")
        if how == "SIGKILL":
            agent.kill()
        else:
            assert agent.terminate() == 0
        mark = flows[0].sent
        until(lambda: flows[0].sent > mark + 1500, 10, "packets are sent without an agent")
        agent.start()
        agent.wait_ready()
        until(lambda: flows[0].sent > 5000, 20, "packets are sent")
        losses = [flow.stop() for flow in flows]
        monitor.terminate()
        assert monitor.stdout is not None
        told = monitor.stdout.read().splitlines()
    assert [loss.missing for loss in losses] == [(), ()]
    assert not [line for line in told if line.startswith("Deleted") and LINK in line]
    assert kernel_of(agent.host) == before


def test_a_wiped_registry_takes_nothing_away(overlay: Overlay) -> None:
    # What it yields is complete, valid and empty: the most dangerous view there is.
    here, there, _ = overlay.rig.containers
    before = [kernel_of(agent.host) for agent in overlay.agents]
    subnets = [agent.subnet for agent in overlay.agents]
    flows = Flow(here, there), Flow(there, here)
    overlay.members.kill(0)
    shutil.rmtree(overlay.members.folder / "e1")
    overlay.members.spawn(0)
    overlay.members.wait(0)
    overlay.ctl("init", NETWORK)
    # The agents come back to it and put their own leases back.
    until(
        lambda: len(json.loads(overlay.ctl("leases", "-w", "json"))["leases"]) == 3,
        30, "all leases are back",
    )  # fmt: skip
    mark = flows[0].sent
    until(lambda: flows[0].sent > mark + 500, 10, "packets are sent")
    assert [flow.stop().missing for flow in flows] == [(), ()]
    assert [kernel_of(agent.host) for agent in overlay.agents] == before
    assert [agent.subnet for agent in overlay.agents] == subnets
    for agent in overlay.agents:
        agent.wait_ready()


def test_after_a_reboot_without_a_registry_the_remembered_network_comes_back(
    overlay: Overlay,
) -> None:
    agent = overlay.agents[0]
    before = kernel_of(agent.host)
    overlay.members.kill(0)
    agent.kill()
    # What a reboot does to the kernel.
    agent.host.namespace.ip(f"link del {LINK}")
    assert kernel_of(agent.host) == {}
    agent.start()
    until(lambda: everybody_answers(overlay), 15, "the remembered network works")
    after = kernel_of(agent.host)
    assert after.pop("index") != before.pop("index")
    assert after == before
    overlay.members.restart(0)
    agent.wait_ready()
    assert kernel_of(agent.host)["routes"] == before["routes"]


def test_a_drained_host_goes_from_the_others_and_leaves_nothing(overlay: Overlay) -> None:
    agent, *rest = overlay.agents
    subnet = agent.subnet
    ctl(agent, "drain")
    until(lambda: not agent.is_running, 10, "the agent ends")
    assert kernel_of(agent.host) == {}
    assert agent.host.namespace.sysctl("ipv4.ip_forward") == "0"
    assert not (agent.folder / "subnet.env").exists()

    def others() -> set[IPv4Network]:
        return {
            IPv4Network(route[0]) for other in rest for route in kernel_of(other.host)["routes"]
        }

    until(lambda: subnet not in others(), 10, "the others remove it")
    assert len(others()) == 2
    leases = json.loads(overlay.ctl("leases", "-w", "json"))["leases"]
    assert str(subnet) not in {lease["subnet"] for lease in leases}


def test_cleanup_after_a_killed_agent_leaves_a_kernel_as_it_was(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    agent.kill()
    said = agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )
    assert "1 settings set back" in said
    assert kernel_of(agent.host) == {}
    assert agent.host.namespace.sysctl("ipv4.ip_forward") == "0"
    # ... and the next agent has the same subnet and MAC.
    before = agent.subnet
    agent.start()
    agent.wait_ready()
    assert agent.subnet == before
    until(lambda: everybody_answers(overlay), 5, "every container answers every other")
