"""The userspace overlay's process between real kernels: its packets, and what it outlives."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from netplane.udp import tun
from netplane.udp.control import (
    DESCRIPTORS,
    MESSAGE_BYTES_MAX,
    Config,
    ControlError,
    encode,
    make_socket,
)
from netplane.udp.owner import Owner
from netplane.udp.process import LOOK_S
from tests.net.namespaces import CommandError, missing
from tests.net.overlay import until
from tests.net.packets import Flow, mesh, ping, ping_all, throughput
from tests.net.udp import DEVICE, MTU, PORT, UdpHost, UdpOverlay
from tests.netplane.udp.packets import header_sum, packet

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
RATE = 1200


@pytest.fixture
def overlay() -> Iterator[UdpOverlay]:
    with UdpOverlay(2) as made:
        yield made


def dropped(host: UdpHost) -> dict[str, int]:
    found: dict[str, int] = host.ask("counters")["dropped"]
    # The kernel's own announcements over IPv6.
    return {reason: count for reason, count in found.items() if reason != "not-ipv4"}


def test_all_reach_all_with_whole_packets_and_nothing_is_dropped() -> None:
    with UdpOverlay(3) as overlay:
        pairs = mesh(overlay.rig.containers)
        assert None not in ping_all(pairs, size=MTU - 28)
        # Not some other way: each packet went over two processes.
        counts = [host.ask("counters") for host in overlay.hosts]
        assert sum(count["sent"] for count in counts) == 2 * len(pairs)
        assert sum(count["received"] for count in counts) == 2 * len(pairs)
        assert [dropped(host) for host in overlay.hosts] == [{}, {}, {}]


@pytest.mark.alone  # a busy machine sends fewer
def test_a_stream_arrives_whole(overlay: UdpOverlay) -> None:
    # TCP finds out about each byte; here are packets in runs, both ways, as fast as they go.
    here, there = overlay.rig.containers
    assert throughput(here, there, seconds=1) > 0.05


def test_on_the_wire_is_what_flannel_sends_and_takes() -> None:
    # The witness is a socket and nothing else: it stands for a host with Flannel's process.
    with UdpOverlay(1) as overlay:
        [host] = overlay.hosts
        [container] = overlay.rig.containers
        hub = overlay.rig.underlay
        with hub.socket(socket.AF_INET, socket.SOCK_DGRAM) as witness:
            witness.bind(("10.77.255.254", PORT))
            witness.settimeout(5)
            host.ask("peers", peers=[["10.5.9.0/24", "10.77.255.254", PORT, ""]])
            with container.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((container.address, 4000))
                sender.settimeout(5)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
                sender.sendto(b"ask", ("10.5.9.2", 5000))
                data, source = witness.recvfrom(65536)
                assert source == (host.host.address, PORT)
                # The inner packet and nothing but it: no header before, none behind. One hop is
                # the host's own forwarding, one the overlay.
                assert data[0] == 0x45
                assert struct.unpack_from("!H", data, 2)[0] == len(data) == 20 + 8 + 3
                assert data[8] == 33 - 2
                assert data[9] == socket.IPPROTO_UDP
                assert header_sum(data) == 0xFFFF
                assert data[12:16] == socket.inet_aton(container.address)
                assert data[16:20] == socket.inet_aton("10.5.9.2")
                assert struct.unpack_from("!HHH", data, 20) == (4000, 5000, 11)
                assert data[28:] == b"ask"
                # ... and back, without a checksum of UDP: 0 means none.
                reply = struct.pack("!HHHH", 5000, 4000, 8 + 6, 0) + b"answer"
                whole = packet(data[16:20], data[12:16], reply)
                witness.sendto(whole, (host.host.address, PORT))
                assert sender.recvfrom(65536) == (b"answer", ("10.5.9.2", 5000))


def test_who_sends_to_nobody_is_told_by_icmp(overlay: UdpOverlay) -> None:
    here, _ = overlay.rig.containers
    with here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(5)
        sender.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        sender.connect(("10.5.200.2", 9))
        sender.send(b"to nobody")
        with pytest.raises(OSError, match="unreachable"):
            sender.recv(100)
    assert dropped(overlay.hosts[0]) == {"no-route": 1}


@pytest.mark.alone  # a busy machine sends fewer
def test_a_newer_process_goes_on_without_a_lost_packet(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    here, there = overlay.rig.containers
    with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
        until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
        before = first.ask("hello")
        first.start("--take-over", version="9.9")
        after = first.ask("hello")
        mark = out.sent
        until(lambda: min(out.sent, back.sent) > mark + 500, 20, "packets are sent")
        losses = out.stop(), back.stop()
    assert [loss.missing for loss in losses] == [(), ()]
    assert after["version"] == "9.9"
    assert before["pid"] != after["pid"]
    until(lambda: not os.path.exists(f"/proc/{before['pid']}"), 5, "the older one has ended")
    assert first.ask("counters")["received"] >= 1000


def test_a_process_with_another_configuration_gives_nothing_away(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    pid = first.pid
    other = UdpHost(first.host, Path(first.path).parent)
    other.config = Config("npu.9", MTU, first.host.address, 9, "10.5.1.0/24")
    with pytest.raises(CommandError, match="another configuration"):
        other.start("--take-over")
    assert first.pid == pid
    here, there = overlay.rig.containers
    assert ping(here, there.address) is not None


def test_a_second_process_is_refused_and_the_first_goes_on(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    pid = first.pid
    with pytest.raises(CommandError, match="there is one already"):
        first.start()
    elsewhere = UdpHost(first.host, Path(first.path).parent)
    elsewhere.path += ".other"
    with pytest.raises(CommandError, match=rf"already in use; process {pid}, a netplane-udp that"):
        elsewhere.start()
    assert first.pid == pid


def test_a_killed_process_leaves_device_and_routes_to_the_next(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    here, there = overlay.rig.containers
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: ping(here, there.address, timeout_s=0.1) is None, 5, "nobody moves packets")
    first.start()
    assert ping(here, there.address, timeout_s=0.2) is None  # it has not heard of peers yet
    first.tell_peers(overlay.hosts)
    assert ping(here, there.address) is not None


@pytest.mark.parametrize("harm", ["down", "mtu 1000", "del"])
def test_a_device_that_others_change_is_put_right(overlay: UdpOverlay, harm: str) -> None:
    first, _ = overlay.hosts
    here, there = overlay.rig.containers
    namespace = first.host.namespace
    namespace.ip(f"link del {DEVICE}" if harm == "del" else f"link set {DEVICE} {harm}")
    until(lambda: first.ask("counters")["restored"] == 1, 5, "it is put right")
    [link] = namespace.json("ip", "-j", "link", "show", DEVICE)
    assert link["mtu"] == MTU
    assert "UP" in link["flags"]
    first.give_routes()  # the kernel takes them with a device that goes or is down
    assert ping(here, there.address, size=MTU - 28) is not None


def test_thousands_of_peers_are_told_at_once(overlay: UdpOverlay) -> None:
    first, second = overlay.hosts
    told = [
        [f"10.{a}.{b}.0/24", f"172.16.{a}.{b}", PORT, ""] for a in range(6, 26) for b in range(256)
    ]
    told.append([str(second.subnet), second.host.address, PORT, ""])
    assert first.ask("peers", peers=told) == {"peers": 5121}
    here, there = overlay.rig.containers
    assert ping(here, there.address) is not None


def test_what_is_no_question_is_refused_and_changes_nothing(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    with pytest.raises(ControlError, match="unknown question 'dance'"):
        first.ask("dance")
    with pytest.raises(ControlError, match="no list"):
        first.ask("peers", peers={})
    with pytest.raises(ControlError, match="is no"):
        first.ask("peers", peers=[["10.5.2.0/24"]])
    # One that says nothing, one that goes away in the middle, and one that reads no answers.
    with make_socket() as silent, make_socket() as deaf:
        silent.connect(first.path)
        deaf.connect(first.path)
        for _ in range(20):
            deaf.send(encode({"ask": "hello"}))
        first.ask("hello")
    assert os.stat(first.path).st_mode & 0o777 == 0o600
    here, there = overlay.rig.containers
    assert ping(here, there.address) is not None


def test_a_process_whose_file_is_gone_is_found_again(overlay: UdpOverlay) -> None:
    # As a folder in /run goes that systemd makes for a unit, and removes with it.
    first, _ = overlay.hosts
    pid = first.pid
    folder = Path(first.path).parent
    with make_socket() as asking:
        asking.settimeout(10)
        asking.connect(first.path)
        shutil.rmtree(folder)
        time.sleep(2.5 * LOOK_S)  # nothing to wait for: it looks, and cannot do anything
        folder.mkdir()
        until(lambda: os.path.exists(first.path), 5, "it is there again")
        until(lambda: os.path.exists(overlay.hosts[1].path), 5, "so is the other host's")
        assert first.pid == pid
        assert os.stat(first.path).st_mode & 0o777 == 0o600
        # Who was connected before is heard as ever; and with no file it ends as well.
        os.unlink(first.path)
        asking.send(encode({"ask": "stop"}))
        assert asking.recv(MESSAGE_BYTES_MAX) == b"{}"
        assert asking.recv(MESSAGE_BYTES_MAX) == b""


def test_stop_with_remove_leaves_nothing(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    pid = first.pid
    first.ask("stop", remove=True)
    until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "it ends")
    assert not os.path.exists(first.path)
    assert DEVICE not in first.host.namespace.run("ip", "link")


def test_who_is_told_that_it_stops_may_have_its_device_at_once(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    first.ask("stop")
    os.close(first.host.namespace.within(tun.attach, DEVICE))


def test_a_successor_that_ends_before_it_has_taken_over_changes_nothing(
    overlay: UdpOverlay,
) -> None:
    first, _ = overlay.hosts
    pid = first.pid
    here, there = overlay.rig.containers
    with make_socket() as successor:
        successor.connect(first.path)
        successor.send(encode({"ask": "hand-over"}))
        data, numbers, _, _ = socket.recv_fds(successor, 100, 10)
        assert (data, len(numbers)) == (b"{}", DESCRIPTORS)
        for number in numbers:
            os.close(number)
    assert ping(here, there.address) is not None
    assert first.pid == pid


def test_a_process_of_another_mtu_follows_with_all_that_the_older_knows(
    overlay: UdpOverlay,
) -> None:
    first, _ = overlay.hosts
    pid = first.pid
    here, there = overlay.rig.containers
    first.config = replace(first.config, mtu=MTU - 100)
    first.start("--take-over")
    assert first.pid != pid
    [link] = first.host.namespace.json("ip", "-j", "link", "show", DEVICE)
    assert link["mtu"] == MTU - 100
    assert ping(here, there.address) is not None


def nested(deep: int) -> bytes:
    return b'{"ask":%s%s}' % (b"[" * deep, b"]" * deep)


def test_hostile_questions_neither_end_it_nor_keep_others_out(overlay: UdpOverlay) -> None:
    first, _ = overlay.hosts
    pid = first.pid
    for junk in (
        b"[" * 200_000, b'{"ask":' * 50_000, b"\xff\0", b"{}", b"[]", b"{" + bytes(1 << 20),
        b'{"ask":"peers","peers":[["10.5.2.0/24","10.77.0.2",8285,"\\ud800"]', b"9" * 100_000,
        encode({"ask": ["hello"]}), nested(500), nested(990), nested(5000),
        b'{"ask":"peers","peers":[%s%s]}' % (b"[" * 990, b"]" * 990),
        encode({"ask": "peers", "peers": [[[[]]]] * 50_000}),
        encode({"ask": "peers", "peers": [["10.5.2.0/24", "10.77.0.2", 2**70, ""]]}),
    ):  # fmt: skip
        with make_socket() as asking:
            asking.settimeout(10)
            asking.connect(first.path)
            asking.send(junk)
            # An answer that is too long to be sent costs the connection.
            assert asking.recv(MESSAGE_BYTES_MAX)[:9] in (b'{"error":', b"")
    with ExitStack() as stack:
        idle = [stack.enter_context(make_socket()) for _ in range(40)]
        for one in idle:
            one.settimeout(10)
            one.connect(first.path)
            assert first.pid == pid  # asked over a connection of its own
        assert idle[0].recv(1) == b""  # who asks nothing makes place
    # The kernel names the process itself, and not the one that has started it.
    with make_socket() as asking:
        asking.connect(first.path)
        owner = Owner.connected_to(asking)
        owner.close()
        assert owner.pid == pid
    here, there = overlay.rig.containers
    assert ping(here, there.address) is not None
