"""Agents that race for subnets in the simulated store: members die, answers are lost, agents too.

Their managers, the adapter and the client library are the product's own. What they did is judged
by the simulator's book of facts, which every entry of the log goes into.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from kvstore.client import AsyncClient, KvError
from netplane.subnet.errors import SubnetError, SubnetMisfitError, SubnetTakenError
from netplane.subnet.etcd import EtcdRegistry
from netplane.subnet.family import Address, Pair
from netplane.subnet.lease import View, decode_value, parse_name
from netplane.subnet.manager import Standing, SubnetManager
from netplane.subnet.plan import Identity, Wish
from netplane.subnet.records import Layout
from netplane.subnet.registry import Absent, Attempt, Outcome, RegistryError, Unchanged
from tests.netplane.subnet.stores import address6, vxlan, vxlan6
from tests.sim.full import profile as profiles
from tests.sim.full.cluster import FullCluster
from tests.sim.full.library import drawn_from, new_client
from tests.sim.invariants import Violation
from tests.sim.world import MS, SECOND

LAYOUT = Layout("/net")
PROFILE = "client"
AGENTS = 9
CONFIGS = (
    b'{"Network":"10.5.0.0/24","SubnetLen":28,"Backend":{"Type":"vxlan"}}',  # 15 subnets
    b'{"Network":"10.5.0.0/24","SubnetLen":29,"Backend":{"Type":"vxlan"}}',
)
BOTH = (
    (
        b'{"EnableIPv6":true,"Network":"10.5.0.0/24","SubnetLen":28,"IPv6Network":"fd00::/120",'
        b'"IPv6SubnetLen":124,"Backend":{"Type":"vxlan"}}'
    ),  # 15 subnets of each family
    (
        b'{"EnableIPv6":true,"Network":"10.5.0.0/24","SubnetLen":29,"IPv6Network":"fd00::/120",'
        b'"IPv6SubnetLen":125,"Backend":{"Type":"vxlan"}}'
    ),
)
MIXED = (BOTH[0], CONFIGS[0])
"""A network that gets IPv6 and loses it: every host has another key for the same IPv4 subnet then.

Agents of the one and of the other do not use each other's leases, so these never settle.
"""
STOLEN = "nobody takes a subnet that another host has"
OVERLAP = "no two subnets overlap"
ONE = "a host has one subnet"
BELIEF = "a host that says it has a subnet has it"
VIEW = "at the end everybody sees everybody"


class Careless(EtcdRegistry):
    """Leaves out of the transaction that nobody has the subnet, and what it went by."""

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        def less(attempt: Attempt) -> Attempt:
            kept = tuple(
                one
                for one in attempt.conditions
                if isinstance(one, Unchanged) and b"/subnets/" not in one.key
            )
            return Attempt(kept, attempt.writes)

        return await super().attempt(tuple(less(one) for one in attempts), otherwise)


class Forgetful(EtcdRegistry):
    """Leaves out only what makes sure that all go by one configuration."""

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        def less(attempt: Attempt) -> Attempt:
            kept = tuple(
                one
                for one in attempt.conditions
                if isinstance(one, Absent) or one.key != LAYOUT.config
            )
            return Attempt(kept, attempt.writes)

        return await super().attempt(tuple(less(one) for one in attempts), otherwise)


class Unmarked(EtcdRegistry):
    """Leaves out only what makes sure that no two take one IPv6 subnet beside different others."""

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        def less(attempt: Attempt) -> Attempt:
            kept = tuple(
                one
                for one in attempt.conditions
                if isinstance(one, Absent) or b"/netplane/ipv6/" not in one.key
            )
            return Attempt(kept, attempt.writes)

        return await super().attempt(tuple(less(one) for one in attempts), otherwise)


class Agent:
    """One host: its agent runs, is killed, and starts again with what the host has saved."""

    def __init__(self, run: Run, number: int) -> None:
        self.run = run
        self.number = number
        self.world = run.cluster.world
        self.manager: SubnetManager | None = None
        self.view: View | None = None
        self._starts = 0
        self._session = ""
        self._pair: Pair | None = None
        self._begin(None)

    def _begin(self, _: object) -> None:
        self.loop, client = new_client(self.run.cluster, self.number)
        self.loop.waited_for |= {"_watch"}
        self._starts += 1
        session = f"{self.number}.{self._starts}"
        who = Identity(
            f"h{self.number}", IPv4Address(f"192.0.2.{self.number}"), session, "boot",
            self._session, address6(self.number),
        )  # fmt: skip
        self._session = session
        keep = self._pair is not None and self.world.chance(0.5)
        self.loop.start(self._live(client, who, Wish.of(self._pair, keep=keep)))
        self.world.after(self.world.between(SECOND, 20 * SECOND), self._kill)

    async def _live(self, client: AsyncClient, who: Identity, wish: Wish) -> None:
        while True:
            manager = self.manager = SubnetManager(
                self.run.registry(client),
                LAYOUT,
                who,
                wish,
                draw=random.Random(self.world.random.getrandbits(32)),
                life_ttl_s=2,
            )
            try:
                await manager.open()
                self.view = await manager.acquire(vxlan(self.number), vxlan6(self.number))
                break
            except (SubnetTakenError, SubnetMisfitError) as error:
                self.world.mark(f"agent: {type(error).__name__}")
                wish = Wish()  # its containers are removed
            except (RegistryError, SubnetError) as error:
                self.world.mark(f"agent: {type(error).__name__}")
                await asyncio.sleep(0.2)
        self._pair = manager._claimer.pair
        self.world.mark("agent: has a subnet")
        self.loop.create_task(self._look(manager))
        await manager.run()

    async def _look(self, manager: SubnetManager) -> None:
        while True:
            assert self.view is not None
            self.view = await manager.next_view(self.view)

    def _kill(self, _: object) -> None:
        if self.run.healed:
            return
        self.world.mark("agent: killed")
        self.world.events += 1
        self.loop.kill()
        self.manager = None
        self.world.after(self.world.between(1, 3 * SECOND), self._begin)

    def pair(self) -> Pair | None:
        """Return what this host says it has."""
        manager = self.manager
        if manager is None or manager._standing is not Standing.HELD:
            return None
        return manager._claimer.pair


@dataclass
class Result:
    """What a run came to."""

    seed: int
    events: int
    marks: dict[str, int]
    failure: Violation | None
    story: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.events:,} events: {self.failure}\n{self.story}"


class Run:
    """A cluster, an operator who changes the configuration, and agents."""

    def __init__(
        self,
        cluster: FullCluster,
        registry: Callable[..., EtcdRegistry],
        configs: tuple[bytes, ...],
    ) -> None:
        self.cluster = cluster
        self.configs = configs
        self.registry = registry
        self.healed = False
        # The agents are what this is about; the others keep the members busy.
        cluster.profile.think_ns = 200 * MS
        loop, self._client = new_client(cluster, 0)
        loop.start(self._configure())
        self.agents = [Agent(self, number) for number in range(1, AGENTS + 1)]

    async def _configure(self) -> None:
        """Write the configuration, and now and then another one."""
        number = 0
        world = self.cluster.world
        pause_ms = world.random.choice((20, 200, 10_000))
        # Without any there is no network to settle, and faults may last as long as this has tried.
        while not (self.healed and number):
            try:
                await self._client.put(LAYOUT.config, self.configs[number % 2])
                number += 1
                await asyncio.sleep(world.between(1, pause_ms) / 1000)
            except KvError:
                await asyncio.sleep(0.2)

    def check(self) -> None:
        """Hold the whole history of all subnets against what may be."""
        cluster = self.cluster
        story: list[tuple[int, bytes, bytes | None]] = []
        for key, history in cluster.truth.history.items():
            if key.startswith(LAYOUT.subnets):
                story += [(at, key, None if kv is None else kv.value) for at, kv in history]
        # Within one revision what is given back goes first.
        story.sort(key=lambda one: (one[0], one[2] is not None))
        owners: dict[Pair, Address] = {}
        for revision, key, value in story:
            subnet = parse_name(key.removeprefix(LAYOUT.subnets))
            if value is None:
                del owners[subnet]
                continue
            owner = decode_value(value, *subnet).public_ip
            before = owners.get(subnet, owner)
            if before != owner:
                cluster.invariants.fail(
                    STOLEN, f"revision {revision}: {subnet} of {before} goes to {owner}"
                )
            for other, whose in owners.items():
                if other != subnet and other.overlaps(subnet):
                    cluster.invariants.fail(
                        OVERLAP, f"revision {revision}: {subnet} of {owner}, {other} of {whose}"
                    )
                if other != subnet and whose == owner:
                    cluster.invariants.fail(
                        ONE, f"revision {revision}: {owner} has {other} and takes {subnet}"
                    )
            owners[subnet] = owner
        for agent in self.agents:
            subnet_said = agent.pair()
            owner_ip = IPv4Address(f"192.0.2.{agent.number}")
            if subnet_said is not None and owners.get(subnet_said) != owner_ip:
                cluster.invariants.fail(
                    BELIEF, f"{owner_ip} says {subnet_said}; it is of {owners.get(subnet_said)}"
                )

    def settle(self) -> None:
        """After all faults every host has a subnet and sees all others."""
        self.healed = True
        self.cluster.heal()
        self.cluster._wait(200_000, self._is_settled, self._unsettled)
        self.check()

    def _is_settled(self) -> bool:
        pairs = {agent.number: agent.pair() for agent in self.agents}
        return all(
            agent.view is not None
            and {lease.pair for lease in agent.view.peers.values()}
            == {pair for number, pair in pairs.items() if number != agent.number}
            for agent in self.agents
        )

    def _unsettled(self) -> str:
        lines = [VIEW]
        for agent in self.agents:
            manager = agent.manager
            status = None if manager is None else (manager._standing, manager._detail)
            peers = len(agent.view.peers) if agent.view is not None else 0
            quarantined = agent.view.quarantined if agent.view is not None else {}
            lines.append(f"    h{agent.number}: {status}, {peers} peers, {quarantined}")
        return "\n".join(lines)


def run(
    seed: int,
    events: int,
    registry: Callable[..., EtcdRegistry] = EtcdRegistry,
    *,
    settle: bool = True,
    configs: tuple[bytes, ...] = CONFIGS,
) -> Result:
    """Run one seed."""
    gc.disable()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    failure, story = None, ""
    try:
        drawn = profiles.draw(random.Random(f"full {seed}"), PROFILE)
        with profiles.turned(drawn.knobs):
            cluster = FullCluster(seed, PROFILE)
            with drawn_from(cluster.world.random):
                try:
                    race = Run(cluster, registry, configs)
                    cluster.run(events)
                    race.check()
                    if settle:
                        race.settle()
                except Violation as violation:
                    failure = violation
                except Exception as error:  # noqa: BLE001 (whatever the product raises)
                    failure = Violation("exception", f"{type(error).__name__}: {error}")
                    story = traceback.format_exc()
                failure = failure or cluster.invariants.first
                cluster.close()
        return Result(seed, cluster.world.events, cluster.world.marks, failure, story)
    finally:
        logging.disable(level)
        gc.enable()
