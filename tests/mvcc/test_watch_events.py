"""What watch events carry and how they are cut, rule by rule: etcd-semantics 1b and 2.8."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest

from kvstore.mvcc import watch_encode
from kvstore.pb import rpc_pb2
from tests.mvcc.watch_rig import Client, Rig

NOPUT = rpc_pb2.WatchCreateRequest.NOPUT
NODELETE = rpc_pb2.WatchCreateRequest.NODELETE


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def client(rig: Rig) -> Client:
    return rig.open()


# what events carry


def test_one_revision_is_one_response(rig: Rig, client: Client) -> None:
    client.create(b"a", b"z")
    rig.txn((b"b", b"1"), (b"a", b"2"), (b"y", b"3"))

    # In the order of the operations, not of the keys.
    assert client.shown()[1:] == ["@2 #0 b=1@2 a=2@2 y=3@2"]


def test_filters_drop_events_and_leave_no_empty_response(rig: Rig, client: Client) -> None:
    client.create(b"a", b"z", filters=[NOPUT])
    client.create(b"a", b"z", filters=[NODELETE])
    client.create(b"a", b"z", filters=[NODELETE, NOPUT])
    client.take()

    rig.put(b"k", b"1")
    rig.delete(b"k")
    rig.put(b"l", b"2")
    rig.txn((b"l", None), (b"m", b"3"))

    assert sorted(client.shown()) == sorted(
        [
            "@2 #1 k=1@2",
            "@3 #0 -k@3",
            "@4 #1 l=2@4",
            "@5 #0 -l@5",
            "@5 #1 m=3@5",
        ]
    )


def test_filters_hold_for_history_too(rig: Rig, client: Client) -> None:
    rig.put(b"k", b"1")
    rig.delete(b"k")
    client.create(b"k", start_revision=1, filters=[NOPUT])
    client.create(b"k", start_revision=1, filters=[NODELETE, NOPUT])
    rig.catch_up()

    assert client.shown()[2:] == ["@3 #0 -k@3"]


def test_prev_kv_is_the_value_before(rig: Rig, client: Client) -> None:
    client.create(b"k", prev_kv=True)
    client.create(b"k")
    rig.put(b"k", b"1")
    rig.put(b"k", b"2")
    rig.delete(b"k")
    rig.put(b"k", b"3")
    lines = [line for line in client.shown() if "#0" in line]

    assert lines[1:] == ["@2 #0 k=1@2", "@3 #0 k=2<1@3", "@4 #0 -k<2@4", "@5 #0 k=3@5"]


def test_prev_kv_is_missing_where_it_was_compacted(rig: Rig, client: Client) -> None:
    for value in (b"1", b"2", b"3", b"4"):
        rig.put(b"k", value)
    rig.compact(3)

    client.create(b"k", start_revision=3, prev_kv=True)
    rig.catch_up()

    # The value at revision 2 is gone; that at 3, the boundary, can still be read.
    assert client.shown()[1:] == ["@5 #0 k=2@3 k=3<2@4 k=4<3@5"]


def test_a_put_that_recreates_within_its_revision_has_no_prev_kv(rig: Rig, client: Client) -> None:
    # etcd leaves prev_kv out of every put that created its key, whatever was before.
    rig.put(b"k", b"1")
    client.create(b"k", prev_kv=True)
    request = rpc_pb2.TxnRequest()
    request.success.add().request_delete_range.MergeFrom(
        rpc_pb2.DeleteRangeRequest(key=b"\x00", range_end=b"\x00")
    )
    request.success.add().request_put.MergeFrom(rpc_pb2.PutRequest(key=b"k", value=b"2"))
    rig.store.txn(request)
    rig.notify()

    assert client.shown()[1:] == ["@3 #0 -k<1@3 k=2@3"]


# sizes


def test_fragments_only_for_those_who_asked(rig: Rig) -> None:
    rig = Rig(fragment_bytes=1000)
    client = rig.open()
    client.create(b"a", b"z", fragment=True)
    client.create(b"a", b"z")
    client.take()

    rig.txn(*((b"k%d" % number, b"x" * 200) for number in range(10)))

    whole = [response for response in client.unread if response.watch_id == 1]
    parts = [response for response in client.unread if response.watch_id == 0]
    assert [len(response.events) for response in whole] == [10]
    assert not whole[0].fragment
    assert len(parts) > 1
    assert [part.fragment for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(part.ByteSize() < 1000 for part in parts)
    assert [event for part in parts for event in part.events] == list(whole[0].events)


def test_one_event_above_the_limit_is_not_split(rig: Rig) -> None:
    rig = Rig(fragment_bytes=1000)
    client = rig.open()
    client.create(b"a", b"z", fragment=True)
    rig.txn((b"k", b"x" * 5000), (b"l", b"y"), (b"m", b"x" * 5000))

    parts = client.take()[1:]
    assert [[event.kv.key for event in part.events] for part in parts] == [[b"k"], [b"l"], [b"m"]]
    assert [part.fragment for part in parts] == [True, True, False]


def test_a_small_response_is_not_fragmented(rig: Rig, client: Client) -> None:
    client.create(b"a", b"z", fragment=True)
    rig.txn((b"k", b"1"), (b"l", b"2"))

    assert client.shown()[1:] == ["@2 #0 k=1@2 l=2@2"]


def test_history_is_cut_between_revisions_only(rig: Rig, client: Client) -> None:
    # Python's gRPC clients receive at most 4 MiB; and a revision is one response.
    value = b"x" * 100_000
    for _ in range(12):
        rig.txn((b"a", value), (b"b", value))
    big = b"x" * (watch_encode.BATCH_BYTES_MAX + 1)
    rig.txn((b"a", big), (b"b", big))
    client.create(b"a", b"z", start_revision=1)
    rig.catch_up()

    responses = client.take()[1:]
    revisions = [[event.kv.mod_revision for event in response.events] for response in responses]
    assert list(chain(*revisions)) == [revision for revision in range(2, 15) for _ in range(2)]
    assert len(revisions) > 5
    for earlier, later in pairwise(revisions):
        assert earlier[-1] < later[0]
    for response in responses[:-1]:
        assert response.ByteSize() <= watch_encode.BATCH_BYTES_MAX + 200
    assert responses[-1].ByteSize() > 2 * watch_encode.BATCH_BYTES_MAX


def test_catching_up_reads_the_store_in_slices(rig: Rig, client: Client) -> None:
    # Tens of thousands of revisions must not hold the loop.
    for number in range(3500):
        rig.store.put(rpc_pb2.PutRequest(key=b"k", value=b"%d" % number))
    rig.notify()
    client.create(b"k", start_revision=2)
    client.take()

    slices = 0
    received = 0
    while rig.hub.has_work:
        rig.hub.catch_up(1000)
        slices += 1
        received += sum(len(response.events) for response in client.take())
        assert received <= slices * 1000
    assert (slices, received) == (4, 3500)


def test_a_slice_is_bounded_in_bytes(rig: Rig, client: Client) -> None:
    big = b"x" * (1 << 20)
    for _ in range(300):
        rig.store.put(rpc_pb2.PutRequest(key=b"k", value=big))
    rig.notify()
    client.create(b"x", start_revision=1)

    assert rig.hub.catch_up(1000)  # 300 revisions fit the count, 300 MiB do not fit a slice
    rig.catch_up()
    assert client.shown() == ["@301 #0 created"]
