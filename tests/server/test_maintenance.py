"""Status, HashKV, MemberList and grpc.health.v1 on real members."""

from __future__ import annotations

import grpc
import pytest

from kvstore.pb import health_pb2, rpc_pb2
from tests.server.raw import Raw, get
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

LINEARIZABLE = rpc_pb2.MemberListRequest(linearizable=True)


def connections(cluster: Kvstore) -> list[Raw]:
    return [Raw(endpoint) for endpoint in cluster.endpoints]


def test_status_has_every_field_of_etcds(trio: Kvstore) -> None:
    statuses = []
    for raw in connections(trio):
        with raw:
            raw.call("Put", rpc_pb2.PutRequest(key=b"status", value=b"1"))
            statuses.append(raw.call("Status"))
    assert len({status.header.cluster_id for status in statuses}) == 1
    assert len({status.header.member_id for status in statuses}) == 3
    assert len({status.leader for status in statuses}) == 1
    assert statuses[0].leader in {status.header.member_id for status in statuses}
    for status in statuses:
        assert status.version.count(".") == 2
        assert status.storageVersion.count(".") == 2
        assert status.raftTerm == status.header.raft_term > 0
        assert status.raftIndex >= status.raftAppliedIndex > 0
        assert status.dbSize >= status.dbSizeInUse > 0
        assert status.dbSizeQuota == 2 << 30
        assert not status.isLearner
        assert not status.errors


def test_status_without_a_leader_says_so(lonely: Kvstore) -> None:
    # It is how operators find out, so it must be answered then.
    with Raw(lonely.endpoints[0]) as raw:
        status = raw.call("Status")
    assert status.leader == 0
    assert list(status.errors) == ["etcdserver: no leader"]
    assert status.header.revision == 2


def test_every_member_lists_the_same_members(trio: Kvstore) -> None:
    lists = []
    for raw in connections(trio):
        with raw:
            for request in (LINEARIZABLE, rpc_pb2.MemberListRequest()):
                answer = raw.call("MemberList", request)
                assert answer.header.revision == 0
                lists.append(answer.members)
    assert all(members == lists[0] for members in lists)
    assert sorted(member.name for member in lists[0]) == ["e1", "e2", "e3"]
    assert {url for member in lists[0] for url in member.peerURLs} == set(trio.peer_urls)
    urls = {url for member in lists[0] for url in member.clientURLs}
    assert urls == {f"http://{endpoint}" for endpoint in trio.endpoints}


def test_without_a_leader_only_the_local_member_list_is_served(lonely: Kvstore) -> None:
    with Raw(lonely.endpoints[0]) as raw:
        assert len(raw.call("MemberList", rpc_pb2.MemberListRequest()).members) == 3
        refused = raw.refused("MemberList", LINEARIZABLE)
        at_once = raw.refused("MemberList", LINEARIZABLE, hasleader="true")
    assert refused == ("UNAVAILABLE", "etcdserver: request timed out")
    assert at_once == ("UNAVAILABLE", "etcdserver: no leader")


def test_hash_is_the_same_on_every_member_at_a_revision(trio: Kvstore) -> None:
    with Raw(trio.endpoints[0]) as raw:
        revision = raw.call("Put", rpc_pb2.PutRequest(key=b"hash", value=b"1")).header.revision
    request = rpc_pb2.HashKVRequest(revision=revision)
    answers = []
    for raw in connections(trio):
        with raw:
            # A fresh read first: a follower may be a moment behind.
            raw.call("Range", rpc_pb2.RangeRequest(key=b"hash"))
            answer = raw.call("HashKV", request)
            answers.append((answer.hash, answer.hash_revision, answer.compact_revision))
    assert len(set(answers)) == 1
    assert answers[0][1] == revision


def test_hash_moves_with_the_data(raw: Raw) -> None:
    def put(value: bytes) -> int:
        put = rpc_pb2.PutRequest(key=b"hash", value=value)
        return int(raw.call("Put", put).header.revision)

    def hash_at(revision: int = 0) -> rpc_pb2.HashKVResponse:
        answer: rpc_pb2.HashKVResponse = raw.call(
            "HashKV", rpc_pb2.HashKVRequest(revision=revision)
        )
        return answer

    first = put(b"1")
    old = hash_at()
    assert (old.hash_revision, old.header.revision) == (first, first)
    second = put(b"2")
    assert hash_at().hash != old.hash
    assert hash_at(first).hash == old.hash
    assert hash_at(first).header.revision == second
    assert raw.refused("HashKV", rpc_pb2.HashKVRequest(revision=second + 1)) == (
        "OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision",
    )  # fmt: skip
    raw.call("Compact", rpc_pb2.CompactionRequest(revision=second))
    assert raw.refused("HashKV", rpc_pb2.HashKVRequest(revision=first)) == (
        "OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted",
    )  # fmt: skip
    assert hash_at(second).compact_revision == second


def health_watch(raw: Raw) -> grpc.UnaryStreamMultiCallable:
    return raw.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


def test_the_health_service_answers_for_the_whole_member(raw: Raw) -> None:
    # Kubernetes' grpc probe and Envoy ask this one.
    answer = raw.call("Check", health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert raw.refused("Check", health_pb2.HealthCheckRequest(service="nobody")) == (
        "NOT_FOUND", "unknown service",
    )  # fmt: skip


def test_a_health_watch_tells_the_state_and_stays_open(raw: Raw) -> None:
    call = health_watch(raw)(health_pb2.HealthCheckRequest(), timeout=1)
    assert next(call).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Unlike Check, Watch answers for an unknown service: it may be added later.
    unknown = health_watch(raw)(health_pb2.HealthCheckRequest(service="nobody"))
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etcdserverpb.Auth/UserList", "unknown service etcdserverpb.Auth"),
        (
            "/etcdserverpb.Maintenance/Downgrade",
            "unknown method Downgrade for service etcdserverpb.Maintenance",
        ),
    ],
)
def test_what_is_not_built_is_unimplemented(raw: Raw, path: str, text: str) -> None:
    # In grpc-go's words: clients tell "not there" from "broken" by the code.
    with pytest.raises(grpc.RpcError) as refused:
        raw.channel.unary_unary(path)(b"", timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert refused.value.details() == text


def test_a_request_that_is_no_message_is_refused(member: Kvstore, raw: Raw) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        raw.channel.unary_unary("/etcdserverpb.KV/Put")(b"\xff\xff\xff", timeout=5)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert "unmarshalling" in refused.value.details()
    assert get(member.endpoints[0], "/health").status == 200


def test_health_watch_says_that_the_member_stops() -> None:
    # Clients that balance by it (gRPC's health checking) leave before calls fail.
    with Kvstore(1) as cluster, Raw(cluster.endpoints[0]) as raw:
        call = health_watch(raw)(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(call).status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_watch(raw)(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert cluster.terminate(0) == 0
        assert next(call).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for ended in (call, unknown):
            with pytest.raises(grpc.RpcError) as caught:
                next(ended)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_member_without_a_leader_is_serving_as_etcds(lonely: Kvstore) -> None:
    # It serves serializable reads, and /readyz tells the rest.
    with Raw(lonely.endpoints[0]) as raw:
        call = health_watch(raw)(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(call).status == health_pb2.HealthCheckResponse.SERVING
        answer = raw.call("Check", health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call.cancel()
