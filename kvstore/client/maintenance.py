"""Calls about the cluster itself: status, hash, alarms, compaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from kvstore.client.errors import CompactedError
from kvstore.client.methods import ALARM, COMPACT, HASH_KV, STATUS
from kvstore.client.types import Alarm, AlarmKind, HashKv, Status
from kvstore.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from kvstore.client.carrier import Carrier

_ALARM_KINDS: tuple[AlarmKind, ...] = get_args(AlarmKind)


class MaintenanceCalls:
    """Cluster and maintenance calls."""

    _transport: Carrier

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The client's endpoints as host:port, in the order given."""
        return tuple(link.endpoint.target for link in self._transport.links)

    async def compact(
        self, revision: int, *, physical: bool = False, timeout_s: float | None = None
    ) -> int:
        """Give up the history before ``revision``; the state at it stays readable.

        Args:
            revision: 1 up to the current revision.
            physical: Return only when the space is free for reuse.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Returns:
            The current revision.

        Raises:
            CompactedError: Already compacted that far. Nothing was done.
            FutureRevisionError: ``revision`` does not exist yet. Nothing was done.
            NoLeaderError, UnreachableError: Nothing was done; safe to retry.
            OutcomeUnknownError: It may have been done. Safe to repeat: the second time meets
                CompactedError.

        Source: etcd v3 KV.Compact (proto/rpc.proto).
        """
        request = pb.CompactionRequest(revision=revision, physical=physical)
        try:
            response = await self._transport.call(COMPACT, request, write=True, timeout_s=timeout_s)
        except CompactedError as error:
            error.requested = revision
            raise
        return response.header.revision

    async def status(
        self, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> Status:
        """Return what one member says about itself, leader or not.

        Args:
            endpoint: The member to ask, also one that is not among the client's endpoints. None
                asks whichever serves this client.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Source: etcd v3 Maintenance.Status (proto/rpc.proto).
        """
        response = await self._transport.call(
            STATUS,
            pb.StatusRequest(),
            write=False,
            timeout_s=timeout_s,
            endpoint=endpoint,
            require_leader=False,
        )
        return Status(
            member_id=response.header.member_id,
            version=response.version,
            db_size_bytes=response.dbSize,
            db_size_in_use_bytes=response.dbSizeInUse,
            leader_id=response.leader,
            raft_term=response.raftTerm,
            raft_index=response.raftIndex,
            raft_applied_index=response.raftAppliedIndex,
            revision=response.header.revision,
            is_learner=response.isLearner,
            errors=tuple(response.errors),
        )

    async def hash_kv(
        self, endpoint: str | None = None, *, revision: int = 0, timeout_s: float | None = None
    ) -> HashKv:
        """Return the hash of one member's history up to ``revision`` (0 is its newest).

        Equal on all healthy members at one revision and one compaction.

        Source: etcd v3 Maintenance.HashKV (proto/rpc.proto).
        """
        response = await self._transport.call(
            HASH_KV,
            pb.HashKVRequest(revision=revision),
            write=False,
            timeout_s=timeout_s,
            endpoint=endpoint,
            require_leader=False,
        )
        return HashKv(
            response.header.member_id,
            response.hash,
            response.compact_revision,
            response.hash_revision,
        )

    async def alarm_list(self, *, timeout_s: float | None = None) -> tuple[Alarm, ...]:
        """Return the alarms that are raised.

        Source: etcd v3 Maintenance.Alarm (proto/rpc.proto).
        """
        request = pb.AlarmRequest(action=pb.AlarmRequest.GET)
        response = await self._transport.call(ALARM, request, write=False, timeout_s=timeout_s)
        return _alarms(response)

    async def alarm_disarm(
        self, member_id: int, kind: AlarmKind, *, timeout_s: float | None = None
    ) -> tuple[Alarm, ...]:
        """Clear one alarm of one member; return what was cleared. Safe to repeat.

        Raises:
            NoLeaderError, UnreachableError: Not cleared; safe to retry.
            OutcomeUnknownError: It may have been cleared.

        Source: etcd v3 Maintenance.Alarm (proto/rpc.proto).
        """
        request = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=member_id, alarm=kind)
        response = await self._transport.call(ALARM, request, write=True, timeout_s=timeout_s)
        return _alarms(response)


def _alarms(response: pb.AlarmResponse) -> tuple[Alarm, ...]:
    return tuple(Alarm(alarm.memberID, _ALARM_KINDS[alarm.alarm]) for alarm in response.alarms)
