"""`python -m bench.overlay`: from a write in the registry to the last of a hundred hosts' kernels.

Needs root. Every host is a network namespace with a real `netplane agent`; the registry is one
member on a host of its own, kvstore and etcd in turn. A write is a lease of a host that only is
registered: one comes, one gets another MAC and address, one goes, and so on. The time is from
before the client's call to when the last kernel has told an independent listener of its route (or
neighbour, where only the MAC is another). CPU is that of all agents, with the kernel's work for
their calls and what they do without any write.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network
from itertools import chain

from bench import machine
from tests.net.crowd import Crowd, Said, peer_is, route_came, route_went
from tests.net.fleet import Fleet, cpu_s
from tests.net.overlay import SERVERS, until
from tests.net.writer import Write, Writer, peers

NETWORK = IPv4Network("10.128.0.0/9")
CONFIG = '{"Network":"10.128.0.0/9","SubnetMax":"10.191.255.0","Backend":{"Type":"vxlan"}}'
MESH_S = 120.0
IDLE_S = 10.0
"""As long as an agent's timers take."""
REST_S = 5.0
"""What has not come so long after the last write will not come."""
WARM_UP = 9
EVERY_S = 0.1
KINDS = ("comes", "moves", "goes")
P50_MS, P99_MS, CPU_MS = 60.0, 120.0, 1.2


@dataclass
class Round:
    """What one registry and its agents came to."""

    registry: str
    boot_s: float
    """From exec to full mesh."""
    last_ms: dict[str, list[float]] = field(default_factory=dict)
    """To the last kernel, by kind of write."""
    put_ms: list[float] = field(default_factory=list)
    """Of the client's call."""
    missed: int = 0
    """Writes that some kernel never told of."""
    agent_cpu_ms: float = 0.0
    """Of one agent, for each write."""
    idle_cpu_ms: float = 0.0
    """Of one agent, in as much time without writes."""
    registry_cpu_ms: float = 0.0
    """Of the member, for each write."""
    pss_mb: float = 0.0
    """Of the largest agent."""

    @property
    def all_ms(self) -> list[float]:
        """To the last kernel, of whatever kind."""
        return list(chain(*self.last_ms.values()))


def planned(count: int) -> list[tuple[str, Write, Said]]:
    """Return writes, and what each makes kernels say; those of one peer are 4 writes apart.

    Behind each other a slow agent might see two as one, and its kernel would say nothing of the
    first.
    """
    drawn = peers(count // 3 + 3, NETWORK)
    found = []
    for number in range(3 * len(drawn)):
        turn = number // 3
        kind = KINDS[number % 3]
        place = turn - KINDS.index(kind)
        if place < 0:
            continue
        peer = drawn[place]
        if kind == "comes":
            said, value = route_came(peer.subnet), peer.value
        elif kind == "moves":
            said, value = peer_is(peer.subnet, peer.moved().mac), peer.moved().value
        else:
            said, value = route_went(peer.subnet), None
        found.append((kind, Write(peer.key, value), said))
    return found[:count]


def measure(registry: str, agents: int, writes: int) -> Round:
    """Start everything, write, listen, and end everything."""
    plan = planned(WARM_UP + writes)
    with (
        Fleet(agents, server=registry, network=CONFIG, flags=("--log-level", "warn")) as fleet,
        Crowd([agent.host for agent in fleet.agents]) as crowd,
    ):
        begun_s = fleet.boot()
        until(lambda: crowd.is_mesh, MESH_S, "every host has a route to each")
        done = Round(registry, time.monotonic() - begun_s)
        with Writer(fleet.apart.namespace, fleet.registry.endpoints) as writer:
            before_s = fleet.cpu_s()
            time.sleep(IDLE_S)
            done.idle_cpu_ms = 1000 * (fleet.cpu_s() - before_s) / agents / IDLE_S * EVERY_S
            writer.schedule([write for _, write, _ in plan[:WARM_UP]], EVERY_S)
            plan = plan[WARM_UP:]
            member = fleet.registry.pid(0)
            before_s, member_s = fleet.cpu_s(), cpu_s(member)
            times = writer.schedule([write for _, write, _ in plan], EVERY_S)
            ends_s = time.monotonic() + REST_S
            while time.monotonic() < ends_s and not all(crowd.all_said(one) for *_, one in plan):
                time.sleep(0.05)
            done.agent_cpu_ms = 1000 * (fleet.cpu_s() - before_s) / agents / writes
            done.registry_cpu_ms = 1000 * (cpu_s(member) - member_s) / writes
        for (kind, _, said), (sent_s, answered_s) in zip(plan, times, strict=True):
            done.put_ms.append(1000 * (answered_s - sent_s))
            last_s = crowd.last_s(said)
            if last_s is None:
                done.missed += 1
            else:
                done.last_ms.setdefault(kind, []).append(1000 * (last_s - sent_s))
        done.pss_mb = max(fleet.pss_bytes()) / 2**20
        if not all(agent.is_running for agent in fleet.agents):
            raise SystemExit("an agent has ended")
    return done


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def show(rounds: list[Round], agents: int, writes: int) -> None:
    print(f"{agents} agents, {writes} writes, one each {1000 * EVERY_S:.0f} ms; ms")
    print(f"{'':18}{'median':>8}{'p99':>8}{'longest':>9}")
    for done in rounds:
        print(f"{done.registry} (full mesh {done.boot_s:.1f} s after exec, {done.missed} missed)")
        rows = [(f"  a host {kind}", values) for kind, values in done.last_ms.items()]
        for name, values in [*rows, ("  any", done.all_ms), ("  client's call", done.put_ms)]:
            print(f"{name:18}{statistics.median(values):8.1f}{p99(values):8.1f}{max(values):9.1f}")
        print(
            f"  CPU for a write: each agent {done.agent_cpu_ms:.2f} (idle {done.idle_cpu_ms:.2f}),"
            f" the member {done.registry_cpu_ms:.1f}; memory of an agent {done.pss_mb:.0f} MB"
        )
    ours = [done for done in rounds if done.registry == "kvstore"]
    if ours:
        every = list(chain(*(done.all_ms for done in ours)))
        cpu = statistics.median(done.agent_cpu_ms for done in ours)
        for name, value, bound in (
            ("median", statistics.median(every), P50_MS),
            ("p99", p99(every), P99_MS),
            ("CPU of an agent for a write", cpu, CPU_MS),
        ):
            print(f"kvstore, {name}: {value:.2f}, wanted {bound:g}: {verdict(value, bound)}")


def verdict(value: float, bound: float) -> str:
    return "met" if value <= bound else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overlay", description=__doc__)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--writes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="every registry once in each")
    parser.add_argument("--registry", choices=SERVERS, action="append", help="default: both")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    if arguments.agents < 2 or arguments.writes < 3 or arguments.rounds < 1:
        parser.error("--agents is 2 or more, --writes 3, --rounds 1")
    if os.geteuid() != 0:
        parser.error("namespaces need root")
    registries = arguments.registry or list(SERVERS)
    for registry in registries:
        if reason := SERVERS[registry].missing():
            parser.error(reason)
    facts = machine.facts(None)
    rounds = []
    for number in range(arguments.rounds):
        # In turn, and each of them first.
        for registry in registries if number % 2 == 0 else reversed(registries):
            print(f"round {number + 1}: {registry}", file=sys.stderr)
            rounds.append(measure(registry, arguments.agents, arguments.writes))
    if arguments.json:
        print(json.dumps({"machine": facts, "rounds": [asdict(done) for done in rounds]}))
    else:
        show(rounds, arguments.agents, arguments.writes)


if __name__ == "__main__":
    main()
