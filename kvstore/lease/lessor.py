"""The replicated book of leases: grants, attached keys, checkpoints, table `lease`; no time here.

Everything here happens in log order on every member and must come out the same on each. What the
leader alone decides (when a lease ends) is in `kvstore.lease.clock`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgpack

from kvstore.lease.errors import LeaseExists, LeaseNotFound, LeaseTTLTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvstore.ports import View

TTL_MAX_S: Final = 9_000_000_000
"""etcd's bound (about 285 years in nanoseconds fit 63 bits)."""

TABLE: Final = "lease"

_FORMAT: Final = 1
_NO_KEYS: Final[frozenset[bytes]] = frozenset()


def minimum_ttl_s(election_timeout_ms: int) -> int:
    """Return the shortest life that a grant gets: ceil(1.5 election timeouts), as etcd.

    A lease must outlive the loss of a leader, else every fail-over would end it.
    """
    return -(-3 * election_timeout_ms // 2000)


class Lease:
    """One lease."""

    __slots__ = ("id", "keys", "remaining_s", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int, remaining_s: int = 0) -> None:
        self.id = lease_id

        self.ttl_s = ttl_s
        """Granted life in whole seconds."""

        self.remaining_s = remaining_s
        """Life left at the last checkpoint; 0: none since the grant or the last reset."""

        self.keys: set[bytes] | None = None
        """Attached keys. None and not an empty set until the first, as most leases of a mass of
        them hold a key or none, and an empty set takes 216 bytes."""


class Listener(Protocol):
    """What the leader's clock wants to know of applied changes."""

    def lease_granted(self, lease: Lease) -> None:
        """A lease was added."""

    def lease_revoked(self, lease_id: int) -> None:
        """A lease is gone."""

    def lease_reset(self, lease_id: int) -> None:
        """The lease has no checkpoint any more."""


class Lessor:
    """Grants, revocations and attachments in log order.

    It is the store's lease book: the store calls `exists`, `attach` and `detach` as keys change,
    and `attach` for every live key with a lease when it rebuilds its index. So restore leases
    first, then build the store over it, then set `write` to the store's buffered write.

    Args:
        minimum_s: Shortest life a grant gets, in seconds; `minimum_ttl_s`.
    """

    def __init__(self, minimum_s: int) -> None:
        assert minimum_s >= 1
        self.minimum_s = minimum_s

        self.leases: dict[int, Lease] = {}
        """By id. Read-only for others."""

        self.granted = self.revoked = 0
        """Leases that began and ended since this object exists."""

        self.listener: Listener | None = None
        """The clock, while this member leads."""

        self.write: Callable[[str, bytes, bytes | None], None] = _unbound
        """Puts a record into the store's write buffer: table, key, value or None to delete."""

    def restore(self, view: View) -> None:
        """Replace everything by the leases stored in `view`; attachments come with the store.

        Raises:
            ValueError: A record is damaged or of a newer format.
        """
        leases = {}
        for key, record in view.scan(TABLE):
            lease_id = int.from_bytes(key, "big", signed=True)
            try:
                fields = msgpack.unpackb(record, use_list=False)
            except ValueError:
                fields = None
            if len(key) != 8 or type(fields) is not tuple or fields[0] != _FORMAT:
                raise ValueError(
                    f"lease record {key.hex()} is damaged or not of format {_FORMAT}: "
                    "start the release that wrote it, or restore this member from another"
                )
            leases[lease_id] = Lease(lease_id, fields[1], fields[2])
        self.leases = leases

    # changes, in log order

    def grant(self, lease_id: int, ttl_s: int) -> Lease:
        """Add a lease and return it with the life it got, at least `minimum_s`.

        Args:
            lease_id: Any 64-bit number but 0; the member that took the request has drawn one
                for a client that left the choice to the server.
            ttl_s: Asked life in seconds; zero and negative are raised to the minimum.

        Raises:
            LeaseNotFound: The id is 0. Nothing was changed.
            LeaseTTLTooLarge: More than `TTL_MAX_S`. Nothing was changed.
            LeaseExists: The id is in use. Nothing was changed.
        """
        if lease_id == 0:
            raise LeaseNotFound(lease_id)
        if ttl_s > TTL_MAX_S:
            raise LeaseTTLTooLarge(lease_id)
        if lease_id in self.leases:
            raise LeaseExists(lease_id)
        lease = Lease(lease_id, max(ttl_s, self.minimum_s))
        self.leases[lease_id] = lease
        self.granted += 1
        self._save(lease)
        if self.listener is not None:
            self.listener.lease_granted(lease)
        return lease

    def revoke(self, lease_id: int, delete_keys: Callable[[Iterable[bytes]], int]) -> int | None:
        """End a lease and delete its keys, in sorted order and in one revision.

        Args:
            lease_id: The lease.
            delete_keys: `Store.delete_keys`. It detaches each key from here.

        Returns:
            What `delete_keys` returned; None when no key was attached.

        Raises:
            LeaseNotFound: There is no such lease. Nothing was changed.
        """
        lease = self.leases.get(lease_id)
        if lease is None:
            raise LeaseNotFound(lease_id)
        # Sorted copies: deleting detaches, and the order of events must be the same everywhere.
        revision = delete_keys(sorted(lease.keys)) if lease.keys else None
        assert not lease.keys
        del self.leases[lease_id]
        self.revoked += 1
        self.write(TABLE, _key(lease_id), None)
        if self.listener is not None:
            self.listener.lease_revoked(lease_id)
        return revision

    def checkpoint(self, lease_id: int, remaining_s: int) -> None:
        """Remember the life left, so that a new leader does not start from the full one.

        0 takes the checkpoint back. A lease that ended meanwhile is passed over: the leader
        cannot know the order of its checkpoint and a revoke.
        """
        lease = self.leases.get(lease_id)
        if lease is not None:
            # More than the grant or less than nothing would be a leader's fault, not a promise.
            lease.remaining_s = min(max(remaining_s, 0), lease.ttl_s)
            self._save(lease)
            if not lease.remaining_s and self.listener is not None:
                self.listener.lease_reset(lease_id)

    # the store's lease book

    def exists(self, lease_id: int) -> bool:
        """Tell whether keys may be attached to this id."""
        return lease_id in self.leases

    def attach(self, lease_id: int, key: bytes) -> None:
        """Note that `key` now ends with this lease; the caller has asked `exists`."""
        lease = self.leases[lease_id]
        if lease.keys is None:
            lease.keys = {key}
        else:
            lease.keys.add(key)

    def detach(self, lease_id: int, key: bytes) -> None:
        """Note that `key` no longer ends with this lease."""
        lease = self.leases[lease_id]
        assert lease.keys is not None
        lease.keys.remove(key)

    # reads

    def keys(self, lease_id: int) -> list[bytes]:
        """Return the attached keys in sorted order; none for an unknown lease."""
        lease = self.leases.get(lease_id)
        return sorted((lease.keys if lease is not None else None) or _NO_KEYS)

    def _save(self, lease: Lease) -> None:
        record = msgpack.packb((_FORMAT, lease.ttl_s, lease.remaining_s))
        self.write(TABLE, _key(lease.id), record)


def _key(lease_id: int) -> bytes:
    return lease_id.to_bytes(8, "big", signed=True)


def _unbound(*_: object) -> None:
    raise RuntimeError("the lessor has no store to write to: set Lessor.write first")
