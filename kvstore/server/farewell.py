"""The end of a removed member: it stays until the others know that its removal is committed.

Only they decide from then on, but who does not know it yet still counts the removed one: cut off,
or started again with an older store, the last voter of two would wait for its vote for ever. So it
tells them, votes where it is asked, serves no client, and goes when it is of no more use. Meanwhile
it keeps its own removal out of its store: started again it learns it anew and goes on telling.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from kvstore.peer.calls import PeerCalls, Reply
from kvstore.raft.messages import Entry
from kvstore.server.cluster import Cluster
from kvstore.server.node import Node

log = logging.getLogger("kvstore.membership")

CALL = "farewell"
GOODBYE_S = 0.5
"""At least this long: a client that asked us for our removal gets its answer."""

INTERVAL_S = 0.1
ANSWER_NS = 1_000_000_000
FAREWELL_MAX_S = 600.0
"""At most this long: time for a machine to be started again. A voter that is gone for longer may be
gone for good, and a process that nobody needs would look to its operator like one that hangs."""


class Farewell:
    """Tells of our own removal, and hears of that of others."""

    def __init__(
        self,
        node: Node,
        cluster: Cluster,
        calls: PeerCalls,
        *,
        stored_index: Callable[[], int],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """Join the parts.

        Args:
            node: Takes word of what is committed.
            cluster: The members that stay.
            calls: To tell the others.
            stored_index: Returns up to where the store is on disk.
            later: `loop.call_later`.
        """
        self.entry: Entry | None = None
        """Our removal, once we know it."""

        self._node = node
        self._cluster = cluster
        self._calls = calls
        self._stored_index = stored_index
        self._later = later
        self._done: Callable[[], None] = _nothing
        self._known: set[int] = set()
        self._asked: set[int] = set()
        self._rounds_left = round(FAREWELL_MAX_S / INTERVAL_S)
        calls.handlers[CALL] = self._peer_tells

    # our own removal

    def begin(self, entry: Entry, done: Callable[[], None]) -> None:
        """Our removal is applied: tell the others; `done` runs when enough of them know."""
        self.entry, self._done = entry, done
        log.info("this member was removed; it stays until the others know")
        self._tell()
        self._later(GOODBYE_S, self._look)

    def refused_by(self, peer: int) -> bool:
        """A peer says that we were removed; True when there is nothing to wait for."""
        self._known.add(peer)
        return self.entry is None

    def _voters(self) -> list[int]:
        return [member.id for member in self._cluster.list_plain() if not member.is_learner]

    def _look(self) -> None:
        voters = self._voters()
        missing = [voter for voter in voters if voter not in self._known]
        # A majority is enough: no other voter can lead without one of them.
        if len(voters) - len(missing) > len(voters) // 2:
            self._done()
            return
        self._rounds_left -= 1
        if self._rounds_left <= 0:
            log.warning(
                "this member stops though %s may not know of its removal; should they elect "
                "nobody, restore them from a copy of their data",
                ", ".join(f"{voter:x}" for voter in missing),
            )
            self._done()
            return
        self._tell()
        self._later(INTERVAL_S, self._look)

    def _tell(self) -> None:
        assert self.entry is not None
        fact = (self.entry.index, self.entry.term)
        deadline_ns = self._node.clock.monotonic_ns() + ANSWER_NS
        for voter in self._voters():
            if voter not in self._known and voter not in self._asked:
                self._asked.add(voter)
                self._calls.call(voter, CALL, fact, partial(self._answered, voter), deadline_ns)

    def _answered(self, voter: int, answer: Any) -> None:
        self._asked.discard(voter)
        if answer is True:
            self._known.add(voter)

    # that of others

    def _peer_tells(self, sender: int, body: Any, reply: Reply) -> None:
        match body:
            case (int(index), int(term)):
                self._node.hear_committed(index, term)
                # Known is what we would still know after a crash.
                reply(self._stored_index() >= index)
            case _:
                log.warning("member %x sent a malformed farewell", sender)
                reply(None)


def _nothing() -> None:
    """No removal was announced."""
