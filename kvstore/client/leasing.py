"""Plain lease calls; leases that are kept alive live in `lease`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from kvstore.client.errors import (
    AvailabilityError,
    KvError,
    ReadFailedError,
    UnreachableError,
    error_from_rpc,
)
from kvstore.client.methods import (
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
)
from kvstore.client.status import CallError
from kvstore.client.transport import read
from kvstore.client.types import LeaseGrant, LeaseTimeToLive
from kvstore.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from kvstore.client.carrier import Carrier
    from kvstore.client.link import Link


class LeaseCalls:
    """Granting, revoking and asking after leases."""

    _transport: Carrier

    async def lease_grant(
        self, ttl_s: int, *, lease_id: int = 0, timeout_s: float | None = None
    ) -> LeaseGrant:
        """Grant a lease that nobody renews unless told to. See `lease` for one that lives on.

        Args:
            ttl_s: Seconds to live; the server raises small values to its minimum (etcd: 2 s).
                At most 9,000,000,000.
            lease_id: Identifier to ask for; 0 lets the server choose.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Raises:
            LeaseExistsError: ``lease_id`` is taken. Nothing was granted.
            RequestError: ``ttl_s`` is too large. Nothing was granted.
            NoLeaderError, UnreachableError: Nothing was granted; safe to retry.
            OutcomeUnknownError: A lease may have been granted; it ends by itself.

        Source: etcd v3 Lease.LeaseGrant (proto/rpc.proto).
        """
        request = pb.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        response = await self._transport.call(LEASE_GRANT, request, write=True, timeout_s=timeout_s)
        return LeaseGrant(response.ID, response.TTL)

    async def lease_revoke(self, lease_id: int, *, timeout_s: float | None = None) -> None:
        """End a lease and delete its keys, all in one revision.

        Raises:
            LeaseNotFoundError: It has ended already.
            NoLeaderError, UnreachableError: Not revoked; safe to retry.
            OutcomeUnknownError: It may have been revoked. Safe to repeat: the second time meets
                LeaseNotFoundError.

        Source: etcd v3 Lease.LeaseRevoke (proto/rpc.proto).
        """
        await self._transport.call(
            LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease_id), write=True, timeout_s=timeout_s
        )

    async def lease_keep_alive_once(
        self, lease_id: int, *, timeout_s: float | None = None
    ) -> LeaseGrant | None:
        """Renew a lease once.

        Returns:
            The lease with its seconds to live from now on, or None when it has ended.

        Raises:
            ReadFailedError, NoLeaderError, UnreachableError: No confirmation within
                ``timeout_s``, after retries on every endpoint. Safe to repeat.

        Source: etcd v3 Lease.LeaseKeepAlive (proto/rpc.proto).
        """
        response = await self.keep_alive_response(lease_id, timeout_s=timeout_s)
        return LeaseGrant(response.ID, response.TTL) if response.TTL > 0 else None

    async def keep_alive_response(
        self, lease_id: int, *, timeout_s: float | None = None
    ) -> pb.LeaseKeepAliveResponse:
        """As `lease_keep_alive_once`, but return the API's own message; its TTL 0 is the end."""
        self._transport.enter()
        limit_s = self._transport.limit_s(timeout_s)
        failure: KvError = UnreachableError(f"keep-alive: no connection within {limit_s:g} s")
        link: Link | None = None
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    try:
                        link, stream = await self._transport.open_stream(LEASE_KEEP_ALIVE)
                        failure = ReadFailedError("keep-alive: no answer in time")
                        return await self._renew_once(link, stream, lease_id)
                    except KvError as error:
                        if not isinstance(
                            error, AvailabilityError
                        ) and not self._transport.is_refused_by_learner(error):
                            raise
                        failure = error
                        await asyncio.sleep(0.05)
        except TimeoutError:
            if link is not None:
                # A frozen member: its connection stands. The next call tries another.
                self._transport.turn_from(link)
            raise failure from None

    async def _renew_once(
        self, link: Link, stream: Any, lease_id: int
    ) -> pb.LeaseKeepAliveResponse:
        try:
            await stream.write(pb.LeaseKeepAliveRequest(ID=lease_id))
            response: pb.LeaseKeepAliveResponse = await read(stream)
        except (CallError, asyncio.InvalidStateError) as error:
            self._transport.turn_from(link)
            if isinstance(error, CallError):
                raise error_from_rpc(error, write=False) from error
            raise ReadFailedError("the keep-alive stream broke") from error
        finally:
            stream.cancel()
        return response

    async def lease_time_to_live(
        self, lease_id: int, *, keys: bool = False, timeout_s: float | None = None
    ) -> LeaseTimeToLive:
        """Ask how long a lease lives yet, and with ``keys`` what is attached to it.

        A lease that does not exist is no error: its ``ttl_s`` is -1.

        Source: etcd v3 Lease.LeaseTimeToLive (proto/rpc.proto).
        """
        response = await self._transport.call(
            LEASE_TIME_TO_LIVE,
            pb.LeaseTimeToLiveRequest(ID=lease_id, keys=keys),
            write=False,
            timeout_s=timeout_s,
        )
        return LeaseTimeToLive(response.ID, response.TTL, response.grantedTTL, tuple(response.keys))

    async def lease_list(self, *, timeout_s: float | None = None) -> tuple[int, ...]:
        """Return the ids of all leases, as the asked member knows them.

        Source: etcd v3 Lease.LeaseLeases (proto/rpc.proto).
        """
        response = await self._transport.call(
            LEASE_LEASES, pb.LeaseLeasesRequest(), write=False, timeout_s=timeout_s
        )
        return tuple(lease.ID for lease in response.leases)
