"""HashKV against numbers that a real etcd 3.4.23 gave for the same requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore.mvcc.errors import Compacted, FutureRevision
from tests.mvcc.hash_script import REQUESTS, VECTORS

if TYPE_CHECKING:
    from tests.mvcc.harness import Member


@pytest.mark.parametrize("place", ["buffer", "backend"])
@pytest.mark.parametrize("purge", [True, False])
def test_the_hashes_are_etcds(member: Member, place: str, purge: bool) -> None:
    vectors = iter(VECTORS)
    for name, request in REQUESTS:
        if name == "compact":
            member.store.compact(request)
            if purge:
                member.purge()
        elif name == "hash":
            assert member.store.hash_kv(request)[:2] == next(vectors), request
        else:
            getattr(member.store, name)(request)
        if place == "backend":
            member.commit()
    assert next(vectors, None) is None


def test_which_revisions_can_be_hashed(member: Member) -> None:
    for n in range(5):
        member.put(b"a", b"%d" % n)
    assert member.store.hash_kv(0) == member.store.hash_kv(6)
    assert member.store.hash_kv(4)[2] == 4
    with pytest.raises(FutureRevision):
        member.store.hash_kv(7)
    member.store.compact(4)
    with pytest.raises(Compacted):
        member.store.hash_kv(3)
    # etcd 3.6 answers at the compaction revision itself, 3.4 does not.
    assert member.store.hash_kv(4)[1:] == (4, 4)


@pytest.mark.parametrize("asked", [-1, -7])
def test_below_zero_no_record_is_hashed(member: Member, asked: int) -> None:
    # Unlike a range's, it is not "now". The number is CRC-32C of the bucket's name, as etcd's.
    member.put(b"a", b"1")

    assert member.store.hash_kv(asked) == (1084519789, -1, asked)


def test_a_hash_in_slices_is_of_its_start(member: Member) -> None:
    for n in range(3500):
        member.put(b"%d" % (n % 50), b"%d" % n)
        if n == 3000:
            member.store.compact(1000)
    expected = member.store.hash_kv(0)
    steps = 0
    slices = member.store.hash_slices(0)
    for _ in slices:
        steps += 1
        member.put(b"1", b"later")
        if steps == 1:
            member.store.compact(member.store.revision)
        member.store.purge(10)
        member.commit()
    assert steps >= 2
    assert slices.result == expected
    member.purge()
    assert not member.store.purging
