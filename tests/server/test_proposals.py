"""Outcomes of operations: each ends once, as applied, certainly not applied, or unknown."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.apply.ops import ENTRY_BYTES_MAX, ENTRY_OPS_MAX, PUT, decode_batch
from kvstore.server.errors import NoLeaderError, StoppedError, TimedOutError, TooManyRequestsError
from kvstore.server.proposals import PENDING_MAX, Proposals, Run, answer

TIMEOUT_NS = 7_000
ORIGIN = 5
INCARNATION = 3


class Desk:
    """A Proposals with numbered operations and what became of each."""

    def __init__(self) -> None:
        self.proposals = Proposals(ORIGIN, INCARNATION, TIMEOUT_NS)
        self.ended: dict[int, list[Any]] = {}

    def add(self, *numbers: int, now_ns: int = 0, size_bytes: int = 10) -> None:
        for number in numbers:
            self.ended[number] = []
            payload = number.to_bytes(4) + bytes(size_bytes)
            self.proposals.add((PUT, payload), len(payload), self.ended[number].append, now_ns)

    def send(self, term: int = 1) -> tuple[int, list[int]]:
        batch = self.proposals.next_batch(term)
        assert batch is not None
        first, data = batch
        decoded = decode_batch(data)
        assert (decoded.origin, decoded.incarnation) == (ORIGIN, INCARNATION)
        assert decoded.first_sequence == first
        return first, [int.from_bytes(op[1][:4]) for op in decoded.ops]

    def apply(self, first: int, results: list[Any]) -> None:
        waiters = self.proposals.applied(INCARNATION, first, results)
        answer(waiters, results)


def op(number: int) -> tuple[int, bytes]:
    return PUT, number.to_bytes(4) + bytes(10)


def test_results_reach_their_own_waiters() -> None:
    desk = Desk()
    desk.add(1, 2, 3)
    first, sent = desk.send()
    assert sent == [1, 2, 3]
    desk.apply(first, ["a", "b", "c"])
    assert desk.ended == {1: ["a"], 2: ["b"], 3: ["c"]}
    assert desk.proposals.count == desk.proposals.size_bytes == 0


def test_a_batch_of_another_start_of_this_member_is_not_ours() -> None:
    # After a restart the log still brings batches whose clients are gone; their sequences must
    # never match those of new clients.
    desk = Desk()
    desk.add(1)
    first, _ = desk.send()
    assert desk.proposals.applied(INCARNATION - 1, first, ["old"]) == []
    assert desk.ended[1] == []


def test_what_a_later_term_overtook_goes_out_again_under_new_sequences() -> None:
    # Terms only grow along the log: an entry of term 2 applied means the batch of term 1 is lost
    # for ever, so a second copy cannot be applied twice.
    desk = Desk()
    desk.add(1)
    first, _ = desk.send(term=1)
    desk.proposals.term_applied(2)
    again, sent = desk.send(term=2)
    assert sent == [1]
    assert again > first
    assert desk.proposals.applied(INCARNATION, first, ["late"]) == []
    desk.apply(again, ["ok"])
    assert desk.ended[1] == ["ok"]


def test_what_was_sent_in_the_term_that_is_applied_stays_sent() -> None:
    desk = Desk()
    desk.add(1)
    desk.send(term=2)
    desk.proposals.term_applied(2)
    assert not desk.proposals.waiting()


def test_a_refused_batch_goes_out_again() -> None:
    desk = Desk()
    desk.add(1)
    first, _ = desk.send()
    desk.proposals.refused(first)
    _, sent = desk.send()
    assert sent == [1]


def test_late_and_unsent_is_not_applied_but_late_and_sent_is_unknown() -> None:
    # The difference decides whether a client may repeat a write that must happen once.
    desk = Desk()
    desk.add(1)
    desk.send()
    desk.add(2)
    desk.proposals.expire(TIMEOUT_NS)
    [sent], [unsent] = desk.ended[1], desk.ended[2]
    assert isinstance(sent, TimedOutError)
    assert isinstance(unsent, NoLeaderError)
    assert desk.proposals.count == 0


def test_nothing_is_ended_before_its_time() -> None:
    desk = Desk()
    desk.add(1)
    desk.proposals.expire(TIMEOUT_NS - 1)
    _, sent = desk.send()
    assert sent == [1]


def test_a_snapshot_makes_sent_batches_unknown() -> None:
    desk = Desk()
    desk.add(1)
    desk.send()
    desk.add(2)
    desk.proposals.skipped()
    assert isinstance(desk.ended[1][0], TimedOutError)
    assert desk.ended[2] == []


def test_stopping_ends_everything_once() -> None:
    desk = Desk()
    desk.add(1)
    desk.send()
    desk.add(2)
    desk.proposals.stop()
    assert isinstance(desk.ended[1][0], TimedOutError)
    assert isinstance(desk.ended[2][0], StoppedError)
    assert [len(ends) for ends in desk.ended.values()] == [1, 1]


def test_batches_keep_to_the_bounds_of_an_entry() -> None:
    desk = Desk()
    desk.add(*range(ENTRY_OPS_MAX + 1))
    assert len(desk.send()[1]) == ENTRY_OPS_MAX
    assert desk.send()[1] == [ENTRY_OPS_MAX]

    desk.add(1, 2, 3, size_bytes=ENTRY_BYTES_MAX // 2)
    assert [desk.send()[1], desk.send()[1], desk.send()[1]] == [[1], [2], [3]]


def test_an_operation_larger_than_an_entry_travels_alone() -> None:
    desk = Desk()
    desk.add(1)
    desk.add(2, size_bytes=2 * ENTRY_BYTES_MAX)
    desk.add(3)
    assert [desk.send()[1], desk.send()[1], desk.send()[1]] == [[1], [2], [3]]


def test_the_edge_refuses_when_too_many_wait() -> None:
    desk = Desk()
    desk.add(*range(PENDING_MAX))
    with pytest.raises(TooManyRequestsError):
        desk.add(PENDING_MAX)
    assert desk.proposals.count == PENDING_MAX


def test_a_group_stays_in_one_batch_wherever_the_cut_would_fall() -> None:
    # A pipeline's writes: were they in two batches, the second could be applied first after the
    # first was lost and sent again.
    for before in (0, 1, ENTRY_OPS_MAX - 50, ENTRY_OPS_MAX):
        desk = Desk()
        desk.add(*range(before))
        with desk.proposals.together():
            desk.add(*range(10_000, 10_100))
        desk.add(*range(20_000, 20_000 + ENTRY_OPS_MAX))
        batches = []
        while desk.proposals.waiting():
            batches.append(desk.send()[1])
        sent = [number for batch in batches for number in batch]
        assert sent == list(desk.ended)
        assert all(len(batch) <= ENTRY_OPS_MAX for batch in batches)
        [holder] = [batch for batch in batches if 10_000 in batch]
        first = holder.index(10_000)
        assert holder[first : first + 100] == list(range(10_000, 10_100))


def test_groups_are_cut_by_bytes_too_and_one_that_fits_no_entry_goes_whole() -> None:
    desk = Desk()
    desk.add(1, size_bytes=ENTRY_BYTES_MAX // 2)
    with desk.proposals.together():
        desk.add(2, 3, size_bytes=ENTRY_BYTES_MAX // 3)
    with desk.proposals.together():
        desk.add(4, 5, 6, size_bytes=ENTRY_BYTES_MAX // 2)
    desk.add(7)
    batches = []
    while desk.proposals.waiting():
        batches.append(desk.send()[1])
    assert batches == [[1], [2, 3], [4, 5, 6], [7]]


def test_a_lost_group_goes_out_again_whole() -> None:
    desk = Desk()
    with desk.proposals.together():
        desk.add(1, 2, 3)
    desk.add(4)
    desk.send(term=1)
    desk.proposals.term_applied(2)
    desk.add(5)
    assert desk.send(term=2)[1] == [1, 2, 3, 4]


def test_what_was_cut_counts_as_much_at_its_end_as_at_its_beginning() -> None:
    # Batches that were cut subtracted the bytes of their encoding, more than had been added; the
    # bound of the queue in bytes grew with every cut.
    desk = Desk()
    desk.add(*range(ENTRY_OPS_MAX + 10))
    while desk.proposals.waiting():
        first, sent = desk.send()
        desk.apply(first, ["ok"] * len(sent))
    assert desk.proposals.count == desk.proposals.size_bytes == 0


def test_a_run_is_answered_as_one_and_cut_where_batches_end() -> None:
    # Its ids stay with their operations through a cut, a refusal, and a failure of the rest.
    desk = Desk()
    ended: list[tuple[list[int], Any]] = []
    ids = range(100, 100 + ENTRY_OPS_MAX)

    def done(some: range, results: Any) -> None:
        ended.append((list(some), results))

    desk.add(1)
    desk.proposals.add_run([op(number) for number in ids], 14 * len(ids), Run(done, ids), 0)
    desk.add(2)
    first, sent = desk.send()
    assert sent == [1, *ids[:-1]]
    desk.proposals.refused(first)
    first, sent = desk.send()
    assert sent == [1, *ids[:-1]]
    desk.apply(first, [f"result {number}" for number in sent])
    assert desk.ended[1] == ["result 1"]
    assert ended == [(list(ids[:-1]), [f"result {number}" for number in ids[:-1]])]
    _, sent = desk.send()
    assert sent == [ids[-1], 2]
    assert desk.proposals.count == 2
    desk.proposals.stop()
    [_, (rest, error)] = ended
    assert rest == [ids[-1]]
    assert isinstance(error, TimedOutError)
    assert isinstance(desk.ended[2][0], TimedOutError)
    assert desk.proposals.count == desk.proposals.size_bytes == 0
    assert desk.proposals.failed == 2


@pytest.mark.parametrize("before", [0, 1, 3])
def test_runs_are_cut_at_any_place(before: int) -> None:
    desk = Desk()
    got: list[tuple[int, str]] = []

    def done(some: range, results: Any) -> None:
        got.extend(zip(some, results, strict=True))

    desk.add(*range(1, before + 1))
    starts = range(1_000, 9_000, 700)
    for start in starts:
        ids = range(start, start + 700)
        desk.proposals.add_run([op(number) for number in ids], 14 * 700, Run(done, ids), 0)
    while desk.proposals.waiting():
        first, sent = desk.send()
        assert len(sent) <= ENTRY_OPS_MAX
        desk.apply(first, [str(number) for number in sent])
    assert got == [(number, str(number)) for number in range(1_000, starts[-1] + 700)]
    assert desk.proposals.count == desk.proposals.size_bytes == 0


def test_a_run_that_has_no_room_is_refused_whole() -> None:
    desk = Desk()
    full = range(PENDING_MAX - 1)
    run = Run(lambda _ids, _results: None, full)
    desk.proposals.add_run([op(number) for number in full], 14 * len(full), run, 0)
    with pytest.raises(TooManyRequestsError):
        desk.proposals.add_run([op(1), op(2)], 28, Run(run.done, range(2)), 0)
    assert desk.proposals.count == len(full)
    desk.add(1)
    with pytest.raises(TooManyRequestsError):
        desk.add(2)
