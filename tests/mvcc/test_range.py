"""Ranges: options against a plain computation, slices at a pinned revision, counts in the past."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kvstore.mvcc import range as ranges
from kvstore.mvcc.errors import Compacted, FutureRevision, InvalidSort, KeyNotProvided
from kvstore.pb import kv_pb2, rpc_pb2
from tests.mvcc.harness import Member, decoded

ALL = (b"\0", b"\0")


def history(member: Member, seed: int, changes: int = 400) -> dict[int, dict[bytes, Any]]:
    """Make random changes; return the live key-values at every revision."""
    random_ = random.Random(seed)
    keys = [b"%02d" % n for n in range(40)]
    now: dict[bytes, Any] = {}
    states = {1: {}}
    for _ in range(changes):
        key = random_.choice(keys)
        if random_.random() < 0.7:
            before = now.get(key)
            revision = member.put(key, random_.randbytes(random_.randint(0, 3)))
            found = member.get(key)
            assert found is not None
            assert found.version == (before.version + 1 if before else 1)
            now = {**now, key: found}
        else:
            end = random_.choice((b"", b"", b"%02d" % random_.randint(0, 39)))
            doomed = [k for k in now if (key <= k < end if end else k == key)]
            assert member.delete(key, end) == len(doomed)
            revision = member.store.revision
            now = {k: kv for k, kv in now.items() if k not in doomed}
        states[revision] = now
        if random_.random() < 0.02:
            member.commit()
    return states


def expected(state: dict[bytes, Any], request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
    """The rules of etcd's Range, one after the other."""
    key, end = request.key, request.range_end
    kvs = [
        state[k]
        for k in sorted(state)
        if (k == key if not end else k >= key and (end == b"\0" or k < end))
    ]
    count = len(kvs)
    bounds = (
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
    if request.sort_order == 0 and not any(bounds) and request.limit > 0:
        kvs = kvs[: request.limit + 1]
    kvs = [
        kv
        for kv in kvs
        if (not bounds[0] or kv.mod_revision >= bounds[0])
        and (not bounds[1] or kv.mod_revision <= bounds[1])
        and (not bounds[2] or kv.create_revision >= bounds[2])
        and (not bounds[3] or kv.create_revision <= bounds[3])
    ]
    name = ("key", "version", "create_revision", "mod_revision", "value")[request.sort_target]
    kvs.sort(key=lambda kv: getattr(kv, name), reverse=request.sort_order == 2)
    more = 0 < request.limit < len(kvs)
    if more:
        kvs = kvs[: request.limit]
    if request.count_only:
        return rpc_pb2.RangeResponse(count=count)
    if request.keys_only:
        kvs = [kv_pb2.KeyValue.FromString(kv.SerializeToString()) for kv in kvs]
        for kv in kvs:
            kv.ClearField("value")
    return rpc_pb2.RangeResponse(kvs=kvs, count=count, more=more)


def draw(random_: random.Random, revisions: list[int]) -> rpc_pb2.RangeRequest:
    request = rpc_pb2.RangeRequest(
        key=b"%02d" % random_.randint(0, 39),
        range_end=random_.choice((b"", b"\0", b"%02d" % random_.randint(0, 40))),
        limit=random_.choice((0, 0, 1, 2, 5, 30)),
        revision=random_.choice((0, random_.choice(revisions))),
    )
    if random_.random() < 0.5:
        request.sort_order = random_.randint(0, 2)
        request.sort_target = random_.randint(0, 4)
    if random_.random() < 0.3:
        setattr(
            request,
            random_.choice(
                (
                    "min_mod_revision",
                    "max_mod_revision",
                    "min_create_revision",
                    "max_create_revision",
                )
            ),
            random_.choice(revisions),
        )
    request.keys_only = random_.random() < 0.1
    request.count_only = random_.random() < 0.1
    return request


@pytest.mark.parametrize("slice_keys", [500, 3])
def test_every_option_at_every_revision(
    member: Member, monkeypatch: pytest.MonkeyPatch, slice_keys: int
) -> None:
    monkeypatch.setattr(ranges, "SLICE_KEYS", slice_keys)
    states = history(member, seed=slice_keys)
    random_ = random.Random(5)
    for _ in range(600):
        request = draw(random_, list(states))
        want = expected(states[request.revision or member.store.revision], request)
        found = member.store.range(request)
        assert decoded(found.kvs) == list(want.kvs), request
        assert (found.count, found.more) == (want.count, want.more), request
        assert found.revision == member.store.revision


def test_slices_are_of_the_revision_at_their_start(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between any two slices the store may be written, committed, compacted and purged.
    monkeypatch.setattr(ranges, "SLICE_KEYS", 3)
    states = history(member, seed=9)
    random_ = random.Random(9)
    for number in range(150):
        low = max(1, member.store.compacted)
        readable = [revision for revision in states if revision >= low]
        request = draw(random_, readable)
        want = expected(states[request.revision or member.store.revision], request)
        at_start = member.store.revision
        slices = member.store.range_slices(request)
        found: list[bytes] = []
        for part in slices:
            found += part
            key = b"%02d" % random_.randint(0, 39)
            if random_.random() < 0.6:
                member.put(key, b"later")
            else:
                member.delete(key)
            if number % 10 == 0 and member.store.compacted < member.store.revision:
                member.store.compact(member.store.revision)
            assert not member.store.purge(2) or member.store.purging
            if random_.random() < 0.1:
                member.commit()
        assert decoded(found) == list(want.kvs), request
        assert (slices.count, slices.more, slices.revision) == (want.count, want.more, at_start)
        member.purge()
        assert not member.store.purging
        states[member.store.revision] = {kv.key: kv for kv in decoded(member.range(*ALL).kvs)}


def test_abandoned_slices_let_the_purge_go_on(member: Member) -> None:
    for n in range(10):
        member.put(b"a", b"%d" % n)
    slices = member.store.range_slices(rpc_pb2.RangeRequest(key=b"a", range_end=b"\0"))
    member.store.compact(member.store.revision)
    assert member.store.purge()
    assert member.store.purging
    slices.close()
    slices.close()
    member.purge()
    assert not member.store.purging


def test_slices_end_early_on_large_values(member: Member) -> None:
    # A slice of 500 keys of a megabyte each would hold the loop for long.
    for n in range(8):
        member.put(b"%d" % n, bytes(700_000))
    slices = member.store.range_slices(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
    assert [len(part) for part in slices if part] == [2, 2, 2, 2]


@pytest.mark.parametrize("behind", [1, 150])
def test_counting_in_the_past_both_ways(member: Member, behind: int) -> None:
    # Few changes since: count back from now. Many: walk the keys. Both must agree with the truth.
    states = history(member, seed=behind, changes=200)
    for n in range(100):
        member.put(b"x%d" % n)
        states[member.store.revision] = {**states[member.store.revision - 1], b"x%d" % n: None}
    asked = member.store.revision - behind
    known = max(revision for revision in states if revision <= asked)
    request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", revision=asked, count_only=True)
    assert member.store.range(request).count == len(states[known])


def test_revisions_that_cannot_be_read(member: Member) -> None:
    for n in range(5):
        member.put(b"a", b"%d" % n)
    member.store.compact(4)
    with pytest.raises(FutureRevision) as future:
        member.range(b"a", revision=7)
    assert (future.value.requested, future.value.current) == (7, 6)
    with pytest.raises(Compacted) as compacted:
        member.range(b"a", revision=3)
    assert (compacted.value.requested, compacted.value.compacted) == (3, 4)
    # The compacted revision itself stays readable.
    assert decoded(member.range(b"a", revision=4).kvs)[0].value == b"2"
    assert decoded(member.range(b"a", revision=-1).kvs)[0].value == b"4"


def test_faulty_requests(member: Member) -> None:
    with pytest.raises(KeyNotProvided):
        member.range(b"")
    with pytest.raises(InvalidSort):
        member.range(b"a", sort_order=3)
    with pytest.raises(InvalidSort):
        member.range(b"a", sort_target=5)


def test_an_end_before_the_key_is_empty_and_no_error(member: Member) -> None:
    member.put(b"b")
    found = member.range(b"c", b"a")
    assert (found.kvs, found.count, found.more) == ([], 0, False)


@pytest.mark.pure_python
def test_count_and_limit_do_not_walk_the_range(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2000):
        member.put(b"%04d" % n)
    visited = 0
    current = member.store.index.current

    def counting(key: bytes) -> bytes | None:
        nonlocal visited
        visited += 1
        return current(key)

    monkeypatch.setattr(member.store.index, "current", counting)
    assert member.range(*ALL, count_only=True).count == 2000
    assert visited == 0
    found = member.range(b"0500", b"\0", limit=10)
    assert (len(found.kvs), found.count, found.more) == (10, 1500, True)
    assert visited == 11
    assert member.store.range_weight(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")) == 2000
