"""Barriers: wait until a key is gone, or until a number of programs have come, and have gone."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from kvstore.client.errors import LeaseLostError, PreconditionError
from kvstore.client.recipes.waiting import found, persist, unless_lost, wait_changed
from kvstore.client.txn import Op, compare

if TYPE_CHECKING:
    from types import TracebackType

    from kvstore.client.aio import AsyncClient
    from kvstore.client.lease import Lease
    from kvstore.client.types import KeyValue


class Barrier:
    """Holds up everybody who waits, until it is released. Made by `AsyncClient.barrier`.

    The key is the barrier's name, as of the Go client's `Barrier`.
    """

    def __init__(self, client: AsyncClient, name: bytes) -> None:
        self._client = client
        self.name = name

    async def hold(self, *, lease: int = 0) -> bool:
        """Close the barrier; return False when it was closed already.

        Args:
            lease: Lease whose end releases the barrier too; 0 is none.
        """
        txn = self._client.txn().when(compare(self.name).version == 0)
        return (await txn.then(Op.put(self.name, b"", lease=lease)).commit()).succeeded

    async def release(self) -> None:
        """Open the barrier: everybody who waits goes on."""
        await self._client.delete(self.name)

    async def wait(self, *, timeout_s: float | None = None) -> None:
        """Return when the barrier is open.

        Raises TimeoutError when it still holds after `timeout_s` seconds; None waits as long as it
        takes, also through outages.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                result = await persist(lambda: self._client.range(self.name, keys_only=True))
                if not result.kvs:
                    return
                since = result.revision + 1
                await persist(
                    lambda: wait_changed(self._client, self.name, since, puts=False)  # noqa: B023
                )


class DoubleBarrier:
    """Begins when `count` programs have entered, ends when all have left. Made by `double_barrier`.

        async with client.double_barrier(b"phase-1", 5): ...  # all five are inside together

    A program that dies leaves with its lease. Keys are `NAME/waiters/NANOSECONDS` and `NAME/ready`,
    as of the Go client's `DoubleBarrier`.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: bytes,
        count: int,
        *,
        ttl_s: int,
        timeout_s: float | None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be 1 or more, not {count}")
        self._client = client
        self.name = name
        self._count = count
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._waiters = name + b"/waiters/"
        self._ready = name + b"/ready"
        self._key = b""
        self._stack: AsyncExitStack | None = None
        self._lease: Lease | None = None

    async def enter(self, *, timeout_s: float | None = None) -> Self:
        """Wait until `count` programs have entered.

        Raises:
            PreconditionError: So many have entered already. This one has not.
            TimeoutError: Too few came in `timeout_s` seconds (None: what the barrier was made
                with). This one has left again.
            LeaseLostError: The lease ended while waiting.
        """
        if self._stack is not None:
            raise RuntimeError("entered already")
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                lease = await stack.enter_async_context(self._client.lease(self._ttl_s))
                await unless_lost(lease, self._enter(lease.lease_id))
            self._lease = lease
            self._stack = stack.pop_all()
        return self

    async def leave(self, *, timeout_s: float | None = None) -> None:
        """Leave, and wait until all others have left.

        Raises:
            TimeoutError: Others are still inside after `timeout_s` seconds (None: what the barrier
                was made with). This one has left.
            LeaseLostError: The lease ended: for the others this one had left before.
        """
        if self._stack is None or self._lease is None:
            raise RuntimeError("not entered")
        stack, self._stack = self._stack, None
        lease, self._lease = self._lease, None
        async with stack, asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
            await unless_lost(lease, self._leave())

    async def __aenter__(self) -> Self:
        return await self.enter()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stack is None:
            return
        if error is None:
            await self.leave()
        else:  # whoever failed does not wait for the others, who need not wait for it
            stack, self._stack = self._stack, None
            await stack.__aexit__(kind, error, traceback)

    async def _enter(self, lease_id: int) -> None:
        full = PreconditionError(f"{self._count} have entered the barrier already")
        if len((await self._inside())[0]) >= self._count:
            raise full
        created = 0
        while not created:
            created = await self._put(lease_id)
        inside, _ = await self._inside()
        if len(inside) >= self._count:
            last = inside[self._count - 1]
            if created > last.create_revision:
                raise full
            if created == last.create_revision:
                await persist(lambda: self._client.put(self._ready, b""))
                return
        elif not any(kv.key == self._key for kv in inside):
            raise LeaseLostError("the key is gone while its owner waited", lease_id=lease_id)
        await self._wait_ready(created)

    async def _wait_ready(self, created: int) -> None:
        """Return when the last has said so, after our own key was put.

        Nobody takes that back before we have left.
        """
        since = created + 1
        while True:
            await persist(
                lambda: wait_changed(self._client, self._ready, since, deletes=False)  # noqa: B023
            )
            ready = await persist(lambda: self._client.range(self._ready, keys_only=True))
            if ready.kvs and ready.kvs[0].mod_revision > created:
                return
            since = ready.revision + 1

    async def _put(self, lease_id: int) -> int:
        """Put our key; return the revision that created it, 0 when another has that key."""
        self._key = b"%s%d" % (self._waiters, time.time_ns())
        txn = (
            self._client.txn()
            .when(compare(self._key).version == 0)
            .then(Op.put(self._key, b"", lease=lease_id))
            .otherwise(Op.get(self._key))
        )
        result = await persist(txn.commit)
        if result.succeeded:
            return result.revision
        [kv] = found(result)
        return kv.create_revision if kv.lease == lease_id else 0

    async def _inside(self) -> tuple[tuple[KeyValue, ...], int]:
        """Return the keys of those who are inside, the first to enter first, and the revision."""
        result = await persist(
            lambda: self._client.range(
                self._waiters, prefix=True, sort_target="create", sort_order="ascend"
            )
        )
        return result.kvs, result.revision

    async def _leave(self) -> None:
        while True:
            inside, revision = await self._inside()
            if not inside:
                return
            lowest, highest = inside[0], inside[-1]
            if lowest.key == self._key and len(inside) == 1:
                # Guarded, because a repetition could meet those who enter next.
                end = self._client.txn().when(compare(self._key).version > 0)
                await persist(end.then(Op.delete(self._ready), Op.delete(self._key)).commit)
                return
            # The lowest stays to the end, so that the others have one to wait for.
            waited = highest if lowest.key == self._key else lowest
            if lowest.key != self._key:
                await persist(lambda: self._client.delete(self._key))
            key, since = waited.key, revision + 1
            await persist(lambda: wait_changed(self._client, key, since, puts=False))  # noqa: B023
