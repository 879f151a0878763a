"""One HTTP/2 connection to a gRPC server, seen from the client (RFC 9113): frames and windows.

What exchanges say is `exchange`'s business. Knows nothing of etcd, of retrying or of endpoints.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from kvstore.client.exchange import WINDOW, Exchange
from kvstore.client.status import INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE
from kvstore.http2 import frames
from kvstore.http2.hpack import BombError, Decoder, HeaderListTooLargeError, HpackError

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTION_WINDOW: Final = 16 << 20
HEADER_LIST_BYTES_MAX: Final = 64 * 1024
_HEADER_BLOCK_BYTES_MAX: Final = 64 * 1024
FRAME_BYTES_MAX: Final = 64 * 1024
PING_AFTER_S: Final = 10.0
"""Of silence while something is under way; etcd takes pings from every 5 s on."""
PING_TIMEOUT_S: Final = 5.0
CUT_OFF: Final = "Socket closed"
"""How it is said that a connection was lost, in gRPC's own words."""

_SETTINGS = frames.settings(
    (
        (frames.SETTINGS_ENABLE_PUSH, 0),
        (frames.SETTINGS_INITIAL_WINDOW_SIZE, WINDOW),
        (frames.SETTINGS_MAX_FRAME_SIZE, FRAME_BYTES_MAX),
        (frames.SETTINGS_MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES_MAX),
    )
)
_OPENING = (
    frames.PREFACE + _SETTINGS + frames.window_update(0, CONNECTION_WINDOW - frames.WINDOW_DEFAULT)
)


class BrokenError(Exception):
    """The server broke the protocol; the connection cannot go on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Connection(asyncio.Protocol):
    """See the module. Made by `create_connection`; `ready` ends when the server has spoken."""

    def __init__(self, on_leave: Callable[[Connection], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self.loop.create_future()
        """Raises ConnectionError when the connection is lost before the server's settings came."""
        # Who began to connect may have given up waiting.
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self.is_leaving = False
        """It takes no new exchanges."""
        self.is_paused = False
        """More is waiting for the network than is good."""
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._on_leave = on_leave
        self._transport: asyncio.Transport | None = None
        self._exchanges: dict[int, Exchange] = {}
        self._next_id = 1
        self._buffer = b""
        self._decoder = Decoder(HEADER_LIST_BYTES_MAX)
        self._block: tuple[int, int, bytearray] | None = None
        """Stream, flags and bytes of headers whose end has not come."""
        self._out: list[bytes | memoryview] = []
        self._send_window = frames.WINDOW_DEFAULT
        self._stream_window = frames.WINDOW_DEFAULT
        self._frame_bytes_max = frames.FRAME_BYTES_DEFAULT
        self._exchanges_max = 2**31
        self._owed = 0
        self._slots: deque[asyncio.Future[None]] = deque()
        """Of those who wait for an exchange to end before they may begin one."""
        self._heard_s = self.loop.time()
        self._watching: asyncio.TimerHandle | None = None
        self._pinged = False
        self._lost = ""

    # what the channel does

    async def slot(self) -> None:
        """Wait until the server takes one more exchange at a time."""
        while not (self.is_leaving or self.has_slot):
            waiter = self.loop.create_future()
            self._slots.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._free_slot()  # ours by now, and not taken
                raise

    def open(self, block: bytes) -> Exchange:
        """Begin an exchange with these headers; there is a slot, and `is_leaving` is False."""
        number = self._next_id
        self._next_id += 2
        exchange = self._exchanges[number] = Exchange(self, number, self._stream_window)
        self.write(frames.headers(number, block, self._frame_bytes_max, end_stream=False))
        if self._next_id > frames.STREAM_ID_MAX:
            self._leave()
        if self._watching is None:
            self._heard_s = self.loop.time()
            self._watching = self.loop.call_later(PING_AFTER_S, self._watch)
        return exchange

    @property
    def has_slot(self) -> bool:
        """Whether `open` may be called at once."""
        return not self.is_leaving and len(self._exchanges) < self._exchanges_max

    @property
    def is_lost(self) -> bool:
        """Whether there is nothing left to close."""
        return self._transport is None

    @property
    def local_address(self) -> str:
        """The address of this host that it comes from; "" once it is lost."""
        name = None if self._transport is None else self._transport.get_extra_info("sockname")
        return name[0] if name else ""

    def abort(self, reason: str = "") -> None:
        """End it without a word to the server; `reason` is what its exchanges end with."""
        self._lost = self._lost or reason
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection; exchanges under way are cancelled."""
        for exchange in list(self._exchanges.values()):
            exchange.cancel()
        self._leave()

    # what exchanges do

    def room(self, exchange: Exchange) -> int:
        """Return how many bytes may be sent on an exchange now."""
        return min(self._send_window, exchange.send_window)

    def send_data(self, exchange: Exchange, data: bytes | memoryview, *, end: bool) -> None:
        """Send what there is room for."""
        size, most = len(data), self._frame_bytes_max
        self._send_window -= size
        exchange.send_window -= size
        view = data if size <= most else memoryview(data)
        for start in range(0, size or 1, most):
            piece = view[start : start + most]
            flags = frames.END_STREAM if end and start + most >= size else 0
            self.write(frames.head(frames.DATA, flags, exchange.id, len(piece)))
            if piece:
                self.write(piece)

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes at the end of this turn of the loop, with all others of it."""
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(data)

    def reset(self, exchange: Exchange, code: int) -> None:
        """Tell the server that an exchange is over."""
        if exchange.id in self._exchanges:
            self.write(frames.rst_stream(exchange.id, code))

    def forget(self, exchange: Exchange) -> None:
        """Take note that an exchange is over."""
        if self._exchanges.pop(exchange.id, None) is not None:
            self._free_slot()
        if self.is_leaving and not self._exchanges:
            self._hang_up()

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Speak first, as HTTP/2 has it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it
        self._transport.write(_OPENING)

    def pause_writing(self) -> None:
        """Have writers wait."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """Have them go on."""
        self.is_paused = False
        for exchange in list(self._exchanges.values()):
            exchange.wake_writers()

    def eof_received(self) -> None:
        """Close: a server that sends no more answers nothing."""

    def connection_lost(self, error: Exception | None) -> None:
        """End everything that is under way."""
        text = self._lost or (f"{CUT_OFF}: {error}" if error is not None else CUT_OFF)
        self.is_leaving = True
        self._transport = None
        self._out.clear()
        if self._watching is not None:
            self._watching.cancel()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(text))
        for exchange in list(self._exchanges.values()):
            exchange.over(UNAVAILABLE, text)
        self._free_all_slots()
        self._on_leave(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take what the server sent."""
        self._heard_s = self.loop.time()
        self._pinged = False
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        try:
            position = self._read(data)
        except BrokenError as error:
            self._break(error.code, str(error))
        except (HpackError, BombError) as error:
            self._break(frames.COMPRESSION_ERROR, f"headers that cannot be read: {error}")
        else:
            self._buffer = data[position:]

    def _read(self, data: bytes) -> int:
        """Take whole frames; return where the first that is not whole begins."""
        position, end = 0, len(data)
        while end - position >= frames.HEAD_BYTES and self._transport is not None:
            word, flags, stream = frames.unpack_head(data, position)
            length, kind = word >> 8, word & 0xFF
            if not (self.ready.done() or kind == frames.SETTINGS):
                raise BrokenError(frames.PROTOCOL_ERROR, "this is no HTTP/2 server")
            if length > FRAME_BYTES_MAX:
                raise BrokenError(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = position + frames.HEAD_BYTES
            if start + length > end:
                break
            position = start + length
            self._frame(kind, flags, stream & 0x7FFFFFFF, data[start:position])
        return position

    # frames

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise BrokenError(frames.PROTOCOL_ERROR, "headers without their end")
        if kind == frames.DATA:
            self._data(flags, stream, payload)
        elif kind == frames.HEADERS:
            payload = _unpadded(flags, payload)
            if flags & frames.PRIORITY_FLAG:
                payload = payload[5:]
            self._block = stream, flags, bytearray(payload)
            self._block_grew(flags)
        elif kind == frames.CONTINUATION:
            if self._block is None or self._block[0] != stream:
                raise BrokenError(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
            self._block[2].extend(payload)
            self._block_grew(flags)
        elif kind == frames.WINDOW_UPDATE:
            self._window(stream, payload)
        elif kind == frames.RST_STREAM:
            self._check_size(payload, 4)
            exchange = self._exchanges.get(stream)
            if exchange is not None:
                exchange.reset(int.from_bytes(payload))
        elif kind == frames.SETTINGS:
            self._settings(flags, payload)
        elif kind == frames.PING:
            self._check_size(payload, 8)
            if not flags & frames.ACK:
                self.write(frames.ping(payload, ack=True))
        elif kind == frames.GOAWAY:
            if len(payload) < 8:
                raise BrokenError(frames.FRAME_SIZE_ERROR, "GOAWAY of too few bytes")
            self._goaway(int.from_bytes(payload[:4]) & 0x7FFFFFFF, payload[8:])
        elif kind == frames.PUSH_PROMISE:
            raise BrokenError(frames.PROTOCOL_ERROR, "a push, which was not offered")

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        flow = len(payload)
        self._owed += flow
        if self._owed >= CONNECTION_WINDOW // 2:
            self.write(frames.window_update(0, self._owed))
            self._owed = 0
        exchange = self._exchanges.get(stream)
        if exchange is not None:  # else it was cancelled, and this crossed the news of it
            exchange.data(
                _unpadded(flags, payload), flow, end_stream=bool(flags & frames.END_STREAM)
            )
        elif not stream & 1 or stream >= self._next_id:
            raise BrokenError(frames.PROTOCOL_ERROR, f"data of stream {stream}, which is not open")

    def _block_grew(self, flags: int) -> None:
        assert self._block is not None
        stream, first_flags, block = self._block
        if len(block) > _HEADER_BLOCK_BYTES_MAX:
            raise BrokenError(frames.ENHANCE_YOUR_CALM, "headers of too many bytes")
        if not flags & frames.END_HEADERS:
            return
        self._block = None
        exchange = self._exchanges.get(stream)
        try:
            fields = self._decoder.decode(bytes(block))
        except HeaderListTooLargeError:
            if exchange is not None:
                exchange.refuse(RESOURCE_EXHAUSTED, "the server's headers are too large")
            return
        if exchange is not None:
            exchange.headers(fields, end_stream=bool(first_flags & frames.END_STREAM))

    def _window(self, stream: int, payload: bytes) -> None:
        self._check_size(payload, 4)
        more = int.from_bytes(payload) & 0x7FFFFFFF
        if not more:
            raise BrokenError(frames.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        if not stream:
            self._send_window += more
            if self._send_window > frames.WINDOW_MAX:
                raise BrokenError(frames.FLOW_CONTROL_ERROR, "a window of too many bytes")
            for blocked in [one for one in self._exchanges.values() if one.is_blocked]:
                blocked.flush()
        elif (exchange := self._exchanges.get(stream)) is not None:
            exchange.send_window += more
            if exchange.send_window > frames.WINDOW_MAX:
                text = "the server opened its window too far"
                exchange.refuse(INTERNAL, text, frames.FLOW_CONTROL_ERROR)
            else:
                exchange.flush()

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        if len(payload) % 6:
            raise BrokenError(frames.FRAME_SIZE_ERROR, "SETTINGS of odd bytes")
        for setting, value in frames.unpack_settings(payload):
            if setting == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                if value > frames.WINDOW_MAX:
                    raise BrokenError(frames.FLOW_CONTROL_ERROR, "a window of too many bytes")
                for exchange in self._exchanges.values():
                    exchange.send_window += value - self._stream_window
                self._stream_window = value
            elif setting == frames.SETTINGS_MAX_FRAME_SIZE:
                if not frames.FRAME_BYTES_DEFAULT <= value < 1 << 24:
                    raise BrokenError(frames.PROTOCOL_ERROR, f"frames of {value} bytes")
                self._frame_bytes_max = min(value, frames.SEND_FRAME_BYTES_MAX)
            elif setting == frames.SETTINGS_MAX_CONCURRENT_STREAMS:
                self._exchanges_max = value
        self.write(frames.SETTINGS_ACK)
        for exchange in list(self._exchanges.values()):
            exchange.flush()
        self._free_all_slots()
        if not self.ready.done():
            self.ready.set_result(None)

    def _goaway(self, last: int, reason: bytes) -> None:
        text = "the server is going away"
        if reason:
            text += f": {reason.decode(errors='replace')}"
        self._leave()
        for number, exchange in list(self._exchanges.items()):
            if number > last:
                exchange.over(UNAVAILABLE, text)

    @staticmethod
    def _check_size(payload: bytes, size: int) -> None:
        if len(payload) != size:
            raise BrokenError(frames.FRAME_SIZE_ERROR, f"a frame of {len(payload)} bytes")

    # the end

    def _leave(self) -> None:
        if not self.is_leaving:
            self.is_leaving = True
            self._free_all_slots()
            self._on_leave(self)
        if not self._exchanges:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _break(self, code: int, text: str) -> None:
        self._lost = f"the server broke the protocol: {text}"
        if self._transport is not None:
            self.write(frames.goaway(0, code))
            self._flush()
            self._transport.abort() if self.is_paused else self._transport.close()
        # Now, as closing may take as long as the server likes to read.
        for exchange in list(self._exchanges.values()):
            exchange.over(UNAVAILABLE, self._lost)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(out)

    def _watch(self) -> None:
        self._watching = None
        if not self._exchanges or self._transport is None:
            return
        silent_s = self.loop.time() - self._heard_s
        if self._pinged:
            self.abort(f"no answer to a ping within {PING_TIMEOUT_S:g} s")
            return
        wait_s = PING_AFTER_S - silent_s
        if wait_s <= 0:
            self._pinged = True
            self.write(frames.ping(b"kvstore?", ack=False))
            wait_s = PING_TIMEOUT_S
        self._watching = self.loop.call_later(wait_s, self._watch)

    def _free_slot(self) -> None:
        while self._slots:
            waiter = self._slots.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _free_all_slots(self) -> None:
        for _ in range(len(self._slots)):
            self._free_slot()


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & frames.PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise BrokenError(frames.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]
