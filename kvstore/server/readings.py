"""Metric readings of the parts around the core: peers, leases, requests; changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvstore.server.errors import Code
from kvstore.server.metrics import Reading

if TYPE_CHECKING:
    from kvstore.server.member import Member

CODE_NAMES = {
    code.value: "OK" if code is Code.OK else code.name.title().replace("_", "") for code in Code
} | {Code.CANCELLED.value: "Canceled"}
"""As grpc-go writes them."""

SERVER_STREAMS = {"/grpc.health.v1.Health/Watch"}
"""Streaming methods with one request; all others of ours are streams both ways."""


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
    ):
        yield Reading(name, text, value)
    yield from _peers(member)
    yield from _calls(member)


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


def _calls(member: Member) -> Iterator[Reading]:
    for method in member.server.methods():
        service, _, name = method.path[1:].partition("/")
        kind = "server_stream" if method.path in SERVER_STREAMS else "bidi_stream"
        labels = {
            "grpc_service": service,
            "grpc_method": name,
            "grpc_type": "unary" if method.unary else kind,
        }
        yield Reading(
            "grpc_server_started",
            "Total number of RPCs started on the server.",
            method.started,
            labels,
        )
        for code, count in method.handled.items():
            yield Reading(
                "grpc_server_handled",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                count,
                {**labels, "grpc_code": CODE_NAMES[code]},
            )
