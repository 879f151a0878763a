"""What an operator sees of a member: Status, health checks, metric readings; changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvstore import __version__
from kvstore.apply.alarms import CORRUPT, NOSPACE
from kvstore.compiled import form
from kvstore.pb import rpc_pb2
from kvstore.raft.messages import Role
from kvstore.server import readings
from kvstore.server.metrics import Reading

if TYPE_CHECKING:
    from kvstore.server.member import Member

ETCD_VERSION = "3.6.5"
"""The etcd release whose behaviour we speak; clients parse it and switch features on by it."""

CLUSTER_VERSION = "3.6.0"
STORAGE_VERSION = "3.6.0"


def alarm_name(alarm: int) -> str:
    """Return etcd's name of an alarm type; the number for one that has none, as Go prints it."""
    return {NOSPACE: "NOSPACE", CORRUPT: "CORRUPT"}.get(alarm, str(alarm))


class Observer:
    """Reads one member."""

    def __init__(self, member: Member) -> None:
        """Keep the member; everything is read when asked for."""
        self._member = member
        self._rate_at = time.monotonic()
        self._rate_ops = 0

    def status(self) -> rpc_pb2.StatusResponse:
        """Return Maintenance.Status without header."""
        member = self._member
        raft = member.raft.status()
        return rpc_pb2.StatusResponse(
            version=ETCD_VERSION,
            dbSize=member.backend.size_bytes(),
            leader=raft.leader,
            raftIndex=raft.committed,
            raftTerm=raft.term,
            raftAppliedIndex=member.node.applied_index,
            errors=self.errors(),
            dbSizeInUse=member.backend.used_bytes(),
            isLearner=member.is_learner,
            storageVersion=STORAGE_VERSION,
            dbSizeQuota=member.config.quota_bytes,
            downgradeInfo=rpc_pb2.DowngradeInfo(),
        )

    def errors(self) -> list[str]:
        """Return what is wrong, in etcd's words."""
        errors = [] if self._member.node.leader else ["etcdserver: no leader"]
        return errors + [
            f"memberID:{member} alarm:{alarm_name(alarm)} "
            for alarm, member in self._member.replica.alarms.get(0)
        ]

    def versions(self) -> dict[str, str]:
        """Return what GET /version tells."""
        return {
            "etcdserver": ETCD_VERSION,
            "etcdcluster": CLUSTER_VERSION,
            "storage": STORAGE_VERSION,
            "kvstore": __version__,
            "modules": form(),
        }

    def variables(self) -> dict[str, object]:
        """Return what the live view of `kvstore up` shows."""
        member = self._member
        now = time.monotonic()
        operations = member.node.applied_ops
        elapsed = max(now - self._rate_at, 1e-3)
        rate = (operations - self._rate_ops) / elapsed
        self._rate_at, self._rate_ops = now, operations
        return {
            "pid": os.getpid(),
            "role": member.node.role.name.lower(),
            "leader": f"{member.node.leader:x}" if member.node.leader else "",
            "term": member.node.term,
            "revision": member.store.revision,
            "applied_index": member.node.applied_index,
            "operations_per_s": rate,
            "db_size": member.backend.size_bytes(),
            "log": member.raft.log.size_bytes,
            "watch": member.watches.statistics()._asdict(),
        }

    def gauges(self) -> Iterator[Reading]:
        """Yield what goes up and down."""
        member = self._member
        node = member.node
        raft = member.raft.status()
        store = member.store
        yield Reading(
            "etcd_server_has_leader", "Whether or not a leader exists.", bool(node.leader)
        )
        yield Reading(
            "etcd_server_is_leader",
            "Whether or not this member is a leader.",
            node.role is Role.LEADER,
        )
        yield Reading(
            "etcd_server_is_learner",
            "Whether or not this member is a learner.",
            member.is_learner,
        )
        yield Reading(
            "etcd_server_id",
            "Server or member ID in hexadecimal format.",
            1,
            {"server_id": f"{member.id:x}"},
        )
        yield Reading(
            "etcd_server_version", "Which version is running.", 1, {"server_version": ETCD_VERSION}
        )
        yield Reading(
            "etcd_cluster_version",
            "Which version the cluster runs.",
            1,
            {"cluster_version": CLUSTER_VERSION},
        )
        yield Reading(
            "etcd_server_proposals_committed_total",
            "The total number of consensus proposals committed.",
            raft.committed,
        )
        yield Reading(
            "etcd_server_proposals_applied_total",
            "The total number of consensus proposals applied.",
            node.applied_index,
        )
        yield Reading(
            "etcd_server_proposals_pending",
            "The current number of pending proposals to commit.",
            node.proposals.count,
        )
        yield Reading(
            "etcd_server_quota_backend_bytes",
            "Current backend storage quota size in bytes.",
            member.config.quota_bytes,
        )
        yield Reading(
            "etcd_mvcc_db_total_size_in_bytes",
            "Total size of the underlying database physically allocated in bytes.",
            member.backend.size_bytes(),
        )
        yield Reading(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Total size of the underlying database logically in use in bytes.",
            member.backend.used_bytes(),
        )
        yield Reading(
            "etcd_debugging_mvcc_keys_total", "Total number of keys.", store.index.count(b"", b"")
        )
        yield Reading(
            "etcd_debugging_mvcc_current_revision", "The current revision of store.", store.revision
        )
        yield Reading(
            "etcd_debugging_mvcc_compact_revision",
            "The revision of the last compaction in store.",
            store.compacted,
        )
        yield Reading("kvstore_log_first_index", "Oldest entry kept in the log.", raft.first_index)
        yield Reading("kvstore_log_bytes", "Bytes of the entries kept.", raft.log_bytes)
        watch = member.watches.statistics()
        yield Reading(
            "etcd_debugging_mvcc_watch_stream_total",
            "Total number of watch streams.",
            watch.streams,
        )
        yield Reading(
            "etcd_debugging_mvcc_watcher_total", "Total number of watchers.", watch.watchers
        )
        yield Reading(
            "etcd_debugging_mvcc_slow_watcher_total",
            "Total number of unsynced slow watchers.",
            watch.behind,
        )
        yield from readings.gauges(member)
        for peer in member.cluster.list_plain():
            if peer.id != member.id:
                labels = {"Local": f"{member.id:x}", "Remote": f"{peer.id:x}"}
                yield Reading(
                    "etcd_network_active_peers",
                    "The current number of active peer connections.",
                    member.links.is_up(peer.id),
                    labels,
                )

    def counters(self) -> Iterator[Reading]:
        """Yield what only grows."""
        member = self._member
        node = member.node
        yield Reading(
            "etcd_server_leader_changes_seen",
            "The number of leader changes seen.",
            node.leader_changes,
        )
        yield Reading(
            "etcd_server_proposals_failed",
            "The total number of failed proposals seen.",
            node.proposals.failed,
        )
        yield Reading(
            "etcd_server_read_indexes_failed",
            "The total number of failed read indexes seen.",
            node.reads.failed,
        )
        yield Reading(
            "etcd_server_slow_read_indexes",
            "The total number of pending read indexes not in sync with leader's or timed "
            "out read index requests.",
            node.reads.slow,
        )
        yield Reading(
            "etcd_mvcc_range", "Total number of ranges seen by this member.", member.kv.range_total
        )
        yield Reading(
            "kvstore_operations_applied", "Operations applied from the log.", node.applied_ops
        )
        yield Reading(
            "etcd_debugging_mvcc_events",
            "Total number of events sent by this member.",
            member.watches.statistics().events_sent,
        )
        yield Reading(
            "etcd_debugging_server_lease_expired",
            "The total number of expired leases.",
            member.leases.expired,
        )
        yield Reading(
            "kvstore_snapshots_sent", "Snapshots sent to other members.", member.snapshots_sent
        )
        yield Reading(
            "kvstore_snapshots_installed",
            "Snapshots received and put in place.",
            member.snapshots_installed,
        )
        yield from readings.counters(member)
        rpc = member.server.statistics()
        yield Reading(
            "kvstore_client_connections_refused",
            "Connections closed at once because too many were open.",
            rpc.connections_refused,
        )
        yield Reading(
            "etcd_network_client_grpc_sent_bytes",
            "The total number of bytes sent to grpc clients.",
            rpc.sent_bytes,
        )
        yield Reading(
            "etcd_network_client_grpc_received_bytes",
            "The total number of bytes received from grpc clients.",
            rpc.received_bytes,
        )
