"""Revisions, puts, deletions, buffer and restart, over both backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore.mvcc.errors import (
    KeyNotFound,
    KeyNotProvided,
    LeaseNotFound,
    LeaseProvided,
    ValueProvided,
)
from kvstore.mvcc.events import DELETE, PUT
from kvstore.mvcc.marks import AppliedMark
from kvstore.pb import kv_pb2, rpc_pb2
from tests.mvcc.harness import decoded

if TYPE_CHECKING:
    from tests.mvcc.harness import Member


def test_an_empty_store_is_at_revision_one(member: Member) -> None:
    assert (member.store.revision, member.store.compacted) == (1, -1)


def test_every_change_takes_one_revision_and_counts_versions(member: Member) -> None:
    assert member.put(b"a", b"1") == 2
    assert member.put(b"a", b"2") == 3
    assert member.put(b"b", b"x") == 4
    assert member.get(b"a") == kv_pb2.KeyValue(
        key=b"a", value=b"2", create_revision=2, mod_revision=3, version=2
    )


def test_deletion_ends_a_life_and_the_next_put_begins_one(member: Member) -> None:
    member.put(b"a", b"1")
    member.put(b"a", b"2")
    assert member.delete(b"a") == 1
    assert member.store.revision == 4
    assert member.get(b"a") is None
    member.put(b"a", b"3")
    assert member.get(b"a") == kv_pb2.KeyValue(
        key=b"a", value=b"3", create_revision=5, mod_revision=5, version=1
    )


def test_a_deletion_of_nothing_makes_no_revision_and_no_event(member: Member) -> None:
    assert member.delete(b"a", b"z") == 0
    assert member.store.revision == 1
    assert member.store.take_events() == []


def test_a_range_deletion_is_one_revision_with_events_in_key_order(member: Member) -> None:
    for key in (b"c", b"a", b"b", b"z"):
        member.put(key)
    member.store.take_events()
    assert member.delete(b"a", b"z") == 3
    [(revision, events)] = member.store.take_events()
    assert revision == member.store.revision == 6
    assert [(event.kind, event.key, event.revision) for event in events] == [
        (DELETE, b"a", 6),
        (DELETE, b"b", 6),
        (DELETE, b"c", 6),
    ]
    assert decoded([events[0].kv]) == [kv_pb2.KeyValue(key=b"a", mod_revision=6)]


def test_a_put_event_carries_the_stored_key_value(member: Member) -> None:
    member.put(b"a", b"1")
    [(revision, [event])] = member.store.take_events()
    assert (revision, event.kind) == (2, PUT)
    assert [event.kv] == member.range(b"a").kvs


def test_from_key_deletes_everything_at_or_after(member: Member) -> None:
    for key in (b"a", b"b", b"c"):
        member.put(key)
    assert member.delete(b"b", b"\0") == 2
    assert member.range(b"\0", b"\0").count == 1


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (rpc_pb2.PutRequest(value=b"x"), KeyNotProvided),
        (rpc_pb2.PutRequest(key=b"a", value=b"x", ignore_value=True), ValueProvided),
        (rpc_pb2.PutRequest(key=b"a", lease=1, ignore_lease=True), LeaseProvided),
        (rpc_pb2.PutRequest(key=b"a", ignore_value=True), KeyNotFound),
        (rpc_pb2.PutRequest(key=b"a", ignore_lease=True), KeyNotFound),
        (rpc_pb2.PutRequest(key=b"a", lease=99), LeaseNotFound),
    ],
)
def test_a_refused_put_changes_nothing(
    member: Member, request_: rpc_pb2.PutRequest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        member.store.put(request_)
    assert member.store.revision == 1
    assert member.store.take_events() == []
    assert member.store.buffered_records == 0


def test_leases_follow_their_keys(member: Member) -> None:
    member.leases.keys = {7: set(), 8: set()}
    member.put(b"a", b"1", lease=7)
    assert member.leases.keys == {7: {b"a"}, 8: set()}
    member.put(b"a", b"2", lease=8)
    assert member.leases.keys == {7: set(), 8: {b"a"}}
    member.put(b"a", b"3", ignore_lease=True)
    found = member.get(b"a")
    assert found is not None
    assert found.lease == 8
    # A put without a lease detaches.
    member.put(b"a", b"4")
    assert member.leases.keys == {7: set(), 8: set()}
    member.put(b"a", b"5", lease=7)
    member.delete(b"a")
    assert member.leases.keys == {7: set(), 8: set()}


def test_a_lease_end_deletes_its_keys_in_one_revision(member: Member) -> None:
    member.leases.keys = {7: set()}
    for key in (b"b", b"a", b"c"):
        member.put(key, lease=7)
    member.store.take_events()
    assert member.store.delete_keys([b"a", b"b", b"gone"]) == 5
    [(_, events)] = member.store.take_events()
    assert [event.key for event in events] == [b"a", b"b"]
    assert member.leases.keys == {7: {b"c"}}
    assert member.store.delete_keys([b"a"]) == 5


def test_prev_kv_and_ignore_value(member: Member) -> None:
    member.put(b"a", b"1")
    _, prev = member.store.put(rpc_pb2.PutRequest(key=b"a", ignore_value=True, prev_kv=True))
    assert prev is not None
    assert decoded([prev])[0].value == b"1"
    found = member.get(b"a")
    assert found is not None
    assert (found.value, found.version) == (b"1", 2)
    _, deleted, prevs = member.store.delete_range(
        rpc_pb2.DeleteRangeRequest(key=b"a", prev_kv=True)
    )
    assert deleted == 1
    assert decoded(prevs)[0].version == 2


def test_reads_merge_live_sealed_and_committed(member: Member) -> None:
    # The same history must read the same wherever its records are.
    member.put(b"a", b"1")
    member.commit()
    member.put(b"a", b"2")
    member.put(b"b", b"1")
    batch = member.store.seal(AppliedMark(2, 1))
    assert batch is not None
    member.put(b"a", b"3")
    expected = {2: b"1", 3: b"2", 4: b"2", 5: b"3"}

    def check() -> None:
        for revision, value in expected.items():
            found = member.get(b"a", revision)
            assert found is not None
            assert found.value == value
        events, following = member.store.events_between(2, 9, 100)
        assert [revision for revision, _ in events] == [2, 3, 4, 5]
        assert following == 6

    check()
    assert member.store.seal(AppliedMark(3, 1)) is None, "one batch at a time"
    member.backend.commit(batch.changes(), batch.puts)
    check()
    member.store.committed(batch)
    check()
    assert member.store.sealed_bytes == 0


def test_what_is_committed_survives_a_restart_and_the_rest_does_not(member: Member) -> None:
    member.leases.keys = {7: set()}
    member.put(b"a", b"1", lease=7)
    member.put(b"b", b"1")
    member.delete(b"b")
    member.store.write("meta", b"mine", b"x")
    member.commit()
    member.put(b"a", b"2")
    member.restart()
    assert member.store.revision == 4
    assert member.store.applied == AppliedMark(1, 1)
    assert member.leases.keys == {7: {b"a"}}
    assert member.backend.get("meta", b"mine") == b"x"
    member.put(b"a", b"3")
    found = member.get(b"a")
    assert found is not None
    assert (found.mod_revision, found.version) == (5, 2)
    assert member.leases.keys == {7: set()}


def test_seal_without_changes_is_nothing_to_commit(member: Member) -> None:
    member.put(b"a")
    member.commit()
    assert member.store.seal(member.store.applied) is None
    # An entry without changes still moves the mark, so that the log can be released.
    assert member.store.seal(AppliedMark(9, 2, b"voters")) is not None


def test_the_configuration_survives(member: Member) -> None:
    batch = member.store.seal(AppliedMark(5, 2, b"voters"))
    assert batch is not None
    member.backend.commit(batch.changes(), batch.puts)
    member.store.committed(batch)
    member.restart()
    assert member.store.applied == AppliedMark(5, 2, b"voters")


def test_buffer_sizes_are_visible(member: Member) -> None:
    assert (member.store.buffered_bytes, member.store.buffered_records) == (0, 0)
    member.put(b"a", b"v" * 100)
    assert member.store.buffered_records == 1
    assert 100 < member.store.buffered_bytes < 200
    member.commit()
    assert (member.store.buffered_bytes, member.store.buffered_records) == (0, 0)
