"""Puts the replicated state together over a backend, each part after those it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvstore.apply.alarms import Alarms
from kvstore.apply.applier import Applier
from kvstore.apply.members import Members
from kvstore.lease.lessor import Lessor
from kvstore.mvcc.check import TXN_OPS_MAX
from kvstore.mvcc.store import Store

if TYPE_CHECKING:
    from kvstore.ports import Backend


class State(NamedTuple):
    """Everything that entries change, and what applies them."""

    store: Store
    lessor: Lessor
    alarms: Alarms
    members: Members
    applier: Applier


def open_state(backend: Backend, *, minimum_ttl_s: int, txn_ops_max: int = TXN_OPS_MAX) -> State:
    """Restore the state as of the backend's last commit; also after a snapshot replaced it.

    Args:
        backend: What is durable.
        minimum_ttl_s: Shortest life of a lease; `kvstore.lease.lessor.minimum_ttl_s`. Like the
            next it decides what a log entry does, so it must be the same on every member.
        txn_ops_max: Bound of operations in a transaction.

    Raises:
        StorageError, ValueError: The stored data is damaged or of a newer format.
    """
    lessor = Lessor(minimum_ttl_s)
    lessor.restore(backend)
    store = Store(backend, leases=lessor, txn_ops_max=txn_ops_max)
    lessor.write = store.write
    alarms = Alarms(store.write)
    alarms.restore(backend)
    members = Members(store.write)
    members.restore(backend)
    return State(store, lessor, alarms, members, Applier(store, lessor, alarms, members))
