"""The way of every write through the node: bounds at the edge, then the log, then the answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from kvstore.apply import ops
from kvstore.apply.ops import Op
from kvstore.apply.responses import encode
from kvstore.mvcc.store import Store
from kvstore.pb import rpc_pb2
from kvstore.server.errors import (
    NoLeaderError,
    NoSpaceError,
    RequestTooLargeError,
    TooManyRequestsError,
)
from kvstore.server.header import Headers
from kvstore.server.proposals import Done, Run
from kvstore.server.services.base import ServiceCall, fail


class Proposer(Protocol):
    """What services need of the node: `kvstore.server.node.Node`, or less than a whole one."""

    def propose(self, kind: int, payload: bytes, done: Done) -> None:
        """Bring one operation into the log; TooManyRequestsError when nothing was queued."""

    def propose_run(self, ops: list[Op], size_bytes: int, run: Run) -> None:
        """Bring operations that came together into the log; as above."""

    def linearizable(self, done: Callable[[Exception | None], None]) -> None:
        """Run `done(None)` when the store holds every write acknowledged before this call."""


class Writes:
    """Submits operations and encodes their results."""

    def __init__(
        self,
        node: Proposer,
        store: Store,
        headers: Headers,
        *,
        size_bytes: Callable[[], int],
        request_size_max: int,
        quota_bytes: int,
    ) -> None:
        """Join the parts.

        Args:
            node: Takes the operations.
            store: For the current revision.
            headers: Of this member.
            size_bytes: Returns what the store holds, a little late at most. Not the file's size:
                free pages are used again, so what was deleted and compacted does not count.
            request_size_max: `--max-request-bytes`.
            quota_bytes: `--quota-backend-bytes`; beyond it the NOSPACE alarm is raised.
        """
        self.node = node
        self.store = store
        self.headers = headers
        self._size_bytes = size_bytes
        self._size_max = request_size_max
        self._quota_bytes = quota_bytes
        self._alarm_under_way = False

    def header(self) -> bytes:
        """Return the header with the store's current revision."""
        return self.headers(self.store.revision)

    def submit(
        self,
        call: ServiceCall,
        kind: int,
        payload: bytes,
        reply: Callable[[bytes], None] | None = None,
    ) -> None:
        """Bring an operation into the log and answer the call with its result.

        `reply` takes the encoded success instead of the call, for those that still wait.
        """
        if len(payload) > self._size_max:
            fail(call, RequestTooLargeError())
            return
        try:
            self.node.propose(kind, payload, partial(self._done, call, kind, reply or call.reply))
        except TooManyRequestsError as error:
            fail(call, error)

    def _done(
        self, call: ServiceCall, kind: int, reply: Callable[[bytes], None], result: Any
    ) -> None:
        if isinstance(result, Exception):
            fail(call, result)
        else:
            reply(encode(kind, result, self.headers(result[0])))

    def submit_put(self, call: ServiceCall, payload: bytes) -> None:
        """`submit` for a put: the hot path, without the general encoder."""
        if len(payload) > self._size_max:
            fail(call, RequestTooLargeError())
            return
        try:
            self.node.propose(ops.PUT, payload, partial(self._put_done, call))
        except TooManyRequestsError as error:
            fail(call, error)

    def _put_done(self, call: ServiceCall, result: Any) -> None:
        if isinstance(result, Exception):
            fail(call, result)
            return
        revision, previous = result
        header = self.headers(revision)
        if previous is None:
            call.reply(b"\x0a" + bytes((len(header),)) + header)
        else:
            call.reply(encode(ops.PUT, result, header))

    def room_bytes(self, cost_bytes: int) -> int:
        """Return how long a request may be that costs so much more than itself; 0 or less: none."""
        return min(self._size_max, self._quota_bytes - self._size_bytes() - cost_bytes)

    def has_room(self, call: ServiceCall, cost_bytes: int) -> bool:
        """Tell whether the quota allows that much more; if not, raise the alarm and answer.

        Costs are etcd's estimates (etcd-semantics 2.15): they only decide when to stop.
        """
        if self._size_bytes() + cost_bytes <= self._quota_bytes:
            return True
        self._raise_alarm()
        fail(call, NoSpaceError())
        return False

    def _raise_alarm(self) -> None:
        if self._alarm_under_way:
            return
        request = rpc_pb2.AlarmRequest(
            action=rpc_pb2.AlarmRequest.ACTIVATE,
            memberID=self.headers.member_id,
            alarm=rpc_pb2.NOSPACE,
        )
        self._alarm_under_way = True
        try:
            self.node.propose(ops.ALARM, request.SerializeToString(), self._alarm_raised)
        except (TooManyRequestsError, NoLeaderError):
            self._alarm_under_way = False

    def _alarm_raised(self, result: Any) -> None:
        # Whatever came of it: the next write over the quota asks again if it has to.
        self._alarm_under_way = False
