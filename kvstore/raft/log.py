"""The retained log in memory, and how far it is handed over, durable, committed and applied.

Knows nothing of roles or messages. Where the durable mark comes from is explained at `AppendWork`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from kvstore.raft.messages import CHANGE, AppendWork, Entry, Index, SnapshotMeta, Term

ENTRY_OVERHEAD_BYTES = 32
"""Counted per entry beside its data, so that a tail of empty entries is bounded too."""


def entries_bytes(entries: Sequence[Entry]) -> int:
    """Return what `entries` count for in every bound of the core."""
    size = ENTRY_OVERHEAD_BYTES * len(entries)
    for entry in entries:  # mostly one: a generator or list for `sum` costs twice as much
        size += len(entry.data)
    return size


class RaftLog:
    """All entries after `offset`, in order, without a gap."""

    __slots__ = (
        "applied",
        "apply_before_durable",
        "applying",
        "committed",
        "durable",
        "entries",
        "handed",
        "last_index",
        "last_term",
        "offset",
        "offset_term",
        "outstanding",
        "size_bytes",
        "snapshot",
        "snapshot_outstanding",
    )

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        compacted: tuple[Index, Term],
        committed: Index,
        applied: Index,
        apply_before_durable: bool,
    ) -> None:
        self.offset, self.offset_term = compacted
        """Index and term of the entry before the first retained one."""

        self.entries = list(entries)
        self.size_bytes = entries_bytes(self.entries)
        self.last_index: Index = self.offset + len(self.entries)
        self.last_term: Term = self.entries[-1].term if self.entries else self.offset_term
        expected, term = self.offset + 1, self.offset_term
        for entry in self.entries:
            assert entry.index == expected, f"entry {entry.index} where {expected} belongs"
            assert entry.term >= term, f"term goes back at entry {entry.index}"
            expected, term = expected + 1, entry.term

        assert self.offset <= applied <= self.last_index, "the store is ahead of the log"
        self.committed: Index = min(max(committed, applied), self.last_index)
        """A quorum holds the log up to here. Never decreases. A commit index that is newer than
        the log can survive a crash, so it is clamped."""

        self.applying: Index = applied
        """Handed to the state machine up to here. applied <= applying <= committed."""

        self.applied: Index = applied
        """The state machine has it."""

        self.handed: Index = self.last_index
        """Handed to the disk up to here. durable <= handed <= last_index."""

        self.durable: Index = self.last_index
        """The disk has exactly these entries up to here."""

        self.snapshot: SnapshotMeta | None = None
        """Accepted, not yet handed to the disk."""

        self.snapshot_outstanding = False
        """Accepted and not yet on the disk. Nothing is handed to apply meanwhile."""

        self.outstanding: deque[AppendWork] = deque()
        """Jobs at the disk, oldest first."""

        self.apply_before_durable = apply_before_durable

    # --- looking ---

    def term(self, index: Index) -> Term | None:
        """Return the term of the entry at `index`; None if compacted away or not there."""
        if index == self.last_index:
            return self.last_term
        position = index - self.offset - 1
        if 0 <= position < len(self.entries):
            return self.entries[position].term
        return self.offset_term if position == -1 else None

    def matches(self, index: Index, term: Term) -> bool:
        """Tell whether the log has an entry (or its compacted end) of this index and term."""
        return self.term(index) == term

    def is_up_to_date(self, last_index: Index, last_term: Term) -> bool:
        """Tell whether a log with this end is at least as new as ours (paper 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def slice(
        self, start: Index, stop: Index, *, entries_max: int, bytes_max: int
    ) -> tuple[list[Entry], int]:
        """Return entries in [start, stop] within the bounds, but at least one, and their bytes."""
        first = start - self.offset - 1
        assert first >= 0, f"entry {start} is compacted away"
        chunk = self.entries[first : min(stop - self.offset, first + entries_max)]
        size = entries_bytes(chunk)
        if size > bytes_max and len(chunk) > 1:
            size = count = 0
            for entry in chunk:
                size += len(entry.data) + ENTRY_OVERHEAD_BYTES
                if size > bytes_max and count:
                    size -= len(entry.data) + ENTRY_OVERHEAD_BYTES
                    break
                count += 1
            chunk = chunk[:count]
        return chunk, size

    def newest_match_candidate(self, index: Index, term: Term) -> tuple[Index, Term]:
        """Return the newest (index, term) at or before `index` whose term is at most `term`.

        Another log that has an entry of `term` at `index` can agree with ours there or earlier,
        never between. Costs the two sides one probe per distinct term (etcd findConflictByTerm).
        """
        index = min(index, self.last_index)
        if index < self.offset:
            return index, 0  # compacted: nothing is known, so nothing is excluded
        count = bisect_right(self.entries, term, 0, index - self.offset, key=_term_of)
        if count:
            found = self.entries[count - 1]
            return found.index, found.term
        if self.offset_term <= term:
            return self.offset, self.offset_term
        return max(self.offset - 1, 0), 0

    def has_unapplied_change(self) -> bool:
        """Tell whether a membership change is committed but not applied."""
        first = max(self.applied - self.offset, 0)
        return any(
            entry.kind == CHANGE for entry in self.entries[first : self.committed - self.offset]
        )

    # --- changing ---

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add entries at the end."""
        assert entries[0].index == self.last_index + 1
        self.entries.extend(entries)
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term
        self.size_bytes += entries_bytes(entries)

    def append(self, entries: Sequence[Entry]) -> None:
        """Take a leader's entries that are known to fit; drop what conflicts (paper 5.3).

        Entries that are here already stay: the message may be an old one and ours a longer log.
        """
        if not entries:
            return
        if entries[0].index == self.last_index + 1:
            self.extend(entries)
            return
        for position, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                if entry.index <= self.last_index:
                    self._truncate(entry.index)
                self.extend(entries[position:])
                return

    def _truncate(self, index: Index) -> None:
        """Drop the entries from `index` on."""
        assert index > self.committed, f"entry {index} is committed and cannot be replaced"
        dropped = self.entries[index - self.offset - 1 :]
        del self.entries[index - self.offset - 1 :]
        self.size_bytes -= entries_bytes(dropped)
        self.last_index = index - 1
        self.last_term = self.entries[-1].term if self.entries else self.offset_term
        self._void_from(index)

    def _void_from(self, index: Index) -> None:
        # What the disk holds, or will hold when a job is done, from `index` on is not our log any
        # more. This is the guard against the ABA race: entry (1, 12) is being written, is replaced
        # by (2, 12), and comes back as (1, 12); the end of the first write must not vouch for it.
        below = index - 1
        self.handed = min(self.handed, below)
        self.durable = min(self.durable, below)
        for work in self.outstanding:
            work.durable_index = min(work.durable_index, below)

    def commit_to(self, index: Index) -> bool:
        """Move the commit index forward; True if it moved."""
        if index <= self.committed:
            return False
        assert index <= self.last_index, (
            f"commit {index} beyond the log's end {self.last_index}: entries that this member "
            "acknowledged are gone; restore its newest data, or remove it and add it anew"
        )
        self.committed = index
        return True

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Start again after a snapshot; it is committed and replaces everything."""
        assert snapshot.index > self.committed
        self._void_from(0)
        self.entries = []
        self.size_bytes = 0
        self.offset = self.last_index = self.handed = self.durable = snapshot.index
        self.offset_term = self.last_term = snapshot.term
        self.committed = self.applying = self.applied = snapshot.index
        self.snapshot = snapshot
        self.snapshot_outstanding = True

    def index_to_free(self, size_bytes: int) -> Index:
        """Return up to where the log would have to be compacted to free that many bytes."""
        index = self.offset
        for entry in self.entries:
            if size_bytes <= 0:
                break
            size_bytes -= entries_bytes((entry,))
            index = entry.index
        return index

    def compact(self, index: Index) -> None:
        """Forget the entries up to `index`, which must be applied."""
        if index <= self.offset:
            return
        assert index <= self.applied, f"entry {index} is not applied, it cannot be compacted"
        term = self.term(index)
        assert term is not None
        dropped = self.entries[: index - self.offset]
        del self.entries[: index - self.offset]
        self.size_bytes -= entries_bytes(dropped)
        self.offset, self.offset_term = index, term

    # --- handing over ---

    def take_unhanded(self) -> list[Entry]:
        """Return the entries that the disk has not been given, and count them as given."""
        if self.handed == self.last_index:
            return []
        entries = self.entries[self.handed - self.offset :]
        self.handed = self.last_index
        return entries

    def finished(self, work: AppendWork) -> bool:
        """Note that the oldest job is on disk; True if the durable mark moved."""
        assert self.outstanding, "no job is at the disk"
        assert self.outstanding[0] is work, "disk jobs must finish in the order of their issue"
        self.outstanding.popleft()
        if work.snapshot is not None:
            self.snapshot_outstanding = False
        if work.durable_index <= self.durable:
            return False
        self.durable = work.durable_index
        return True

    def apply_limit(self) -> Index:
        """Return the last index that may be applied now."""
        if self.snapshot_outstanding:
            return self.applying
        if self.apply_before_durable:
            return self.committed
        return min(self.committed, self.durable)

    def applied_to(self, index: Index) -> None:
        """Note that the state machine has the entries up to `index`."""
        assert index <= self.applying, f"entry {index} was not handed out to be applied"
        self.applied = index


def _term_of(entry: Entry) -> Term:
    return entry.term
