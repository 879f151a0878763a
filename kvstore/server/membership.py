"""Membership changes and leadership transfers on a node: the leader decides, everybody follows.

A request goes to the leader, which judges it by the guards of `reconfig`, brings the change into
the log and answers when it has applied it; the member that took the request answers its client
when it has applied it too. A call to the leader is sent once, so a change happens at most once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvstore.peer.calls import PeerCalls, Reply
from kvstore.ports import Change as StoreChange
from kvstore.raft.errors import ChangeRefused, NotLeader, ProposalRefused, TransferRefused
from kvstore.raft.membership import Change, ChangeKind, change_configuration
from kvstore.raft.messages import NOBODY, Configuration, Entry, Role
from kvstore.server.cluster import Cluster
from kvstore.server.errors import (
    BAD_TRANSFEREE,
    NOT_LEADER,
    Code,
    NoLeaderError,
    RefusedRequestError,
    ServerError,
    TimedOutError,
    TooManyRequestsError,
    TransferTimedOutError,
)
from kvstore.server.node import Node
from kvstore.server.reconfig import Request, Sight, plan

log = logging.getLogger("kvstore.membership")

CALL = "member"
RETRY_S = 0.05
"""Between looks at whether there is a leader, or the change before ours is through."""

WAITING_MAX = 100
"""Changes that may wait; they go one by one."""

_REFUSALS = frozenset(Code) - {Code.OK}

ChangeDone = Callable[[int | Exception], None]
"""Takes the id of the member that was changed, or why it was not."""

TransferDone = Callable[[Exception | None], None]


@dataclass(slots=True)
class _Transfer:
    target: int
    deadline_ns: int
    done: TransferDone


@dataclass(slots=True)
class _Waiting:
    """A change in the log, and who waits until it is applied here."""

    index: int
    term: int
    """In which we proposed it; 0: the leader has applied it already."""

    member: int
    deadline_ns: int
    done: ChangeDone


class Membership:
    """One member's part in membership changes."""

    def __init__(
        self,
        node: Node,
        cluster: Cluster,
        calls: PeerCalls,
        *,
        sight: Callable[[], Sight],
        write: Callable[[StoreChange], None],
        changed: Callable[[Change, Entry], None],
        election_timeout_ns: int,
        timeout_ns: int,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """Join the parts.

        Args:
            node: Proposes and tells who leads.
            cluster: The members; changed here when a change is applied.
            calls: To ask the leader.
            sight: Returns how this member sees the others now; used while it leads.
            write: Stores a record together with the entry being applied.
            changed: Told of every change that was applied, and its entry.
            election_timeout_ns: A transfer takes at most about this long.
            timeout_ns: How long a request may take.
            later: `loop.call_later`.
        """
        self._node = node
        self._cluster = cluster
        self._calls = calls
        self._sight = sight
        self._write = write
        self._changed = changed
        self._transfer_ns = 2 * election_timeout_ns
        self._timeout_ns = timeout_ns
        self._later = later
        self._count = 0
        self._waiting: list[_Waiting] = []
        self._transfers: list[_Transfer] = []
        calls.handlers[CALL] = self._peer_asks

    def _now_ns(self) -> int:
        return self._node.clock.monotonic_ns()

    # requests of clients

    def submit(self, request: Request, done: ChangeDone) -> None:
        """Carry out a change, wherever the leader is; `done` runs when this member applied it."""
        if self._count >= WAITING_MAX:
            done(TooManyRequestsError())
            return
        self._count += 1
        self._route(request, partial(self._finish, done), self._now_ns() + self._timeout_ns)

    def _finish(self, done: ChangeDone, answer: int | Exception) -> None:
        self._count -= 1
        done(answer)

    def _route(self, request: Request, done: ChangeDone, deadline_ns: int) -> None:
        node = self._node
        if self._now_ns() >= deadline_ns:
            done(NoLeaderError())  # nothing was proposed on any way that leads here
        elif node.role is Role.LEADER:
            self._lead(request, done, deadline_ns)
        elif node.leader == NOBODY:
            self._later(RETRY_S, partial(self._route, request, done, deadline_ns))
        else:
            self._calls.call(
                node.leader,
                CALL,
                request.pack(),
                partial(self._answered, request, done, deadline_ns),
                deadline_ns,
            )

    def _answered(self, request: Request, done: ChangeDone, deadline_ns: int, answer: Any) -> None:
        match answer:
            case ["applied", int(index), int(member)]:
                if self._node.applied_index >= index:
                    done(member)
                else:
                    self._waiting.append(_Waiting(index, 0, member, deadline_ns, done))
            case ["refused", int(code), str(text)] if code in _REFUSALS:
                done(RefusedRequestError(Code(code), text))
            case ["elsewhere"]:
                # It does not lead and has proposed nothing: look again who does.
                self._later(RETRY_S, partial(self._route, request, done, deadline_ns))
            case _:
                done(TimedOutError("connection"))

    def _peer_asks(self, sender: int, body: Any, reply: Reply) -> None:
        try:
            request = Request.unpack(body)
        except ValueError as error:
            log.warning("member %x sent a malformed change: %s", sender, error)
            reply(None)
            return
        if self._node.role is not Role.LEADER:
            reply(("elsewhere",))
            return
        self._lead(request, partial(self._reply, reply), self._now_ns() + self._timeout_ns)

    def _reply(self, reply: Reply, answer: int | Exception) -> None:
        if isinstance(answer, int):
            reply(("applied", self._node.applied_index, answer))
        elif isinstance(answer, NoLeaderError):
            reply(("elsewhere",))
        elif isinstance(answer, ServerError) and not isinstance(answer, TimedOutError):
            reply(("refused", int(answer.code), answer.text))
        else:
            reply(None)

    # the leader

    def _lead(self, request: Request, done: ChangeDone, deadline_ns: int) -> None:
        # A round first: whoever was replaced without knowing judges nothing.
        self._node.linearizable(partial(self._judge, request, done, deadline_ns))

    def _judge(
        self, request: Request, done: ChangeDone, deadline_ns: int, error: Exception | None
    ) -> None:
        node = self._node
        if error is not None or node.role is not Role.LEADER:
            done(NoLeaderError())
            return
        if self._now_ns() >= deadline_ns:
            done(NoLeaderError())
            return
        sight = self._sight()
        try:
            change = plan(request, self._cluster, sight)
        except RefusedRequestError as refusal:
            done(refusal)
            return
        if change.kind is ChangeKind.REMOVE and change.member == node.raft.id:
            self._leave(request, done, deadline_ns, sight)
            return
        try:
            index, term = node.propose_change(change)
        except ProposalRefused as refusal:
            if isinstance(refusal, NotLeader):
                done(NoLeaderError())
            else:  # another change is under way, or the leadership moves: it is judged anew then
                self._later(RETRY_S, partial(self._lead, request, done, deadline_ns))
        except ChangeRefused as refusal:
            done(RefusedRequestError(Code.FAILED_PRECONDITION, f"etcdserver: {refusal}"))
        else:
            self._waiting.append(_Waiting(index, term, change.member, deadline_ns, done))

    def _leave(self, request: Request, done: ChangeDone, deadline_ns: int, sight: Sight) -> None:
        """Hand the leadership over, and let the successor remove us.

        Were we to lead our own removal, the others could be left without knowing that it is
        committed, and had to elect somebody first.
        """
        voters = [each for each in self._cluster.list_plain() if not each.is_learner]
        others = [each.id for each in voters if each.id != self._node.raft.id]
        target = max(others, key=lambda each: (sight.is_active(each), sight.progress(each)))

        def moved(error: Exception | None) -> None:
            if error is not None:
                done(error)
            else:
                self._route(request, done, deadline_ns)

        self.transfer(target, moved)

    # transfers

    def transfer(self, target: int, done: TransferDone) -> None:
        """Hand the leadership of this member to `target`; `done` runs when it leads."""
        node = self._node
        if node.role is not Role.LEADER:
            done(RefusedRequestError(*NOT_LEADER))
            return
        if target == node.raft.id:
            done(None)
            return
        try:
            node.transfer_leadership(target)
        except (NotLeader, TransferRefused):
            done(RefusedRequestError(*BAD_TRANSFEREE))
            return
        self._transfers.append(_Transfer(target, self._now_ns() + self._transfer_ns, done))

    def role_changed(self, leader: int) -> None:
        """Another member leads, or nobody known: see which transfers have ended."""
        if leader == NOBODY or not self._transfers:
            return
        transfers, self._transfers = self._transfers, []
        for transfer in transfers:
            if transfer.target == leader:
                transfer.done(None)
            elif leader == self._node.raft.id:
                self._transfers.append(transfer)  # not yet
            else:
                transfer.done(TransferTimedOutError())

    # what was committed

    def apply(self, entry: Entry) -> Configuration | None:
        """Follow a committed change; return the new configuration, None if it stays.

        The same on every member: what depends on the moment was judged before the proposal.
        """
        change = Change.decode(entry.data)
        try:
            configuration = change_configuration(self._node.raft.configuration, change)
        except ChangeRefused as refusal:
            log.warning("change of entry %d has no effect: %s", entry.index, refusal)
            return None
        self._cluster.apply(change)
        self._write(self._cluster.change())
        self._changed(change, entry)
        return configuration

    def applied(self, entry: Entry) -> None:
        """Answer who waited for a change; its configuration is in force now."""
        for item in self._take(lambda item: item.index == entry.index):
            # An entry of another term in its place means that ours is lost.
            item.done(item.member if item.term in (0, entry.term) else NoLeaderError())

    def skipped(self, index: int) -> None:
        """A snapshot replaced part of the log: nobody can say what became of our own changes."""
        for item in self._take(lambda item: item.index <= index):
            item.done(TimedOutError("snapshot") if item.term else item.member)

    def _take(self, is_over: Callable[[_Waiting], bool]) -> list[_Waiting]:
        over = [item for item in self._waiting if is_over(item)]
        self._waiting = [item for item in self._waiting if not is_over(item)]
        return over

    # time

    def expire(self, now_ns: int) -> None:
        """End what has waited too long, or waits for what cannot come; called each tick."""
        transfers, self._transfers = self._transfers, []
        for transfer in transfers:
            if transfer.deadline_ns <= now_ns:
                transfer.done(TransferTimedOutError())
            else:
                self._transfers.append(transfer)
        # Another entry was applied in its place, and no change: certainly not ours.
        applied_index = self._node.applied_index
        for item in self._take(lambda item: item.index <= applied_index):
            item.done(NoLeaderError() if item.term else item.member)
        for item in self._take(lambda item: item.deadline_ns <= now_ns):
            item.done(TimedOutError("" if item.term else "applied"))
