"""The sending half of a session: frames, back-pressure, deadlines, and what its calls need of it.

`session` extends it with the items that arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgpack

from kvstore.pb import session_pb2
from kvstore.server.errors import Code
from kvstore.server.services.session_call import PART_BYTES

if TYPE_CHECKING:
    from kvstore.server.services.base import ServiceCall
    from kvstore.server.services.session import SessionService
    from kvstore.server.services.session_call import SessionCall, SessionStream

FORMAT = 1

OUT_HIGH_BYTES = 1 << 20
"""Unsent bytes of a session above which it takes no frames and its streams wait."""

FRAME_BYTES = 256 << 10
"""A frame leaves before the end of the turn when it has grown so large."""

TURN_PARTS = 4
"""Parts of long replies sent in one turn of the loop."""

REPLIES_BYTES_MAX = 64 << 20
"""Unsent bytes of a session above which large replies are refused one by one."""

QUEUED_BYTES_MAX = 512 << 20
"""Stream messages of all sessions that wait for slow readers."""

SWEEP_S = 0.025
"""How late a deadline may fire. One timer for all calls of a session, while there are any."""

_pack = msgpack.Packer(autoreset=True).pack


class SessionOutbound:
    """What is open in a session, and the next frame to its client."""

    def __init__(self, service: SessionService, call: ServiceCall) -> None:
        self.service = service
        self.call = call
        self.calls: dict[int, SessionCall] = {}
        self.streams: dict[int, SessionStream] = {}
        self.puts: dict[int, int] = {}
        """Bytes of the plain puts that wait for the log, by id (`session_puts`)."""
        self.unanswered_bytes = 0
        self.out: list[Any] = [FORMAT]
        """The next frame. Items of one turn leave together."""
        self.out_bytes = 0
        self.blocked = False
        """The client does not keep up: streams wait, and no frames are taken."""
        self.over = False
        self.long: dict[int, deque[bytes | memoryview]] = {}
        """What is still to be sent of long replies, by id; the first is sent first."""
        self._long_bytes = 0
        self._full = False
        """The connection's queue is above its mark: parts wait, other answers still join it."""
        self.later = service.later
        self.replaced_metadata: dict[bytes, bytes] = {}
        self._pauses = 0
        self._sweeping = False

    def metadata(self, name: bytes) -> bytes | None:
        """Return the latest value of a metadata field."""
        value = self.replaced_metadata.get(name)
        return value if value is not None else self.call.metadata(name)

    def guard(self, call: SessionCall, method: Callable[..., object], *arguments: object) -> None:
        """Run a handler's method; what it raises ends its call only."""
        try:
            method(*arguments)
        except Exception as error:  # noqa: BLE001  # as above
            self.handler_failed(call, error)

    def handler_failed(self, call: SessionCall, error: BaseException) -> None:
        """Answer for a handler that raised; the session goes on."""
        self.service.on_error(error)
        call.fail(Code.UNKNOWN, "internal error in the handler of this call")

    def reserve(self, size_bytes: int) -> bool:
        """Count bytes that wait for slow readers; False when all together are too many."""
        service = self.service
        if size_bytes > 0 and service.queued_bytes + size_bytes > QUEUED_BYTES_MAX:
            return False
        service.queued_bytes += size_bytes
        return True

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether a reply of that size may join what is unsent. One alone always may."""
        waiting = self.call.unsent_bytes + self.out_bytes + self._long_bytes
        return not waiting or waiting + size_bytes <= REPLIES_BYTES_MAX

    def push(self, item: tuple[Any, ...]) -> None:
        """Send an item with this turn's frame."""
        if self.over:
            return
        if len(self.out) == 1:
            self.flush_later()
        self.out.append(item)

    def push_message(self, call_id: int, message: bytes) -> None:
        """Send a stream's message."""
        self.push((session_pb2.MESSAGE, call_id, message))
        self.out_bytes += len(message)
        if self.out_bytes > FRAME_BYTES:
            self._send_frame()

    def push_end(
        self, call_id: int, code: int, text: str, metadata: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send a status."""
        if metadata:
            fields = {name.decode(): value for name, value in metadata}
            self.push((session_pb2.END, call_id, int(code), text, fields))
        else:
            self.push((session_pb2.END, call_id, int(code), text))

    def push_long(self, call_id: int, pieces: Sequence[bytes], size_bytes: int) -> None:
        """Send a reply in parts, of `size_bytes` together; they are reserved already."""
        if self.over:
            self.reserve(-size_bytes)
            return
        self.long[call_id] = deque(piece for piece in pieces if piece)
        self._long_bytes += size_bytes
        if len(self.long) == 1:
            self.later(self.pump_long)

    def drop_long(self, call_id: int) -> None:
        """Send nothing more of a long reply."""
        rest_bytes = sum(map(len, self.long.pop(call_id, ())))
        self._long_bytes -= rest_bytes
        self.reserve(-rest_bytes)

    def pump_long(self) -> None:
        """Send some parts; no more than the connection takes, so that other answers pass."""
        for _ in range(TURN_PARTS):
            if self.over or self._full or not self.long:
                break
            [(call_id, pieces)] = islice(self.long.items(), 1)
            part = _take_part(pieces)
            self._long_bytes -= len(part)
            self.reserve(-len(part))
            if not pieces:
                del self.long[call_id]
            kind = session_pb2.PART if pieces else session_pb2.REPLY
            self._send_items([FORMAT, (kind, call_id, part)])
        if self.over:
            return
        if not self.long:
            self.sent()
        elif not self._full:
            self.later(self.pump_long)

    def flush_later(self) -> None:
        """Send the frame at the end of this turn."""
        self.later(self._flush)

    def _flush(self) -> None:
        if len(self.out) > 1 and not self.over:
            self._send_frame()
        self.sent()

    def expire_puts(self, now_s: float) -> None:
        """End the puts whose time is over."""
        raise NotImplementedError

    def sent(self) -> None:
        """The turn's frame is out."""
        raise NotImplementedError

    def _send_frame(self) -> None:
        items, self.out = self.out, [FORMAT]
        self.out_bytes = 0
        self._send_items(items)

    def _send_items(self, items: list[Any]) -> None:
        body = _pack(items)
        frame = session_pb2.Frame(body=body).SerializeToString()
        traffic = self.service.traffic
        traffic.frames_sent += 1
        traffic.sent_bytes += len(frame)
        # The call's own mark is lower; ours keeps the streams of one session apart from it.
        if not self.call.send(frame):
            self._full = True
        if not self.blocked and self.call.unsent_bytes > OUT_HIGH_BYTES:
            self.blocked = True
            self.pause(1)

    def has_drained(self) -> None:
        """The connection takes more: go on with long replies."""
        self._full = False
        if self.long:
            self.pump_long()

    def pause(self, change: int) -> None:
        """Count reasons to take no frames; the client's window runs dry meanwhile."""
        before = self._pauses
        self._pauses += change
        assert self._pauses >= 0
        if not before and self._pauses:
            self.call.pause_receiving()
        elif before and not self._pauses and not self.over:
            self.call.resume_receiving()

    def sweep_later(self) -> None:
        """Look for late calls soon, if there are calls and nobody does."""
        if (self.calls or self.puts) and not self._sweeping:
            self._sweeping = True
            self.service.later_s(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """End the calls whose time is over."""
        self._sweeping = False
        now_s = self.service.time_s()
        for call in [
            call
            for call in self.calls.values()
            if call.deadline_s is not None and call.deadline_s <= now_s
        ]:
            self.guard(call, call.expire)
        if self.puts:
            self.expire_puts(now_s)
        self.sweep_later()


def _take_part(pieces: deque[bytes | memoryview]) -> bytes | memoryview:
    """Remove and return the next `PART_BYTES`, or somewhat less where pieces end."""
    first = pieces.popleft()
    if len(first) > PART_BYTES:
        view = memoryview(first)
        pieces.appendleft(view[PART_BYTES:])
        return view[:PART_BYTES]
    part, size_bytes = [first], len(first)
    while pieces and size_bytes + len(pieces[0]) <= PART_BYTES:
        size_bytes += len(pieces[0])
        part.append(pieces.popleft())
    return first if len(part) == 1 else b"".join(part)
