"""Elections against real servers: one leader, proclamations, observers, and etcdctl."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, Client, LeaseLostError
from tests.client.proxy import Proxy
from tests.client.recipes.test_lock import waiting

if TYPE_CHECKING:
    from kvstore.client import Observer
    from tests.servers import Cluster


async def values(leaders: Observer, count: int) -> list[bytes]:
    async with asyncio.timeout(20):
        return [(await anext(leaders)).value for _ in range(count)]


async def test_leaders_follow_each_other(client: AsyncClient, prefix: bytes) -> None:
    election = client.election(prefix + b"e")
    assert await election.leader() is None
    second_elected = asyncio.Event()

    async def second() -> None:
        async with election.campaign(b"second") as leadership:
            second_elected.set()
            await leadership.proclaim(b"second, still")

    async with election.campaign(b"first") as first:
        other = asyncio.create_task(second())
        await waiting(client, prefix, 2)
        leader = await election.leader()
        assert leader is not None
        assert (leader.value, leader.create_revision) == (b"first", first.token)
        revision = await first.proclaim(b"first, still")
        leader = await election.leader()
        assert leader is not None
        assert (leader.value, leader.mod_revision) == (b"first, still", revision)
        assert not second_elected.is_set()
        await first.resign()
        await asyncio.wait_for(other, 20)
    assert second_elected.is_set()
    assert await election.leader() is None


async def test_observers_see_every_leader_and_proclamation_in_order(
    client: AsyncClient, prefix: bytes
) -> None:
    election = client.election(prefix + b"e")
    async with election.observe() as leaders:
        for name in (b"a", b"b"):
            async with election.campaign(name) as leadership:
                await leadership.proclaim(name + b"1")
                await leadership.proclaim(name + b"2")
        assert await values(leaders, 6) == [b"a", b"a1", b"a2", b"b", b"b1", b"b2"]
    async with election.campaign(b"c"), election.observe() as late:
        assert await values(late, 1) == [b"c"]


async def test_candidates_that_do_not_lead_are_not_observed(
    client: AsyncClient, prefix: bytes
) -> None:
    election = client.election(prefix + b"e")
    async with election.observe() as leaders:
        first = await election.campaign(b"first").acquire()
        second = asyncio.create_task(election.campaign(b"second").acquire())
        await waiting(client, prefix, 2)
        third = asyncio.create_task(election.campaign(b"third").acquire())
        await waiting(client, prefix, 3)
        second.cancel()
        await asyncio.wait({second})
        await first.resign()
        leadership = await asyncio.wait_for(third, 20)
        assert await values(leaders, 2) == [b"first", b"third"]
        await leadership.resign()


async def test_an_observer_resumes_and_knows_the_latest_after_compaction(
    fresh_server: Cluster,
) -> None:
    async with (
        Proxy(fresh_server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as observing,
        AsyncClient(fresh_server.endpoints) as client,
        observing.election(b"e").observe() as leaders,
    ):
        election = client.election(b"e")
        async with election.campaign(b"first") as first:
            assert await values(leaders, 1) == [b"first"]
            await proxy.cut()
            await first.proclaim(b"after the cut")
            assert await values(leaders, 1) == [b"after the cut"]
            proxy.hold_answers()
        async with election.campaign(b"second") as second:
            revision = await second.proclaim(b"latest")
            await client.compact(revision)
            await proxy.cut()
            assert await values(leaders, 1) == [b"latest"]


async def test_a_leader_whose_lease_is_gone_cannot_proclaim(
    client: AsyncClient, prefix: bytes
) -> None:
    election = client.election(prefix + b"e")
    leadership = await election.campaign(b"me").acquire()
    [kv] = (await client.range(prefix, prefix=True)).kvs
    await client.delete(kv.key)
    with pytest.raises(LeaseLostError, match="key is gone"):
        await leadership.proclaim(b"still me")
    await client.lease_revoke(kv.lease)
    with pytest.raises(LeaseLostError):
        await leadership.resign()


@pytest.mark.etcdctl
async def test_etcdctl_and_we_elect_one_leader(
    server: Cluster, client: AsyncClient, prefix: bytes
) -> None:
    if shutil.which("etcdctl") is None:
        pytest.skip("no etcdctl on this machine (Debian package etcd-client)")
    name = prefix + b"e"
    election = client.election(name)
    command = ("etcdctl", f"--endpoints={server.endpoints[0]}", "elect", name.decode())
    environment = {"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}
    ours = await election.campaign(b"ours").acquire()
    observer = await asyncio.create_subprocess_exec(
        *command, "-l", env=environment, stdout=asyncio.subprocess.PIPE
    )
    theirs = await asyncio.create_subprocess_exec(
        *command, "theirs", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert observer.stdout is not None
    assert theirs.stdout is not None
    try:
        async with asyncio.timeout(30), election.observe() as leaders:
            assert (await observer.stdout.readline()).startswith(name + b"/")
            assert await observer.stdout.readline() == b"ours\n"
            await waiting(client, prefix, 2)
            assert (await anext(leaders)).value == b"ours"
            await ours.proclaim(b"ours, still")
            assert (await anext(leaders)).value == b"ours, still"
            await observer.stdout.readline()
            assert await observer.stdout.readline() == b"ours, still\n"

            await ours.resign()

            assert (await theirs.stdout.readline()).startswith(name + b"/")
            assert await theirs.stdout.readline() == b"theirs\n"
            assert (await anext(leaders)).value == b"theirs"
            again = asyncio.create_task(election.campaign(b"ours again").acquire())
            await waiting(client, prefix, 2)
            theirs.send_signal(signal.SIGINT)
            leadership = await again
            assert (await anext(leaders)).value == b"ours again"
            await leadership.resign()
    finally:
        for process in (observer, theirs):
            if process.returncode is None:
                process.kill()
            await process.wait()


def test_without_asyncio(server: Cluster, prefix: bytes) -> None:
    with Client(server.endpoints) as client:
        election = client.election(prefix + b"e")
        with election.observe() as leaders, election.campaign(b"me") as leadership:
            leadership.proclaim(b"still me")
            assert leaders.next(10).value in {b"me", b"still me"}
            leader = election.leader()
            assert leader is not None
            assert leader.create_revision == leadership.token
