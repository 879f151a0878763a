"""Leases against real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import (
    AsyncClient,
    LeaseExistsError,
    LeaseLostError,
    LeaseNotFoundError,
    RequestError,
)

if TYPE_CHECKING:
    from kvstore.client import Lease
    from tests.servers import Cluster


async def test_plain_lease_calls(client: AsyncClient, prefix: bytes) -> None:
    grant = await client.lease_grant(60)
    await client.put(prefix + b"b", b"", lease=grant.lease_id)
    await client.put(prefix + b"a", b"", lease=grant.lease_id)

    state = await client.lease_time_to_live(grant.lease_id, keys=True)
    without_keys = await client.lease_time_to_live(grant.lease_id)
    renewed = await client.lease_keep_alive_once(grant.lease_id)

    assert grant.ttl_s == state.granted_ttl_s == 60
    assert 55 <= state.ttl_s <= 60
    assert sorted(state.keys) == [prefix + b"a", prefix + b"b"]
    assert without_keys.keys == ()
    assert renewed == grant
    assert grant.lease_id in await client.lease_list()
    with pytest.raises(LeaseExistsError):
        await client.lease_grant(60, lease_id=grant.lease_id)
    with pytest.raises(RequestError, match="too large lease TTL"):
        await client.lease_grant(9_000_000_001)

    await client.lease_revoke(grant.lease_id)

    assert (await client.range(prefix, prefix=True)).count == 0
    assert (await client.lease_time_to_live(grant.lease_id)).ttl_s == -1
    assert await client.lease_keep_alive_once(grant.lease_id) is None
    with pytest.raises(LeaseNotFoundError):
        await client.lease_revoke(grant.lease_id)


async def test_a_lease_lives_past_its_ttl_and_is_revoked_at_the_end(
    client: AsyncClient, prefix: bytes
) -> None:
    async with client.watch(prefix) as watcher, client.lease(1) as lease:
        await client.put(prefix, b"here", lease=lease.lease_id)
        await anext(watcher)
        # The server raises 1 to its least, 2 s. Twice that without the delete of an expiry: the
        # time itself is the event.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(watcher), 2 * lease.ttl_s)
        lease.check()
        assert not lease.is_lost
        await lease.revoke()
        batch = await asyncio.wait_for(anext(watcher), 5)
        assert batch.events[0].kind == "DELETE"


async def test_the_exit_revokes(client: AsyncClient, prefix: bytes) -> None:
    async with client.lease(60, lease_id=0x1234567) as lease:
        assert lease.lease_id == 0x1234567
        await client.put(prefix, b"here", lease=lease.lease_id)
    assert await client.get(prefix) is None


async def test_the_exit_revokes_after_an_error_too(client: AsyncClient, prefix: bytes) -> None:
    async def fail() -> None:
        async with client.lease(60) as lease:
            await client.put(prefix, b"here", lease=lease.lease_id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await client.get(prefix) is None


async def test_a_lease_that_the_server_ended_is_lost(client: AsyncClient) -> None:
    told: list[Lease] = []

    async def hold() -> None:
        async with client.lease(2, on_lost=told.append) as lease:
            await client.lease_revoke(lease.lease_id)  # somebody else's doing
            await asyncio.wait_for(lease.wait_lost(), 5)

    with pytest.raises(LeaseLostError) as caught:
        await hold()
    [lease] = told
    assert caught.value.lease_id == lease.lease_id
    with pytest.raises(LeaseLostError):
        lease.check()


async def test_a_lost_lease_cancels_its_body_when_asked(client: AsyncClient) -> None:
    async def hold() -> None:
        async with client.lease(2, cancel_on_lost=True) as lease:
            await client.lease_revoke(lease.lease_id)
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        with pytest.raises(LeaseLostError):
            await hold()
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancel_from_outside_stays_a_cancel(client: AsyncClient, prefix: bytes) -> None:
    inside = asyncio.Event()

    async def hold() -> None:
        async with client.lease(60, cancel_on_lost=True) as lease:
            await client.put(prefix, b"", lease=lease.lease_id)
            inside.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(hold())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await client.get(prefix) is None


@pytest.mark.alone
async def test_a_lease_is_lost_when_no_server_answers(fresh_server: Cluster) -> None:
    # The server is frozen, not gone: the connection stands and nothing comes.
    async with AsyncClient(fresh_server.endpoints, timeout_s=0.5) as client:
        lease = await client.lease(2).start()
        fresh_server.pause(0)
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            await asyncio.wait_for(lease.wait_lost(), 10)
            waited_s = loop.time() - begun_s
        finally:
            fresh_server.resume(0)
    # Counted from the last confirmed renewal, so not before, and not long after, its end.
    assert waited_s <= lease.ttl_s + 0.5


@pytest.mark.slow
async def test_many_leases_share_the_stream(client: AsyncClient, prefix: bytes) -> None:
    leases = [client.lease(2) for _ in range(200)]
    await asyncio.gather(*(lease.start() for lease in leases))
    await asyncio.gather(*(client.put(prefix, b"", lease=lease.lease_id) for lease in leases))
    # Longer than the time to live and etcd's slack of expiry: without renewals all would be gone.
    await asyncio.sleep(3.5)
    assert not any(lease.is_lost for lease in leases)
    alive = set(await client.lease_list())
    assert {lease.lease_id for lease in leases} <= alive
    await asyncio.gather(*(lease.revoke() for lease in leases))
