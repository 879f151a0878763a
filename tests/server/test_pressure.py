"""Back-pressure at the edge: a member that cannot keep up says so instead of filling its memory."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest

from kvstore.pb import rpc_pb2
from kvstore.server.proposals import PENDING_MAX
from tests.rpc.wire import DATA, END_HEADERS, END_STREAM, HEADERS, PING, Wire, frame, message
from tests.server.raw import Raw, get
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

STREAMS = 4_000
"""Calls on one connection, below what a member takes."""

BEYOND = 50
PUT = message(rpc_pb2.PutRequest(key=b"pressure", value=b"1").SerializeToString())
TOO_MANY = ("8", "etcdserver: too many requests")
NO_LEADER = ("14", "etcdserver: no leader")


def puts(wire: Wire, count: int) -> None:
    """Send puts, all in one go: grpcio takes longer for them than they may wait."""
    path = [(":path", "/etcdserverpb.KV/Put"), (":authority", "localhost")]
    fields = [(":method", "POST"), (":scheme", "http"), *path]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    wire.send(
        *[
            wire.headers(stream, fields, END_HEADERS) + frame(DATA, END_STREAM, stream, PUT)
            for stream in range(1, 2 * count, 2)
        ]
    )


def ends(wire: Wire, count: int) -> Counter[tuple[str, str]]:
    """Read how that many calls ended."""
    found: Counter[tuple[str, str]] = Counter()
    while found.total() < count:
        end = wire.until(HEADERS)
        assert end.flags & END_STREAM
        found[end.fields["grpc-status"], end.fields["grpc-message"]] += 1
    return found


@pytest.mark.alone
def test_more_writes_than_may_wait_are_refused_at_once(lonely: Kvstore) -> None:
    # Without a leader every write waits, so the queue is as full as we like.
    endpoint = lonely.endpoints[0]
    with ExitStack() as stack:
        full = []
        for _ in range(PENDING_MAX // STREAMS):
            wire = stack.enter_context(Wire(int(endpoint.rpartition(":")[2]))).hello()
            puts(wire, STREAMS)
            wire.send(frame(PING, payload=bytes(8)))
            wire.until(PING)  # all of them were taken before this answer
            full.append(wire)
        late = stack.enter_context(Wire(int(endpoint.rpartition(":")[2]))).hello()
        puts(late, BEYOND)
        assert ends(late, BEYOND) == {TOO_MANY: BEYOND}
        # It still answers what needs no place in the queue.
        assert get(endpoint, "/livez").status == 200
        serializable = rpc_pb2.RangeRequest(key=b"before", serializable=True)
        with Raw(endpoint) as raw:
            assert raw.call("Range", serializable).count == 1
        # None of the others was sent, so nothing is unknown.
        for wire in full:
            assert ends(wire, STREAMS) == {NO_LEADER: STREAMS}
    assert "\netcd_server_proposals_pending 0.0\n" in get(endpoint, "/metrics").text


def test_a_request_above_the_limit_is_refused_by_size(member: Kvstore, raw: Raw) -> None:
    # Two limits, as etcd's: the request itself, and what gRPC takes at all.
    large = rpc_pb2.PutRequest(key=b"large", value=bytes(1_572_864))
    assert raw.refused("Put", large) == (
        "INVALID_ARGUMENT", "etcdserver: request is too large",
    )  # fmt: skip
    larger = rpc_pb2.PutRequest(key=b"large", value=bytes((2 << 20) + 1))
    code, text = raw.refused("Put", larger)
    assert code == "RESOURCE_EXHAUSTED"
    assert "received message larger than max" in text
    raw.call("Put", rpc_pb2.PutRequest(key=b"large", value=bytes(1_500_000)))
