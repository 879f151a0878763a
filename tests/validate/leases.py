"""What leases promise: never ended early, all keys gone in one revision, gone in the end."""

from __future__ import annotations

from tests.validate.history import History, Lease, Violation
from tests.validate.timeline import Timeline


def check(history: History, timeline: Timeline, *, now_s: float, overdue_s: float) -> int:
    """Judge every lease; return how many ended by their time.

    Args:
        history: Whose leases and watches are judged; times are of one clock.
        timeline: Of the same history.
        now_s: When the store was last looked at.
        overdue_s: How long after its time a lease may still be there.
    """
    deleted = _deletions(history)
    ended = 0
    for lease in history.leases:
        ends = _ends(lease, timeline)
        if len(ends) > 1:
            raise Violation(f"the keys of lease {lease.lease_id:x} went at {sorted(ends)}")
        for revision in ends:
            _not_early(lease, *deleted[revision])
            _whole(lease, timeline, revision)
            ended += 1
        if lease.ended_s is not None:
            _not_early(lease, 0, lease.ended_s)
        if not ends and lease.keys and now_s > lease.renewed_s + lease.ttl_s + overdue_s:
            raise Violation(f"lease {lease.lease_id:x} should have ended: {lease}")
    return ended


def _deletions(history: History) -> dict[int, tuple[int, float]]:
    """Return for each revision when somebody first saw it: order and seconds."""
    first: dict[int, tuple[int, float]] = {}
    for watch in history.watches:
        for batch in watch.batches:
            for event in batch.events:
                seen = (batch.order, batch.time_s)
                first[event.kv.mod] = min(first.get(event.kv.mod, seen), seen)
    return first


def _ends(lease: Lease, timeline: Timeline) -> set[int]:
    """Return the revisions at which the store deleted a key of the lease by itself."""
    ends = set()
    for key in [*lease.keys, *lease.unsure_keys]:
        for revision, kv in timeline.versions.get(key, ()):
            before = timeline.at(key, revision - 1)
            held = before is not None and before.lease == lease.lease_id
            if kv is None and held and revision not in timeline.writers:
                ends.add(revision)
    return ends


def _not_early(lease: Lease, order: int, seen_s: float) -> None:
    """The server counts from a moment after the renewal was asked for, so that is the earliest."""
    asked_to_end = lease.revoked < order or (not order and lease.revoked != 1 << 62)
    if not asked_to_end and seen_s < lease.renewed_s + lease.ttl_s:
        raise Violation(
            f"lease {lease.lease_id:x} ended {lease.renewed_s + lease.ttl_s - seen_s:.3f} s early"
        )


def _whole(lease: Lease, timeline: Timeline, revision: int) -> None:
    for key in lease.keys:
        kv = timeline.at(key, revision)
        if kv is not None and kv.lease == lease.lease_id:
            raise Violation(f"lease {lease.lease_id:x} ended at {revision}, {key!r} is still there")
