"""A place in a line: a key under a lease of its own, ordered among others by create revision.

Locks, read-write locks and elections are this, with different keys to wait for. What makes it
right: the oldest key is first; each waits for the youngest of those before it that it may not pass
and looks again when that is gone; before it calls itself first it sees, in the same transaction,
that its own key is still there.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from kvstore.client.errors import LeaseLostError
from kvstore.client.recipes.waiting import found, persist, unless_lost, wait_changed
from kvstore.client.txn import Comparison, Op, compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kvstore.client.aio import AsyncClient
    from kvstore.client.lease import Lease
    from kvstore.client.types import KeyValue


class Place:
    """One place in a line, taken and left any number of times, by one task at a time.

        async with client.lock(b"jobs") as lock:
            await client.txn().when(lock.held).then(...).commit()

    `async with` takes the place, waits until it is first, and leaves it. When the lease is lost
    inside, the body is cancelled and the block raises `LeaseLostError` (unless `cancel_on_lost` is
    False: then the block raises at its end, and the body may `check()`).
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        key_of: Callable[[int], bytes],
        behind: bytes,
        value: bytes = b"",
        ttl_s: int = 10,
        timeout_s: float | None = None,
        cancel_on_lost: bool = True,
        on_lost: Callable[[Lease], None] | None = None,
    ) -> None:
        """Prepare a place; users get theirs from the client's methods.

        Args:
            client: The client.
            key_of: Makes the key from the lease's id.
            behind: What the keys start with that must be gone when they are older.
            value: The key's value.
            ttl_s: Seconds after which the place is lost when this program has died.
            timeout_s: Seconds that taking the place may take; None waits as long as it takes.
            cancel_on_lost: Cancel the body of `async with` when the lease is lost.
            on_lost: Called once, on the event loop, when the lease is lost.
        """
        self._client = client
        self._key_of = key_of
        self._behind = behind
        self._value = value
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._cancel_on_lost = cancel_on_lost
        self._on_lost = on_lost
        self._stack: AsyncExitStack | None = None
        self._lease: Lease | None = None
        self._is_busy = False
        self.key = b""
        """Our key; empty before it is there."""
        self.token = 0
        """The fencing token: greater than that of every earlier holder. The revision that created
        our key, the same that the Go client gives. 0 when not held."""

    @property
    def is_held(self) -> bool:
        """Whether the place is first, as far as this program knows. See `held` for certainty."""
        return self._stack is not None and self._lease is not None and not self._lease.is_lost

    @property
    def held(self) -> Comparison:
        """The condition that it is still ours, for `Txn.when`: decided by the store, not here."""
        if not self.token:
            raise RuntimeError("not held")
        return compare(self.key).create_revision == self.token

    def check(self) -> None:
        """Raise LeaseLostError when the lease is lost, RuntimeError when nothing is held."""
        if self._lease is None:
            raise RuntimeError("not held")
        self._lease.check()

    async def wait_lost(self) -> None:
        """Return when the lease is lost."""
        if self._lease is None:
            raise RuntimeError("not held")
        await self._lease.wait_lost()

    async def acquire(self, *, timeout_s: float | None = None) -> Self:
        """Take the place and wait until it is first.

        While the cluster cannot answer it goes on trying, for as long as the lease may live.

        Args:
            timeout_s: Seconds to wait; None is what the place was made with.

        Returns:
            Itself, held; `token` is set.

        Raises:
            TimeoutError: Not first in time. The place is given up.
            LeaseLostError: The lease ended while waiting.
            NoLeaderError, UnreachableError, OutcomeUnknownError: No lease could be granted within
                the client's timeout. Nothing is held.
            RuntimeError: It is held already, or being taken.
        """
        await self._enter(timeout_s, wait=True, cancel_on_lost=False)
        return self

    async def try_acquire(self, *, timeout_s: float | None = None) -> bool:
        """Take the place if it is first at once; leave it, and return False, if not.

        Args and Raises as for `acquire`; the time is that of the calls.
        """
        return await self._enter(timeout_s, wait=False, cancel_on_lost=False)

    async def release(self) -> None:
        """Leave the place: the key goes with its lease, in one revision.

        Raises:
            LeaseLostError: The lease had ended before: others may have been first meanwhile.
            AvailabilityError: The cluster could not be told; the lease ends by itself within its
                time to live.
            RuntimeError: Nothing is held.
        """
        if self._stack is None:
            raise RuntimeError("not held")
        stack, self._stack = self._stack, None
        self._forget()
        await stack.aclose()

    async def __aenter__(self) -> Self:
        await self._enter(None, wait=True, cancel_on_lost=self._cancel_on_lost)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:  # else the body has released it
            self._forget()
            await stack.__aexit__(kind, error, traceback)

    def _forget(self) -> None:
        self.token = 0
        self.key = b""
        self._lease = None

    async def _enter(self, timeout_s: float | None, *, wait: bool, cancel_on_lost: bool) -> bool:
        if self._is_busy or self._stack is not None:
            raise RuntimeError("held already, or being taken: one task at a time")
        self._is_busy = True
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with AsyncExitStack() as stack:
                # The lease is left outside of the timeout: giving it up must not be cut short.
                async with asyncio.timeout(limit_s):
                    self._lease = await stack.enter_async_context(
                        self._client.lease(
                            self._ttl_s, on_lost=self._on_lost, cancel_on_lost=cancel_on_lost
                        )
                    )
                    is_first = await unless_lost(
                        self._lease, self._take(self._lease.lease_id, wait=wait)
                    )
                if is_first:
                    self._stack = stack.pop_all()
            return is_first
        finally:
            self._is_busy = False
            if self._stack is None:
                self._forget()

    async def _take(self, lease_id: int, *, wait: bool) -> bool:
        """Put the key, and wait until nothing is before it; tell whether that is so."""
        while not await self._put(lease_id):
            pass
        while True:
            before, revision = await self._before()
            if before is None:
                return True
            if not wait:
                return False
            key = before.key
            await persist(lambda: wait_changed(self._client, key, revision + 1, puts=False))  # noqa: B023

    async def _put(self, lease_id: int) -> bool:
        """Put the key unless it is there; tell whether it is ours.

        It carries the id of a lease that nobody else has. So it may be repeated when the outcome
        was open, and a key that is there already is ours.
        """
        self.key = self._key_of(lease_id)
        txn = (
            self._client.txn()
            .when(compare(self.key).create_revision == 0)
            .then(Op.put(self.key, self._value, lease=lease_id))
            .otherwise(Op.get(self.key))
        )
        result = await persist(txn.commit)
        if result.succeeded:
            self.token = result.revision
            return True
        [kv] = found(result)
        self.token = kv.create_revision
        return kv.lease == lease_id

    async def _before(self) -> tuple[KeyValue | None, int]:
        """Return the youngest key that must go first, and the revision at which that was seen.

        Raises LeaseLostError when our own key is gone, which may be known here before the lease's
        end is.
        """
        look = self._client.txn().then(
            Op.get(self.key, keys_only=True),
            Op.get(
                self._behind,
                prefix=True,
                limit=1,
                keys_only=True,
                sort_target="create",
                sort_order="descend",
                max_create_revision=self.token - 1,
            ),
        )
        result = await persist(look.commit)
        own = found(result)
        if not own or own[0].create_revision != self.token:
            assert self._lease is not None
            raise LeaseLostError(
                f"the key {self.key!r} is gone while its owner waited",
                lease_id=self._lease.lease_id,
            )
        before = found(result, 1)
        return (before[0] if before else None), result.revision
