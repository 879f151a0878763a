"""Lease life on a node: renewals, remaining lives and expiry, asked of the leader's clock.

The clock alone proves nothing: a leader that was replaced without knowing has no say. So what it
says leaves this module only after a ReadIndex round that began later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf.message import Message

from kvstore.apply import ops
from kvstore.lease.clock import EXPIRED, RESET_FIRST, LeaseClock
from kvstore.lease.lessor import TTL_MAX_S, Lessor
from kvstore.pb import rpc_pb2
from kvstore.peer.calls import PeerCalls, Reply
from kvstore.raft.messages import Role
from kvstore.server.errors import NoLeaderError, TimedOutError, TooManyRequestsError
from kvstore.server.node import Node

log = logging.getLogger("kvstore.lease")

EXPIRY_INTERVAL_NS = 500_000_000
REVOKES_MAX = 500
"""Revokes proposed per interval, as etcd: a mass expiry is spread over time."""

CHECKPOINTS_MAX = 1000
WAIT_STEP_S = 0.05

RenewDone = Callable[[int | Exception], None]
"""Takes the granted life in seconds, 0 if the lease is gone, or why nobody could say."""


class Leases:
    """Renewals, remaining lives and expiry for one member."""

    def __init__(
        self,
        node: Node,
        lessor: Lessor,
        clock: LeaseClock,
        calls: PeerCalls,
        *,
        election_timeout_ns: int,
        timeout_ns: int,
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """Join the parts.

        Args:
            node: For rounds and proposals.
            lessor: The replicated book.
            clock: Used while this member leads.
            calls: To ask the leader.
            election_timeout_ns: Added to every life when this member becomes leader.
            timeout_ns: How long a question may take.
            later: `loop.call_later`.
        """
        self.expired = 0
        self.renewed = 0
        self._node = node
        self.lessor = lessor
        self.clock = clock
        self._calls = calls
        self._extend_ns = election_timeout_ns
        self._timeout_ns = timeout_ns
        self._later = later
        self._next_expiry_ns = 0
        calls.handlers["renew"] = self._peer_renews
        calls.handlers["remaining"] = self._peer_asks_remaining

    # leadership

    def led(self) -> None:
        """The first entry of our own term is applied: our clock counts from now on."""
        self.clock.promote(self._node.clock.monotonic_ns(), self._extend_ns)

    def role(self, role: Role) -> None:
        """Forget all times when another member leads."""
        if role is not Role.LEADER and self.clock.leading:
            self.clock.demote()

    def begin_lives(self) -> None:
        """Let the lives of granted leases begin now, and not with the next tick only.

        Their order by end is then that of the grants' answers.
        """
        if self.clock.leading:
            self.clock.begin_lives(self._node.clock.monotonic_ns())

    def by_end(self) -> list[int]:
        """Return all leases, the one that ends first in front; by age where that is not known."""
        if self.clock.leading:
            return self.clock.by_end(self._node.clock.monotonic_ns())
        return list(self.lessor.leases)

    # renewals

    def renew(self, lease_id: int, done: RenewDone) -> None:
        """Keep a lease alive, wherever the leader is."""
        node = self._node
        if node.role is Role.LEADER:
            self._renew_here(lease_id, done, node.clock.monotonic_ns() + self._timeout_ns)
        elif not node.leader:
            done(NoLeaderError())
        else:
            deadline_ns = node.clock.monotonic_ns() + self._timeout_ns
            self._calls.call(
                node.leader, "renew", lease_id, partial(self._renewed_there, done), deadline_ns
            )

    @staticmethod
    def _renewed_there(done: RenewDone, answer: Any) -> None:
        # Else it was none, or nothing that a lease can have.
        is_life = isinstance(answer, int) and -1 <= answer <= TTL_MAX_S
        done(answer if is_life else TimedOutError("leader"))

    def _peer_renews(self, sender: int, body: Any, reply: Reply) -> None:
        if not isinstance(body, int) or self._node.role is not Role.LEADER:
            reply(None)
            return
        self._renew_here(
            body,
            lambda ttl: reply(ttl if isinstance(ttl, int) else None),
            self._node.clock.monotonic_ns() + self._timeout_ns,
        )

    def _renew_here(self, lease_id: int, done: RenewDone, deadline_ns: int) -> None:
        now_ns = self._node.clock.monotonic_ns()
        if now_ns >= deadline_ns:
            done(TimedOutError())
            return
        again = partial(self._renew_here, lease_id, done, deadline_ns)
        if not self.clock.leading:
            # Elected, but the first entry of the term is not applied yet.
            if self._node.role is Role.LEADER:
                self._later(WAIT_STEP_S, again)
            else:
                done(TimedOutError("leader"))
            return
        ttl_s = self.clock.renew(lease_id, now_ns)
        if ttl_s == EXPIRED:
            self._later(WAIT_STEP_S, again)  # its revoke is on the way; the answer will be 0
        elif ttl_s == RESET_FIRST:
            self._reset(lease_id, again, done)
        else:
            renewed = partial(self._confirmed, lease_id, ttl_s, self._node.term, again, done)
            self._node.linearizable(renewed)

    def _confirmed(
        self,
        lease_id: int,
        ttl_s: int,
        term: int,
        again: Callable[[], None],
        done: RenewDone,
        error: Exception | None,
    ) -> None:
        if error is not None:
            done(error)
        elif self._node.term != term or not self.clock.leading:
            # A round outlives a change of leader: it is asked again, and another leader may have
            # confirmed it. That one's clock has not seen this renewal.
            again()
        else:
            # It may have been revoked while the round ran.
            alive = lease_id in self.lessor.leases
            self.renewed += alive
            done(ttl_s if alive else 0)

    def _reset(self, lease_id: int, again: Callable[[], None], done: RenewDone) -> None:
        def applied(result: Any) -> None:
            if isinstance(result, Exception):
                done(result)
            else:
                again()

        request = rpc_pb2.LeaseCheckpointRequest(
            checkpoints=[rpc_pb2.LeaseCheckpoint(ID=lease_id, remaining_TTL=0)]
        )
        self._propose(self._node.term, ops.LEASE_CHECKPOINT, request, applied)

    # remaining lives

    def remaining(self, lease_id: int, done: RenewDone) -> None:
        """Tell the whole seconds left, -1 for an unknown lease, wherever the leader is."""
        node = self._node
        if node.role is Role.LEADER:
            node.linearizable(partial(self._remaining_here, lease_id, done))
        elif not node.leader:
            done(NoLeaderError())
        else:
            deadline_ns = node.clock.monotonic_ns() + self._timeout_ns
            self._calls.call(
                node.leader, "remaining", lease_id, partial(self._renewed_there, done), deadline_ns
            )

    def _remaining_here(self, lease_id: int, done: RenewDone, error: Exception | None) -> None:
        if error is not None:
            done(error)
        elif not self.clock.leading:
            done(TimedOutError("leader"))
        else:
            done(self.clock.remaining_s(lease_id, self._node.clock.monotonic_ns()))

    def _peer_asks_remaining(self, sender: int, body: Any, reply: Reply) -> None:
        if not isinstance(body, int) or self._node.role is not Role.LEADER:
            reply(None)
            return
        self._node.linearizable(
            partial(
                self._remaining_here,
                body,
                lambda left: reply(left if isinstance(left, int) else None),
            )
        )

    # expiry

    def tick(self) -> None:
        """On the leader: propose the revokes that are due, and checkpoints."""
        now_ns = self._node.clock.monotonic_ns()
        if not self.clock.leading or now_ns < self._next_expiry_ns:
            return
        self._next_expiry_ns = now_ns + EXPIRY_INTERVAL_NS
        term = self._node.term
        over = self.clock.expired(now_ns, REVOKES_MAX)
        if over:
            self._node.linearizable(partial(self._revoke, over, term))
        points = self.clock.checkpoints(now_ns, CHECKPOINTS_MAX)
        if points and self._node.role is Role.LEADER:
            request = rpc_pb2.LeaseCheckpointRequest(
                checkpoints=[
                    rpc_pb2.LeaseCheckpoint(ID=lease_id, remaining_TTL=left_s)
                    for lease_id, left_s in points
                ]
            )
            self._propose(term, ops.LEASE_CHECKPOINT, request, _ignore)

    def _revoke(self, lease_ids: list[int], term: int, error: Exception | None) -> None:
        if error is not None or not self.clock.leading:
            return  # the clock reports them again; a successor has its own
        for lease_id in lease_ids:
            request = rpc_pb2.LeaseRevokeRequest(ID=lease_id)
            self.expired += 1
            self._propose(term, ops.LEASE_REVOKE, request, _ignore)

    def _propose(self, term: int, kind: int, request: Message, done: Callable[[Any], None]) -> None:
        """Propose what only the leader of `term` may decide.

        In a later term it would be another's matter: the new leader may have renewed the lease
        since, so the operation is void there (`ops.in_term`).
        """
        wrapped, payload = ops.in_term(term, kind, request.SerializeToString())[:2]
        try:
            self._node.propose(wrapped, payload, done)
        except TooManyRequestsError as error:
            done(error)


def _ignore(result: Any) -> None:
    """An expiry that was lost comes again from the clock; one applied twice finds nothing."""
