"""Everything that a full-stack run draws from its seed: sizes, speeds, silly knobs, faults.

`knobs` are constants of the product's modules, set for the run: batches of one operation, a commit
of the store every millisecond, a purge of one record, catch-up by single revisions.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from kvstore.mvcc import snapshot as mvcc_snapshot
from kvstore.mvcc import watch, watch_encode
from kvstore.server import leases, node, proposals, reads, snapshots, storage
from kvstore.server.services import kv
from tests.sim.network import LinkOptions
from tests.sim.profile import NETWORK_FAULTS
from tests.sim.world import MS, SECOND, US

FAULTS = (
    "crash",
    "crash leader",
    "crash all",
    "isolate",
    "isolate inbound",
    "isolate outbound",
    "split",
    "split one way",
    "cut link",
    "swizzle",
    "slow link",
    "pause",
    "slow disk",
    "transfer",
    "campaign",
    "unreachable",
    "power cut everywhere",
    "fsync error",
    "full disk",
    "bit rot",
    "clock jump",
)

POINTS = {
    "durable": 0.002,
    "leader": 0.15,
    "leader committed": 0.003,
    "store committed": 0.02,
    "snapshot half sent": 0.05,
    "snapshot half received": 0.05,
    "snapshot being marked": 0.1,
    "snapshot marked": 0.1,
    "snapshot installed": 0.2,
    "segment rotated": 0.05,
    "compaction half done": 0.05,
    "applied": 0.0005,
}
"""State-triggered faults and how often they strike by default."""


@dataclass
class FullProfile:
    """One run's parameters. All times are virtual."""

    name: str
    nodes: int
    heartbeat_ms: int
    election_ms: int
    core: dict[str, Any]
    link: LinkOptions
    sync_ns: int
    sync_bits: int
    disk_skew: int
    wake_ns: int
    job_ns: int
    job_bits: int
    turn_ns: int
    client_ns: int
    clock_ppm: int
    """A machine's clock is up to this many millionths faster or slower."""
    segment_bytes: int
    zero_ahead_bytes: int
    snapshot_count: int
    snapshot_window: int
    snapshot_chunk_ns: int
    power_cuts: float
    """How often a crash is one of the machine, not only of the process."""
    knobs: dict[str, Any]
    hash_every: int

    clients: int
    watch_streams: int
    lease_clients: int
    think_ns: int
    patience_ns: int
    keys: int
    follow_leader: float
    reply_loss: float
    weights: dict[str, int]
    """Of the clients' operations."""
    ttl_s: int
    renewals: int
    """How often a lease is renewed at most."""
    lease_patience: float = field(default=0.2, kw_only=True)
    """Seconds for which a client waits for the answer to a renewal, before it asks elsewhere."""
    room_bytes: int
    """What a watch stream may hold unsent."""
    stalls: float
    """How often a watch client stops reading for a while."""

    fault_every_ns: int
    fault_weights: dict[str, int]
    fault_ns: int
    restart_ns: int
    points: dict[str, float] = field(default_factory=dict)
    point_actions: tuple[str, ...] = ("crash", "crash", "isolate", "pause")
    report_cuts: float = 0.3
    value_bytes: tuple[int, ...] = (0, 0, 0, 50, 600)
    """Sizes of values; large ones make batches of several sectors, which tear."""
    lmdb: bool = False
    """The store is LMDB on real files."""
    library: bool = False
    """Clients use `kvstore.client` itself."""
    clogs: float = 0.0
    """How often a message on a stream of the library is the last one for up to a lease's life."""
    needs_leader: float = 1.0
    """How often a client asks to be refused at once where there is no leader."""
    operators: int = 0
    machines: int = 0
    """Spare ones, for members that operators add."""
    strict: bool = True
    """--strict-reconfig-check."""
    operator_ns: int = SECOND
    """How long operators think on average."""

    @property
    def tick_ns(self) -> int:
        return self.heartbeat_ms * MS

    def __str__(self) -> str:
        return " ".join(f"{item.name}={getattr(self, item.name)}" for item in fields(self))


def draw(rng: random.Random, name: str = "swarm") -> FullProfile:
    """Draw a profile; the same for the same state of `rng`."""
    profile = _swarm(rng)
    profile.name = name
    PROFILES[name](profile, rng)
    return profile


def _swarm(rng: random.Random) -> FullProfile:
    pick = rng.choice
    heartbeat_ms = pick((10, 20, 50))
    election_ms = heartbeat_ms * pick((5, 10))
    weights = {name: pick((0, 0, 1, 2)) for name in FAULTS}
    weights["crash"] += 1
    points = {name: pick((0.0, 0.0, chance, 4 * chance)) for name, chance in POINTS.items()}
    return FullProfile(
        name="swarm",
        nodes=pick((1, 2, 3, 3, 3, 3, 3, 5)),
        heartbeat_ms=heartbeat_ms,
        election_ms=election_ms,
        core={
            "message_bytes_max": pick((1, 200, 1 << 12, 1 << 20)),
            "message_entries_max": pick((1, 2, 64, 1024)),
            "inflight_messages_max": pick((1, 2, 256)),
            "apply_bytes_max": pick((1, 300, 4 << 20)),
            "read_retry_ticks": pick((1, 5)),
            "uncommitted_bytes_max": pick((1000, 64 << 20)),
        },
        link=LinkOptions(
            delay_ns=pick((20, 100, 500)) * US,
            jitter_bits=pick((10, 16, 18, 20)),
            loss=pick((0.0, 0.0, 0.001, 0.02)),
            duplication=pick((0.0, 0.0, 0.001, 0.05)),
            late_bits=pick((16, 20, 24, 28)),
            in_order=rng.random() < 0.5,
        ),
        sync_ns=pick((20, 100, 1000)) * US,
        sync_bits=pick((10, 18, 20)),
        disk_skew=pick((1, 1, 4, 20)),
        wake_ns=pick((0, 10)) * US,
        job_ns=pick((10, 500, 3000)) * US,
        job_bits=pick((10, 18, 22)),
        turn_ns=pick((0, 5, 50, 300)) * US,
        client_ns=pick((10, 100)) * US,
        clock_ppm=pick((0, 100, 20_000)),
        segment_bytes=pick((4096, 4096, 8192, 1 << 16)),
        zero_ahead_bytes=pick((0, 0, 1024, 4096)),
        snapshot_count=pick((1, 5, 30, 300)),
        snapshot_window=pick((0, 1, 8)),
        snapshot_chunk_ns=pick((10, 200, 2000)) * US,
        power_cuts=pick((0.2, 0.5, 1.0)),
        knobs={
            "ENTRY_OPS_MAX": pick((1, 1, 2, 1024)),
            "DISK_DEPTH": pick((1, 2, 8)),
            "APPLY_SLICE_NS": pick((0, 8 * MS)),
            "RETRY_NS": pick((20, 100, 500)) * MS,
            "INTERVAL_S": pick((0.001, 0.01, 0.1)),
            "BUFFER_RECORDS": pick((1, 5, 50, 20_000)),
            "PURGE_RECORDS": pick((1, 3, 500)),
            "PURGE_BUFFER_RECORDS": pick((5, 50, 10_000)),
            "EXPIRY_INTERVAL_NS": pick((10, 100, 500)) * MS,
            "chunk_bytes": pick((1, 200, 4000)),
            "COMMIT_BYTES": pick((1, 300, 16 << 20)),
            "AT_ONCE_MAX": pick((0, 2, 500)),
            "REVISIONS_MAX": pick((1, 3, 1000)),
            "_WATCHERS_MAX": pick((1, 512)),
            "_EVENTS_MAX": pick((1, 5, 4000)),
            "_EVENTS_READ": pick((1, 3, 128)),
            "BATCH_BYTES_MAX": pick((1, 300, 512 * 1024)),
        },
        hash_every=pick((25, 100)),
        clients=pick((2, 4, 8)),
        watch_streams=pick((0, 2, 4)),
        lease_clients=pick((0, 0, 1, 3)),
        think_ns=pick((200, 1000, 5000)) * US,
        patience_ns=election_ms * MS * pick((1, 5)),
        keys=pick((2, 5, 12)),
        follow_leader=pick((0.0, 0.5, 0.9)),
        reply_loss=pick((0.0, 0.0, 0.01)),
        weights={
            "put": pick((2, 6)),
            "range": pick((1, 4)),
            "serializable": pick((0, 1)),
            "old": pick((0, 1)),
            "delete": pick((0, 1, 2)),
            "txn": pick((0, 1, 3)),
            "compact": pick((0, 0, 1)),
        },
        ttl_s=pick((1, 2)),
        renewals=pick((2, 6)),
        room_bytes=pick((1, 500, 1 << 20)),
        stalls=pick((0.0, 0.02, 0.2)),
        fault_every_ns=election_ms * MS * pick((1, 3, 6)),
        fault_weights=weights,
        fault_ns=election_ms * MS * pick((1, 3)),
        restart_ns=election_ms * MS * pick((1, 2)),
        points=points,
        point_actions=pick(
            (("crash",), ("crash", "isolate"), ("crash", "crash", "isolate", "pause"))
        ),
        report_cuts=pick((0.0, 0.3, 1.0)),
    )


def _only(profile: FullProfile, *names: str) -> None:
    profile.fault_weights = {name: int(name in names) for name in FAULTS}


def _narrow_swarm(profile: FullProfile, rng: random.Random) -> None:
    """Everything."""


def _narrow_calm(profile: FullProfile, rng: random.Random) -> None:
    """No fault, ordinary knobs: what the speed is measured with."""
    profile.nodes = 3
    _only(profile)
    profile.points = {}
    profile.knobs = {}
    profile.core = {}
    profile.link = LinkOptions(100 * US, 16, 0.0, 0.0, 20, in_order=True)
    profile.heartbeat_ms, profile.election_ms = 100, 1000
    profile.sync_ns, profile.sync_bits, profile.disk_skew = 300 * US, 18, 1
    profile.turn_ns, profile.job_ns = 5 * US, 500 * US
    profile.clock_ppm = 0
    profile.reply_loss = 0.0
    profile.segment_bytes = 1 << 16
    profile.snapshot_count = 300
    profile.clients = 8
    profile.think_ns = 1000 * US
    profile.hash_every = 100
    profile.patience_ns = 10 * SECOND


def _narrow_crash(profile: FullProfile, rng: random.Random) -> None:
    """Processes and machines die at every step of storage; small segments, many commits."""
    profile.nodes = rng.choice((1, 3, 3))
    profile.power_cuts = rng.choice((0.5, 1.0))
    profile.segment_bytes = 4096
    profile.snapshot_count = rng.choice((1, 5))
    profile.knobs["INTERVAL_S"] = rng.choice((0.001, 0.005))
    profile.fault_weights |= {
        "crash": 4,
        "crash leader": 4,
        "crash all": 2,
        "power cut everywhere": 2,
        "fsync error": 1,
    }
    profile.points |= {
        name: 2 * POINTS[name]
        for name in ("durable", "leader committed", "store committed", "segment rotated")
    }
    profile.point_actions = ("crash",)
    profile.restart_ns = rng.choice((1, 10, 50)) * MS


def _narrow_snapshot(profile: FullProfile, rng: random.Random) -> None:
    """Nothing is kept behind the store, so whoever was away for a moment needs a snapshot."""
    profile.nodes = 3
    profile.snapshot_count = 1
    profile.segment_bytes = 4096
    profile.watch_streams = rng.choice((2, 4))
    profile.follow_leader = rng.choice((0.0, 0.5))
    profile.weights["put"] = 6
    profile.knobs["INTERVAL_S"] = rng.choice((0.001, 0.003))
    profile.knobs["BUFFER_RECORDS"] = 1
    profile.knobs["chunk_bytes"] = rng.choice((100, 4000))
    profile.snapshot_chunk_ns = rng.choice((10, 200)) * US
    _only(profile, "isolate", "isolate inbound", "cut link", "crash", "pause", "slow disk")
    profile.fault_weights["isolate"] = 4
    # Who misses some entries needs a snapshot: short absences, many of them, no election.
    profile.heartbeat_ms, profile.election_ms = 10, 100
    profile.fault_every_ns = rng.choice((20, 50)) * MS
    profile.fault_ns = rng.choice((15, 40)) * MS
    profile.restart_ns = rng.choice((1, 20)) * MS
    profile.think_ns = min(profile.think_ns, 1 * MS)
    profile.points = {
        "snapshot half sent": rng.choice((0.0, 0.02)),
        "snapshot half received": rng.choice((0.0, 0.02)),
        "snapshot installed": rng.choice((0.0, 0.3)),
        "snapshot marked": rng.choice((0.0, 0.3)),
        "snapshot being marked": rng.choice((0.0, 0.3)),
    }


def _narrow_network(profile: FullProfile, rng: random.Random) -> None:
    """No crash; loss, repetition, overtaking, cuts, clogs, pauses, transfers."""
    profile.nodes = rng.choice((3, 3, 5))
    _only(profile, *NETWORK_FAULTS)
    profile.fault_weights["transfer"] = 4
    profile.points = {"leader": 0.2}
    profile.point_actions = ("isolate", "pause")


def _narrow_watch(profile: FullProfile, rng: random.Random) -> None:
    """Many watchers, slow readers, compaction, restarts and snapshots under them."""
    profile.nodes = 3
    profile.watch_streams = rng.choice((4, 8))
    profile.room_bytes = rng.choice((1, 300, 3000))
    profile.stalls = rng.choice((0.05, 0.3))
    profile.keys = rng.choice((2, 5))
    profile.weights = {"put": 6, "delete": 2, "txn": 3, "compact": 1, "range": 1, "old": 1}
    profile.fault_weights |= {"crash": 2, "isolate": 2}
    profile.snapshot_count = rng.choice((1, 5, 30))


def _narrow_reads(profile: FullProfile, rng: random.Random) -> None:
    """ReadIndex rounds that are given up while their answers are still on the way."""
    _narrow_network(profile, rng)
    _only(profile, "slow link", "swizzle", "pause", "isolate inbound")
    profile.fault_weights |= {"slow link": 6, "swizzle": 4}
    profile.knobs["RETRY_NS"] = rng.choice((1, 3)) * MS
    profile.core["read_retry_ticks"] = 50
    profile.fault_every_ns = profile.election_ms * MS // rng.choice((2, 5))
    profile.fault_ns = profile.election_ms * MS // 2
    profile.points = {}
    profile.weights = {"put": 2, "range": 3}
    profile.think_ns = 500 * US
    profile.clients = 8


def _narrow_lease(profile: FullProfile, rng: random.Random) -> None:
    """Leaders that are paused or cut off for longer than a lease lives, and come back."""
    profile.nodes = 3
    profile.lease_clients = 8
    # Whoever comes back finds its way by the log, and with it what it had asked for.
    profile.snapshot_count = 300
    profile.watch_streams = rng.choice((0, 1))
    profile.clients = 1
    profile.think_ns = rng.choice((50, 200)) * MS
    profile.heartbeat_ms, profile.election_ms = 50, rng.choice((250, 250, 500))
    profile.patience_ns = profile.election_ms * MS
    profile.ttl_s = rng.choice((1, 2))
    profile.renewals = rng.choice((5, 40, 40))
    _only(profile, "pause", "isolate", "transfer", "crash leader")
    profile.fault_weights |= {"pause": 8, "isolate": 2}
    profile.fault_every_ns = rng.choice((1000, 2500)) * MS
    profile.fault_ns = rng.choice((400, 1500, 1500)) * MS
    profile.points = {"leader": rng.choice((0.0, 0.1))}
    profile.lease_patience = rng.choice((0.2, 2.0, 2.0))
    # Seconds in which little happens: stores that look each millisecond would be most of the work.
    profile.knobs["INTERVAL_S"] = 0.1


def _narrow_rot(profile: FullProfile, rng: random.Random) -> None:
    """One machine's log rots, disks fill up and fail: it must die or refuse, the others go on."""
    profile.nodes = rng.choice((3, 5))
    profile.fault_weights |= {"bit rot": 6, "full disk": 3, "fsync error": 3, "crash": 3}


def _narrow_lmdb(profile: FullProfile, rng: random.Random) -> None:
    """The product's own store file: crashes, snapshots and compaction on LMDB."""
    profile.lmdb = True
    profile.nodes = rng.choice((1, 3))
    profile.snapshot_count = rng.choice((1, 5))
    profile.segment_bytes = rng.choice((1 << 13, 1 << 16))
    profile.knobs["INTERVAL_S"] = rng.choice((0.01, 0.05))
    profile.knobs["chunk_bytes"] = rng.choice((200, 4000))
    _only(profile, "isolate", "crash leader", "power cut everywhere")
    profile.fault_weights |= {"crash leader": 4, "power cut everywhere": 8}
    profile.restart_ns = rng.choice((1, 10)) * MS
    profile.weights |= {"put": 6, "compact": 1}
    # The power goes while a batch of several sectors is being written: torn tails.
    profile.value_bytes = (600, 3000)
    profile.clients = 8
    profile.think_ns = 1 * MS
    profile.needs_leader = 0.5
    profile.knobs["DISK_DEPTH"] = 1
    profile.power_cuts = 1.0
    profile.sync_ns, profile.disk_skew = 10 * MS, 1
    profile.knobs["ENTRY_OPS_MAX"] = 1024
    profile.heartbeat_ms, profile.election_ms = 10, 100
    profile.fault_every_ns = 100 * MS
    profile.points = {"snapshot marked": 0.1, "snapshot installed": 0.1}


def _narrow_client(profile: FullProfile, rng: random.Random) -> None:
    """The client library's failover and retries: members die and pause, answers are lost."""
    profile.library = True
    profile.nodes = 3
    profile.clients = rng.choice((3, 6))
    profile.watch_streams = rng.choice((1, 3))
    profile.lease_clients = rng.choice((0, 2))
    profile.ttl_s = 1
    profile.think_ns = rng.choice((1, 5)) * MS
    profile.heartbeat_ms, profile.election_ms = 20, 100
    profile.patience_ns = rng.choice((200, 1000, 5000)) * MS
    profile.reply_loss = rng.choice((0.0, 0.01, 0.05))
    profile.weights = {"put": 4, "txn": 1, "delete": 1, "range": 2, "old": 1, "compact": 0}
    profile.weights["compact"] = rng.choice((0, 1))
    _only(profile, "crash", "crash leader", "isolate", "pause", "transfer", "split", "crash all")
    profile.fault_every_ns = rng.choice((100, 300)) * MS
    # Longer than a lease lives, sometimes: the library must notice by itself.
    profile.fault_ns = rng.choice((100, 400, 1000)) * MS
    profile.restart_ns = rng.choice((20, 100)) * MS


def _narrow_keepalive(profile: FullProfile, rng: random.Random) -> None:
    """Leases held through the library over bad connections, by members that seldom fail."""
    _narrow_client(profile, rng)
    profile.clients, profile.watch_streams, profile.lease_clients = 1, 0, 6
    profile.think_ns = 50 * MS
    profile.clogs = rng.choice((0.05, 0.2))
    # Expired at once, so that who holds too long is soon wrong; no leader that lets all live again.
    profile.knobs["EXPIRY_INTERVAL_NS"] = 10 * MS
    profile.fault_every_ns = rng.choice((3, 10)) * SECOND


def _narrow_members(profile: FullProfile, rng: random.Random) -> None:
    """Operators add, promote, move, remove and replace members while everything breaks."""
    profile.nodes = rng.choice((1, 3, 3, 3))
    profile.machines = 6 - profile.nodes
    profile.operators = rng.choice((1, 3, 4))
    # With few ticks between elections a run of some thousand events sees many changes.
    profile.heartbeat_ms, profile.election_ms = rng.choice(((10, 50), (20, 100), (50, 250)))
    profile.operator_ns = profile.election_ms * MS * rng.choice((1, 2, 4))
    # The guards count a member as healthy only after five election timeouts; some do without.
    profile.strict = rng.choice((True, False, False))
    profile.fault_every_ns = profile.election_ms * MS * rng.choice((2, 5, 10))
    profile.fault_ns = profile.election_ms * MS * rng.choice((1, 3))
    profile.restart_ns = profile.election_ms * MS * rng.choice((1, 2))
    profile.patience_ns = profile.election_ms * MS * 5
    profile.snapshot_count = rng.choice((1, 5, 30, 300))
    profile.clients = rng.choice((1, 2))
    profile.watch_streams = rng.choice((0, 1))
    profile.lease_clients = 0
    profile.think_ns = rng.choice((5, 20)) * MS
    profile.fault_weights["bit rot"] = 0
    profile.fault_weights["isolate"] += 2
    # One call to the leader for each change, over one connection: nothing comes twice.
    profile.link.duplication = 0.0
    profile.needs_leader = 0.5
    profile.points["change appended"] = rng.choice((0.0, 0.1, 0.3))


PROFILES: dict[str, Callable[[FullProfile, random.Random], None]] = {
    "swarm": _narrow_swarm,
    "calm": _narrow_calm,
    "crash": _narrow_crash,
    "snapshot": _narrow_snapshot,
    "network": _narrow_network,
    "reads": _narrow_reads,
    "watch": _narrow_watch,
    "lease": _narrow_lease,
    "rot": _narrow_rot,
    "members": _narrow_members,
    "lmdb": _narrow_lmdb,
    "client": _narrow_client,
    "keepalive": _narrow_keepalive,
}

_KNOBS: dict[str, Any] = {
    "ENTRY_OPS_MAX": proposals,
    "DISK_DEPTH": node,
    "APPLY_SLICE_NS": node,
    "RETRY_NS": reads,
    "INTERVAL_S": storage,
    "BUFFER_RECORDS": storage,
    "PURGE_RECORDS": storage,
    "PURGE_BUFFER_RECORDS": storage,
    "EXPIRY_INTERVAL_NS": leases,
    "COMMIT_BYTES": mvcc_snapshot,
    "AT_ONCE_MAX": kv,
    "_WATCHERS_MAX": watch,
    "_EVENTS_MAX": watch,
    "_EVENTS_READ": watch,
    "BATCH_BYTES_MAX": watch_encode,
}
"""Which module has each constant. `chunk_bytes` and `REVISIONS_MAX` are defaults of a function."""


@contextlib.contextmanager
def turned(knobs: dict[str, Any]) -> Iterator[None]:
    """Set the product's constants for a run."""
    before: list[tuple[Any, str, Any]] = []

    def turn(where: Any, name: str, value: Any) -> None:
        before.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    try:
        for name, value in knobs.items():
            if name == "chunk_bytes":
                turn(
                    snapshots,
                    "snapshot_chunks",
                    partial(mvcc_snapshot.snapshot_chunks, chunk_bytes=value),
                )
            elif name == "REVISIONS_MAX":
                turn(watch.WatchHub.catch_up, "__defaults__", (value,))
            else:
                turn(_KNOBS[name], name, value)
        yield
    finally:
        for where, name, value in reversed(before):
            setattr(where, name, value)
