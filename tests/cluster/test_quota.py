"""The quota: a full store refuses to grow, says so, and can be emptied and used again."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.client import AsyncClient, NoSpaceError
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

QUOTA = 4 << 20
VALUE = bytes(64 << 10)


async def fill(client: AsyncClient) -> None:
    # Far beyond the quota, for the case that nobody stops us.
    for number in range(4 * QUOTA // len(VALUE)):
        await client.put(b"k%d" % (number % 4), VALUE)


async def test_a_full_store_recovers_by_compaction_and_disarm() -> None:
    # etcd's users get stuck here: everything that frees space must work while puts are refused.
    with Kvstore(3, flags=("--quota-backend-bytes", str(QUOTA))) as cluster:
        async with AsyncClient(cluster.endpoints) as client:
            with pytest.raises(NoSpaceError):
                await fill(client)
            async with asyncio.timeout(5):
                while {alarm.kind for alarm in await client.alarm_list()} != {"NOSPACE"}:
                    pass
            for endpoint in cluster.endpoints:
                async with AsyncClient([endpoint]) as other:
                    with pytest.raises(NoSpaceError):
                        await other.put(b"small", b"1")
            # What frees space works on every member.
            kv = await client.get(b"k0")
            assert kv is not None
            deleted = await client.delete(b"k", prefix=True)
            assert deleted.deleted == 4
            await client.compact(deleted.revision)
            async with asyncio.timeout(20):
                while (await client.status()).db_size_in_use_bytes > QUOTA // 4:
                    pass
            # Every member that refused a put has raised its own by now.
            for alarm in await client.alarm_list():
                await client.alarm_disarm(alarm.member_id, alarm.kind)
            assert await client.alarm_list() == ()
            await client.put(b"again", b"1")
