"""Planted bugs of leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.lease.clock import LeaseClock
from kvstore.lease.lessor import Lessor
from kvstore.mvcc.store import Store
from kvstore.raft.messages import Role
from kvstore.server.leases import Leases
from tests.sim.full.planted.bug import FullBug


def revokes_in_any_term(
    self: Leases, term: int, kind: int, request: Any, done: Callable[[Any], None]
) -> None:
    """Propose an expiry that another leader's log takes too."""
    self._node.propose(kind, request.SerializeToString(), done)


def revokes_without_round(self: Leases) -> None:
    """Revoke what the own clock says, without asking whether anybody else leads."""
    node = self._node
    linearizable = node.linearizable
    node.linearizable = lambda done: done(None)  # type: ignore[method-assign]
    propose = self._propose
    self._propose = lambda *args: revokes_in_any_term(self, *args)  # type: ignore[method-assign]
    try:
        real_lease_tick(self)
    finally:
        node.linearizable = linearizable  # type: ignore[method-assign]
        self._propose = propose  # type: ignore[method-assign]


real_lease_tick = Leases.tick


def renews_alone(self: Leases, lease_id: int, done: Any, deadline_ns: int) -> None:
    """Answer a renewal from the own clock, without a ReadIndex round."""
    now_ns = self._node.clock.monotonic_ns()
    if not self.clock.leading or self._node.role is not Role.LEADER:
        done(0)
        return
    ttl_s = self.clock.renew(lease_id, now_ns)
    done(max(0, ttl_s))


def confirmed_by_anybody(
    self: Leases, lease_id: int, ttl_s: int, term: int, again: Any, done: Any, error: Any
) -> None:
    """Believe a ReadIndex round that another leader confirmed after this one was replaced."""
    if error is None and not self.clock.leading:
        done(ttl_s if lease_id in self.lessor.leases else 0)
    else:
        real_confirmed(self, lease_id, ttl_s, term, again, done, error)


real_confirmed = Leases._confirmed


def clock_remembers(self: LeaseClock, now_ns: int, extend_ns: int) -> None:
    """Lead again with the times of an earlier leadership."""
    ends = dict(self._ends)
    slots = self._slots, self._slot_of, self._slot_order
    real_promote(self, now_ns, extend_ns)
    self._ends = ends
    self._slots, self._slot_of, self._slot_order = slots


def clock_never_forgets(self: LeaseClock) -> None:
    """Keep the times when another leads."""
    self.leading = False
    self._lessor.listener = None


real_promote = LeaseClock.promote


def promoted_without_life(self: LeaseClock, now_ns: int, extend_ns: int) -> None:
    """Start leases of an earlier leader as if half their life were over."""
    real_promote(self, now_ns, extend_ns)
    self._promoted_ns = now_ns - 500_000_000 - extend_ns


def keys_one_by_one(self: Lessor, lease_id: int, delete_keys: Any) -> int | None:
    """Delete the keys of a lease in a revision each."""
    for key in self.keys(lease_id)[1:]:
        delete_keys([key])
    return real_revoke(self, lease_id, delete_keys)


real_revoke = Lessor.revoke


def attaches_nothing_at_start(self: Any, backend: Any, **options: Any) -> None:
    """Rebuild the store without telling the lessor which keys hang on which lease."""
    leases = options["leases"]
    attach = leases.attach
    leases.attach = lambda *_: None
    try:
        real_store_init(self, backend, **options)
    finally:
        leases.attach = attach
    self._lease_of = {}


real_store_init = Store.__init__


BUGS = (
    FullBug(
        "a stale leader revokes a lease",
        "leases",
        "a paused leader of the past revokes what the new one renewed",
        ((Leases, "tick", revokes_without_round),),
        "lease",
        770_000,
        slow=True,
    ),
    FullBug(
        "a stale leader renews a lease",
        "leases",
        "a renewal answered by a leader of the past",
        ((Leases, "_renew_here", renews_alone),),
        "lease",
        40_000,
    ),
    FullBug(
        "another leader confirms a renewal",
        "leases",
        "etcd #15247: a leader of the past answers renewals",
        ((Leases, "_confirmed", confirmed_by_anybody),),
        "lease",
        1_200_000,
        slow=True,
        # From 1_000 it takes 484,000 events, from 2_000 more than these.
        seeds=(10_000, 30_000),
    ),
    FullBug(
        "a leader leads again with old times",
        "leases",
        "etcd #9888 and kin: lease times at a change of leader",
        (
            (LeaseClock, "promote", clock_remembers),
            (LeaseClock, "demote", clock_never_forgets),
        ),
        "lease",
        40_000,
    ),
    FullBug(
        "a new leader gives leases no full life",
        "leases",
        "etcd #9888: lease transfer at a change of leader",
        ((LeaseClock, "promote", promoted_without_life),),
        "lease",
        280_000,
    ),
    FullBug(
        "a lease's keys go one by one",
        "leases",
        "t4 #120: lease operations that are not atomic",
        ((Lessor, "revoke", keys_one_by_one),),
        "lease",
        20_000,
    ),
    FullBug(
        "a restart forgets which keys hang on a lease",
        "leases",
        "keys that outlive their lease",
        ((Store, "__init__", attaches_nothing_at_start),),
        "lease",
        30_000,
    ),
)
