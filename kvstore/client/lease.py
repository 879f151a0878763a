"""Leases that this client keeps alive, all over one stream; plain lease calls live in `aio`."""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any, Self

from kvstore.client.errors import (
    RETRY_WITH_NEW_TOKEN,
    AvailabilityError,
    ClosedError,
    KvError,
    LeaseLostError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    ReadFailedError,
    error_from_rpc,
)
from kvstore.client.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE
from kvstore.client.status import CallError
from kvstore.client.transport import read
from kvstore.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kvstore.client.carrier import Carrier

_RECONNECT_PAUSE_S = 0.1
_TRIES_MAX = 3
_RENEWALS_PER_TTL = 3
# As etcd's client: two renewals may be lost before the lease is.


class Lease:
    """A lease that is granted on entry, kept alive inside, and revoked on exit.

        async with client.lease(10) as lease:
            await client.put(b"service/a", b"up", lease=lease.lease_id)

    It counts as lost when the server says that it has ended, and also when no renewal was
    confirmed for a whole time to live: by then the server may have ended it. A lost lease calls
    `on_lost`, makes `check()` raise, and makes the `async with` raise `LeaseLostError` unless the
    body has failed already.
    """

    def __init__(
        self,
        keeper: LeaseKeeper,
        *,
        ttl_s: int,
        lease_id: int,
        on_lost: Callable[[Lease], None] | None,
        cancel_on_lost: bool,
    ) -> None:
        self._keeper = keeper
        self.lease_id = lease_id
        """Identifies the lease; given by the server on entry when it was 0."""
        self.ttl_s = ttl_s
        """Granted seconds to live; the server may raise what was asked."""
        self._on_lost = on_lost
        self._cancel_on_lost = cancel_on_lost
        self._lost = asyncio.Event()
        self._reason = ""
        self._owner: asyncio.Task[Any] | None = None
        self._has_cancelled_owner = False
        self._is_revoked = False
        # The keeper's notes, in loop time.
        self.asked_at_s: float | None = None
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the lease has ended, or may have."""
        return self._lost.is_set()

    def check(self) -> None:
        """Raise LeaseLostError when the lease is lost."""
        if self._lost.is_set():
            raise LeaseLostError(self._reason, lease_id=self.lease_id)

    async def wait_lost(self) -> None:
        """Return when the lease is lost."""
        self._keeper.check_loop()
        await self._lost.wait()

    def lose(self, reason: str) -> None:
        """Mark it lost and tell whoever asked to be told. Called by the keeper."""
        if self._lost.is_set():
            return
        self._reason = reason
        self._lost.set()
        if self._cancel_on_lost and self._owner is not None:
            self._has_cancelled_owner = self._owner.cancel()
        if self._on_lost is not None:
            self._on_lost(self)

    def abandon(self) -> None:
        """The client was closed: nobody renews the lease. Who waits for its loss is woken.

        `on_lost` is not called and nothing is cancelled: the program itself has closed the client.
        """
        if not self._lost.is_set():
            self._reason = f"lease {self.lease_id:x} is not renewed: the client was closed"
            self._lost.set()

    async def start(self) -> Lease:
        """Grant the lease and begin to keep it alive. `async with` does this."""
        await self._keeper.grant(self)
        return self

    async def revoke(self) -> None:
        """Stop keeping it alive and end it, which deletes its keys in one revision.

        Once it has succeeded, further calls and the exit of `async with` do nothing.

        Raises LeaseLostError when it had ended before, OutcomeUnknownError and other
        AvailabilityErrors when the servers could not be told: then it ends by itself within
        `ttl_s` seconds.
        """
        self._keeper.forget(self)
        self.check()
        if not self._is_revoked:
            await self._keeper.revoke(self)
            self._is_revoked = True

    async def __aenter__(self) -> Self:
        if self._cancel_on_lost:
            self._owner = asyncio.current_task()
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner, self._owner = self._owner, None
        if self._has_cancelled_owner and owner is not None:
            self._keeper.forget(self)
            # Our own cancel ends here; one from outside, if there was one too, goes on.
            if owner.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
                raise LeaseLostError(self._reason, lease_id=self.lease_id) from None
        try:
            await self.revoke()
        except KvError as failure:
            if error is None:
                raise
            error.add_note(f"lease {self.lease_id:x} was not revoked: {failure}")


class LeaseKeeper:
    """Renews all of a client's leases over one stream, each three times in its time to live."""

    def __init__(self, transport: Carrier) -> None:
        self._transport = transport
        self._leases: dict[int, Lease] = {}
        self._due: list[tuple[float, int]] = []
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def leases_kept(self) -> int:
        """How many leases are being renewed."""
        return len(self._leases)

    async def grant(self, lease: Lease) -> None:
        """Grant a lease and renew it from now on."""
        response, asked_at_s = await self._granted(lease)
        lease.lease_id, lease.ttl_s = response.ID, response.TTL
        self._leases[lease.lease_id] = lease
        self._extend(lease, asked_at_s)
        heapq.heappush(self._due, (asked_at_s + lease.ttl_s / _RENEWALS_PER_TTL, lease.lease_id))
        self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kvstore-lease-keeper")

    async def _granted(self, lease: Lease) -> tuple[pb.LeaseGrantResponse, float]:
        """Return the grant, and when it was asked for; again when the outcome was open.

        At worst there is one more lease, which nobody renews. Not so with an id of the caller's
        choice, which then exists.
        """
        request = pb.LeaseGrantRequest(TTL=lease.ttl_s, ID=lease.lease_id)
        tries_left = 1 if lease.lease_id else _TRIES_MAX
        while True:
            tries_left -= 1
            asked_at_s = asyncio.get_running_loop().time()
            try:
                return await self._transport.call(LEASE_GRANT, request, write=True), asked_at_s
            except OutcomeUnknownError:
                if not tries_left:
                    raise

    async def revoke(self, lease: Lease) -> None:
        """Revoke a lease; again when the outcome was open, which does no harm."""
        is_open = False
        for tries_left in reversed(range(_TRIES_MAX)):
            try:
                await self._transport.call(
                    LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease.lease_id), write=True
                )
            except LeaseNotFoundError as error:
                if is_open:
                    return  # the call before was applied
                raise LeaseLostError(error.text, lease_id=lease.lease_id) from error
            except OutcomeUnknownError:
                if not tries_left:
                    raise
                is_open = True
            else:
                return

    def forget(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        if self._leases.get(lease.lease_id) is lease:
            del self._leases[lease.lease_id]
        if lease.expiry is not None:
            lease.expiry.cancel()
            lease.expiry = None
        self._woken.set()

    async def close(self) -> None:
        """Stop renewing; the leases end by themselves."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for lease in list(self._leases.values()):
            self.forget(lease)
            lease.abandon()

    def check_loop(self) -> None:
        """As `Transport.check_loop`."""
        self._transport.check_loop()

    def _extend(self, lease: Lease, asked_at_s: float) -> None:
        # Counted from the asking, not the answer: the server began to count somewhere between.
        if lease.expiry is not None:
            lease.expiry.cancel()
        lease.expiry = asyncio.get_running_loop().call_at(
            asked_at_s + lease.ttl_s,
            self._lose,
            lease,
            f"lease {lease.lease_id:x} was not renewed for its {lease.ttl_s} s",
        )

    def _lose(self, lease: Lease, reason: str) -> None:
        self.forget(lease)
        self._transport.counters.leases_lost += 1
        lease.lose(reason)

    async def _run(self) -> None:
        """Keep a stream while there are leases, on whichever endpoint serves it."""
        try:
            while self._leases:
                try:
                    link, stream = await self._transport.open_stream(LEASE_KEEP_ALIVE)
                except ClosedError:
                    return
                except AvailabilityError:
                    await asyncio.sleep(_RECONNECT_PAUSE_S)
                    continue
                try:
                    await self._renew_over(stream)
                except KvError as failure:
                    # Not an end: each lease has its own, the timer of its time to live.
                    if failure.text in RETRY_WITH_NEW_TOKEN:
                        self._transport.forget_token()
                    else:
                        self._transport.turn_from(link)
                    await asyncio.sleep(_RECONNECT_PAUSE_S)
                finally:
                    stream.cancel()
        except KvError as error:
            # The login was refused: nothing here can renew any more.
            for lease in list(self._leases.values()):
                self._lose(lease, f"lease {lease.lease_id:x}: {error.text}")

    async def _renew_over(self, stream: Any) -> None:
        """Send and read until no lease is left; raises KvError when the stream fails."""
        now_s = asyncio.get_running_loop().time()
        for lease in self._leases.values():
            lease.asked_at_s = None
        # A new stream renews everything at once: the old one may have failed for a while.
        self._due = [(now_s, lease_id) for lease_id in self._leases]
        heapq.heapify(self._due)
        reader = asyncio.create_task(self._read(stream))
        sender = asyncio.create_task(self._send(stream))
        try:
            await asyncio.wait({reader, sender}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, sender):
                task.cancel()
            await asyncio.wait({reader, sender})
        # The reader knows the status of the stream; the sender only that it broke.
        for task in (reader, sender):
            if not task.cancelled():
                task.result()

    async def _send(self, stream: Any) -> None:
        loop = asyncio.get_running_loop()
        while self._leases:
            self._woken.clear()
            now_s = loop.time()
            while self._due and self._due[0][0] <= now_s:
                lease = self._leases.get(heapq.heappop(self._due)[1])
                if lease is None:
                    continue
                if lease.asked_at_s is not None:
                    raise ReadFailedError("the member does not answer keep-alives")
                lease.asked_at_s = now_s
                try:
                    await stream.write(pb.LeaseKeepAliveRequest(ID=lease.lease_id))
                except (CallError, asyncio.InvalidStateError) as error:
                    raise ReadFailedError("the keep-alive stream broke") from error
                heapq.heappush(self._due, (now_s + lease.ttl_s / _RENEWALS_PER_TTL, lease.lease_id))
            pause_s = self._due[0][0] - loop.time() if self._due else None
            try:
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _read(self, stream: Any) -> None:
        try:
            while True:
                response = await read(stream)
                lease = self._leases.get(response.ID)
                if lease is None:
                    continue
                if response.TTL <= 0:
                    self._lose(lease, f"lease {lease.lease_id:x} has ended")
                elif lease.asked_at_s is not None:
                    lease.ttl_s = response.TTL
                    self._extend(lease, lease.asked_at_s)
                    lease.asked_at_s = None
        except CallError as error:
            raise error_from_rpc(error, write=False) from error
