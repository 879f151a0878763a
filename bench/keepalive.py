"""P7: ten thousand leases kept alive: what it costs the members, and that the log does not grow."""

from __future__ import annotations

import asyncio
import time
from itertools import cycle

import grpc.aio

from bench import messages, process
from bench.clusters import Cluster, unary

LEASES = 10_000
STREAMS = 10
TTL_S = 30
RENEWALS_PER_TTL = 3
"""As etcd's client does: two renewals may be lost before the lease is."""

SECONDS = 20.0
BURST_S = 0.01
GRANTS_AT_ONCE = 200
CALL_S = 60.0


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Return CPU and log entries of a steady state with that many leases, renewed at the leader."""
    leases = max(100, round(LEASES * scale))
    seconds = max(2.0, SECONDS * scale)
    with Cluster(kind, data_root=data_root) as cluster:
        leader = cluster.leader()
        renewing = asyncio.run(_renew(cluster, leader.target, leases, seconds))
        cluster.ensure_running()
        return {
            "leases": leases,
            "renewals/s": round(renewing["renewals"] / seconds),
            "leader CPU": f"{100 * renewing['leader_s'] / seconds:.1f} %",
            "followers CPU": f"{100 * renewing['followers_s'] / seconds:.1f} %",
            "all CPU ms per s": round(
                1e3 * (renewing["leader_s"] + renewing["followers_s"]) / seconds, 1
            ),
            "log entries": renewing["entries"],
            "renewal p50 ms": renewing["p50_ms"],
            "renewal p99 ms": renewing["p99_ms"],
            "target": "no log entry for a renewal; CPU <= 1x",
        }


async def _renew(cluster: Cluster, target: str, leases: int, seconds: float) -> dict[str, float]:
    members = [cluster.leader(), *cluster.followers()]
    async with grpc.aio.insecure_channel(target) as channel:
        granted = await _grant(channel, leases)
        keepers = [Keeper(channel) for _ in range(STREAMS)]
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(keeper.read()) for keeper in keepers]
            # One whole round before the measurement: every lease is known to every part.
            await _send(granted, keepers, TTL_S / RENEWALS_PER_TTL / 2, limit=leases)
            entries = _index(cluster)
            before = [process.cpu_s(member.pid) for member in members]
            for keeper in keepers:
                keeper.waits_s.clear()
            sent = await _send(granted, keepers, TTL_S / RENEWALS_PER_TTL, seconds=seconds)
            after = [process.cpu_s(member.pid) for member in members]
            entries = _index(cluster) - entries
            for keeper in keepers:
                await keeper.close()
            await asyncio.gather(*readers)
    waits = sorted(wait for keeper in keepers for wait in keeper.waits_s)
    if lost := sum(keeper.lost for keeper in keepers):
        raise RuntimeError(f"{lost} leases ended although they were renewed in time")
    return {
        "renewals": sent,
        "leader_s": after[0] - before[0],
        "followers_s": sum(after[1:]) - sum(before[1:]),
        "entries": entries,
        "p50_ms": round(1e3 * waits[len(waits) // 2], 2),
        "p99_ms": round(1e3 * waits[len(waits) * 99 // 100], 2),
    }


def _index(cluster: Cluster) -> int:
    """Return how far the log has got."""
    leader = cluster.leader()
    reply = unary(leader.target, messages.STATUS, b"", CALL_S, leader.ca_file)
    return messages.number(messages.decode(reply), 5)


async def _grant(channel: grpc.aio.Channel, leases: int) -> list[int]:
    call = channel.unary_unary(messages.LEASE_GRANT)
    request = messages.integer(1, TTL_S)

    async def one() -> int:
        return messages.number(messages.decode(await call(request, timeout=CALL_S)), 2)

    granted: list[int] = []
    while len(granted) < leases:
        count = min(GRANTS_AT_ONCE, leases - len(granted))
        granted += await asyncio.gather(*(one() for _ in range(count)))
    return granted


async def _send(
    leases: list[int],
    keepers: list[Keeper],
    round_s: float,
    *,
    seconds: float = float("inf"),
    limit: int = 1 << 62,
) -> int:
    """Renew one lease after the other, all of them in each `round_s`; return how many."""
    begin, sent = time.monotonic(), 0
    turns = zip(cycle(leases), cycle(keepers))
    while (passed_s := time.monotonic() - begin) < seconds and sent < limit:
        due = min(limit, int(passed_s / round_s * len(leases)))
        while sent < due:
            lease, keeper = next(turns)
            await keeper.renew(lease)
            sent += 1
        await asyncio.sleep(BURST_S)
    return sent


class Keeper:
    """One stream of renewals."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call = channel.stream_stream(messages.LEASE_KEEP_ALIVE)()
        self._asked_s: dict[int, float] = {}
        self.waits_s: list[float] = []
        self.lost = 0

    async def renew(self, lease: int) -> None:
        """Ask for one renewal."""
        self._asked_s[lease] = time.monotonic()
        await self._call.write(messages.integer(1, lease))

    async def read(self) -> None:
        """Take answers until the end."""
        async for reply in self._call:
            fields = messages.decode(reply)
            self.lost += messages.number(fields, 3) <= 0
            asked_s = self._asked_s.pop(messages.number(fields, 2), None)
            if asked_s is not None:
                self.waits_s.append(time.monotonic() - asked_s)

    async def close(self) -> None:
        """Say that no more comes; the answers under way still do."""
        await self._call.done_writing()
