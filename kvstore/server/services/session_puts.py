"""Plain puts of a session, many to an item: proposed together, and answered by one item.

Of most programs they are nearly everything. An object, a handler's call, a closure and a reply for
each were half of what a put cost the member that took it. Whatever a handler could refuse, or
answer with more than a header, goes to the handler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, Any

from kvstore.apply import ops
from kvstore.mvcc.keyvalue import plain_put
from kvstore.pb import session_pb2
from kvstore.server.errors import Code, TooManyRequestsError, wire_error
from kvstore.server.proposals import Run
from kvstore.server.services.kv import PUT_OVERHEAD
from kvstore.server.services.session_call import DEADLINE_TEXT
from kvstore.server.services.session_outbound import SessionOutbound
from kvstore.server.services.writes import Writes

if TYPE_CHECKING:
    from kvstore.server.services.base import ServiceCall
    from kvstore.server.services.session import Served, SessionService

PUTS_MAX = 1_024
"""Puts of one item: what an entry of the log holds, and a turn of the loop takes."""

_BYTES_ONLY = {bytes}
_NONE = repeat(0)


class PutDoor:
    """Lets plain puts in where nothing is in the way of any."""

    def __init__(self, put: Served, writes: Writes, is_serving: Callable[[], bool]) -> None:
        """Join the parts.

        Args:
            put: The method, as it is registered.
            writes: The way into the log.
            is_serving: Tells whether the guards before the handler would let all puts pass.
        """
        self.put = put
        self.writes = writes
        self._is_serving = is_serving

    def lets_in(self, payloads: tuple[Any, ...]) -> bool:
        """Tell whether the handler would surely propose each of these requests."""
        return (
            self._is_serving()
            and set(map(type, payloads)) == _BYTES_ONLY
            and max(map(len, payloads)) <= self.writes.room_bytes(PUT_OVERHEAD)
            and all(map(plain_put, payloads))
        )


class SessionPuts(SessionOutbound):
    """The puts of a session that wait for the log."""

    def __init__(self, service: SessionService, call: ServiceCall) -> None:
        """Begin without any."""
        super().__init__(service, call)
        self._put_ends: deque[tuple[float, range]] = deque()
        """When the time of these ids is over; in their order."""

    def propose_puts(self, door: PutDoor, ids: range, end_s: float, payloads: Any) -> None:
        """Bring puts into the log, each of which the door lets in.

        Args:
            door: The way.
            ids: Of each.
            end_s: When their time is over; 0 is never.
            payloads: Encoded PutRequests.
        """
        sizes = list(map(len, payloads))
        size_bytes = sum(sizes)
        self.puts.update(zip(ids, sizes, strict=True))
        self.unanswered_bytes += size_bytes
        if end_s:
            self._put_ends.append((end_s, ids))
        run: list[ops.Op] = [(ops.PUT, payload) for payload in payloads]
        try:
            door.writes.node.propose_run(run, size_bytes, Run(self._puts_done, ids))
        except TooManyRequestsError as error:
            self._puts_done(ids, error)

    def _puts_done(self, ids: range, results: Any) -> None:
        puts = self.puts
        if not puts:
            return  # the client is gone
        if not isinstance(results, Exception):
            first, last = results[0], results[-1]
            # A put makes one revision, and one that was refused none. So two of them tell all.
            if type(first) is tuple and type(last) is tuple and last[0] - first[0] == len(ids) - 1:
                sizes = list(map(puts.pop, ids, _NONE))
                self.unanswered_bytes -= sum(sizes)
                self._push_written(ids, first[0], sizes)
                return
        for position, call_id in enumerate(ids):
            size_bytes = puts.pop(call_id, 0)
            self.unanswered_bytes -= size_bytes
            result = results if isinstance(results, Exception) else results[position]
            if not isinstance(result, Exception):
                self._push_written(ids[position : position + 1], result[0], [size_bytes])
            elif size_bytes:
                code, text = wire_error(result)
                self.push_end(call_id, int(code), text)

    def _push_written(self, ids: range, revision: int, sizes: list[int]) -> None:
        """Tell that the puts made consecutive revisions; those of size 0 nobody asks for."""
        start, count = 0, len(sizes)
        while start < count:
            stop = sizes.index(0, start) if 0 in sizes[start:] else count
            if start < stop:
                self.push((session_pb2.WRITTEN, ids[start], revision + start, stop - start))
            start = stop + 1

    def forget_put(self, call_id: int) -> None:
        """Take out a put that the client gave up."""
        self.unanswered_bytes -= self.puts.pop(call_id, 0)

    def expire_puts(self, now_s: float) -> None:
        """End the puts whose time is over."""
        puts, ends = self.puts, self._put_ends
        oldest = next(iter(puts))
        while ends and ends[0][1][-1] < oldest:
            ends.popleft()
        for end_s, ids in ends:
            if end_s <= now_s:
                for call_id in ids:
                    if call_id in puts:
                        self.forget_put(call_id)
                        self.push_end(call_id, Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)
