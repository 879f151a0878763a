"""The workloads of docs and design: how each is driven and what it should reach; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.load import Load
from bench.measure import Driver

KEYS = 10_000

LEADER_PUT_US, FOLLOWER_PUT_US, SERIALIZABLE_GET_US = 30.0, 12.0, 12.0
"""CPU budgets per operation on our members; flagged at 20 % above."""
BUDGET_SLACK = 1.2


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    driver: Driver
    rate_min: float = 0.0
    rate_goal: float = 0.0
    """Target at first and in the end: our rate over etcd's."""

    p50_max: float = 0.0
    p50_goal: float = 0.0
    """Target at first and in the end: our median latency over etcd's."""

    p99_max: float = 0.0
    """Target: our 99th percentile over etcd's."""

    leader_us_max: float = 0.0
    follower_us_max: float = 0.0
    reads: bool = False
    """Reads keys that must have been loaded."""

    brief: bool = False
    """Part of `--quick` and `--ci`."""


def workloads(seconds: float, h2load_requests: int) -> list[Workload]:
    """Return all rows for a measured time per run."""
    base = Load(targets=[], seconds=seconds, keys=KEYS, warmup_s=min(1.0, seconds / 3))
    fixed = replace(base, distribution="one", requests=h2load_requests)
    generator = Driver("generator", base)
    put_budget = {"leader_us_max": LEADER_PUT_US, "follower_us_max": FOLLOWER_PUT_US}

    def put(name: str, title: str, *, every_member: bool = False, **load: object) -> Workload:
        changed = replace(base, **load)  # type: ignore[arg-type]
        return Workload(name, title, Driver("generator", changed, every_member=every_member))

    return [
        Workload(
            "P1-h2load",
            "put, one key, 10 x 50",
            Driver("h2load", fixed),
            rate_min=1.2,
            rate_goal=2.0,
            p99_max=1.0,
            brief=True,
            **put_budget,
        ),
        Workload(
            "P1-uniform",
            "put, 10 k keys, 10 x 50",
            generator,
            rate_min=1.2,
            rate_goal=2.0,
            p99_max=1.0,
            brief=True,
            **put_budget,
        ),
        put("P1-go", "the same, headers as grpc-go with deadline", profile="grpc-go-deadline"),
        put("P1-java", "the same, headers as grpc-java", profile="grpc-java"),
        put("P1-js", "the same, headers as grpc-js", profile="grpc-js"),
        put("P1-grpcio", "the same, headers recorded from grpcio", profile="grpcio-token"),
        put("P1-zipf", "put, zipf keys", distribution="zipf"),
        put("P1-small", "put, 16 B values", value_bytes=16),
        put("P1-large", "put, 64 KiB values, 4 x 8", value_bytes=65_536, connections=4, streams=8),
        put("P1-sizes", "put, 16 B to 64 KiB, 4 x 20", value_bytes=0, connections=4, streams=20),
        put("P1-members", "put, all three members", every_member=True, connections=12),
        replace(put("P1-mix", "half puts, half ranges", put_share=0.5), reads=True),
        replace(
            put("P2", "put, 1 x 1", connections=1, streams=1),
            p50_max=0.9,
            p50_goal=0.8,
            brief=True,
        ),
        replace(
            put("P3-linearizable", "linearizable range, 10 x 50", put_share=0.0),
            rate_min=3.0,
            reads=True,
            brief=True,
        ),
        replace(
            put("P3-serializable", "serializable range", put_share=0.0, serializable=True),
            rate_min=3.0,
            leader_us_max=SERIALIZABLE_GET_US,
            reads=True,
            brief=True,
        ),
        Workload(
            "P4",
            "Python program, 500 tasks",
            Driver("program", base),
            rate_min=6.0,
            rate_goal=10.0,
        ),
    ]
