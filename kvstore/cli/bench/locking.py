"""etcd's lock of plain keys, as its own clients do it; no renewal, no timing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.client import Op, RangeResult, compare, prefix_end

if TYPE_CHECKING:
    from kvstore.client import AsyncClient, KeyValue, TxnResult


class Lock:
    """A key below a folder: the holder is whose key was created first."""

    def __init__(self, client: AsyncClient, folder: bytes, lease_id: int) -> None:
        """Take the place of a lease, which is the lock's owner; a lease can be in a folder once."""
        self._client = client
        self._folder = folder
        self._key = folder + b"%016x" % lease_id
        self._lease_id = lease_id

    async def acquire(self) -> None:
        """Wait until it is ours."""
        result = await (
            self._client.txn()
            .when(compare(self._key).create_revision == 0)
            .then(Op.put(self._key, b"", lease=self._lease_id))
            .otherwise(Op.get(self._key))
            .commit()
        )
        place = result.revision
        if not result.succeeded:  # what an earlier attempt left, of unknown outcome
            place = _found(result).create_revision
        while True:
            before = await self._client.range(
                self._folder,
                prefix_end(self._folder),
                limit=1,
                sort_target="create",
                sort_order="descend",
                max_create_revision=place - 1,
            )
            if not before.kvs:
                return
            await self._wait_deleted(before.kvs[0].key, before.revision + 1)

    async def _wait_deleted(self, key: bytes, revision: int) -> None:
        async with self._client.watch(key, start_revision=revision, puts=False) as watcher:
            async for batch in watcher:
                if batch.events:
                    return

    async def release(self) -> None:
        """Give it up."""
        await self._client.delete(self._key)


def _found(result: TxnResult) -> KeyValue:
    [answer] = result.responses
    assert isinstance(answer, RangeResult)
    return answer.kvs[0]
