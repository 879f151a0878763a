"""`python -m bench.overlay`: from a write in the registry to the last of a hundred hosts' kernels.

Needs root. Every host is a network namespace with a real `netplane agent`; the registry is one
member on a host of its own, kvstore and etcd in turn. A write is a lease of a host that only is
registered: one comes, one gets another MAC and address, one goes, and so on. The time is from
before the client's call to when the last kernel has told an independent listener of its route (or
neighbour, where only the MAC is another). CPU is that of all agents, with the kernel's work for
their calls and what they do without any write.

With --bare the same follows with agents of `bench.bare_agent`, the least that one in Python can
be: how many times as much ours take depends little on the machine, milliseconds do.
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
from tests.net.handmade import DEVICE, mac_of, make_device, subnet_of
from tests.net.overlay import SERVERS, AgentProcess, until
from tests.net.writer import Peer, Write, Writer, peers

NETWORK = IPv4Network("10.128.0.0/9")
CONFIG = '{"Network":"10.128.0.0/9","SubnetMax":"10.191.255.0","Backend":{"Type":"vxlan"}}'
MESH_S = 120.0
IDLE_S = 10.0
"""As long as an agent's timers take."""
REST_S = 5.0
"""What has not come so long after the last write will not come."""
WARM_UP = 9
EVERY_MS = 100
"""What is wanted is wanted of that many milliseconds between writes."""
KINDS = ("comes", "moves", "goes")
WANTED = {"median": 60.0, "p99": 120.0, "CPU of an agent for a write": 1.2}
"""Milliseconds."""


@dataclass
class Round:
    """What one registry and its agents came to."""

    registry: str
    bare: bool
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


class BareAgent(AgentProcess):
    """The least that an agent can be, with a device made for it."""

    def start(self) -> None:
        """Start it without waiting."""
        make_device(self.host, subnet_of(self.host), mac_of(self.host))
        super().start()

    def _arguments(self) -> list[str]:
        own = Peer(subnet_of(self.host), self.host.address, mac_of(self.host))
        return ["-m", "bench.bare_agent", self._endpoints[0], own.key, own.value, DEVICE]


def measure(registry: str, agents: int, writes: int, every_s: float, *, bare: bool) -> Round:
    """Start everything, write, listen, and end everything."""
    plan = planned(WARM_UP + writes)
    process = BareAgent if bare else AgentProcess
    flags = ("--log-level", "warn")
    with (
        Fleet(agents, server=registry, network=CONFIG, flags=flags, process=process) as fleet,
        Crowd([agent.host for agent in fleet.agents]) as crowd,
    ):
        begun_s = fleet.boot()
        until(lambda: crowd.is_mesh, MESH_S, "every host has a route to each")
        done = Round(registry, bare, time.monotonic() - begun_s)
        with Writer(fleet.apart.namespace, fleet.registry.endpoints) as writer:
            before_s = fleet.cpu_s()
            time.sleep(IDLE_S)
            done.idle_cpu_ms = 1000 * (fleet.cpu_s() - before_s) / agents / IDLE_S * every_s
            writer.schedule([write for _, write, _ in plan[:WARM_UP]], every_s)
            plan = plan[WARM_UP:]
            member = fleet.registry.pid(0)
            before_s, member_s = fleet.cpu_s(), cpu_s(member)
            times = writer.schedule([write for _, write, _ in plan], every_s)
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


def titled(registry: str, *, bare: bool) -> str:
    return f"{registry}, bare agents" if bare else registry


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]


def show(rounds: list[Round], agents: int, writes: int, every_ms: int) -> None:
    print(f"{agents} agents, {writes} writes, one each {every_ms} ms; ms")
    print(f"{'':18}{'median':>8}{'p99':>8}{'longest':>9}")
    for done in rounds:
        title = titled(done.registry, bare=done.bare)
        print(f"{title} (full mesh {done.boot_s:.1f} s after exec, {done.missed} missed)")
        rows = [(f"  a host {kind}", values) for kind, values in done.last_ms.items()]
        for name, values in [*rows, ("  any", done.all_ms), ("  client's call", done.put_ms)]:
            print(f"{name:18}{statistics.median(values):8.1f}{p99(values):8.1f}{max(values):9.1f}")
        print(
            f"  CPU for a write: each agent {done.agent_cpu_ms:.2f} (idle {done.idle_cpu_ms:.2f}),"
            f" the member {done.registry_cpu_ms:.1f}; memory of an agent {done.pss_mb:.0f} MB"
        )
    ours, bare = (
        [done for done in rounds if done.registry == "kvstore" and done.bare is is_bare]
        for is_bare in (False, True)
    )
    if ours:
        least = summary(bare) if bare else {}
        for name, value in summary(ours).items():
            bound = WANTED[name]
            line = f"kvstore, {name}: {value:.2f}, wanted {bound:g}: {verdict(value, bound)}"
            if least:
                line += f"; bare {least[name]:.2f}, {value / least[name]:.2f} times as much"
            print(line)


def summary(rounds: list[Round]) -> dict[str, float]:
    """Return what is wanted of some rounds."""
    every = list(chain(*(done.all_ms for done in rounds)))
    cpu_ms = statistics.median(done.agent_cpu_ms for done in rounds)
    return dict(zip(WANTED, (statistics.median(every), p99(every), cpu_ms), strict=True))


def verdict(value: float, bound: float) -> str:
    return "met" if value <= bound else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overlay", description=__doc__)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--writes", type=int, default=200)
    parser.add_argument("--every-ms", type=int, default=EVERY_MS, help="between two writes")
    parser.add_argument("--rounds", type=int, default=1, help="every registry once in each")
    parser.add_argument("--bare", action="store_true", help="with bare agents as well")
    parser.add_argument("--registry", choices=SERVERS, action="append", help="default: both")
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    agents, writes, every_ms = arguments.agents, arguments.writes, arguments.every_ms
    if agents < 2 or writes < 3 or every_ms < 1 or arguments.rounds < 1:
        parser.error("--agents is 2 or more, --writes 3, --every-ms 1, --rounds 1")
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
            for bare in (False, True)[: 1 + arguments.bare]:
                print(f"round {number + 1}: {titled(registry, bare=bare)}", file=sys.stderr)
                rounds.append(measure(registry, agents, writes, every_ms / 1000, bare=bare))
    if arguments.json:
        print(json.dumps({"machine": facts, "rounds": [asdict(done) for done in rounds]}))
    else:
        show(rounds, agents, writes, every_ms)


if __name__ == "__main__":
    main()
