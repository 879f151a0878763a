"""etcdserverpb.Maintenance: status, hash of the history, alarms, moving the leadership."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvstore.apply import ops
from kvstore.mvcc.errors import RequestError
from kvstore.pb import rpc_pb2
from kvstore.server.services.base import Routes, ServiceCall, fail, message_with_header, parse
from kvstore.server.services.writes import Writes

HashDone = Callable[[tuple[int, int, int] | Exception], None]


class MaintenanceService:
    """Status, HashKV, Alarm and MoveLeader."""

    def __init__(
        self,
        writes: Writes,
        status: Callable[[], rpc_pb2.StatusResponse],
        hash_kv: Callable[[int, HashDone], None],
        transfer: Callable[[int, Callable[[Exception | None], None]], None],
    ) -> None:
        """Join the parts.

        Args:
            writes: For alarms, which go through the log.
            status: Returns this member's state, without header.
            hash_kv: Computes the hash up to a revision and hands it to the callable: hash,
                compact revision, hash revision.
            transfer: Hands the leadership of this member to another.
        """
        self._writes = writes
        self._status = status
        self._hash_kv = hash_kv
        self._transfer = transfer

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        prefix = "/etcdserverpb.Maintenance/"
        server.unary(prefix + "Status", self._get_status)
        server.unary(prefix + "HashKV", self._get_hash)
        server.unary(prefix + "Alarm", self._alarm)
        server.unary(prefix + "MoveLeader", self._move_leader)

    def _get_status(self, call: ServiceCall, data: bytes) -> None:
        if parse(call, rpc_pb2.StatusRequest.FromString, data) is not None:
            call.reply(message_with_header(self._writes.header(), self._status()))

    def _get_hash(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.HashKVRequest.FromString, data)
        if request is not None:
            self._hash_kv(request.revision, partial(self._hashed, call))

    def _hashed(self, call: ServiceCall, answer: tuple[int, int, int] | Exception) -> None:
        if isinstance(answer, RequestError):
            fail(call, answer)
            return
        if isinstance(answer, Exception):
            raise answer
        reply = rpc_pb2.HashKVResponse(
            hash=answer[0], compact_revision=answer[1], hash_revision=answer[2]
        )
        call.reply(message_with_header(self._writes.header(), reply))

    def _alarm(self, call: ServiceCall, data: bytes) -> None:
        if parse(call, rpc_pb2.AlarmRequest.FromString, data) is not None:
            self._writes.submit(call, ops.ALARM, data)

    def _move_leader(self, call: ServiceCall, data: bytes) -> None:
        request = parse(call, rpc_pb2.MoveLeaderRequest.FromString, data)
        if request is not None:
            self._transfer(request.targetID, partial(self._moved, call))

    def _moved(self, call: ServiceCall, error: Exception | None) -> None:
        if error is not None:
            fail(call, error)
        else:
            call.reply(b"")  # without a header, as etcd's
