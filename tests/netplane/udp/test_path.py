"""Packets through a data path between real sockets; a pair of sockets stands for the device.

Both keep packets apart, as a device does; what only a kernel's device does is in tests/net.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netplane.udp.path import DataPath
from netplane.udp.peers import Peer, Peers
from tests.netplane.udp.ends import OWN, PathEnds, received_by
from tests.netplane.udp.packets import SOURCE, TARGET, header_sum, packet

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="the queues are larger than others may have"),
]


class Ends(PathEnds):
    """With a peer 10.5.2.0/24."""

    def __init__(self) -> None:
        super().__init__()
        self.path = DataPath(self.device.fileno(), self.udp, self.icmp_socket, OWN)
        self.path.set_peers(Peers([Peer.parse(["10.5.2.0/24", *self.peer.getsockname(), ""])]))


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def without_ttl(data: bytes) -> bytes:
    return data[:8] + data[9:10] + data[12:]


def test_packets_of_all_sizes_leave_each_in_a_datagram_and_in_order(ends: Ends) -> None:
    # Equal ones, shorter last ones and longer ones: whatever is sent together arrives apart.
    sizes = [1000] * 5 + [999, 1000, 1000, 1001, 1, 0, 0, 1400, 1400, 30]
    sent = [
        packet(SOURCE, TARGET, bytes([number]) * size, identity=number)
        for number, size in enumerate(sizes)
    ]
    for one in sent:
        ends.containers.send(one)
    ends.path.from_device()
    got = ends.sent()
    assert list(map(without_ttl, got)) == list(map(without_ttl, sent))
    assert {one[8] for one in got} == {63}
    assert {header_sum(one) for one in got} == {0xFFFF}
    assert ends.path.counters() == {
        "sent": len(sent), "sent_bytes": sum(map(len, sent)),
        "received": 0, "received_bytes": 0, "dropped": {},
    }  # fmt: skip


def test_many_equal_packets_leave_in_few_calls_and_arrive_as_they_were(ends: Ends) -> None:
    sent = [packet(SOURCE, TARGET, bytes(1380), identity=number) for number in range(60)]

    for one in sent:
        ends.containers.send(one)
    calls = 0
    real = ends.path._udp

    class Counting:
        def sendmsg(self, *arguments: object) -> int:
            nonlocal calls
            calls += 1
            return real.sendmsg(*arguments)  # type: ignore[arg-type]

        def sendto(self, *arguments: object) -> int:
            raise AssertionError("one by one")

    ends.path._udp = Counting()  # type: ignore[assignment]
    ends.path.from_device()
    got = ends.sent()
    assert list(map(without_ttl, got)) == list(map(without_ttl, sent))
    assert calls == 2  # 46 to a call, as many as a datagram's length has room for


def test_packets_of_several_peers_go_each_to_its_own(ends: Ends) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.setblocking(False)
        told = [
            ["10.5.2.0/24", *ends.peer.getsockname(), ""],
            ["10.5.3.0/24", *other.getsockname(), ""],
        ]
        ends.path.set_peers(Peers(map(Peer.parse, told)))
        third = bytes([10, 5, 3, 2])
        for target in TARGET, third, third, TARGET, TARGET, third:
            ends.containers.send(packet(SOURCE, target))
        ends.path.from_device()
        assert {one[16:20] for one in ends.sent()} == {TARGET}
        assert [one[16:20] for one in received_by(other)] == [third] * 3


def test_who_sends_to_nobody_is_told_so_and_not_too_often(ends: Ends) -> None:
    for _ in range(3):
        ends.containers.send(packet(SOURCE, bytes([10, 5, 9, 9]), b"to nobody"))
    ends.path.from_device()
    [(told, address)] = ends.icmp
    assert (told[:2], address) == (b"\3\0", ("10.5.1.2", 0))
    assert ends.path.drops == {"no-route": 3}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packet(SOURCE, TARGET, ttl=1), "ttl"),
        (b"\x60" + bytes(47), "not-ipv4"),
        (packet(SOURCE, TARGET)[:12], "malformed"),
        (packet(SOURCE, TARGET) + b"more than it says", "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:28].hex(),
)
def test_what_cannot_leave_is_counted_by_its_reason(ends: Ends, data: bytes, reason: str) -> None:
    ends.containers.send(data)
    ends.containers.send(packet(SOURCE, TARGET, b"after it"))
    ends.path.from_device()
    [left] = ends.sent()
    assert left.endswith(b"after it")
    assert ends.path.drops == {reason: 1}


def test_what_a_peer_sends_arrives_as_it_is(ends: Ends) -> None:
    sent = packet(TARGET, SOURCE, b"from there")
    assert ends.come_in(sent) == [sent]
    assert ends.path.counters()["received"] == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (b"\x45", "malformed"),
        (packet(TARGET, SOURCE)[:19], "malformed"),
        (packet(TARGET, SOURCE, b"cut")[:-1], "malformed"),
        (packet(TARGET, SOURCE) + b"x", "malformed"),
        (b"\x44" + packet(TARGET, SOURCE)[1:], "malformed"),
        (b"\x4f" + packet(TARGET, SOURCE)[1:], "malformed"),
        (b"\x65" + packet(TARGET, SOURCE)[1:], "malformed"),
        # As a container of the host itself, of a third one, of nobody.
        (packet(SOURCE, SOURCE), "foreign-source"),
        (packet(bytes([10, 5, 3, 2]), SOURCE), "foreign-source"),
        (packet(bytes([192, 0, 2, 1]), SOURCE), "foreign-source"),
        # To the host, and through it to others.
        (packet(TARGET, bytes([127, 0, 0, 1])), "foreign-target"),
        (packet(TARGET, bytes([10, 5, 3, 2])), "foreign-target"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:28].hex(),
)
def test_what_may_not_come_in_is_counted_by_its_reason(
    ends: Ends, data: bytes, reason: str
) -> None:
    assert ends.come_in(data) == []
    assert ends.path.drops == {reason: 1}
    assert len(ends.come_in(packet(TARGET, SOURCE))) == 1


def test_a_host_that_is_no_peer_brings_nothing_in(ends: Ends) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.2", 0))
        stranger.sendto(packet(TARGET, SOURCE), ends.path._udp.getsockname())
        ends.path.from_network()
    assert ends.delivered() == []
    assert ends.path.drops == {"unknown-host": 1}


def test_a_peer_does_not_speak_for_another(ends: Ends) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        told = [
            ["10.5.2.0/24", *ends.peer.getsockname(), ""],
            ["10.5.3.0/24", *other.getsockname(), ""],
        ]
        ends.path.set_peers(Peers(map(Peer.parse, told)))
        other.sendto(packet(TARGET, SOURCE), ends.path._udp.getsockname())
        ends.path.from_network()
        assert ends.delivered() == []
        other.sendto(packet(bytes([10, 5, 3, 2]), SOURCE), ends.path._udp.getsockname())
        ends.path.from_network()
        assert len(ends.delivered()) == 1
    assert ends.path.drops == {"foreign-source": 1}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(st.binary(max_size=120), st.binary(max_size=60).map(lambda tail: b"E" + tail))
)
def test_no_datagram_ends_the_path(ends: Ends, data: bytes) -> None:
    # Fuzz: whatever comes is delivered as it is, or counted.
    before = ends.path.received, sum(ends.path.drops.values())
    for one in ends.come_in(data):
        assert one == data
    after = ends.path.received, sum(ends.path.drops.values())
    assert sum(after) == sum(before) + 1


def test_what_came_together_is_judged_one_by_one(ends: Ends) -> None:
    # Datagrams of one length reach a socket in one piece (UDP_GRO); the sender may be anybody.
    good, bad = packet(TARGET, SOURCE, b"good"), packet(SOURCE, SOURCE, b"bad.")
    ends.peer.sendmsg(
        [good, bad, good], [(17, 103, len(good).to_bytes(2, "little"))], 0,
        ends.path._udp.getsockname(),
    )  # fmt: skip
    ends.path.from_network()
    assert ends.delivered() == [good, good]
    assert ends.path.drops == {"foreign-source": 1}


def test_a_device_that_takes_no_more_costs_the_packets_that_are_counted(ends: Ends) -> None:
    sent = packet(TARGET, SOURCE, bytes(1000))
    came = 0
    while not ends.path.drops:
        ends.peer.sendto(sent, ends.udp.getsockname())
        came += 1
        ends.path.from_network()
    assert ends.path.drops == {"device-eagain": 1}
    assert ends.delivered() == [sent] * (came - 1)
    assert ends.come_in(sent) == [sent]


@pytest.mark.parametrize("reason", ["ENOBUFS", "ENOMEM", "EHOSTUNREACH", "ECONNREFUSED"])
def test_whatever_the_kernel_says_of_a_packet_that_leaves_is_counted(
    ends: Ends, reason: str
) -> None:
    real = ends.path._udp

    class Refusing:
        def sendmsg(self, *_: object) -> int:
            raise OSError(getattr(errno, reason), "refused")

        sendto = sendmsg

    ends.path._udp = Refusing()  # type: ignore[assignment]
    for size in 1000, 1000, 1000, 20:  # one call, and a packet alone
        ends.containers.send(packet(SOURCE, TARGET, bytes(size)))
        ends.containers.send(packet(SOURCE, TARGET, bytes(2 * size)))
    ends.path.from_device()
    assert ends.path.drops == {f"send-{reason.lower()}": 8}
    ends.path._udp = real
    ends.containers.send(packet(SOURCE, TARGET))
    ends.path.from_device()
    assert len(ends.sent()) == 1
    assert ends.path.counters()["sent"] == 1


@pytest.mark.parametrize("reason", ["EIO", "EMSGSIZE", "EINVAL"])
def test_what_does_not_leave_in_one_call_leaves_one_by_one(ends: Ends, reason: str) -> None:
    # An interface without checksums; a way whose MTU became smaller, as kernels say it today, and
    # as they did.
    real = ends.path._udp

    class Refusing:
        sendto = real.sendto

        def sendmsg(self, *_: object) -> int:
            raise OSError(getattr(errno, reason), "refused")

    ends.path._udp = Refusing()  # type: ignore[assignment]
    sent = [packet(SOURCE, TARGET, bytes(1000), identity=number) for number in range(5)]
    for one in sent:
        ends.containers.send(one)
    ends.path.from_device()
    assert list(map(without_ttl, ends.sent())) == list(map(without_ttl, sent))
    assert ends.path.drops == {}
