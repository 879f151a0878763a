"""Clients in closed loops, and the history of what they saw. Every written value is unique."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.invariants import LINEARIZABLE, Violation
from tests.sim.linear import APPEND, NAMES, PUT, READ, Operation, Value, linearizable
from tests.sim.node import APPLIED, REFUSED, UNKNOWN

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.node import Process

NEVER = 1 << 62
"""A time that does not come."""


class History:
    """All operations, by key."""

    def __init__(self) -> None:
        self.clock = 0
        """Orders calls and returns; finer than virtual time, where ties exist."""
        self.by_key: dict[int, list[Operation]] = {}
        self.values = 0
        self.checked = 0

    def begin(self, key: int, kind: int) -> Operation:
        """Note a call."""
        self.clock += 1
        value = 0
        if kind != READ:
            self.values = value = self.values + 1
        operation = Operation(key, kind, value, self.clock)
        self.by_key.setdefault(key, []).append(operation)
        return operation

    def complete(self, operation: Operation, result: Value) -> None:
        """Note a return with a known result."""
        self.clock += 1
        operation.back = self.clock
        operation.result = result

    def drop(self, operation: Operation) -> None:
        """Forget an operation that certainly did nothing."""
        self.by_key[operation.key].remove(operation)

    def check(self) -> None:
        """Check every key; raises Violation with the smallest history that fails."""
        for key, operations in self.by_key.items():
            self.checked += len(operations)
            if not linearizable(operations):
                text = "\n".join(f"    {operation}" for operation in operations)
                raise Violation(LINEARIZABLE, f"no order explains the operations on {key}:\n{text}")


class Keys:
    """The keys in use. A key retires after some uses, so that its history stays short."""

    def __init__(self, count: int, uses_max: int) -> None:
        self._slots = list(range(1, count + 1))
        self._uses = [0] * count
        self._uses_max = uses_max
        self._next = count + 1

    def draw(self, slot: int) -> int:
        """Return the key of a slot, a new one if the old is used up."""
        self._uses[slot] += 1
        if self._uses[slot] > self._uses_max:
            self._uses[slot] = 1
            # 16 bits on the wire. A key comes back after 65,000 others, longer than any run.
            self._slots[slot] = self._next
            self._next += 1
            assert self._next < 1 << 16
        return self._slots[slot]

    def __len__(self) -> int:
        return len(self._slots)


class Client:
    """One closed loop: call, wait for the answer or give up, think, call again."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self.number = number
        self.operation: Operation | None = None
        """The open call."""
        self.floor = 0
        self.rounds = 0
        self._deadline_ns = 0
        """When to give up the open call."""
        self._timer_ns = NEVER
        """When `_give_up` looks next: a timer for each call was a tenth of all work."""
        self.stopped = False
        self.target = 0
        """0: any member. Else only this one, which is how the last phase asks every member."""
        self.succeeded = 0
        self._world.after(self._world.between(0, cluster.profile.think_ns), self._next, 0)

    def _next(self, round_: int) -> None:
        if self.stopped or self.operation is not None or round_ != self.rounds:
            return
        world, cluster = self._world, self._cluster
        knobs = cluster.profile
        self.rounds += 1
        process = self._choose()
        if process is None:
            # Connection refused: certainly not applied, so not in the history at all.
            world.after(knobs.think_ns + knobs.tick_ns, self._next, self.rounds)
            return
        world.events += 1
        kind = READ
        if not world.chance(knobs.reads):
            kind = PUT if world.chance(knobs.puts) else APPEND
        key = cluster.keys.draw(world.between(0, len(cluster.keys) - 1))
        operation = self.operation = cluster.history.begin(key, kind)
        self.floor = cluster.invariants.floor
        self._deadline_ns = world.now_ns + knobs.patience_ns
        self._look_at(self._deadline_ns)
        if world.lines is not None:
            world.trace(
                f"client {self.number} at {process.id}: {NAMES[kind]}({key}, {operation.value})"
            )
        call = self.rounds

        def done(outcome: str, result: Value | None, index: int) -> None:
            if call == self.rounds:
                self._done(outcome, result, index)

        process.submit((key, kind, operation.value, done))

    def _choose(self) -> Process | None:
        world, members = self._world, self._cluster.members
        target = self.target
        if not target:
            if world.chance(self._cluster.profile.follow_leader):
                target = self._cluster.leader_hint
            target = target or world.between(1, len(members) - 1)
        return members[target].process

    def _done(self, outcome: str, result: Value | None, index: int) -> None:
        operation, cluster, world = self.operation, self._cluster, self._world
        assert operation is not None
        self.operation = None
        self.rounds += 1
        if world.lines is not None:
            world.trace(f"client {self.number} is told: {outcome} {result} at index {index}")
        if outcome == APPLIED:
            assert result is not None
            self.succeeded += 1
            cluster.history.complete(operation, result)
            cluster.invariants.completed(self.floor, index, operation)
        elif outcome == REFUSED:
            cluster.history.drop(operation)
        else:
            assert outcome == UNKNOWN
        knobs = cluster.profile
        pause_ns = world.between(0, 2 * knobs.think_ns)
        if outcome == REFUSED:
            pause_ns += knobs.tick_ns  # there is no leader; asking at once again helps nobody
        world.after(pause_ns, self._next, self.rounds)

    def _look_at(self, time_ns: int) -> None:
        if time_ns < self._timer_ns:
            self._timer_ns = time_ns
            self._world.at(time_ns, self._give_up, time_ns)

    def _give_up(self, time_ns: int) -> None:
        if time_ns != self._timer_ns:
            return  # an earlier one came in its place
        self._timer_ns = NEVER
        if self.operation is None:
            return
        if self._deadline_ns > time_ns:
            self._look_at(self._deadline_ns)
            return
        self._world.mark("client gave up")
        self._done(UNKNOWN, None, 0)

    def wake(self) -> None:
        """Go on after `stopped`."""
        self.stopped = False
        self.rounds += 1
        self._world.after(0, self._next, self.rounds)
