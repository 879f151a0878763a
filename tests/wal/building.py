"""Short ways to make works and logs, and the model that a recovered log is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from kvstore.ports import Disk
from kvstore.raft.messages import (
    AppendWork,
    Configuration,
    Entry,
    HardState,
    SnapshotMeta,
)
from kvstore.wal import Identity, Options, Recovered, Wal

FOLDER = "/data/wal"
ME = Identity(cluster=0xC1, member=0xA)
TINY = Options(segment_bytes=4096)


def entries(first: int, count: int = 1, *, term: int = 1, size: int = 40) -> list[Entry]:
    """Return entries whose bytes differ by index and term and hold no zero."""
    return [
        Entry(index, term, index % 2, (b"<%d.%d>" % (index, term)) * (size // 5 + 1))
        for index in range(first, first + count)
    ]


def work(
    new: Sequence[Entry] = (),
    *,
    state: HardState | None = None,
    snapshot: SnapshotMeta | None = None,
    sync: bool = True,
) -> AppendWork:
    return AppendWork(list(new), state, snapshot, sync, [])


def commit(index: int, *, term: int = 1) -> AppendWork:
    """Return the work that only moves the commit index."""
    return work(state=HardState(term, 0xA, index), sync=False)


def snapshot(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(index, term, Configuration((0xA, 0xB), (), (0xC,), (0xD,)))


def new_log(disk: Disk, options: Options = TINY) -> Wal:
    return Wal.create(disk, FOLDER, ME, options)


def open_log(disk: Disk, options: Options = TINY) -> tuple[Wal, Recovered]:
    return Wal.open(disk, FOLDER, ME, options)


@dataclass
class Model:
    """What the log must hold, in the plainest form; releases are not part of it."""

    state: HardState = field(default_factory=lambda: HardState(0, 0, 0))
    start: tuple[int, int] = (0, 0)
    entries: list[Entry] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None

    @property
    def last(self) -> tuple[int, int]:
        return (self.entries[-1].index, self.entries[-1].term) if self.entries else self.start

    def after(self, works: Iterable[AppendWork]) -> Model:
        model = replace(self, entries=list(self.entries))
        for one in works:
            if one.snapshot:
                model.snapshot, model.entries = one.snapshot, []
                model.start = (one.snapshot.index, one.snapshot.term)
            if one.entries:
                kept = one.entries[0].index - model.start[0] - 1
                model.entries = model.entries[:kept] + one.entries
            model.state = one.hard_state or model.state
        return model

    def differs(self, found: Recovered, *, released: int = 0) -> str | None:
        """Tell how a recovered log differs in a way that the promises do not allow, or None."""
        mine, theirs = self.state, found.hard_state
        if (mine.term, mine.vote) != (theirs.term, theirs.vote):
            return f"term and vote are {theirs}, not {mine}"
        if theirs.commit > min(mine.commit, found.last_index):
            return f"commit {theirs.commit} is ahead of {mine.commit}, last {found.last_index}"
        if found.snapshot != self.snapshot:
            return f"snapshot is {found.snapshot}, not {self.snapshot}"
        start = found.compacted[0]
        if not self.start[0] <= start <= max(released, self.start[0]):
            return f"the log starts after {start}; released is {released}, start {self.start}"
        terms = {self.start[0]: self.start[1]} | {e.index: e.term for e in self.entries}
        if terms[start] != found.compacted[1]:
            return f"the entry before the first is {found.compacted}, not of term {terms[start]}"
        if found.entries != self.entries[start - self.start[0] :]:
            return f"entries are {spans(found.entries)}, not {spans(self.entries)} after {start}"
        return None


def spans(log: Sequence[Entry]) -> str:
    """Return the (index, term) pairs of a log, for failure messages."""
    return " ".join(f"{entry.index}.{entry.term}" for entry in log) or "none"
