"""Our clients' operations on their way through the log: batching, matching, outcomes.

Every operation ends exactly once, in one of three ways: applied (with its result), certainly not
applied, or outcome unknown. Nothing here knows Raft's messages or the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from kvstore.apply.ops import ENTRY_BYTES_MAX, ENTRY_OPS_MAX, Op, encode_batch, op_size_bytes
from kvstore.server.errors import NoLeaderError, StoppedError, TimedOutError, TooManyRequestsError

Done = Callable[[Any], None]
"""Takes the result, or the exception that says how the operation ended."""

DoneAll = Callable[[range, Any], None]
"""Takes ids of a `Run` and a list of their results, or the exception that ended all of them."""

PENDING_MAX = 20_000
"""Operations accepted and not yet answered; beyond it the edge refuses."""

PENDING_SIZE_MAX = 256 << 20
"""The same bound in bytes of request."""


class Run:
    """Operations that came together and are answered together, by ids of their owner's.

    One waiter for many: a callable for each operation, made and called, is a tenth of a put.
    """

    __slots__ = ("done", "ids")

    def __init__(self, done: DoneAll, ids: range) -> None:
        self.done = done
        """Called once, or once for each batch that the ids were cut into, in order."""

        self.ids = ids


Waiter: TypeAlias = Done | Run


@dataclass(slots=True)
class Batch:
    """Operations that left together and will be applied together."""

    first_sequence: int
    term: int
    """The term in which the batch was proposed or forwarded; it can be appended in no other."""

    ops: list[Op]
    waiters: list[Waiter]
    """In the order of the operations; a run waits for as many as it has ids."""

    size_bytes: int
    deadline_ns: int


class Proposals:
    """Queues operations, cuts batches, and finds each operation's waiter again when it is applied.

    A batch belongs to the term it was sent in. Terms only grow along the log, so once an entry of
    a later term is applied, a batch that has not been seen never will be: it is certainly not
    applied, and goes out again under new sequences.
    """

    def __init__(self, origin: int, incarnation: int, timeout_ns: int) -> None:
        """Start empty.

        Args:
            origin: This member's id.
            incarnation: A number that no other start of this member has used.
            timeout_ns: How long an operation may wait for its result.
        """
        self.origin = origin
        self.incarnation = incarnation
        self.size_bytes = 0
        self.count = 0
        self.failed = 0
        self._timeout_ns = timeout_ns
        # The core wants the ids of forwarded batches to ascend across restarts.
        self._sequence = incarnation << 32
        self._ops: list[Op] = []
        self._waiters: list[Waiter] = []
        self._ops_bytes = 0
        self._ops_deadline_ns = 0
        self._groups: list[tuple[int, int]] = []
        """Places in `_ops`, first and behind the last, between which no batch is cut."""

        self._requeued: deque[Batch] = deque()
        self._sent: dict[int, Batch] = {}

    def add(self, op: Op, size_bytes: int, done: Done, now_ns: int) -> None:
        """Queue one operation.

        Raises:
            TooManyRequestsError: A bound is reached; the operation was not queued.
        """
        if self.count >= PENDING_MAX or self.size_bytes + size_bytes > PENDING_SIZE_MAX:
            raise TooManyRequestsError
        if not self._ops:
            self._ops_deadline_ns = now_ns + self._timeout_ns
        self._ops.append(op)
        self._waiters.append(done)
        self._ops_bytes += size_bytes
        self.size_bytes += size_bytes
        self.count += 1

    def add_run(self, ops: list[Op], size_bytes: int, run: Run, now_ns: int) -> None:
        """Queue operations that came together, as `add` each; a batch may be cut between them.

        Raises:
            TooManyRequestsError: A bound is reached; none of them was queued.
        """
        assert len(ops) == len(run.ids)
        if self.count + len(ops) > PENDING_MAX or self.size_bytes + size_bytes > PENDING_SIZE_MAX:
            raise TooManyRequestsError
        if not self._ops:
            self._ops_deadline_ns = now_ns + self._timeout_ns
        self._ops += ops
        self._waiters.append(run)
        self._ops_bytes += size_bytes
        self.size_bytes += size_bytes
        self.count += len(ops)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep the operations added inside in one batch: applied in order, or none of them.

        Alone: a batch that is lost goes out again whole, so nothing comes between them. They
        should fit an entry (`ENTRY_OPS_MAX`, `ENTRY_BYTES_MAX`); if not, the entry is larger.
        """
        first = len(self._ops)
        try:
            yield
        finally:
            if len(self._ops) > first + 1:
                self._groups.append((first, len(self._ops)))

    def waiting(self) -> bool:
        """Tell whether `next_batch` would return one."""
        return bool(self._ops or self._requeued)

    def next_batch(self, term: int) -> tuple[int, bytes] | None:
        """Cut the next batch and count it as sent in `term`.

        Returns:
            Its first sequence, which names the batch, and the entry data; None when nothing waits.
        """
        if self._requeued:
            batch = self._requeued.popleft()
        elif self._ops:
            batch = self._cut()
        else:
            return None
        batch.first_sequence = first = self._sequence
        batch.term = term
        self._sequence += len(batch.ops)
        self._sent[first] = batch
        return first, encode_batch(self.origin, self.incarnation, first, batch.ops)

    def _cut(self) -> Batch:
        ops, waiters, size = self._ops, self._waiters, self._ops_bytes
        if len(ops) <= ENTRY_OPS_MAX and size <= ENTRY_BYTES_MAX:
            self._ops, self._waiters, self._ops_bytes = [], [], 0
            self._groups.clear()
            return Batch(0, 0, ops, waiters, size, self._ops_deadline_ns)
        size = 0
        count = 0
        for op in ops[:ENTRY_OPS_MAX]:
            op_size = op_size_bytes(op)
            if count and size + op_size > ENTRY_BYTES_MAX:
                break
            size += op_size
            count += 1
        count = self._outside_groups(count)
        size = sum(len(op[1]) for op in ops[:count])
        self._ops = ops[count:]
        first, self._waiters = _split(waiters, count)
        self._ops_bytes -= size
        return Batch(0, 0, ops[:count], first, size, self._ops_deadline_ns)

    def _outside_groups(self, count: int) -> int:
        """Move a cut out of the group that it would split, and count the rest from there."""
        for first, end in self._groups:
            if first < count < end:
                count = first or end  # a group at the head goes whole
                break
        self._groups = [
            (first - count, end - count) for first, end in self._groups if first >= count
        ]
        return count

    def applied(
        self, incarnation: int, first_sequence: int, results: Sequence[Any]
    ) -> list[Waiter]:
        """Return the waiters of a batch that came out of the log, for `answer`."""
        if incarnation != self.incarnation:
            return []
        batch = self._sent.pop(first_sequence, None)
        if batch is None:
            return []
        assert len(batch.ops) == len(results)
        self._forget(batch)
        return batch.waiters

    def refused(self, first_sequence: int) -> None:
        """Queue a batch again that the leader certainly did not append."""
        batch = self._sent.pop(first_sequence, None)
        if batch is not None:
            self._requeued.append(batch)

    def term_applied(self, term: int) -> bool:
        """Queue every batch of an earlier term again; return whether there was one.

        An entry of `term` was applied before it, so it is lost.
        """
        lost = [first for first, batch in self._sent.items() if batch.term < term]
        for first in lost:
            self._requeued.append(self._sent.pop(first))
        return bool(lost)

    def skipped(self) -> None:
        """A snapshot replaced part of the log: nobody can say what became of the batches sent."""
        for batch in self._drop_sent(list(self._sent)):
            self._fail(batch, TimedOutError("snapshot"))

    def expire(self, now_ns: int) -> None:
        """End what has waited too long: unsent is not applied, sent is unknown."""
        if self._ops and self._ops_deadline_ns <= now_ns:
            self._requeued.append(self._cut())
        for _ in range(len(self._requeued)):
            batch = self._requeued.popleft()
            if batch.deadline_ns <= now_ns:
                self._fail(batch, NoLeaderError())
            else:
                self._requeued.append(batch)
        late = [first for first, batch in self._sent.items() if batch.deadline_ns <= now_ns]
        for batch in self._drop_sent(late):
            self._fail(batch, TimedOutError())

    def stop(self) -> None:
        """End everything: the member shuts down."""
        while self._ops:
            self._fail(self._cut(), StoppedError())
        while self._requeued:
            self._fail(self._requeued.popleft(), StoppedError())
        for batch in self._drop_sent(list(self._sent)):
            self._fail(batch, TimedOutError("stopped"))

    def _drop_sent(self, firsts: list[int]) -> list[Batch]:
        return [self._sent.pop(first) for first in firsts]

    def _fail(self, batch: Batch, error: Exception) -> None:
        self._forget(batch)
        self.failed += len(batch.ops)
        for waiter in batch.waiters:
            if isinstance(waiter, Run):
                waiter.done(waiter.ids, error)
            else:
                waiter(error)

    def _forget(self, batch: Batch) -> None:
        self.size_bytes -= batch.size_bytes
        self.count -= len(batch.ops)


def answer(waiters: Iterable[Waiter], results: Sequence[Any]) -> None:
    """Give each waiter its result; they are in the same order."""
    position = 0
    for waiter in waiters:
        if isinstance(waiter, Run):
            end = position + len(waiter.ids)
            waiter.done(waiter.ids, results[position:end])
            position = end
        else:
            waiter(results[position])
            position += 1


def _split(waiters: list[Waiter], count: int) -> tuple[list[Waiter], list[Waiter]]:
    """Cut behind the waiters of so many operations, and through the run that has the place."""
    position = 0
    for number, waiter in enumerate(waiters):
        left = count - position
        if not left:
            return waiters[:number], waiters[number:]
        if not isinstance(waiter, Run):
            position += 1
        elif len(waiter.ids) <= left:
            position += len(waiter.ids)
        else:
            head, tail = Run(waiter.done, waiter.ids[:left]), Run(waiter.done, waiter.ids[left:])
            return [*waiters[:number], head], [tail, *waiters[number + 1 :]]
    return waiters, []
