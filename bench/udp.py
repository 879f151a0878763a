"""`python -m bench.udp`: one TCP stream over the userspace overlay, and over plain routes.

Needs root and iperf3. Two hosts are network namespaces with containers behind them. Both ends of
the stream and both processes share the cores, so two machines would do more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics

from bench import machine
from tests.net.handmade import subnet_of
from tests.net.packets import throughput
from tests.net.rig import Rig
from tests.net.udp import UdpOverlay

WANTED_GBITS = {"udp": 0.6, "netplane-udp": 0.5}


def routed(seconds: int) -> float:
    """Return the Gbit/s between containers of two hosts with routes and nothing else."""
    with Rig(2) as rig:
        for host in rig.hosts:
            host.namespace.sysctl("ipv4.ip_forward", "1")
            host.add_container(subnet_of(host))
            for other in rig.hosts:
                if other is not host:
                    host.namespace.ip(f"route add {subnet_of(other)} via {other.address}")
        here, there = rig.containers
        return throughput(here, there, seconds=seconds)


def overlaid(seconds: int) -> float:
    """Return the same over two processes."""
    return _overlaid(seconds, sealed=False)


def sealed(seconds: int) -> float:
    """Return the same with packets encrypted between the hosts."""
    return _overlaid(seconds, sealed=True)


def _overlaid(seconds: int, *, sealed: bool) -> float:
    with UdpOverlay(2, sealed=sealed) as overlay:
        here, there = overlay.rig.containers
        return throughput(here, there, seconds=seconds)


WAYS = {"routes": routed, "udp": overlaid, "netplane-udp": sealed}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.udp", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3, help="each way once in each")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("iperf3") is None:
        parser.error("this needs root and iperf3")
    facts = machine.facts(None)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(arguments.rounds):
        for name, way in WAYS.items():
            found[name].append(way(arguments.seconds))
    if arguments.json:
        print(json.dumps({"machine": facts, "gbits": found}))
        return
    for name, values in found.items():
        median = statistics.median(values)
        wanted = WANTED_GBITS.get(name)
        verdict = ""
        if wanted is not None:
            verdict = f", wanted {wanted:g}: {'met' if median >= wanted else 'MISSED'}"
        print(f"{name:14}{median:8.2f} Gbit/s (of {len(values)}, best {max(values):.2f}){verdict}")


if __name__ == "__main__":
    main()
