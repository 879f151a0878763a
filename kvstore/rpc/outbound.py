"""The sending half of a connection: windows, queues, header blocks, the write at a turn's end.

Nothing is parsed here. `connection.py` extends this class with the receiving half.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kvstore.http2 import frames, hpack
from kvstore.rpc import grpc

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from kvstore.rpc.call import Call
    from kvstore.rpc.engine import Engine

# Our responses use two fields again and again. The first unary reply inserts them into the
# client's dynamic table, nothing else is ever inserted, so their indices stay 63 and 62.
_STATUS_200 = b"\x88"
_CONTENT_TYPE = hpack.encode_literal(b"content-type", b"application/grpc")
_STATUS_OK = hpack.encode_literal(b"grpc-status", b"0")
_INSERT = 0x40  # a literal with incremental indexing differs from a plain one by these bits
_PRIME_HEADERS = _STATUS_200 + bytes((_INSERT,)) + _CONTENT_TYPE[1:]
_PRIME_TRAILERS = bytes((_INSERT,)) + _STATUS_OK[1:]
PRIMED_HEADERS = b"\x88\xbf"
PRIMED_TRAILERS = b"\xbe"
_PRIMED_TABLE_BYTES = 12 + 16 + 32 + 11 + 1 + 32

_TABLE_UNCHANGED = -1


class Outbound:
    """Send state of one connection.

    The connection's send window is kept in two parts: `credit` may be spent in this loop turn,
    `reserve` later. So one comparison in the hot path covers the window, the bound on one turn's
    writing, and a paused transport (credit 0).
    """

    __slots__ = (
        "_peer",
        "backlog_bytes",
        "closed",
        "credit",
        "dirty",
        "engine",
        "frame_bytes_max",
        "granted",
        "headers_sent",
        "held_bytes",
        "holding",
        "out",
        "paused",
        "primed",
        "ready",
        "reserve",
        "stream_window",
        "streams",
        "table_final",
        "table_min",
        "transport",
        "unprimable",
        "yielding",
    )

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._peer: str | None = None
        self.out: list[bytes | memoryview] = []
        self.dirty = False
        self.closed = False
        self.paused = False  # the transport's buffer is full
        self.holding = False  # we do not read, since too many replies wait
        self.yielding = False  # we do not read until our next turn, which is scheduled
        self.backlog_bytes = 0  # unsent bytes of all streams
        self.held_bytes = 0  # the memory that they hold
        self.streams: dict[int, Call] = {}
        self.ready: deque[Call] | None = None
        self.granted = frames.WINDOW_DEFAULT
        """All bytes of DATA the client ever allowed; minus credit and reserve: what we sent."""
        self.credit = frames.WINDOW_DEFAULT
        self.reserve = 0
        self.stream_window = frames.WINDOW_DEFAULT
        """Their INITIAL_WINDOW_SIZE. A stream's window is this plus `Call.delta`, so a change
        applies to every open stream at once and may leave windows negative (RFC 9113 6.9.2)."""
        self.frame_bytes_max = frames.FRAME_BYTES_DEFAULT
        self.primed = False
        self.unprimable = False
        self.table_min = _TABLE_UNCHANGED
        self.table_final = hpack.TABLE_SIZE_DEFAULT
        self.headers_sent = False  # since the last ping; DATA shows in the windows

    @property
    def peer(self) -> str:
        """The client's `host:port`."""
        if self._peer is None:
            name = self.transport.get_extra_info("peername")
            if isinstance(name, tuple):
                host = f"[{name[0]}]" if ":" in name[0] else name[0]
                self._peer = f"{host}:{name[1]}"
            else:
                self._peer = str(name or "")
        return self._peer

    def abort(self) -> None:
        """Drop the connection at once."""
        self.closed = True
        self.transport.abort()

    # Frames and their flush

    def write(self, data: bytes) -> None:
        """Send frames that no window governs, with whatever else leaves this turn."""
        self.out.append(data)
        if not self.dirty:
            self.dirty = True
            self.engine.mark_dirty(self)

    def flush(self) -> None:
        """Write everything of this turn in one go; called once per turn by the engine."""
        self.dirty = False
        if self.closed:
            self.out.clear()
            return
        if not self.paused:
            total = self.credit + self.reserve
            bound = self.engine.limits.write_turn_bytes
            self.credit = min(total, bound)
            self.reserve = total - self.credit
            if self.ready:
                self._pump(self.ready)
        if self.out:
            data = b"".join(self.out)
            self.out.clear()
            self.engine.counters.sent_bytes += len(data)
            self.transport.write(data)
        if self.ready and not self.paused and self.reserve and not self.dirty:
            self.dirty = True  # more than one turn's share is waiting
            self.engine.mark_dirty(self)
        if self.holding or self.paused or self.backlog_bytes:
            self._balance()

    def _balance(self) -> None:
        # Read no requests while too many replies wait. But never stop reading while only a
        # WINDOW_UPDATE can help: it would not be seen. And not for every full buffer: a stream
        # that keeps the socket busy can only be cancelled by a frame that we read.
        high = self.engine.limits.connection_high_bytes
        if self.paused:
            hold = self.backlog_bytes > high or self.transport.get_write_buffer_size() > high
        else:
            hold = self.backlog_bytes > high and bool(self.ready) and self.credit + self.reserve > 0
        if hold != self.holding and not self.transport.is_closing():
            self.holding = hold
            if hold:
                self.transport.pause_reading()
            else:
                self.yield_turn()  # what was read already comes first

    def pause_writing(self) -> None:
        """Stop DATA: the socket does not keep up."""
        self.paused = True
        self.reserve += self.credit
        self.credit = 0

    def resume_writing(self) -> None:
        """Continue after `pause_writing`."""
        self.paused = False
        if not self.dirty:
            self.dirty = True
            self.engine.mark_dirty(self)

    # Header blocks

    def set_peer_table_size(self, size: int) -> None:
        """Take their HEADER_TABLE_SIZE; the next block answers it (RFC 7541 4.2)."""
        if size < self.table_final:
            # The client will shrink its table. Whether our fields survive is not worth tracking.
            self.primed = False
            self.unprimable = True
        if size != self.table_final:
            self.table_min = size if self.table_min < 0 else min(self.table_min, size)
            self.table_final = size
            self.primed = False

    def block(self, block: bytes) -> bytes:
        """Return `block` with the table size updates that are due before it."""
        if self.table_min >= 0:
            # We never use more than the default, whatever they allow.
            final = min(self.table_final, hpack.TABLE_SIZE_DEFAULT)
            update = hpack.encode_table_size(min(self.table_min, final))
            if self.table_min < final:
                update += hpack.encode_table_size(final)
            self.table_min = _TABLE_UNCHANGED
            return update + block
        return block

    def send_headers(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        """Send a header section, split where it is longer than a frame."""
        self.headers_sent = True
        block = self.block(block)
        self.write(frames.headers(stream_id, block, self.frame_bytes_max, end_stream=end_stream))

    def response_block(self, encoding: bytes) -> bytes:
        """Return the fields of a gRPC response's headers."""
        block = PRIMED_HEADERS if self.primed else _STATUS_200 + _CONTENT_TYPE
        if encoding:
            block += hpack.encode_literal(b"grpc-encoding", encoding)
        return block

    def status_block(
        self, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> bytes:
        """Return the fields of a gRPC status; `metadata` is encoded already."""
        if code == 0:
            block = PRIMED_TRAILERS if self.primed else _STATUS_OK
        else:
            block = hpack.encode_literal(b"grpc-status", b"%d" % code)
        if text:
            block += hpack.encode_literal(b"grpc-message", grpc.encode_message(text))
        if metadata:
            block += hpack.encode(metadata)
        return block

    def prime(self, call: Call, message: bytes) -> None:
        """Send the reply that inserts our two fields; the windows have room for it."""
        self.primed = True
        stream_id = call.stream_id
        self.send_headers(stream_id, _PRIME_HEADERS, end_stream=False)
        size = len(message) + grpc.MESSAGE_HEAD_BYTES
        self.credit -= size
        self.write(
            frames.head(frames.DATA, 0, stream_id, size)
            + frames.pack_message_head(0, len(message))
            + message
        )
        self.send_headers(stream_id, _PRIME_TRAILERS, end_stream=True)
        self.close_stream(call)

    # Queued data

    def enqueue(self, call: Call, parts: Sequence[bytes | memoryview], size_bytes: int) -> None:
        """Queue bytes of a stream's body; they leave as the windows and the reader allow."""
        queue = call.queue
        if queue is None:
            queue = call.queue = deque()
        queue.extend(parts)
        call.unsent_bytes += size_bytes
        self.backlog_bytes += size_bytes
        self._count_held(sum(map(_held_bytes, parts)))
        self.wake(call)
        if self.backlog_bytes > self.engine.limits.connection_high_bytes and not self.holding:
            self._balance()  # now: uvloop may read 8 MiB of requests before this turn ends

    def wake(self, call: Call) -> None:
        """Let a stream with queued data take its turn again."""
        if call.queued or not call.unsent_bytes:
            return
        if self.ready is None:
            self.ready = deque()
        call.queued = True
        self.ready.append(call)
        if not self.dirty and not self.paused:
            self.dirty = True
            self.engine.mark_dirty(self)

    def _pump(self, ready: deque[Call]) -> None:
        # One frame per stream and round: streams share the connection evenly.
        while ready and self.credit > 0:
            call = ready.popleft()
            if call.connection is not self:
                continue  # ended while it was queued
            window = self.stream_window + call.delta
            if window <= 0:
                call.queued = False  # until a WINDOW_UPDATE or SETTINGS wakes it
                continue
            size = min(call.unsent_bytes, window, self.credit, self.frame_bytes_max)
            self._emit(call, size)
            if call.unsent_bytes:
                ready.append(call)
            else:
                call.queued = False
                if call.ending is not None:
                    call.end()
            if call.throttled and call.unsent_bytes <= self.engine.limits.stream_low_bytes:
                call.throttled = False
                self.engine.loop.call_soon(call.notify_writable)

    def _emit(self, call: Call, size: int) -> None:
        queue = call.queue
        assert queue is not None
        out = self.out
        out.append(frames.head(frames.DATA, 0, call.stream_id, size))
        self.credit -= size
        call.delta -= size
        call.unsent_bytes -= size
        self.backlog_bytes -= size
        while size:
            part = queue[0]
            if len(part) <= size:
                out.append(part)
                size -= len(part)
                queue.popleft()
                self._count_held(-_held_bytes(part))
            else:
                view = memoryview(part)  # a slice of a view: 100 MiB are not copied again
                out.append(view[:size])
                queue[0] = view[size:]
                size = 0

    def drop_queue(self, call: Call) -> None:
        """Forget what a stream has not sent."""
        self.backlog_bytes -= call.unsent_bytes
        if call.queue is not None:
            self._count_held(-sum(map(_held_bytes, call.queue)))
        call.unsent_bytes = 0
        call.queue = None

    def _count_held(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes
        self.engine.counters.unsent_bytes += size_bytes

    # The receiving half implements these

    def yield_turn(self) -> None:
        """Go on with what was received in the next turn of the loop."""
        raise NotImplementedError

    def close_stream(self, call: Call) -> None:
        """Forget a stream whose last frame was written."""
        raise NotImplementedError

    def reset_stream(self, call: Call, code: int) -> None:
        """End a stream with RST_STREAM."""
        raise NotImplementedError


def can_prime(connection: Outbound) -> bool:
    """Tell whether the client's table has room for our fields and no update is due."""
    return (
        not connection.primed
        and not connection.unprimable
        and connection.table_min < 0
        and connection.table_final >= _PRIMED_TABLE_BYTES
    )


def _held_bytes(part: bytes | memoryview) -> int:
    # The last byte of a message keeps all of it in memory; a client chooses by its windows
    # whether we ever get rid of that byte.
    return len(part.obj) if isinstance(part, memoryview) else len(part)  # type: ignore[arg-type]
