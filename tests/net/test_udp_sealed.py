"""Sealed packets between real kernels: the wire, who gets in, what processes outlive."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from netplane.udp.control import DESCRIPTORS, MESSAGE_BYTES_MAX, decode, encode, make_socket
from netplane.udp.sealed import FORMER_MAX
from tests.net.namespaces import CommandError, missing
from tests.net.overlay import NETWORK, Overlay, until
from tests.net.packets import Flow, mesh, ping, ping_all, throughput
from tests.net.udp import PORT, SEALED_MTU, UdpHost, UdpOverlay, ask_process, stop_process

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
RATE = 1200
ETH_P_ALL = 3
"""With another one a port of a bridge gives nothing: the bridge takes it before."""
IP_UDP_BYTES = 28


@pytest.fixture
def overlay() -> Iterator[UdpOverlay]:
    with UdpOverlay(2, sealed=True) as made:
        yield made


def dropped(host: UdpHost) -> dict[str, int]:
    found: dict[str, int] = host.ask("counters")["dropped"]
    return {reason: count for reason, count in found.items() if reason != "not-ipv4"}


def test_all_reach_all_with_whole_packets_and_a_stream_arrives(overlay: UdpOverlay) -> None:
    assert None not in ping_all(mesh(overlay.rig.containers), size=SEALED_MTU - 28)
    here, there = overlay.rig.containers
    assert throughput(here, there, seconds=1) > 0.05
    assert [dropped(host) for host in overlay.hosts] == [{}, {}]


def test_who_listens_reads_nothing_and_who_repeats_gets_nowhere(overlay: UdpOverlay) -> None:
    first, second = overlay.hosts
    here, there = overlay.rig.containers
    hub = overlay.rig.underlay
    with (
        hub.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as ear,
        here.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        there.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        hub.socket(socket.AF_INET, socket.SOCK_DGRAM) as repeater,
    ):
        ear.bind((overlay.rig.hosts[0].port, ETH_P_ALL))
        ear.settimeout(5)
        receiver.bind((there.address, 5000))
        receiver.settimeout(5)
        sender.sendto(b"a word that nobody shall read", (there.address, 5000))
        assert receiver.recv(100) == b"a word that nobody shall read"
        data = b""
        while data[9:10] != b"\x11":  # neither ARP nor what else passes
            data = ear.recv(65536)
        assert data[16:20] == socket.inet_aton(second.host.address)
        assert b"nobody shall" not in data
        assert socket.inet_aton(there.address) not in data[IP_UDP_BYTES:]
        # From another address, as who would have packets for the host come to himself.
        repeater.sendto(data[IP_UDP_BYTES:], (second.host.address, PORT))
        until(lambda: dropped(second) == {"replay": 1}, 5, "it is dropped")
        changed = bytearray(data[IP_UDP_BYTES:])
        changed[-1] ^= 1
        changed[12] ^= 0x80  # a counter far ahead
        repeater.sendto(changed, (second.host.address, PORT))
        repeater.sendto(b"no packet", (second.host.address, PORT))
        until(
            lambda: dropped(second) == {"replay": 1, "not-authentic": 1, "malformed": 1},
            5, "they are dropped",
        )  # fmt: skip
    assert second.ask("counters")["moved"] == 0
    assert ping(there, here.address) is not None
    assert dropped(first) == {}


def test_what_is_not_sealed_does_not_come_in(overlay: UdpOverlay) -> None:
    # Plain packets from a host's own address, as Flannel's process would send them.
    first, second = overlay.hosts
    second.stop()
    with second.host.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((second.host.address, PORT))
        sender.sendto(b"\x45" + bytes(99), (first.host.address, PORT))
        until(lambda: dropped(first) == {"malformed": 1}, 5, "it is dropped")


@pytest.mark.alone  # a busy machine sends fewer
def test_a_newer_process_goes_on_with_the_keys_and_without_a_lost_packet(
    overlay: UdpOverlay,
) -> None:
    first, second = overlay.hosts
    here, there = overlay.rig.containers
    key = first.key
    with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
        until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
        first.start("--take-over", version="9.9")
        mark = out.sent
        until(lambda: min(out.sent, back.sent) > mark + 500, 20, "packets are sent")
        losses = out.stop(), back.stop()
    assert [loss.missing for loss in losses] == [(), ()]
    assert first.key == key
    assert first.ask("hello")["version"] == "9.9"
    assert (dropped(first), dropped(second)) == ({}, {})


def test_a_successor_has_loaded_what_seals_before_packets_wait_for_it(
    overlay: UdpOverlay,
) -> None:
    # We stand for the older process, which stops to move packets when it is asked to hand over.
    first, _ = overlay.hosts
    told = first.ask("hello")
    path = f"{first.path}.ours"
    with make_socket() as listener:
        listener.settimeout(20)
        listener.bind(path)
        listener.listen()
        here = UdpHost(first.host, Path(path).parent, sealed=True)
        here.path = path
        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(here.start, "--take-over")
            older = listener.accept()[0]
            with older:
                older.settimeout(20)
                assert decode(older.recv(MESSAGE_BYTES_MAX)) == {"ask": "hello"}
                older.send(encode(told))
                assert decode(older.recv(MESSAGE_BYTES_MAX)) == {"ask": "hand-over"}
                who = older.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                maps = Path(f"/proc/{struct.unpack('3i', who)[0]}/maps").read_text()
            assert isinstance(starting.exception(20), CommandError)
    assert "cryptography" in maps


def test_a_process_that_starts_again_has_a_key_that_nobody_knows(overlay: UdpOverlay) -> None:
    first, second = overlay.hosts
    here, there = overlay.rig.containers
    key = first.key
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: _is_down(first), 5, "it ends")
    first.start()
    first.tell_peers(overlay.hosts)
    assert first.key != key
    assert ping(here, there.address, timeout_s=0.3) is None
    assert dropped(second) == {"unknown-key": 1}
    second.tell_peers(overlay.hosts)
    assert ping(here, there.address) is not None


@pytest.mark.alone  # a busy machine sends fewer
def test_a_host_that_starts_again_and_again_costs_others_no_packet_and_leaves_little() -> None:
    with UdpOverlay(3, sealed=True) as overlay:
        first, second, third = overlay.hosts
        here, there, elsewhere = overlay.rig.containers
        with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
            until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
            for _ in range(FORMER_MAX + 2):
                third.stop()
                third.start()
                for host in overlay.hosts:
                    host.tell_peers(overlay.hosts)
                # ... and what it sends and gets is of the newest keys.
                assert ping(elsewhere, here.address) is not None
                assert ping(there, elsewhere.address) is not None
            first.start("--take-over")
            mark = out.sent
            until(lambda: min(out.sent, back.sent) > mark + 500, 20, "packets are sent after it")
            losses = out.stop(), back.stop()
        assert [loss.missing for loss in losses] == [(), ()]
        assert [dropped(host) for host in overlay.hosts] == [{}, {}, {}]
        with make_socket() as asking:
            asking.settimeout(10)
            asking.connect(first.path)
            # Whoever asks so and then ends leaves all as it was.
            asking.send(encode({"ask": "hand-over"}))
            _, numbers, _, _ = socket.recv_fds(asking, 100, DESCRIPTORS)
            with open(numbers[-1], "rb") as file:
                told = json.load(file)
            for number in numbers[:-1]:
                os.close(number)
        assert len(told["sessions"]) == FORMER_MAX + 2
        assert {second.key, third.key} <= {one["public"] for one in told["sessions"]}
        assert ping(here, there.address) is not None


def _is_down(host: UdpHost) -> bool:
    try:
        host.ask("hello")
    except OSError:
        return True
    return False


def test_agents_publish_keys_and_a_killed_process_gets_a_new_one() -> None:
    network = NETWORK.replace("vxlan", "netplane-udp")
    with Overlay(2, flags=("--heal-interval", "1h"), network=network) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        assert [agent.mtu for agent in overlay.agents] == [SEALED_MTU] * 2
        agent = overlay.agents[0]
        before = ask_process(agent.process_socket, "hello")
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: agent.status()["kernel"]["healed"] == {"process": 1}, 20, "it is counted")
        until(overlay.everybody_answers, 20, "every container answers every other")
        after = ask_process(agent.process_socket, "hello")
        assert after["key"] != before["key"]
        told = [value.decode() for value in overlay.registered().values()]
        assert len([value for value in told if after["key"] in value]) == 1
        assert not [value for value in told if before["key"] in value]


@pytest.fixture
def sealed() -> Iterator[Overlay]:
    """Two hosts, and a container behind each; every packet between these is sealed."""
    network = NETWORK.replace("vxlan", "netplane-udp")
    with Overlay(2, flags=("--heal-interval", "1h"), network=network) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        yield overlay


@contextmanager
def under_packets(overlay: Overlay) -> Iterator[None]:
    """Send packets both ways meanwhile and for a while after it: none may be lost."""
    here, there = overlay.rig.containers
    with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
        until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
        yield
        mark = out.sent
        until(lambda: out.sent > mark + 1000, 20, "packets are sent with the next")
        losses = out.stop(), back.stop()
    assert [loss.missing for loss in losses] == [(), ()]


@pytest.mark.alone  # a busy machine sends fewer
def test_an_agent_that_ends_and_comes_back_costs_no_sealed_packet(sealed: Overlay) -> None:
    agent = sealed.agents[0]
    with under_packets(sealed):
        agent.kill()
        agent.start()
        agent.wait_ready()


@pytest.mark.alone  # a busy machine sends fewer
def test_a_process_whose_file_others_remove_costs_no_sealed_packet(sealed: Overlay) -> None:
    # Twice: under an agent that runs, and before one that starts, as systemd removes what is in
    # /run of a unit that stops.
    agent = sealed.agents[0]
    pid, leases = ask_process(agent.process_socket, "hello")["pid"], sealed.registered()
    with under_packets(sealed):
        agent.process_socket.unlink()
        until(agent.process_socket.exists, 5, "it is there again")
        assert ask_process(agent.process_socket, "hello")["pid"] == pid
        agent.terminate()
        agent.process_socket.unlink()
        agent.start()
        agent.wait_ready()
    assert ask_process(agent.process_socket, "hello")["pid"] == pid
    assert sealed.registered() == leases
    assert agent.status()["kernel"]["healed"] == {}


def test_an_agent_that_does_not_get_a_process_leaves_the_key_that_was_told() -> None:
    network = NETWORK.replace("vxlan", "netplane-udp")
    with Overlay(2, flags=("--heal-interval", "1h"), network=network) as overlay:
        agent, leases = overlay.agents[0], overlay.registered()
        pid = ask_process(agent.process_socket, "hello")["pid"]
        agent.kill()
        # One that agents cannot find, by whatever name: it goes on, and has the port.
        agent.flags = (*agent.flags, "--run-dir", str(agent.folder / "run"))
        agent.start()
        until(lambda: f"process {pid}, a netplane-udp" in agent.log(), 20, "it is named")
        assert overlay.registered() == leases
        assert agent.is_running
        os.kill(pid, signal.SIGTERM)
        until(lambda: overlay.registered() != leases, 20, "the key of the next is told")
        agent.terminate()
        stop_process(agent.folder / "run" / "default.udp")


@pytest.mark.slow  # it is waited for twice, for 5 s
def test_a_hung_process_whose_file_is_gone_is_killed_by_an_agent_that_starts() -> None:
    network = NETWORK.replace("vxlan", "netplane-udp")
    with Overlay(2, flags=("--heal-interval", "1h"), network=network) as overlay:
        overlay.add_containers(1)
        agent, other = overlay.agents
        pid = ask_process(agent.process_socket, "hello")["pid"]
        others = ask_process(other.process_socket, "hello")["pid"]
        agent.kill()
        os.kill(pid, signal.SIGSTOP)
        agent.process_socket.unlink()
        agent.start()
        until(lambda: f"process {pid} is killed" in agent.log(), 40, "it is killed")
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent.wait_ready()
        assert ask_process(other.process_socket, "hello")["pid"] == others


@pytest.mark.slow  # a registry that is away for long enough to be asked seldom
@pytest.mark.alone  # a busy machine takes longer
def test_a_key_is_told_as_soon_as_the_registry_is_back() -> None:
    network = NETWORK.replace("vxlan", "netplane-udp")
    with Overlay(2, flags=("--heal-interval", "1h"), network=network) as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent = overlay.agents[0]
        overlay.members.kill(0)
        assert overlay.everybody_answers()
        # An agent that is started anew goes on with the process, and so with its key.
        pid = ask_process(agent.process_socket, "hello")["pid"]
        agent.kill()
        agent.start()
        until(lambda: "keeps silent" in agent.log(), 20, "it goes by what it remembers")
        assert ask_process(agent.process_socket, "hello")["pid"] == pid
        os.kill(ask_process(overlay.agents[1].process_socket, "hello")["pid"], signal.SIGKILL)
        other = overlay.agents[1]
        until(lambda: "key: the key that packets are sealed with" in other.missing(), 20, "told")
        assert not overlay.everybody_answers()
        named_s = time.monotonic()
        until(lambda: time.monotonic() > named_s + 16, 20, "pauses would have grown to 10 s")
        overlay.members.restart(0)
        until(overlay.everybody_answers, 5, "packets pass soon after it is back")
        other.wait_ready()
