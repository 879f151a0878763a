"""`python -m bench.stream`: one TCP stream between containers of two hosts, by backend.

Needs root and iperf3. Each backend has two simulated hosts with real agents, which have nothing to
do meanwhile. Beside them, in turn: the same routes, and the same vxlan device, made by hand with
`ip`, as the agent can only add to what these cost. All have the same kernel and the same bridges.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from collections.abc import Callable
from contextlib import ExitStack

from bench import machine
from tests.net.handmade import make_overlay, subnet_of
from tests.net.overlay import HOST_GW, NETWORK, Overlay, until
from tests.net.packets import ping, throughput
from tests.net.rig import Container, Host, Rig

WANTED = 0.95
"""Of what the same by hand comes to."""

Pair = tuple[Container, Container]


def by_agents(network: str) -> Callable[[ExitStack], Pair]:
    """Return what makes two hosts with agents, and a container behind each."""

    def make(stack: ExitStack) -> Pair:
        overlay = stack.enter_context(Overlay(2, network=network))
        one, two = overlay.add_containers(1)
        return one, two

    return make


def by_hand(mtu: int, lead: Callable[[list[Host]], None]) -> Callable[[ExitStack], Pair]:
    """Return what makes the same without agents."""

    def make(stack: ExitStack) -> Pair:
        hosts = stack.enter_context(Rig(2)).hosts
        lead(hosts)
        one, two = (host.add_container(subnet_of(host), mtu=mtu) for host in hosts)
        return one, two

    return make


def route(hosts: list[Host]) -> None:
    """Route each host's subnet to it."""
    for host in hosts:
        host.namespace.sysctl("ipv4.ip_forward", "1")
        for other in hosts:
            if other is not host:
                host.namespace.ip(f"route add {subnet_of(other)} via {other.address} dev eth0")


WAYS = {
    "host-gw": by_agents(HOST_GW),
    "routes by hand": by_hand(1500, route),
    "vxlan": by_agents(NETWORK),
    "vxlan by hand": by_hand(1450, make_overlay),
}
COMPARED = (("host-gw", "routes by hand"), ("vxlan", "vxlan by hand"))


def measure(rounds: int, seconds: int) -> dict[str, list[float]]:
    """Return the Gbit/s of every round, by way."""
    figures: dict[str, list[float]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        pairs = {name: make(stack) for name, make in WAYS.items()}
        for here, there in pairs.values():
            until(lambda here=here, there=there: bool(ping(here, there.address)), 20, "an answer")
        for number in range(rounds):
            # In turn, and forth and back, so that no way is always measured first.
            order = list(pairs) if number % 2 == 0 else list(reversed(pairs))
            for name in order:
                figures[name].append(throughput(*pairs[name], seconds=seconds))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stream", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each stream")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("--rounds and --seconds are 1 or more")
    if os.geteuid() != 0:
        parser.error("namespaces need root")
    if shutil.which("iperf3") is None:
        parser.error("no iperf3 (Debian package iperf3)")
    figures = measure(arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps({"machine": machine.facts(None), "gbit_s": figures}))
        return
    print(f"Gbit/s{'':12}{'median':>8}{'lowest':>8}{'highest':>9}")
    for name, values in figures.items():
        print(f"{name:18}{statistics.median(values):8.2f}{min(values):8.2f}{max(values):9.2f}")
    for name, hand in COMPARED:
        share = statistics.median(figures[name]) / statistics.median(figures[hand])
        said = "met" if share >= WANTED else "MISSED"
        print(f"{name}, of what it is by hand: {share:.3f}, wanted {WANTED:g}: {said}")


if __name__ == "__main__":
    main()
