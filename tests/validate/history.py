"""What clients saw, in plain records; `order` counts calls and returns of the whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

OK, UNKNOWN, REFUSED = "ok", "unknown", "refused"
NEVER = 1 << 62


class Violation(AssertionError):  # noqa: N818 (the name says what happened)
    """A promise was broken; the text says which and shows the evidence."""


class Kv(NamedTuple):
    """One key at one revision."""

    key: bytes
    value: bytes
    create: int
    mod: int
    version: int
    lease: int


class Change(NamedTuple):
    """One change that a write asks for; `value` None deletes."""

    key: bytes
    value: bytes | None
    lease: int = 0


@dataclass(slots=True)
class Write:
    """A put, a delete, or a transaction of both. Every value is unique over the whole history."""

    call: int
    changes: tuple[Change, ...]
    compares: tuple[tuple[bytes, int], ...] = ()
    """Key and the mod_revision it must have (0: absent), or nothing is changed."""
    back: int = NEVER
    outcome: str = UNKNOWN
    revision: int = 0
    """The header's revision of an answer."""
    succeeded: bool = True
    """Whether the compares held."""
    previous: dict[bytes, Kv | None] | None = None
    """What the answer says the keys were before; None when it was not asked for."""
    deleted: int | None = None
    who: str = ""

    def __str__(self) -> str:
        what = ", ".join(
            f"{change.key.decode()}={change.value.decode() if change.value is not None else 'X'}"
            for change in self.changes
        )
        return (
            f"{self.who} wrote {what} ({self.outcome} at {self.revision}, {self.call}..{self.back})"
        )


@dataclass(slots=True)
class Read:
    """A range that was answered."""

    call: int
    start: bytes
    end: bytes
    """Empty: `start` alone."""
    serializable: bool = False
    at: int = 0
    """The revision asked for; 0 is now."""
    back: int = NEVER
    revision: int = 0
    kvs: tuple[Kv, ...] = ()
    who: str = ""

    def __str__(self) -> str:
        kind = "serializable" if self.serializable else "linearizable"
        when = f"{self.revision}, {self.call}..{self.back}"
        return f"{self.who}'s {kind} read of {self.start!r} at {when}"


class Event(NamedTuple):
    """One change as a watch reports it."""

    is_put: bool
    kv: Kv
    previous: Kv | None


@dataclass(slots=True)
class Batch:
    """One response of a watch stream; without events it is a progress mark."""

    order: int
    time_s: float
    revision: int
    """The header's revision."""
    events: tuple[Event, ...]


@dataclass(slots=True)
class Watch:
    """Everything one watcher got, over all streams it used."""

    who: str
    start: bytes
    end: bytes
    first: int
    """The first revision it asked for."""
    prev_kv: bool = True
    puts: bool = True
    deletes: bool = True
    batches: list[Batch] = field(default_factory=list)
    streams: list[tuple[int, int]] = field(default_factory=list)
    """For each stream: how many batches came before it, and the revision it started at."""
    compacted: list[tuple[int, int]] = field(default_factory=list)
    """From, to: revisions that the server said were compacted away."""


@dataclass(slots=True)
class Lease:
    """One lease as its holder saw it. Times are the holder's monotonic seconds."""

    lease_id: int
    ttl_s: int
    granted_s: float
    """When the grant was asked for."""
    renewed_s: float
    """When the last renewal that was confirmed was asked for; at first the grant."""
    keys: list[bytes] = field(default_factory=list)
    """Keys whose attachment was acknowledged."""
    unsure_keys: list[bytes] = field(default_factory=list)
    revoked: int = NEVER
    """Order of the call that revokes it."""
    ended_s: float | None = None
    """When the server told the holder that the lease is gone."""


@dataclass(slots=True)
class History:
    """One run."""

    order: int = 0
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    compactions: list[tuple[int, int]] = field(default_factory=list)
    """Order of the call, and the revision, of everything that may have been compacted."""

    def tick(self) -> int:
        """Return the next order number."""
        self.order += 1
        return self.order


def covers(start: bytes, end: bytes, key: bytes) -> bool:
    """Tell whether a range has the key; an empty end is the one key, b"\\0" no end."""
    if not end:
        return key == start
    return start <= key and (end == b"\0" or key < end)
