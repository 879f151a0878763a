"""One simulated cluster and its two phases: safety under faults, then liveness when healed."""

from __future__ import annotations

import gc
import random
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from kvstore.raft.config import Config, Restored
from kvstore.raft.messages import Configuration, Role
from kvstore.raft.raft import Raft
from tests.sim import profile as profiles
from tests.sim.clients import Client, History, Keys
from tests.sim.disk import Disk
from tests.sim.invariants import LIVENESS, Invariants, Violation
from tests.sim.machine import Image
from tests.sim.nemesis import Nemesis
from tests.sim.network import Network
from tests.sim.node import Member, Process
from tests.sim.profile import Profile
from tests.sim.world import US, World


@dataclass
class Parts:
    """What a cluster is built from; planted bugs replace one part."""

    core: Callable[[Config, Restored], Raft] = Raft
    disk: type[Disk] = Disk
    process: type[Process] = Process


@dataclass
class Result:
    """What a run came to."""

    seed: int
    profile: Profile
    events: int
    digest: int
    marks: dict[str, int]
    failure: Violation | None = None
    story: str = ""
    """The traceback of an exception that is not a `Violation`, such as an assertion of the core."""
    writes: int = 0
    commands: str = ""
    """What replays the run."""

    def __str__(self) -> str:
        text = f"seed {self.seed}, {self.events:,} events, digest {self.digest:08x}: "
        if self.failure is None:
            return text + "passed"
        return (
            f"{text}FAILED: {self.failure}\n{self.story}profile: {self.profile}\n"
            f"replay: {self.commands}   # commit {commit()}"
        )


@dataclass
class Cluster:
    """Everything of one run."""

    seed: int
    profile_name: str = "swarm"
    parts: Parts = field(default_factory=Parts)
    off: frozenset[str] = frozenset()
    trace: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.profile = profiles.draw(random.Random(f"profile {self.seed}"), self.profile_name)
        profile = self.profile
        self.world = World(self.seed, trace=self.trace)
        self.size = profile.nodes + profile.spares
        self.invariants = Invariants(self.off)
        self.history = History()
        self.network = Network(self.world, self.size, profile.link)
        self.network.lost = self._lost
        self.nemesis = Nemesis(self)
        self.make_core = self.parts.core
        self.make_process = self.parts.process
        self.configuration = Configuration(voters=tuple(range(1, profile.nodes + 1)))
        self.configured_index = 0
        self.leader_hint = 0
        self.members = [self._member(member_id) for member_id in range(self.size + 1)]
        """By id; index 0 stays unused."""
        self.network.receivers = [member.receive for member in self.members]
        for member in self.members[1:]:
            skew = int(profile.tick_ns * profile.tick_skew)
            member.tick_ns = profile.tick_ns + self.world.between(-skew, skew)
            member.start()
        self.keys = Keys(profile.keys, profile.uses_per_key)
        self.clients = [Client(self, number) for number in range(profile.clients)]

    def _member(self, member_id: int) -> Member:
        # Founders start from the same configuration; who joins later knows none and gets it with
        # a snapshot.
        founder = member_id <= self.profile.nodes
        image = Image(configuration=self.configuration if founder else Configuration(voters=()))
        return Member(self, member_id, self.parts.disk(self.world, self.profile.disk, image))

    def _lost(self, source: int, target: int) -> None:
        if self.world.chance(self.profile.report_cuts):
            process = self.members[source].process
            self.world.after(
                1, lambda _: process.unreachable(target) if process and process.alive() else None
            )

    def configuration_applied(self, index: int, configuration: Configuration) -> None:
        """Note the newest configuration that anybody has applied."""
        if index > self.configured_index:
            self.configured_index = index
            self.configuration = configuration

    # --- the phases ---

    def run(self, events: int) -> None:
        """Faults on: nothing wrong may happen."""
        self.nemesis.start()
        self.world.run(self.world.events + events)

    def heal(self) -> list[Member]:
        """End all faults for a quorum and return its members; others may stay dead or half cut off.

        Machines and network become as fast as a healthy installation: ten round trips fit into
        the shortest election timeout.
        """
        world, profile, network = self.world, self.profile, self.network
        self.nemesis.stop()
        network.faultless = True
        network.heal()
        profile.link.delay_ns = 100 * US
        profile.link.jitter_bits = 15
        profile.disk.sync_ns = 100 * US
        profile.disk.jitter_bits = 15
        profile.turn_ns = min(profile.turn_ns, 50 * US)
        profile.apply_ns = min(profile.apply_ns, 50 * US)
        profile.snapshot_chunk_ns = min(profile.snapshot_chunk_ns, 200 * US)
        # A forwarded proposal that was overtaken or lost is answered by the client's deadline.
        profile.patience_ns = 30 * profile.tick_ns * profile.core.get("election_ticks", 10)
        core = self.members[1:]
        if not profile.spares and world.chance(0.5):
            core = world.random.sample(core, self.size // 2 + 1)
            core.sort(key=lambda member: member.id)
        for member in self.members[1:]:
            member.tick_ns = profile.tick_ns
            member.disk.slow_factor = 1
            if member in core:
                member.start()
                member.resume()
            elif world.chance(0.5):
                world.mark("liveness with a dead minority")
                member.crash()
            else:
                # Such a member can send but not receive: TigerBeetle's livelock.
                world.mark("liveness with a deaf minority")
                member.start()
                member.resume()
                network.isolate(member.id, outbound=False)
        world.trace(f"HEALED {[member.id for member in core]}")
        return core

    def converge(self, core: list[Member], events: int) -> None:
        """A quorum is healthy: every open operation is answered, logs agree, new ones succeed."""
        for client in self.clients:
            client.stopped = True
        self._wait(events, self._quiet, lambda: "open operations were never answered")
        for member in core:
            if member.id not in self.configuration.voters:
                continue
            client = self.clients[0]
            client.target = member.id
            wanted = client.succeeded + 3
            client.wake()
            self._wait(
                events,
                lambda client=client, wanted=wanted: client.succeeded >= wanted,  # type: ignore[misc]
                lambda member=member: f"no operation succeeds at member {member.id}",  # type: ignore[misc]
            )
            client.stopped = True
            self._wait(events, self._quiet, lambda: "an operation was never answered")
        self._wait(events, lambda: self._agree(core), lambda: self._state(core))

    def _wait(self, events: int, done: Callable[[], bool], text: Callable[[], str]) -> None:
        world = self.world
        timeout_ns = self.profile.tick_ns * self.profile.core.get("election_ticks", 10)
        budget = world.events + events
        for _ in range(300):
            if done():
                return
            world.run(budget, world.now_ns + timeout_ns)
            if world.events >= budget:
                break
        if not done():
            self.invariants.fail(LIVENESS, f"within 300 election timeouts {text()}")

    def _quiet(self) -> bool:
        return all(client.operation is None for client in self.clients)

    def _agree(self, core: list[Member]) -> bool:
        known = {*self.configuration.voters, *self.configuration.learners}
        ends = []
        leaders = 0
        for member in core:
            if member.id not in known:
                continue
            process = member.process
            assert process is not None
            ends.append((process.log.last, process.log.commit, process.machine.index))
            leaders += process.role is Role.LEADER
        return leaders == 1 and all(end == (ends[0][0],) * 3 for end in ends)

    def _state(self, core: list[Member]) -> str:
        lines = ["the logs do not agree:"]
        for member in core:
            process = member.process
            if process is not None:
                log = process.log
                lines.append(
                    f"    member {member.id}: {process.role.name} in term {process.term}, last "
                    f"{log.last}, commit {log.commit}, applied {process.machine.index}"
                )
        return "\n".join(lines)


def run(
    seed: int,
    profile: str = "swarm",
    events: int = 20_000,
    *,
    parts: Parts | None = None,
    off: frozenset[str] = frozenset(),
    liveness: bool = True,
    trace: Callable[[str], None] | None = None,
) -> Result:
    """Run one seed through both phases and check the clients' history.

    Args:
        seed: Decides everything.
        profile: A name of `tests.sim.profile.PROFILES`.
        events: Length of the first phase. The second ends when the cluster is quiet.
        parts: What to build the cluster from; planted bugs come in here.
        off: Names of invariants that stay silent.
        liveness: Whether the second phase runs.
        trace: Takes every line of a trace.
    """
    # A run makes millions of small objects and frees them all at its end.
    gc.disable()
    try:
        return _run(Cluster(seed, profile, parts or Parts(), off, trace), events, liveness=liveness)
    finally:
        gc.enable()


def _run(cluster: Cluster, events: int, *, liveness: bool) -> Result:
    world = cluster.world
    failure: Violation | None = None
    story = ""
    try:
        cluster.run(events)
        if liveness:
            cluster.converge(cluster.heal(), events_max_of_liveness(events))
        cluster.history.check()
    except Violation as violation:
        failure = violation
    except Exception as error:  # noqa: BLE001 (whatever the core raises is a finding)
        failure = Violation("exception", f"{type(error).__name__}: {error}")
        story = traceback.format_exc()
    if failure is not None and failure.name in cluster.off:
        failure = None
    return Result(
        cluster.seed,
        cluster.profile,
        world.events,
        world.digest,
        world.marks,
        failure,
        story,
        cluster.history.values,
        f"python -m tests.sim --seed {cluster.seed} --profile {cluster.profile_name} "
        f"--events {events}",
    )


def commit() -> str:
    """Return the git commit of the working directory, with a + if it has changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def events_max_of_liveness(events: int) -> int:
    """Return the budget of each wait in the second phase."""
    return 20_000 + events
