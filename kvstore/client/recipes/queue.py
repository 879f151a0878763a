"""Queues of values in the store: first in first out, and by priority. At most once: see `get`."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from kvstore.client.recipes.waiting import wait_changed
from kvstore.client.txn import Op, compare

if TYPE_CHECKING:
    from kvstore.client.aio import AsyncClient
    from kvstore.client.types import KeyValue, SortTarget

PRIORITY_MAX = 65_535
_CLAIMS = 8
# Items read at once: whoever loses the race for the first takes the next without another read.
_BACKOFF_MAX_S = 0.1


class _Consumer:
    """The taking side, which both kinds of queue share."""

    _order: SortTarget

    def __init__(self, client: AsyncClient, name: bytes) -> None:
        self._client = client
        self.name = name

    async def get(self, *, timeout_s: float | None = None) -> bytes:
        """Take the first value out of the queue; wait for one when it is empty.

        Each value goes to one consumer. One that dies after taking a value takes it along; a
        value whose taking has an unknown outcome is either gone or still there.

        Args:
            timeout_s: Seconds to wait; None waits as long as it takes.

        Raises:
            TimeoutError: No value in time. None was taken, unless a call was under way whose
                answer is lost.
            OutcomeUnknownError: The first value may have been taken.
            AvailabilityError: None was taken.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                value, revision = await self._claim()
                if value is not None:
                    return value
                await wait_changed(
                    self._client, self.name + b"/", revision + 1, prefix=True, deletes=False
                )

    async def get_nowait(self) -> bytes | None:
        """Take the first value, or return None when the queue is empty. Raises as `get`."""
        return (await self._claim())[0]

    async def length(self) -> int:
        """Return how many values the queue holds."""
        return (await self._client.range(self.name + b"/", prefix=True, count_only=True)).count

    async def _claim(self) -> tuple[bytes | None, int]:
        while True:
            first = await self._client.range(
                self.name + b"/",
                prefix=True,
                limit=_CLAIMS,
                sort_target=self._order,
                sort_order="ascend",
            )
            for kv in first.kvs:
                if await self._take(kv):
                    return kv.value, first.revision
            if not first.more:
                return None, first.revision

    async def _take(self, kv: KeyValue) -> bool:
        result = await (
            self._client.txn()
            .when(compare(kv.key).mod_revision == kv.mod_revision)
            .then(Op.delete(kv.key))
            .commit()
        )
        return result.succeeded


class Queue(_Consumer):
    """A queue: values come out in the order in which they went in. Made by `AsyncClient.queue`.

    The order is that of the puts in the store, whatever the producers' clocks say. Keys are
    `NAME/NANOSECONDS`, as of the Go client's `Queue`.
    """

    _order = "mod"

    async def put(self, value: bytes) -> None:
        """Put a value at the end of the queue.

        Raises OutcomeUnknownError when it may be in the queue, other AvailabilityErrors when not.
        """
        while True:
            key = b"%s/%d" % (self.name, time.time_ns())
            txn = self._client.txn().when(compare(key).version == 0).then(Op.put(key, value))
            if (await txn.commit()).succeeded:
                return


class PriorityQueue(_Consumer):
    """A queue by priority, 0 first, and by order of arrival within one. Made by `priority_queue`.

    Keys are `NAME/PRIORITY/NUMBER` in 5 and 16 digits, as of the Go client's `PriorityQueue`; the
    key `__NAME/PRIORITY` tells producers of each other.
    """

    _order = "key"

    async def put(self, value: bytes, priority: int) -> None:
        """Put a value behind those of the same priority.

        Args:
            value: What `get` will return.
            priority: 0, which comes out first, to 65,535.

        Raises OutcomeUnknownError when it may be in the queue, other AvailabilityErrors when not.
        """
        if not 0 <= priority <= PRIORITY_MAX:
            raise ValueError(f"priority must be 0 to {PRIORITY_MAX}, not {priority}")
        stem = b"%s/%05d" % (self.name, priority)
        guard = b"__" + stem
        bound_s = 0.001
        while True:
            last = await self._client.range(
                stem + b"/",
                prefix=True,
                limit=1,
                keys_only=True,
                sort_target="key",
                sort_order="descend",
            )
            number = int(last.kvs[0].key.rpartition(b"/")[2]) + 1 if last.kvs else 0
            # Without the guard another producer could put and a consumer take the same number
            # between our read and our write.
            result = await (
                self._client.txn()
                .when(compare(guard).mod_revision < last.revision + 1)
                .then(Op.put(guard, b""), Op.put(b"%s/%016d" % (stem, number), value))
                .commit()
            )
            if result.succeeded:
                return
            await asyncio.sleep(random.uniform(0, bound_s))  # noqa: S311
            bound_s = min(2 * bound_s, _BACKOFF_MAX_S)
