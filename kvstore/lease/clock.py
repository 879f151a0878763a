"""The leader's clock over leases: renewals and expiry on a timer wheel; proposes nothing itself.

Time is monotonic nanoseconds passed in. The rule that outranks all others: a lease never ends
before its life is over as the client counts it, that is from any answer the client got. Late is
allowed, early never.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvstore.lease.lessor import Lease, Lessor

EXPIRED: Final = -1
"""`renew`: the life is over and the revoke under way; answer TTL 0 once the revoke is applied."""

RESET_FIRST: Final = -2
"""`renew`: a checkpoint is in force. Propose a checkpoint of 0, and renew when it is applied."""

_SECOND_NS: Final = 1_000_000_000
_SLOT_SHIFT: Final = 27
"""A wheel slot is 2**27 ns (134 ms): by that much an expiry is late, beside the caller's tick."""

_MOVES_MAX: Final = 5_000
"""Leases touched in one call of `expired`, so that it holds the loop for some milliseconds only."""


class LeaseClock:
    """When each lease ends, kept by the leader only and never replicated.

    A renewal writes one number; the lease stays in its wheel slot and moves on when that slot comes
    up, so a lease is in at most one slot and is moved once per life, however often it is renewed.
    `promote` is O(n) in a copy of a list only: leases get their slots in the `expired` calls that
    follow, long before the first of them can be due.

    Args:
        lessor: The replicated book. `promote` makes this clock its listener, `demote` ends that.
        retry_ns: How long after `expired` returned a lease it is returned again if it still
            exists: the proposal may have been lost.
        checkpoint_ns: Interval in which `checkpoints` reports a lease's remaining life; leases
            that live shorter are never reported. 0: none are.
    """

    def __init__(
        self, lessor: Lessor, *, retry_ns: int = 2 * _SECOND_NS, checkpoint_ns: int = 0
    ) -> None:
        self._lessor = lessor
        self._retry_ns = retry_ns
        self._checkpoint_ns = checkpoint_ns
        self.leading = False
        self._forget()

    def _forget(self) -> None:
        self._promoted_ns = 0
        self._extend_ns = 0

        self._ends: dict[int, int] = {}
        """Lease to the time its life ends. Absent: granted or taken over, and not seen since."""

        self._inherited: set[int] = set()
        """Leases older than this leadership whose start is `_promoted_ns`."""

        self._slots: dict[int, dict[int, None]] = {}
        """Slot number to leases. Invariant: a lease is in one slot or in `_unplaced`, or gone."""

        self._slot_of: dict[int, int] = {}
        self._slot_order: list[int] = []
        """Heap of the slot numbers; holds every key of `_slots`, and some that are empty now."""

        self._unplaced: deque[int] = deque()
        self._due_checkpoints: OrderedDict[int, int] = OrderedDict()
        """Lease to time, in order of time because the interval is one for all."""

        self._reported: set[int] = set()
        """Leases whose checkpoint may be on its way. A renewal that overtook it would be undone by
        it at the next leader, so it takes a reset first."""

    # leadership

    def promote(self, now_ns: int, extend_ns: int) -> None:
        """Start as the new leader: every lease gets its full life again, and `extend_ns` more.

        The old leader may have renewed any lease just before it was lost, and told the client.
        Call it when the first entry of the own term is applied, not before: a checkpoint of an
        earlier term could still be among the entries ahead of it.

        Args:
            now_ns: Monotonic time.
            extend_ns: One election timeout, the time clients could reach nobody.
        """
        self._forget()
        self._promoted_ns = now_ns
        self._extend_ns = extend_ns
        self._inherited = set(self._lessor.leases)
        self._unplaced = deque(self._lessor.leases)
        self.leading = True
        self._lessor.listener = self

    def demote(self) -> None:
        """Forget all times: another member's clock counts now."""
        self._forget()
        self.leading = False
        self._lessor.listener = None

    # what the lessor tells

    def lease_granted(self, lease: Lease) -> None:
        """Start the life of a new lease at the next `expired` or `renew`."""
        self._unplaced.append(lease.id)

    def lease_revoked(self, lease_id: int) -> None:
        """Forget a lease that is gone."""
        self._ends.pop(lease_id, None)
        self._inherited.discard(lease_id)
        self._reported.discard(lease_id)
        self._due_checkpoints.pop(lease_id, None)
        slot = self._slot_of.pop(lease_id, None)
        if slot is not None:
            leases = self._slots[slot]
            del leases[lease_id]
            if not leases:
                del self._slots[slot]

    def lease_reset(self, lease_id: int) -> None:
        """Note that a checkpoint of 0 was applied, and with it every one proposed before it."""
        self._reported.discard(lease_id)

    # what clients ask

    def renew(self, lease_id: int, now_ns: int) -> int:
        """Start the lease's life again.

        Release the answer only after a ReadIndex round that began after this call: a leader that
        was replaced without knowing has no say.

        Returns:
            The granted life in seconds; 0 when there is no such lease; `EXPIRED`; `RESET_FIRST`.
        """
        lease = self._lessor.leases.get(lease_id)
        if lease is None:
            return 0
        if self._end_ns(lease, now_ns) <= now_ns:
            # Its revoke is under way or about to be; to extend it now would break the promise
            # to whoever watched the clock run out.
            return EXPIRED
        if lease.remaining_s or lease_id in self._reported:
            # A successor would start from the checkpoint, which is shorter than what we are
            # about to promise.
            return RESET_FIRST
        self._ends[lease_id] = now_ns + lease.ttl_s * _SECOND_NS
        return lease.ttl_s

    def remaining_s(self, lease_id: int, now_ns: int) -> int:
        """Return the whole seconds left, 0 when over; -1 when there is no such lease."""
        lease = self._lessor.leases.get(lease_id)
        if lease is None:
            return -1
        return max(0, (self._end_ns(lease, now_ns) - now_ns) // _SECOND_NS)

    def begin_lives(self, now_ns: int) -> None:
        """Start the lives of leases that were granted and not seen since, a bounded number."""
        self._place_new(now_ns)

    def by_end(self, now_ns: int) -> list[int]:
        """Return all leases, the one that ends first in front; of two that end together the older.

        etcd lists them so.
        """
        leases = self._lessor.leases.values()
        ends = sorted(leases, key=lambda lease: self._end_ns(lease, now_ns))
        return [lease.id for lease in ends]

    # the leader's tick

    def expired(self, now_ns: int, limit: int) -> list[int]:
        """Return up to `limit` leases whose life is over, for the caller to propose revokes.

        A bounded slice of work; call it again at the next tick. A returned lease comes again
        after `retry_ns` while it exists. Propose the revokes for this term only
        (`kvstore.apply.ops.in_term`): in a later one another leader may have renewed the lease.
        """
        moves = self._place_new(now_ns)
        over: list[int] = []
        now_slot = now_ns >> _SLOT_SHIFT
        order = self._slot_order
        while order and order[0] <= now_slot:
            leases = self._slots.get(order[0])
            while leases and len(over) < limit and moves < _MOVES_MAX:
                moves += 1
                lease_id = leases.popitem()[0]
                end_ns = self._ends[lease_id]
                if end_ns <= now_ns:
                    over.append(lease_id)
                    self._place(lease_id, now_ns + self._retry_ns)
                else:
                    self._place(lease_id, end_ns)  # it was renewed since it came here
            if leases:
                break  # the slice is used up
            self._slots.pop(heapq.heappop(order), None)
        return over

    def checkpoints(self, now_ns: int, limit: int) -> list[tuple[int, int]]:
        """Return up to `limit` leases and the seconds left to them, for the caller to propose.

        Rounded up: the successor must not end a lease earlier than this clock would. Propose them
        for this term only, as for `expired`.
        """
        reports: list[tuple[int, int]] = []
        due = self._due_checkpoints
        moves = 0
        while due and len(reports) < limit and moves < _MOVES_MAX:
            moves += 1
            lease_id, due_ns = due.popitem(last=False)
            if due_ns > now_ns:
                due[lease_id] = due_ns
                due.move_to_end(lease_id, last=False)
                break
            lease = self._lessor.leases[lease_id]
            left_ns = self._end_ns(lease, now_ns) - now_ns
            if left_ns > 0 and left_ns + self._checkpoint_ns <= lease.ttl_s * _SECOND_NS:
                # Only what a full interval of silence has shortened. A lease that is kept alive
                # never gets here, so that it costs no log entry.
                reports.append((lease_id, -(-left_ns // _SECOND_NS)))
                self._reported.add(lease_id)
            due[lease_id] = now_ns + self._checkpoint_ns
        return reports

    # the wheel

    def _end_ns(self, lease: Lease, now_ns: int) -> int:
        """Return when the lease's life ends; a life not yet begun begins now."""
        end_ns = self._ends.get(lease.id)
        if end_ns is None:
            if lease.id in self._inherited:
                life_ns = (lease.remaining_s or lease.ttl_s) * _SECOND_NS + self._extend_ns
                end_ns = self._promoted_ns + life_ns
            else:
                end_ns = now_ns + lease.ttl_s * _SECOND_NS
            self._ends[lease.id] = end_ns
        return end_ns

    def _place_new(self, now_ns: int) -> int:
        unplaced = self._unplaced
        moves = 0
        leases = self._lessor.leases
        while unplaced and moves < _MOVES_MAX:
            moves += 1
            lease = leases.get(unplaced.popleft())
            if lease is None or lease.id in self._slot_of:
                continue  # revoked meanwhile; or granted, revoked and granted again
            self._place(lease.id, self._end_ns(lease, now_ns))
            if self._checkpoint_ns and lease.ttl_s * _SECOND_NS > self._checkpoint_ns:
                self._due_checkpoints[lease.id] = now_ns + self._checkpoint_ns
        return moves

    def _place(self, lease_id: int, due_ns: int) -> None:
        # The slot after the one that holds the time, so that a slot that has come up is due whole.
        slot = (due_ns >> _SLOT_SHIFT) + 1
        self._slot_of[lease_id] = slot
        leases = self._slots.get(slot)
        if leases is None:
            self._slots[slot] = {lease_id: None}
            heapq.heappush(self._slot_order, slot)
            if len(self._slot_order) > 2 * len(self._slots) + 1024:
                # Numbers of slots that revokes emptied; a client may choose far and many of them.
                self._slot_order[:] = sorted(self._slots)
        else:
            leases[lease_id] = None
