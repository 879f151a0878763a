"""The port to the registry: calls, plain values and errors; no client library and no policy.

RegistryError
├── UnavailableError           the registry cannot answer now: nothing was written, try again
│   └── OutcomeUnknownError    it may have been written: read before trying again
├── CompactedError             the revision to watch from is gone: list again
├── LeaseGoneError             a lease to attach a key to has ended: nothing was written
└── RefusedError               wrong user, no permission ...: an operator must act
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias


class RegistryError(Exception):
    """Base of what a `Registry` raises."""


class UnavailableError(RegistryError):
    """No answer now. Nothing was written."""


class OutcomeUnknownError(UnavailableError):
    """The write may have been applied, now or a moment later."""


class CompactedError(RegistryError):
    """The history from the revision asked for is gone."""


class LeaseGoneError(RegistryError):
    """A lease of the write has ended. Nothing was written."""


class RefusedError(RegistryError):
    """The registry answers, and says no. Nothing was written."""


class Head(NamedTuple):
    """Who answered, and how far its store was."""

    cluster_id: int
    revision: int


class KeyValue(NamedTuple):
    """One key as the registry holds it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int
    """0: the key stays until somebody deletes it."""


class Listing(NamedTuple):
    """All keys below a prefix at one revision."""

    head: Head
    kvs: tuple[KeyValue, ...]


class Change(NamedTuple):
    """What one revision made of one key."""

    key: bytes
    kv: KeyValue | None
    """None: it is gone."""


class Changes(NamedTuple):
    """All that one revision changed below a prefix; empty for a mark of progress."""

    revision: int
    changes: tuple[Change, ...]


class Grant(NamedTuple):
    """A lease with its seconds to live from now on; `ttl_s` 0: it has ended."""

    lease_id: int
    ttl_s: int
    head: Head


class Absent(NamedTuple):
    """Condition: no key begins with `prefix`."""

    prefix: bytes


class Unchanged(NamedTuple):
    """Condition: the key was last written by this revision; 0: it does not exist."""

    key: bytes
    mod_revision: int


class Put(NamedTuple):
    """Store a value; without a lease the key stays."""

    key: bytes
    value: bytes
    lease_id: int = 0


class Delete(NamedTuple):
    """Remove a key, if it is there."""

    key: bytes


Condition: TypeAlias = Absent | Unchanged
Write: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class Attempt:
    """Writes that are done together, if all their conditions hold."""

    conditions: tuple[Condition, ...]
    writes: tuple[Write, ...]


class Outcome(NamedTuple):
    """What came of attempts."""

    won: int | None
    """Position of the attempt that was done; None: not one."""
    head: Head
    listing: Listing | None
    """With `won` None: the keys as they were at that moment."""


class Feed(Protocol):
    """A watch; no generator, which could not be ended from outside while it waits."""

    async def next(self) -> Changes:
        """Wait for the next revision. Raises `RegistryError`s."""

    async def close(self) -> None:
        """End it."""


class Registry(Protocol):
    """An etcd v3 store. Every method raises `RegistryError`s and nothing else."""

    @property
    def resumptions(self) -> int:
        """How often a watch has moved to another connection, where the store may be another."""

    async def list(self, prefix: bytes) -> Listing:
        """Return what is below a prefix, every acknowledged write included."""

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        """Do the first attempt whose conditions hold, in one transaction, and no other.

        `otherwise` is the prefix to list when none does: who lost a race sees in the same call
        what has changed.
        """

    def watch(self, prefix: bytes, start_revision: int) -> Feed:
        """Return what brings every revision's changes, without gap or repeat."""

    async def grant(self, ttl_s: int) -> Grant:
        """Grant a lease."""

    async def renew(self, lease_id: int) -> Grant:
        """Let a lease live on for its whole time."""

    async def revoke(self, lease_id: int) -> None:
        """End a lease, and with it its keys. One that has ended is no error."""
