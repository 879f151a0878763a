"""Metric readings of the parts around the core: peers, leases, requests; changes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvstore.server.errors import Code
from kvstore.server.metrics import Reading, method_labels

if TYPE_CHECKING:
    from kvstore.server.member import Member

CODE_NAMES = {
    code.value: "OK" if code is Code.OK else code.name.title().replace("_", "") for code in Code
} | {Code.CANCELLED.value: "Canceled"}
"""As grpc-go writes them."""


def gauges(member: Member) -> Iterator[Reading]:
    """Yield what goes up and down."""
    yield Reading(
        "etcd_server_snapshot_apply_in_progress_total",
        "1 if the server is applying the incoming snapshot. 0 if none.",
        member.node.installing,
    )
    yield Reading(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written in WAL.",
        member.wal.written_bytes,
    )
    # etcd's names of these two do not end as a counter's must.
    yield Reading(
        "etcd_server_health_success", "The total number of successful health checks",
        member.http.health_success,
    )  # fmt: skip
    yield Reading(
        "etcd_server_health_failures", "The total number of failed health checks",
        member.http.health_failures,
    )  # fmt: skip
    yield Reading(
        "etcd_debugging_mvcc_pending_events_total",
        "Total number of pending events to be sent, at most: revisions that watchers have to pass.",
        member.watches.statistics().revisions_pending,
    )
    yield Reading(
        "etcd_debugging_mvcc_db_compaction_last",
        "The unix time of the last db compaction. Resets to 0 on start.",
        member.metrics.last_purge_s,
    )
    sessions = member.sessions.sessions
    yield Reading("kvstore_session_open", "Sessions that are open.", len(sessions))
    yield Reading(
        "kvstore_session_unanswered",
        "Operations of sessions that wait for their answers.",
        sum(len(session.calls) for session in sessions),
    )
    yield Reading(
        "kvstore_session_streams",
        "Streams inside sessions: watches and lease renewals.",
        sum(len(session.streams) for session in sessions),
    )
    yield from _snapshots(member)
    for peer in member.cluster.list_plain():
        if peer.id != member.id:
            yield Reading(
                "etcd_network_known_peers",
                "The current number of known peers.",
                1,
                {"Local": f"{member.id:x}", "Remote": f"{peer.id:x}"},
            )
    if os.path.isdir(descriptors := "/proc/self/fd"):
        yield Reading(
            "os_fd_used", "The number of used file descriptors.", len(os.listdir(descriptors))
        )


def counters(member: Member) -> Iterator[Reading]:
    """Yield what only grows. Those of the store start again when a snapshot replaces it."""
    store, lessor = member.store, member.replica.lessor
    for name, text, value in (
        ("etcd_mvcc_put", "Total number of puts seen by this member.", store.puts),
        ("etcd_mvcc_delete", "Total number of deletes seen by this member.", store.deletes),
        ("etcd_mvcc_txn", "Total number of txns seen by this member.", store.txns),
        ("etcd_debugging_lease_granted", "The total number of granted leases.", lessor.granted),
        ("etcd_debugging_lease_revoked", "The total number of revoked leases.", lessor.revoked),
        (
            "etcd_debugging_lease_renewed",
            "The number of renewed leases seen by the leader.",
            member.leases.renewed,
        ),
        (
            "etcd_server_heartbeat_send_failures",
            "The total number of leader heartbeat send failures (likely overloaded).",
            member.late_heartbeats,
        ),
        (
            "etcd_server_slow_apply",
            "The total number of slow apply requests (likely overloaded from slow disk).",
            member.node.slow_applies,
        ),
        (
            "etcd_debugging_mvcc_db_compaction_keys",
            "Total number of db keys compacted.",
            store.purged_records,
        ),
    ):
        yield Reading(name, text, value)
    yield from _peers(member)
    yield from _calls(member)
    yield from _sessions(member)


def _peers(member: Member) -> Iterator[Reading]:
    for peer in member.cluster.list_plain():
        if peer.id == member.id:
            continue
        traffic = member.links.traffic(peer.id)
        to, sender = {"To": f"{peer.id:x}"}, {"From": f"{peer.id:x}"}
        for name, text, value, labels in (
            ("sent_bytes", "The total number of bytes sent to peers.", traffic.sent, to),
            ("received_bytes", "The total number of bytes received from peers.",
             traffic.received, sender),
            ("sent_failures", "The total number of send failures from peers.", traffic.dropped, to),
        ):  # fmt: skip
            yield Reading(f"etcd_network_peer_{name}", text, value, labels)
        yield Reading(
            "etcd_network_disconnected_peers",
            "The total number of disconnected peers.",
            traffic.losses,
            {"Local": f"{member.id:x}", "Remote": f"{peer.id:x}"},
        )


def _snapshots(member: Member) -> Iterator[Reading]:
    # etcd's names of these do not end as a counter's must, or end so as gauges.
    for way, label, transfers in (
        ("send", "To", member.sending),
        ("receive", "From", member.receiving_from),
    ):
        for name, text, counts in (
            ("inflights_total", f"Total number of inflight snapshot {way}s", transfers.inflight),
            ("success", f"Total number of successful snapshot {way}s", transfers.succeeded),
            ("failures", f"Total number of snapshot {way} failures", transfers.failed),
        ):
            for peer, count in counts.items():
                labels = {label: f"{peer:x}"}
                yield Reading(f"etcd_network_snapshot_{way}_{name}", text, count, labels)


def _calls(member: Member) -> Iterator[Reading]:
    requests: Counter[tuple[str, str]] = Counter()
    for method in member.server.methods():
        labels = method_labels(method.path, unary=method.unary)
        for name, text, value in (
            ("started", "Total number of RPCs started on the server.", method.started),
            (
                "msg_received",
                "Total number of RPC stream messages received on the server.",
                method.received,
            ),
            ("msg_sent", "Total number of gRPC stream messages sent by the server.", method.sent),
        ):
            yield Reading(f"grpc_server_{name}", text, value, labels)
        for code, count in method.handled.items():
            yield Reading(
                "grpc_server_handled",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                count,
                {**labels, "grpc_code": CODE_NAMES[code]},
            )
        for version, count in method.started_by.items():
            requests["unary" if method.unary else "stream", version] += count
    for (kind, version), count in requests.items():
        yield Reading(
            "etcd_server_client_requests",
            "The total number of client requests per client version.",
            count,
            {"type": kind, "client_api_version": version},
        )


def _sessions(member: Member) -> Iterator[Reading]:
    service = member.sessions
    traffic = service.traffic
    for name, text, value in (
        ("opened", "Sessions opened.", traffic.opened),
        ("frames_received", "Frames that came in sessions.", traffic.frames_received),
        ("frames_sent", "Frames sent in sessions.", traffic.frames_sent),
        ("received_bytes", "Bytes of the frames that came in sessions.", traffic.received_bytes),
        ("sent_bytes", "Bytes of the frames sent in sessions.", traffic.sent_bytes),
    ):
        yield Reading(f"kvstore_session_{name}", text, value)
    for served in service.methods:
        # Not calls of gRPC, whose counters have the stream that carries the session.
        labels = method_labels(served.path, unary=served.unary is not None)
        yield Reading(
            "kvstore_session_operations",
            "Operations and streams that came in sessions, by method.",
            served.started,
            labels,
        )
