"""Three real members: what they promise while members die, restart and lag behind."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.client import AsyncClient, AvailabilityError, OutcomeUnknownError
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster


class Numbers:
    """Puts 1, 2, 3 ... under keys of their own and keeps what became of each."""

    def __init__(self, client: AsyncClient) -> None:
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self._client = client
        self._last = 0

    async def write(self, count: int) -> None:
        """Go on until that many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        while len(self.acknowledged) < wanted:
            number = self._last = self._last + 1
            try:
                await self._client.put(b"n/%08d" % number, b"%d" % number)
            except OutcomeUnknownError:
                self.unknown.add(number)
            except AvailabilityError:
                continue
            else:
                self.acknowledged.add(number)


async def hashes(client: AsyncClient, cluster: Kvstore) -> set[tuple[int, int]]:
    found = set()
    for endpoint in cluster.endpoints:
        answer = await client.hash_kv(endpoint)
        found.add((answer.hash, answer.hash_revision))
    return found


async def applied_everywhere(client: AsyncClient, cluster: Kvstore) -> None:
    """Wait until every member has applied what the most advanced one has."""
    async with asyncio.timeout(20):
        while True:
            states = [await client.status(endpoint) for endpoint in cluster.endpoints]
            if len({state.revision for state in states}) == 1:
                return


async def test_every_member_takes_writes_and_serves_fresh_reads() -> None:
    # A client may sit at any member: a write through one must be seen at once through another.
    with Kvstore(3) as cluster:
        clients = [AsyncClient([endpoint]) for endpoint in cluster.endpoints]
        for number in range(30):
            writer, reader = clients[number % 3], clients[(number + 1) % 3]
            put = await writer.put(b"k", b"%d" % number)
            kv = await reader.get(b"k")
            assert kv is not None
            assert (kv.value, kv.mod_revision) == (b"%d" % number, put.revision)
        await applied_everywhere(clients[0], cluster)
        assert len(await hashes(clients[0], cluster)) == 1
        for client in clients:
            await client.close()


async def test_nothing_acknowledged_is_lost_when_the_leader_is_killed() -> None:
    # The promise of the whole product: killed means SIGKILL, in the middle of a load.
    with Kvstore(3) as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            numbers = Numbers(client)
            for _ in range(2):
                await numbers.write(50)
                leader = await asyncio.to_thread(cluster.leader)
                during = asyncio.create_task(numbers.write(100))
                await numbers.write(20)
                cluster.kill(leader)
                await during
                await asyncio.to_thread(cluster.restart, leader)
            stored = {int(kv.value) async for kv in client.get_range(b"n/", prefix=True)}
            assert numbers.acknowledged <= stored
            assert stored <= numbers.acknowledged | numbers.unknown
            await applied_everywhere(client, cluster)
            assert len(await hashes(client, cluster)) == 1


async def test_all_members_killed_at_once_keep_everything() -> None:
    # PySyncObj lost committed data in just this case: term and vote were not durable.
    with Kvstore(3) as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            lease = await client.lease_grant(100)
            await client.put(b"leased", b"1", lease=lease.lease_id)
            for number in range(200):
                revision = (await client.put(b"k%d" % (number % 20), b"%d" % number)).revision
            await client.compact(revision - 10)
        for index in range(3):
            cluster.kill(index)
        cluster.heal()
        async with AsyncClient(cluster.endpoints) as client:
            kvs = [kv async for kv in client.get_range(b"k", prefix=True)]
            assert sorted(int(kv.value) for kv in kvs) == list(range(180, 200))
            answer = await client.lease_time_to_live(lease.lease_id, keys=True)
            assert tuple(answer.keys) == (b"leased",)
            await applied_everywhere(client, cluster)
            assert len(await hashes(client, cluster)) == 1


async def test_a_member_that_was_away_too_long_catches_up_by_snapshot() -> None:
    # The leader's log no longer reaches back; the member gets the whole store, leases included.
    with Kvstore(3, flags=("--snapshot-count", "10")) as cluster:
        leader = cluster.leader()
        away = (leader + 1) % 3
        cluster.kill(away)
        running = [cluster.endpoints[index] for index in range(3) if index != away]
        async with AsyncClient(running) as client:
            lease = await client.lease_grant(1000)
            for number in range(100):
                await client.put(b"k%d" % (number % 7), b"%d" % number, lease=lease.lease_id)
            # Until the leader's store is committed and its log released.
            async with asyncio.timeout(20):
                while (await first_log_index(cluster.endpoints[leader])) < 50:
                    await client.put(b"more", b"x")
        await asyncio.to_thread(cluster.restart, away)
        async with AsyncClient([cluster.endpoints[away]]) as client:
            kv = await client.get(b"k0")
            assert kv is not None
            assert kv.value == b"98"
            answer = await client.lease_time_to_live(lease.lease_id, keys=True)
            assert len(answer.keys) == 7
            await applied_everywhere(client, cluster)
            assert len(await hashes(client, cluster)) == 1
            assert await metric(cluster.endpoints[away], "kvstore_snapshots_installed_total") == 1
            # And it goes on as a full member.
            await client.put(b"after", b"1")
        # Its new store is the durable one: a restart finds everything.
        cluster.kill(away)
        await asyncio.to_thread(cluster.restart, away)
        async with AsyncClient([cluster.endpoints[away]]) as client:
            kv = await client.get(b"after")
            assert kv is not None


async def test_a_watch_on_a_member_that_installs_a_snapshot_misses_nothing() -> None:
    # The watcher is connected before the member is cut off by SIGSTOP, and gets all the events
    # that the snapshot jumped over from the snapshot's own history.
    with Kvstore(3, flags=("--snapshot-count", "10")) as cluster:
        leader = cluster.leader()
        away = (leader + 1) % 3
        running = [cluster.endpoints[index] for index in range(3) if index != away]
        async with (
            AsyncClient([cluster.endpoints[away]], timeout_s=30) as there,
            AsyncClient(running) as client,
        ):
            first = await client.put(b"k", b"0")
            watcher = there.watch(b"k", prefix=True, start_revision=first.revision)
            batch = await anext(watcher)
            assert [event.kv.mod_revision for event in batch.events] == [first.revision]
            cluster.pause(away)
            revisions = []
            async with asyncio.timeout(30):
                while (await first_log_index(cluster.endpoints[leader])) < 100:
                    revisions.append((await client.put(b"k", b"x")).revision)
            cluster.resume(away)
            seen: list[int] = []
            async with asyncio.timeout(30):
                while len(seen) < len(revisions):
                    batch = await anext(watcher)
                    seen += [event.kv.mod_revision for event in batch.events]
            assert seen == revisions
            await watcher.aclose()


async def first_log_index(endpoint: str) -> float:
    return await metric(endpoint, "kvstore_log_first_index")


async def metric(endpoint: str, name: str) -> float:
    reader, writer = await asyncio.open_connection(*endpoint.split(":"))
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n".encode())
    page = (await reader.read()).decode()
    writer.close()
    [line] = [line for line in page.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])
