"""Single calls with the API's own messages: the test sees code and text as they are on the wire."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from kvstore.pb import health_pb2, rpc_pb2

TYPES: dict[str, tuple[str, Any]] = {
    "Range": ("etcdserverpb.KV", rpc_pb2.RangeResponse),
    "Put": ("etcdserverpb.KV", rpc_pb2.PutResponse),
    "DeleteRange": ("etcdserverpb.KV", rpc_pb2.DeleteRangeResponse),
    "Txn": ("etcdserverpb.KV", rpc_pb2.TxnResponse),
    "Compact": ("etcdserverpb.KV", rpc_pb2.CompactionResponse),
    "LeaseGrant": ("etcdserverpb.Lease", rpc_pb2.LeaseGrantResponse),
    "LeaseRevoke": ("etcdserverpb.Lease", rpc_pb2.LeaseRevokeResponse),
    "LeaseTimeToLive": ("etcdserverpb.Lease", rpc_pb2.LeaseTimeToLiveResponse),
    "LeaseLeases": ("etcdserverpb.Lease", rpc_pb2.LeaseLeasesResponse),
    "MemberList": ("etcdserverpb.Cluster", rpc_pb2.MemberListResponse),
    "Status": ("etcdserverpb.Maintenance", rpc_pb2.StatusResponse),
    "HashKV": ("etcdserverpb.Maintenance", rpc_pb2.HashKVResponse),
    "Alarm": ("etcdserverpb.Maintenance", rpc_pb2.AlarmResponse),
    "Check": ("grpc.health.v1.Health", health_pb2.HealthCheckResponse),
}


class Raw:
    """One connection to one member; `with` closes it."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(
            endpoint, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, request: Message | None = None, **metadata: str) -> Any:
        """Call a unary method. Raises grpc.RpcError."""
        service, reply = TYPES[method]
        stub = self.channel.unary_unary(
            f"/{service}/{method}", response_deserializer=reply.FromString
        )
        data = b"" if request is None else request.SerializeToString()
        return stub(data, timeout=15, metadata=tuple(metadata.items()))

    def refused(
        self, method: str, request: Message | None = None, **metadata: str
    ) -> tuple[str, str]:
        """Call a method that must fail; return code and text."""
        try:
            answer = self.call(method, request, **metadata)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"{method} was not refused: {answer}")

    def keep_alive(self, *lease_ids: int) -> list[tuple[int, int]]:
        """Renew leases on one stream, in order; return id and TTL of each answer."""
        stub = self.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=rpc_pb2.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=rpc_pb2.LeaseKeepAliveResponse.FromString,
        )
        requests = (rpc_pb2.LeaseKeepAliveRequest(ID=lease_id) for lease_id in lease_ids)
        return [(answer.ID, answer.TTL) for answer in stub(requests, timeout=15)]


@dataclass
class Page:
    """What a GET brought."""

    status: int
    kind: str
    text: str


def get(endpoint: str, path: str, method: str = "GET") -> Page:
    """Ask the HTTP surface of a member."""
    host, _, port = endpoint.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=15)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        kind = response.getheader("content-type") or ""
        return Page(response.status, kind, response.read().decode())
    finally:
        connection.close()
