"""etcdserverpb.KV: ranges from the local store, everything else through the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter

from kvstore.apply import ops
from kvstore.mvcc.check import (
    check_delete_range,
    check_put,
    check_range,
    check_txn,
    is_read_only,
)
from kvstore.mvcc.errors import RequestError
from kvstore.mvcc.keyvalue import plain_put, varint
from kvstore.mvcc.range import RangeSlices
from kvstore.mvcc.results import (
    encode_range_chunk,
    encode_range_response,
    encode_txn_response,
)
from kvstore.mvcc.store import Store
from kvstore.pb import rpc_pb2
from kvstore.rpc import Call
from kvstore.server.errors import Code
from kvstore.server.histogram import Series
from kvstore.server.services.base import Routes, fail, parse, with_header
from kvstore.server.services.writes import Writes

PIECE_BYTES = 256 << 10
"""Slices of a large range are joined into pieces of this size: the allocator gives such blocks back
to the system when they are freed, small ones it keeps."""

AT_ONCE_MAX = 500
"""Keys that a range may touch before it runs in slices, so that others get their turn."""

REPLIES_SIZE_MAX = 512 << 20
"""Bytes of large replies being built or sent; above it a large range is refused."""

LARGE_BYTES = 64 << 10
"""A reply from this size on counts for the next."""

TURN_BYTES_MAX = 8 << 20
"""Bytes of large replies that are built in one turn. A round of ReadIndex releases all its reads
at once: a thousand of 1 MiB each would hold the loop for half a second."""

PURGE_POLL_S = 0.02
"""The purge goes on in slices of milliseconds; nobody waits for its end but this."""

PUT_OVERHEAD = 256
"""etcd's estimate of what a put costs beside key and value."""


class KvService:
    """The KV methods of one member."""

    def __init__(
        self,
        writes: Writes,
        store: Store,
        *,
        txn_ops_max: int,
        later: Callable[[Callable[[], None]], object],
        later_s: Callable[..., object],
        observe: Callable[[str], Series],
    ) -> None:
        """Join the parts; `later` is `loop.call_soon`, `later_s` is `loop.call_later`.

        `observe` returns what takes the seconds of ranges that succeeded ("true") or failed.
        """
        self.range_total = 0
        self.ranged = observe("true")
        self.range_failed = observe("false")
        self._writes = writes
        self.store = store
        self._txn_ops_max = txn_ops_max
        self._later = later
        self._later_s = later_s
        self._replies_bytes = 0
        self._turn_bytes = 0
        self._large_readers: set[str] = set()
        self._held: deque[tuple[Call, rpc_pb2.RangeRequest]] = deque()

    def register(self, server: Routes) -> None:
        """Serve the methods."""
        prefix = "/etcdserverpb.KV/"
        server.unary(prefix + "Range", self._range)
        server.unary(prefix + "Put", self._put)
        server.unary(prefix + "DeleteRange", self._delete_range)
        server.unary(prefix + "Txn", self._txn)
        server.unary(prefix + "Compact", self._compact)

    # writes

    def _put(self, call: Call, data: bytes) -> None:
        if not plain_put(data):  # else there is nothing to refuse
            request = parse(call, rpc_pb2.PutRequest.FromString, data)
            if request is None:
                return
            try:
                check_put(request)
            except RequestError as error:
                fail(call, error)
                return
        if self._writes.has_room(call, PUT_OVERHEAD + len(data)):
            self._writes.submit_put(call, data)

    def _delete_range(self, call: Call, data: bytes) -> None:
        request = parse(call, rpc_pb2.DeleteRangeRequest.FromString, data)
        if request is None:
            return
        try:
            check_delete_range(request)
        except RequestError as error:
            fail(call, error)
            return
        self._writes.submit(call, ops.DELETE_RANGE, data)

    def _compact(self, call: Call, data: bytes) -> None:
        request = parse(call, rpc_pb2.CompactionRequest.FromString, data)
        if request is None:
            return
        if request.physical:
            self._writes.submit(call, ops.COMPACT, data, partial(self._when_purged, call))
        else:
            self._writes.submit(call, ops.COMPACT, data)

    def _when_purged(self, call: Call, message: bytes) -> None:
        """Answer a physical compaction when this member has removed the records."""
        if not self.store.purging:
            call.reply(message)
        elif not call.cancelled:
            self._later_s(PURGE_POLL_S, self._when_purged, call, message)

    def _txn(self, call: Call, data: bytes) -> None:
        request = parse(call, rpc_pb2.TxnRequest.FromString, data)
        if request is None:
            return
        try:
            check_txn(request, self._txn_ops_max)
        except RequestError as error:
            fail(call, error)
            return
        if is_read_only(request):
            # Unlike etcd's, a transaction of compares only is made sure too: a stale "succeeded"
            # is no help to anybody.
            if is_serializable(request):
                self._read_txn(call, request, None)
            else:
                self._writes.node.linearizable(partial(self._read_txn, call, request))
            return
        cost = txn_cost(request)
        if not cost or self._writes.has_room(call, cost):
            self._writes.submit(call, ops.TXN, data)

    # reads

    def _range(self, call: Call, data: bytes) -> None:
        request = parse(call, rpc_pb2.RangeRequest.FromString, data)
        if request is None:
            return
        try:
            check_range(request)
        except RequestError as error:
            fail(call, error)
            return
        if request.serializable:
            self._read(call, request, None)
        else:
            self._writes.node.linearizable(partial(self._read, call, request))

    def _read(self, call: Call, request: rpc_pb2.RangeRequest, error: Exception | None) -> None:
        if error is not None:
            fail(call, error)
            return
        if self._turn_bytes >= TURN_BYTES_MAX and call.peer in self._large_readers:
            self._held.append((call, request))
            return
        self.range_total += 1
        start_s = perf_counter()
        store = self.store
        try:
            if not request.range_end or self._is_small(request):
                result = store.range(request)
                self.ranged.observe(perf_counter() - start_s)
                reply = encode_range_response(self._writes.headers(result.revision), result)
                if len(reply) >= LARGE_BYTES:
                    self._count_large(call.peer, len(reply))
                call.reply(reply)
            else:
                SlicedRange(self, call, store.range_slices(request), start_s).step()
        except RequestError as refusal:
            self.range_failed.observe(perf_counter() - start_s)
            fail(call, refusal)

    def _count_large(self, reader: str, size_bytes: int) -> None:
        if not self._turn_bytes:
            self._later(self._next_turn)
        self._turn_bytes += size_bytes
        self._large_readers.add(reader)

    def _next_turn(self) -> None:
        # Only those who read much wait for it, in their order; the others pass them.
        self._turn_bytes = 0
        held = self._held
        if not held:
            self._large_readers.clear()
        while held and self._turn_bytes < TURN_BYTES_MAX:
            call, request = held.popleft()
            if not call.cancelled:
                self._read(call, request, None)

    def _is_small(self, request: rpc_pb2.RangeRequest) -> bool:
        if 0 < request.limit <= AT_ONCE_MAX and not request.sort_target and not request.sort_order:
            return not request.revision
        end = b"" if request.range_end == b"\0" else request.range_end
        return self.store.index.count(request.key, end) <= AT_ONCE_MAX and not request.revision

    def _read_txn(self, call: Call, request: rpc_pb2.TxnRequest, error: Exception | None) -> None:
        if error is not None:
            fail(call, error)
            return
        try:
            result = self.store.txn(request)
        except RequestError as refusal:
            fail(call, refusal)
            return
        call.reply(encode_txn_response(self._writes.headers(result.revision), result))

    def run_later(self, step: Callable[[], None]) -> None:
        """Run the next slice in the next turn of the loop."""
        self._later(step)

    def finish_sliced(
        self, call: Call, slices: RangeSlices, chunks: list[bytes], size_bytes: int
    ) -> None:
        """Answer a range that was read in slices, of `size_bytes` together."""
        tail = (b"\x18\x01" if slices.more else b"") + (
            b"\x20" + varint(slices.count) if slices.count else b""
        )
        head = with_header(self._writes.headers(slices.revision))
        call.reply_parts([head, *chunks, tail], len(head) + size_bytes + len(tail))

    def reserve(self, size_bytes: int) -> bool:
        """Count bytes of a large reply; False when all large replies together are too many."""
        if size_bytes > 0 and self._replies_bytes + size_bytes > REPLIES_SIZE_MAX:
            return False
        self._replies_bytes += size_bytes
        return True


class SlicedRange:
    """A range that is read one slice a turn, then answered."""

    __slots__ = (
        "_call",
        "_chunks",
        "_piece_start",
        "_service",
        "_size_bytes",
        "_slices",
        "_slices_read",
        "_start_s",
    )

    def __init__(self, service: KvService, call: Call, slices: RangeSlices, start_s: float) -> None:
        """Begin; call `step` once."""
        self._service = service
        self._call = call
        self._slices = slices
        self._chunks: list[bytes] = []
        self._slices_read: list[bytes] = []
        """Of the piece that is being made."""
        self._piece_start = 0
        self._size_bytes = 0
        self._start_s = start_s

    def step(self) -> None:
        """Read one slice."""
        if self._call.cancelled:
            self._end()
            return
        try:
            part = next(self._slices)
        except StopIteration:
            self._service.ranged.observe(perf_counter() - self._start_s)
            self._end_piece()
            self._service.finish_sliced(self._call, self._slices, self._chunks, self._size_bytes)
            self._end()
            return
        except RequestError as error:
            self._service.range_failed.observe(perf_counter() - self._start_s)
            fail(self._call, error)
            self._end()
            return
        if part:
            chunk = encode_range_chunk(part)
            if not self._service.reserve(len(chunk)):
                self._call.fail(
                    Code.RESOURCE_EXHAUSTED,
                    "etcdserver: too many requests: large replies in flight exceed "
                    f"{REPLIES_SIZE_MAX >> 20} MiB; read with a limit, page by page",
                )
                self._end()
                return
            self._size_bytes += len(chunk)
            self._slices_read.append(chunk)
            if self._size_bytes - self._piece_start >= PIECE_BYTES:
                self._end_piece()
        self._service.run_later(self.step)

    def _end_piece(self) -> None:
        self._chunks.append(b"".join(self._slices_read))
        self._slices_read.clear()
        self._piece_start = self._size_bytes

    def _end(self) -> None:
        self._slices.close()
        self._chunks.clear()
        self._slices_read.clear()
        self._service.reserve(-self._size_bytes)
        self._size_bytes = 0


def is_serializable(request: rpc_pb2.TxnRequest) -> bool:
    """Tell whether the client accepts a stale answer: it has ranges, and all are serializable."""
    ranges = [op.request_range for branch in (request.success, request.failure) for op in branch]
    return bool(ranges) and all(item.serializable for item in ranges)


def txn_cost(request: rpc_pb2.TxnRequest) -> int:
    """Return etcd's estimate of what the costlier branch of a transaction stores, in bytes."""
    return max(_branch_cost(request.success), _branch_cost(request.failure))


def _branch_cost(branch: object) -> int:
    cost = 0
    for op in branch:  # type: ignore[attr-defined]
        kind = op.WhichOneof("request")
        if kind == "request_put":
            cost += PUT_OVERHEAD + len(op.request_put.key) + len(op.request_put.value)
        elif kind == "request_txn":
            cost += txn_cost(op.request_txn)
    return cost
