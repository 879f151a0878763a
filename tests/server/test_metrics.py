"""The metrics page: Prometheus reads it, and etcd's alerts and dashboards find their names."""

from __future__ import annotations

import math

import grpc
import pytest

from kvstore.pb import rpc_pb2
from tests.server.raw import Raw, get
from tests.server.scrape import Samples, families
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

NAMES = """
etcd_cluster_version
etcd_debugging_lease_granted_total etcd_debugging_lease_renewed_total
etcd_debugging_lease_revoked_total etcd_debugging_server_lease_expired_total
etcd_debugging_mvcc_compact_revision etcd_debugging_mvcc_current_revision
etcd_debugging_mvcc_events_total etcd_debugging_mvcc_keys_total
etcd_debugging_mvcc_slow_watcher_total etcd_debugging_mvcc_watch_stream_total
etcd_debugging_mvcc_watcher_total
etcd_disk_backend_commit_duration_seconds_bucket etcd_disk_wal_fsync_duration_seconds_bucket
etcd_disk_wal_write_bytes_total
etcd_mvcc_db_total_size_in_bytes etcd_mvcc_db_total_size_in_use_in_bytes
etcd_mvcc_delete_total etcd_mvcc_put_total etcd_mvcc_range_total etcd_mvcc_txn_total
etcd_network_active_peers etcd_network_known_peers
etcd_network_client_grpc_received_bytes_total etcd_network_client_grpc_sent_bytes_total
etcd_network_peer_received_bytes_total etcd_network_peer_sent_bytes_total
etcd_network_peer_sent_failures_total
etcd_server_has_leader etcd_server_health_failures etcd_server_health_success
etcd_server_heartbeat_send_failures_total etcd_server_id etcd_server_is_leader
etcd_server_is_learner etcd_server_leader_changes_seen_total
etcd_server_proposals_applied_total etcd_server_proposals_committed_total
etcd_server_proposals_failed_total etcd_server_proposals_pending
etcd_server_quota_backend_bytes etcd_server_read_indexes_failed_total
etcd_server_slow_apply_total etcd_server_slow_read_indexes_total
etcd_server_snapshot_apply_in_progress_total etcd_server_version
etcd_server_client_requests_total
etcd_server_apply_duration_seconds_bucket etcd_server_range_duration_seconds_bucket
etcd_debugging_mvcc_db_compaction_keys_total etcd_debugging_mvcc_db_compaction_last
etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds_bucket
etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_bucket
etcd_debugging_mvcc_pending_events_total
etcd_disk_backend_snapshot_duration_seconds_bucket
etcd_mvcc_hash_rev_duration_seconds_bucket
etcd_network_disconnected_peers_total
etcd_snap_db_fsync_duration_seconds_bucket etcd_snap_db_save_total_duration_seconds_bucket
grpc_server_handled_total grpc_server_started_total
grpc_server_msg_received_total grpc_server_msg_sent_total
os_fd_limit os_fd_used
process_cpu_seconds_total process_max_fds process_open_fds process_resident_memory_bytes
process_start_time_seconds process_virtual_memory_bytes
"""
OF_ETCD = set(NAMES.split())
LABELS = {
    "etcd_network_active_peers": {"Local", "Remote"},
    "etcd_network_known_peers": {"Local", "Remote"},
    "etcd_network_peer_sent_bytes_total": {"To"},
    "etcd_network_peer_sent_failures_total": {"To"},
    "etcd_network_peer_received_bytes_total": {"From"},
    "etcd_server_id": {"server_id"},
    "etcd_server_version": {"server_version"},
    "etcd_cluster_version": {"cluster_version"},
    "etcd_network_disconnected_peers_total": {"Local", "Remote"},
    "etcd_server_client_requests_total": {"type", "client_api_version"},
    "grpc_server_started_total": {"grpc_service", "grpc_method", "grpc_type"},
    "grpc_server_handled_total": {"grpc_service", "grpc_method", "grpc_type", "grpc_code"},
}


def test_prometheus_reads_the_page(trio: Kvstore) -> None:
    for family in families(trio.endpoints[0]):
        assert family.documentation, family.name
        for sample in family.samples:
            assert math.isfinite(sample.value) or sample.labels.get("le") == "+Inf", sample


def test_the_names_and_labels_of_etcd_are_there(trio: Kvstore) -> None:
    with Raw(trio.endpoints[0]) as raw:
        raw.call("Put", rpc_pb2.PutRequest(key=b"named"))  # some families begin with the first call
    samples = Samples(trio.endpoints[0]).all
    assert OF_ETCD - {sample.name for sample in samples} == set()
    for name, labels in LABELS.items():
        for sample in samples:
            assert sample.name != name or set(sample.labels) == labels, sample
    # A label twice with one value would make Prometheus refuse the whole page.
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
    assert len(series) == len(set(series))


def test_exactly_one_member_leads_and_all_see_each_other(trio: Kvstore) -> None:
    pages = [Samples(endpoint) for endpoint in trio.endpoints]
    assert sum(page.value("etcd_server_is_leader") for page in pages) == 1
    for page in pages:
        assert page.value("etcd_server_has_leader") == 1
        active = [s.value for s in page.all if s.name == "etcd_network_active_peers"]
        assert active == [1, 1]


def test_counters_follow_the_work(member: Kvstore, raw: Raw) -> None:
    endpoint = member.endpoints[0]
    before = Samples(endpoint)
    put = rpc_pb2.PutRequest(key=b"metric", value=b"1")
    raw.call("Put", put)
    operations = [
        rpc_pb2.RequestOp(request_put=put),
        rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"metric")),
    ]
    raw.call("Txn", rpc_pb2.TxnRequest(success=operations))
    raw.call("Range", rpc_pb2.RangeRequest(key=b"metric"))
    raw.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"metric"))
    lease = raw.call("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=100)).ID
    raw.keep_alive(lease)
    raw.call("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease))
    raw.refused("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease))
    get(endpoint, "/health")
    after = Samples(endpoint)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    for name, by in (
        ("etcd_mvcc_put_total", 2), ("etcd_mvcc_txn_total", 1), ("etcd_mvcc_range_total", 1),
        ("etcd_mvcc_delete_total", 1), ("etcd_debugging_lease_granted_total", 1),
        ("etcd_debugging_lease_renewed_total", 1), ("etcd_debugging_lease_revoked_total", 1),
        ("etcd_debugging_mvcc_current_revision", 3), ("etcd_server_health_success", 1),
    ):  # fmt: skip
        assert grown(name) == by, name
    assert grown("etcd_disk_wal_write_bytes_total") > 0
    assert grown("etcd_disk_wal_fsync_duration_seconds_count") > 0
    assert grown("kvstore_loop_lag_seconds_count") >= 0
    handled = "grpc_server_handled_total"
    assert grown(handled, grpc_method="Put", grpc_code="OK") == 1
    assert grown(handled, grpc_method="LeaseRevoke", grpc_code="OK") == 1
    assert grown(handled, grpc_method="LeaseRevoke", grpc_code="NotFound") == 1
    assert grown(handled, grpc_method="LeaseKeepAlive", grpc_code="OK") == 1
    assert grown("grpc_server_started_total", grpc_method="LeaseRevoke") == 2


def test_streams_count_as_handled_when_they_end(member: Kvstore, raw: Raw) -> None:
    # etcd's dashboard shows started minus handled as the open streams.
    def streams() -> tuple[float, float, float]:
        page = Samples(member.endpoints[0])
        labels = {"grpc_service": "etcdserverpb.Watch", "grpc_type": "bidi_stream"}
        return (
            page.value("grpc_server_started_total", **labels),
            page.value("grpc_server_handled_total", **labels, grpc_code="Canceled"),
            page.value("grpc_server_handled_total", **labels, grpc_code="OK"),
        )

    started, cancelled, ok = streams()
    watch = raw.channel.stream_stream(
        "/etcdserverpb.Watch/Watch", response_deserializer=rpc_pb2.WatchResponse.FromString
    )
    create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"metric"))
    call = watch(iter([create.SerializeToString()]))
    assert next(call).created
    assert streams() == (started + 1, cancelled, ok)
    call.cancel()
    with pytest.raises(grpc.RpcError):
        next(call)
    # A call behind the reset on the same connection is served after it.
    raw.call("Status")
    assert streams() == (started + 1, cancelled + 1, ok)


def test_without_a_leader_the_page_says_so(lonely: Kvstore) -> None:
    page = Samples(lonely.endpoints[0])
    assert page.value("etcd_server_has_leader") == 0
    assert [s.value for s in page.all if s.name == "etcd_network_active_peers"] == [0, 0]
