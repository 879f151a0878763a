"""The session transport: frames, windows, outcomes and ends, as the client makes them.

Most tests serve the session themselves, to hold answers back; the rest of the suite runs over
sessions on real members.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest

from kvstore.client import (
    AsyncClient,
    Event,
    KvError,
    NoLeaderError,
    Op,
    OutcomeUnknownError,
    PreconditionError,
    ReadFailedError,
    RequestTooLargeError,
    UnreachableError,
    UnsupportedError,
)
from kvstore.client.endpoint import Endpoint
from kvstore.client.link import Link
from kvstore.client.status import UNAVAILABLE, CallError
from kvstore.pb import rpc_pb2, session_pb2
from kvstore.pb.session_pb2 import Frame
from kvstore.rpc import Call, Server
from kvstore.server.services import session as server_session
from kvstore.server.services.session import OPEN_PATH, Session
from tests.client.conftest import class_of
from tests.client.proxy import Proxy
from tests.server.session_rig import Rig, rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.servers import Cluster

PUT_REPLY = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=7)).SerializeToString()


@pytest.fixture
async def served() -> AsyncIterator[Rig]:
    async with rig() as ours:
        yield ours


def connect(served: Rig, **options: Any) -> AsyncClient:
    options.setdefault("transport", "session")
    return AsyncClient([served.endpoint], **options)


async def outcome(call: Any) -> KvError | None:
    try:
        await call
    except KvError as error:
        return error
    return None


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Items of every frame that reaches the server."""
    sizes: list[int] = []
    take = Session.message

    def counted(self: Session, data: bytes) -> None:
        sizes.append(len(msgpack.unpackb(Frame.FromString(data).body)) - 1)
        take(self, data)

    monkeypatch.setattr(Session, "message", counted)
    return sizes


# frames


async def test_what_is_issued_together_travels_together_and_a_lone_call_at_once(
    served: Rig, frames: list[int]
) -> None:
    async with connect(served) as client:
        lone = asyncio.create_task(client.put(b"lone", b""))
        await served.until(lambda: served.kv.calls)
        assert frames == [1]
        together = [asyncio.create_task(client.put(b"%d" % number, b"")) for number in range(100)]
        await served.until(lambda: len(served.kv.calls) == 101)
        assert frames == [1, 100]
        for _, _, call in served.kv.calls:
            call.reply(PUT_REPLY)
        results = await asyncio.gather(lone, *together)
        assert {result.revision for result in results} == {7}


async def test_what_arrives_while_a_frame_is_written_forms_the_next(
    served: Rig, frames: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(served) as client:
        tasks = [asyncio.create_task(client.put(b"first", b""))]
        await served.until(lambda: served.kv.calls)
        stream = client._transport.links[0].session._stream
        may_go = asyncio.Event()
        writing = asyncio.Event()
        write = type(stream).write

        async def slow(self: Any, frame: Frame) -> None:
            writing.set()
            await may_go.wait()
            await write(self, frame)

        # The session's writer keeps the bound method: replace it where it looks. Not while it
        # writes, which the server may notice earlier than it: that would cancel the stream.
        session = client._transport.links[0].session
        await served.until(lambda: session._sleeping is not None)
        session._writer.cancel()
        monkeypatch.setattr(type(stream), "write", slow)
        session._writer = asyncio.create_task(session._write())
        tasks.append(asyncio.create_task(client.put(b"second", b"")))
        await writing.wait()
        for number in range(50):
            tasks.append(asyncio.create_task(client.put(b"%d" % number, b"")))
            await asyncio.sleep(0)  # each in a turn of its own
        may_go.set()
        await served.until(lambda: len(served.kv.calls) == 52)
        assert frames == [1, 1, 50]
        for _, _, call in served.kv.calls:
            call.reply(PUT_REPLY)
        await asyncio.gather(*tasks)


async def test_the_servers_window_is_kept(served: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Beyond it the server would refuse: the client lets calls wait instead.
    monkeypatch.setattr(server_session, "OPERATIONS_MAX", 10)
    async with connect(served) as client:
        tasks = [asyncio.create_task(client.put(b"%d" % number, b"")) for number in range(100)]
        answered = 0
        while answered < 100:
            await served.until(lambda: len(served.kv.calls) > answered)  # noqa: B023
            assert len(served.session.calls) <= 10
            for _, _, call in served.kv.calls[answered:]:
                answered += 1
                call.reply(PUT_REPLY)
        assert len(await asyncio.gather(*tasks)) == 100


async def test_the_window_of_bytes_is_kept(served: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_session, "UNANSWERED_BYTES_MAX", 1_000_000)
    async with connect(served) as client:
        value = bytes(300_000)
        tasks = [asyncio.create_task(client.put(b"%d" % number, value)) for number in range(20)]
        answered = 0
        while answered < 20:
            await served.until(lambda: len(served.kv.calls) > answered)  # noqa: B023
            assert served.session.unanswered_bytes <= 1_000_000
            served.kv.calls[answered][2].reply(PUT_REPLY)
            answered += 1
        await asyncio.gather(*tasks)


# outcomes


async def test_a_write_without_an_answer_in_time_is_open_and_the_server_is_told(
    served: Rig,
) -> None:
    async with connect(served) as client:
        write = asyncio.create_task(outcome(client.put(b"k", b"", timeout_s=0.1)))
        read = asyncio.create_task(outcome(client.get(b"k", timeout_s=0.1)))
        assert isinstance(await write, OutcomeUnknownError)
        assert isinstance(await read, ReadFailedError)
        await served.until(lambda: all(call.cancelled for _, _, call in served.kv.calls))
        assert not client._transport.links[0].session._calls


async def test_a_call_that_never_left_was_not_applied(
    served: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_session, "OPERATIONS_MAX", 1)
    async with connect(served) as client:
        first = asyncio.create_task(client.put(b"first", b""))
        await served.until(lambda: served.kv.calls)
        waiting = [asyncio.create_task(outcome(client.put(b"w", b"", timeout_s=0.1)))]
        waiting.append(
            asyncio.create_task(
                outcome(client.pipeline().then(Op.put(b"p", b"")).commit(timeout_s=0.1))
            )
        )
        put_error, pipeline_error = await asyncio.gather(*waiting)
        assert isinstance(put_error, UnreachableError)
        assert isinstance(pipeline_error.first, UnreachableError)
        served.kv.calls[0][2].reply(PUT_REPLY)
        await first
        last = asyncio.create_task(client.put(b"last", b""))
        await served.until(lambda: len(served.kv.calls) == 2)
        assert rpc_pb2.PutRequest.FromString(served.kv.calls[1][1]).key == b"last"
        served.kv.calls[1][2].reply(PUT_REPLY)
        await last


async def test_a_broken_session_gives_every_call_its_outcome(
    served: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_session, "OPERATIONS_MAX", 2)
    async with Proxy(served.endpoint) as proxy:
        client = AsyncClient([proxy.endpoint], transport="session", timeout_s=0.5)
        async with client:
            sent = asyncio.create_task(outcome(client.put(b"sent", b"", timeout_s=20)))
            read = asyncio.create_task(outcome(client.get(b"read")))
            await served.until(lambda: len(served.kv.calls) == 2)
            unsent = asyncio.create_task(outcome(client.put(b"unsent", b"")))
            await asyncio.sleep(0)
            await proxy.refuse()
            assert isinstance(await sent, OutcomeUnknownError)
            # These were repeated, as long as their time allowed, and never got through.
            assert isinstance(await read, UnreachableError)
            assert isinstance(await unsent, UnreachableError)
        assert len(served.kv.calls) == 2


async def test_cancelling_a_task_cancels_its_call(served: Rig) -> None:
    async with connect(served) as client:
        tasks = [asyncio.create_task(client.put(b"%d" % number, b"")) for number in range(3)]
        await served.until(lambda: len(served.kv.calls) == 3)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await served.until(lambda: served.kv.calls[1][2].cancelled)
        for _, _, call in served.kv.calls:
            call.reply(PUT_REPLY)
        await asyncio.gather(tasks[0], tasks[2])
        assert not client._transport.links[0].session._calls


async def test_errors_of_the_table_become_their_classes(served: Rig) -> None:
    async with connect(served, timeout_s=0.3) as client:
        texts = {
            "etcdserver: not leader": PreconditionError,
            "etcdserver: no leader": NoLeaderError,
            "etcdserver: request timed out": OutcomeUnknownError,
        }
        for text, kind in texts.items():
            served.kv.calls.clear()
            task = asyncio.create_task(outcome(client.put(b"k", b"")))
            while not task.done():
                for _, _, call in served.kv.calls:
                    call.fail(14, text)
                await asyncio.sleep(0.005)
            assert type(await task) is kind


# servers without sessions, and what they are called


class OtherSessions:
    """Answers Open with a frame of another release."""

    def __init__(self, call: Call) -> None:
        body = msgpack.packb([2, "whatever this release writes"])
        call.send(Frame(body=body).SerializeToString())

    def message(self, data: bytes) -> None: ...

    def half_closed(self) -> None: ...

    def cancelled(self) -> None: ...

    def writable(self) -> None: ...


@pytest.mark.parametrize("is_newer", [False, True])
async def test_a_server_without_sessions_is_asked_once_and_served_one_by_one(
    is_newer: bool,
) -> None:
    server = Server()
    opened: list[Call] = []
    server.unary("/etcdserverpb.KV/Put", lambda call, data: call.reply(PUT_REPLY))
    if is_newer:

        def open_other(call: Call) -> OtherSessions:
            opened.append(call)
            return OtherSessions(call)

        server.stream(OPEN_PATH, open_other)
    port = await server.listen("127.0.0.1", 0)
    try:
        async with AsyncClient([f"127.0.0.1:{port}"], transport="auto") as client:
            for _ in range(3):
                assert (await client.put(b"k", b"")).revision == 7
            assert client._transport.links[0].is_without_sessions
            assert len(opened) == is_newer
        async with AsyncClient([f"127.0.0.1:{port}"], transport="session") as client:
            with pytest.raises(UnsupportedError):
                await client.put(b"k", b"")
    finally:
        await server.drain(0.0)


async def test_unary_asks_for_no_session(served: Rig) -> None:
    async with connect(served, transport="unary") as client:
        task = asyncio.create_task(client.put(b"k", b""))
        await served.until(lambda: served.kv.calls)
        assert not served.sessions.sessions
        served.kv.calls[0][2].reply(PUT_REPLY)
        await task


async def test_a_transport_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="transport must be"):
        AsyncClient(["127.0.0.1:1"], transport="other")  # type: ignore[arg-type]


async def test_a_new_token_reaches_the_session_that_stands(served: Rig) -> None:
    tokens: list[bytes | None] = []
    texts = ["etcdserver: invalid auth token"]
    logins = 0

    def authenticate(call: Call, data: bytes) -> None:
        nonlocal logins
        logins += 1
        call.reply(rpc_pb2.AuthenticateResponse(token=f"token{logins}").SerializeToString())

    def delete(call: Call, data: bytes) -> None:
        tokens.append(call.metadata(b"token"))
        if texts:
            call.fail(16, texts.pop())
        else:
            call.reply(b"")

    served.sessions.unary("/etcdserverpb.Auth/Authenticate", authenticate)
    served.sessions.unary("/etcdserverpb.KV/DeleteRange", delete)
    async with connect(served, user="ann", password="p") as client:
        await client.delete(b"k")
        assert tokens == [b"token1", b"token2"]
        assert len(served.sessions.sessions) == 1


# ends


async def test_a_server_that_says_goodbye_gets_nothing_new(served: Rig) -> None:
    async with rig() as other:
        client = AsyncClient([served.endpoint, other.endpoint], transport="session")
        async with client:
            running = asyncio.create_task(client.put(b"running", b""))
            await served.until(lambda: served.kv.calls)
            served.sessions.drain()
            await eventually(lambda: client._transport.links[0].session is None)
            new = asyncio.create_task(client.put(b"new", b""))
            await other.until(lambda: other.kv.calls)
            served.kv.calls[0][2].reply(PUT_REPLY)
            other.kv.calls[0][2].reply(PUT_REPLY)
            await asyncio.gather(running, new)
            # The session ends by itself once nothing runs on it.
            await served.until(lambda: not served.sessions.sessions)


@pytest.mark.cluster
async def test_stopping_a_member_leaves_no_outcome_open() -> None:
    with class_of("kvstore")(3) as cluster:
        stopped = (cluster.leader() + 1) % 3
        endpoints = [*cluster.endpoints[stopped:], *cluster.endpoints[:stopped]]
        errors: list[KvError] = []
        counts = [0] * 20
        is_over = False
        async with AsyncClient(endpoints, timeout_s=10, transport="session") as client:

            async def write(writer: int) -> None:
                while not is_over:
                    error = await outcome(client.put(b"g/%d" % writer, b"%d" % counts[writer]))
                    if error is not None:
                        errors.append(error)
                    counts[writer] += 1

            async with client.watch(b"g/", prefix=True) as watcher:
                writers = [asyncio.create_task(write(number)) for number in range(20)]
                await eventually(lambda: min(counts) > 5)
                assert await asyncio.to_thread(cluster.terminate, stopped) == 0
                before = max(counts)
                await eventually(lambda: min(counts) > before)
                is_over = True
                await asyncio.gather(*writers)
                assert watcher.resumptions == 1
        assert errors == []


# streams


async def collect(client: AsyncClient, prefix: bytes, first: int, last: int) -> list[Event]:
    events: list[Event] = []
    async with client.watch(prefix, prefix=True, start_revision=first, prev_kv=True) as watcher:
        async for batch in watcher:
            events += batch.events
            if batch.revision >= last:
                return events
    raise AssertionError


@pytest.mark.cluster
@pytest.mark.parametrize("server", ["kvstore"], indirect=True)
async def test_a_watch_in_a_session_sees_what_one_on_its_own_stream_sees(
    server: Cluster, prefix: bytes
) -> None:
    rng = random.Random(5)
    async with (
        AsyncClient(server.endpoints, transport="session") as inside,
        AsyncClient(server.endpoints, transport="unary") as outside,
    ):
        start = (await inside.put(prefix, b"")).revision
        last = start
        for _ in range(120):
            keys = [prefix + b"%d" % rng.randrange(8) for _ in range(rng.randrange(1, 5))]
            kind = rng.randrange(3)
            if kind == 0:
                last = (
                    await outside.put(keys[0], rng.randbytes(rng.choice([1, 200_000])))
                ).revision
            elif kind == 1:
                last = (await inside.delete(keys[0], prefix=True)).revision
            else:
                txn = inside.txn().then(*(Op.put(key, b"t") for key in set(keys)))
                last = (await txn.commit()).revision
        last = (await inside.put(prefix + b"end", b"")).revision
        seen = await asyncio.gather(
            collect(inside, prefix, start, last), collect(outside, prefix, start, last)
        )
        assert seen[0] == seen[1]
        assert len(seen[0]) > 100


@pytest.mark.cluster
async def test_a_watch_that_is_not_read_holds_up_nothing_and_misses_nothing(
    server: Cluster, prefix: bytes, transport: str
) -> None:
    # 60 MB of events for a consumer that sleeps; others on the same session go on meanwhile.
    count, value = 300, bytes(200_000)
    async with (
        AsyncClient(server.endpoints, timeout_s=20) as client,
        client.watch(prefix, prefix=True) as sleeping,
    ):
        async with client.watch(prefix, prefix=True) as reading:

            async def read() -> list[bytes]:
                keys: list[bytes] = []
                while len(keys) < count:
                    keys += [event.key for event in (await anext(reading)).events]
                return keys

            task = asyncio.create_task(read())
            expected = [prefix + b"%04d" % number for number in range(count)]
            for key in expected:
                await client.put(key, value)
            assert await asyncio.wait_for(task, 20) == expected
        if transport == "session":
            [stream] = client._transport.links[0].session._streams.values()
            waiting = sum(len(message) for message in stream._messages)
            assert waiting <= stream.window_bytes + 2_000_000
        keys: list[bytes] = []
        while len(keys) < count:
            keys += [event.key for event in (await asyncio.wait_for(anext(sleeping), 20)).events]
        assert keys == expected
        assert sleeping.resumptions == 0


@pytest.mark.cluster
async def test_a_server_that_takes_small_frames_gets_small_frames() -> None:
    with class_of("kvstore")(1, ("--max-request-bytes", "10000")) as cluster:
        async with AsyncClient(cluster.endpoints, transport="session") as client:
            value = bytes(9_000)
            puts = [client.put(b"p%d" % number, value) for number in range(200)]
            results = await asyncio.gather(*puts)
            assert len({result.revision for result in results}) == 200
            operations = [Op.put(b"q%d" % number, value) for number in range(200)]
            assert len(await client.pipeline().then(*operations).commit()) == 200
            assert isinstance(await outcome(client.put(b"k", bytes(10_001))), RequestTooLargeError)


async def test_answers_of_many_bytes_arrive_whole(server: Cluster, prefix: bytes) -> None:
    value = bytes(1_000_000)
    async with AsyncClient(server.endpoints, timeout_s=30) as client:
        for number in range(30):
            await client.put(prefix + b"%d" % number, value)
        large, small = await asyncio.gather(
            client.range(prefix, prefix=True), client.get(prefix + b"0")
        )
        assert large.count == len(large.kvs) == 30
        assert small is not None


async def test_what_no_frame_holds_goes_alone(server: Cluster, prefix: bytes) -> None:
    # Twice the frame's size is refused by the same text as over unary calls (test_kv); the largest
    # legal request must still pass.
    async with AsyncClient(server.endpoints) as client:
        await client.put(prefix, bytes(1_500_000))
        kv = await client.get(prefix)
        assert kv is not None
        assert len(kv.value) == 1_500_000


def test_the_items_of_the_description_are_those_of_the_code() -> None:
    # docs/session.md is what clients in other languages are written from.
    text = (Path(__file__).parents[2] / "docs/session.md").read_text()
    for name, number in session_pb2.Item.items():
        assert f"| {number} | {name} |" in text, name


async def test_a_session_that_ended_with_its_first_frame_is_not_kept() -> None:
    # Its end came before the callback that keeps it: the link would hold it for ever, and every
    # call on it would wait for its deadline. Found by the simulated clients.
    class Stream:
        def __init__(self) -> None:
            hello = [1, [0, {"methods": [], "frame_bytes": 1 << 20, "operations": 1, "bytes": 1}]]
            self.frames = [Frame(body=msgpack.packb(hello))]

        async def read(self) -> Frame:
            if self.frames:
                return self.frames.pop()
            raise CallError(UNAVAILABLE, "gone")

        def cancel(self) -> bool:
            return True

    class Channel:
        def stream_stream(self, *_: Any, **__: Any) -> Callable[..., Stream]:
            return lambda metadata: Stream()

    link = Link(Endpoint.parse("127.0.0.1:1"), None, lambda _: None)
    link._channel = Channel()  # type: ignore[assignment]

    session = await link.open_session((), 1.0)
    await asyncio.sleep(0)  # the callback's turn

    assert session.is_over
    assert link.session is None
