"""P8: the leader is killed again and again under load; what was promised is then read back."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import grpc
import grpc.aio

from bench import messages
from bench.clusters import Cluster, Member

KILLS = 20
ELECTION_TIMEOUT_S = 1.0
"""etcd's default, and ours."""

WRITERS = 8
PROBE_EVERY_S = 0.01
PUT_TIMEOUT_S = 5.0
STEADY_S = 1.0
PREFIX = b"p8/"
PAGE = 5_000

REFUSED = ("etcdserver: too many requests", "etcdserver: no leader", "Connection refused")
"""Errors after which the put has certainly not happened and must never appear."""


@dataclass
class Ledger:
    """What every put was told. A key is used once."""

    acknowledged: dict[bytes, bytes] = field(default_factory=dict)
    refused: set[bytes] = field(default_factory=set)
    unknown: set[bytes] = field(default_factory=set)
    acks: list[tuple[float, float]] = field(default_factory=list)
    """(sent, acknowledged) of the puts since the last kill, monotonic seconds."""

    count: int = 0

    def next_pair(self) -> tuple[bytes, bytes]:
        """Return a key that was never used, and its value."""
        self.count += 1
        return PREFIX + b"%08d" % self.count, b"value of %d" % self.count


class Writers:
    """Tasks that put without pause, and the channels they use."""

    def __init__(self, cluster: Cluster, ledger: Ledger) -> None:
        # A short back-off: the time that a client library waits is not what is measured here.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
        self._channels = {
            member.name: grpc.aio.insecure_channel(member.target, options)
            for member in cluster.members
        }
        self._calls = {
            name: channel.unary_unary(messages.PUT) for name, channel in self._channels.items()
        }
        self._members = cluster.members
        self._ledger = ledger
        self.stopping = False

    async def put(self, member: Member) -> bool:
        """Put one new key through a member and note what it was told."""
        ledger = self._ledger
        name, value = ledger.next_pair()
        sent = time.monotonic()
        try:
            await self._calls[member.name](messages.put(name, value), timeout=PUT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            certain = any(known in text for known in REFUSED)
            (ledger.refused if certain else ledger.unknown).add(name)
            return False
        ledger.acknowledged[name] = value
        ledger.acks.append((sent, time.monotonic()))
        return True

    async def write(self, number: int) -> None:
        """Put until told to stop; go to the next member after an error."""
        while not self.stopping:
            if not await self.put(self._members[number % len(self._members)]):
                number += 1
                await asyncio.sleep(PROBE_EVERY_S)

    async def probe_until_ack(self, members: list[Member], killed: float) -> float:
        """Return the seconds from the kill to the first ack of a put sent after it.

        A new put leaves every 10 ms, whether or not the others were answered, so that the figure
        does not depend on when a client happens to try again.
        """
        running: set[asyncio.Task[bool]] = set()
        number = 0
        while True:
            done = [end for sent, end in self._ledger.acks if sent >= killed]
            if done:
                break
            if time.monotonic() - killed > 60.0:
                raise RuntimeError("no write was acknowledged within 60 s of the kill")
            running.add(asyncio.create_task(self.put(members[number % len(members)])))
            number += 1
            await asyncio.sleep(PROBE_EVERY_S)
        await asyncio.gather(*running)
        return min(done) - killed

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            await channel.close()


async def drive(cluster: Cluster, kills: int) -> tuple[list[float], Ledger]:
    """Kill the leader that many times; return the seconds without writes, and the ledger."""
    ledger = Ledger()
    writers = Writers(cluster, ledger)
    tasks = [asyncio.create_task(writers.write(number)) for number in range(WRITERS)]
    gaps = []
    try:
        for _ in range(kills):
            await asyncio.sleep(STEADY_S)
            leader = await asyncio.to_thread(cluster.leader)
            survivors = [member for member in cluster.members if member is not leader]
            ledger.acks.clear()
            killed = time.monotonic()
            leader.kill()
            gaps.append(await writers.probe_until_ack(survivors, killed))
            leader.start()
            await asyncio.to_thread(cluster.wait_ready)
    finally:
        writers.stopping = True
        await asyncio.gather(*tasks)
        await writers.close()
    return gaps, ledger


def stored(target: str) -> dict[bytes, bytes]:
    """Return every pair under the prefix by linearizable pages at one revision."""
    pairs: dict[bytes, bytes] = {}
    start, revision = PREFIX, 0
    end = PREFIX[:-1] + bytes((PREFIX[-1] + 1,))
    with grpc.insecure_channel(target, [("grpc.max_receive_message_length", -1)]) as channel:
        call = channel.unary_unary(messages.RANGE)
        while True:
            request = messages.range_(start, end, limit=PAGE, revision=revision)
            reply = messages.range_reply(call(request, timeout=30.0))
            revision = revision or reply.revision
            pairs.update(reply.pairs)
            if not reply.more:
                return pairs
            start = reply.pairs[-1][0] + b"\0"


def run(kind: str, *, data_root: str | None, scale: float = 1.0) -> dict[str, object]:
    """Kill leaders under load; return the gaps in election timeouts and what was lost or extra."""
    kills = max(2, round(KILLS * scale))
    with Cluster(kind, data_root=data_root) as cluster:
        gaps, ledger = asyncio.run(drive(cluster, kills))
        pairs = stored(cluster.leader().target)
    timeouts = [gap / ELECTION_TIMEOUT_S for gap in gaps]
    lost = sum(pairs.get(name) != value for name, value in ledger.acknowledged.items())
    return {
        "kills": kills,
        "p50": round(statistics.median(timeouts), 3),
        "max": round(max(timeouts), 3),
        "unit": "election timeouts of 1 s",
        "target": "p50 <= 1.4, max <= 2.2",
        "acknowledged": len(ledger.acknowledged),
        "acknowledged but lost": lost,
        "refused": len(ledger.refused),
        "refused but present": len(ledger.refused & pairs.keys()),
        "unknown": len(ledger.unknown),
        "unknown and present": len(ledger.unknown & pairs.keys()),
        "gaps": [round(gap, 3) for gap in gaps],
    }
