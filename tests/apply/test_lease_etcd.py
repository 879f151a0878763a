"""The same lease requests to a real etcd and to an applier: responses, errors and events agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from kvstore.apply import ops, responses
from kvstore.pb import rpc_pb2
from kvstore.server.errors import wire_error
from tests.apply.test_applier import Member
from tests.mvcc.etcd import EXECUTABLE, Etcd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(EXECUTABLE is None, reason="needs etcd (Debian package etcd-server)"),
]

KINDS = {
    rpc_pb2.PutRequest: (ops.PUT, "KV/Put", rpc_pb2.PutResponse),
    rpc_pb2.DeleteRangeRequest: (
        ops.DELETE_RANGE,
        "KV/DeleteRange",
        rpc_pb2.DeleteRangeResponse,
    ),
    rpc_pb2.LeaseGrantRequest: (
        ops.LEASE_GRANT,
        "Lease/LeaseGrant",
        rpc_pb2.LeaseGrantResponse,
    ),
    rpc_pb2.LeaseRevokeRequest: (
        ops.LEASE_REVOKE,
        "Lease/LeaseRevoke",
        rpc_pb2.LeaseRevokeResponse,
    ),
}


class Both:
    def __init__(self, etcd: Etcd) -> None:
        self.channel = etcd._channel
        self.member = Member()

    def ours(self, request: Any) -> Any:
        kind, _, response = KINDS[type(request)]
        result = self.member.one(kind, request)
        if isinstance(result, Exception):
            code, text = wire_error(result)
            return code.name, text
        header = rpc_pb2.ResponseHeader(revision=result[0]).SerializeToString()
        return response.FromString(responses.encode(kind, result, header))

    def theirs(self, path: str, request: Any, response: type) -> Any:
        call = self.channel.unary_unary(
            f"/etcdserverpb.{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,  # type: ignore[attr-defined]
        )
        try:
            answer = call(request, timeout=10)
        except grpc.RpcError as error:
            return error.code().name, error.details()  # type: ignore[attr-defined]
        for name in ("cluster_id", "member_id", "raft_term"):
            answer.header.ClearField(name)
        return answer

    def check(self, request: Any) -> Any:
        _, path, response = KINDS[type(request)]
        answer = self.ours(request)
        assert self.theirs(path, request, response) == answer
        return answer


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    etcd = Etcd(tmp_path)
    yield Both(etcd)
    etcd.close()


def test_a_lease_from_grant_to_revoke(both: Both) -> None:
    grant, revoke, put = rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseRevokeRequest, rpc_pb2.PutRequest

    for ttl in (100, 9_000_000_000, 9_000_000_001):
        both.check(grant(ID=ttl + 7, TTL=ttl))
    for ttl in (1, 0, -1):  # all raised to the minimum
        both.check(grant(ID=2000 + ttl, TTL=ttl))
    assert isinstance(both.check(grant(ID=107, TTL=5)), tuple)
    both.check(grant(ID=-5, TTL=500))
    both.check(grant(ID=1, TTL=500))

    both.check(put(key=b"b", lease=1))
    both.check(put(key=b"a", lease=1))
    both.check(put(key=b"c", lease=1))
    both.check(put(key=b"c", lease=-5))  # moves it
    both.check(put(key=b"d", lease=1))
    both.check(put(key=b"d"))  # detaches it
    both.check(put(key=b"e", lease=1))
    both.check(rpc_pb2.DeleteRangeRequest(key=b"e"))
    assert isinstance(both.check(put(key=b"f", lease=99)), tuple)

    for lease in (1, -5, 107):
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True)
        answer = both.theirs("Lease/LeaseTimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse)
        lessor = both.member.state.lessor
        assert sorted(answer.keys) == lessor.keys(lease)
        assert answer.grantedTTL == lessor.leases[lease].ttl_s

    # With keys it makes one revision, without none; the second time it is not found.
    assert both.check(revoke(ID=1)).header.revision == both.member.state.store.revision
    assert both.check(revoke(ID=107)).header.revision == both.member.state.store.revision
    assert isinstance(both.check(revoke(ID=1)), tuple)
    assert isinstance(both.check(put(key=b"g", lease=1)), tuple)

    everything = rpc_pb2.RangeRequest(key=b"\x00", range_end=b"\x00")
    theirs = both.theirs("KV/Range", everything, rpc_pb2.RangeResponse)
    ours = both.member.state.store.range(everything)
    assert [kv.SerializeToString() for kv in theirs.kvs] == ours.kvs
    history = rpc_pb2.HashKVRequest()
    assert (
        both.theirs("Maintenance/HashKV", history, rpc_pb2.HashKVResponse).hash
        == both.member.state.store.hash_kv(0)[0]
    )
