"""Several real cores on an in-memory network with instant or held disks: deterministic, no time.

For scripted situations. Random faults, crashes of disks and checks of whole histories belong to
`tests/sim`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvstore.raft.config import Config, Restored
from kvstore.raft.errors import ChangeRefused
from kvstore.raft.membership import Change, change_configuration
from kvstore.raft.messages import (
    CHANGE,
    NORMAL,
    AppendWork,
    Configuration,
    Entry,
    HardState,
    InstallSnapshot,
    Message,
    PreVoteResponse,
    Ready,
    Role,
    SnapshotMeta,
    VoteResponse,
)
from kvstore.raft.raft import Raft


def config(member: int, **changes: Any) -> Config:
    """A member whose election timeout is always the same, and longer for higher ids."""

    def draw_timeout(start: int, stop: int) -> int:
        return min(start + member - 1, stop - 1)

    return replace(Config(id=member, draw_timeout=draw_timeout), **changes)


def entries(*terms: int, first: int = 1) -> list[Entry]:
    """Entries with these terms from index `first` on; data names index and term."""
    return [
        Entry(first + i, term, NORMAL, f"{first + i}.{term}".encode())
        for i, term in enumerate(terms)
    ]


def core(
    member: int = 1,
    *,
    term: int = 0,
    vote: int = 0,
    commit: int = 0,
    log: Sequence[int] = (),
    voters: Iterable[int] = (1, 2, 3),
    learners: Iterable[int] = (),
    applied: int = 0,
    compacted: tuple[int, int] = (0, 0),
    **changes: Any,
) -> Raft:
    """A core as restored from a disk that holds `log` (terms of its entries)."""
    return Raft(
        config(member, **changes),
        Restored(
            hard_state=HardState(max(term, *log, 0) if log else term, vote, commit),
            entries=entries(*log, first=compacted[0] + 1),
            compacted=compacted,
            configuration=Configuration(tuple(voters), learners=tuple(learners)),
            applied=max(applied, compacted[0]),
        ),
    )


@dataclass
class Disk:
    """What would survive a crash of one member."""

    hard_state: HardState = field(default_factory=lambda: HardState(0, 0, 0))
    entries: dict[int, Entry] = field(default_factory=dict)
    compacted: tuple[int, int] = (0, 0)
    configuration: Configuration = field(default_factory=lambda: Configuration(()))
    applied: int = 0

    def save(self, work: AppendWork) -> None:
        if work.snapshot is not None:
            self.entries = {}
            self.compacted = (work.snapshot.index, work.snapshot.term)
        if work.entries:
            first = work.entries[0].index
            self.entries = {i: e for i, e in self.entries.items() if i < first}
            self.entries.update((entry.index, entry) for entry in work.entries)
        if work.hard_state is not None:
            self.hard_state = work.hard_state

    def release(self, index: int) -> None:
        """Forget the log up to `index`, which the store contains."""
        if index in self.entries:
            self.compacted = (index, self.entries[index].term)
            self.entries = {i: e for i, e in self.entries.items() if i > index}

    def restored(self) -> Restored:
        return Restored(
            self.hard_state,
            [self.entries[index] for index in sorted(self.entries)],
            self.compacted,
            self.configuration,
            self.applied,
        )


class Node:
    """One member: a core, its disk and a state machine that is a list of data."""

    def __init__(self, raft: Raft, disk: Disk) -> None:
        self.raft = raft
        self.disk = disk
        self.jobs: deque[AppendWork] = deque()
        self.disk_held = False
        self.machine: list[tuple[int, bytes]] = []
        self.reads: dict[int, int | None] = {}
        self.refused: list[int] = []
        self.leaders: list[tuple[int, int]] = []
        self.configurations = [(raft.log.applied, raft.configuration)]

    def finish_job(self) -> list[Message]:
        """Make the oldest disk job durable; return the messages it releases."""
        work = self.jobs.popleft()
        self.disk.save(work)
        if work.snapshot is not None:
            self.disk.configuration = work.snapshot.configuration
            self.disk.applied = work.snapshot.index
            self.configurations = [(work.snapshot.index, work.snapshot.configuration)]
            self.machine = [(work.snapshot.index, b"snapshot")]
        self.raft.appended(work)
        self.save_store()
        return work.messages

    def apply(self, ready: Ready) -> None:
        for entry in ready.apply:
            configuration = None
            if entry.kind == CHANGE:
                try:
                    configuration = change_configuration(
                        self.raft.configuration, Change.decode(entry.data)
                    )
                except ChangeRefused:
                    configuration = self.raft.configuration
                self.configurations.append((entry.index, configuration))
            elif entry.data:
                self.machine.append((entry.index, entry.data))
            self.raft.applied(entry.index, configuration)

    def save_store(self) -> None:
        """Commit the store, as far as the log on disk reaches."""
        log = self.raft.log
        if log.snapshot_outstanding:
            return
        index = min(log.applied, log.durable)
        if index > self.disk.applied:
            self.disk.applied = index
            self.disk.configuration = [c for i, c in self.configurations if i <= index][-1]


class Network:
    """All members, and the messages between them."""

    def __init__(self, cores: Iterable[Raft]) -> None:
        self.nodes: dict[int, Node] = {}
        self.wire: deque[Message] = deque()
        self.cut: set[tuple[int, int]] = set()
        self.drop: Callable[[Message], bool] = lambda message: False
        self.delivered: list[Message] = []
        for raft in cores:
            disk = Disk(
                HardState(raft.term, raft.vote, raft.log.committed),
                {entry.index: entry for entry in raft.log.entries},
                (raft.log.offset, raft.log.offset_term),
                raft.configuration,
                raft.log.applied,
            )
            self.nodes[raft.id] = Node(raft, disk)

    @classmethod
    def of(cls, size: int, **changes: Any) -> Network:
        """A new cluster of members 1 to `size`."""
        voters = range(1, size + 1)
        return cls([core(member, voters=voters, **changes) for member in voters])

    def __getitem__(self, member: int) -> Raft:
        return self.nodes[member].raft

    # --- running ---

    def collect(self, member: int) -> None:
        """Do all that one core wants done."""
        node = self.nodes[member]
        while True:
            ready = node.raft.take()
            if ready is None:
                node.save_store()
                return
            self.wire.extend(ready.messages)
            if ready.append is not None:
                node.jobs.append(ready.append)
            for read in ready.reads:
                assert read.read_id not in node.reads, "a read was answered twice"
                node.reads[read.read_id] = read.index
            node.refused += ready.refused
            if ready.leader and (
                not node.leaders or node.leaders[-1] != (ready.term, ready.leader)
            ):
                node.leaders.append((ready.term, ready.leader))
            while node.jobs and not node.disk_held:
                self.wire.extend(node.finish_job())
            node.apply(ready)

    def run(self, messages_max: int = 100_000) -> None:
        """Deliver until nothing moves."""
        for member in self.nodes:
            self.collect(member)
        while self.wire:
            messages_max -= 1
            assert messages_max > 0, "the network does not become quiet"
            self.deliver(self.wire.popleft())

    def deliver(self, message: Message) -> None:
        """Hand over one message, unless its link is cut."""
        if (message.sender, message.target) in self.cut or message.target not in self.nodes:
            return
        if self.drop(message):
            return
        self.delivered.append(message)
        self.nodes[message.target].raft.step(message)
        self.collect(message.target)
        if isinstance(message, InstallSnapshot) and message.sender in self.nodes:
            self.nodes[message.sender].raft.snapshot_sent(message.target, ok=True)
            self.collect(message.sender)

    def tick(self, *members: int, count: int = 1) -> None:
        """Let time pass for some members (all by default), one tick at a time."""
        for _ in range(count):
            for member in members or tuple(self.nodes):
                self.nodes[member].raft.tick()
                self.collect(member)
            self.run()

    def elect(self, member: int) -> Raft:
        """Make `member` the leader; the others have not heard of one for long enough."""
        for node in self.nodes.values():
            if node.raft.id != member:
                node.raft.elapsed = node.raft.config.election_ticks
        self[member].campaign()
        self.run()
        assert self[member].role is Role.LEADER, f"{member} was not elected"
        return self[member]

    def propose(self, member: int, data: bytes) -> tuple[int, int]:
        where = self[member].propose(data)
        self.run()
        return where

    # --- faults ---

    def isolate(self, *members: int) -> None:
        """Cut all links between `members` and the rest."""
        for member in members:
            for other in self.nodes:
                if other not in members:
                    self.cut |= {(member, other), (other, member)}

    def heal(self) -> None:
        self.cut = set()

    def restart(self, member: int, **changes: Any) -> Raft:
        """Crash a member and start it from what its disk holds; jobs at the disk are lost."""
        old = self.nodes[member]
        node = Node(Raft(replace(old.raft.config, **changes), old.disk.restored()), old.disk)
        node.machine = [(i, data) for i, data in old.machine if i <= old.disk.applied]
        self.nodes[member] = node
        self.collect(member)
        return node.raft

    # --- looking ---

    def leaders(self) -> list[int]:
        return [m for m, node in self.nodes.items() if node.raft.role is Role.LEADER]

    def log_terms(self, member: int) -> list[int]:
        return [entry.term for entry in self[member].log.entries]

    def machine(self, member: int) -> list[bytes]:
        return [data for _, data in self.nodes[member].machine]


def finish(raft: Raft, ready: Ready | None) -> list[Message]:
    """Make what `ready` wants on disk durable; return all messages it lets out."""
    if ready is None:
        return []
    messages = list(ready.messages)
    if ready.append is not None:
        raft.appended(ready.append)
        messages += ready.append.messages
    return messages


def drain(raft: Raft) -> list[Message]:
    """Do everything the core wants with an instant disk and a machine that applies at once."""
    messages: list[Message] = []
    while (ready := raft.take()) is not None:
        messages += finish(raft, ready)
        if ready.apply:
            raft.applied(ready.apply[-1].index)
    return messages


def snapshot_of(raft: Raft) -> SnapshotMeta:
    """What a snapshot of the core's state machine stands for now."""
    index = raft.log.applied
    term = raft.log.term(index)
    assert term is not None
    return SnapshotMeta(index, term, raft.configuration)


def lead(raft: Raft) -> list[Message]:
    """Win an election with the votes of all other voters; return what the new leader sends."""
    raft.campaign()
    drain(raft)
    others = [voter for voter in raft.configuration.voters if voter != raft.id]
    for other in others:
        raft.step(PreVoteResponse(other, raft.id, raft.term + 1, granted=True))
        if raft.role is not Role.PRE_CANDIDATE:
            break
    drain(raft)
    for other in others:
        raft.step(VoteResponse(other, raft.id, raft.term, granted=True))
        if raft.role is Role.LEADER:
            break
    assert raft.role is Role.LEADER
    return drain(raft)


def candidate(**state: object) -> Raft:
    """Member 1 in an election, its own vote on disk."""
    raft = core(1, **state)  # type: ignore[arg-type]
    raft.campaign()
    drain(raft)
    for voter in raft.configuration.voters:
        if voter != 1 and raft.role is Role.PRE_CANDIDATE:
            raft.step(PreVoteResponse(voter, 1, raft.term + 1, granted=True))
    drain(raft)
    assert raft.role is Role.CANDIDATE
    return raft
