"""Small questions between members (lease renewals, remaining lives); never proposals or votes.

A frame is the byte `CALL_FRAME`, which no encoded Raft message begins with, then msgpack
`[is_reply, call_id, kind, body]`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

CALL_FRAME = 0xC1
"""A byte that msgpack never uses and that is no codec version."""

Reply = Callable[[Any], None]
Handler = Callable[[int, Any, Reply], None]
"""Takes sender, body, and what to call with the answer, now or later; None is a refusal."""

PENDING_MAX = 10_000


class PeerCalls:
    """Asks peers and answers them. A lost question or answer ends in `done(None)`."""

    def __init__(self, send: Callable[[int, bytes], bool], incarnation: int) -> None:
        """Start without handlers.

        Args:
            send: `send(peer, payload)` returns False if it was not sent.
            incarnation: A number that no other start of this member has used. An answer to a
                question of the process before may still be on its way, and must not be taken for
                one of ours.
        """
        self.handlers: dict[str, Handler] = {}
        self._send = send
        self._next_id = incarnation << 32
        self._pending: dict[int, tuple[int, int, Reply]] = {}

    def call(self, peer: int, kind: str, body: Any, done: Reply, deadline_ns: int) -> None:
        """Ask; `done` runs once with the answer, or None if there was none by the deadline."""
        if len(self._pending) >= PENDING_MAX:
            done(None)
            return
        call_id = self._next_id
        self._next_id += 1
        self._pending[call_id] = (peer, deadline_ns, done)
        if not self._send(
            peer, self._encode(is_reply=False, call_id=call_id, kind=kind, body=body)
        ):
            del self._pending[call_id]
            done(None)

    def receive(self, sender: int, payload: bytes) -> None:
        """Take a frame that begins with `CALL_FRAME`. Raises ValueError when it is malformed."""
        try:
            is_reply, call_id, kind, body = msgpack.unpackb(payload[1:], use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"malformed call from member {sender:x}: {error}") from error
        if not isinstance(call_id, int) or not isinstance(kind, str):
            raise ValueError(f"malformed call from member {sender:x}: odd types")  # noqa: TRY004
        if is_reply:
            pending = self._pending.get(call_id)
            if pending is not None and pending[0] == sender:
                del self._pending[call_id]
                pending[2](body)
            return
        handler = self.handlers.get(kind)
        if handler is None:
            self._answer(sender, call_id, None)
        else:
            handler(sender, body, lambda answer: self._answer(sender, call_id, answer))

    def expire(self, now_ns: int) -> None:
        """End the calls whose deadline is over."""
        late = [call_id for call_id, call in self._pending.items() if call[1] <= now_ns]
        for call_id in late:
            self._pending.pop(call_id)[2](None)

    def lost(self, peer: int) -> None:
        """End the calls to a peer whose connection broke."""
        gone = [call_id for call_id, call in self._pending.items() if call[0] == peer]
        for call_id in gone:
            self._pending.pop(call_id)[2](None)

    def _answer(self, peer: int, call_id: int, body: Any) -> None:
        self._send(peer, self._encode(is_reply=True, call_id=call_id, kind="", body=body))

    @staticmethod
    def _encode(*, is_reply: bool, call_id: int, kind: str, body: Any) -> bytes:
        packed: bytes = msgpack.packb([is_reply, call_id, kind, body])
        return bytes([CALL_FRAME]) + packed
