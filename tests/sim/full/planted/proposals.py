"""Planted bugs of proposals, reads and the messages between members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.peer import codec as peer_codec
from kvstore.raft.messages import AppendResponse
from kvstore.server import node as server_node
from kvstore.server.node import Node
from kvstore.server.proposals import Proposals
from kvstore.server.reads import Reads
from tests.sim.full.planted.bug import FullBug


def role_changed_and_sent_again(self: Node, ready: Any) -> None:
    """Send every batch again when the leader changes."""
    real_role_changed(self, ready)
    for first in list(self.proposals._sent):
        self.proposals.refused(first)


real_role_changed = Node._role_changed


def sent_again_in_time(self: Proposals, now_ns: int) -> None:
    """Send a batch again that got no answer for a while."""
    for first, batch in list(self._sent.items()):
        if batch.deadline_ns - now_ns < self._timeout_ns - 200_000_000:
            self.refused(first)
    real_expire(self, now_ns)


real_expire = Proposals.expire


def term_of_the_last_output(real: Callable[..., Any]) -> Callable[..., Any]:
    """Count a batch to the term that the core told last, not to the one it is sent in."""

    def next_batch(self: Proposals, term: int) -> Any:
        return real(self, max(0, term - 1))

    return next_batch


def any_answer_will_do(self: Reads, read_id: int, index: int | None, applied: int) -> None:
    """Take a late answer of a lost round for that of the round under way."""
    real_ready(self, self._round_id, index, applied)


real_ready = Reads.ready


def joins_the_round(self: Reads, fresh: Any) -> None:
    """Let a new read join the round under way."""
    if self._round:
        self._round.append((self._clock.monotonic_ns() + self._timeout_ns, fresh))
    else:
        real_add(self, fresh)


real_add = Reads.add


def serves_before_apply(self: Reads, read_id: int, index: int | None, applied: int) -> None:
    """Serve a confirmed read whatever is applied."""
    real_ready(self, read_id, None if index is None else 0, applied)


def hint_is_lost(payload: Any) -> Any:
    """Read a rejected append as an accepted one."""
    message = real_decode(payload)
    if isinstance(message, AppendResponse):
        message.hint = None
    return message


real_decode = peer_codec.decode


def last_entry_is_lost(payload: Any) -> Any:
    """Lose the data of entries that share a message."""
    message = real_decode(payload)
    entries = getattr(message, "entries", None)
    if entries and len(entries) > 1:
        entries[-1].data = entries[0].data
    return message


BUGS = (
    FullBug(
        "batches are sent again when the leader changes",
        "proposals",
        "FoundationDB layers: increments executed twice after commit unknown",
        ((Node, "_role_changed", role_changed_and_sent_again),),
        "swarm",
        20_000,
    ),
    FullBug(
        "batches are sent again after a while",
        "proposals",
        "hashicorp raft before 1.6.1, PySyncObj: a retried proposal is applied twice",
        ((Proposals, "expire", sent_again_in_time),),
        "network",
        50_000,
    ),
    FullBug(
        "a batch counts to the term before",
        "proposals",
        "found here: a batch counted to the term last told was sent twice",
        ((Proposals, "next_batch", term_of_the_last_output(Proposals.next_batch)),),
        "swarm",
        40_000,
    ),
    FullBug(
        "a late ReadIndex answer serves a later round",
        "reads",
        "etcd #20418: request ids used again after a pause",
        ((Reads, "ready", any_answer_will_do),),
        "reads",
        30_000,
    ),
    FullBug(
        "a read joins the round under way",
        "reads",
        "Raft thesis 6.4; TiKV and others answered reads that came after the round began",
        ((Reads, "add", joins_the_round),),
        "reads",
        250_000,
    ),
    FullBug(
        "a read does not wait for apply",
        "reads",
        "etcd #14140: stale read",
        ((Reads, "ready", serves_before_apply),),
        "swarm",
        50_000,
    ),
    FullBug(
        "a rejection reads as an acknowledgement",
        "peer codec",
        "a field lost between versions",
        ((server_node, "decode", hint_is_lost),),
        "swarm",
        20_000,
    ),
    FullBug(
        "entries of one message are mixed up",
        "peer codec",
        "a buffer used twice",
        ((server_node, "decode", last_entry_is_lost),),
        "swarm",
        20_000,
    ),
)
