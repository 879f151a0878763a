"""Paper figure 8 on the simulator, step by step, with and without the rule that it is about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvstore.raft.messages import Role
from tests.sim import planted
from tests.sim.cluster import Cluster, Parts
from tests.sim.invariants import Violation
from tests.sim.node import Process

pytestmark = pytest.mark.sim


class Script:
    """Says what happens in a cluster that does nothing by itself."""

    def __init__(self, parts: Parts) -> None:
        self.cluster = Cluster(8, "script", parts)

    def at(self, member: int) -> Process:
        process = self.cluster.members[member].process
        assert process is not None
        return process

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(2_000):
            if condition():
                return
            self.cluster.world.run(self.cluster.world.events + 1, self.cluster.world.now_ns + 10**9)
        raise AssertionError("it never happened")

    def settle(self) -> None:
        self.cluster.world.run(1 << 30, self.cluster.world.now_ns + 10**9)

    def elect(self, member: int, voters: tuple[int, ...], then: tuple[int, ...]) -> None:
        """Let `voters` elect `member`, whose entries will reach only `then`."""
        process = self.at(member)
        process.raft.step_down()
        self.reach(member, ())
        # As a transfer: neither pre-vote nor lease, so that no clock is needed. In vain, until it
        # is ahead of the terms of which it has not heard.
        while process.raft.term < max(self.at(voter).raft.term for voter in voters):
            process.raft.campaign(transfer=True)
            process.pump()
        self.settle()
        self.reach(member, voters)
        process.raft.campaign(transfer=True)
        process.pump()
        term = process.raft.term
        asked = [self.at(voter).raft for voter in voters]
        self.until(lambda: all((raft.term, raft.vote) == (term, member) for raft in asked))
        self.reach(member, then)
        self.until(lambda: process.role is Role.LEADER)
        self.settle()

    def reach(self, source: int, targets: tuple[int, ...]) -> None:
        """Cut all links from `source` but those to `targets`."""
        for target in range(1, 6):
            if target != source:
                self.cluster.network.links[source][target].cut = target not in targets

    def terms(self, member: int) -> list[int]:
        return self.at(member).log.terms[1:]


def figure8(parts: Parts) -> Script:
    script = Script(parts)
    script.elect(1, (2, 3, 4, 5), then=(2, 3, 4, 5))
    assert [script.terms(i) for i in range(1, 6)] == [[1]] * 5

    # (a) S1 leads term 2; its entry at index 2 reaches S2 alone.
    script.elect(1, (2, 3), then=(2,))
    assert [script.terms(i) for i in range(1, 6)] == [[1, 2], [1, 2], [1], [1], [1]]

    # (b) S1 dies. S5 is elected by S3 and S4 and keeps its entry of term 3 to itself.
    script.cluster.members[1].crash()
    script.elect(5, (3, 4), then=())
    assert [script.terms(i) for i in range(2, 6)] == [[1, 2], [1], [1], [1, 3]]

    # (c) S5 dies. S1 is back, leads term 4 and goes on with index 2, which reaches S3. It dies
    # before its own entry of term 4 is on a majority.
    script.cluster.members[5].crash()
    script.cluster.members[1].start()
    script.elect(1, (2, 3, 4), then=(2,))
    script.reach(1, (2, 3))
    script.at(1).raft.tick()  # the heartbeat's answer wakes the probe of S3
    script.at(1).pump()
    script.until(lambda: script.terms(3) == [1, 2])
    script.reach(1, ())
    script.settle()
    assert [script.terms(i) for i in range(1, 5)] == [[1, 2, 4], [1, 2, 4], [1, 2], [1]]
    script.cluster.members[1].crash()

    # (d) S5 is back. Its log is newer than those of S3 and S4, so they elect it.
    script.cluster.members[5].start()
    script.elect(5, (3, 4), then=(2, 3, 4))
    return script


def test_the_core_does_not_commit_an_entry_of_an_older_term() -> None:
    script = figure8(Parts())
    assert [script.terms(i) for i in (3, 4, 5)] == [[1, 3, 5]] * 3
    assert script.at(5).log.commit == 3


def test_the_script_finds_a_leader_that_does() -> None:
    [bug] = [bug for bug in planted.BUGS if bug.name == "commit of an older term"]
    with pytest.raises(Violation, match="leader completeness"):
        figure8(bug.parts)
