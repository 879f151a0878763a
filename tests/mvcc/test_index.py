"""The packed index against a dictionary of lists."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from sortedcontainers import SortedDict

from kvstore.mvcc import keyvalue, revision
from kvstore.mvcc.index import Index
from kvstore.mvcc.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = [bytes((a, b)) for a in b"abc" for b in b"xyz"] + [b"a", b"\xff"]


class Oracle:
    """Every key's changes as (main, sub, created, version); version 0 is a deletion."""

    def __init__(self) -> None:
        self.changes: SortedDict[bytes, list[tuple[int, int, int, int]]] = SortedDict()

    def newest(self, key: bytes, main: int) -> tuple[int, int, int, int] | None:
        found = [change for change in self.changes.get(key, []) if change[0] <= main]
        return found[-1] if found else None

    def live(self, main: int) -> list[bytes]:
        return [key for key in self.changes if (self.newest(key, main) or (0, 0, 0, 0))[3]]

    def compact(self, main: int) -> list[bytes]:
        """Drop what etcd drops; return the revision keys dropped."""
        dropped = []
        for key in list(self.changes):
            changes = self.changes[key]
            newest = self.newest(key, main)
            keep = [
                change
                for change in changes
                if change[0] > main or (change == newest and (change[3] or change[0] == main))
            ]
            dropped += [
                revision.pack(c[0], c[1]) if c[3] else revision.pack_tombstone(c[0], c[1])
                for c in changes
                if c not in keep
            ]
            if keep:
                self.changes[key] = keep
            else:
                del self.changes[key]
        return sorted(dropped)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """What the backend would hold."""
        stored = {}
        for key, changes in self.changes.items():
            for main, sub, created, version in changes:
                if version:
                    stored[revision.pack(main, sub)] = keyvalue.encode(
                        key, created, main, version, b"", 0
                    )
                else:
                    stored[revision.pack_tombstone(main, sub)] = keyvalue.encode_tombstone(key)
        yield from sorted(stored.items())


def check(index: Index, oracle: Oracle, main: int, compacted: int) -> None:
    assert sorted(index.histories) == list(oracle.changes)
    live = oracle.live(main)
    assert list(index.live) == live
    assert list(index.deleted) == [key for key in oracle.changes if key not in live]
    for key in KEYS:
        for at in {compacted, (compacted + main) // 2, main - 1, main} - {-1}:
            newest = oracle.newest(key, at)
            expected = revision.pack(*newest[:2]) if newest is not None and newest[3] else None
            assert index.at(key, at) == expected
        assert index.current(key) == index.at(key, main)


def check_ranges(index: Index, oracle: Oracle, main: int, random_: random.Random) -> None:
    start, end = random_.choice(KEYS), random_.choice([*KEYS, b""])
    live = [key for key in oracle.live(main) if key >= start and (not end or key < end)]
    every = [key for key in oracle.changes if key >= start and (not end or key < end)]
    limit = random_.randint(1, 5)
    assert index.count(start, end) == len(live)
    assert index.span(start, end) == len(every)
    assert index.keys(start, end) == live
    assert index.keys(start, end, limit) == live[:limit]
    assert index.last_keys(start, end, limit) == live[::-1][:limit]
    assert index.all_keys(start, end, limit) == every[:limit]


@pytest.mark.parametrize("seed", range(12))
def test_the_index_agrees_with_a_dictionary_of_lists(seed: int) -> None:
    # Enough changes per key that histories cross from bytes to bytearray and back.
    random_ = random.Random(seed)
    index, oracle = Index(), Oracle()
    main, compacted = 1, -1
    keys = KEYS[: random_.choice((2, 5, len(KEYS)))]
    for _ in range(400):
        draw = random_.random()
        if draw < 0.75:
            main += 1
            key = random_.choice(keys)
            changes = oracle.changes.setdefault(key, [])
            created, version = (
                (changes[-1][2], changes[-1][3] + 1) if changes and changes[-1][3] else (main, 1)
            )
            assert index.put(key, main, revision.pack(main, 0)) == (created, version)
            changes.append((main, 0, created, version))
        elif draw < 0.85:
            start, end = random_.choice(keys), random_.choice([*keys, b""])
            doomed = [key for key in oracle.live(main) if key >= start and (not end or key < end)]
            assert index.delete_range(start, end) == doomed
            if doomed:
                main += 1
            for sub, key in enumerate(doomed):
                index.bury(key, revision.pack(main, sub))
                oracle.changes[key].append((main, sub, 0, 0))
        elif draw < 0.88 and main > 1:
            compacted = random_.randint(max(compacted, 1), main)
            dropped: list[bytes] = []
            for key in list(oracle.changes):
                more = True
                while more:
                    part, more = index.obsolete(key, compacted, random_.randint(1, 4))
                    assert not more or part
                    dropped += part
            assert sorted(dropped) == oracle.compact(compacted)
        if random_.random() < 0.1:
            check(index, oracle, main, compacted)
        check_ranges(index, oracle, main, random_)
    rebuilt = rebuild(oracle.records())
    check(rebuilt.index, oracle, main, compacted)
    assert {key: bytes(h) for key, h in rebuilt.index.histories.items()} == {
        key: bytes(h) for key, h in index.histories.items()
    }


def test_a_hot_key_grows_in_place() -> None:
    # A copy per put would make the cost of a million puts to one key quadratic.
    index = Index()
    for main in range(2, 200):
        index.put(b"hot", main, revision.pack(main, 0))
    history = index.histories[b"hot"]
    assert type(history) is bytearray
    index.put(b"hot", 200, revision.pack(200, 0))
    assert index.histories[b"hot"] is history
    assert index.current(b"hot") == revision.pack(200, 0)
    removed, more = index.obsolete(b"hot", 200, 1000)
    assert (len(removed), more) == (198, False)
    assert type(index.histories[b"hot"]) is bytes


def test_a_fresh_key_costs_one_small_object() -> None:
    index = Index()
    key = revision.pack(2, 0)
    index.put(b"a", 2, key)
    assert index.histories[b"a"] is key
