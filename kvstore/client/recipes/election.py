"""Elections: who is the leader of a group, what it says of itself, and who is next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from kvstore.client.errors import LeaseLostError
from kvstore.client.recipes.place import Place
from kvstore.client.txn import Op

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kvstore.client.aio import AsyncClient
    from kvstore.client.lease import Lease
    from kvstore.client.recipes.mirror import Mirror
    from kvstore.client.types import KeyValue


class Leadership(Place):
    """A candidacy, and once it is held the leadership. Made by `Election.campaign`."""

    def __init__(
        self,
        client: AsyncClient,
        name: bytes,
        value: bytes,
        *,
        ttl_s: int,
        timeout_s: float | None,
        cancel_on_lost: bool,
        on_lost: Callable[[Lease], None] | None,
    ) -> None:
        super().__init__(
            client,
            key_of=lambda lease_id: b"%s/%s" % (name, f"{lease_id:x}".encode()),
            behind=name + b"/",
            value=value,
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            cancel_on_lost=cancel_on_lost,
            on_lost=on_lost,
        )

    async def proclaim(self, value: bytes, *, timeout_s: float | None = None) -> int:
        """Announce a new value without another election.

        Returns:
            The revision of the announcement.

        Raises:
            LeaseLostError: No longer the leader. Nothing was written.
            OutcomeUnknownError: It may have been announced; safe to repeat.
        """
        self.check()
        lease = self._lease
        assert lease is not None
        put = Op.put(self.key, value, lease=lease.lease_id)
        result = await self._client.txn().when(self.held).then(put).commit(timeout_s=timeout_s)
        if not result.succeeded:
            raise LeaseLostError("the leader's key is gone", lease_id=lease.lease_id)
        return result.revision

    async def resign(self) -> None:
        """Give the leadership to the next candidate. The same as `release`."""
        await self.release()


class Election:
    """An election by name. Made by `AsyncClient.election`.

        async with client.election(b"scheduler").campaign(b"host-1") as leadership:
            ...  # the leader, until the block ends

    The leader is the candidate whose key is oldest. The key is `NAME/LEASE` with the lease's id in
    hexadecimal, and holds what the leader says of itself, as of the Go client's `Election`.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: bytes,
        *,
        ttl_s: int,
        cancel_on_lost: bool,
        on_lost: Callable[[Lease], None] | None,
    ) -> None:
        self._client = client
        self.name = name
        self._ttl_s = ttl_s
        self._cancel_on_lost = cancel_on_lost
        self._on_lost = on_lost

    def campaign(self, value: bytes, *, timeout_s: float | None = None) -> Leadership:
        """Return a candidacy, for `async with`, or for `acquire`, which waits to be elected.

        Args:
            value: What others see of this candidate when it leads, such as its address.
            timeout_s: Seconds to wait for the election; None waits as long as it takes.
        """
        return Leadership(
            self._client,
            self.name,
            value,
            ttl_s=self._ttl_s,
            timeout_s=timeout_s,
            cancel_on_lost=self._cancel_on_lost,
            on_lost=self._on_lost,
        )

    async def leader(self, *, timeout_s: float | None = None) -> KeyValue | None:
        """Return the leader's key with its value now, or None when nobody leads.

        Raises as `AsyncClient.get`.
        """
        result = await self._client.range(
            self.name + b"/",
            prefix=True,
            limit=1,
            sort_target="create",
            sort_order="ascend",
            timeout_s=timeout_s,
        )
        return result.kvs[0] if result.kvs else None

    def observe(self) -> Observer:
        """Follow the leaders: an asynchronous iterator over their keys and values.

        async with election.observe() as leaders:
            async for leader in leaders: ...
        """
        return Observer(self._client.mirror(self.name + b"/", prefix=True))


class Observer:
    """Every leader and every proclamation, in order, beginning with what is now.

    The latest leader is never missed: when the connection is lost the watch resumes without a
    gap, and when that was compacted away the present state is read anew. While nobody leads
    nothing comes.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._candidates: dict[bytes, KeyValue] = {}
        self._seen: tuple[int, int] = (0, 0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> KeyValue:
        """Return the next leader, or the same with a new value. Cancelling loses nothing."""
        while True:
            batch = await anext(self._mirror)
            if batch.starts_over:
                self._candidates.clear()
            self._candidates.update((kv.key, kv) for kv in batch.kvs)
            for event in batch.events:
                if event.kind == "PUT":
                    self._candidates[event.key] = event.kv
                else:
                    self._candidates.pop(event.key, None)
            if not batch.is_complete or not self._candidates:
                continue
            leader = min(self._candidates.values(), key=lambda kv: kv.create_revision)
            seen = (leader.create_revision, leader.mod_revision)
            if seen != self._seen:
                self._seen = seen
                return leader

    async def aclose(self) -> None:
        """End the observation."""
        await self._mirror.aclose()

    async def __aenter__(self) -> Self:
        await self._mirror.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
