"""Calls that list and change the members of the cluster, and move the leadership."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from kvstore.client.errors import ClosedError, KvError, NoLeaderError
from kvstore.client.methods import (
    MEMBER_ADD,
    MEMBER_LIST,
    MEMBER_PROMOTE,
    MEMBER_REMOVE,
    MEMBER_UPDATE,
    MOVE_LEADER,
    STATUS,
)
from kvstore.client.types import Member
from kvstore.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.client.carrier import Carrier


class MembershipCalls:
    """Who is a member. Only one change goes on at a time; others wait or are refused."""

    _transport: Carrier
    _endpoint_sync: asyncio.Task[None] | None

    async def sync_endpoints(
        self, *, every_s: float | None = None, timeout_s: float | None = None
    ) -> tuple[str, ...]:
        """Take the cluster's members for endpoints, in place of those the client was given.

        The URLs are those that members advertise; learners, and members that have not started,
        are left out. The endpoint in use stays in use if it is among them.

        Args:
            every_s: Also do so every so many seconds, until the client is closed; a time that
                fails changes nothing. None is once.
            timeout_s: Seconds for the call, retries included; None is the client's.

        Returns:
            The endpoints as host:port; unchanged when no member advertises any.

        Raises:
            As `member_list`.

        Source: etcd v3 Cluster.MemberList (proto/rpc.proto).
        """
        if every_s is not None and every_s <= 0:
            raise ValueError(f"every_s must be positive, not {every_s}")
        members = await self.member_list(timeout_s=timeout_s)
        voters = [member for member in members if not member.is_learner]
        urls = dict.fromkeys(url for member in voters for url in member.client_urls)
        if urls:
            await self._transport.use_endpoints(list(urls))
        if every_s is not None:
            if self._endpoint_sync is not None:
                self._endpoint_sync.cancel()
            self._endpoint_sync = asyncio.create_task(
                self._keep_endpoints(every_s), name="kvstore-endpoint-sync"
            )
        return tuple(link.endpoint.target for link in self._transport.links)

    async def _keep_endpoints(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.sync_endpoints()
            except ClosedError:
                return
            except KvError:
                continue  # counted in `statistics`; the endpoints stay as they are

    async def member_list(
        self, *, linearizable: bool = True, timeout_s: float | None = None
    ) -> tuple[Member, ...]:
        """Return the members of the cluster.

        ``linearizable`` False takes the word of one member, which serves even without a leader
        (etcd 3.4 always does so).

        Source: etcd v3 Cluster.MemberList (proto/rpc.proto).
        """
        response = await self._transport.call(
            MEMBER_LIST,
            pb.MemberListRequest(linearizable=linearizable),
            write=False,
            timeout_s=timeout_s,
            require_leader=linearizable,
        )
        return _members(response)

    async def member_add(
        self,
        peer_urls: Sequence[str],
        *,
        is_learner: bool = False,
        timeout_s: float | None = None,
    ) -> Member:
        """Add a member; start it afterwards, with an empty data directory and state "existing".

        A voter counts for the quorum at once, running or not: the second member of a cluster of
        one stops all writes until it runs. A learner has no vote until `member_promote`.

        Args:
            peer_urls: Where the other members will reach it; none that another member has.
            is_learner: Without a vote, to catch up first.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Returns:
            The new member, with its id and without a name.

        Raises:
            PreconditionError: The URLs are taken, there is a learner already, or too few members
                have started. Nothing was changed.
            AvailabilityError: "unhealthy cluster": not all voters have been connected for 5 s.
                Nothing was changed; retry later.
            OutcomeUnknownError: It may have been added; look at `member_list`.

        Source: etcd v3 Cluster.MemberAdd (proto/rpc.proto).
        """
        request = pb.MemberAddRequest(peerURLs=peer_urls, isLearner=is_learner)
        response = await self._transport.call(MEMBER_ADD, request, write=True, timeout_s=timeout_s)
        return _member(response.member)

    async def member_remove(
        self, member_id: int, *, timeout_s: float | None = None
    ) -> tuple[Member, ...]:
        """Remove a member for ever: it stops, and its id is never used again.

        Returns:
            The members that are left.

        Raises:
            MemberNotFoundError: No such member, or it was removed already.
            PreconditionError: Too few started members would be left. Nothing was changed.
            AvailabilityError: "unhealthy cluster": the members that work now would be no quorum
                without it. Nothing was changed.
            OutcomeUnknownError: It may have been removed; look at `member_list`.

        Source: etcd v3 Cluster.MemberRemove (proto/rpc.proto).
        """
        request = pb.MemberRemoveRequest(ID=member_id)
        return _members(
            await self._transport.call(MEMBER_REMOVE, request, write=True, timeout_s=timeout_s)
        )

    async def member_update(
        self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float | None = None
    ) -> tuple[Member, ...]:
        """Change where the other members reach a member; then restart it there.

        Returns:
            The members after the change.

        Raises:
            MemberNotFoundError: No such member.
            PreconditionError: Another member has one of the URLs. Nothing was changed.
            OutcomeUnknownError: It may have been changed. Safe to repeat.

        Source: etcd v3 Cluster.MemberUpdate (proto/rpc.proto).
        """
        request = pb.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
        return _members(
            await self._transport.call(MEMBER_UPDATE, request, write=True, timeout_s=timeout_s)
        )

    async def member_promote(
        self, member_id: int, *, timeout_s: float | None = None
    ) -> tuple[Member, ...]:
        """Give a learner its vote.

        Returns:
            The members after the change.

        Raises:
            MemberNotFoundError: No such member.
            PreconditionError: It is no learner, or not in sync with the leader yet. Nothing was
                changed.
            OutcomeUnknownError: It may have been promoted; look at `member_list`.

        Source: etcd v3 Cluster.MemberPromote (proto/rpc.proto).
        """
        request = pb.MemberPromoteRequest(ID=member_id)
        return _members(
            await self._transport.call(MEMBER_PROMOTE, request, write=True, timeout_s=timeout_s)
        )

    async def move_leader(self, target_id: int, *, timeout_s: float | None = None) -> None:
        """Hand the leadership to another voter and return when it leads.

        The leader is asked at its own client URL. Writes wait meanwhile.

        Raises:
            PreconditionError: The target is no voter ("bad leader transferee"), or the leadership
                went elsewhere meanwhile. Nothing was changed.
            NoLeaderError: Nobody leads.
            OutcomeUnknownError: The target did not take over in time; it may yet.

        Source: etcd v3 Maintenance.MoveLeader (proto/rpc.proto).
        """
        await self._transport.call(
            MOVE_LEADER,
            pb.MoveLeaderRequest(targetID=target_id),
            write=True,
            timeout_s=timeout_s,
            endpoint=await self._leader_endpoint(timeout_s),
        )

    async def _leader_endpoint(self, timeout_s: float | None) -> str:
        status = await self._transport.call(
            STATUS, pb.StatusRequest(), write=False, timeout_s=timeout_s, require_leader=False
        )
        for member in await self.member_list(linearizable=False, timeout_s=timeout_s):
            if member.member_id == status.leader and member.client_urls:
                return member.client_urls[0]
        raise NoLeaderError("no member of the cluster leads and has told its client URLs")


def _member(member: pb.Member) -> Member:
    return Member(
        member.ID,
        member.name,
        tuple(member.peerURLs),
        tuple(member.clientURLs),
        member.isLearner,
    )


def _members(response: Any) -> tuple[Member, ...]:
    return tuple(map(_member, response.members))
