"""The Lease service on real members: who may renew, and what a member without a leader says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from kvstore.pb import rpc_pb2
from tests.server.raw import Raw
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

NOT_FOUND = ("NOT_FOUND", "etcdserver: requested lease not found")


@pytest.fixture
def everybody(trio: Kvstore) -> Iterator[list[Raw]]:
    connections = [Raw(endpoint) for endpoint in trio.endpoints]
    yield connections
    for connection in connections:
        connection.channel.close()


def grant(raw: Raw, lease_id: int = 0, ttl_s: int = 100) -> int:
    request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s)
    return int(raw.call("LeaseGrant", request).ID)


def test_every_member_renews_and_tells_the_life(everybody: list[Raw]) -> None:
    # Only the leader's clock counts; the others ask it.
    for granter in everybody:
        lease = grant(granter)
        for raw in everybody:
            assert raw.keep_alive(lease) == [(lease, 100)]
            answer = raw.call("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=lease))
            assert answer.grantedTTL == 100
            assert 95 <= answer.TTL <= 100


def test_renewals_on_a_follower_keep_a_short_lease(trio: Kvstore, everybody: list[Raw]) -> None:
    follower = everybody[(trio.leader() + 1) % 3]
    kept = grant(everybody[0], ttl_s=2)
    left = grant(everybody[0], ttl_s=2)
    put = rpc_pb2.PutRequest(key=b"kept", lease=kept)
    everybody[0].call("Put", put)
    ends_at = time.monotonic() + 15
    # The other lease is the clock: once it is gone, this one lived longer than its life.
    while follower.call("LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=left)).TTL >= 0:
        assert follower.keep_alive(kept) == [(kept, 2)]
        assert time.monotonic() < ends_at
        time.sleep(0.1)  # a renewal interval, as a client's
    assert follower.call("Range", rpc_pb2.RangeRequest(key=b"kept")).count == 1
    for raw in everybody:
        assert raw.keep_alive(left) == [(left, 0)]


def test_one_stream_answers_in_order_and_goes_on_after_an_unknown_lease(
    everybody: list[Raw],
) -> None:
    first, second = grant(everybody[0]), grant(everybody[0])
    for raw in everybody:
        assert raw.keep_alive(first, 999, second) == [(first, 100), (999, 0), (second, 100)]


def test_ids_and_lives_are_checked(everybody: list[Raw]) -> None:
    raw, other = everybody[:2]
    lease = grant(raw, lease_id=4711)
    assert lease == 4711
    assert other.refused("LeaseGrant", rpc_pb2.LeaseGrantRequest(ID=4711, TTL=5)) == (
        "FAILED_PRECONDITION", "etcdserver: lease already exists",
    )  # fmt: skip
    assert raw.refused("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=9_000_000_001)) == (
        "OUT_OF_RANGE", "etcdserver: too large lease TTL",
    )  # fmt: skip
    assert raw.call("LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=-5)).TTL == 2
    drawn = grant(raw)
    assert 0 < drawn < 2**63
    assert raw.refused("Put", rpc_pb2.PutRequest(key=b"x", lease=999)) == NOT_FOUND


def test_revoking_deletes_the_keys_for_everybody(everybody: list[Raw]) -> None:
    raw, other = everybody[:2]
    lease = grant(raw)
    for key in (b"leased/b", b"leased/a"):
        raw.call("Put", rpc_pb2.PutRequest(key=key, lease=lease))
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True)
    assert list(other.call("LeaseTimeToLive", request).keys) == [b"leased/a", b"leased/b"]
    assert lease in {item.ID for item in other.call("LeaseLeases").leases}
    other.call("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease))
    assert raw.call("Range", rpc_pb2.RangeRequest(key=b"leased/", range_end=b"leased0")).count == 0
    assert raw.call("LeaseTimeToLive", request).TTL == -1
    assert lease not in {item.ID for item in raw.call("LeaseLeases").leases}
    assert raw.refused("LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease)) == NOT_FOUND


def test_without_a_leader_nothing_is_renewed(lonely: Kvstore) -> None:
    # A renewal that nobody confirms would let the client believe in a lease that a new leader
    # elsewhere may have ended. An error makes it try another member.
    with Raw(lonely.endpoints[0]) as raw:
        with pytest.raises(grpc.RpcError) as failed:
            raw.keep_alive(77)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failed.value.details() == "etcdserver: no leader"
        refused = raw.refused(
            "LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=77), hasleader="true"
        )
        assert refused == ("UNAVAILABLE", "etcdserver: no leader")
