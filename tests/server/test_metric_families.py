"""Each family of the metrics page moves with the work it measures, on real members."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

import grpc
import pytest

from kvstore.client import Client, Op
from kvstore.pb import rpc_pb2
from tests.server.raw import Raw, get
from tests.server.scrape import Growth, Samples, families
from tests.servers import Etcd, Kvstore

OF_MIXIN = """
etcd_disk_backend_commit_duration_seconds_bucket etcd_disk_wal_fsync_duration_seconds_bucket
etcd_mvcc_db_total_size_in_bytes etcd_mvcc_db_total_size_in_use_in_bytes
etcd_network_client_grpc_received_bytes_total etcd_network_client_grpc_sent_bytes_total
etcd_network_peer_received_bytes_total etcd_network_peer_round_trip_time_seconds_bucket
etcd_network_peer_sent_bytes_total etcd_network_peer_sent_failures_total
etcd_server_has_leader etcd_server_leader_changes_seen_total etcd_server_proposals_applied_total
etcd_server_proposals_committed_total etcd_server_proposals_failed_total
etcd_server_proposals_pending etcd_server_quota_backend_bytes
grpc_server_handled_total grpc_server_handling_seconds_bucket grpc_server_started_total
process_resident_memory_bytes
"""
"""What the alerts and the dashboard of etcd's contrib/mixin ask for."""

NOT_BY_DEFAULT = {
    "grpc_server_handling_seconds_bucket": "etcd too has it with --metrics=extensive only",
}
ABSENT = {
    "etcd_debugging_auth_revision": "no authentication yet",
    "etcd_debugging_disk_backend_commit_": "steps of bbolt's commit",
    "etcd_debugging_mvcc_db_total_size_in_bytes": "gone from etcd 3.6",
    "etcd_debugging_mvcc_delete_total": "gone from etcd 3.6",
    "etcd_debugging_mvcc_index_compaction_": "the index is cleaned in the slices of the store",
    "etcd_debugging_mvcc_put_total": "gone from etcd 3.6",
    "etcd_debugging_mvcc_range_total": "gone from etcd 3.6",
    "etcd_debugging_mvcc_total_put_size_in_bytes": "would cost on every put; see the log's bytes",
    "etcd_debugging_mvcc_txn_total": "gone from etcd 3.6",
    "etcd_debugging_snap_save_": "no snapshot file is written beside the store",
    "etcd_debugging_store_": "API version 2",
    "etcd_disk_backend_defrag_": "Defragment is not offered",
    "etcd_disk_defrag_inflight": "Defragment is not offered",
    "etcd_grpc_proxy_": "no proxy",
    "etcd_mvcc_db_open_read_transactions": "LMDB does not count them",
    "etcd_mvcc_hash_duration_seconds": "Maintenance.Hash is not offered; see ..._hash_rev_...",
    "etcd_server_go_version": "no Go",
    "etcd_server_learner_promote_successes": "rare, and a line in the log each",
    "etcd_snap_fsync_": "no snapshot file is written beside the store",
    "go_": "no Go",
    "process_virtual_memory_max_bytes": "a limit that nobody sets",
    "promhttp_": "of the library that serves etcd's page",
}
"""What etcd shows and we do not, by the beginning of its name, and why."""

WAIT_S = 20.0

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def extensive() -> Iterator[Kvstore]:
    with Kvstore(1, flags=("--metrics", "extensive")) as cluster:
        yield cluster


def test_what_etcds_alerts_and_dashboard_ask_for_is_there(
    trio: Kvstore, extensive: Kvstore
) -> None:
    with Raw(trio.endpoints[0]) as raw:
        raw.call("Put", rpc_pb2.PutRequest(key=b"mixin", value=b"1"))
    wait_for_round_trips(trio)
    names = {sample.name for sample in Samples(trio.endpoints[0]).all}
    assert set(OF_MIXIN.split()) - names == set(NOT_BY_DEFAULT)
    assert set(NOT_BY_DEFAULT) <= {sample.name for sample in Samples(extensive.endpoints[0]).all}


@pytest.mark.etcd
def test_labels_and_buckets_are_etcds(extensive: Kvstore) -> None:
    # A dashboard that groups by a label, or a recording rule that names a bucket, must go on.
    if (reason := Etcd.missing()) is not None:
        pytest.skip(reason)
    with Etcd(1, flags=("--metrics", "extensive")) as etcd:
        shapes = []
        for endpoint in (etcd.endpoints[0], extensive.endpoints[0]):
            with Raw(endpoint) as raw:
                raw.call("Put", rpc_pb2.PutRequest(key=b"k", value=b"1"))
                raw.call("Range", rpc_pb2.RangeRequest(key=b"k"))
            get(endpoint, "/health")
            shapes.append(shape_of(endpoint))
    theirs, ours = shapes
    shared = theirs.keys() & ours.keys()
    assert len(shared) > 50
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    # The parser puts the ending of counters behind names that have none.
    missing = {
        name for name in theirs.keys() - ours.keys() if name.removesuffix("_total") not in ours
    }
    assert {name for name in missing if not name.startswith(tuple(ABSENT))} == set()
    # The list stays true: nothing is in it that we have.
    assert {name for name in ours if name.startswith(tuple(ABSENT))} == set()


def shape_of(endpoint: str) -> dict[str, tuple[set[str], set[str]]]:
    """Return the label names and the bucket bounds of each sample name."""
    labels: dict[str, set[str]] = defaultdict(set)
    bounds: dict[str, set[str]] = defaultdict(set)
    for family in families(endpoint):
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
            bounds[sample.name] |= {sample.labels.get("le", "")}
    return {name: (labels[name], bounds[name]) for name in labels}


def test_round_trips_between_members(trio: Kvstore) -> None:
    wait_for_round_trips(trio)
    page = Samples(trio.endpoints[0])
    sums = [s.value for s in page.all if s.name == "etcd_network_peer_round_trip_time_seconds_sum"]
    assert all(0 < value < WAIT_S for value in sums)


def wait_for_round_trips(cluster: Kvstore) -> None:
    """Return when every member has measured those to both others."""
    name = "etcd_network_peer_round_trip_time_seconds_count"
    ends_at = time.monotonic() + WAIT_S
    for endpoint in cluster.endpoints:
        while sum(sample.name == name for sample in Samples(endpoint).all) < 2:
            assert time.monotonic() < ends_at, "no round trip was measured"
            time.sleep(0.05)  # nothing to await: another process's timer


def test_applying_is_measured_by_operation_and_outcome(member: Kvstore, raw: Raw) -> None:
    growth = Growth(member.endpoints[0])
    raw.call("Put", rpc_pb2.PutRequest(key=b"families", value=b"1"))
    raw.call("Put", rpc_pb2.PutRequest(key=b"families", value=b"2"))
    raw.refused("Put", rpc_pb2.PutRequest(key=b"families", lease=404))
    raw.call("DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"families"))
    growth.look()

    def applied(op: str, success: str) -> float:
        return growth.of(
            "etcd_server_apply_duration_seconds_count", version="v3", op=op, success=success
        )

    assert applied("Put", "true") == 2
    assert applied("Put", "false") == 1
    assert applied("DeleteRange", "true") == 1
    assert growth.of("etcd_server_apply_duration_seconds_sum", op="Put", success="true") > 0


def test_lives_of_leases(member: Kvstore, raw: Raw) -> None:
    growth = Growth(member.endpoints[0])
    for ttl_s in (20, 300):
        lease = raw.call("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl_s)).ID
        raw.call("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease))
    growth.look()
    assert growth.of("etcd_debugging_lease_ttl_total_count") == 2
    assert growth.of("etcd_debugging_lease_ttl_total_sum") == 320
    assert growth.of("etcd_debugging_lease_ttl_total_bucket", le="32") == 1


def test_a_batch_counts_as_its_operations(member: Kvstore) -> None:
    growth = Growth(member.endpoints[0])
    with Client(member.endpoints) as client:
        pipeline = client.pipeline()
        for number in range(20):
            pipeline.then(Op.put(b"families/%d" % number, b"x"))
        pipeline.commit()
    name = "etcd_server_apply_duration_seconds_count"
    assert growth.look().of(name, op="Put", success="true") == 20


def test_ranges_are_measured(member: Kvstore, raw: Raw) -> None:
    now = raw.call("Put", rpc_pb2.PutRequest(key=b"families", value=b"1")).header.revision
    growth = Growth(member.endpoints[0])
    raw.call("Range", rpc_pb2.RangeRequest(key=b"families"))
    raw.call("Range", rpc_pb2.RangeRequest(key=b"families", serializable=True))
    # At a revision it is read in slices.
    raw.call("Range", rpc_pb2.RangeRequest(key=b"f", range_end=b"g", revision=now))
    raw.refused("Range", rpc_pb2.RangeRequest(key=b"families", revision=1 << 40))
    growth.look()
    name = "etcd_server_range_duration_seconds"
    assert growth.of(f"{name}_count", success="true") == 3
    assert growth.of(f"{name}_count", success="false") == 1
    assert growth.of(f"{name}_sum", success="true") > 0


def test_hash_and_compaction_are_measured(member: Kvstore, raw: Raw) -> None:
    for number in range(30):
        header = raw.call("Put", rpc_pb2.PutRequest(key=b"families", value=b"%d" % number)).header
    growth = Growth(member.endpoints[0])
    started = time.time()
    raw.call("HashKV")
    raw.call("Compact", rpc_pb2.CompactionRequest(revision=header.revision, physical=True))
    growth.look()
    assert growth.of("etcd_mvcc_hash_rev_duration_seconds_count") == 1
    debugging = "etcd_debugging_mvcc_db_compaction"
    assert growth.of(f"{debugging}_keys_total") >= 29
    assert growth.of(f"{debugging}_pause_duration_milliseconds_count") >= 1
    assert growth.of(f"{debugging}_total_duration_milliseconds_count") == 1
    last = Samples(member.endpoints[0]).value(f"{debugging}_last")
    assert started - 1 <= last <= time.time() + 1


def test_messages_of_calls_are_counted(member: Kvstore, raw: Raw) -> None:
    growth = Growth(member.endpoints[0])
    watch = raw.channel.stream_stream(
        "/etcdserverpb.Watch/Watch", response_deserializer=rpc_pb2.WatchResponse.FromString
    )
    create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"families"))
    call = watch(iter([create.SerializeToString()]))
    assert next(call).created
    raw.call("Put", rpc_pb2.PutRequest(key=b"families", value=b"1"))
    assert next(call).events
    call.cancel()
    raw.refused("Put", rpc_pb2.PutRequest(value=b"no key"))
    growth.look()

    def counted(service: str, method: str) -> tuple[float, float]:
        labels = {"grpc_service": service, "grpc_method": method}
        return (
            growth.of("grpc_server_msg_received_total", **labels),
            growth.of("grpc_server_msg_sent_total", **labels),
        )

    assert counted("etcdserverpb.Watch", "Watch") == (1, 2)
    assert counted("etcdserverpb.KV", "Put") == (2, 1)  # an error is no message


def test_requests_are_counted_by_the_clients_version(member: Kvstore, raw: Raw) -> None:
    growth = Growth(member.endpoints[0])
    for version in ("3.6", "3.6", "3.4"):
        raw.call("Status", **{"client-api-version": version})
    raw.call("Status")
    growth.look()
    name = "etcd_server_client_requests_total"
    assert growth.of(name, type="unary", client_api_version="3.6") == 2
    assert growth.of(name, type="unary", client_api_version="3.4") == 1
    assert growth.of(name, type="unary", client_api_version="unknown") == 1


def test_clients_cannot_invent_versions_without_end(member: Kvstore, raw: Raw) -> None:
    # Each would be a series for ever.
    for number in range(40):
        raw.call("MemberList", **{"client-api-version": f"invented-{number}"})
    raw.call("MemberList", **{"client-api-version": "x" * 100})
    page = Samples(member.endpoints[0])
    invented = {
        sample.labels["client_api_version"]
        for sample in page.all
        if sample.name == "etcd_server_client_requests_total"
    }
    assert len(invented) <= 25
    assert "other" in invented


def test_sessions_are_counted(member: Kvstore) -> None:
    endpoint = member.endpoints[0]
    growth = Growth(endpoint)
    with Client(member.endpoints, transport="session") as client:
        first = client.put(b"families", b"1")
        client.get(b"families")
        client.pipeline().then(Op.put(b"families", b"2"), Op.get(b"families")).commit()
        with client.watch(b"families", start_revision=first.revision) as watcher:
            next(watcher)
            growth.look()
            page = Samples(endpoint)
    assert growth.of("kvstore_session_open") == 1
    assert growth.of("kvstore_session_streams") == 1
    assert page.value("kvstore_session_unanswered") == 0
    assert growth.of("kvstore_session_opened_total") == 1

    def operations(method: str) -> float:
        return growth.of("kvstore_session_operations_total", grpc_method=method)

    assert (operations("Put"), operations("Range")) == (2, 2)
    assert growth.of("kvstore_session_operations_total", grpc_service="etcdserverpb.Watch") == 1
    for way in ("received", "sent"):
        assert growth.of(f"kvstore_session_frames_{way}_total") >= 4
        assert growth.of(f"kvstore_session_{way}_bytes_total") > 50
    # They are not calls of gRPC.
    assert growth.of("grpc_server_started_total", grpc_method="Put") == 0
    assert growth.of("grpc_server_started_total", grpc_service="kvstore.Session") == 1


def test_durations_of_calls_on_request(extensive: Kvstore, member: Kvstore) -> None:
    growth = Growth(extensive.endpoints[0])
    with Raw(extensive.endpoints[0]) as raw:
        raw.call("Put", rpc_pb2.PutRequest(key=b"k", value=b"1"))
        raw.refused("Put", rpc_pb2.PutRequest(value=b"no key"))
        watch = raw.channel.stream_stream("/etcdserverpb.Watch/Watch")(iter([b""]))
        watch.cancel()
        with pytest.raises(grpc.RpcError):
            next(watch)
        raw.call("Status")  # behind the reset
    growth.look()
    name = "grpc_server_handling_seconds"
    labels = {"grpc_service": "etcdserverpb.KV", "grpc_method": "Put", "grpc_type": "unary"}
    assert growth.of(f"{name}_count", **labels) == 2
    assert 0 < growth.of(f"{name}_sum", **labels) < WAIT_S
    labels = {"grpc_service": "etcdserverpb.Watch", "grpc_type": "bidi_stream"}
    assert growth.of(f"{name}_count", **labels) == 1
    assert name not in get(member.endpoints[0], "/metrics").text


def test_events_that_a_slow_reader_has_not_got_are_pending(member: Kvstore, raw: Raw) -> None:
    endpoint = member.endpoints[0]
    name = "etcd_debugging_mvcc_pending_events_total"
    with Raw(endpoint) as slow:
        watch = slow.channel.stream_stream(
            "/etcdserverpb.Watch/Watch", response_deserializer=rpc_pb2.WatchResponse.FromString
        )
        create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"slow"))
        call = watch(iter([create.SerializeToString()]))
        assert next(call).created
        puts = 0
        while Samples(endpoint).value(name) < 2:
            assert puts < 500, "the reader takes everything"
            puts += 1
            raw.call("Put", rpc_pb2.PutRequest(key=b"slow", value=bytes(100_000)))
        seen = 0
        while seen < puts:
            seen += len(next(call).events)
        assert Samples(endpoint).value(name) == 0
        call.cancel()


def test_snapshots_are_measured_on_both_sides() -> None:
    with Kvstore(3, flags=("--snapshot-count", "10")) as cluster:
        leader = cluster.leader()
        away = (leader + 1) % 3
        cluster.kill(away)
        with Raw(cluster.endpoints[leader]) as raw:
            ends_at = time.monotonic() + WAIT_S
            while Samples(cluster.endpoints[leader]).value("kvstore_log_first_index") < 50:
                assert time.monotonic() < ends_at
                raw.call("Put", rpc_pb2.PutRequest(key=b"k", value=b"1"))
        cluster.restart(away)
        sender, receiver = Samples(cluster.endpoints[leader]), Samples(cluster.endpoints[away])
        to = {"To": server_id(receiver)}
        origin = {"From": server_id(sender)}
        assert sender.value("etcd_network_snapshot_send_success", **to) == 1
        assert sender.value("etcd_network_snapshot_send_inflights_total", **to) == 0
        assert sender.value("etcd_network_snapshot_send_total_duration_seconds_count", **to) == 1
        assert sender.value("etcd_disk_backend_snapshot_duration_seconds_count") == 1
        assert sender.value("etcd_network_disconnected_peers_total", Remote=to["To"]) >= 1
        assert receiver.value("etcd_network_snapshot_receive_success", **origin) == 1
        assert (
            receiver.value("etcd_network_snapshot_receive_total_duration_seconds_count", **origin)
            == 1
        )
        assert receiver.value("etcd_snap_db_save_total_duration_seconds_count") == 1
        assert receiver.value("etcd_snap_db_fsync_duration_seconds_count") == 1


def server_id(page: Samples) -> str:
    [found] = [sample.labels["server_id"] for sample in page.all if sample.name == "etcd_server_id"]
    return found
