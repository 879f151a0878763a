"""The index and leases built at start against those that grew with the changes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from kvstore.mvcc import keyvalue, revision
from kvstore.mvcc.errors import CorruptStore
from kvstore.mvcc.rebuild import rebuild
from tests.mvcc.harness import Member, stored
from tests.mvcc.requests import LEASES, Source

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("seed", range(6))
def test_a_rebuilt_store_equals_the_one_that_grew(seed: int, tmp_path: Path) -> None:
    source = Source(random.Random(seed))
    member = Member("memory", tmp_path, *LEASES)
    for _ in range(300):
        lease = source.random.choice((0, 0, *LEASES))
        value = source.random.choice((b"", b"v", b"v" * 127, b"v" * 128, b"v" * 20000))
        key = source.random.choice((source.key(), b"\x01" * 128, b"k" * 300))
        if source.maybe(0.7):
            member.put(key, value, lease=lease)
        else:
            member.delete(key, source.random.choice((b"", b"b")))
        if source.maybe(0.02) and member.store.revision > member.store.compacted:
            member.store.compact(member.store.revision)
            member.purge()
    member.commit()
    grown, leases, revision_ = member.store, member.leases.keys, member.store.revision
    member.restart()
    rebuilt = member.store
    assert rebuilt.revision == revision_
    assert {key: bytes(h) for key, h in rebuilt.index.histories.items()} == {
        key: bytes(h) for key, h in grown.index.histories.items()
    }
    assert list(rebuilt.index.live) == list(grown.index.live)
    assert list(rebuilt.index.deleted) == list(grown.index.deleted)
    assert member.leases.keys == leases
    assert rebuilt.hash_kv(0) == grown.hash_kv(0)


def test_long_keys_and_lengths_at_varint_borders(tmp_path: Path) -> None:
    member = Member("memory", tmp_path, 7)
    # A key of 0x01 bytes whose length ends in the varint byte 0x01: a search for it would hit
    # one byte too early.
    for key in (b"\x01" * 128, b"\x01" * 129, b"k" * 127, b"k" * 16384, b"k" * 16385):
        for size in (0, 1, 127, 128, 16383, 16384):
            member.put(key, b"v" * size, lease=7 if size % 2 else 0)
            rebuilt = rebuild(stored(member))
            assert set(rebuilt.index.histories) == set(member.store.index.histories)
            assert rebuilt.leases == dict.fromkeys(member.leases.keys[7], 7)


def test_a_load_in_one_layout_and_what_interrupts_it(tmp_path: Path) -> None:
    # Batches of first puts alone are taken by columns; every change among them ends that, and a key
    # that comes back after a deletion keeps its old history.
    def grown(member: Member) -> None:
        member.commit()
        rebuilt = rebuild(stored(member))
        index = member.store.index
        assert {key: bytes(h) for key, h in rebuilt.index.histories.items()} == {
            key: bytes(h) for key, h in index.histories.items()
        }
        assert list(rebuilt.index.live) == list(index.live)
        assert list(rebuilt.index.deleted) == list(index.deleted)
        held = dict.fromkeys(member.leases.keys[7], 7)
        assert rebuilt.leases == held

    member = Member("memory", tmp_path, 7)
    for value in (b"v", b"v" * 127, b"v" * 128, b"v" * 16383, b"v" * 16384, b""):
        for number in range(300):
            member.put(b"%d/%03d" % (len(value), number), value)
    grown(member)
    for number in range(300):  # version 2, 3
        member.put(b"128/%03d" % number, b"w" * 128)
        member.put(b"128/%03d" % (number // 2), b"w" * 128)
    grown(member)
    member.put(b"128/000", b"w", lease=7)
    assert member.delete(b"1", b"2") > 600
    for number in range(300):  # first puts again, of keys with a history
        member.put(b"128/%03d" % number, b"w" * 128)
    grown(member)
    for number in range(300):  # the same size, with a lease in the place of value bytes
        member.put(b"200/%03d" % number, b"w" * 126, lease=7 if number == 200 else 0)
        member.put(b"201/%03d" % number, b"w" * 128)
    for number in range(400):
        member.put(b"128/%03d" % number, b"w" * 128)
    grown(member)


@pytest.mark.parametrize("row", [250, 255])  # within a batch, and its last
def test_a_damaged_record_in_a_load_is_found(row: int, tmp_path: Path) -> None:
    member = Member("memory", tmp_path)
    for number in range(300):
        member.put(b"%03d" % number, b"v" * 200)
    member.commit()
    records = list(stored(member))
    key, record = records[row]
    tags = [0, 5, 8, 11]  # of key, create revision, mod revision, version
    assert bytes(record[at] for at in tags) == b"\x0a\x10\x18\x20"
    for damaged in (
        (key, record[:-1]),
        (key[:8] + b"?" + key[9:], record),
        (key + b"?", record),
        *((key, record[:at] + b"\x7f" + record[at + 1 :]) for at in tags),
    ):
        with pytest.raises(CorruptStore):
            rebuild([*records[:row], damaged, *records[row + 1 :]])


@pytest.mark.parametrize(
    ("key", "record"),
    [
        (b"short", keyvalue.encode_tombstone(b"a")),
        (revision.pack(2, 0)[:16] + b"??", keyvalue.encode_tombstone(b"a")),
        (revision.pack(2, 0), b"\x0a"),
        (revision.pack(2, 0), b""),
        (revision.pack(2, 0), b"\x12\x01a\x10\x02\x18\x02\x20\x01"),
        (revision.pack(2, 0), keyvalue.encode(b"a", 2, 2, 1, b"vvvv", 0)[:-2]),
    ],
)
def test_damaged_records_stop_the_start(key: bytes, record: bytes) -> None:
    with pytest.raises(CorruptStore):
        rebuild([(key, record)])
