"""P6: a million keys are loaded, served and survive restarts; memory and stalls are measured."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace

import grpc

from bench import messages, process
from bench.clusters import ETCD, Cluster, Member, wait_until
from bench.load import Load
from bench.measure import LOADING, Ceilings, Driver, preload
from bench.stalls import Stalls
from bench.workloads import KEYS

KEYS_MANY = 1_000_000
SECONDS = 4.0
SETTLE_S = 2.0
CALL_S = 120.0
MIB = 1 << 20
BEHIND_PUTS = 150_000
BEHIND = Load(targets=[], connections=8, streams=32, keys=KEYS)

DRIVERS = {
    name: Driver("generator", Load(targets=[], seconds=SECONDS, keys=KEYS, put_share=share))
    for name, share in (("put", 1.0), ("range", 0.0))
}


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Load, measure rates at 10 k and at 1 M keys, memory, heavy calls, and both restarts."""
    many = max(2 * KEYS, round(KEYS_MANY * scale))
    found: dict[str, object] = {"keys": many}
    problems: list[str] = []
    ceilings = Ceilings(2.0)
    drivers = {"load put": Driver("generator", LOADING), **DRIVERS}
    for name, driver in drivers.items():
        found[f"driver {name}/s"] = round(ceilings.rate(driver, kind))
    with Cluster(kind, data_root=data_root) as cluster:
        preload(cluster, KEYS)
        few_rates = _rates(cluster, KEYS)
        begin = time.monotonic()
        loaded = preload(cluster, many)
        found["load s"] = round(time.monotonic() - begin, 1)
        found["load put/s"] = round(loaded.rate)
        time.sleep(SETTLE_S)  # lets the last background commit end, for both alike
        for number, member in enumerate([cluster.leader(), *cluster.followers()]):
            memory = process.memory(member.pid)
            name = "leader" if number == 0 else f"follower {number}"
            found[f"{name} anonymous MiB"] = round(memory.anonymous_bytes / MIB)
            found[f"{name} file MiB"] = round(memory.file_bytes / MIB)
        for name, rate in _rates(cluster, many).items():
            found[f"{name}/s at {KEYS}"] = round(few_rates[name])
            found[f"{name}/s at {many}"] = round(rate)
            found[f"{name} ratio"] = round(rate / few_rates[name], 2)
            problems += ceilings.check(DRIVERS[name], kind, max(rate, few_rates[name]))
        problems += ceilings.check(drivers["load put"], kind, loaded.rate)
        found |= _heavy(cluster, many)
        found |= _snapshot(cluster)
        found |= _restarts(cluster, many)
    if problems:
        found["problems"] = "; ".join(problems)
    if kind != ETCD:
        found["target"] = "memory <= 0.6x etcd, restart <= 0.7x, rates >= 0.8x of 10 k, lag 100 ms"
    return found


def _rates(cluster: Cluster, keys: int) -> dict[str, float]:
    rates = {}
    for name, driver in DRIVERS.items():
        load = replace(driver.load, keys=keys)
        outcome, _ = replace(driver, load=load).run([cluster.leader().target], cluster.kind)
        if problems := outcome.problems():
            raise RuntimeError(f"{name} at {keys} keys: {'; '.join(problems)}")
        rates[name] = outcome.rate
    return rates


def _heavy(cluster: Cluster, many: int) -> dict[str, object]:
    """Return time and longest stall of the calls that touch everything."""
    found: dict[str, object] = {}
    leader = cluster.leader()
    term = cluster.term()
    revision = cluster.revision()

    def whole_range(channel: grpc.Channel) -> None:
        request = messages.range_(b"\0", b"\0", keys_only=True)
        # Counted, not decoded: a million pairs in Python would take this process seconds.
        reply = channel.unary_unary(messages.RANGE)(request, timeout=CALL_S)
        if len(reply) < many * 32:
            raise RuntimeError(f"the range over {many} keys brought {len(reply)} bytes")

    def count(channel: grpc.Channel) -> None:
        request = messages.range_(b"\0", b"\0", count_only=True)
        reply = messages.range_reply(channel.unary_unary(messages.RANGE)(request, timeout=CALL_S))
        if reply.count != many:
            raise RuntimeError(f"{reply.count} keys instead of {many}")

    def hash_kv(channel: grpc.Channel) -> None:
        channel.unary_unary(messages.HASH_KV)(b"", timeout=CALL_S)

    def compact(channel: grpc.Channel) -> None:
        request = messages.compact(revision, physical=True)
        channel.unary_unary(messages.COMPACT)(request, timeout=CALL_S)

    calls: dict[str, Callable[[grpc.Channel], None]] = {
        "keys-only range over all": whole_range,
        "count of all": count,
        "HashKV": hash_kv,
        "physical compaction": compact,
    }
    for name, call in calls.items():
        with leader.channel() as channel, Stalls(leader) as stalls:
            begin = time.monotonic()
            call(channel)
            found[f"{name} s"] = round(time.monotonic() - begin, 3)
        found[f"{name} stall ms"] = round(stalls.longest_ms, 1)
    found["elections meanwhile"] = cluster.term() - term
    return found


def _snapshot(cluster: Cluster) -> dict[str, object]:
    """Return what it costs the leader to bring back a follower that only a snapshot can help."""
    leader, follower = cluster.leader(), cluster.followers()[0]
    term = cluster.term()
    follower.stop()
    # More than the log keeps behind the store: etcd 5,000 entries of one put, we some megabytes.
    load = replace(BEHIND, requests=BEHIND_PUTS)
    outcome, _ = Driver("generator", load).run([leader.target], cluster.kind)
    if problems := outcome.problems():
        raise RuntimeError(f"puts before the snapshot: {'; '.join(problems)}")
    with Stalls(leader) as stalls:
        begin = time.monotonic()
        follower.start()
        wait_until(follower.serves, CALL_S, f"{follower.name} serving after a snapshot")
        took_s = time.monotonic() - begin
    if cluster.kind != ETCD and not _installed(follower):
        raise RuntimeError(f"{follower.name} came back without a snapshot: nothing was measured")
    return {
        "follower back by snapshot s": round(took_s, 2),
        "snapshot stall ms": round(stalls.longest_ms, 1),
        "elections during the snapshot": cluster.term() - term,
    }


def _installed(member: Member) -> bool:
    address = f"http://127.0.0.1:{member.ports.client}/metrics"
    with urllib.request.urlopen(address, timeout=CALL_S) as page:
        return b"\nkvstore_snapshots_installed_total 1.0\n" in page.read()


def _restarts(cluster: Cluster, many: int) -> dict[str, object]:
    found: dict[str, object] = {}
    follower = cluster.followers()[0]
    follower.stop()
    begin = time.monotonic()
    follower.start()
    wait_until(follower.serves, CALL_S, f"{follower.name} serving again")
    found["one member restart s"] = round(time.monotonic() - begin, 2)
    cluster.stop()
    begin = time.monotonic()
    cluster.start()
    found["cluster restart s"] = round(time.monotonic() - begin, 2)
    with cluster.leader().channel() as channel:
        request = messages.range_(b"\0", b"\0", count_only=True)
        reply = messages.range_reply(channel.unary_unary(messages.RANGE)(request, timeout=CALL_S))
    if reply.count != many:
        raise RuntimeError(f"{reply.count} keys after the restart instead of {many}")
    return found
