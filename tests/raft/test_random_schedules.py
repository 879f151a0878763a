"""Random orders of everything a core can meet, with the safety properties of the paper's figure 3.

Small and without time: the large search, with a codec, faults of disks and histories of clients,
is `tests/sim`. Here the point is that a change of the core fails within seconds.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvstore.raft.errors import RaftError
from kvstore.raft.membership import Change, ChangeKind
from kvstore.raft.messages import Entry, InstallSnapshot, Role
from tests.raft.network import Network, Node, core


class World:
    """A network whose next step is drawn; checks after each."""

    def __init__(self, seed: int) -> None:
        draw = self.random = random.Random(seed)
        size = draw.choice([1, 2, 3, 3, 3, 5])
        voters = range(1, size + 1)
        spare = size + 1
        knobs: dict[str, Any] = {
            "message_entries_max": draw.choice([1, 2, 1000]),
            "message_bytes_max": draw.choice([1, 100, 1 << 20]),
            "inflight_messages_max": draw.choice([1, 2, 100]),
            "inflight_bytes_max": draw.choice([1, 200, 1 << 20]),
            "uncommitted_bytes_max": draw.choice([100, 1 << 20]),
            "apply_bytes_max": draw.choice([1, 1 << 20]),
            "apply_before_durable": draw.choice([False, True]),
            "election_ticks": draw.choice([3, 10]),
            "read_retry_ticks": draw.choice([1, 5]),
            "draw_timeout": draw.randrange,
        }
        self.network = Network(
            [core(m, voters=voters, **knobs) for m in voters] + [core(spare, voters=(), **knobs)]
        )
        for node in self.network.nodes.values():
            node.disk_held = True
        self.reorder = draw.random() < 0.5
        self.loss = draw.choice([0.0, 0.02, 0.2])
        self.duplicate = draw.choice([0.0, 0.05])
        self.crash = draw.choice([0.0, 0.003])
        self.cuts = draw.choice([0.0, 0.7])
        self.leaders: dict[int, int] = {}
        self.entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: list[Entry] = []
        self.acknowledged_reads: dict[int, int] = {}
        self.read_floor: dict[int, int] = {}
        self.next_id = 0
        self.incarnation = dict.fromkeys(self.network.nodes, 1)
        self.forwarded: dict[bytes, int] = {}
        self.refused: set[int] = set()

    # --- steps ---

    def step(self) -> None:
        draw = self.random
        member = draw.choice(list(self.network.nodes))
        raft = self.network[member]
        dice = draw.random()
        try:
            if dice < 0.55:
                self.deliver()
            elif dice < 0.70:
                self.finish_disk(member)
            elif dice < 0.80:
                raft.tick()
            elif dice < 0.90:
                self.next_id += 1
                raft.propose(f"p{self.next_id}".encode())
            elif dice < 0.93:
                self.next_id += 1
                data = f"f{self.next_id}".encode()
                forward_id = (self.incarnation[member] << 32) + self.next_id
                self.forwarded[data] = forward_id
                raft.forward(data, forward_id)
            elif dice < 0.96:
                self.next_id += 1
                self.read_floor[self.next_id] = self.highest_commit()
                raft.read(self.next_id)
            elif dice < 0.97:
                disk = self.network.nodes[member].disk
                raft.compact(draw.randint(0, disk.applied))
                disk.release(raft.log.offset)
            elif dice < 0.975:
                raft.transfer_leadership(draw.choice(list(self.network.nodes)))
            elif dice < 0.98:
                raft.unreachable(draw.choice(list(self.network.nodes)))
            elif dice < 0.985:
                change = Change(draw.choice(list(ChangeKind)), draw.choice([*self.network.nodes]))
                # Keep a majority of the first voters: the run should not end for lack of quorum.
                if change.kind is not ChangeKind.REMOVE or len(raft.configuration.voters) > 2:
                    raft.propose_change(change)
            elif dice < 0.986:
                raft.step_down()
            elif dice < 0.988:
                self.network.heal()
                if draw.random() < self.cuts:
                    # Leaders most of all: their tails are what others replace.
                    self.network.isolate(draw.choice(self.network.leaders() or [member]))
            elif dice < 0.988 + self.crash:
                self.restart(member)
        except RaftError:
            pass  # a refusal is an answer like any other
        self.collect(member)

    def deliver(self) -> None:
        wire = self.network.wire
        if not wire:
            return
        position = self.random.randrange(len(wire)) if self.reorder else 0
        message = wire[position]
        if self.random.random() >= self.duplicate:
            del wire[position]
        cut = (message.sender, message.target) in self.network.cut
        if cut or self.random.random() < self.loss:
            if isinstance(message, InstallSnapshot):
                self.network[message.sender].snapshot_sent(message.target, ok=False)
                self.collect(message.sender)
            return
        self.network[message.target].step(message)
        self.collect(message.target)
        if isinstance(message, InstallSnapshot):
            self.network[message.sender].snapshot_sent(message.target, ok=True)
            self.collect(message.sender)

    def finish_disk(self, member: int) -> None:
        node = self.network.nodes[member]
        if node.jobs:
            self.network.wire.extend(node.finish_job())

    def collect(self, member: int) -> None:
        self.network.collect(member)
        self.check(self.network.nodes[member])

    def restart(self, member: int) -> None:
        self.incarnation[member] += 1
        self.network.restart(member, incarnation=self.incarnation[member])
        self.network.nodes[member].disk_held = True

    # --- checks ---

    def highest_commit(self) -> int:
        return max(node.raft.log.committed for node in self.network.nodes.values())

    def check(self, node: Node) -> None:
        raft = node.raft
        log = raft.log
        if raft.role is Role.LEADER:
            assert self.leaders.setdefault(raft.term, raft.id) == raft.id, "two leaders"
        for entry in log.entries[-3:]:
            previous = log.term(entry.index - 1)
            assert previous is not None
            known = self.entries.setdefault((entry.index, entry.term), (entry.data, previous))
            assert known == (entry.data, previous), "log matching"
        # State machine safety: all committed logs are prefixes of one.
        for index in range(max(log.offset, len(self.committed)) + 1, log.committed + 1):
            if index == len(self.committed) + 1:
                self.committed.append(log.entries[index - log.offset - 1])
        first = max(log.offset + 1, log.committed - 5)
        for index in range(first, log.committed + 1):
            if index <= len(self.committed):
                assert log.entries[index - log.offset - 1] == self.committed[index - 1]
        # What the durable mark vouches for is what the disk has.
        for index in range(max(log.durable - 3, log.offset + 1), log.durable + 1):
            assert node.disk.entries[index] == log.entries[index - log.offset - 1], "durable"
        for read_id, index in node.reads.items():
            if index is not None and read_id not in self.acknowledged_reads:
                self.acknowledged_reads[read_id] = index
                assert index >= self.read_floor[read_id], "a stale read"
        self.refused.update(node.refused)

    def finale(self) -> None:
        """Heal everything; whatever happened, the cluster must work again."""
        self.loss = self.duplicate = self.crash = 0.0
        self.reorder = False
        self.network.heal()
        for _ in range(400):
            for member, node in self.network.nodes.items():
                node.raft.tick()
                while node.jobs:
                    self.finish_disk(member)
                self.collect(member)
            for _ in range(2000):
                if not self.network.wire and not any(n.jobs for n in self.network.nodes.values()):
                    break
                self.deliver()
                for member, node in self.network.nodes.items():
                    while node.jobs:
                        self.finish_disk(member)
                        self.collect(member)
            leaders = [n.raft for n in self.network.nodes.values() if n.raft.role is Role.LEADER]
            if leaders:
                leader = max(leaders, key=lambda raft: raft.term)
                members = {*leader.configuration.voters, *leader.configuration.learners}
                commits = {self.network[m].log.applied for m in members}
                if (
                    commits == {leader.log.last_index}
                    and leader.log.term(leader.log.committed) == leader.term
                ):
                    break
        else:
            raise AssertionError("the cluster did not recover")
        data = [entry.data for entry in self.committed]
        for forwarded, forward_id in self.forwarded.items():
            assert data.count(forwarded) <= 1, "a forwarded proposal was applied twice"
            if forward_id in self.refused:
                assert forwarded not in data, "refused and yet applied"


@pytest.mark.parametrize("seed", range(60))
def test_random_schedule(seed: int) -> None:
    world = World(seed)
    for _ in range(2500):
        world.step()
    world.finale()
    assert world.committed, "nothing happened"
