"""The data of the consensus core: entries, states, messages, and what the core hands to the node.

Plain values only; no behaviour beyond construction. Everything that crosses the boundary of the
core is treated as immutable after it was handed over, by both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

Index = int
"""Position in the log; the first entry has index 1, 0 means "before the first"."""

Term = int
"""Election number; 0 before the first election."""

MemberId = int
"""Identity of a member, 1 to 2**64 - 1. Never reused."""

EntryKind = int
"""`NORMAL` or `CHANGE`; a plain integer because it is read for every entry."""

NOBODY: MemberId = 0
"""No member: not voted, no leader known."""

NORMAL: EntryKind = 0
"""Data of the state machine; empty data is the no-op that opens a term."""

CHANGE: EntryKind = 1
"""A membership change, `kvstore.raft.membership.Change.encode()`."""


class Role(IntEnum):
    """What a member is in its current term."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@dataclass(slots=True)
class Entry:
    """One position of the replicated log."""

    index: Index
    term: Term
    kind: EntryKind
    data: bytes


@dataclass(slots=True)
class HardState:
    """What must survive a crash besides the log (paper figure 2, persistent state).

    `commit` is only a help at restart: it may be older than the truth.
    """

    term: Term
    vote: MemberId
    commit: Index


@dataclass(slots=True, frozen=True)
class Configuration:
    """Who is a member, as of one applied index. Ids ascend in every field.

    A decision needs a majority of `voters` and, while `outgoing` is not empty, also a majority of
    `outgoing` (joint consensus, paper section 6). Changes go one member at a time today, so
    `outgoing` stays empty; every quorum is computed for the joint form.
    """

    voters: tuple[MemberId, ...]
    outgoing: tuple[MemberId, ...] = ()
    learners: tuple[MemberId, ...] = ()
    removed: tuple[MemberId, ...] = ()
    """Members of the past. They may not come back: an old vote could still be on its way."""


@dataclass(slots=True)
class SnapshotMeta:
    """What a state machine snapshot stands for: all entries up to and including `index`."""

    index: Index
    term: Term
    configuration: Configuration


# --- messages between members -----------------------------------------------------------------


@dataclass(slots=True)
class Message:
    """What every message carries. `term` is the sender's, but for pre-votes (see there)."""

    sender: MemberId
    target: MemberId
    term: Term


@dataclass(slots=True)
class PreVoteRequest(Message):
    """Would you vote for me? `term` is the sender's term + 1; nobody changes state for it."""

    last_index: Index
    last_term: Term


@dataclass(slots=True)
class PreVoteResponse(Message):
    """A grant carries the request's term, a refusal the voter's own."""

    granted: bool


@dataclass(slots=True)
class VoteRequest(Message):
    """RequestVote of the paper. `transfer`: the leader asked for it, no lease protects it."""

    last_index: Index
    last_term: Term
    transfer: bool


@dataclass(slots=True)
class VoteResponse(Message):
    """A grant is released only after term and vote are on the voter's disk."""

    granted: bool


@dataclass(slots=True)
class AppendRequest(Message):
    """AppendEntries of the paper. `entries` follow `prev_index` without a gap; may be empty."""

    prev_index: Index
    prev_term: Term
    commit: Index
    entries: list[Entry]


@dataclass(slots=True)
class AppendResponse(Message):
    """Without `hint`: the sender's disk holds the leader's log up to `index`.

    With `hint`: the request after `index` was rejected, and `hint` is the newest (index, term) of
    the sender's log at which the two logs may still agree.
    """

    index: Index
    hint: tuple[Index, Term] | None


@dataclass(slots=True)
class Heartbeat(Message):
    """`commit` is at most what the target is known to hold. `round` counts ReadIndex rounds."""

    commit: Index
    round: int


@dataclass(slots=True)
class HeartbeatResponse(Message):
    """Returns `round`: the sender still followed this leader after that round began.

    With a newer term (and round 0) it is the answer to a leader of the past.
    """

    round: int


@dataclass(slots=True)
class CommitNotice(Message):
    """The entry at `commit`, which is of this `term`, is committed. Wants no answer.

    Whoever holds an entry of that index and term holds the leader's log up to there (log
    matching, paper 5.3), so the notice needs no `prev_index` and may arrive in any order.
    """

    commit: Index


@dataclass(slots=True)
class InstallSnapshot(Message):
    """The metadata only; the node streams the data beside it.

    The receiving node steps it into its core when the data is safe on its disk.
    """

    snapshot: SnapshotMeta


@dataclass(slots=True)
class TimeoutNow(Message):
    """The leader hands over: campaign at once, without pre-vote."""


@dataclass(slots=True)
class Forward(Message):
    """A proposal that a follower took. Sent once; `forward_id` ascends per sender for ever."""

    forward_id: int
    kind: EntryKind
    data: bytes


@dataclass(slots=True)
class ForwardRefused(Message):
    """The forwarded proposal was certainly not appended."""

    forward_id: int


@dataclass(slots=True)
class ReadRequest(Message):
    """A follower's ReadIndex round. `round` is the follower's own number, never reused."""

    round: int


@dataclass(slots=True)
class ReadResponse(Message):
    """`index` None: not the leader (any more), ask again."""

    round: int
    index: Index | None


# --- what the core hands to the node ----------------------------------------------------------


@dataclass(slots=True, eq=False)
class AppendWork:
    """One job for the disk. Jobs are done strictly in order; `Raft.appended` takes each back.

    When everything in it is on disk the node sends `messages` and calls `Raft.appended(work)`.
    One write and one fsync may serve several jobs.
    """

    entries: list[Entry]
    """Replace whatever the disk holds from `entries[0].index` on. May be empty."""

    hard_state: HardState | None
    """The new hard state, None when unchanged."""

    snapshot: SnapshotMeta | None
    """Set: the log restarts after `snapshot.index`; all entries written before are void."""

    must_sync: bool
    """False: nothing in here is worth an fsync (commit moved, or only `messages` wait)."""

    messages: list[Message]
    """Votes, vote requests and append answers: promises that must not leave before the fsync."""

    durable_index: Index = 0
    """Core's own: the log is durable up to here when this job is done. Shrinks when the log is
    truncated meanwhile, which is the guard against the ABA race (docs/architecture.md)."""

    issued_tick: int = 0
    """Core's own: `tick` calls before this job was handed over."""


@dataclass(slots=True)
class ReadReady:
    """Answer to `Raft.read`: serve once the state machine has `index`; None: refused, retry."""

    read_id: int
    index: Index | None


@dataclass(slots=True)
class Ready:
    """What the node must do now."""

    messages: list[Message] = field(default_factory=list)
    """Send at once, in this order per target."""

    append: AppendWork | None = None
    apply: list[Entry] = field(default_factory=list)
    """Committed entries in order, each exactly once. `Raft.applied` after each batch, and after
    each `CHANGE` entry with the new configuration."""

    reads: list[ReadReady] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    """forward_ids that were certainly not appended."""

    role: Role = Role.FOLLOWER
    leader: MemberId = NOBODY
    term: Term = 0
