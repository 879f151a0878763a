"""What clients have begun and do not finish: found at sweeps, ended after a time. No parsing here.

Dripping bytes is no flood that a budget could see: a frame, a header block or a message that never
ends costs its sender nothing and holds memory here (slow loris).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.rpc import grpc

if TYPE_CHECKING:
    from kvstore.rpc.call import Call
    from kvstore.rpc.connection import Connection


class Unfinished:
    """Remembers, for one connection, since when something is unfinished."""

    __slots__ = ("_bodies", "_frame", "_frame_since_s")

    def __init__(self) -> None:
        self._frame: tuple[str, int] | None = None
        self._frame_since_s = 0.0
        self._bodies: dict[Call, tuple[int, float]] = {}

    def sweep(self, connection: Connection, now_s: float) -> str | None:
        """End the requests that take too long; return what else does, which ends the connection."""
        limits = connection.engine.limits
        if connection.receiving_bytes or self._bodies:
            self._sweep_bodies(connection, now_s, limits.body_s)
        frame = connection.unfinished
        if frame is None or frame != self._frame:
            self._frame = frame
            self._frame_since_s = now_s
        elif now_s - self._frame_since_s >= limits.unfinished_s:
            return frame[0]
        return None

    def _sweep_bodies(self, connection: Connection, now_s: float, body_s: float) -> None:
        known = self._bodies
        self._bodies = found = {}
        for call in list(connection.streams.values()):
            if not call.buffer or call.receive_paused:
                continue  # whole so far, or it is we who hold it up
            # Where the message begins in the stream: the same as long as it is the same message.
            place = call.received_bytes - len(call.buffer)
            begun = known.get(call)
            if begun is None or begun[0] != place:
                found[call] = (place, now_s)
            elif now_s - begun[1] < body_s:
                found[call] = begun
            else:
                call.stop(grpc.DEADLINE_EXCEEDED, "the request message took too long to arrive")
