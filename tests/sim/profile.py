"""Everything that a run draws from its seed before it begins: swarm testing.

Each run has its own mix of cluster size, knobs, speeds and faults, silly values included: with many
entries in every message the no-op of an election always travels with older entries, and hides a
broken commit rule completely. A named profile narrows the draw towards one kind of trouble.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from tests.sim.disk import DiskOptions
from tests.sim.network import LinkOptions
from tests.sim.world import MS, US

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
    "change",
)

POINTS = (
    "vote sent",
    "append answered",
    "append sent",
    "durable",
    "leader",
    "leader committed",
    "truncated",
    "transfer started",
    "read asked",
    "store committed",
    "compacted in memory",
    "snapshot half sent",
    "snapshot half received",
    "snapshot installed",
    "change appended",
)


@dataclass
class Profile:
    """One run's parameters. All times are virtual."""

    name: str
    nodes: int
    spares: int
    """Members that exist outside of the configuration, to be added."""

    core: dict[str, Any]
    """Arguments of `kvstore.raft.Config`."""

    link: LinkOptions
    disk: DiskOptions
    tick_ns: int
    tick_skew: float
    """A member's clock is up to this fraction faster or slower."""

    turn_ns: int
    """0: every input is a turn of the loop. Else inputs of this long are one turn."""

    apply_ns: int
    store_every: int
    """Applied entries between commits of the store."""

    trailing: int
    compact_every: int
    snapshot_chunks: int
    snapshot_chunk_ns: int
    operations_per_entry_max: int

    clients: int
    think_ns: int
    patience_ns: int
    keys: int
    uses_per_key: int
    reads: float
    puts: float
    follow_leader: float
    """How often a client asks the member that led last."""

    fault_every_ns: int
    """Mean time between timed faults."""

    fault_weights: dict[str, int]
    fault_ns: int
    """Mean length of a fault."""

    restart_ns: int
    """Mean time until a crashed member starts again; a crash point often restarts at once."""

    points: dict[str, float] = field(default_factory=dict)
    """Probability per occasion of a state-triggered fault."""

    point_actions: tuple[str, ...] = ("crash", "crash", "isolate", "pause")
    report_cuts: float = 0.1
    """How often a message into a cut is reported as `unreachable`."""

    def __str__(self) -> str:
        return " ".join(f"{item.name}={getattr(self, item.name)}" for item in fields(self))


def draw(rng: random.Random, name: str = "swarm") -> Profile:
    """Draw a profile; the same for the same state of `rng`."""
    profile = _swarm(rng)
    profile.name = name
    PROFILES[name](profile, rng)
    return profile


def _swarm(rng: random.Random) -> Profile:
    pick = rng.choice
    election_ticks = pick((3, 5, 10, 10, 20))
    tick_ns = pick((5, 10, 20, 40)) * MS
    patience_ns = election_ticks * tick_ns * pick((1, 3, 10))
    weights = {name: pick((0, 0, 1, 2)) for name in FAULTS}
    weights["crash"] += 1
    weights["change"] = 0
    points = {
        name: pick((0.0, 0.0, chance, 4 * chance))
        for name, chance in (
            ("vote sent", 0.02),
            ("append answered", 0.001),
            ("append sent", 0.0005),
            ("durable", 0.001),
            ("leader", 0.15),
            ("leader committed", 0.002),
            ("truncated", 0.05),
            ("transfer started", 0.1),
            ("read asked", 0.002),
            ("store committed", 0.01),
            ("compacted in memory", 0.02),
            ("snapshot half sent", 0.05),
            ("snapshot half received", 0.05),
            ("snapshot installed", 0.1),
        )
    }
    return Profile(
        name="swarm",
        nodes=pick((1, 2, 3, 3, 3, 3, 3, 4, 5, 5)),
        spares=0,
        core={
            "election_ticks": election_ticks,
            "heartbeat_ticks": pick((1, 1, 1, 2)),
            "read_retry_ticks": pick((1, 3, 5, 10)),
            "message_bytes_max": pick((1, 64, 1 << 10, 1 << 20)),
            "message_entries_max": pick((1, 1, 2, 5, 64, 1024)),
            "inflight_messages_max": pick((1, 2, 8, 256)),
            "inflight_bytes_max": pick((1, 200, 1 << 14, 16 << 20)),
            "uncommitted_bytes_max": pick((300, 1 << 13, 64 << 20)),
            "apply_bytes_max": pick((1, 100, 4 << 20)),
            "apply_before_durable": rng.random() < 0.5,
        },
        link=LinkOptions(
            delay_ns=pick((20, 100, 500)) * US,
            jitter_bits=pick((10, 16, 18, 20, 22)),
            loss=pick((0.0, 0.0, 0.001, 0.01, 0.1)),
            duplication=pick((0.0, 0.0, 0.001, 0.02, 0.1)),
            late_bits=pick((16, 20, 24, 28)),
            in_order=rng.random() < 0.5,
        ),
        disk=DiskOptions(
            sync_ns=pick((1, 50, 300, 1000)) * US,
            jitter_bits=pick((10, 18, 20)),
            skew=pick((1, 1, 4, 20)),
        ),
        tick_ns=tick_ns,
        tick_skew=pick((0.0, 0.05, 0.3)),
        turn_ns=pick((0, 0, 50, 500)) * US,
        apply_ns=pick((0, 0, 50, 2000)) * US,
        store_every=pick((1, 5, 20, 100)),
        trailing=pick((0, 1, 10, 100)),
        compact_every=pick((1, 10, 50)),
        snapshot_chunks=pick((1, 2, 8)),
        snapshot_chunk_ns=pick((100, 1000, 5000)) * US,
        operations_per_entry_max=pick((1, 1, 3, 100)),
        clients=pick((2, 4, 8, 16)),
        think_ns=pick((100, 500, 2000)) * US,
        patience_ns=patience_ns,
        keys=pick((1, 2, 5)),
        uses_per_key=pick((10, 30, 60)),
        reads=pick((0.1, 0.5, 0.8)),
        puts=pick((0.1, 0.5)),
        follow_leader=pick((0.0, 0.5, 0.9)),
        fault_every_ns=election_ticks * tick_ns * pick((1, 3, 10)),
        fault_weights=weights,
        fault_ns=election_ticks * tick_ns * pick((1, 3)),
        restart_ns=election_ticks * tick_ns * pick((1, 2, 5)),
        points=points,
        point_actions=pick(
            (("crash",), ("crash", "isolate"), ("crash", "crash", "isolate", "pause"))
        ),
        report_cuts=pick((0.0, 0.1, 1.0)),
    )


def _only(profile: Profile, *names: str) -> None:
    """Keep the timed faults of these names, each at least once in the draw."""
    profile.fault_weights = {name: int(name in names) for name in FAULTS}


def _narrow_swarm(profile: Profile, rng: random.Random) -> None:
    """Everything; one run in four changes the membership too."""
    if rng.random() < 0.25:
        _narrow_membership(profile, rng)


def _narrow_calm(profile: Profile, _: random.Random) -> None:
    """No fault at all, ordinary knobs: what the speed is measured with."""
    profile.nodes = 3
    profile.turn_ns = profile.apply_ns = 0
    profile.store_every = profile.trailing = profile.compact_every = 100
    _only(profile)
    profile.points = {}
    profile.tick_skew = 0.0
    profile.link = LinkOptions(100 * US, 16, 0.0, 0.0, 20, in_order=True)
    profile.disk = DiskOptions(300 * US, 18)
    profile.core = {}


def _narrow_election(profile: Profile, rng: random.Random) -> None:
    """Leaders fall all the time, processes die right after they voted, and come back at once."""
    profile.nodes = rng.choice((3, 3, 5))
    profile.fault_weights["crash"] = 3
    profile.fault_weights["campaign"] = 4
    profile.fault_weights["crash leader"] = 4
    profile.points["vote sent"] = rng.choice((0.1, 0.3))
    profile.points["leader"] = rng.choice((0.1, 0.3))
    profile.point_actions = rng.choice((("crash",), ("crash", "isolate")))
    span_ns = profile.core["election_ticks"] * profile.tick_ns
    profile.fault_every_ns = span_ns // rng.choice((1, 2, 4))
    profile.restart_ns = rng.choice((1 * MS, span_ns // 4, span_ns))
    profile.think_ns = rng.choice((1, 5)) * MS


def _narrow_disk(profile: Profile, rng: random.Random) -> None:
    """Slow fsync, death right after acknowledgements, whole-cluster power cuts."""
    profile.nodes = rng.choice((3, 3, 5))
    profile.points["append answered"] = 0.005
    profile.points["append sent"] = 0.002
    profile.points["leader committed"] = rng.choice((0.01, 0.1))
    profile.disk.skew = rng.choice((1, 4, 20))
    profile.point_actions = ("crash",)
    profile.fault_weights["crash"] = 4
    profile.fault_weights["crash leader"] = 4
    profile.fault_weights["crash all"] = 2
    profile.disk.sync_ns = rng.choice((1, 3, 10)) * MS
    profile.restart_ns = rng.choice((1, 10, 50)) * MS


def _narrow_snapshot(profile: Profile, rng: random.Random) -> None:
    """Nothing is kept behind the store, so whoever was away for a moment needs a snapshot."""
    profile.nodes = rng.choice((3, 3, 5))
    profile.store_every = rng.choice((1, 3))
    profile.trailing = rng.choice((0, 0, 2))
    profile.compact_every = 1
    profile.snapshot_chunks = rng.choice((2, 8))
    profile.fault_weights["crash"] = 3
    profile.fault_weights["isolate"] = 3
    profile.fault_weights["cut link"] = 3
    for name in ("snapshot half sent", "snapshot half received", "snapshot installed"):
        profile.points[name] = 0.1
    profile.points["compacted in memory"] = 0.01
    profile.points["store committed"] = 0.005


NETWORK_FAULTS = (
    "isolate",
    "isolate inbound",
    "isolate outbound",
    "split",
    "split one way",
    "cut link",
    "swizzle",
    "slow link",
    "pause",
    "transfer",
    "unreachable",
)
"""What a network and a pause can do to members that do not crash."""


def _narrow_network(profile: Profile, rng: random.Random) -> None:
    """No crash; loss, repetition, overtaking, cuts, clogs and pauses."""
    profile.nodes = rng.choice((3, 3, 5))
    _only(profile, *NETWORK_FAULTS)
    # A transfer is aborted when the target falls silent just then.
    profile.fault_weights["transfer"] = 4
    profile.points = {"leader": 0.2, "transfer started": 0.5, "read asked": 0.005}
    profile.point_actions = ("isolate", "pause")


def _narrow_membership(profile: Profile, rng: random.Random) -> None:
    """Members are added, promoted and removed all the time."""
    profile.nodes = rng.choice((1, 2, 3, 3, 4))
    profile.spares = rng.choice((1, 2, 3))
    profile.fault_weights["change"] = 6
    profile.points["change appended"] = 0.1


def _narrow_figure8(profile: Profile, rng: random.Random) -> None:
    """Five members, one entry per message, leaders that die young: paper figure 8.

    A leader must commit an entry of the past before its own no-op reaches anybody, and die then.
    """
    profile.nodes = 5
    profile.fault_weights = dict.fromkeys(FAULTS, 0)
    profile.fault_weights["crash leader"] = 3
    profile.fault_weights["isolate outbound"] = 1
    profile.fault_weights["campaign"] = 2
    profile.core |= {
        "election_ticks": 5,
        "heartbeat_ticks": 1,
        "message_entries_max": 1,
        "inflight_messages_max": rng.choice((1, 2)),
        "message_bytes_max": 1,
        "uncommitted_bytes_max": 64 << 20,
    }
    profile.tick_ns = 2 * MS
    profile.tick_skew = 0.05
    profile.link = LinkOptions(100 * US, rng.choice((18, 20)), 0.0, 0.0, 20, in_order=True)
    profile.disk = DiskOptions(20 * US, rng.choice((10, 16, 18)))
    profile.turn_ns = 0
    profile.clients = rng.choice((1, 2))
    profile.think_ns = rng.choice((2, 5)) * MS
    profile.reads = 0.0
    profile.patience_ns = 30 * MS
    profile.fault_every_ns = rng.choice((10, 30)) * MS
    profile.fault_ns = 20 * MS
    profile.restart_ns = rng.choice((5, 15)) * MS
    # Whoever restarts replays little, and nobody needs a snapshot.
    profile.store_every = 20
    profile.trailing = 200
    profile.compact_every = 50
    profile.points = {
        "leader": rng.choice((0.0, 0.05)),
        # Dead between two peers: the entry reaches some of them.
        "append sent": rng.choice((0.05, 0.1, 0.2)),
        # Dead when the entry of the past is committed and its own is not.
        "leader committed": rng.choice((0.3, 0.6)),
    }
    profile.point_actions = ("crash",)


def _narrow_script(profile: Profile, _: random.Random) -> None:
    """Five members and silence: no client, no fault, no tick. A test says what happens."""
    _narrow_calm(profile, _)
    profile.nodes = 5
    profile.clients = 0
    profile.tick_ns = 1 << 50
    profile.turn_ns = profile.apply_ns = 0
    profile.core = {"message_entries_max": 1, "inflight_messages_max": 1}


PROFILES: dict[str, Callable[[Profile, random.Random], None]] = {
    "swarm": _narrow_swarm,
    "calm": _narrow_calm,
    "election": _narrow_election,
    "disk": _narrow_disk,
    "snapshot": _narrow_snapshot,
    "network": _narrow_network,
    "membership": _narrow_membership,
    "figure8": _narrow_figure8,
    "script": _narrow_script,
}
