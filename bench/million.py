"""P6: a million keys are loaded, served and survive restarts; memory and stalls are measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import grpc

from bench import messages, process
from bench.clusters import KVSTORE, Cluster, wait_until
from bench.load import Load, key
from bench.measure import LOADING, Ceilings, Driver, preload
from bench.workloads import KEYS

KEYS_MANY = 1_000_000
SECONDS = 4.0
SETTLE_S = 2.0
CALL_S = 120.0
MIB = 1 << 20
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]

DRIVERS = {
    name: Driver("generator", Load(targets=[], seconds=SECONDS, keys=KEYS, put_share=share))
    for name, share in (("put", 1.0), ("range", 0.0))
}


class Stalls:
    """Gets one key from a member again and again and keeps the longest wait: the loop's lag.

    A serializable get of one key is answered at once, unless the member's loop is busy.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._probe)
        self.longest_ms = 0.0
        self.count = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _probe(self) -> None:
        with grpc.insecure_channel(self._target, UNLIMITED) as channel:
            call = channel.unary_unary(messages.RANGE)
            request = messages.range_(key(0), serializable=True)
            while not self._over.is_set():
                begin = time.perf_counter()
                call(request, timeout=CALL_S)
                self.longest_ms = max(self.longest_ms, 1e3 * (time.perf_counter() - begin))
                self.count += 1


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
        found |= _restarts(cluster, many)
    if problems:
        found["problems"] = "; ".join(problems)
    if kind == KVSTORE:
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
        with (
            grpc.insecure_channel(leader.target, UNLIMITED) as channel,
            Stalls(leader.target) as stalls,
        ):
            begin = time.monotonic()
            call(channel)
            found[f"{name} s"] = round(time.monotonic() - begin, 3)
        found[f"{name} stall ms"] = round(stalls.longest_ms, 1)
    found["elections meanwhile"] = cluster.term() - term
    return found


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
    with grpc.insecure_channel(cluster.leader().target, UNLIMITED) as channel:
        request = messages.range_(b"\0", b"\0", count_only=True)
        reply = messages.range_reply(channel.unary_unary(messages.RANGE)(request, timeout=CALL_S))
    if reply.count != many:
        raise RuntimeError(f"{reply.count} keys after the restart instead of {many}")
    return found
