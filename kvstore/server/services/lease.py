"""etcdserverpb.Lease: grant, revoke, keep alive, time to live, list."""

from __future__ import annotations

from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from kvstore.apply import ops
from kvstore.lease.lessor import TTL_MAX_S, Lessor
from kvstore.pb import rpc_pb2
from kvstore.ports import Random
from kvstore.server.errors import Code, NoLeaderError, wire_error
from kvstore.server.leases import Leases
from kvstore.server.services.base import Routes, ServiceCall, fail, message_with_header, parse
from kvstore.server.services.writes import Writes

UNSENT_MAX = 1 << 20


class LeaseService:
    """The five methods on top of `Leases`, the log and the local book."""

    def __init__(self, writes: Writes, leases: Leases, lessor: Lessor, random: Random) -> None:
        """Join the parts; `register` offers the methods."""
        self._writes = writes
        self._leases = leases
        self.lessor = lessor
        self._random = random

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        prefix = "/etcdserverpb.Lease/"
        server.unary(prefix + "LeaseGrant", self._grant)
        server.unary(prefix + "LeaseRevoke", self._revoke)
        server.unary(prefix + "LeaseTimeToLive", self._time_to_live)
        server.unary(prefix + "LeaseLeases", self._list)
        server.stream(prefix + "LeaseKeepAlive", self._keep_alive)

    def _grant(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.LeaseGrantRequest.FromString, data)
        if request is None:
            return
        if request.TTL > TTL_MAX_S:
            call.fail(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
            return
        if not self._writes.has_room(call, 64):
            return
        if request.ID == 0:
            # Drawn here, before the log: every member must apply the same id.
            while request.ID == 0 or request.ID in self.lessor.leases:
                request.ID = self._random.getrandbits(63)
            data = request.SerializeToString()
        self._writes.submit(call, ops.LEASE_GRANT, data, partial(self._granted, call))

    def _granted(self, call: ServiceCall, message: bytes) -> None:
        self._leases.begin_lives()
        call.reply(message)

    def _revoke(self, call: ServiceCall, data: bytes) -> None:
        if parse(call, rpc_pb2.LeaseRevokeRequest.FromString, data) is not None:
            self._writes.submit(call, ops.LEASE_REVOKE, data)

    def _time_to_live(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.LeaseTimeToLiveRequest.FromString, data)
        if request is not None:
            self._writes.node.linearizable(partial(self._ask_remaining, call, request))

    def _ask_remaining(
        self, call: ServiceCall, request: rpc_pb2.LeaseTimeToLiveRequest, error: Exception | None
    ) -> None:
        # The round first, so that a lease granted through another member is known here.
        if error is not None:
            fail(call, error)
        elif request.ID not in self.lessor.leases:
            self._remaining(call, request, -1)
        else:
            self._leases.remaining(request.ID, partial(self._remaining, call, request))

    def _remaining(
        self, call: ServiceCall, request: rpc_pb2.LeaseTimeToLiveRequest, left: int | Exception
    ) -> None:
        if isinstance(left, Exception):
            fail(call, left)
            return
        lease = self.lessor.leases.get(request.ID)
        reply = rpc_pb2.LeaseTimeToLiveResponse(ID=request.ID, TTL=left if lease else -1)
        if lease is not None:
            reply.grantedTTL = lease.ttl_s
            if request.keys:
                reply.keys.extend(self.lessor.keys(request.ID))
        call.reply(message_with_header(self._writes.header(), reply))

    def _list(self, call: ServiceCall, data: bytes) -> None:
        if parse(call, rpc_pb2.LeaseLeasesRequest.FromString, data) is None:
            return
        self._writes.node.linearizable(partial(self._listed, call))

    def _listed(self, call: ServiceCall, error: Exception | None) -> None:
        if error is not None:
            fail(call, error)
            return
        reply = rpc_pb2.LeaseLeasesResponse(
            leases=[rpc_pb2.LeaseStatus(ID=lease_id) for lease_id in self._leases.by_end()]
        )
        call.reply(message_with_header(self._writes.header(), reply))

    def _keep_alive(self, call: ServiceCall) -> KeepAlive:
        return KeepAlive(self, call)

    def renew(self, stream: KeepAlive, lease_id: int) -> None:
        """Renew for a stream and send the answer on it."""
        self._leases.renew(lease_id, partial(self._renewed, stream, lease_id))

    def _renewed(self, stream: KeepAlive, lease_id: int, ttl_s: int | Exception) -> None:
        stream.waiting -= 1
        if isinstance(ttl_s, Exception):
            # Clients then move on to another member, as etcd's do on a stream error.
            code, text = wire_error(ttl_s)
            if isinstance(ttl_s, NoLeaderError):
                code = Code.UNAVAILABLE
            stream.end(int(code), text)
            return
        reply = rpc_pb2.LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s)
        stream.answer(message_with_header(self._writes.header(), reply))


class KeepAlive:
    """One keep-alive stream: every request gets one answer."""

    __slots__ = ("_call", "_done", "_service", "waiting")

    def __init__(self, service: LeaseService, call: ServiceCall) -> None:
        """Wait for requests on `call`."""
        self.waiting = 0
        self._service = service
        self._call = call
        self._done = False

    def message(self, data: bytes) -> None:
        """Renew one lease."""
        if self._call.unsent_bytes > UNSENT_MAX:
            self.end(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
            return
        try:
            request = rpc_pb2.LeaseKeepAliveRequest.FromString(data)
        except DecodeError as error:
            self.end(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
            return
        self.waiting += 1
        self._service.renew(self, request.ID)

    def half_closed(self) -> None:
        """Finish when the last answer is out."""
        self._done = True
        if not self.waiting:
            self._call.finish()

    def cancelled(self) -> None:
        """Nothing is kept for the stream."""

    def writable(self) -> None:
        """Answers were queued all along."""

    def answer(self, message: bytes) -> None:
        """Send one answer."""
        self._call.send(message)
        if self._done and not self.waiting:
            self._call.finish()

    def end(self, code: int, text: str) -> None:
        """End the stream with an error."""
        self._call.fail(int(code), text)


__all__: list[Any] = ["LeaseService"]
