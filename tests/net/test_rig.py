"""The rig itself, over an overlay made by hand: what it says must be true before an agent comes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.net.handmade import DEVICE, add_peer, make_overlay, subnet_of
from tests.net.namespaces import CommandError, Namespace, missing, run
from tests.net.packets import Flow, mesh, ping, ping_all, throughput
from tests.net.rig import Rig

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """Three hosts with two containers each, joined by hand."""
    with Rig(3) as made:
        make_overlay(made.hosts)
        for host in made.hosts:
            for _ in range(2):
                host.add_container(subnet_of(host), mtu=1450)
        yield made


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)  # nothing to await: the kernel's own timers


def test_every_container_reaches_every_other_and_pairs_are_all_there(rig: Rig) -> None:
    pairs = mesh(rig.containers)
    assert len(pairs) == 30
    assert None not in ping_all(pairs)


def test_a_packet_of_the_mtu_passes_and_one_byte_more_does_not_without_fragments(rig: Rig) -> None:
    one, other = rig.hosts[0].containers[0], rig.hosts[1].containers[0]
    assert ping(one, other.address, size=1450 - 28) is not None
    with one.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never fragment
        with pytest.raises(OSError, match="Message too long"):
            sender.sendto(bytes(1450 - 27), (other.address, 9))


def test_the_packets_cross_the_underlay_and_not_some_other_way(rig: Rig) -> None:
    # The mutation to find: containers that reach each other without the overlay.
    one, other = rig.hosts[0].containers[0], rig.hosts[1].containers[0]
    host = rig.hosts[1]
    [route] = [
        found for found in rig.hosts[0].namespace.json("ip", "-j", "route")
        if found["dst"] == str(subnet_of(host))
    ]  # fmt: skip
    assert route["dev"] == DEVICE
    rig.hosts[0].namespace.ip(f"route del {subnet_of(host)} dev {DEVICE}")
    try:
        assert ping(one, other.address, timeout_s=0.2) is None
    finally:
        add_peer(rig.hosts[0], host)
    assert ping(one, other.address) is not None


def test_a_flow_loses_nothing_and_counts_what_is_lost(rig: Rig) -> None:
    one, other = rig.hosts[0].containers[0], rig.hosts[2].containers[1]
    there, back = Flow(one, other), Flow(other, one)
    until(lambda: there.received > 300 and back.received > 300)
    before = there.sent
    rig.hosts[2].cut()
    until(lambda: there.sent > before + 200)
    rig.hosts[2].heal()
    mark = there.received
    until(lambda: there.received > mark + 200, 10)
    lost, lost_back = there.stop(), back.stop()

    assert lost.sent > 700
    assert 100 < len(lost.missing) < lost.sent - 500
    assert lost.missing[0] >= before - 20
    # One hole and no more.
    assert lost.missing[-1] - lost.missing[0] < len(lost.missing) + 50
    assert lost.longest_gap_ms > 100
    assert lost_back.missing

    there = Flow(one, other)
    until(lambda: there.received > 500)
    assert there.stop().missing == ()


class Late:
    """A socket whose sender is about to send for as long as the flow is not told to stop."""

    def __init__(self, flow: Flow, inner: socket.socket) -> None:
        self._flow, self._inner = flow, inner
        self.close = inner.close
        self.is_about_to = threading.Event()

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        if self._flow.sent > 20:
            self.is_about_to.set()
            self._flow._stopping.wait()
            time.sleep(0.5)  # the processor is somebody else's; a receiver looks each 0.1 s
        self._inner.sendto(data, address)


def test_a_packet_that_was_about_to_be_sent_at_the_end_is_not_called_lost(rig: Rig) -> None:
    one, other = rig.hosts[0].containers[0], rig.hosts[1].containers[0]
    flow = Flow(one, other)
    late = Late(flow, flow._sender)
    flow._sender = late  # type: ignore[assignment]
    assert late.is_about_to.wait(5)
    until(lambda: flow.received == flow.sent)
    loss = flow.stop()
    assert loss.sent > 21  # the late one among them
    assert loss.missing == ()


def test_a_host_that_is_cut_is_silent_and_alone(rig: Rig) -> None:
    rig.hosts[1].cut()
    try:
        reached = ping_all(mesh(rig.containers), timeout_s=0.3)
    finally:
        rig.hosts[1].heal()
    beyond = {id(container) for container in rig.hosts[1].containers}
    for (source, target), milliseconds in zip(mesh(rig.containers), reached, strict=True):
        [end] = [each for each in rig.containers if each.address == target]
        crosses = (id(source) in beyond) != (id(end) in beyond)
        assert (milliseconds is None) == crosses, (source.address, target)
    until(lambda: None not in ping_all(mesh(rig.containers)))


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="no iperf3 (Debian package iperf3)")
def test_throughput_is_measured(rig: Rig) -> None:
    one, other = rig.hosts[0].containers[0], rig.hosts[1].containers[0]
    assert throughput(one, other, seconds=1) > 0.05


def test_sysctls_are_the_namespaces_own() -> None:
    ours = run("cat", "/proc/sys/net/ipv4/ip_forward").strip()
    with Namespace("one") as one, Namespace("two") as two:
        one.sysctl("ipv4.ip_forward", "1")
        two.sysctl("ipv4.ip_forward", "0")
        assert one.sysctl("ipv4.ip_forward") == "1"
        assert two.sysctl("ipv4.ip_forward") == "0"
    assert run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == ours


def test_a_failing_command_says_what_it_said() -> None:
    with Namespace("one") as one, pytest.raises(CommandError, match="Cannot find device"):
        one.ip("link set nowhere up")


def test_nothing_is_left_in_our_namespace_also_after_sigkill() -> None:
    # Tests are killed too. What holds a namespace must see it, though nobody told it.
    before = run("ip", "-j", "link"), run("ip", "-j", "route"), run("ip", "-j", "netns")
    script = (
        "import sys\nfrom tests.net.rig import Rig\n"
        "with Rig(2) as rig:\n"
        "    print(rig.underlay.pid, *(host.namespace.pid for host in rig.hosts), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        holders = [int(pid) for pid in child.stdout.readline().split()]
        assert len(holders) == 3
        assert len({os.readlink(f"/proc/{pid}/ns/net") for pid in holders}) == 3
        child.kill()
    until(lambda: not any(_lives(pid) for pid in holders))
    assert (run("ip", "-j", "link"), run("ip", "-j", "route"), run("ip", "-j", "netns")) == before


def _lives(pid: int) -> bool:
    # A holder whose parent was killed waits as a zombie until whoever adopts it looks.
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
