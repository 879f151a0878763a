"""Slow streams, progress, replaced stores and what watchers cost, rule by rule."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Sequence

import pytest

from kvstore.mvcc import watch_encode
from kvstore.mvcc.store import Store
from kvstore.mvcc.watch import WatchHub
from kvstore.pb import rpc_pb2
from tests.mvcc.watch_rig import Client, NoLeases, Rig

SECOND_NS = 1_000_000_000


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def client(rig: Rig) -> Client:
    return rig.open()


# slow streams


def test_a_full_stream_catches_up_from_where_it_was(rig: Rig, client: Client) -> None:
    client.create(b"k")
    client.create(b"k", b"z")
    rig.put(b"k", b"1")
    client.room = 1  # the next message is the last for now
    for value in (b"2", b"3", b"4"):
        rig.put(b"k", value)
    rig.catch_up()

    seen = client.shown()
    assert len(seen) == 5  # two created, two of revision 2, one of revision 3
    assert rig.hub.statistics().behind == 2

    client.drained()
    rig.catch_up()
    seen += client.shown()
    by_id = {
        watch_id: [line for line in seen if f"#{watch_id} " in line and "created" not in line]
        for watch_id in (0, 1)
    }
    assert rig.hub.statistics().behind == 0
    for lines in by_id.values():
        events = " ".join(lines).split()
        assert [word for word in events if "=" in word] == ["k=1@2", "k=2@3", "k=3@4", "k=4@5"]


def test_a_full_stream_does_not_slow_others(rig: Rig) -> None:
    slow, quick = rig.open(), rig.open()
    slow.create(b"k")
    quick.create(b"k")
    slow.room = 1
    for _ in range(5):
        rig.put(b"k")
        rig.catch_up()

    assert len(slow.shown()) == 2
    assert len(quick.shown()) == 6


def test_a_full_stream_whose_history_is_compacted_is_canceled(rig: Rig, client: Client) -> None:
    client.create(b"k")
    client.room = 1
    for _ in range(5):
        rig.put(b"k")
    rig.compact(5)
    client.drained()
    rig.catch_up()

    assert client.shown() == ["@1 #0 created", "@2 #0 k=v@2", "@0 #0 canceled compacted=5"]


def test_a_compaction_spares_those_who_need_nothing_of_it(rig: Rig, client: Client) -> None:
    rig.put(b"k")
    client.create(b"k")
    client.create(b"k", start_revision=99)
    client.take()
    for _ in range(3):
        rig.put(b"k")
    rig.compact(5)
    rig.put(b"k")

    assert [line.split()[1] for line in client.shown()] == ["#0"] * 4


def test_fragments_of_one_response_are_never_torn_by_a_full_stream(rig: Rig) -> None:
    # Resuming within a revision is impossible, so it goes out whole.
    rig = Rig(fragment_bytes=1000)
    client = rig.open()
    client.create(b"a", b"z", fragment=True)
    client.take()
    client.room = 500
    changes = [(b"k%d" % number, b"x" * 200) for number in range(10)]
    rig.txn(*changes)
    rig.txn(*changes)

    keys = [event.kv.key for response in client.unread for event in response.events]
    assert keys == [key for key, _ in changes]
    assert not client.take()[-1].fragment
    client.drained()
    rig.catch_up()
    keys = [event.kv.key for response in client.take() for event in response.events]
    assert keys == [key for key, _ in changes]


def test_a_stream_that_ends_while_it_is_sent_to_is_no_problem(rig: Rig) -> None:
    # The RPC engine may find a dead connection within send and close the stream at once.
    client = rig.open()
    other = rig.open()
    for stream in (client, other):
        stream.create(b"k")
        stream.create(b"k")
        stream.take()

    def dies(messages: Sequence[bytes]) -> bool:
        client.stream.close()
        return False

    client.stream.send_all = dies
    rig.put(b"k")
    rig.put(b"k")

    assert len(other.shown()) == 4
    assert rig.hub.statistics().streams == 1


# progress


def test_asked_progress_is_answered_for_all_watchers_at_once(rig: Rig, client: Client) -> None:
    client.create(b"k")
    client.create(b"x")
    client.take()
    rig.put(b"y")

    client.ask_progress()
    client.ask_progress()

    assert client.shown() == ["@2 #-1", "@2 #-1"]


def test_asked_progress_waits_until_the_last_watcher_is_synced(rig: Rig, client: Client) -> None:
    # etcd drops the question; a client that asks once would wait forever (#20242).
    rig.put(b"k")
    client.create(b"x")
    client.create(b"k", start_revision=1)
    client.take()

    client.ask_progress()
    assert client.shown() == []
    rig.catch_up()

    assert client.shown() == ["@2 #1 k=v@2", "@2 #-1"]
    rig.put(b"y")
    assert client.shown() == []


def test_asked_progress_comes_when_the_unsynced_watcher_is_canceled(
    rig: Rig, client: Client
) -> None:
    rig.put(b"k")
    client.create(b"x")
    client.create(b"k", start_revision=1)
    client.ask_progress()
    client.take()

    client.cancel(1)

    assert client.shown() == ["@2 #1 canceled", "@2 #-1"]


def test_asked_progress_of_a_full_stream_comes_after_its_events(rig: Rig, client: Client) -> None:
    client.create(b"k")
    client.take()
    client.room = 1
    rig.put(b"k")
    rig.put(b"k")
    client.ask_progress()
    rig.catch_up()
    client.drained()
    rig.catch_up()

    assert client.shown() == ["@2 #0 k=v@2", "@3 #0 k=v@3", "@3 #-1"]


def test_a_stream_without_watchers_gets_no_progress(rig: Rig, client: Client) -> None:
    client.ask_progress()
    client.create(b"k")
    rig.put(b"x")

    assert client.shown() == ["@1 #0 created"]


def test_a_future_watcher_gets_neither_older_events_nor_earlier_progress(
    rig: Rig, client: Client
) -> None:
    # etcd #20221: an earlier progress would make its client resume too early.
    client.create(b"k", start_revision=5, progress_notify=True)
    client.take()
    rig.hub.progress(1)
    for value in (b"2", b"3"):
        rig.put(b"k", value)
        client.ask_progress()
        rig.hub.progress(10**12 * int(value))
        rig.catch_up()
    rig.put(b"k", b"4")
    rig.hub.progress(10**13)
    assert client.shown() == []

    rig.put(b"k", b"5")
    assert client.shown() == ["@5 #0 k=5@5", "@5 #-1"]


def test_a_future_start_passed_by_within_one_entry_loses_nothing(rig: Rig, client: Client) -> None:
    client.create(b"k", start_revision=4)
    client.create(b"k", start_revision=6)
    client.take()
    for value in (b"2", b"3", b"4", b"5"):
        rig.store.put(rpc_pb2.PutRequest(key=b"k", value=value))
    rig.notify()
    rig.catch_up()
    rig.put(b"k", b"6")

    assert sorted(client.shown()) == ["@5 #0 k=4@4 k=5@5", "@6 #0 k=6@6", "@6 #1 k=6@6"]


def test_periodic_progress_only_when_nothing_else_was_sent() -> None:
    rig = Rig(progress_interval_ns=10 * SECOND_NS, jitter=lambda bound: bound // 2)
    client = rig.open()
    client.create(b"k", progress_notify=True)
    client.create(b"k")
    client.take()
    rig.hub.progress(0 + 1)  # schedules the first for 10.5 s

    rig.put(b"x")
    rig.hub.progress(10 * SECOND_NS)
    assert client.shown() == []
    rig.hub.progress(11 * SECOND_NS)
    assert client.shown() == ["@2 #0"]
    rig.hub.progress(12 * SECOND_NS)
    assert client.shown() == []
    rig.put(b"k")
    client.take()
    rig.hub.progress(22 * SECOND_NS)  # an event was sent in this interval
    assert client.shown() == []
    rig.hub.progress(33 * SECOND_NS)
    assert client.shown() == ["@3 #0"]


def test_periodic_progress_says_nothing_of_those_that_are_behind() -> None:
    rig = Rig(progress_interval_ns=SECOND_NS)
    client = rig.open()
    rig.put(b"k")
    client.create(b"k", start_revision=1, progress_notify=True)
    client.take()
    rig.hub.progress(1)
    rig.hub.progress(2 * SECOND_NS)

    assert client.shown() == []
    rig.catch_up()
    rig.hub.progress(4 * SECOND_NS)
    rig.hub.progress(6 * SECOND_NS)
    assert client.shown() == ["@2 #0 k=v@2", "@2 #0"]


# the store behind


def test_a_store_replaced_by_a_snapshot_serves_what_was_skipped(rig: Rig, client: Client) -> None:
    client.create(b"k")
    client.create(b"k", start_revision=4)
    client.create(b"k", start_revision=9)
    rig.put(b"k", b"2")
    other = Rig()
    for value in (b"2", b"3", b"4", b"5"):
        other.put(b"k", value)
    client.take()

    rig.hub.restored(other.store)
    rig.catch_up()

    assert sorted(client.shown()) == ["@5 #0 k=3@3 k=4@4 k=5@5", "@5 #1 k=4@4 k=5@5"]
    rig.hub.notify([])
    assert rig.hub.revision == 5


def test_a_snapshot_that_lacks_the_history_cancels(rig: Rig, client: Client) -> None:
    client.create(b"k")
    other = Rig()
    for _ in range(5):
        other.put(b"k")
    other.compact(5)
    client.take()

    rig.hub.restored(other.store)

    assert client.shown() == ["@0 #0 canceled compacted=5"]


# cost


def test_watchers_with_the_same_range_and_options_share_the_encoding(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = []
    real = watch_encode._rests

    def counted(parts: list[bytes], options: int, fragment_bytes: int) -> list[bytes]:
        packed.append(options)
        return real(parts, options, fragment_bytes)

    monkeypatch.setattr(watch_encode, "_rests", counted)
    clients = [rig.open() for _ in range(20)]
    for client in clients:
        for number in range(20):
            client.create(b"p/", b"p0", prev_kv=bool(number % 2))
        client.take()

    rig.put(b"p/x")

    assert sorted(packed) == [0, watch_encode.PREV_KV]
    assert all(len(client.shown()) == 20 for client in clients)
    assert len(rig.hub._matcher) == 1


def test_messages_of_one_stream_are_handed_over_together(rig: Rig) -> None:
    first, second = rig.open(), rig.open()
    for client in (first, second):
        for _ in range(100):
            client.create(b"k")
        client.take()
    batches: list[tuple[str, int]] = []
    for name, client in (("first", first), ("second", second)):

        def taken(messages: Sequence[bytes], name: str = name, client: Client = client) -> bool:
            batches.append((name, len(messages)))
            return client.send_all(messages)

        client.stream.send_all = taken

    rig.put(b"k", b"v" * 1000)

    assert batches == [(name, count) for name in ("first", "second") for count in [15] * 6 + [10]]
    assert len(first.take()) == len(second.take()) == 100

    # A stream that fills up gets nothing more, and what it missed comes from the store.
    first.room = 20_000
    rig.put(b"k", b"w" * 1000)

    assert len(first.take()) == 30
    assert len(second.take()) == 100
    first.drained()
    rig.catch_up()
    assert sorted(response.watch_id for response in first.take()) == list(range(30, 100))


def test_a_watcher_takes_less_than_a_kibibyte() -> None:
    store = Store(Rig().backend, leases=NoLeases())
    hub = WatchHub(store, lambda revision: b"")
    stream = hub.open(lambda message: True, lambda messages: True)
    requests = [
        rpc_pb2.WatchRequest(
            create_request=rpc_pb2.WatchCreateRequest(key=b"/registry/pods/default/%032d" % number)
        ).SerializeToString()
        for number in range(2000)
    ]
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for request in requests:
            stream.request(request)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    # Keys of their own, which is the dearest case: nothing is shared.
    assert used / len(requests) < 1024
    assert sys.getsizeof(stream.watchers[0]) < 200
