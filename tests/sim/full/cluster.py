"""One simulated cluster of whole members and its two phases: safety under faults, then liveness."""

from __future__ import annotations

import gc
import logging
import os
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

from kvstore.apply import ops
from kvstore.apply.applier import Applied
from kvstore.mvcc.results import DeleteResult, PutResult, RangeResult, TxnResult
from kvstore.mvcc.store import Store
from kvstore.pb import rpc_pb2
from kvstore.raft.messages import Configuration, Entry, Role
from kvstore.server.config import ServerConfig
from kvstore.server.replica import Replica
from kvstore.server.startup import RemovedError, StartError
from tests.sim.cluster import commit
from tests.sim.full import profile as profiles
from tests.sim.full.clients import Judge, KvClient
from tests.sim.full.disk import SimBackend
from tests.sim.full.lessees import Lessee
from tests.sim.full.library import LibraryClient, LibraryLessee, LibraryWatch, drawn_from
from tests.sim.full.lmdb_files import StoreFiles
from tests.sim.full.loop import SimLoop, forget
from tests.sim.full.machine import (
    REFUSED_START,
    Host,
    Process,
    SimDiskThread,
    SimMember,
    WatchedRaft,
)
from tests.sim.full.members import Listing, MemberBook
from tests.sim.full.nemesis import FullNemesis
from tests.sim.full.operators import Operator, check_refused
from tests.sim.full.profile import FullProfile
from tests.sim.full.truth import Truth
from tests.sim.full.watchers import WatchClient
from tests.sim.invariants import LIVENESS, REFUSED, Invariants, Violation
from tests.sim.network import Network
from tests.sim.world import MS, SECOND, US, World

SAME_HASH = "equal HashKV at equal applied index"
MEMORY_FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""For files whose syncs shall cost nothing: what a crash leaves of them is simulated."""

read_events = Store.events_between
"""The product's own: a bug planted in what watchers read is theirs to find."""

JOIN_REFUSED = {
    "has run before": "empty disk refused",
    "needs the members of the running cluster": "empty disk refused",
    "no member of cluster": "joined before it was added",
    "--initial-cluster differs": "joined with an old list",
    "could tell who": "nobody describes the cluster",
    "disk is full": "start refused, disk full or failed",
    "Input/output error": "start refused, disk full or failed",
}
"""Reasons why a member without a store may refuse to start, while members change."""

REOPENED = "a store holds what its applied index says"


class Book(Invariants):
    """The core's invariants; remembers the first finding, should the product swallow it."""

    first: Violation | None = None

    def fail(self, name: str, text: str) -> None:
        try:
            super().fail(name, text)
        except Violation as violation:
            if self.first is None:
                self.first = violation
            raise


@dataclass
class FullParts:
    """What a cluster is built from; planted bugs replace one part."""

    core: type[WatchedRaft] = WatchedRaft
    backend: type[SimBackend] = SimBackend
    process: type[Process] = Process
    member: type[SimMember] = SimMember
    thread: type[SimDiskThread] = SimDiskThread


@dataclass
class FullResult:
    """What a run came to."""

    seed: int
    profile: FullProfile
    events: int
    digest: int
    marks: dict[str, int]
    failure: Violation | None
    story: str
    commands: str
    virtual_s: float

    def __str__(self) -> str:
        text = (
            f"seed {self.seed}, {self.events:,} events, {self.virtual_s:.2f} s of virtual time, "
            f"digest {self.digest:08x}: "
        )
        if self.failure is None:
            return text + "passed"
        return (
            f"{text}FAILED: {self.failure}\n{self.story}profile: {self.profile}\n"
            f"replay: {self.commands}   # commit {commit()}"
        )


class FullCluster:
    """Everything of one run."""

    def __init__(
        self,
        seed: int,
        profile_name: str = "swarm",
        parts: FullParts | None = None,
        off: frozenset[str] = frozenset(),
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.profile_name = profile_name
        self.parts = parts or FullParts()
        self.off = off
        self.profile = profiles.draw(random.Random(f"full {seed}"), profile_name)
        profile = self.profile
        self.world = World(seed, trace=trace)
        self.size = profile.nodes + profile.machines
        self.invariants = Book(off)
        self.truth = Truth(self.invariants)
        self.judge = Judge(self)
        self.network = Network(self.world, self.size, profile.link)
        self.network.lost = self._lost
        self.nemesis = FullNemesis(self)  # type: ignore[arg-type]
        self.configs = self._configs()
        self.book = MemberBook(self.invariants, self._founders())
        self.hosts = [Host(self, number) for number in range(1, self.size + 1)]
        self.members = [None, *self.hosts]
        """As `Nemesis` knows them, by number; index 0 stays unused."""
        self.by_member_id = {host.member_id: host for host in self.hosts if host.member_id}
        self.by_address = {host.addresses[0]: host for host in self.hosts}
        self.addresses = 0
        self.refused_urls: dict[str, None] = {}
        """Of additions and updates that were certainly not applied."""
        self.network.receivers = [lambda _: None, *(host.receive for host in self.hosts)]
        self.roles: dict[Process, tuple[int, Role, int]] = {}
        self.leader_hint = 0
        self.floor = 1
        self.compact_floor = -1
        self.values = 0
        self.lease_ids = 0x1000
        self.refused_values: dict[bytes, None] = {}
        """Values of operations that were certainly not applied."""
        self.hashes: dict[int, tuple[Any, ...]] = {}
        self.loops: list[SimLoop] = []
        self._folder = TemporaryDirectory(dir=MEMORY_FOLDER) if profile.lmdb else None
        self.store_files = StoreFiles(self._folder.name) if self._folder is not None else None
        for host in self.hosts:
            host.start()
        kinds: Any = (KvClient, WatchClient, Lessee)
        if profile.library:
            kinds = (LibraryClient, LibraryWatch, LibraryLessee)
        self.clients: list[KvClient] = [kinds[0](self, n) for n in range(profile.clients)]
        self.watchers: list[WatchClient] = [kinds[1](self, n) for n in range(profile.watch_streams)]
        self.lessees: list[Lessee] = [kinds[2](self, n) for n in range(profile.lease_clients)]
        self.operators = [Operator(self, number) for number in range(profile.operators)]

    def _configs(self) -> dict[int, ServerConfig]:
        numbers = range(1, self.profile.nodes + 1)
        cluster = ",".join(f"m{n}=http://10.0.0.{n}:2380" for n in numbers)
        return {
            n: self.config(n, listen_peer_urls=f"http://10.0.0.{n}:2380", initial_cluster=cluster)
            for n in numbers
        }

    def config(self, number: int, **settings: Any) -> ServerConfig:
        """Return the flags of a member on a machine."""
        profile = self.profile
        return ServerConfig(
            name=f"m{number}",
            data_dir="data",
            listen_client_urls=f"http://10.0.0.{number}:2379",
            heartbeat_interval=profile.heartbeat_ms,
            election_timeout=profile.election_ms,
            snapshot_count=profile.snapshot_count,
            strict_reconfig_check=profile.strict,
            **settings,
        ).check()

    def _founders(self) -> Listing:
        members = [config.member for config in self.configs.values()]
        return tuple(sorted((one.id, one.peer_urls, False) for one in members))

    def close(self) -> None:
        """Leave nothing behind."""
        for host in self.hosts:
            host.disk.life += 1
        for loop in self.loops:
            loop.kill()
            forget(loop)
        if self._folder is not None and self.store_files is not None:
            self.store_files.close()
            self._folder.cleanup()

    # what the machines tell

    def applied(
        self, process: Process, replica: Replica, entry: Entry, previous: int, applied: Applied
    ) -> None:
        """Hold an applied entry against what the others made of it."""
        invariants, index = self.invariants, entry.index
        store = replica.store
        first = index == len(invariants.applied_data)
        digest = crc32(
            repr([fingerprint(result) for result in applied.results]).encode(),
            store.revision * 31 + store.compacted,
        )
        invariants.applied(process.id, entry, previous, digest)
        if first:
            if entry.data:
                origin, incarnation, first_sequence, _ = ops.decode_batch(entry.data)
                invariants.first_applied((origin, incarnation, first_sequence), index)
            # Without watchers the store tells of no puts: what it stored says as much.
            since = self.truth.revision + 1
            events = (
                store._events
                if store.watched
                else read_events(store, since, store.revision, 1 << 30)[0]
            )
            self.truth.entry(index, entry.term, entry.data, events, self.world.now_ns)
        if index % self.profile.hash_every == 0:
            self.compare(process, replica, index)
        process.point("applied")

    def changed(
        self, process: Process, entry: Entry, previous: int, configuration: Configuration | None
    ) -> None:
        """Hold an applied membership change against what the others made of it."""
        invariants, index = self.invariants, entry.index
        first = index == len(invariants.applied_data)
        invariants.applied(process.id, entry, previous, 0)
        if first:
            self.truth.entry(index, entry.term, b"", [], self.world.now_ns)
        self.book.changed(process, entry, configuration)
        self.world.mark("membership changed")
        process.point("applied")

    def compare(self, process: Process, replica: Replica, index: int) -> None:
        """Hold a whole state against those of the others at the same index."""
        state = state_of(replica)
        known = self.hashes.setdefault(index, state)
        if known != state:
            self.invariants.fail(
                SAME_HASH, f"member {process.id} has {state} at index {index}, others {known}"
            )
        self.world.mark("states compared")

    def opened(self, process: Process, replica: Replica) -> None:
        """Check what a process found in its store, or what a snapshot brought."""
        index, store = replica.applied.index, replica.store
        self.book.opened(process, index)
        wanted = self.truth.revisions_at.get(index, 1)
        if store.revision != wanted:
            self.invariants.fail(
                REOPENED,
                f"member {process.id} is at index {index} with revision {store.revision}, "
                f"not {wanted}",
            )
        if index in self.hashes:
            self.compare(process, replica, index)
        found = store.range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")).kvs
        kept = [kv.message().SerializeToString() for kv in self.truth.range(b"\0", b"\0", wanted)]
        if found != kept:
            self.invariants.fail(
                REOPENED, f"member {process.id} at index {index} holds {found} and not {kept}"
            )
        if index:
            self.world.mark("restart with a store")

    def refused_to_start(self, process: Process, error: StartError) -> None:
        """A process does not come up: only a damaged or full disk is a reason."""
        host, world = process.host, self.world
        if isinstance(error, RemovedError):
            self.book.stopped(process, error)
            process.end(f"was removed: {error}")
        if self.operators and not hasattr(process.product, "replica"):
            self._cannot_join(process, str(error))
        if host.disk.rotten:
            world.mark("rotten log refused")
            host.broken = True
            process.end(f"refuses to start: {error}")
        if host.disk.full or isinstance(error.__cause__, OSError):
            world.mark("start refused, disk full or failed")
            self.nemesis.restart_later(host)  # type: ignore[arg-type]
            process.end(f"cannot start: {error}")
        self.invariants.fail(REFUSED_START, f"member {host.id}: {error}")

    def _cannot_join(self, process: Process, text: str) -> None:
        """A member was told of another cluster than its flags say; operators start it again."""
        for part, mark in JOIN_REFUSED.items():
            if part in text:
                self.world.mark(mark)
                process.end(text)

    def is_cut(self, source: int, target: int) -> bool:
        """Tell whether a link is cut in either direction."""
        links = self.network.links
        return links[source][target].cut or links[target][source].cut

    def _lost(self, source: int, target: int) -> None:
        if self.world.chance(self.profile.report_cuts):
            process = self.hosts[source - 1].process
            if process is not None:
                self.world.after(1, lambda _: process.unreachable(target))

    def choose_host(self) -> Host:
        """Pick a member for a client's call."""
        if self.leader_hint and self.world.chance(self.profile.follow_leader):
            return self.hosts[self.leader_hint - 1]
        return self.world.random.choice(self.hosts)

    # the phases

    def run(self, events: int) -> None:
        """Faults on: nothing wrong may happen."""
        self.nemesis.start()
        self.world.run(self.world.events + events)

    def heal(self) -> list[Host]:
        """End all faults for a quorum and return its hosts; others may stay dead or half cut."""
        world, profile, network = self.world, self.profile, self.network
        self.nemesis.stop()
        network.faultless = True
        network.heal()
        profile.link.delay_ns, profile.link.jitter_bits = 100 * US, 15
        profile.sync_ns, profile.sync_bits = 100 * US, 15
        profile.turn_ns = min(profile.turn_ns, 50 * US)
        profile.job_ns, profile.job_bits = min(profile.job_ns, 500 * US), 15
        profile.snapshot_chunk_ns = min(profile.snapshot_chunk_ns, 200 * US)
        profile.reply_loss = profile.stalls = 0.0
        profile.patience_ns = 20 * SECOND
        if self.operators:
            return self._heal_members()
        # A log that rotted may be refused at the next start, so nobody relies on it.
        sound = [host for host in self.hosts if not host.disk.rotten]
        core = sound
        if len(sound) == self.size and world.chance(0.5):
            core = world.random.sample(sound, self.size // 2 + 1)
            core.sort(key=lambda host: host.id)
        for host in self.hosts:
            host.disk.slow_factor = 1
            if host.disk.rotten:
                host.crash()
                continue
            host.disk.full = host.disk.fail_sync = False
            if host in core:
                host.start()
                host.resume()
            elif world.chance(0.5):
                world.mark("liveness with a dead minority")
                host.crash()
            else:
                world.mark("liveness with a deaf minority")
                host.start()
                host.resume()
                network.isolate(host.id, outbound=False)
        world.trace(f"HEALED {[host.id for host in core]}")
        return core

    def _heal_members(self) -> list[Host]:
        """Start everybody: which members there are shows only when changes have ended."""
        for host in self.hosts:
            host.end_mistake()
            host.disk.slow_factor = 1
            host.disk.full = host.disk.fail_sync = False
            host.start()
            host.resume()
        self.world.trace("HEALED")
        return []

    def _settle_members(self, events: int) -> list[Host]:
        """Let operators end what they began; return the machines of the members."""
        for operator in self.operators:
            operator.settling = True
        self._wait(events, self._is_settled, self._unsettled)
        self.world.run(self.world.events + events, self.world.now_ns + 2 * SECOND)
        self._wait(events, self._is_settled, self._unsettled)
        check_refused(self)
        return self._member_hosts()

    def _member_hosts(self) -> list[Host]:
        configuration = self.book.configuration
        return [
            self.by_member_id[one]
            for one in (*configuration.voters, *configuration.learners)
            if one in self.by_member_id
        ]

    def _is_settled(self) -> bool:
        """Every member runs and knows the members, no change is under way, who left is gone."""
        configuration = self.book.configuration
        for host in self.hosts:
            process = host.process
            if process is None or not process.up:
                continue
            product = process.product
            if product.id in configuration.removed:
                if process.links.is_told():
                    return False
            elif product.membership._count or product.raft.log.has_unapplied_change():
                return False
        members = (*configuration.voters, *configuration.learners)
        hosts = self._member_hosts()
        return len(hosts) == len(members) and all(
            host.process is not None
            and host.process.up
            and host.process.product.id in members
            and host.process.product.raft.configuration == configuration
            for host in hosts
        )

    def _unsettled(self) -> str:
        lines = [f"members are not settled: {self.book.configuration}"]
        for host in self.hosts:
            process = host.process
            if process is None or not process.up:
                state = "down" if process is None else "starting"
                lines.append(f"    machine {host.id}: {state}, of {host.member_id:x}")
            else:
                product = process.product
                lines.append(
                    f"    machine {host.id}: {product.id:x}, {process.role.name} in term "
                    f"{product.raft.term}, {product.raft.configuration}, "
                    f"{product.membership._count} requests"
                )
        return "\n".join(lines)

    def converge(self, core: list[Host], events: int) -> None:
        """Every open operation is answered, new ones succeed, all members become equal."""
        for client in self.clients:
            client.stopped = True
        for lessee in self.lessees:
            lessee.stopped = True
        self._wait(
            events,
            lambda: all(client.operation is None for client in self.clients),
            lambda: "open operations were never answered",
        )
        if self.operators:
            core = self._settle_members(events)
        voters = [host for host in core if host.member_id in self.book.configuration.voters]
        for watcher in self.watchers:
            watcher.settle(self.world.random.choice(voters).id)
        self._wait(
            events,
            lambda: all(watcher.is_created() for watcher in self.watchers),
            lambda: "watchers were not created",
        )
        for host in voters:
            self._ask(host, events)
        self._wait(
            events, lambda: not self.truth.leases, lambda: f"leases stay: {self.truth.leases}"
        )
        for lessee in self.lessees:
            lessee.check()
        self._wait(events, lambda: self._agree(core), lambda: self._state(core))
        # A stream's progress is told only when no watcher on it begins in the future (as etcd).
        self.clients[0].only("put")
        self._ask(voters[0], events)
        self._wait(events, self._watched, self._behind)
        self._wait(events, lambda: self._agree(core), lambda: self._state(core))
        for host in core:
            process = host.process
            assert process is not None
            self.compare(process, process.product.replica, process.product.node.applied_index)
        applied = [value for value in self.refused_values if value in self.truth.values]
        if applied:
            self.invariants.fail(REFUSED, f"{applied} were refused and are stored")

    def _ask(self, host: Host, events: int) -> None:
        """Have three operations succeed at one member."""
        client = self.clients[0]
        client.target = host.id
        wanted = client.succeeded + 3
        client.wake()
        self._wait(
            events,
            lambda: client.succeeded >= wanted,
            lambda: f"no operation succeeds at member {host.id}",
        )
        client.stopped = True
        self._wait(events, lambda: client.operation is None, lambda: "an operation has no answer")

    def _wait(self, events: int, done: Callable[[], bool], text: Callable[[], str]) -> None:
        world = self.world
        timeout_ns = self.profile.election_ms * MS
        budget = world.events + events
        for _ in range(300):
            if done():
                return
            world.run(budget, world.now_ns + timeout_ns)
            if world.events >= budget:
                break
        if not done():
            self.invariants.fail(LIVENESS, f"within 300 election timeouts {text()}")

    def _watched(self) -> bool:
        for watcher in self.watchers:
            if not watcher.is_at(self.truth.revision):
                watcher.ask_progress()
        return all(watcher.is_at(self.truth.revision) for watcher in self.watchers)

    def _behind(self) -> str:
        behind = [
            (client.number, watcher.next, watcher.created)
            for client in self.watchers
            for watcher in client.watchers
            if watcher.next <= self.truth.revision
        ]
        return f"watchers stay behind revision {self.truth.revision}: {behind}"

    def _agree(self, core: list[Host]) -> bool:
        ends = []
        leaders = 0
        for host in core:
            process = host.process
            if process is None or not process.up:
                return False
            raft = process.product.raft
            node = process.product.node
            ends.append((raft.log.last_index, raft.log.committed, node.applied_index))
            leaders += process.role is Role.LEADER
        return leaders == 1 and all(end == (ends[0][0],) * 3 for end in ends)

    def _state(self, core: list[Host]) -> str:
        lines = ["the members do not agree:"]
        for host in core:
            process = host.process
            if process is None or not process.up:
                lines.append(f"    member {host.id}: down")
                continue
            log = process.product.raft.log
            lines.append(
                f"    member {host.id}: {process.role.name} in term {process.product.raft.term}, "
                f"last {log.last_index}, commit {log.committed}, "
                f"applied {process.product.node.applied_index}"
            )
        return "\n".join(lines)


def fingerprint(result: Any) -> Any:
    """Return a result as plain values, the same in every process."""
    if isinstance(result, Exception):
        return type(result).__name__
    if isinstance(result, TxnResult):
        return (result.revision, result.succeeded, [fingerprint(one) for one in result.responses])
    if isinstance(result, PutResult):
        return (result.revision, result.prev_kv)
    if isinstance(result, DeleteResult):
        return (result.revision, result.deleted, result.prev_kvs)
    if isinstance(result, RangeResult):
        return (result.kvs, result.count, result.more)
    if isinstance(result, tuple | list):
        return [fingerprint(one) for one in result]
    return result


def state_of(replica: Replica) -> tuple[Any, ...]:
    """Return what must be equal on every member at the same applied index."""
    store = replica.store
    leases = sorted(
        (lease.id, lease.ttl_s, lease.remaining_s, tuple(replica.lessor.keys(lease.id)))
        for lease in replica.lessor.leases.values()
    )
    return (
        store.revision,
        store.compacted,
        store.hash_kv(0)[0],
        crc32(repr(leases).encode()),
        sorted(replica.published.attributes),
    )


def run(
    seed: int,
    profile: str = "swarm",
    events: int = 5_000,
    *,
    parts: FullParts | None = None,
    off: frozenset[str] = frozenset(),
    liveness: bool = True,
    trace: Callable[[str], None] | None = None,
) -> FullResult:
    """Run one seed through both phases (see `tests.sim.cluster.run`)."""
    gc.disable()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        drawn = profiles.draw(random.Random(f"full {seed}"), profile)
        with profiles.turned(drawn.knobs):
            cluster = FullCluster(seed, profile, parts, off, trace)
            with drawn_from(cluster.world.random):
                return _run(cluster, events, liveness=liveness)
    finally:
        logging.disable(level)
        gc.enable()


def _run(cluster: FullCluster, events: int, *, liveness: bool) -> FullResult:
    world = cluster.world
    failure: Violation | None = None
    story = ""
    try:
        cluster.run(events)
        if liveness:
            cluster.converge(cluster.heal(), 20_000 + events)
    except Violation as violation:
        failure = violation
    except Exception as error:  # noqa: BLE001 (whatever the product raises is a finding)
        failure = Violation("exception", f"{type(error).__name__}: {error}")
        story = traceback.format_exc()
    failure = failure or cluster.invariants.first
    if failure is not None and failure.name in cluster.off:
        failure = None
    cluster.close()
    return FullResult(
        cluster.seed,
        cluster.profile,
        world.events,
        world.digest,
        world.marks,
        failure,
        story,
        f"python -m tests.sim --full --seed {cluster.seed} --profile {cluster.profile_name} "
        f"--events {events}",
        world.now_ns / SECOND,
    )
