"""One run of one cell: traffic before, during and after the fault, then the judgement."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvstore.client import AsyncClient, KvError
from tests.cluster.faults.members import Members, Network
from tests.cluster.faults.namespaces import Namespaces
from tests.cluster.faults.proxies import Proxies
from tests.cluster.faults.traffic import LESSEES, Traffic, kv_of
from tests.validate import final, leases, linearizable, timeline, watches
from tests.validate.history import OK, REFUSED, UNKNOWN, Kv, Violation

ELECTION_S = 1.0
"""The members' election timeout."""

OPERATIONS_MIN = 200
"""Answers before the fault and after it, without which a run is empty and fails."""

PATIENCE_S = 60.0
"""Within which they must come; also how long the members may take to agree in the end. With it the
least throughput is 200 / 60 s, so that a slow machine is no failure."""

PHASE_S = 2.0
"""How long both phases take at least, so that leases end and watchers move in them."""

WRITES_GO_ON = 40
RESUME_S = 40.0
"""Writes that must succeed during a fault that leaves a majority, and how long they may take."""

DIES_S = 15.0
"""How long a member may take to end itself."""

RESTS_MAX = 5
"""How often rest is looked for: a write that its client has given up may still come."""

OVERDUE_S = 30.0
"""A lease may live that long after its time: each change of leader gives it a new life."""


class World:
    """What a fault can lay hands on."""

    def __init__(
        self, members: Members, network: Network, traffic: Traffic, rng: random.Random
    ) -> None:
        self.members = members
        self.network = network
        self.traffic = traffic
        self.rng = rng
        self.story: list[str] = []
        self._started = time.monotonic()

    def tell(self, text: str) -> None:
        """Note what happens, for who reads a failure."""
        self.story.append(f"{time.monotonic() - self._started:7.2f} s  {text}")

    async def do(self, what: str, call: Callable[..., object], *arguments: object) -> None:
        """Tell and do something that blocks."""
        self.tell(what)
        await asyncio.to_thread(call, *arguments)

    async def leader(self) -> int:
        """Return the index of the leader."""
        return await asyncio.to_thread(self.members.leader)

    async def follower(self) -> int:
        """Return one that is not the leader."""
        leader = await self.leader()
        return self.rng.choice([m for m in range(self.members.nodes) if m != leader])

    async def kill(self, index: int) -> None:
        """SIGKILL."""
        await self.do(f"kill member {index}", self.members.kill, index)

    async def restart(self, index: int) -> None:
        """Start a member that is dead."""
        await self.do(f"restart member {index}", self.members.restart, index)

    async def cut(self, sender: int, receiver: int) -> None:
        """Lose what one member sends to another."""
        await self.do(f"cut {sender} -> {receiver}", self.network.cut, sender, receiver)

    async def split(self, *sides: list[int]) -> None:
        """Cut every link between members that are on no side together."""
        for one in range(self.members.nodes):
            for other in range(self.members.nodes):
                together = any(one in side and other in side for side in sides)
                if one != other and not together:
                    await self.cut(one, other)

    async def heal(self) -> None:
        """Let every link work again."""
        await self.do("heal the network", self.network.heal)

    async def failpoint(self, index: int, point: str, action: str | None) -> None:
        """Set a failpoint, or turn it off."""
        await self.do(
            f"member {index}: {point} = {action or 'off'}",
            self.members.failpoint, index, point, action,
        )  # fmt: skip

    async def goes_on(self, writes: int = WRITES_GO_ON) -> None:
        """Demand that writes succeed although the fault is there."""
        started = time.monotonic()
        if not await self.traffic.more(writes, timeout_s=RESUME_S, writes=True):
            raise Violation(f"no {writes} writes in {RESUME_S} s although a majority is there")
        self.tell(f"{writes} writes in {time.monotonic() - started:.2f} s")

    async def deposed(self, leader: int) -> None:
        """Wait until nobody takes that member for the leader, itself included."""
        end = time.monotonic() + RESUME_S
        while await self.leader() == leader:
            if time.monotonic() > end:
                raise Violation(f"member {leader} leads on")
            await asyncio.sleep(0.05)
        self.tell(f"member {leader} leads no more")

    async def dies(self, index: int) -> int:
        """Wait until a member's process has ended by itself; return its exit code."""
        end = time.monotonic() + DIES_S
        while index in self.members.running():
            if time.monotonic() > end:
                raise Violation(f"member {index} should have ended")
            await asyncio.sleep(0.02)
        code = self.members.exits.pop(index)
        self.tell(f"member {index} has ended with {code}")
        return code


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault to run traffic against."""

    name: str
    fault: Callable[[World], Awaitable[None]]
    nodes: int = 3
    flags: tuple[str, ...] = ()
    needs_root: bool = False
    small_disk: bool = False
    lessees: int = LESSEES
    wrappers: dict[int, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What a run showed."""

    cell: str
    nodes: int
    seed: int
    network: str
    failure: str = ""
    before: float = 0.0
    """Answered operations per second."""
    during: float = 0.0
    after: float = 0.0
    gap_s: float = 0.0
    """The longest time without an acknowledged write."""
    elections: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    events: int = 0
    leases_ended: int = 0
    compacted: int = 0
    """How often a watcher was told that compaction had overtaken it."""
    searched: int = 0
    story: list[str] = field(default_factory=list)

    HEAD = (
        f"{'cell':26} {'n':>1} {'net':5} {'before/s':>8} {'during/s':>8} {'after/s':>8} "
        f"{'gap s':>6} {'terms':>5} {'ok':>5} {'unkn':>4} {'refu':>4} {'events':>6} {'leases':>6} "
        f"{'cmpt':>4} "
        f"{'s':>5}"
    )

    def __str__(self) -> str:
        count = self.outcomes.get
        return (
            f"{self.cell:26} {self.nodes} {self.network:5} {self.before:8.0f} {self.during:8.0f} "
            f"{self.after:8.0f} {self.gap_s:6.2f} {self.elections:5} {count(OK, 0):5} "
            f"{count(UNKNOWN, 0):4} {count(REFUSED, 0):4} {self.events:6} {self.leases_ended:6} "
            f"{self.compacted:4} "
            f"{self.seconds:5.1f}" + (f"  FAILED {self.failure}" if self.failure else "")
        )

    def replay(self) -> str:
        """Return the command that runs the same again."""
        network = "" if self.network == Namespaces.kind else f" --network {self.network}"
        return f"python -m tests.cluster.faults --cell {self.cell} --seed {self.seed}{network}"


def run_cell(
    runner: asyncio.Runner,
    cell: Cell,
    seed: int,
    network_kind: str,
    *,
    logs: Path | None = None,
    bug: str = "",
) -> Report:
    """Run one cell in the namespaces of this process and judge it.

    Args:
        runner: Of all runs of this process: gRPC takes badly to a second loop.
        cell: What to do.
        seed: Of everything that is drawn; times are the machine's.
        network_kind: "netns" or "proxy".
        logs: Where a failed run leaves the members' logs and its story.
        bug: What to plant in the members; the run should fail.
    """
    report = Report(cell.name, cell.nodes, seed, network_kind)
    started = time.monotonic()
    network: Network = (
        Namespaces(cell.nodes) if network_kind == Namespaces.kind else Proxies(cell.nodes)
    )
    network.start()
    members = Members(
        cell.nodes,
        network,
        flags=cell.flags,
        wrappers=cell.wrappers,
        small_disk=cell.small_disk,
        bug=bug,
    )
    try:
        with members:
            runner.run(_run(cell, members, network, report))
    except Exception as error:  # noqa: BLE001 (whatever it is, the run has failed)
        report.failure = f"{type(error).__name__}: {error}"
        if logs is not None:
            _leave(members, report, logs)
    finally:
        network.stop()
        shutil.rmtree(members.folder, ignore_errors=True)
    report.seconds = time.monotonic() - started
    return report


def _leave(members: Members, report: Report, logs: Path) -> None:
    target = logs / f"{report.cell}-{report.seed}"
    members.keep(target)
    text = [str(report), report.replay(), *report.story]
    (target / "story.txt").write_text("\n".join(text) + "\n")


async def _run(cell: Cell, members: Members, network: Network, report: Report) -> None:
    traffic = Traffic(members.endpoints, report.seed, cell.lessees)
    world = World(members, network, traffic, random.Random(report.seed))
    report.story = world.story
    traffic.start()
    try:
        report.before = await _phase(traffic, "before")
        async with AsyncClient(members.endpoints) as client:
            term = (await client.status()).raft_term
            fault_at, answered = time.monotonic(), len(traffic.answered)
            await cell.fault(world)
            world.tell("all is well again")
            await _all_well(world)
            over_at = time.monotonic()
            report.during = (len(traffic.answered) - answered) / max(0.001, over_at - fault_at)
            report.after = await _phase(traffic, "after")
            world.tell("the traffic ends")
            await traffic.stop()
            report.elections = (await client.status()).raft_term - term
            report.gap_s = _longest_gap(traffic.written, fault_at)
            world.tell("all has stopped")
            await _judge(members, traffic, client, report)
            world.tell("judged")
    finally:
        await traffic.close()


async def _phase(traffic: Traffic, name: str) -> float:
    """Demand the least traffic; return answers per second."""
    started, answered = time.monotonic(), len(traffic.answered)
    await asyncio.sleep(PHASE_S)
    missing = OPERATIONS_MIN - (len(traffic.answered) - answered)
    if not await traffic.more(missing, timeout_s=PATIENCE_S):
        raise Violation(
            f"{len(traffic.answered) - answered} operations {name} the fault, not {OPERATIONS_MIN}"
        )
    return (len(traffic.answered) - answered) / (time.monotonic() - started)


async def _all_well(world: World) -> None:
    """Mend what the fault has left; every member must serve again."""
    members = world.members
    await asyncio.to_thread(world.network.heal)
    if world.network.cuts and not world.network.held:
        raise Violation("nothing was lost at the links that were cut")
    members.running()
    if members.exits:
        raise Violation(f"members ended that should not have: {members.exits}")
    await asyncio.to_thread(members.heal)


def _longest_gap(written: list[float], since: float) -> float:
    times = [at for at in written if at >= since]
    return max((b - a for a, b in zip([since, *times], times, strict=False)), default=0.0)


async def _judge(members: Members, traffic: Traffic, client: AsyncClient, report: Report) -> None:
    """Let everything come to rest, look at every member, and ask all judges."""
    history = traffic.history
    report.outcomes = traffic.outcomes
    for _ in range(RESTS_MAX):
        try:
            async with asyncio.timeout(PATIENCE_S):
                await _leases_gone(client)
                last = await _agreed(members, client)
                await _all_heard(traffic, last)
        except TimeoutError:
            raise Violation("leases, members or watchers did not come to rest") from None
        contents, hashes = await _look(members)
        if {revision for revision, _ in contents.values()} == {last}:
            break
    now_s = time.monotonic()
    lines = timeline.build(history)
    linearizable.check(history, lines)
    report.searched = linearizable.check_registers(history, b"r/")
    watches.check(history, lines, until=last)
    report.leases_ended = leases.check(history, lines, now_s=now_s, overdue_s=OVERDUE_S)
    final.check(contents, hashes, lines)
    report.events = sum(len(b.events) for watch in history.watches for b in watch.batches)
    report.compacted = sum(len(watch.compacted) for watch in history.watches)
    if not report.searched or not report.events or not history.leases:
        raise Violation("a kind of traffic is missing, so its judge saw nothing")


async def _look(
    members: Members,
) -> tuple[dict[str, tuple[int, list[Kv]]], dict[str, tuple[int, int, int]]]:
    """Return what each member holds, and its hash."""
    contents: dict[str, tuple[int, list[Kv]]] = {}
    hashes: dict[str, tuple[int, int, int]] = {}
    for endpoint in members.endpoints:
        async with AsyncClient([endpoint]) as one:
            found = await one.range(b"\0", b"\0")
            contents[endpoint] = (found.revision, [kv_of(kv) for kv in found.kvs])
            answer = await one.hash_kv(endpoint)
            hashes[endpoint] = (answer.hash, answer.compact_revision, answer.hash_revision)
    return contents, hashes


async def _leases_gone(client: AsyncClient) -> None:
    while True:
        try:
            if not (await client.range(b"l/", b"l0")).kvs:
                return
        except KvError:
            pass  # not for long
        await asyncio.sleep(0.1)


async def _agreed(members: Members, client: AsyncClient) -> int:
    """Wait until every member has applied the same; return the revision."""
    while True:
        states = [await client.status(endpoint) for endpoint in members.endpoints]
        hashes = [await client.hash_kv(endpoint) for endpoint in members.endpoints]
        revisions = {state.revision for state in states}
        # A compaction is no revision: wait for that as well.
        if len(revisions) == 1 and len({answer.compact_revision for answer in hashes}) == 1:
            return revisions.pop()
        await asyncio.sleep(0.05)


async def _all_heard(traffic: Traffic, last: int) -> None:
    """Wait until every watcher is past the last revision: it hears of that by progress marks."""
    library = traffic.history.watches[-1]
    while True:
        traffic.check()
        newest = max(
            (batch.events[-1].kv.mod for batch in library.batches if batch.events), default=0
        )
        wanted = max(
            (
                w.kv.mod
                for watch in traffic.history.watches[1:4]
                for b in watch.batches
                for w in b.events
            ),
            default=0,
        )
        if all(watching.next > last for watching in traffic.watching) and newest >= wanted:
            return
        await asyncio.sleep(0.05)
