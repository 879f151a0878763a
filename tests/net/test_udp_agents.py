"""Agents with the backend udp: the process is theirs to start and to feed, and not to end."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network

import pytest

from kvstore import __version__
from netplane.udp.control import Config, make_socket
from tests.net.namespaces import missing
from tests.net.overlay import NETWORK, PREFIX, AgentProcess, Overlay, lost_without, until
from tests.net.packets import Flow, ping, ping_all
from tests.net.udp import DEVICE, MTU, ask_process, start_process

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
UDP = NETWORK.replace("vxlan", "udp").replace('"Backend"', '"SubnetMax":"10.5.199.0","Backend"')
"""What is above is leased to nobody, and free for what tests make up."""
RATE = 1200


@pytest.fixture
def overlay() -> Iterator[Overlay]:
    """The timer is at an hour: what heals does so because something was heard."""
    with Overlay(3, flags=("--heal-interval", "1h"), network=UDP) as made:
        made.add_containers(1)
        until(made.everybody_answers, 20, "every container answers every other")
        yield made


def process_of(agent: AgentProcess) -> int:
    found: int = ask_process(agent.process_socket, "hello")["pid"]
    return found


def kernel_of(agent: AgentProcess) -> tuple[object, ...]:
    """Return the device, its address and its routes, as `ip` sees them; empty without it."""
    namespace = agent.host.namespace
    links = [one for one in namespace.json("ip", "-j", "addr") if one["ifname"] == DEVICE]
    if not links:
        return ()
    addresses = [
        (one["local"], one["prefixlen"])
        for one in links[0]["addr_info"]
        if one["family"] == "inet"
    ]  # fmt: skip
    routes = {
        (one["dst"], one["dev"])
        for one in namespace.json("ip", "-j", "route", "show", "proto", "181")
    }
    return links[0]["mtu"], addresses, routes


def wanted_kernel(agent: AgentProcess) -> tuple[object, ...]:
    return MTU, [(str(agent.subnet.network_address), 32)], {("10.5.0.0/16", DEVICE)}


def test_all_reach_all_and_leases_are_as_flannels(overlay: Overlay) -> None:
    assert [agent.mtu for agent in overlay.agents] == [MTU] * 3
    assert [kernel_of(agent) for agent in overlay.agents] == list(
        map(wanted_kernel, overlay.agents)
    )
    here, there, _ = overlay.rig.containers
    assert ping(here, there.address, size=MTU - 28) is not None
    # Flannel writes no BackendType for udp.
    assert [json.loads(value) for value in overlay.registered().values()] == [
        {"PublicIP": address, "PublicIPv6": None}
        for _, address in sorted(
            (str(agent.subnet), agent.host.address) for agent in overlay.agents
        )
    ]


@pytest.mark.alone  # a busy machine sends fewer
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_an_agent_that_ends_and_comes_back_costs_no_packet(overlay: Overlay, how: str) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    pid = process_of(agent)

    def end() -> None:
        if how == "SIGKILL":
            agent.kill()
        else:
            assert agent.terminate() == 0

    losses = lost_without(agent, here, there, RATE, end)
    assert [loss.missing for loss in losses] == [(), ()]
    assert min(loss.per_second for loss in losses) >= 1000
    assert process_of(agent) == pid


def test_a_killed_process_is_started_again_fed_and_counted(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    pid = process_of(agent)
    os.kill(pid, signal.SIGKILL)
    until(lambda: agent.status()["kernel"]["healed"] == {"process": 1}, 20, "it is counted")
    until(overlay.everybody_answers, 10, "every container answers every other")
    assert process_of(agent) != pid
    assert agent.status()["process"]["peers"] == 2
    assert kernel_of(agent) == wanted_kernel(agent)


def test_what_others_take_away_is_put_back(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    for harm in (
        f"link del {DEVICE}",
        f"link set {DEVICE} down",
        f"addr flush dev {DEVICE}",
        f"route flush dev {DEVICE}",
    ):
        agent.host.namespace.ip(harm)
        until(lambda: kernel_of(agent) == wanted_kernel(agent), 10, f"all is there after {harm}")
        until(overlay.everybody_answers, 10, f"every container answers after {harm}")


def test_a_device_that_is_up_again_late_gets_its_route(overlay: Overlay) -> None:
    # The process takes it up; an agent that is quicker finds it down, and no route can be written.
    agent = overlay.agents[0]
    process = process_of(agent)
    os.kill(process, signal.SIGSTOP)
    try:
        agent.host.namespace.ip(f"link set {DEVICE} down")
        until(lambda: "ENETDOWN" in agent.log(), 10, "the agent is refused")
    finally:
        os.kill(process, signal.SIGCONT)
    until(lambda: kernel_of(agent) == wanted_kernel(agent), 10, "all is there again")
    until(overlay.everybody_answers, 10, "every container answers every other")


def test_a_renamed_device_gets_its_name_back_and_until_then_the_agent_is_not_ready(
    overlay: Overlay,
) -> None:
    # All peers are behind the one route over it.
    agent = overlay.agents[0]
    process = process_of(agent)
    os.kill(process, signal.SIGSTOP)
    try:
        agent.host.namespace.ip(f"link set {DEVICE} down", f"link set {DEVICE} name foo")
        text = f"dev {DEVICE}: there is no link {DEVICE}"
        until(
            lambda: agent.missing().startswith("kernel: ") and text in agent.missing(),
            10, "it is not ready",
        )  # fmt: skip
    finally:
        os.kill(process, signal.SIGCONT)
    until(lambda: kernel_of(agent) == wanted_kernel(agent), 10, "all is there again")
    until(overlay.everybody_answers, 10, "every container answers every other")
    agent.wait_ready()
    assert process_of(agent) == process


def test_a_peer_that_goes_is_forgotten_by_the_processes(overlay: Overlay) -> None:
    agent, other, leaving = overlay.agents
    leaving.ctl("drain")
    until(lambda: not leaving.is_running, 10, "the agent ends")
    assert kernel_of(leaving) == ()
    assert not leaving.process_socket.exists()
    until(
        lambda: [one.status()["process"]["peers"] for one in (agent, other)] == [1, 1],
        10, "the others forget it",
    )  # fmt: skip
    here, there, _ = overlay.rig.containers
    assert None not in ping_all([(here, there.address), (there, here.address)])


def test_cleanup_ends_the_process_of_a_killed_agent(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    pid = process_of(agent)
    agent.kill()
    clean_up(agent)
    assert kernel_of(agent) == ()
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "it ends")
    # ... and where none runs any more, the device that it has left goes all the same.
    agent.start()
    agent.wait_ready()
    os.kill(agent.pid, signal.SIGSTOP)
    os.kill(process_of(agent), signal.SIGKILL)
    agent.kill()
    assert kernel_of(agent) != ()
    clean_up(agent)
    assert kernel_of(agent) == ()


def test_while_the_registry_is_down_the_process_keeps_whom_it_knows(overlay: Overlay) -> None:
    # An agent that starts then has a memory that may be older than what the process was told.
    agent = overlay.agents[0]
    ask_process(
        agent.process_socket, "peers", peers=[["10.5.250.0/24", "10.77.0.99", 8285, ""]], add=True
    )
    others = [other.subnet for other in overlay.agents[1:]]
    until(lambda: agent.remembers(*others), 10, "what is to come back is on disk")
    overlay.members.kill(0)
    agent.kill()
    agent.start()
    until(lambda: agent.subnet_file.exists() and agent.socket.exists(), 10, "it starts")
    until(lambda: "keeps silent" in agent.log(), 20, "it goes by what it remembers")
    assert ask_process(agent.process_socket, "counters")["peers"] == 3
    assert overlay.everybody_answers()
    overlay.members.restart(0)
    agent.wait_ready()
    until(
        lambda: ask_process(agent.process_socket, "counters")["peers"] == 2,
        10, "what nobody has goes",
    )  # fmt: skip


def test_check_and_trace_know_the_way_over_the_process(overlay: Overlay) -> None:
    agent, other, _ = overlay.agents
    here, there, _ = overlay.rig.containers
    assert f"device {DEVICE} (tun), MTU {MTU}" in agent.ctl("check")
    said = agent.ctl("trace", here.address, there.address)
    assert f"route 10.5.0.0/16 dev {DEVICE}" in said
    assert f"UDP port 8285 reaches {other.host.address}" in said
    assert str(IPv4Network(other.subnet)) in said


def test_counters_are_on_the_metrics_page() -> None:
    flags = ("--heal-interval", "1h", "--healthz-ip", "127.0.0.1", "--healthz-port", "9000")
    with Overlay(2, flags=flags, network=UDP) as overlay:
        here, _ = overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        assert ping(here, "10.5.255.2", timeout_s=0.1) is None
        page = overlay.agents[0].host.namespace.run("curl", "-s", "http://127.0.0.1:9000/metrics")
    assert 'netplane_udp_packets_total{direction="sent"} ' in page
    assert 'netplane_udp_dropped_total{reason="no-route"} 1.0' in page


@pytest.mark.alone  # a busy machine sends fewer
def test_an_agent_follows_an_older_process_without_a_lost_packet(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    here, there, _ = overlay.rig.containers
    agent.kill()
    config = Config(DEVICE, MTU, agent.host.address, 8285, str(agent.subnet))
    start_process(agent.host, agent.process_socket, config, "--take-over", version="0.0.9")
    with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
        until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
        agent.start()
        agent.wait_ready()
        mark = out.sent
        until(lambda: out.sent > mark + 500, 20, "packets are sent with the next")
        losses = out.stop(), back.stop()
    assert [loss.missing for loss in losses] == [(), ()]
    assert ask_process(agent.process_socket, "hello")["version"] == __version__


@pytest.mark.slow  # each is asked twice, for 5 s
def test_a_process_that_hangs_is_killed_and_another_one_started(overlay: Overlay) -> None:
    agent = overlay.agents[0]
    pid = process_of(agent)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "the process that moves packets hangs" in agent.missing(), 20, "it is named")
    until(
        lambda: agent.status()["kernel"]["healed"] == {"hung-process": 1}, 30, "it is counted"
    )  # fmt: skip
    agent.wait_ready()
    until(overlay.everybody_answers, 10, "every container answers every other")
    assert process_of(agent) != pid
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "it has ended")
    assert f"process {pid} is killed" in agent.log()
    assert kernel_of(agent) == wanted_kernel(agent)
    # Without an agent: who cleans up does not wait for it either.
    pid = process_of(agent)
    agent.kill()
    os.kill(pid, signal.SIGSTOP)
    clean_up(agent)
    assert kernel_of(agent) == ()
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "it has ended")


@pytest.mark.slow  # each is asked twice, for 5 s
def test_a_hung_process_that_takes_no_connection_is_killed_by_who_meets_it_first(
    overlay: Overlay,
) -> None:
    agent, other, _ = overlay.agents
    pid, others = process_of(agent), process_of(other)
    agent.kill()
    os.kill(pid, signal.SIGSTOP)
    fill_queue(agent)
    agent.start()
    until(lambda: f"process {pid} is killed" in agent.log(), 40, "it is killed")
    agent.wait_ready()
    until(overlay.everybody_answers, 10, "every container answers every other")
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "it has ended")
    assert process_of(other) == others
    assert agent.status()["kernel"]["healed"] == {"hung-process": 1}
    pid = process_of(agent)
    agent.kill()
    os.kill(pid, signal.SIGSTOP)
    fill_queue(agent)
    clean_up(agent)
    assert kernel_of(agent) == ()
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "it has ended")
    assert process_of(other) == others


def fill_queue(agent: AgentProcess) -> None:
    """Leave as many connections for its process to take as the kernel keeps."""
    connected = 0
    while connected != errno.EAGAIN:
        with make_socket() as one:
            one.setblocking(False)
            connected = one.connect_ex(str(agent.process_socket))


def clean_up(agent: AgentProcess) -> None:
    """Run `netplane ctl cleanup` for an agent that has ended."""
    agent.host.namespace.run(
        *(sys.executable, "-m", "netplane.cli.netplane", "ctl", "cleanup"),
        *("--state-dir", str(agent.folder), "--run-dir", str(agent.folder)),
    )


def test_a_flanneld_that_runs_is_named_and_its_subnet_is_gone_on_with() -> None:
    with Overlay(2, agents=1, network=UDP) as overlay:
        host = overlay.rig.hosts[1]
        # Flannel's device and lease; who ends flanneld ends the device.
        host.namespace.ip(
            "tuntap add dev flannel0 mode tun", "addr add 10.5.250.0/32 dev flannel0",
            "link set flannel0 up", "route add 10.5.0.0/16 dev flannel0",
        )  # fmt: skip
        value = f'{{"PublicIP":"{host.address}","PublicIPv6":null}}'
        overlay.put_leased(f"{PREFIX}subnets/10.5.199.0-24", value)
        agent = overlay.add_agent(host, "--adopt-flannel")
        agent.start()
        until(agent.socket.exists, 20, "it starts")
        until(lambda: "kernel: flanneld runs here" in agent.missing(), 20, "it is named")
        assert "stop flanneld" in agent.missing()
        assert not agent.process_socket.exists()
        host.namespace.ip("link del flannel0")
        agent.wait_ready()
        assert str(agent.subnet) == "10.5.199.0/24"
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
