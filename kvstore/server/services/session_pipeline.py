"""Operations of a session that take effect in the order they were sent: one group after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from kvstore.apply.ops import ENTRY_BYTES_MAX, ENTRY_OPS_MAX
from kvstore.mvcc.check import is_read_only
from kvstore.pb import rpc_pb2
from kvstore.server.errors import Code, TooManyRequestsError
from kvstore.server.services.session_call import SessionCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.server.services.base import Unary
    from kvstore.server.services.session_outbound import SessionOutbound

STOPPED_TEXT = "kvstore: not applied: an operation before it in the pipeline failed"

_READS = frozenset({"/etcdserverpb.KV/Range"})
_TXN = "/etcdserverpb.KV/Txn"
_WRITES = frozenset(
    {
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/DeleteRange",
        "/etcdserverpb.Lease/LeaseGrant",
        "/etcdserverpb.Lease/LeaseRevoke",
    }
)
"""Methods whose handlers propose at once and answer with what was applied."""

_GOES_ON = frozenset(
    {
        Code.OK,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
    }
)
"""Ends that say for certain what the operation did. After any other, what comes behind it could
overtake it: by its late effect, or by the client's repetition."""

_READ, _WRITE, _ALONE = range(3)


class PipelineCall(SessionCall):
    """A call that tells its pipeline how it ended."""

    __slots__ = ("pipeline",)

    pipeline: Pipeline | None

    def reply(self, message: bytes) -> None:
        """Answer with success."""
        if self._session is not None:
            super().reply(message)
            self._tell(Code.OK)

    def reply_parts(self, parts: Sequence[bytes], size_bytes: int) -> None:
        """Answer with success, with a message in parts."""
        if self._session is not None:
            super().reply_parts(parts, size_bytes)
            self._tell(Code.OK)  # unless it was refused, which has been told

    def fail(self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an error status."""
        if self._session is not None:
            super().fail(code, text, metadata)
            self._tell(code)

    def drop(self) -> None:
        """The client gave it up, or is gone."""
        if self._session is not None:
            super().drop()
            self._tell(Code.CANCELLED)

    def _tell(self, code: int) -> None:
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            pipeline.ended(self, code)


class Pipeline:
    """Runs the operations of one PIPELINE item.

    Consecutive writes are proposed together and stay in one batch; consecutive reads run at the
    same time; between the kinds, and between groups, everything before has been answered.
    """

    def __init__(
        self, session: SessionOutbound, work: list[tuple[PipelineCall, Unary, bytes]]
    ) -> None:
        self._session = session
        self._work = work
        self._position = 0
        self._running: set[int] = set()
        self._stopped = False
        self._starting = False
        for call, _, _ in work:
            call.pipeline = self

    def ended(self, call: PipelineCall, code: int) -> None:
        """Take note of a call's end; go on when it was the last of its group."""
        self._running.discard(call.id)
        if code not in _GOES_ON:
            self._stop()
        else:
            self.start()

    def start(self) -> None:
        """Run groups until one has to be waited for, or is being waited for."""
        if self._starting:
            return  # a handler answered at once; the loop below sees it
        self._starting = True
        while self._position < len(self._work) and not self._running and not self._stopped:
            kind, end = self._next_group()
            if kind == _WRITE:
                with self._session.service.together():
                    self._run(end)
            else:
                self._run(end)
        self._starting = False

    def _run(self, end: int) -> None:
        while self._position < end and not self._stopped:
            call, handler, payload = self._work[self._position]
            self._position += 1
            self._running.add(call.id)
            self._session.guard(call, handler, call, payload)

    def _next_group(self) -> tuple[int, int]:
        """Return the kind of the operation that is next and where its group ends."""
        first = self._position
        call, _, payload = self._work[first]
        kind = _kind(call.path, payload)
        size_bytes = len(payload)
        end = first + 1
        while kind != _ALONE and end < len(self._work) and end - first < ENTRY_OPS_MAX:
            call, _, payload = self._work[end]
            size_bytes += len(payload)
            if _kind(call.path, payload) != kind or size_bytes > ENTRY_BYTES_MAX:
                break
            end += 1
        return kind, end

    def refuse(self) -> None:
        """Answer all of it with "too many requests"."""
        self._stopped = True
        for call, _, _ in self._work:
            call.pipeline = None
            call.fail(TooManyRequestsError.code, TooManyRequestsError.text)

    def _stop(self) -> None:
        """Fail what has not been started."""
        self._stopped = True
        rest = self._work[self._position :]
        self._position = len(self._work)
        for call, _, _ in rest:
            call.fail(Code.ABORTED, STOPPED_TEXT)


def _kind(path: str, payload: bytes) -> int:
    if path in _WRITES:
        return _WRITE
    if path in _READS:
        return _READ
    if path == _TXN:
        try:
            return _READ if is_read_only(rpc_pb2.TxnRequest.FromString(payload)) else _WRITE
        except DecodeError:
            return _ALONE  # its handler answers it
    return _ALONE
