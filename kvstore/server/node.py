"""The node: drives the consensus core from ticks, peers, the disk thread and clients' operations.

It joins the parts and decides order; it holds no protocol, encoding or storage format of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from kvstore.apply.applier import Applied, Applier
from kvstore.apply.ops import Op
from kvstore.peer.codec import CodecError, decode, encode
from kvstore.peer.link import Channel
from kvstore.ports import Clock
from kvstore.raft.errors import ProposalRefused
from kvstore.raft.membership import Change
from kvstore.raft.messages import (
    CHANGE,
    AppendRequest,
    AppendWork,
    CommitNotice,
    Configuration,
    Entry,
    Forward,
    InstallSnapshot,
    Message,
    Ready,
    Role,
)
from kvstore.raft.raft import Raft
from kvstore.server.proposals import Done, Proposals, Run, answer
from kvstore.server.reads import Reads

log = logging.getLogger("kvstore.node")

P = ParamSpec("P")
R = TypeVar("R")

BULK_MESSAGES = (AppendRequest, Forward)

DISK_DEPTH = 2
"""Append works at the disk before new operations wait to become a larger batch."""

APPLY_SLICE_NS = 8_000_000
"""Time one loop turn may spend on applying before others get theirs."""

SLOW_APPLY_NS = 100_000_000
"""A turn's applying that took so long is counted as slow, as etcd counts requests."""


def fatal_if_it_fails(
    take: Callable[Concatenate[Node, P], R],
) -> Callable[Concatenate[Node, P], R]:
    """Let an exception of this input end the member.

    Part of what the core asked for is done and part is not, and it will not ask again: to go on
    would break promises. The log has what counts. An event loop would only report the exception.
    """

    @wraps(take)
    def taken(self: Node, /, *arguments: P.args, **named: P.kwargs) -> R:
        try:
            return take(self, *arguments, **named)
        except Exception as error:
            log.exception("the node failed")
            self.hooks.fatal(error)
            raise

    return taken


def _is_misplaced(message: Message) -> bool:
    """Tell whether it comes on another way: a snapshot on its own channel, with the store (see
    `Node.install`); a membership change by a call to the leader, who judges it.
    """
    if isinstance(message, Forward):
        return message.kind == CHANGE
    return isinstance(message, InstallSnapshot)


class Wires(Protocol):
    """Sends to peers; `kvstore.peer.link.Links` fits."""

    def send(self, peer: int, channel: Channel, payload: bytes) -> bool:
        """Send one message; False if it was certainly not sent."""


class Disk(Protocol):
    """Saves append work; `kvstore.server.disk.DiskThread` fits."""

    inflight: int

    def submit(self, work: AppendWork) -> None:
        """Save one work after all earlier ones."""


class Loop(Protocol):
    """What of the event loop is needed here."""

    def call_soon(self, callback: Callable[..., object], *args: Any) -> object:
        """Run the callback in the next turn."""


@dataclass(slots=True)
class NodeHooks:
    """What the node tells the parts around it. All run on the loop."""

    applied: Callable[[Applied], None]
    """An entry was applied; its results are about to be answered."""

    changed: Callable[[Entry], Configuration | None]
    """Apply a committed membership change; the new configuration, None if it stays."""

    reconfigured: Callable[[Entry], None]
    """The core follows the configuration of this change now."""

    role: Callable[[Role, int, int], None]
    """Role, leader or term changed: the new role, leader (0: none) and term."""

    led: Callable[[], None]
    """This member leads and has applied the first entry of its term."""

    snapshot: Callable[[InstallSnapshot], None]
    """The core wants this peer to get a snapshot."""

    fatal: Callable[[BaseException], None]
    """The state may be wrong: does not return."""


class Node:
    """One member's core and what drives it.

    Whatever arrives in one loop turn (operations, reads, peers' messages) is taken together in
    the next: one batch, one append per peer, one write of the log.
    """

    def __init__(
        self,
        raft: Raft,
        applier: Applier,
        proposals: Proposals,
        disk: Disk,
        wires: Wires,
        clock: Clock,
        loop: Loop,
        hooks: NodeHooks,
        request_timeout_ns: int,
    ) -> None:
        """Join the parts; nothing happens before the first input."""
        self.raft = raft
        self.applier = applier
        self.proposals = proposals
        self.clock = clock
        self.hooks = hooks
        self.term = 0
        self.leader = 0
        self.role = Role.FOLLOWER
        self.applied_index = raft.status().applied
        self.applied_term = 0
        self.applied_ops = 0
        self.leader_changes = 0
        self.slow_applies = 0
        self.reads = Reads(self._start_read, request_timeout_ns, clock)
        self._disk = disk
        self._wires = wires
        self._loop = loop
        self._timeout_ns = request_timeout_ns
        self._scheduled = False
        self._forward_failed = False
        self._notices: dict[int, CommitNotice] = {}
        """By peer: the newest commit index that no append has carried yet."""

        self._applying: deque[Entry] = deque()
        self._installing: asyncio.Future[None] | None = None
        self._stopped = False

    # what clients want

    def propose(
        self, kind: int, payload: bytes, done: Done, user: str = "", auth_revision: int = 0
    ) -> None:
        """Bring one operation into the log.

        `done` runs once, on the loop, with the operation's result or the exception that says how
        it ended: an error of the wire table, `NoLeaderError` (certainly not applied) or
        `TimedOutError` (outcome unknown).

        Raises:
            TooManyRequestsError: Nothing was queued.
        """
        op = (kind, payload, user, auth_revision) if user else (kind, payload)
        self.proposals.add(op, len(payload), done, self.clock.monotonic_ns())
        if not self._scheduled:
            self._wake()

    def propose_run(self, ops: list[Op], size_bytes: int, run: Run) -> None:
        """Bring operations that came together into the log, in their order.

        They end as with `propose`, many at a time: `run.done` takes ids and what became of them.

        Raises:
            TooManyRequestsError: Nothing was queued.
        """
        self.proposals.add_run(ops, size_bytes, run, self.clock.monotonic_ns())
        if not self._scheduled:
            self._wake()

    def linearizable(self, done: Callable[[Exception | None], None]) -> None:
        """Run `done(None)` when the store holds every write acknowledged before this call."""
        self.reads.add(done)
        if not self._scheduled:
            self._wake()

    def propose_change(self, change: Change) -> tuple[int, int]:
        """Append a membership change; return its index and term. See `Raft.propose_change`."""
        place = self.raft.propose_change(change)
        self._wake()
        return place

    def transfer_leadership(self, target: int) -> None:
        """Begin to hand over. See `Raft.transfer_leadership`."""
        self.raft.transfer_leadership(target)
        self._wake()

    # what the world brings

    @fatal_if_it_fails
    def tick(self) -> None:
        """Advance the core's time by one tick. Missed ticks are not replayed."""
        self.raft.tick()
        now_ns = self.clock.monotonic_ns()
        self.proposals.expire(now_ns)
        self.reads.expire(now_ns)
        self._turn()

    @fatal_if_it_fails
    def receive(self, sender: int, payloads: list[bytes]) -> None:
        """Take messages that a peer sent."""
        for payload in payloads:
            try:
                message = decode(payload)
            except CodecError as error:
                log.warning("member %x sent what cannot be read: %s", sender, error)
                continue
            if message.sender != sender:
                log.error("member %x sent a message in the name of %x", sender, message.sender)
                continue
            if message.target != self.raft.id or _is_misplaced(message):
                kind = type(message).__name__
                log.error("member %x sent a %s for %x", sender, kind, message.target)
                continue
            self.raft.step(message)
        if not self._scheduled:
            self._wake()

    @fatal_if_it_fails
    def snapshot_sent(self, peer: int, *, ok: bool) -> None:
        """Tell the core how sending a snapshot ended."""
        self.raft.snapshot_sent(peer, ok=ok)
        self._wake()

    @property
    def installing(self) -> bool:
        """Whether a snapshot is being put in place; nothing is applied meanwhile."""
        return self._installing is not None

    async def install(self, message: InstallSnapshot) -> bool:
        """Let the core take a snapshot whose data is durable.

        Returns:
            True when the log has marked it: nothing is applied from now on until `installed`.
            False when the core does not take it, as from a leader of an earlier term.
        """
        marking = self._mark_snapshot(message)
        if marking is None:
            return False
        await marking
        return True

    @fatal_if_it_fails
    def _mark_snapshot(self, message: InstallSnapshot) -> asyncio.Future[None] | None:
        assert self._installing is None
        self.raft.step(message)
        self._wake()
        if self.raft.log.snapshot_outstanding:
            self._installing = asyncio.get_running_loop().create_future()
        return self._installing

    @fatal_if_it_fails
    def installed(self, applier: Applier, index: int, term: int) -> None:
        """Go on from a snapshot's state."""
        self.applier = applier
        self.applied_index, self.applied_term = index, term
        while self._applying and self._applying[0].index <= index:
            self._applying.popleft()
        self._installing = None
        self.proposals.skipped()
        self.reads.skipped()
        self.raft.applied(index)
        self._wake()

    @fatal_if_it_fails
    def saved(self, works: list[AppendWork]) -> None:
        """The disk thread has made these works durable: their promises may leave now."""
        for work in works:
            for message in work.messages:
                self._send(message)
            self.raft.appended(work)
            if work.snapshot is not None and self._installing is not None:
                self._installing.set_result(None)
        self._turn()

    @fatal_if_it_fails
    def hear_committed(self, index: int, term: int) -> None:
        """Take word that an entry is committed. See `Raft.hear_committed`."""
        self.raft.hear_committed(index, term)
        self._wake()

    @fatal_if_it_fails
    def unreachable(self, peer: int) -> None:
        """The connection to a peer broke: what was in flight may be lost."""
        self.raft.unreachable(peer)
        self._wake()

    def stop(self) -> None:
        """End every operation that waits; take no more."""
        self._stopped = True
        self._send_notices()  # a leader that goes need not make the others elect to learn them
        self.proposals.stop()
        self.reads.stop()

    # one turn

    def _wake(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._woken)

    @fatal_if_it_fails
    def _woken(self) -> None:
        self._turn()

    def _turn(self) -> None:
        self._scheduled = False
        if self._stopped:
            return
        self._propose()
        self.reads.start()
        self._advance()
        if self._applying and self._installing is None:
            self._apply()

    def _propose(self) -> None:
        proposals = self.proposals
        while proposals.waiting() and self.leader and self._disk.inflight < DISK_DEPTH:
            if self.role is Role.LEADER:
                if not self._propose_here():
                    return
            else:
                # The core's own term, which may be ahead of what its last output told us: the
                # batch is sent in it, and must count as sent in it.
                batch = proposals.next_batch(self.raft.term)
                assert batch is not None
                # Sent once and never again: a second copy could be applied a second time.
                try:
                    self.raft.forward(batch[1], batch[0])
                except ProposalRefused:
                    self.proposals.refused(batch[0])
                    return
            self._advance()
            if self._forward_failed:
                # The leader cannot be reached; it waits for the next turn, not in this loop.
                self._forward_failed = False
                return

    def _propose_here(self) -> bool:
        batch = self.proposals.next_batch(self.raft.term)
        assert batch is not None
        first, data = batch
        try:
            self.raft.propose(data)
        except ProposalRefused:
            # Not appended; it waits for the next turn, a new leader, or its deadline.
            self.proposals.refused(first)
            return False
        return True

    def _start_read(self, read_id: int) -> None:
        self.raft.read(read_id)

    def _advance(self) -> None:
        """Carry out what the core wants until it wants nothing more."""
        take = self.raft.take
        while (ready := take()) is not None:
            # First, in the term that the refusals are of.
            for forward_id in ready.refused:
                self.proposals.refused(forward_id)
            if ready.term != self.term or ready.leader != self.leader or ready.role != self.role:
                self._role_changed(ready)
            for message in ready.messages:
                if type(message) is CommitNotice:
                    self._send_later(message)
                else:
                    self._send(message)
            if ready.append is not None:
                self._disk.submit(ready.append)
            if ready.apply:
                self._applying.extend(ready.apply)
            for read in ready.reads:
                self.reads.ready(read.read_id, read.index, self.applied_index)
                if read.index is not None and self.reads.are_waiting and not self._scheduled:
                    # What came during the round waits for nothing else to happen.
                    self._wake()

    def _role_changed(self, ready: Ready) -> None:
        if ready.leader and ready.leader != self.leader:
            self.leader_changes += 1
        self.term, self.leader, self.role = ready.term, ready.leader, ready.role
        self.hooks.role(self.role, self.leader, self.term)

    def _send_later(self, notice: CommitNotice) -> None:
        """Send the notice after this turn's replies: nobody waits for it as a client does for them.

        A write to a socket is the dearest part of a lone put (20 to 80 us each, with the waking of
        the other process), and two of them stood between the commit and its answer.
        """
        if not self._notices:
            self._loop.call_soon(self._loop.call_soon, self._send_notices)
        self._notices[notice.target] = notice

    def _send_notices(self) -> None:
        notices = self._notices
        self._notices = {}
        for notice in notices.values():
            self._send(notice)

    def _send(self, message: Message) -> None:
        if isinstance(message, InstallSnapshot):
            self.hooks.snapshot(message)
            return
        # An empty append too: on the other channel it would overtake entries and be rejected.
        bulk = isinstance(message, BULK_MESSAGES)
        if self._notices and isinstance(message, AppendRequest):
            notice = self._notices.get(message.target)
            if notice is not None and notice.commit <= message.commit:
                del self._notices[message.target]
        sent = self._wires.send(
            message.target, Channel.BULK if bulk else Channel.CONTROL, encode(message)
        )
        if not sent and isinstance(message, Forward):
            self._forward_failed = True
            self.proposals.refused(message.forward_id)

    def _apply(self) -> None:
        """Apply committed entries for a slice of time, then answer and let others run."""
        queue = self._applying
        end_ns = self.clock.monotonic_ns() + APPLY_SLICE_NS
        while queue:
            entry = queue.popleft()
            if entry.kind == CHANGE:
                self._apply_change(entry)
            else:
                self._apply_normal(entry)
            if (now_ns := self.clock.monotonic_ns()) >= end_ns:
                self.slow_applies += now_ns - end_ns >= SLOW_APPLY_NS
                break
        self.raft.applied(self.applied_index)
        self.reads.applied(self.applied_index)
        if queue:
            self._wake()
        self._advance()

    def _apply_change(self, entry: Entry) -> None:
        configuration = self.hooks.changed(entry)
        self.applied_index = entry.index
        self.raft.applied(entry.index, configuration)
        self.hooks.reconfigured(entry)

    def _apply_normal(self, entry: Entry) -> None:
        start_ns = self.clock.monotonic_ns()
        applied = self.applier.apply(entry)
        applied.duration_ns = self.clock.monotonic_ns() - start_ns
        self.applied_index = entry.index
        if entry.term != self.applied_term:
            self.applied_term = entry.term
            if self.proposals.term_applied(entry.term) and not self._scheduled:
                self._wake()
            if self.role is Role.LEADER and entry.term == self.term:
                self.hooks.led()
        self.applied_ops += len(applied.results)
        self.hooks.applied(applied)
        if applied.origin == self.proposals.origin:
            waiters = self.proposals.applied(
                applied.incarnation, applied.first_sequence, applied.results
            )
            answer(waiters, applied.results)
