"""The linearizability checker against histories with a known verdict and against brute force."""

from __future__ import annotations

import itertools
import random

from tests.sim.linear import APPEND, NEVER, PUT, READ, Operation, Value, linearizable


def op(kind: int, value: int, call: int, back: int, result: Value | None) -> Operation:
    return Operation(1, kind, value, call, back, result)


def test_a_sequential_history_passes() -> None:
    assert linearizable(
        [
            op(PUT, 1, 1, 2, ()),
            op(READ, 0, 3, 4, (1,)),
            op(APPEND, 2, 5, 6, (1, 2)),
            op(PUT, 3, 7, 8, (1, 2)),
            op(READ, 0, 9, 10, (3,)),
        ]
    )


def test_a_stale_read_fails() -> None:
    # The read began after the put had returned, and still shows the state before.
    assert not linearizable([op(PUT, 1, 1, 2, ()), op(READ, 0, 3, 4, ())])


def test_a_read_during_the_put_may_see_either_side() -> None:
    for seen in ((), (1,)):
        assert linearizable([op(PUT, 1, 1, 4, ()), op(READ, 0, 2, 3, seen)])


def test_reads_must_not_go_back() -> None:
    assert not linearizable([op(PUT, 1, 1, 9, ()), op(READ, 0, 2, 3, (1,)), op(READ, 0, 4, 5, ())])


def test_a_lost_acknowledged_write_fails() -> None:
    assert not linearizable([op(APPEND, 1, 1, 2, (1,)), op(APPEND, 2, 3, 4, (2,))])


def test_an_unknown_write_may_be_seen_late_or_never() -> None:
    unknown = op(APPEND, 1, 1, NEVER, None)
    assert linearizable([unknown, op(READ, 0, 5, 6, ()), op(READ, 0, 7, 8, (1,))])
    assert linearizable([unknown, op(READ, 0, 5, 6, ())])


def test_an_unknown_write_counts_once() -> None:
    unknown = op(APPEND, 1, 1, NEVER, None)
    assert not linearizable([unknown, op(READ, 0, 5, 6, (1, 1))])


def test_an_unknown_write_cannot_be_seen_before_its_call() -> None:
    assert not linearizable([op(READ, 0, 1, 2, (7,)), op(APPEND, 7, 3, NEVER, None)])


def test_many_unknown_writes_stay_cheap() -> None:
    # 200 open writes that nobody saw: without the rule of `relevant` this would not end.
    history = [op(APPEND, i, i, NEVER, None) for i in range(1, 201)]
    history.append(op(READ, 0, 300, 301, ()))
    assert linearizable(history)


def test_many_unknown_writes_that_were_seen_stay_cheap() -> None:
    # Each of 40 unknown puts was seen, late and one after the other: 2**40 wrong placements.
    history = [op(PUT, i, i, NEVER, None) for i in range(1, 41)]
    history += [op(READ, 0, 100 + 2 * i, 101 + 2 * i, (i,)) for i in range(40, 0, -1)][::-1]
    assert linearizable(history)
    history.append(op(READ, 0, 500, 501, (1,)))
    assert not linearizable(history)


def brute_force(history: list[Operation]) -> bool:
    known = [i for i, o in enumerate(history) if o.back != NEVER]
    unknown = [i for i, o in enumerate(history) if o.back == NEVER and o.kind != READ]
    for count in range(len(unknown) + 1):
        for extra in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *extra]):
                if explains([history[i] for i in order]):
                    return True
    return False


def explains(order: list[Operation]) -> bool:
    for earlier, later in itertools.combinations(order, 2):
        if later.back < earlier.call:
            return False
    value: Value = ()
    for o in order:
        before = value
        if o.kind == PUT:
            value = (o.value,)
        elif o.kind == APPEND:
            value = (*value, o.value)
        shown = before if o.kind == PUT else value
        if o.result is not None and o.result != shown:
            return False
    return True


def random_history(rng: random.Random) -> list[Operation]:
    """Operations that truly happened in some order, then with luck one result is falsified."""
    count = rng.randrange(2, 7)
    sureness = rng.choice((0.5, 0.8))
    value: Value = ()
    clock = 0
    history = []
    for i in range(1, count + 1):
        kind = rng.choice((PUT, APPEND, READ))
        before = value
        happened = rng.random() < 0.8
        if happened and kind == PUT:
            value = (i,)
        elif happened and kind == APPEND:
            value = (*value, i)
        known = happened and rng.random() < sureness
        clock += 10
        call, back = clock - rng.randrange(0, 25), clock + rng.randrange(1, 25)
        result = (before if kind == PUT else value) if known else None
        if known and rng.random() < 0.15:
            result = tuple(rng.sample(range(1, count + 1), rng.randrange(0, 3)))
        history.append(op(kind, 0 if kind == READ else i, call, back if known else NEVER, result))
    return history


def test_the_search_agrees_with_brute_force() -> None:
    rng = random.Random(20)
    verdicts = {True: 0, False: 0}
    for _ in range(3000):
        history = random_history(rng)
        expected = brute_force(history)
        assert linearizable(history) == expected, "\n".join(map(str, history))
        verdicts[expected] += 1
    # Both verdicts must be well represented, or the comparison says little.
    assert min(verdicts.values()) > 300, verdicts
