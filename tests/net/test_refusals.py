"""Hosts that must not take part, or only in part: who is refused, what it is told, who goes on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.net.namespaces import CommandError, missing
from tests.net.overlay import PREFIX, AgentProcess, Overlay, until
from tests.net.witnesses import Ear, kernel_of

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
OUTSIDE = "10.78.0.9"
FOREIGN = "type vxlan id 1 dev eth0 dstport 8472"


@pytest.fixture
def pair() -> Iterator[Overlay]:
    """Two hosts with agents, and one whose agent is the test's business."""
    with Overlay(3, agents=2, flags=("--heal-interval", "1h")) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def test_a_cloned_machine_id_is_refused_and_nobody_is_disturbed(pair: Overlay) -> None:
    first = pair.agents[0]
    before, registered = kernel_of(first.host), pair.registered("")
    clone = pair.add_agent(pair.rig.hosts[2], "--host-id", first.host.name)
    with Ear(first.host) as ear:
        clone.start()
        until(lambda: "cloned machine-id" in said_by(clone), 20, "it is told")
        assert first.host.address in clone.missing()
        assert kernel_of(clone.host) == {}
        assert not clone.subnet_file.exists()
        clone.terminate()
    assert ear.told == []
    assert kernel_of(first.host) == before
    assert pair.registered("") == registered
    first.wait_ready()


def test_an_address_of_a_host_that_runs_is_refused_and_of_a_dead_one_taken_over(
    pair: Overlay,
) -> None:
    first, second = pair.agents
    before = kernel_of(first.host)
    other = pair.add_agent(pair.rig.hosts[2], "--public-ip", first.host.address)
    other.start()
    until(lambda: f"is used by the host {first.host.name!r}" in said_by(other), 20, "it is told")
    assert kernel_of(other.host) == {}
    assert kernel_of(first.host) == before
    assert pair.everybody_answers()

    # A machine that was installed anew: the old one's sign of life ends, here at once.
    subnet = first.subnet
    first.kill()
    pair.kvctl("del", PREFIX + f"netplane/alive/{first.host.name}")
    other.wait_ready()
    assert other.subnet == subnet
    mac = kernel_of(other.host)["mac"]
    assert mac != before["mac"]
    until(lambda: (mac, first.host.address) in kernel_of(second.host)["fdb"], 10, "others know")
    assert before["mac"] not in {found for found, _ in kernel_of(second.host)["fdb"]}


def test_a_foreign_device_in_our_place_is_named_and_waited_for(pair: Overlay) -> None:
    agent = pair.add_agent(pair.rig.hosts[2])
    host = agent.host.namespace
    host.ip(f"link add vx0 {FOREIGN}")
    before = host.json("ip", "-j", "-d", "link", "show", "vx0")
    agent.start()
    until(lambda: "device vx0 has VNI 1 and port 8472" in said_by(agent), 20, "it is named")
    assert kernel_of(agent.host) == {}
    assert host.json("ip", "-j", "-d", "link", "show", "vx0") == before
    # Nothing else is needed than what the text says.
    assert "ip link del vx0" in agent.missing()
    host.ip("link del vx0")
    agent.wait_ready()
    pair.add_container(agent)
    until(pair.everybody_answers, 10, "every container answers every other")


def test_an_agent_without_root_says_so_and_touches_nothing(pair: Overlay) -> None:
    agent = pair.add_agent(pair.rig.hosts[2])
    nobody = ("unshare", "--user", "--")
    with pytest.raises(CommandError, match="it needs root"):
        agent.host.namespace.run(
            *nobody, sys.executable, "-m", "netplane.cli.netplane", "agent",
            *("--etcd-endpoints", ",".join(pair.members.endpoints)),
            *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
        )  # fmt: skip
    assert kernel_of(agent.host) == {}
    assert list(agent.folder.iterdir()) == []
    assert len(pair.registered()) == 2


def test_root_that_may_not_change_the_network_is_told_what_the_kernel_refuses(
    pair: Overlay,
) -> None:
    # Root of a container: the lease can be had, but no device can be made.
    agent = pair.add_agent(pair.rig.hosts[2])
    agent.wrapper = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
    agent.start()
    until(lambda: "CAP_NET_ADMIN" in said_by(agent), 20, "it is told")
    assert agent.missing().startswith("kernel: link np.1 ")
    assert kernel_of(agent.host) == {}
    assert agent.is_running


@pytest.mark.skipif(shutil.which("nft") is None, reason="no nft (Debian package nftables)")
def test_a_host_behind_nat_is_reached_by_an_address_that_it_does_not_have() -> None:
    with Overlay(3, agents=2) as overlay:
        inside = overlay.rig.hosts[2]
        overlay.rig.underlay.sysctl("ipv4.ip_forward", "1")
        overlay.rig.underlay.run(
            "nft", "-f", "-",
            text="add table ip nat\n"
            "add chain ip nat pre { type nat hook prerouting priority -100; }\n"
            f"add rule ip nat pre ip daddr {OUTSIDE} dnat to {inside.address}\n",
        )  # fmt: skip
        agent = overlay.add_agent(inside, "--public-ip", OUTSIDE)
        agent.start()
        agent.wait_ready()
        overlay.add_containers(1)
        until(overlay.everybody_answers, 10, "every container answers every other")
        mac = kernel_of(inside)["mac"]
        for other in overlay.agents[:2]:
            assert (mac, OUTSIDE) in kernel_of(other.host)["fdb"]
        # What it sends comes from its own address: from the other one nothing would come back.
        [link] = inside.namespace.json("ip", "-j", "-d", "link", "show", "np.1")
        assert link["linkinfo"]["info_data"]["local"] == inside.address
        assert OUTSIDE not in str(inside.namespace.json("ip", "-j", "addr"))
        key = PREFIX + f"subnets/{agent.subnet.network_address}-24"
        assert overlay.registered()[key].startswith(f'{{"PublicIP":"{OUTSIDE}"'.encode())


def said_by(agent: AgentProcess) -> str:
    """Return what an agent says is missing; nothing while it does not listen yet.

    Raises AssertionError when nothing is, or when it has ended.
    """
    if not agent.is_running:
        raise AssertionError(f"the agent of {agent.host.name} ended:\n{agent.log()}")
    try:
        said = agent.missing()
    except OSError:
        return ""
    assert not said.startswith("ok"), f"the agent of {agent.host.name} takes part"
    return said
