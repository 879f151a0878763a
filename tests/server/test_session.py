"""Frames of a session: what they do, what is refused, and that no slow client holds up another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc.aio
import msgpack
import pytest

from kvstore.pb import session_pb2 as pb
from kvstore.rpc import Call, Limits
from kvstore.server.services.session import OPERATIONS_MAX, STREAMS_MAX, TURN_ITEMS
from kvstore.server.services.session_call import (
    STREAM_HIGH_BYTES,
    SessionCall,
    SessionStream,
)
from tests.server.session_rig import Client, Rig, rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOO_MANY = [pb.END, 8, "etcdserver: too many requests"]


@pytest.fixture
async def served() -> AsyncIterator[Rig]:
    async with rig() as ours:
        yield ours


@pytest.fixture
async def client(served: Rig) -> Client:
    return await served.open()


# calls


async def test_calls_reach_the_handlers_of_the_routes(served: Rig, client: Client) -> None:
    await client.send(client.call(1, "Echo", b"hello"), client.call(2, "Fail", b"no"))
    assert await client.next() == [pb.REPLY, 1, b"hello"]
    assert await client.next() == [
        pb.END,
        2,
        5,
        "no",
        {"detail-bin": b"\xff\x00", "detail": b"some text"},
    ]


async def test_answers_of_one_turn_leave_in_one_frame(served: Rig, client: Client) -> None:
    before = client.frames
    await client.send(*(client.call(number, "Echo", b"%d" % number) for number in range(1, 101)))
    answers = [await client.next() for _ in range(100)]
    assert answers == [[pb.REPLY, number, b"%d" % number] for number in range(1, 101)]
    assert client.frames == before + 1


async def test_a_frame_of_many_items_does_not_hold_the_loop(served: Rig, client: Client) -> None:
    # It is taken in slices; what other connections send gets its turn between them.
    before = client.frames
    count = 3 * TURN_ITEMS
    await client.send(*(client.call(number, "Echo") for number in range(1, count + 1)))
    assert [(await client.next())[1] for _ in range(count)] == list(range(1, count + 1))
    assert client.frames >= before + 3


async def test_a_handlers_bug_ends_its_call_only(served: Rig, client: Client) -> None:
    await client.send(client.call(1, "Raise"), client.call(2, "Echo", b"on"))
    assert await client.next() == [pb.END, 1, 2, "internal error in the handler of this call"]
    assert await client.next() == [pb.REPLY, 2, b"on"]
    assert len(served.service.errors) == 1


@pytest.mark.parametrize("number", [-1, 1000, "Chat"])
async def test_an_unknown_method_is_refused_and_the_session_goes_on(
    client: Client, number: int | str
) -> None:
    # Chat is a stream, and cannot be called.
    number = client.methods[f"/t.Test/{number}"] if isinstance(number, str) else number
    await client.send([pb.CALL, 1, number, 0, 0, b""], client.call(2, "Echo"))
    refusal = await client.next()
    assert refusal[:3] == [pb.END, 1, 12]
    assert await client.next() == [pb.REPLY, 2, b""]
    await client.send([pb.OPEN, 3, client.methods["/t.Test/Echo"], 0, 1000])
    assert (await client.next())[:3] == [pb.END, 3, 12]


async def test_cancel_tells_the_handler_and_its_late_answer_goes_nowhere(
    served: Rig, client: Client
) -> None:
    await client.send(client.call(1, "Hold"), client.call(2, "Hold"), [pb.CANCEL, 1])
    await served.until(lambda: served.service.log == ["cancelled"])
    gone, kept = served.service.held
    assert gone.cancelled
    assert not kept.cancelled
    gone.reply(b"late")
    gone.fail(2, "late")
    kept.reply(b"in time")
    assert await client.next() == [pb.REPLY, 2, b"in time"]
    await client.send([pb.CANCEL, 1], [pb.CANCEL, 2], client.call(3, "Echo"))  # crossed: no fault
    assert await client.next() == [pb.REPLY, 3, b""]
    assert served.session.unanswered_bytes == 0


async def test_a_deadline_ends_the_call_and_tells_the_handler(served: Rig, client: Client) -> None:
    await client.send(client.call(1, "Hold", timeout_ms=30), client.call(2, "Hold", b"", 60_000))
    assert await client.next() == [pb.END, 1, 4, "context deadline exceeded"]
    assert served.service.log == ["cancelled"]
    served.service.held[1].reply(b"")
    assert await client.next() == [pb.REPLY, 2, b""]


async def test_metadata_are_the_streams_until_a_frame_replaces_them(served: Rig) -> None:
    client = await served.open((("token", "old"), ("hasleader", "true")))
    await client.send(
        client.call(1, "Metadata", b"token"),
        client.call(2, "Metadata", b"hasleader"),
        client.call(3, "Metadata", b"hasleader", flags=pb.ANY_MEMBER),
        [pb.METADATA, {"token": "new"}],
        client.call(4, "Metadata", b"token"),
    )
    answers = [(await client.next())[2] for _ in range(4)]
    assert answers == [b"old", b"true", b"absent", b"new"]


async def test_calls_know_their_peer(served: Rig, client: Client) -> None:
    await client.send(client.call(1, "Hold"))
    await served.until(lambda: served.service.held)
    [call] = served.service.held
    assert call.peer.startswith("127.0.0.1:")
    assert call.path == "/t.Test/Hold"
    assert call.peer_certificate is None


def test_session_calls_have_what_handlers_use_of_a_call() -> None:
    # Handlers are written for `Call` alone; the other forms must not lack anything of it.
    public = {name for name in dir(Call) if not name.startswith("_")} - {
        # The engine's side, "handlers leave it alone".
        *("buffer", "connection", "deadline_slot", "delta", "end", "ending", "expire", "fresh"),
        *("half_closed_told", "head", "notify_cancelled", "notify_writable", "over", "queue"),
        *(
            "queued",
            "receive_paused",
            "receive_window",
            "received_bytes",
            "remote_closed",
            "responded",
        ),
        *("send_parts", "stop", "stream", "stream_id", "throttled"),
    }
    assert "reply" in public
    for form in (SessionCall, SessionStream):
        assert public <= set(dir(form))


# bounds


async def test_a_flood_beyond_the_window_is_refused_one_by_one(served: Rig, client: Client) -> None:
    assert client.hello["operations"] == OPERATIONS_MAX
    over = OPERATIONS_MAX + 10
    await client.send(*(client.call(number, "Hold") for number in range(1, over + 1)))
    for number in range(OPERATIONS_MAX + 1, over + 1):
        assert await client.next() == [TOO_MANY[0], number, *TOO_MANY[1:]]
    assert len(served.service.held) == OPERATIONS_MAX
    # Room again, by an answer and by a cancel.
    served.service.held[0].reply(b"")
    assert await client.next() == [pb.REPLY, 1, b""]
    await client.send([pb.CANCEL, 2], *(client.call(over + number, "Hold") for number in (1, 2, 3)))
    assert await client.next() == [TOO_MANY[0], over + 3, *TOO_MANY[1:]]


async def test_a_flood_of_bytes_is_refused_too(served: Rig, client: Client) -> None:
    payload = bytes(1 << 20)
    count = client.hello["bytes"] // len(payload)
    for number in range(1, count + 2):
        await client.send(client.call(number, "Hold", payload))
    assert await client.next() == [TOO_MANY[0], count + 1, *TOO_MANY[1:]]
    assert len(served.service.held) == count
    served.service.held[0].reply(b"")
    assert await client.next() == [pb.REPLY, 1, b""]
    await client.send(client.call(count + 2, "Hold", payload), client.call(count + 3, "Echo", b"x"))
    assert await client.next() == [TOO_MANY[0], count + 3, *TOO_MANY[1:]]


async def test_a_flood_of_streams_is_refused_too(served: Rig, client: Client) -> None:
    await client.send(*(client.open(number, "Chat") for number in range(1, STREAMS_MAX + 2)))
    assert await client.next() == [TOO_MANY[0], STREAMS_MAX + 1, *TOO_MANY[1:]]


async def test_a_pipeline_beyond_the_window_is_refused_whole(served: Rig, client: Client) -> None:
    await client.send(*(client.call(number, "Hold") for number in range(1, OPERATIONS_MAX)))
    put = client.methods["/etcdserverpb.KV/Put"]
    await client.send([pb.PIPELINE, 10_000, 0, 0, [[put, b"1"], [put, b"2"]]])
    assert await client.next() == [TOO_MANY[0], 10_000, *TOO_MANY[1:]]
    assert await client.next() == [TOO_MANY[0], 10_001, *TOO_MANY[1:]]
    assert served.kv.calls == []


async def test_a_reader_that_stops_stops_the_server_from_taking_frames(
    served: Rig, client: Client
) -> None:
    # 100 MB of answers are asked for; what waits stays bounded, and all of it arrives later.
    count, size = 1000, 100_000
    asked = 0

    async def ask() -> None:
        nonlocal asked
        for number in range(1, count + 1):
            await client.send(client.call(number, "Big", b"%d" % size))
            asked = number

    asking = asyncio.create_task(ask())
    await served.until(lambda: served.session.blocked)
    session = served.session
    assert session.call.receive_paused
    assert session.call.unsent_bytes < 8 << 20
    for number in range(1, count + 1):
        kind, call_id, payload = await client.next()
        assert (kind, call_id, len(payload)) == (pb.REPLY, number, size)
    await asking
    assert not session.blocked
    assert asked == count


async def test_replies_beyond_a_sessions_share_are_refused_one_by_one(
    served: Rig, client: Client
) -> None:
    # Held answers that come all at once for a client that does not read.
    await client.send(*(client.call(number, "Hold") for number in range(1, 101)))
    await served.until(lambda: len(served.service.held) == 100)
    for call in served.service.held:
        call.reply(bytes(1 << 20))
    answers = [await client.next() for _ in range(100)]
    assert [answer[1] for answer in answers] == list(range(1, 101))
    kinds = [answer[0] for answer in answers]
    refused = kinds.index(pb.END)
    assert 60 <= refused <= 70
    assert "slow readers" in answers[refused][3]
    await client.send(client.call(101, "Echo", b"on"))
    assert await client.next() == [pb.REPLY, 101, b"on"]


# streams


async def test_a_stream_opens_carries_and_half_closes(served: Rig, client: Client) -> None:
    await client.send(
        client.open(1, "Chat"), [pb.MESSAGE, 1, b"a"], client.open(2, "Chat"), [pb.MESSAGE, 2, b"b"]
    )
    assert await client.next() == [pb.MESSAGE, 1, b"a"]
    assert await client.next() == [pb.MESSAGE, 2, b"b"]
    await client.send([pb.HALF_CLOSE, 1], [pb.MESSAGE, 2, b"fail"])
    assert await client.next() == [pb.END, 1, 0, ""]
    end = await client.next()
    assert end[:4] == [pb.END, 2, 9, "asked to fail"]
    await client.send([pb.MESSAGE, 2, b"crossed"], client.call(3, "Echo"))
    assert await client.next() == [pb.REPLY, 3, b""]


async def test_a_client_stream_is_answered_at_its_end(client: Client) -> None:
    await client.send(client.open(1, "Collect"), [pb.MESSAGE, 1, b"abc"], [pb.MESSAGE, 1, b""])
    await client.send([pb.HALF_CLOSE, 1])
    assert await client.next() == [pb.MESSAGE, 1, b"3,0"]
    assert await client.next() == [pb.END, 1, 0, ""]


async def test_a_stream_sends_as_far_as_its_credit_and_holds_up_no_other(
    served: Rig, client: Client
) -> None:
    await client.send(client.open(1, "Produce", 25_000), [pb.MESSAGE, 1, b"200 10000"])
    await client.send([pb.HALF_CLOSE, 1], client.call(2, "Echo", b"meanwhile"))
    items = [await client.next() for _ in range(4)]
    # 25,000 bytes let three messages of 10,000 out, the last beyond the window.
    assert [item[1] for item in items] == [1, 1, 1, 2]
    # The handler was told to stop: the queue holds little more than the mark.
    [call] = served.service.calls
    assert STREAM_HIGH_BYTES < call.unsent_bytes <= STREAM_HIGH_BYTES + 10_000
    await client.send([pb.CREDIT, 1, 10_000])  # 5,000 more than nothing: one message
    await client.send(client.call(3, "Echo"))
    assert [(await client.next())[1] for _ in range(2)] == [1, 3]
    await client.send([pb.CREDIT, 1, 10_000_000])
    rest = [await client.next() for _ in range(197)]
    assert [item[0] for item in rest] == [pb.MESSAGE] * 196 + [pb.END]
    assert call.unsent_bytes == 0


async def test_streams_wait_while_the_client_does_not_read(served: Rig, client: Client) -> None:
    await client.send(client.open(1, "Produce", 1 << 30), [pb.MESSAGE, 1, b"1000 50000"])
    await client.send([pb.HALF_CLOSE, 1])
    await served.until(lambda: served.service.calls)
    [call] = served.service.calls
    await served.until(lambda: call.unsent_bytes > STREAM_HIGH_BYTES)
    assert call.unsent_bytes <= STREAM_HIGH_BYTES + 50_000
    assert served.sessions.queued_bytes == call.unsent_bytes
    for _ in range(1000):
        assert (await client.next())[0] == pb.MESSAGE
    assert await client.next() == [pb.END, 1, 0, ""]


async def test_a_stream_that_pauses_gets_its_messages_later(served: Rig, client: Client) -> None:
    await client.send(client.open(1, "Chat"))
    await served.until(lambda: served.service.calls)
    [call] = served.service.calls
    call.pause_receiving()
    # These were in the same frame as far as the engine knows: held, not lost.
    served.session.streams[1].message(b"a")
    served.session.streams[1].message(b"b")
    assert served.session.call.receive_paused
    await client.send([pb.MESSAGE, 1, b"c"], [pb.HALF_CLOSE, 1])
    call.resume_receiving()
    assert [(await client.next())[2] for _ in range(3)] == [b"a", b"b", b"c"]
    assert await client.next() == [pb.END, 1, 0, ""]


async def test_cancelling_a_stream_frees_what_it_had_queued(served: Rig, client: Client) -> None:
    await client.send(client.open(1, "Produce", 0), [pb.MESSAGE, 1, b"100 10000"])
    await client.send([pb.HALF_CLOSE, 1])
    await served.until(lambda: served.sessions.queued_bytes > STREAM_HIGH_BYTES)
    await client.send([pb.CANCEL, 1])
    await served.until(lambda: served.service.log == ["cancelled"])
    assert served.sessions.queued_bytes == 0


async def test_the_budget_of_all_sessions_ends_a_stream_and_tells_its_handler(
    served: Rig, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.server.services.session_outbound.QUEUED_BYTES_MAX", 100_000)
    await client.send(client.open(1, "Produce", 0), [pb.MESSAGE, 1, b"2 150000"])
    await client.send([pb.HALF_CLOSE, 1])
    end = await client.next()
    assert end[:3] == [pb.END, 1, 8]
    assert "slow readers" in end[3]
    await served.until(lambda: served.service.log == ["cancelled"])


# ends


async def test_half_closing_the_session_lets_everything_finish(served: Rig, client: Client) -> None:
    await client.send(
        client.call(1, "Hold"),
        client.open(2, "Chat"),
        [pb.MESSAGE, 2, b"x"],
        client.open(3, "Chat"),
    )
    await client.stream.done_writing()
    assert await client.next() == [pb.MESSAGE, 2, b"x"]
    assert {(await client.next())[1] for _ in range(2)} == {2, 3}
    assert served.sessions.sessions  # the held call is not lost
    served.service.held[0].reply(b"last")
    assert await client.next() == [pb.REPLY, 1, b"last"]
    assert await client.next() is grpc.aio.EOF
    assert not served.sessions.sessions


async def test_a_lost_client_cancels_everything_it_had(served: Rig, client: Client) -> None:
    await client.send(client.call(1, "Hold"), client.call(2, "Hold"), client.open(3, "Produce", 0))
    await client.send([pb.MESSAGE, 3, b"10 100000"], [pb.HALF_CLOSE, 3])
    await served.until(lambda: served.sessions.queued_bytes)
    client.stream.cancel()
    await served.until(lambda: served.service.log == ["cancelled"] * 3)
    assert served.sessions.queued_bytes == 0
    assert not served.sessions.sessions
    served.service.held[0].reply(b"")  # of no effect


async def test_a_server_that_stops_says_so(served: Rig, client: Client) -> None:
    served.sessions.drain()
    assert await client.next() == [pb.GOAWAY]
    await client.send(client.call(1, "Echo", b"still served"))
    assert await client.next() == [pb.REPLY, 1, b"still served"]


# faults of the client

MALFORMED: dict[str, Any] = {
    "no msgpack": b"\xc1",
    "half a value": b"\x92\x01",
    "bytes behind it": msgpack.packb([1]) + b"\0",
    "no array": msgpack.packb({"a": 1}),
    "nothing": b"",
    "an empty array": msgpack.packb([]),
    "no format": msgpack.packb(["1"]),
    "format zero": None,
    "an item that is no array": [7],
    "an empty item": [[]],
    "an unknown kind": [[99, 1]],
    "a kind that only servers send": [[pb.REPLY, 1, b""]],
    "a call that is too short": [[pb.CALL, 1, 0, 0, 0]],
    "a call that is too long": [[pb.CALL, 1, 0, 0, 0, b"", 1]],
    "an id of zero": [[pb.CALL, 0, 0, 0, 0, b""]],
    "an id that is text": [[pb.CALL, "1", 0, 0, 0, b""]],
    "an id beyond 63 bits": [[pb.CALL, 1 << 63, 0, 0, 0, b""]],
    "a payload that is text": [[pb.CALL, 1, 0, 0, 0, "payload"]],
    "flags that are text": [[pb.CALL, 1, 0, 0, "flags", b""]],
    "a method that is text": [[pb.CALL, 1, "Echo", 0, 0, b""]],
    "a timeout that is text": [[pb.CALL, 1, 0, "soon", 0, b""]],
    "a message on no stream": [[pb.MESSAGE, 5, b""]],
    "credit that is negative": [[pb.CREDIT, 5, -1]],
    "a cancel of what never was": [[pb.CANCEL, 5]],
    "metadata that are no map": [[pb.METADATA, [1]]],
    "metadata that are no text": [[pb.METADATA, {"a": 1}]],
    "a pipeline without operations": [[pb.PIPELINE, 5, 0, 0, []]],
    "a pipeline of one stream": [[pb.PIPELINE, 5, 0, 0, [[-1, b""]]]],
    "a pipeline with a long operation": [[pb.PIPELINE, 5, 0, 0, [[0, b"", 1]]]],
    "a pipeline without end": [[pb.PIPELINE, 5, 0, 0, [[0, b""]] * (OPERATIONS_MAX + 1)]],
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_a_malformed_frame_ends_the_session_with_its_reason(
    served: Rig, client: Client, what: str
) -> None:
    await client.send(client.call(1, "Hold"))
    await served.until(lambda: served.service.held)
    frame = MALFORMED[what]
    if frame is None:
        await client.send_body(msgpack.packb([0]))
    elif isinstance(frame, bytes):
        await client.send_body(frame)
    else:
        # An id above the held call's, where the item's own is not the point.
        await client.send(*(_above(item) for item in frame))
    code, text = await client.status()
    expected = "UNIMPLEMENTED" if frame is None else "INVALID_ARGUMENT"
    assert code == expected, text
    assert text.startswith("session: ")
    assert served.service.log == ["cancelled"]
    assert not served.sessions.sessions


def _above(item: Any) -> Any:
    """Make the id of a call of the table higher than the one that is held."""
    if isinstance(item, list) and len(item) > 1 and item[0] == pb.CALL and item[1] == 1:
        return [item[0], 2, *item[2:]]
    return item


@pytest.mark.parametrize("call_id", [1, 3, 5])
async def test_ids_ascend(served: Rig, client: Client, call_id: int) -> None:
    # One that runs, one that has ended, one between: each would make two calls answer to one id.
    await client.send(client.call(1, "Hold"), client.call(5, "Echo"))
    assert await client.next() == [pb.REPLY, 5, b""]
    await client.send(client.call(call_id, "Echo"))
    code, text = await client.status()
    assert (code, "ids must ascend" in text) == ("INVALID_ARGUMENT", True)


async def test_a_message_after_the_half_close_is_a_fault(served: Rig, client: Client) -> None:
    # Without credit the stream stays open behind its half-close.
    await client.send(client.open(1, "Produce", 0), [pb.MESSAGE, 1, b"3 1"])
    await client.send([pb.HALF_CLOSE, 1], [pb.MESSAGE, 1, b"more"])
    assert (await client.status())[0] == "INVALID_ARGUMENT"


async def test_a_newer_format_is_refused_as_unknown(client: Client) -> None:
    # UNIMPLEMENTED: a newer client then falls back, as from a server without sessions.
    await client.send_body(msgpack.packb([2, {"anything": 1}]))
    code, text = await client.status()
    assert code == "UNIMPLEMENTED"
    assert "format 2" in text


async def test_a_frame_beyond_the_size_is_refused_unread(served: Rig, client: Client) -> None:
    await client.send(client.call(1, "Hold"))
    await served.until(lambda: served.service.held)
    await client.send(client.call(2, "Echo", bytes(client.hello["frame_bytes"])))
    code, text = await client.status()
    assert code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in text
    await served.until(lambda: served.service.log == ["cancelled"])


async def test_a_session_whose_answers_outgrow_the_servers_budget_is_cleared_away() -> None:
    limits = Limits(message_bytes_max=2 << 20, unsent_bytes_max=3 << 20)
    async with rig(limits) as served:
        client = await served.open()
        await client.send(*(client.call(number, "Hold") for number in range(1, 12)))
        await served.until(lambda: len(served.service.held) == 11)
        for call in served.service.held[:10]:
            call.reply(bytes(1 << 20))
        assert (await client.status())[0] == "RESOURCE_EXHAUSTED"
        await served.until(lambda: not served.sessions.sessions)
        assert served.service.log == ["cancelled"]


# pipelines


def operations(client: Client, *names: str) -> list[Any]:
    return [
        [client.methods[f"/etcdserverpb.KV/{name}"], b"%d" % number]
        for number, name in enumerate(names)
    ]


async def test_a_pipeline_runs_group_by_group(served: Rig, client: Client) -> None:
    kv = served.kv
    names = ("Put", "Put", "Range", "Range", "Put", "Compact", "Compact")
    await client.send([pb.PIPELINE, 1, 0, 0, operations(client, *names)])
    expected = [(name, b"%d" % number) for number, name in enumerate(names)]
    # Each row: how many have been started once all before them were answered.
    for started, answered in ((2, 0), (4, 2), (5, 4), (6, 5), (7, 6)):
        await served.until(lambda: len(kv.calls) >= started)  # noqa: B023
        assert kv.seen() == expected[:started]
        for _, data, call in kv.calls[answered:started]:
            assert len(kv.calls) == started
            call.reply(b"done " + data)
    answers = [await client.next() for _ in names]
    assert answers == [[pb.REPLY, number + 1, b"done %d" % number] for number in range(len(names))]
    assert kv.groups == [2, 1]
    await client.send([pb.CALL, 7, 0, 0, 0, b""])
    assert (await client.status())[0] == "INVALID_ARGUMENT"  # its ids are taken


async def test_a_refusal_lets_a_pipeline_go_on(served: Rig, client: Client) -> None:
    await client.send([pb.PIPELINE, 1, 0, 0, operations(client, "Put", "Range")])
    await served.until(lambda: served.kv.calls)
    served.kv.calls[0][2].fail(3, "etcdserver: key not found")
    assert await client.next() == [pb.END, 1, 3, "etcdserver: key not found"]
    await served.until(lambda: len(served.kv.calls) == 2)


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is late"])
async def test_an_open_outcome_stops_a_pipeline(served: Rig, client: Client, how: str) -> None:
    timeout_ms = 30 if how == "is late" else 0
    await client.send([pb.PIPELINE, 1, timeout_ms, 0, operations(client, "Put", "Range", "Put")])
    await served.until(lambda: served.kv.calls)
    if how == "fails":
        served.kv.calls[0][2].fail(14, "etcdserver: request timed out")
    elif how == "is cancelled":
        await client.send([pb.CANCEL, 1])
    if how == "is cancelled":
        answers = [await client.next() for _ in range(2)]
    else:
        answers = [await client.next() for _ in range(3)]
    assert {item[1] for item in answers} == ({2, 3} if how == "is cancelled" else {1, 2, 3})
    for item in answers:
        assert item[2] == (10 if item[1] > 1 else {"fails": 14, "is late": 4}[how])
    assert len(served.kv.calls) == 1
    assert not served.session.calls
    assert served.session.unanswered_bytes == 0


async def test_a_pipeline_longer_than_an_entry_goes_on_when_the_former_is_answered(
    served: Rig, client: Client
) -> None:
    count = 2100
    await client.send([pb.PIPELINE, 1, 0, 0, operations(client, *["Put"] * count)])
    answered = 0
    for started in (1024, 2048, count):
        await served.until(lambda: len(served.kv.calls) >= started)  # noqa: B023
        assert len(served.kv.calls) == started
        for _, _, call in served.kv.calls[answered:started]:
            call.reply(b"")
        answered = started
    assert served.kv.groups == [1024, 1024, 52]
