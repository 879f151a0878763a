"""The receiving half of an HTTP/2 connection: bytes in, calls to handlers out (RFC 9113).

Sending is in `outbound.py`. Nothing here knows a service.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kvstore.http2 import frames
from kvstore.rpc.call import Call
from kvstore.rpc.requests import ConnectionFault, Requests
from kvstore.rpc.unfinished import Unfinished

if TYPE_CHECKING:
    from kvstore.rpc.engine import Engine

_HEAD_BYTES = frames.HEAD_BYTES
_FRAME_BYTES_MAX = frames.FRAME_BYTES_DEFAULT  # what we allow; we never announce more
_unpack_head = frames.unpack_head
_unpack_message_head = frames.unpack_message_head

# Heads kept by block. Clients use one to a handful; a head takes under 1 KiB.
_HEADS_MAX = 8
_HEAD_BLOCK_BYTES_MAX = 512

# Streams that we reset while the client may still be sending on them.
_RESET_IDS_MAX = 256

_DRAIN_PING = b"kv-drain"
_KEEPALIVE_PING = b"kv-alive"

# A connection with more to parse than this lets the others have their turn: uvloop reads up to
# 8 MiB in one turn from a client that sends fast, which is a second of work when frames are small.
_TURN_S = 0.005
_TURN_BYTES = 200_000
_SLICE_FRAMES = range(64)  # until the clock is looked at

# Pings sent 5 s apart arrive with a little more or less between them.
_PING_JITTER_S = 0.5

# Streams looked at for the price of a frame of no use.
_STREAMS_PER_JUNK = 64

# Of DATA for one WINDOW_UPDATE: half of a message of a few bytes.
_UPDATE_BYTES = 8

# How long a connection that we end may take to read why.
_LINGER_S = 2.0


class Connection(Requests, asyncio.Protocol):
    """One HTTP/2 connection, from the bytes after the client's preface on."""

    __slots__ = (
        "_last_ping_s",
        "_partial",
        "_ping_strikes",
        "_ping_waits",
        "_rest",
        "_sent_at_ping",
        "_settings_seen",
        "_unfinished",
        "_updates",
        "_updates_expected",
        "active",
        "chunks",
        "silent_since_s",
    )

    def __init__(self, engine: Engine, transport: asyncio.Transport) -> None:
        super().__init__(engine)
        self.transport = transport
        self.active = True
        """Something arrived since the last keepalive sweep."""
        self.silent_since_s = 0.0
        self._rest = b""
        self._partial: tuple[int, int, bytearray, int] | None = None
        """A header block without its end: stream, flags of HEADERS, bytes, CONTINUATION count."""
        self._settings_seen = False
        self._last_ping_s = float("-inf")
        self._ping_strikes = 0
        self._ping_waits = False
        self._sent_at_ping = 0
        self._updates = 0
        self._updates_expected = 0
        self.chunks = 0
        """Chunks in which a frame ended."""
        self._unfinished: Unfinished | None = None

    # Life

    def start(self, rest: bytes) -> None:
        """Begin, with what arrived behind the preface; the transport already feeds us."""
        limits = self.engine.limits
        self.engine.connections.add(self)
        self.engine.counters.connections += 1
        high = limits.write_turn_bytes
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        self.write(
            frames.settings(
                (
                    (frames.SETTINGS_MAX_CONCURRENT_STREAMS, limits.concurrent_streams_max),
                    (frames.SETTINGS_INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.SETTINGS_MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
                )
            )
        )
        extra = limits.connection_window_bytes - frames.WINDOW_DEFAULT
        if extra > 0:
            self.write(frames.window_update(0, extra))
        if rest:
            self.data_received(rest)

    @property
    def calls_started(self) -> int:
        """Streams that the client opened."""
        return (self._last_stream_id + 1) // 2

    def connection_lost(self, exc: Exception | None) -> None:
        """End every call; the transport is gone."""
        self.closed = True
        self.engine.forget(self)
        self.engine.counters.calls_closed += self.calls_started
        self.out.clear()
        self._cancel_all()

    def _cancel_all(self) -> None:
        self.ready = None
        for call in list(self.streams.values()):
            self._cancel(call)

    def eof_received(self) -> bool | None:
        """Close: a client that closes its side cannot be answered in HTTP/2's terms."""
        return None

    def close(self, code: int, text: str = "") -> None:
        """Send GOAWAY and what is waiting, then close."""
        if self.closed:
            return
        sent = self.engine.counters.goaways_sent
        sent[code] = sent.get(code, 0) + 1
        self.out.append(frames.goaway(self._last_stream_id, code, text.encode()))
        data = b"".join(self.out)
        self.out.clear()
        self.closed = True
        self.transport.write(data)
        # Bytes that arrive at a closed socket make the kernel send a reset, which can destroy the
        # GOAWAY on its way. So end our side only, and drop what comes until the client has read it.
        self.transport.write_eof()
        if self.holding or self.yielding:
            self.transport.resume_reading()
        self.engine.loop.call_later(_LINGER_S, self.transport.abort)
        # Not only when the transport is gone: a client that opens connection after connection
        # would have the replies of each held for as long as it lingers.
        self._cancel_all()

    # Bytes in

    def data_received(self, data: bytes) -> None:
        """Take a chunk; no exception leaves here."""
        if self.closed:
            return
        self.engine.counters.received_bytes += len(data)
        self._take(data)

    def yield_turn(self) -> None:
        """Read nothing until the next turn, which begins with what was read already."""
        if not self.yielding:
            self.yielding = True
            self.transport.pause_reading()
            self.engine.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self.yielding = False
        if self.closed or self.holding:
            return  # `_balance` comes back here
        self._take(b"")
        if not (self.yielding or self.holding or self.transport.is_closing()):
            self.transport.resume_reading()

    def _take(self, data: bytes) -> None:
        self.active = True
        if self._rest:
            data = self._rest + data if data else self._rest
        try:
            position, more = self._parse(data, 0)
            if more:
                until_s = time.monotonic() + _TURN_S
                while more and time.monotonic() < until_s:
                    position, more = self._parse(data, position)
        except ConnectionFault as fault:
            self.close(fault.code, fault.text)
            return
        except Exception as error:  # noqa: BLE001  # a bug of ours must not end the loop's work
            self.engine.report(error)
            self.close(frames.INTERNAL_ERROR, "internal error")
            return
        self._rest = data[position:] if position < len(data) else b""
        if position:
            self.chunks += 1
        if more or len(data) >= _TURN_BYTES:
            self.yield_turn()

    def _parse(self, data: bytes, position: int) -> tuple[int, bool]:
        # Returns how far it came, and whether a whole frame may be left.
        # One flat loop over the frames of the chunk. A unary call is HEADERS and one DATA frame:
        # both are handled inline, since each Python call would cost a percent of the throughput.
        end = len(data)
        if not self._settings_seen and end >= _HEAD_BYTES:
            if _unpack_head(data, 0)[0] & 0xFF != frames.SETTINGS:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._settings_seen = True
        streams = self.streams
        heads = self._heads
        for _ in _SLICE_FRAMES:
            if end - position < _HEAD_BYTES:
                return position, False
            word, flags, stream_id = _unpack_head(data, position)
            length = word >> 8
            kind = word & 0xFF
            stream_id &= 0x7FFFFFFF
            start = position + _HEAD_BYTES
            stop = start + length
            if length > _FRAME_BYTES_MAX:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "frame over 16,384 bytes")
            if stop > end:
                return position, False
            position = stop

            if kind == 0 and self._partial is None:  # DATA
                self._receive_window -= length
                call = streams.get(stream_id)
                if (
                    flags == 1
                    and length >= 5
                    and call is not None
                    and call.fresh
                    and not call.remote_closed
                    and not call.received_bytes
                    and (call.head.content_length < 0 or call.head.content_length == length)
                    and _unpack_message_head(data, start) == (0, length - 5)
                    and length <= self.engine.limits.message_bytes_max
                ):
                    call.remote_closed = True
                    try:
                        call.head.route.handler(call, data[start + 5 : stop])  # type: ignore[union-attr]
                    except Exception as error:  # noqa: BLE001  # a handler's bug ends its call only
                        self.handler_failed(call, error)
                else:
                    self._data(call, flags, stream_id, data[start:stop])
                if self.holding:
                    return position, False  # the replies of what is left would only wait as well
                if self._receive_window < self.engine.limits.connection_window_bytes >> 1:
                    self._replenish()
                continue

            if kind == 1 and flags | 1 == 5 and self._partial is None:  # HEADERS, whole and plain
                block = data[start:stop]
                head = heads.get(block)
                if (
                    head is not None
                    and stream_id > self._last_stream_id
                    and stream_id & 1
                    and flags == 4
                    and head.quick
                    and len(streams) < self.engine.limits.concurrent_streams_max
                    and not self.draining
                ):
                    self._last_stream_id = stream_id
                    call = Call(self, stream_id, head)
                    head.tally.started += 1  # type: ignore[union-attr]  # quick: it has one
                    streams[stream_id] = call
                    timeout_s = head.timeout_s
                    if timeout_s is not None:
                        call.deadline_slot = self.engine.deadlines.add(call, timeout_s)
                else:
                    self._headers(stream_id, flags, block)
                continue

            self._frame(kind, flags, stream_id, data[start:stop])
            if self.closed:
                return end, False
        return position, position < end

    @property
    def unfinished(self) -> tuple[str, int] | None:
        """What the client has begun: its name, and a number that changes with the next one."""
        if self.holding or self.yielding:
            return None  # we do not look
        if not self._settings_seen:
            return "SETTINGS", 0
        if self._partial is not None:
            return "a header block", self._partial[0]
        if self._rest:
            return "a frame", self.chunks
        return None

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._partial is not None and (
            kind != frames.CONTINUATION or stream_id != self._partial[0]
        ):
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a header block was not continued")
        if kind == frames.WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == frames.HEADERS:
            self._start_headers(flags, stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == frames.PING:
            self._ping(flags, stream_id, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._rst_stream(stream_id, payload)
        elif kind == frames.PRIORITY:
            if stream_id == 0:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "PRIORITY on stream 0")
            self._spend_junk()
            if len(payload) != 5:
                self._reset_id(stream_id, frames.FRAME_SIZE_ERROR)
        elif kind == frames.GOAWAY:
            if stream_id != 0:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "GOAWAY on a stream")
            if len(payload) < 8:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "GOAWAY under 8 bytes")
            # The client opens no more streams; it closes when its last call is answered.
            self._spend_junk()
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a client cannot push")
        else:
            self._spend_junk()  # unknown types are ignored (RFC 9113 4.1), within reason

    # Header blocks

    def _start_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "HEADERS on stream 0")
        start = 0
        stop = len(payload)
        if flags & frames.PADDED:
            if not payload:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "no room for the padding's length")
            stop -= payload[0]
            start = 1
        if flags & frames.PRIORITY_FLAG:
            if len(payload) < start + 5:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "no room for the priority")
            start += 5
        if start > stop:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "more padding than payload")
        block = payload[start:stop]
        if flags & frames.END_HEADERS:
            self._headers(stream_id, flags, block)
        else:
            self._partial = (stream_id, flags, bytearray(block), 0)

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._partial is None:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        stream_id, first_flags, block, count = self._partial
        limits = self.engine.limits
        block += payload
        count += 1
        if count > limits.continuation_frames_max or len(block) > limits.header_list_bytes_max:
            # Decoding it only to keep the tables in step would be the attacker's profit.
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "header block too large")
        if flags & frames.END_HEADERS:
            self._partial = None
            self._headers(stream_id, first_flags, bytes(block))
        else:
            self._partial = (stream_id, first_flags, block, count)

    # Control frames

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if stream_id == 0 or stream_id > self._last_stream_id or not stream_id & 1:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        call = self.streams.get(stream_id)
        if call is None:
            self._spend_junk()
            return
        self.engine.counters.resets_received += 1
        self._cancel(call)
        if self.draining:
            self.maybe_finish_drain()
        self._spend_reset()

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        # Clients send at most two for a frame of DATA, one for the stream and one for the
        # connection, some two more when they open a stream, whatever the increments are.
        self._updates += 1
        if self._updates > self._updates_expected:
            sent = self.granted - self.credit - self.reserve
            self._updates_expected = 2 * self.calls_started + sent // _UPDATE_BYTES
            if self._updates > self._updates_expected:
                self._spend_junk()
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.granted += increment
            self.reserve += increment
            if self.credit + self.reserve > frames.WINDOW_MAX:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "window over 2^31 - 1")
            if self.ready and not self.dirty:
                self.dirty = True
                self.engine.mark_dirty(self)
            return
        call = self.streams.get(stream_id)
        if call is None:
            if stream_id > self._last_stream_id or not stream_id & 1:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            return  # normal for a while after a stream's end
        if increment == 0:
            self._fault(call, frames.PROTOCOL_ERROR)
            return
        call.delta += increment
        if self.stream_window + call.delta > frames.WINDOW_MAX:
            self._fault(call, frames.FLOW_CONTROL_ERROR)
            return
        self.wake(call)

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with data")
            self._spend_junk()
            return
        if len(payload) % 6:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6")
        self._spend_junk()
        window = self.stream_window
        for identifier, value in frames.unpack_settings(payload):
            if identifier == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_MAX:
                    raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "bad INITIAL_WINDOW_SIZE")
                window = value
            elif identifier == frames.SETTINGS_HEADER_TABLE_SIZE:
                self.set_peer_table_size(value)
            elif identifier == frames.SETTINGS_MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_DEFAULT <= value < 1 << 24:
                    raise ConnectionFault(frames.PROTOCOL_ERROR, "bad MAX_FRAME_SIZE")
                self.frame_bytes_max = min(value, frames.SEND_FRAME_BYTES_MAX)
            elif identifier == frames.SETTINGS_ENABLE_PUSH and value > 1:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "bad ENABLE_PUSH")
        if window != self.stream_window:  # once a frame: each change looks at every stream
            self._spend_junk(len(self.streams) // _STREAMS_PER_JUNK)
            self._set_stream_window(window)
        self.write(frames.SETTINGS_ACK)

    def _set_stream_window(self, value: int) -> None:
        self.stream_window = value
        for call in self.streams.values():
            if value + call.delta > frames.WINDOW_MAX:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "window over 2^31 - 1")
            if call.unsent_bytes:
                self.wake(call)

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if flags & frames.ACK:
            self._spend_junk()
            if payload == _DRAIN_PING and self.draining:
                self.refuse_new_streams()
            return
        self.write(frames.ping(payload, ack=True))
        # Pings that measure bandwidth during a reply are welcome: strikes start again whenever we
        # sent HEADERS or DATA, as in grpc-go.
        now = self.engine.loop.time()
        sent = self.granted - self.credit - self.reserve
        limits = self.engine.limits
        if self.headers_sent or sent != self._sent_at_ping:
            self.headers_sent = False
            self._sent_at_ping = sent
            self._ping_strikes = 0
        elif now - self._last_ping_s < limits.ping_interval_s - _PING_JITTER_S:
            self._ping_strikes += 1
            if self._ping_strikes > limits.ping_strikes_max:
                raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last_ping_s = now

    # Keepalive and drain

    def sweep(self, now_s: float) -> None:
        """Ping a silent client, and drop it when it does not answer; called now and then."""
        if self.closed:
            return  # its last seconds are counted by `close`
        if self._unfinished is not None or self.receiving_bytes or self.unfinished is not None:
            if self._unfinished is None:
                self._unfinished = Unfinished()
            slow = self._unfinished.sweep(self, now_s)
            if slow is not None:
                self.close(frames.ENHANCE_YOUR_CALM, f"{slow} took too long")
                return
        limits = self.engine.limits
        if self.active:
            self.active = False
            self._ping_waits = False
            self.silent_since_s = now_s
        elif self._ping_waits:
            if now_s - self.silent_since_s >= limits.keepalive_timeout_s:
                self.close(frames.NO_ERROR, "keepalive_timeout")
        elif now_s - self.silent_since_s >= limits.keepalive_s:
            self._ping_waits = True
            self.silent_since_s = now_s
            self.write(frames.ping(_KEEPALIVE_PING, ack=False))

    def drain(self) -> None:
        """Ask the client to open no more streams, finish those it has, then close.

        Two GOAWAYs (RFC 9113 6.8): the first names no stream, so that calls on their way are
        still served; the second follows the client's answer to a ping.
        """
        if self.draining or self.closed:
            return
        self.draining = True
        self.write(frames.goaway(frames.STREAM_ID_MAX, frames.NO_ERROR))
        self.write(frames.ping(_DRAIN_PING, ack=False))

    def refuse_new_streams(self) -> None:
        """Send the second GOAWAY: no later stream will be looked at."""
        if self._goaway_id == frames.STREAM_ID_MAX:
            self._goaway_id = self._last_stream_id
            self.write(frames.goaway(self._goaway_id, frames.NO_ERROR))
            self.maybe_finish_drain()

    def maybe_finish_drain(self) -> None:
        """Close when the second GOAWAY is out and no stream is left."""
        if self._goaway_id != frames.STREAM_ID_MAX and not self.streams:
            self.engine.loop.call_soon(self._close_drained)

    def _close_drained(self) -> None:
        if not self.streams and not self.closed:
            self.flush()
            self.closed = True
            self.transport.close()
