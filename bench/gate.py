"""Gate: reads that saturate one member must not starve writes or cause elections."""

from __future__ import annotations

from dataclasses import replace

from bench.clusters import Cluster, Member
from bench.load import Load, Outcome
from bench.measure import Ceilings, Driver, preload
from bench.workloads import KEYS

SECONDS = 60.0
BASELINE_S = 5.0
PUT_P99_MAX_MS = 50.0

READS = Load(targets=[], connections=10, streams=50, put_share=0.0, keys=KEYS)
PUTS = Load(targets=[], connections=1, streams=10, keys=KEYS)


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Saturate the leader and a follower in turn; return put p99 and elections for each."""
    seconds = max(2.0, SECONDS * scale)
    ceilings = Ceilings(min(2.0, seconds))
    found: dict[str, object] = {"driver reads/s": round(ceilings.rate(_driver(READS, 0), kind))}
    with Cluster(kind, data_root=data_root) as cluster:
        preload(cluster, KEYS)
        alone, _ = _driver(PUTS, min(BASELINE_S, seconds)).run([cluster.leader().target], kind)
        found["put p99 ms alone"] = alone.put_ms["p99"]
        for where in ("leader", "follower"):
            for how in ("serializable", "linearizable"):
                name = f"{how} at {where}"
                term = cluster.term()
                leader = cluster.leader()
                reader = leader if where == "leader" else cluster.followers()[0]
                reads, puts = _both(kind, reader, leader, seconds, serializable=how[0] == "s")
                found[f"{name}: reads/s"] = round(reads.rate)
                found[f"{name}: put p99 ms"] = puts.put_ms.get("p99", float("inf"))
                found[f"{name}: elections"] = cluster.term() - term
                problems = [*reads.problems(), *puts.problems()]
                for load, outcome in ((READS, reads), (PUTS, puts)):
                    problems += ceilings.check(_driver(load, seconds), kind, outcome.rate)
                if problems:
                    found[f"{name}: problems"] = "; ".join(problems)
                cluster.ensure_running()
    found["target"] = f"put p99 <= {PUT_P99_MAX_MS:.0f} ms, no election, {seconds:.0f} s each"
    return found


def _driver(load: Load, seconds: float) -> Driver:
    return Driver("generator", replace(load, seconds=seconds))


def _both(
    kind: str, reader: Member, leader: Member, seconds: float, *, serializable: bool
) -> tuple[Outcome, Outcome]:
    # The reads begin first and end last, so that every put meets them.
    reading = _driver(replace(READS, serializable=serializable), seconds + 2)
    putting = Driver("generator", replace(PUTS, seconds=seconds, warmup_s=1.5))
    with (
        reading.started([reader.target], kind) as reads,
        putting.started([leader.target], kind) as puts,
    ):
        return reads()[0], puts()[0]
