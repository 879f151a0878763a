"""Creating and ending watchers, rule by rule: etcd-semantics 2.8. Lines are `watch_rig.show`."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from kvstore.pb import rpc_pb2
from tests.mvcc.watch_rig import Client, Rig, show


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def client(rig: Rig) -> Client:
    return rig.open()


# creation


def test_created_comes_first_then_live_events_with_their_own_revision(
    rig: Rig, client: Client
) -> None:
    rig.put(b"before")

    client.create(b"k")
    rig.put(b"other")
    rig.put(b"k", b"1")
    rig.delete(b"k")

    assert client.shown() == ["@2 #0 created", "@4 #0 k=1@4", "@5 #0 -k@5"]


def test_a_delete_event_has_key_and_revision_only(rig: Rig, client: Client) -> None:
    client.create(b"k")
    rig.put(b"k")
    rig.delete(b"k")

    event = client.take()[-1].events[0]
    assert event.kv == type(event.kv)(key=b"k", mod_revision=3)


def test_the_live_batch_of_an_entry_is_one_response_up_to_its_last_event(
    rig: Rig, client: Client
) -> None:
    # An entry carries many writes. One response per watcher for all of them saves most of the
    # cost, and the header says no more than was delivered.
    client.create(b"k")
    for key in (b"k", b"x", b"k", b"x"):
        rig.store.put(rpc_pb2.PutRequest(key=key))
    rig.notify()

    assert client.shown() == ["@1 #0 created", "@4 #0 k=@2 k=@4"]


def test_history_is_replayed_with_the_current_revision_in_the_header(
    rig: Rig, client: Client
) -> None:
    rig.put(b"k", b"1")
    rig.put(b"x")
    rig.put(b"k", b"2")
    rig.put(b"x")

    client.create(b"k", start_revision=2)
    assert client.shown() == ["@5 #0 created"]
    rig.catch_up()
    assert client.shown() == ["@5 #0 k=1@2 k=2@4"]
    rig.put(b"k", b"3")
    assert client.shown() == ["@6 #0 k=3@6"]


def test_a_start_within_history_leaves_out_what_was_before(rig: Rig, client: Client) -> None:
    for value in (b"1", b"2", b"3"):
        rig.put(b"k", value)

    client.create(b"k", start_revision=3)
    rig.catch_up()

    assert client.shown() == ["@4 #0 created", "@4 #0 k=2@3 k=3@4"]


def test_start_at_the_next_revision_needs_no_history(rig: Rig, client: Client) -> None:
    rig.put(b"k", b"1")

    client.create(b"k", start_revision=3)
    assert not rig.hub.has_work
    rig.put(b"k", b"2")

    assert client.shown() == ["@2 #0 created", "@3 #0 k=2@3"]


def test_start_below_the_compaction_is_created_then_canceled_without_revision(
    rig: Rig, client: Client
) -> None:
    for _ in range(4):
        rig.put(b"k")
    rig.compact(4)

    client.create(b"k", start_revision=3)
    rig.put(b"k")
    rig.catch_up()

    assert client.shown() == ["@5 #0 created", "@0 #0 canceled compacted=4"]


def test_start_at_the_compaction_is_served(rig: Rig, client: Client) -> None:
    for value in (b"1", b"2", b"3", b"4"):
        rig.put(b"k", value)
    rig.compact(4)

    client.create(b"k", start_revision=4)
    rig.catch_up()

    assert client.shown() == ["@5 #0 created", "@5 #0 k=3@4 k=4@5"]


def test_a_delete_at_the_compaction_is_served(rig: Rig, client: Client) -> None:
    rig.put(b"k", b"1")
    rig.delete(b"k")
    rig.put(b"x")
    rig.compact(3)

    client.create(b"\x00", b"\x00", start_revision=3)
    rig.catch_up()

    assert client.shown() == ["@4 #0 created", "@4 #0 -k@3 x=v@4"]


def test_a_negative_start_is_refused(rig: Rig, client: Client) -> None:
    client.create(b"k", start_revision=-1)

    reason = "etcdserver: mvcc: required revision has been compacted"
    assert client.shown() == [f"@1 #-1 created canceled {reason!r}"]


@pytest.mark.parametrize(
    ("key", "end"), [(b"b", b"a"), (b"b", b"b"), (b"", b"\x00\x00"[:0] or b"")]
)
def test_an_empty_range_is_refused(rig: Rig, client: Client, key: bytes, end: bytes) -> None:
    client.create(key, end)

    if key:
        assert client.shown() == ["@1 #-1 created canceled 'mvcc: watcher range is empty'"]
    else:
        # No key and no end is the single smallest key, not an empty range.
        assert client.shown() == ["@1 #0 created"]
        rig.put(b"\x00")
        rig.put(b"a")
        assert client.shown() == ["@2 #0 \x00=v@2"]


def test_ranges_end_where_they_say(rig: Rig, client: Client) -> None:
    client.create(b"b", b"d")  # half-open
    client.create(b"b", b"\x00")  # everything from b on
    client.create(b"", b"\x00")  # everything
    client.take()

    for key in (b"a", b"b", b"c\xff", b"d"):
        rig.put(key, b"")

    got: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for response in client.take():
        got[response.watch_id] += [event.kv.key for event in response.events]
    assert got == {
        0: [b"b", b"c\xff"],
        1: [b"b", b"c\xff", b"d"],
        2: [b"a", b"b", b"c\xff", b"d"],
    }


def test_ids_are_counted_up_past_those_that_clients_chose(rig: Rig, client: Client) -> None:
    client.create(b"k")
    client.create(b"k", watch_id=1)
    client.create(b"k", watch_id=-7)
    client.create(b"k")
    client.cancel(2)
    client.create(b"k")

    # A canceled automatic id is not given again: the client might mix the two up.
    assert client.shown() == [
        "@1 #0 created",
        "@1 #1 created",
        "@1 #-7 created",
        "@1 #2 created",
        "@1 #2 canceled",
        "@1 #3 created",
    ]


def test_an_id_in_use_is_refused_and_the_first_goes_on(rig: Rig, client: Client) -> None:
    client.create(b"k", watch_id=5)
    client.create(b"x", watch_id=5)
    rig.put(b"x")
    rig.put(b"k")

    reason = "mvcc: duplicate watch ID provided on the WatchStream"
    assert client.shown() == [
        "@1 #5 created",
        f"@1 #-1 created canceled {reason!r}",
        "@3 #5 k=v@3",
    ]


def test_an_id_is_free_again_after_cancel(rig: Rig, client: Client) -> None:
    client.create(b"k", watch_id=5)
    client.cancel(5)
    client.create(b"x", watch_id=5)
    rig.put(b"x")

    assert client.shown()[2:] == ["@1 #5 created", "@2 #5 x=v@2"]


def test_permission_is_asked_once_and_a_refusal_is_told(rig: Rig) -> None:
    asked = []
    text = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"

    def authorize(start: bytes, end: bytes | None) -> str | None:
        asked.append((start, end))
        return text if start == b"secret" else None

    client = rig.open(authorize=authorize)
    client.create(b"secret")
    client.create(b"open", b"\x00")
    rig.put(b"secret")

    assert client.shown() == [
        f"@1 #-1 created canceled {text!r}",
        "@1 #0 created",
        "@2 #0 secret=v@2",
    ]
    assert asked == [(b"secret", b""), (b"open", None)]


# cancel and close


def test_cancel_is_confirmed_and_nothing_follows(rig: Rig, client: Client) -> None:
    client.create(b"k")
    rig.put(b"k")
    client.take()

    client.cancel(0)
    rig.put(b"k")
    client.cancel(0)

    assert client.shown() == ["@2 #0 canceled"]
    assert rig.hub.statistics().watchers == 0


def test_cancel_of_an_unknown_id_gets_no_reply(rig: Rig, client: Client) -> None:
    client.cancel(3)
    client.cancel(-1)

    assert client.shown() == []


def test_cancel_while_catching_up_ends_the_history(rig: Rig, client: Client) -> None:
    for _ in range(3000):
        rig.store.put(rpc_pb2.PutRequest(key=b"k"))
    rig.notify()
    client.create(b"k", start_revision=1)
    rig.hub.catch_up(1000)
    client.cancel(0)
    rig.catch_up()

    last = client.take()[-1]
    assert (last.canceled, len(last.events)) == (True, 0)
    assert not rig.hub.has_work


def test_a_compaction_does_not_answer_a_later_cancel(rig: Rig, client: Client) -> None:
    rig.put(b"k")
    rig.put(b"k")
    rig.compact(3)
    client.create(b"k", start_revision=2)
    client.take()

    client.cancel(0)

    assert client.shown() == []


def test_a_closed_stream_is_forgotten(rig: Rig, client: Client) -> None:
    rig.put(b"k")
    client.create(b"k")
    client.create(b"k", start_revision=1)
    client.create(b"k", start_revision=99, progress_notify=True)
    client.ask_progress()
    client.take()

    client.stream.close()
    client.stream.close()
    client.create(b"k")
    client.stream.writable()
    rig.put(b"k")
    rig.catch_up()
    rig.hub.progress(1)
    rig.hub.progress(10**15)

    assert client.shown() == []
    assert rig.hub.statistics() == (0, 0, 0, 0, 0)
    assert len(rig.hub._matcher) == 0


def test_requests_of_no_kind_are_ignored_and_junk_is_refused(rig: Rig, client: Client) -> None:
    client.stream.request(rpc_pb2.WatchRequest())
    client.stream.request(b"\x92\x01\x00")  # an unknown field 18

    assert client.shown() == []
    with pytest.raises(DecodeError):
        client.stream.request(b"\xff")


def test_the_lines_that_these_tests_compare_say_what_a_response_holds() -> None:
    # `show` is the eye of this file: a field that it overlooked would be tested nowhere.
    response = rpc_pb2.WatchResponse(
        watch_id=4,
        created=True,
        canceled=True,
        compact_revision=3,
        cancel_reason="r",
        fragment=True,
    )
    response.header.revision = 9
    event = response.events.add(type="DELETE")
    event.kv.key, event.kv.mod_revision = b"k", 8
    event.prev_kv.value = b"old"

    assert show(response) == "@9 #4 created canceled fragment compacted=3 'r' -k<old@8"
