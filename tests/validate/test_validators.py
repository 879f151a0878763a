"""Each judge must find the violation that it is there for: one right history, many wrong ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.validate import final, leases, linearizable, timeline, watches
from tests.validate.history import (
    OK,
    REFUSED,
    UNKNOWN,
    Batch,
    Change,
    Event,
    History,
    Kv,
    Lease,
    Read,
    Violation,
    Watch,
    Write,
)

A, B, L, R = b"k/a", b"k/b", b"l/1", b"r/0"
LEASE = 7


def kv(key: bytes, value: bytes, create: int, mod: int, version: int, lease: int = 0) -> Kv:
    return Kv(key, value, create, mod, version, lease)


A2 = kv(A, b"v1", 2, 2, 1)
B2 = kv(B, b"v2", 2, 2, 1)
A3 = kv(A, b"v3", 2, 3, 2)
R5 = kv(R, b"v5", 5, 5, 1)
L6 = kv(L, b"v6", 6, 6, 1, LEASE)
L6B = kv(b"l/2", b"v7", 7, 7, 1, LEASE)
R9 = kv(R, b"v9", 5, 9, 2)


def deletion(key: bytes, revision: int) -> Kv:
    return Kv(key, b"", 0, revision, 0, 0)


def good() -> History:
    """Two keys at once (2), an unknown put (3), a delete (4), a register (5 and 9), a lease that
    holds two keys (6, 7) and ends (8), a refused put, compares that fail, reads of all kinds."""
    history = History()
    history.writes = [
        Write(1, (Change(A, b"v1"), Change(B, b"v2")), (), 2, OK, 2, who="w0"),
        Write(3, (Change(A, b"v3"),), (), 5, UNKNOWN, who="w1"),
        Write(7, (Change(B, None),), (), 8, OK, 4, True, {B: B2}, 1, "w2"),
        Write(9, (Change(R, b"v5"),), (), 10, OK, 5, True, {R: None}, None, "w3"),
        Write(11, (Change(L, b"v6", LEASE),), (), 12, OK, 6, True, {L: None}, None, "w4"),
        Write(13, (Change(b"l/2", b"v7", LEASE),), (), 14, OK, 7, who="w5"),
        Write(15, (Change(A, b"v8"),), (), 16, REFUSED, who="w6"),
        Write(17, (Change(A, b"v10"),), ((A, 2),), 18, OK, 7, False, who="w7"),
        Write(23, (Change(R, b"v9"),), (), 24, OK, 9, True, {R: R5}, None, "w8"),
        Write(25, (Change(B, None),), (), 26, OK, 9, True, {B: None}, 0, "w9"),
    ]
    history.reads = [
        Read(4, A, b"", back=6, revision=3, kvs=(A3,), who="r0"),
        Read(19, b"k/", b"k0", back=20, revision=7, kvs=(A3,), who="r1"),
        Read(21, b"k/", b"k0", True, back=22, revision=3, kvs=(A3, B2), who="r2"),
        Read(27, b"k/", b"k0", at=2, back=28, revision=9, kvs=(A2, B2), who="r3"),
        Read(29, R, b"", back=30, revision=9, kvs=(R9,), who="r4"),
    ]
    events = [
        (2, (Event(True, A2, None), Event(True, B2, None))),
        (3, (Event(True, A3, A2),)),
        (4, (Event(False, deletion(B, 4), B2),)),
        (5, (Event(True, R5, None),)),
        (6, (Event(True, L6, None),)),
        (7, (Event(True, L6B, None),)),
        (8, (Event(False, deletion(L, 8), L6), Event(False, deletion(b"l/2", 8), L6B))),
        (9, (Event(True, R9, R5),)),
    ]
    history.watches = [
        Watch(
            "all", b"\0", b"\0", 2, streams=[(0, 2), (3, 5)],
            batches=[
                *(Batch(100 + at, float(at), at, changed) for at, changed in events),
                Batch(110, 10.0, 9, ()),
            ],
        ),
        Watch("puts of k", b"k/", b"k0", 2, deletes=False, prev_kv=False, streams=[(0, 2)],
            batches=[
                Batch(120, 2.0, 2, (Event(True, A2, None), Event(True, B2, None))),
                Batch(121, 3.0, 3, (Event(True, A3, None),)),
            ],
        ),
    ]  # fmt: skip
    history.leases = [Lease(LEASE, 3, 1.0, 4.5, [L, b"l/2"])]
    return history


CONTENTS = {"e1": (9, [A3, R9]), "e2": (9, [A3, R9])}
HASHES = {"e1": (1, 0, 9), "e2": (1, 0, 9)}


def judge(
    history: History,
    contents: dict[str, tuple[int, list[Kv]]] = CONTENTS,
    hashes: dict[str, tuple[int, int, int]] = HASHES,
) -> None:
    lines = timeline.build(history)
    linearizable.check(history, lines)
    linearizable.check_registers(history, b"r/")
    watches.check(history, lines, until=9)
    leases.check(history, lines, now_s=100.0, overdue_s=10.0)
    final.check(contents, hashes, lines)


def test_the_right_history_holds() -> None:
    judge(good())


def everything(history: History) -> Watch:
    return history.watches[0]


def replace_event(history: History, batch: int, index: int, event: Event) -> None:
    changed = list(everything(history).batches[batch].events)
    changed[index] = event
    everything(history).batches[batch].events = tuple(changed)


def late_event(history: History, changed: Kv) -> None:
    everything(history).batches.append(Batch(111, 11.0, changed.mod, (Event(True, changed, A3),)))


def two_writes_at_one_revision(history: History) -> None:
    history.writes[3].revision = 4


def a_refused_write_shows(history: History) -> None:
    late_event(history, kv(A, b"v8", 2, 10, 3))


def a_value_from_nowhere(history: History) -> None:
    late_event(history, kv(A, b"v77", 2, 10, 3))


def a_delete_that_nobody_made(history: History) -> None:
    del history.writes[2]


def an_acknowledged_write_is_lost(history: History) -> None:
    # Gone with its events, as if the log had lost its tail: the next write has its revision.
    del everything(history).batches[3]
    del history.reads[4]


def an_unknown_write_takes_effect_twice(history: History) -> None:
    late_event(history, kv(A, b"v3", 2, 10, 3))


def a_stale_read(history: History) -> None:
    history.reads[1] = Read(19, b"k/", b"k0", back=20, revision=3, kvs=(A3, B2), who="r1")


def a_write_before_one_that_had_returned(history: History) -> None:
    history.writes[2].call, history.writes[2].back = 3, 4
    history.writes[0].call, history.writes[0].back = 5, 6


def a_read_from_the_future(history: History) -> None:
    history.reads[2] = Read(3, R, b"", True, back=4, revision=9, kvs=(R9,), who="r2")


def a_read_that_misses_a_key(history: History) -> None:
    history.reads[2].kvs = (A3,)


def a_read_at_a_revision_that_shows_another(history: History) -> None:
    history.reads[3].kvs = (A3, B2)


def a_wrong_version(history: History) -> None:
    history.reads[0].kvs = (A3._replace(version=1),)


def a_wrong_previous_value(history: History) -> None:
    history.writes[8].previous = {R: None}


def a_compare_that_should_have_failed(history: History) -> None:
    history.writes[8].compares = ((R, 4),)


def a_compare_that_should_have_held(history: History) -> None:
    history.writes[7].compares = ((A, 3),)


def a_delete_count_that_is_wrong(history: History) -> None:
    history.writes[2].deleted = 2


def half_a_transaction(history: History) -> None:
    history.reads.append(Read(31, B, b"", at=2, back=32, revision=9, kvs=(), who="r5"))


def events_out_of_order(history: History) -> None:
    batches = everything(history).batches
    batches[1], batches[2] = batches[2], batches[1]


def an_event_twice(history: History) -> None:
    everything(history).batches.insert(2, copy.deepcopy(everything(history).batches[1]))


def a_revision_in_two_responses(history: History) -> None:
    batch = everything(history).batches[0]
    first, second = batch.events
    everything(history).batches[0:1] = [
        Batch(102, 2.0, 2, (first,)),
        Batch(103, 2.0, 2, (second,)),
    ]


def an_event_of_a_key_not_asked_for(history: History) -> None:
    history.watches[1].batches.append(Batch(122, 9.0, 9, (Event(True, R9, None),)))


def an_event_that_was_filtered_out(history: History) -> None:
    history.watches[1].batches.append(Batch(122, 4.0, 4, (Event(False, deletion(B, 4), None),)))


def an_event_from_before_the_start(history: History) -> None:
    history.watches[1].first = 3


def a_watcher_resumed_one_revision_late(history: History) -> None:
    del history.watches[1].batches[1]


def a_watcher_that_never_caught_up(history: History) -> None:
    # The last revision is missing to one of two that watch everything.
    late = copy.deepcopy(everything(history))
    late.batches = late.batches[:-2]
    history.watches.append(late)


def an_event_after_its_bookmark(history: History) -> None:
    everything(history).batches.insert(1, Batch(102, 2.5, 5, ()))


def a_resumed_stream_that_starts_early(history: History) -> None:
    everything(history).streams[1] = (3, 6)


def a_wrong_prev_kv(history: History) -> None:
    replace_event(history, 7, 0, Event(True, R9, None))


def a_prev_kv_nobody_asked_for(history: History) -> None:
    history.watches[1].prev_kv = False
    history.watches[1].batches[1].events = (Event(True, A3, A2),)


def a_lease_that_ended_early(history: History) -> None:
    history.leases[0].renewed_s = 6.0


def a_holder_told_too_early_that_it_ended(history: History) -> None:
    history.leases[0].ended_s = 5.0


def keys_of_a_lease_gone_in_two_revisions(history: History) -> None:
    # 8: one key, 9: the other, 10: the register.
    first, second = everything(history).batches[6].events
    gone = Event(False, deletion(b"l/2", 9), second.previous)
    register = R9._replace(mod=10)
    everything(history).batches[6:] = [
        Batch(108, 8.0, 8, (first,)),
        Batch(109, 9.0, 9, (gone,)),
        Batch(110, 10.0, 10, (Event(True, register, R5),)),
    ]
    history.writes[8].revision = history.writes[9].revision = 10
    history.reads[4] = Read(29, R, b"", back=30, revision=10, kvs=(register,), who="r4")


def a_key_of_an_ended_lease_that_stays(history: History) -> None:
    everything(history).batches[6].events = everything(history).batches[6].events[:1]


def a_lease_that_never_ends(history: History) -> None:
    history.leases.append(Lease(8, 3, 1.0, 1.0, [A]))


def nothing_known_of_a_revision(history: History) -> None:
    everything(history).batches[7].events = (Event(True, R9._replace(mod=12), R5),)
    history.writes[8].revision = 12
    history.reads[4].kvs = (R9._replace(mod=12),)


WRONG: dict[Callable[[History], None], str] = {
    two_writes_at_one_revision: "two writes at revision",
    a_refused_write_shows: "refused, and yet there",
    a_value_from_nowhere: "a value nobody wrote",
    a_delete_that_nobody_made: "nobody asked for",
    an_acknowledged_write_is_lost: "never heard of",
    an_unknown_write_takes_effect_twice: "made at another",
    a_stale_read: "back in time",
    a_write_before_one_that_had_returned: "back in time",
    a_read_from_the_future: "back in time",
    a_read_that_misses_a_key: "differs in",
    a_read_at_a_revision_that_shows_another: "differs in",
    a_wrong_version: "r0 saw",
    a_wrong_previous_value: "before, answered",
    a_compare_that_should_have_failed: "the compares did not hold",
    a_compare_that_should_have_held: "the compares held",
    a_delete_count_that_is_wrong: "keys were there",
    half_a_transaction: "differs in",
    events_out_of_order: "came after",
    an_event_twice: "came twice",
    a_revision_in_two_responses: "in two responses",
    an_event_of_a_key_not_asked_for: "did not ask for",
    an_event_that_was_filtered_out: "did not ask for",
    an_event_from_before_the_start: "asked from 3 on",
    a_watcher_resumed_one_revision_late: "never heard of",
    a_watcher_that_never_caught_up: "never heard of",
    an_event_after_its_bookmark: "after the mark",
    a_resumed_stream_that_starts_early: "a stream from 6 on sent",
    a_wrong_prev_kv: "before .* the key was",
    a_prev_kv_nobody_asked_for: "before .* the key was",
    a_lease_that_ended_early: "early",
    a_holder_told_too_early_that_it_ended: "early",
    keys_of_a_lease_gone_in_two_revisions: r"went at \[8, 9\]",
    a_key_of_an_ended_lease_that_stays: "still there",
    a_lease_that_never_ends: "should have ended",
    nothing_known_of_a_revision: "nothing is known of",
}


@pytest.mark.parametrize("plant", WRONG, ids=lambda plant: plant.__name__)
def test_a_wrong_history_is_found(plant: Callable[[History], None]) -> None:
    # If this fails the product is fine, a judge has gone blind.
    history = good()
    plant(history)
    with pytest.raises(Violation, match=WRONG[plant]):
        judge(history)


def test_the_search_does_not_need_revisions() -> None:
    # Answers whose revisions fit each other, but whose values no order explains.
    history = History()
    history.writes = [
        Write(1, (Change(R, b"v1"),), (), 2, OK, 2, True, {R: None}),
        Write(3, (Change(R, b"v2"),), (), 4, OK, 3, True, {R: None}),
    ]
    with pytest.raises(Violation, match="no order explains"):
        linearizable.check_registers(history, b"r/")


@pytest.mark.parametrize(
    ("contents", "hashes", "text"),
    [
        ({"e1": (9, [A3, R9]), "e2": (9, [A3])}, HASHES, "e2 differs"),
        ({"e1": (9, [A3, R9, B2])}, HASHES, "e1 differs"),
        ({"e1": (8, [A3, R5])}, HASHES, "ends at revision 8"),
        (CONTENTS, {"e1": (1, 0, 9), "e2": (2, 0, 9)}, "hashes differ"),
    ],
)
def test_members_that_differ_are_found(
    contents: dict[str, tuple[int, list[Kv]]], hashes: dict[str, tuple[int, int, int]], text: str
) -> None:
    with pytest.raises(Violation, match=text):
        judge(good(), contents, hashes)


def test_an_unknown_delete_explains_a_deletion_only_after_its_call() -> None:
    history = good()
    history.writes[2] = Write(7, (Change(B, None),), (), 8, UNKNOWN, who="w2")
    judge(history)
    # Called when a read had already seen the deletion.
    history = good()
    history.writes[2] = Write(31, (Change(B, None),), (), 32, UNKNOWN, who="w2")
    with pytest.raises(Violation, match="back in time"):
        judge(history)
