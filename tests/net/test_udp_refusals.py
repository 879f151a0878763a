"""What does not fit, and what kernel and network refuse at the sockets of the process of udp."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import Iterator

import pytest

from netplane.udp.control import MESSAGE_BYTES_MAX, encode, make_socket
from tests.net.namespaces import missing
from tests.net.overlay import until
from tests.net.packets import Flow, ping, throughput
from tests.net.rig import UNDERLAY, Container, Host, settle
from tests.net.udp import PORT, UdpHost, UdpOverlay

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
RATE = 1200
HEADERS_BYTES = 28
"""Of IPv4 and UDP, or ICMP."""
WAY_MTU = 1400
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
FRAGMENTATION_NEEDED = (3, 4)
SO_SNDBUFFORCE = 32


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def overlay(request: pytest.FixtureRequest) -> Iterator[UdpOverlay]:
    with UdpOverlay(2, sealed=request.param) as made:
        yield made


def dropped(host: UdpHost) -> dict[str, int]:
    found: dict[str, int] = host.ask("counters")["dropped"]
    # The kernel's own announcements over IPv6.
    return {reason: count for reason, count in found.items() if reason != "not-ipv4"}


def counter(host: Host, name: str) -> int:
    """Return one of the kernel's counters of a host."""
    for line in host.namespace.run("nstat", "-asz", name).splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(f"no counter {name}")


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_who_sends_what_does_not_fit_is_told_the_mtu_or_it_goes_in_pieces(*, sealed: bool) -> None:
    # Containers that were made for a larger MTU.
    with UdpOverlay(2, containers=0, sealed=sealed) as overlay:
        here, there = (one.host.add_container(one.subnet, mtu=1500) for one in overlay.hosts)
        mtu = overlay.hosts[0].config.mtu
        with (
            here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            here.namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ear,
        ):
            ear.settimeout(5)
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            sender.connect((there.address, 5000))
            sender.send(bytes(mtu + 1 - HEADERS_BYTES))
            told = ear.recv(65536)[20:]
            assert tuple(told[:2]) == FRAGMENTATION_NEEDED
            assert struct.unpack_from("!H", told, 6) == (mtu,)
            assert told[8 + 16 :][:4] == socket.inet_aton(there.address)
            assert sender.getsockopt(socket.IPPROTO_IP, IP_MTU) == mtu
            with pytest.raises(OSError, match="too long"):
                sender.send(bytes(mtu + 1 - HEADERS_BYTES))
        assert ping(here, there.address, size=4000) is not None
        assert throughput(here, there, seconds=1) > 0.05
        assert [dropped(host) for host in overlay.hosts] == [{}, {}]


def test_a_way_of_a_smaller_mtu_costs_what_finds_it_and_no_more(overlay: UdpOverlay) -> None:
    # Between the hosts is a router, and behind that a link that takes less.
    first, second = overlay.hosts
    here, there = overlay.rig.containers
    hub = overlay.rig.underlay
    for name in "all", "hub":
        hub.sysctl(f"ipv4.conf.{name}.send_redirects", "0")
    hub.sysctl("ipv4.ip_forward", "1")
    hub.ip(f"route add {second.host.address}/32 dev hub mtu lock {WAY_MTU}")
    first.host.namespace.ip(f"route add {second.host.address}/32 via {UNDERLAY}.255.254")
    whole = first.config.mtu - HEADERS_BYTES
    assert ping(here, there.address, size=whole) is None
    assert counter(first.host, "IcmpInDestUnreachs") == 1
    for size in whole, 4000, 60_000:  # one, and several that leave in one call
        assert ping(here, there.address, size=size) is not None, size
    assert counter(first.host, "IpFragCreates") > 0
    assert throughput(here, there, seconds=1) > 0.01
    assert [dropped(host) for host in overlay.hosts] == [{}, {}]


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_a_host_whose_process_is_down_holds_up_nobody(*, sealed: bool) -> None:
    with UdpOverlay(3, sealed=sealed) as overlay:
        first, _, third = overlay.hosts
        here, there, elsewhere = overlay.rig.containers
        pid = first.pid
        third.stop()
        with (
            Flow(here, there, RATE) as out,
            Flow(there, here, RATE) as back,
            Flow(here, elsewhere, RATE, port=7001) as lost,
        ):
            until(lambda: min(out.sent, back.sent, lost.sent) > 2000, 20, "packets are sent")
            losses = out.stop(), back.stop()
            assert lost.received == 0
        # It was told: the kernel of the other host refuses a port that nobody has.
        assert counter(first.host, "IcmpInDestUnreachs") > 0
        assert [loss.missing for loss in losses] == [(), ()]
        assert dropped(first) == {}
        third.start()
        for host in overlay.hosts:
            host.tell_peers(overlay.hosts)
        assert ping(here, elsewhere.address) is not None
        assert first.pid == pid


def burst(here: Container, there: Container, count: int) -> None:
    """Send packets as fast as they go."""
    with here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
        for _ in range(count):
            sender.sendto(bytes(1200), (there.address, 9))


def test_an_underlay_that_takes_no_more_costs_the_packets_that_are_counted(
    overlay: UdpOverlay,
) -> None:
    first, _ = overlay.hosts
    here, there = overlay.rig.containers
    pid = first.pid
    tc = ("tc", "qdisc", "add", "dev", "eth0", "root", "tbf")
    # Nothing that is queued leaves in the time of this test, and the queue has no end.
    first.host.namespace.run(*tc, "rate", "8kbit", "burst", "2kb", "limit", "1gb")
    sent = 0

    def is_full() -> bool:
        nonlocal sent
        burst(here, there, 100)
        sent += 100
        return dropped(first).get("queue-full", 0) > 100

    until(is_full, 20, "the socket takes no more")
    # Some MiB wait, and not all that was ever sent.
    counts = first.ask("counters")
    assert 1 << 20 < counts["sent_bytes"] < 16 << 20
    assert counts["sent"] + dropped(first)["queue-full"] <= sent
    first.host.namespace.run("tc", "qdisc", "del", "dev", "eth0", "root")
    assert ping(here, there.address) is not None
    assert first.pid == pid


def test_what_the_kernel_refuses_is_counted_and_goes_on_when_it_is_allowed(
    overlay: UdpOverlay,
) -> None:
    first, _ = overlay.hosts
    here, there = overlay.rig.containers
    namespace, pid = first.host.namespace, first.pid
    namespace.run(
        "nft",
        "add table inet refuse; add chain inet refuse out { type filter hook output priority 0; };"
        f" add rule inet refuse out udp dport {PORT} drop",
    )
    assert ping(here, there.address, timeout_s=0.2) is None
    assert dropped(first) == {"send-eperm": 1}
    namespace.run("nft", "delete table inet refuse")
    namespace.ip("link set eth0 down")
    assert ping(here, there.address, timeout_s=0.2) is None
    assert dropped(first) == {"send-eperm": 1, "send-enetunreach": 1}
    namespace.ip("link set eth0 up")
    # The question for the neighbour would be lost before.
    settle(overlay.rig.underlay, first.host.port)
    assert ping(here, there.address) is not None
    assert dropped(first) == {"send-eperm": 1, "send-enetunreach": 1}
    assert first.pid == pid


def test_icmp_that_comes_for_the_host_does_not_wait_for_the_process(overlay: UdpOverlay) -> None:
    # It has a socket to send ICMP by, and reads nothing there.
    first, second = overlay.hosts
    for _ in range(10):
        assert ping(second.host, first.host.address) is not None
    _, *lines = first.host.namespace.run("cat", "/proc/net/raw").splitlines()
    [queues] = [line.split()[4] for line in lines]
    assert queues == "00000000:00000000"


def limit_descriptors(pid: int) -> None:
    """Let a process open none beyond those that it has."""
    there = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    none = next(number for number in range(len(there) + 1) if number not in there)
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (none, hard))


def test_a_process_without_a_free_descriptor_moves_packets_and_is_there_for_its_agent(
    overlay: UdpOverlay,
) -> None:
    first, _ = overlay.hosts
    here, there = overlay.rig.containers
    pid = first.pid
    with make_socket() as idle, make_socket() as asking:
        for one in idle, asking:
            one.settimeout(10)
        idle.connect(first.path)
        idle.send(encode({"ask": "hello"}))
        assert idle.recv(MESSAGE_BYTES_MAX)
        limit_descriptors(pid)
        # The older connection makes place.
        asking.connect(first.path)
        asking.send(encode({"ask": "hello"}))
        assert idle.recv(1) == b""
        assert asking.recv(MESSAGE_BYTES_MAX)
        # A successor would need one more; it hears no, and all goes on.
        asking.send(encode({"ask": "hand-over"}))
        assert asking.recv(MESSAGE_BYTES_MAX) == b""
    assert ping(here, there.address) is not None
    assert first.pid == pid
