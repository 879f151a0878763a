"""Linearizability of one key's history: Wing and Gong's search with a memo. Knows nothing of Raft.

The model is a list of unique values. Every known result shows the whole list, which keeps the
search short:

    put v     list becomes [v]       result: the list before
    append v  list becomes [..., v]  result: the list after
    read      unchanged              result: the list
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PUT, APPEND, READ = 0, 1, 2
NAMES = ("put", "append", "read")

Value = tuple[int, ...]
NEVER = 1 << 62


@dataclass(slots=True, eq=False)  # by identity: one that is dropped is looked for in its history
class Operation:
    """One call of a client, as the client saw it."""

    key: int
    kind: int
    value: int
    """Unique over the whole history; 0 for a read."""
    call: int
    """Order of the call among all calls and returns."""
    back: int = NEVER
    """Order of the return; NEVER while the outcome is unknown."""
    result: Value | None = None
    """None while the outcome is unknown."""

    def __str__(self) -> str:
        back = "unknown" if self.back == NEVER else f"{self.back} -> {self.result}"
        return f"{NAMES[self.kind]}({self.key}, {self.value}) at {self.call} .. {back}"


def relevant(history: Sequence[Operation]) -> list[Operation]:
    """Leave out what cannot matter: unknown reads, and unknown writes that no result ever showed.

    A write shows in every known result between it and the next put. If its (unique) value is in
    none, no known operation stood in between, so leaving it out changes no known result. Without
    this rule unknown writes, which stay open for ever, explode the search.
    """
    shown: set[int] = set()
    for operation in history:
        if operation.result is not None:
            shown.update(operation.result)
    kept = [op for op in history if op.result is not None or op.value in shown]
    kept.sort(key=lambda op: op.call)
    return kept


def linearizable(history: Sequence[Operation]) -> bool:
    """Tell whether one order of the operations of one key explains every known result.

    Refused operations (certainly not applied) must not be in the history. Unknown ones may take
    effect at any time after their call, or never.
    """
    ops = relevant(history)
    total = len(ops)
    facts = _Facts(ops)
    must = facts.must
    # A state of the search: which operations took effect, and the list they made.
    seen: set[tuple[int, Value]] = set()
    stack: list[tuple[int, Value, int]] = [(0, (), 0)]
    while stack:
        done, value, low = stack.pop()
        if done & must == must:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        while low < total and done >> low & 1:
            low += 1
        # An operation may be next if it was called before any other open one returned.
        earliest_back = NEVER
        nexts: list[tuple[int, Value, int]] = []
        for i in range(low, total):
            if done >> i & 1:
                continue
            op = ops[i]
            if op.call > earliest_back:
                break
            earliest_back = min(earliest_back, op.back)
            if op.kind == READ:
                if op.result == value:
                    # It changes nothing, so taking it now rules nothing out.
                    nexts = [(done | 1 << i, value, low)]
                    break
            elif facts.may_follow(op, value, done | 1 << i):
                after = (op.value,) if op.kind == PUT else (*value, op.value)
                nexts.append((done | 1 << i, after, low))
        stack.extend(reversed(nexts))
    return False


class _Facts:
    """What the results of one history say about when a write can have taken effect.

    Values are unique, so a list that was left never comes back, and neither does a value that a
    put wiped out. Without these rules a dozen unknown writes that were seen can be placed in too
    many wrong orders: one history in a thousand took a minute.
    """

    def __init__(self, ops: Sequence[Operation]) -> None:
        self.must = 0
        """Bit mask of the operations that certainly took effect."""
        self.reads: dict[Value, int] = {}
        """By list: the reads that saw exactly it."""
        self.shown: dict[int, int] = {}
        """By value: the operations whose result begins with it. Whoever saw any value of a list
        saw its first one."""
        self.before: dict[int, Value] = {}
        """By value of an unknown append: the list that it was appended to."""
        unknown = {op.value for op in ops if op.result is None and op.kind == APPEND}
        for i, op in enumerate(ops):
            result = op.result
            if result is None:
                continue
            self.must |= 1 << i
            if op.kind == READ:
                self.reads[result] = self.reads.get(result, 0) | 1 << i
            if result:
                self.shown[result[0]] = self.shown.get(result[0], 0) | 1 << i
            if unknown and not unknown.isdisjoint(result):
                for position, value in enumerate(result):
                    if value in unknown:
                        self.before[value] = result[:position]

    def may_follow(self, op: Operation, value: Value, done: int) -> bool:
        """Tell whether a write can take effect on the list `value`; `done` includes it."""
        if self.reads.get(value, 0) & ~done:
            return False  # a read that saw this list would never see it again
        if op.kind == PUT:
            if value and self.shown.get(value[0], 0) & ~done:
                return False
            return op.result is None or op.result == value
        if op.result is None:
            return self.before[op.value] == value
        return op.result == (*value, op.value)
