"""What a core is made of: its settings, and what was restored from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvstore.raft.messages import (
    Configuration,
    Entry,
    HardState,
    Index,
    MemberId,
    Term,
)


@dataclass(slots=True, frozen=True)
class Config:
    """Settings of one member's core. Counts are 1 or more."""

    id: MemberId
    """This member."""

    draw_timeout: Callable[[int, int], int]
    """Return an integer in [start, stop): the randomness of elections, `random.randrange` fits."""

    incarnation: int = 1
    """Greater at every start of this member than at any start before, below 2**31. Keeps the
    numbers of forwarded reads unique across restarts."""

    election_ticks: int = 10
    """Ticks without a leader before an election, drawn from [election_ticks, 2 * election_ticks).
    At least ten round trips, and well above the longest pause of a member."""

    heartbeat_ticks: int = 1
    """Ticks between heartbeats. About a tenth of `election_ticks`."""

    read_retry_ticks: int = 5
    """Ticks after which an unanswered ReadIndex round is replaced by a new one."""

    reads_pending_max: int = 100_000
    """`read` calls that may wait; more are refused at once."""

    message_bytes_max: int = 1 << 20
    """Entry bytes in one append; a larger entry travels alone."""

    message_entries_max: int = 1024
    """Entries in one append."""

    inflight_messages_max: int = 256
    """Unanswered appends per member."""

    inflight_bytes_max: int = 16 << 20
    """Entry bytes in unanswered appends per member. Throughput is at most this per round trip."""

    uncommitted_bytes_max: int = 64 << 20
    """Entry bytes that may wait for a quorum before proposals are refused."""

    apply_bytes_max: int = 4 << 20
    """Entry bytes in one `Ready.apply`."""

    apply_before_durable: bool = False
    """Hand committed entries to apply when a quorum of others has them, before the own disk does.
    The node must then keep the store's commit behind its own log."""

    def __post_init__(self) -> None:
        if self.id <= 0:
            raise ValueError("the member id must be positive")
        if self.election_ticks <= self.heartbeat_ticks or self.heartbeat_ticks < 1:
            raise ValueError("election_ticks must be greater than heartbeat_ticks, both at least 1")
        if not 0 < self.incarnation < 1 << 31:
            raise ValueError("the incarnation must be between 1 and 2**31 - 1")


@dataclass(slots=True)
class Restored:
    """What a member knows when it starts.

    A new cluster: every member starts with the same `configuration` and otherwise empty. A member
    that joins starts with an empty `Configuration(voters=())` and learns it from the leader.
    """

    hard_state: HardState = field(default_factory=lambda: HardState(0, 0, 0))
    """From the log on disk."""

    entries: Sequence[Entry] = ()
    """All entries on disk after `compacted`."""

    compacted: tuple[Index, Term] = (0, 0)
    """Index and term of the last entry before `entries`."""

    configuration: Configuration = field(default_factory=lambda: Configuration(voters=()))
    """As of `applied`."""

    applied: Index = 0
    """What the durable state machine contains; between `compacted` and the last entry."""
