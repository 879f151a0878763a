"""Compaction: errors, what stays readable, what is removed, and that it can stop anywhere."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from kvstore.mvcc import revision
from kvstore.mvcc.errors import Compacted, FutureRevision
from kvstore.mvcc.events import DELETE, PUT
from tests.mvcc.harness import Member, decoded, stored

if TYPE_CHECKING:
    from pathlib import Path


def revisions(member: Member) -> list[int]:
    return [revision.main_of(key) for key, _ in stored(member)]


def test_compaction_errors(member: Member) -> None:
    # On a store that was never compacted, compaction at 0 succeeds once, as in etcd.
    with pytest.raises(Compacted):
        member.store.compact(-1)
    member.store.compact(0)
    for asked in (0, -1):
        with pytest.raises(Compacted):
            member.store.compact(asked)
    with pytest.raises(FutureRevision):
        member.store.compact(2)
    member.put(b"a")
    member.store.compact(2)
    with pytest.raises(Compacted):
        member.store.compact(2)
    assert member.store.revision == 2, "compaction makes no revision"


def test_the_newest_of_each_key_stays_and_a_tombstone_exactly_there(member: Member) -> None:
    member.put(b"a", b"1")  # 2
    member.put(b"a", b"2")  # 3
    member.put(b"b", b"1")  # 4
    member.delete(b"b")  # 5
    member.put(b"c", b"1")  # 6
    member.delete(b"c")  # 7
    member.put(b"a", b"3")  # 8
    member.store.compact(7)
    member.purge()
    # b's tombstone is older than the compaction and goes, c's is at it and stays, so that a
    # watcher from 7 sees the deletion.
    assert revisions(member) == [3, 7, 8]
    [(first, [event]), (second, _)] = member.store.events_between(7, 99, 10)[0]
    assert (first, event.kind, event.key) == (7, DELETE, b"c")
    assert second == 8
    assert decoded(member.range(b"a", revision=7).kvs)[0].value == b"2"
    # The next compaction takes the tombstone that the last one kept.
    member.store.compact(8)
    member.purge()
    assert revisions(member) == [8]
    assert list(member.store.index.histories) == [b"a"]


def test_a_key_that_came_back_keeps_its_new_life(member: Member) -> None:
    member.put(b"a")  # 2
    member.delete(b"a")  # 3
    member.put(b"a", b"new")  # 4
    member.store.compact(3)
    member.purge()
    assert revisions(member) == [3, 4]
    found = member.get(b"a")
    assert found is not None
    assert (found.create_revision, found.version) == (4, 1)


def test_purging_is_unseen(member: Member) -> None:
    random_ = random.Random(3)
    for n in range(300):
        member.put(b"%d" % random_.randint(0, 20), b"%d" % n)
        if random_.random() < 0.2:
            member.delete(b"%d" % random_.randint(0, 20))
        if random_.random() < 0.03:
            member.commit()
    at = member.store.revision - 50
    before = {
        r: member.range(b"\0", b"\0", revision=r).kvs for r in range(at, member.store.revision)
    }
    member.store.compact(at)
    hash_ = member.store.hash_kv(0)
    while member.store.purge(7):
        assert member.store.hash_kv(0) == hash_
        for r in random_.sample(sorted(before), 3):
            assert member.range(b"\0", b"\0", revision=r).kvs == before[r]
        if random_.random() < 0.2:
            member.commit()
    assert {r: member.range(b"\0", b"\0", revision=r).kvs for r in before} == before
    assert member.store.hash_kv(0) == hash_


def test_a_slice_is_bounded_even_for_one_hot_key(member: Member) -> None:
    for n in range(500):
        member.put(b"hot", b"%d" % n)
    member.commit()
    member.store.compact(member.store.revision)
    removed = []
    more = True
    while more:
        before = len(member.store.buffer.live.deleted)
        more = member.store.purge(50)
        removed.append(len(member.store.buffer.live.deleted) - before)
    assert max(removed) <= 50
    assert sum(removed) == 499


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_a_crash_between_any_two_slices_changes_nothing(kind: str, tmp_path: Path) -> None:
    # Crash after the n-th committed slice, for every n; the purge goes on and ends the same.
    final = None
    for crash in range(100):
        folder = tmp_path / str(crash)
        folder.mkdir()
        member = Member(kind, folder)
        random_ = random.Random(8)
        for n in range(60):
            member.put(random_.choice((b"hot", b"a", b"b", b"c")), b"%d" % n)
            if random_.random() < 0.25:
                member.delete(random_.choice((b"hot", b"a", b"b", b"c")))
        member.store.compact(30)
        member.purge()
        member.store.compact(member.store.revision - 4)
        member.commit()
        slices = 0
        while slices < crash and member.store.purge(2):
            member.commit()
            slices += 1
        finished = not member.store.purging
        member.restart()
        assert member.store.compacted == member.store.revision - 4
        member.purge(2)
        member.commit()
        result = (stored(member), {k: bytes(h) for k, h in member.store.index.histories.items()})
        final = final or result
        assert result == final
        member.close()
        if finished:
            assert crash > 5, "the history must be long enough for several crash points"
            return
    pytest.fail("the purge never ended")


def test_a_compaction_during_a_purge_is_caught_up_with(member: Member) -> None:
    for n in range(100):
        member.put(b"%d" % (n % 5), b"%d" % n)
        if n % 7 == 0:
            member.delete(b"%d" % (n % 5))
    member.store.compact(40)
    assert member.store.purge(3)
    member.store.compact(90)
    assert member.store.purge(3)
    member.store.compact(member.store.revision)
    member.purge()
    # The last change is a put, so there is no tombstone at the compaction revision to keep.
    assert len(revisions(member)) == len(member.store.index.live)
    assert list(member.store.index.live) == sorted(member.store.index.histories)


def test_a_restart_never_goes_below_an_acknowledged_compaction(member: Member) -> None:
    # Everything up to the compaction is deleted and purged: the records alone would say less.
    member.put(b"a")
    member.put(b"b")
    member.delete(b"\0", b"\0")
    member.put(b"c")
    member.delete(b"c")
    member.store.compact(5)
    member.purge()
    member.commit()
    member.restart()
    assert (member.store.revision, member.store.compacted) == (6, 5)
    member.store.compact(6)
    member.commit()
    member.restart()
    assert (member.store.revision, member.store.compacted, member.store.purging) == (6, 6, True)
    assert member.put(b"d") == 7


def test_prev_kv_ends_at_the_compaction_boundary(member: Member) -> None:
    for n in range(5):
        member.put(b"a", b"%d" % n)
    events = {revision_: found[0] for revision_, found in member.store.take_events()}
    assert member.store.prev_kv(events[2]) is None
    member.store.compact(4)
    # The event at the compaction revision has lost its predecessor, the next one has not.
    assert member.store.prev_kv(events[4]) is None
    previous = member.store.prev_kv(events[5])
    assert previous is not None
    assert decoded([previous])[0].value == b"2"


def test_events_between_needs_what_is_not_compacted(member: Member) -> None:
    for n in range(5):
        member.put(b"a", b"%d" % n)
    member.store.compact(4)
    with pytest.raises(Compacted):
        member.store.events_between(3, 9, 10)
    events, following = member.store.events_between(4, 9, 10)
    assert [(r, [e.kind for e in es]) for r, es in events] == [(4, [PUT]), (5, [PUT]), (6, [PUT])]
    assert following == 7


def test_events_between_never_splits_a_revision(member: Member) -> None:
    for key in (b"a", b"b", b"c"):
        member.put(key)
    member.delete(b"a", b"z")
    member.put(b"d")
    live = member.store.take_events()
    member.commit()
    assert member.store.events_between(1, 99, 100) == (live, 7)
    events, following = member.store.events_between(4, 99, 2)
    assert ([len(found) for _, found in events], following) == ([1, 3], 6)
    events, following = member.store.events_between(following, 99, 2)
    assert ([r for r, _ in events], following) == ([6], 7)
    assert member.store.events_between(7, 99, 2) == ([], 7)
    assert member.store.events_between(2, 3, 2)[1] == 4
