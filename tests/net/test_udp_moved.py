"""The interface to the other hosts becomes another under a process of udp, which keeps its key."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import NETWORK, PREFIX, Overlay, until
from tests.net.packets import Flow, Loss
from tests.net.rig import UNDERLAY, Container, Host
from tests.net.udp import DEVICE, SEALED_MTU, ask_process

pytestmark = [
    pytest.mark.net,
    pytest.mark.alone,  # a busy machine sends fewer, and loses some of them
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
RATE = 1200
NEW = f"{UNDERLAY}.9.9"
GATEWAY = f"{UNDERLAY}.255.254"


def overlay_of(backend: str) -> Overlay:
    return Overlay(
        2, flags=("--heal-interval", "1h"), network=NETWORK.replace("vxlan", backend)
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["udp", "netplane-udp"])
def test_an_interface_that_gets_another_name_costs_no_packet(backend: str) -> None:
    with overlay_of(backend) as overlay:
        here, there = overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent = overlay.agents[1]
        before = ask_process(agent.process_socket, "hello")
        with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
            until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
            agent.host.namespace.ip("link set eth0 name wan0")
            until(lambda: "other hosts is wan0" in agent.log(), 20, "it is followed")
            mark = out.sent
            until(lambda: min(out.sent, back.sent) > mark + 1000, 20, "packets are sent after it")
            losses = out.stop(), back.stop()
        assert [loss.missing for loss in losses] == [(), ()]
        assert ask_process(agent.process_socket, "hello") == before
        # What is on the device is kept, now by who looks at the other interface.
        agent.host.namespace.ip(f"link set {DEVICE} down")
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent.wait_ready()


def gets_another_address(host: Host) -> None:
    host.namespace.ip(
        f"addr del {host.address}/16 dev eth0",
        f"addr add {NEW}/16 dev eth0",
        f"route add default via {GATEWAY}",
    )


def gets_another_card(host: Host) -> None:
    host.unplug()
    host.plug(NEW, "eth1")


def losses_of(
    move: Callable[[Host], None], host: Host, here: Container, there: Container, patience_s: float
) -> list[Loss]:
    """Move a host under packets both ways; return what was lost of each, all of it in one piece."""
    with Flow(here, there, RATE) as out, Flow(there, here, RATE) as back:
        until(lambda: min(out.received, back.received) > 500, 20, "packets arrive")
        move(host)
        marks = out.received, back.received
        until(lambda: out.received > marks[0] + 1000, patience_s, "packets arrive there")
        until(lambda: back.received > marks[1] + 1000, 20, "packets arrive from there")
        losses = [out.stop(), back.stop()]
    for loss in losses:
        # Until it was followed, and none before or after that.
        assert loss.missing == tuple(range(loss.missing[0], loss.missing[-1] + 1))
    return losses


@pytest.mark.parametrize("move", [gets_another_address, gets_another_card])
def test_a_host_that_moves_keeps_its_key_and_the_others_follow_what_it_seals(
    move: Callable[[Host], None],
) -> None:
    # Not by its lease: the registry stands still.
    with overlay_of("netplane-udp") as overlay:
        here, there = overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent = overlay.agents[1]
        before = ask_process(agent.process_socket, "hello")
        overlay.members.pause(0)
        for loss in losses_of(move, agent.host, here, there, 20):
            assert loss.longest_gap_ms < 5000
        overlay.members.resume(0)
        after = ask_process(agent.process_socket, "hello")
        assert after["key"] == before["key"]
        assert after["config"] == before["config"] | {"address": NEW}


@pytest.mark.parametrize("move", [gets_another_address, gets_another_card])
def test_the_others_follow_a_host_that_moves_by_its_lease(move: Callable[[Host], None]) -> None:
    with overlay_of("udp") as overlay:
        here, there = overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent = overlay.agents[1]
        for loss in losses_of(move, agent.host, here, there, 20):
            # By itself the registry's client would hold on to the old address for 15 s.
            assert loss.longest_gap_ms < 8000
        agent.wait_ready()


def test_a_process_that_cannot_be_followed_yet_goes_on_and_its_key_stays_told() -> None:
    with overlay_of("netplane-udp") as overlay:
        overlay.add_containers(1)
        until(overlay.everybody_answers, 20, "every container answers every other")
        agent = overlay.agents[1]
        before, leases = ask_process(agent.process_socket, "hello"), written(overlay)
        # Where the next one would listen.
        in_the_way = agent.process_socket.with_name(f"{agent.process_socket.name}.new")
        in_the_way.mkdir()
        agent.host.namespace.ip("link set eth0 mtu 1400")
        until(lambda: "kernel: the process that moves packets" in agent.missing(), 20, "it is told")
        assert ask_process(agent.process_socket, "hello") == before
        assert overlay.everybody_answers()
        in_the_way.rmdir()
        agent.wait_ready()
        after = ask_process(agent.process_socket, "hello")
        assert (after["key"], after["config"]["mtu"]) == (before["key"], SEALED_MTU - 100)
        until(overlay.everybody_answers, 20, "every container answers every other")
        assert written(overlay) == leases


def written(overlay: Overlay) -> list[int]:
    """Return the revisions that leases were last written in."""
    found = json.loads(overlay.kvctl("get", "--prefix", f"{PREFIX}subnets/", "-w", "json"))
    return [int(kv["mod_revision"]) for kv in found["kvs"]]
