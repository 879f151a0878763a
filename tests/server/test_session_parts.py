"""Long replies of a session come in parts, so that they hold up no other answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from kvstore.client import AsyncClient
from kvstore.client import session as client_session
from kvstore.pb import kv_pb2, rpc_pb2
from kvstore.pb import session_pb2 as pb
from kvstore.server.errors import Code
from kvstore.server.services.session_call import PART_BYTES
from kvstore.server.services.session_outbound import REPLIES_BYTES_MAX
from tests.server.session_rig import Client, Rig, rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RANGE = "/etcdserverpb.KV/Range"
LONG = bytes(range(256)) * (40 * PART_BYTES // 256) + b"end"


@pytest.fixture
async def served() -> AsyncIterator[Rig]:
    async with rig() as ours:
        yield ours


@pytest.fixture
async def client(served: Rig) -> Client:
    return await served.open()


async def held(served: Rig, client: Client, *call_ids: int, flags: int = pb.PARTS) -> list[Any]:
    """Make calls that the test answers."""
    await client.send(*(client.call(call_id, RANGE, flags=flags) for call_id in call_ids))
    await served.until(lambda: len(served.kv.calls) == len(call_ids))
    return [call for _, _, call in served.kv.calls]


async def rest_of(client: Client, call_id: int) -> tuple[bytes, int]:
    """Return a whole reply and in how many pieces it came; nothing else may come."""
    pieces: list[bytes] = []
    while True:
        kind, its_id, payload = await client.next()
        assert its_id == call_id
        pieces.append(payload)
        if kind == pb.REPLY:
            return b"".join(pieces), len(pieces)
        assert kind == pb.PART


@pytest.mark.parametrize("flags", [pb.PARTS, 0])
async def test_a_reply_made_of_pieces_arrives_whole(
    served: Rig, client: Client, flags: int
) -> None:
    # Smaller, larger and as large as the parts they travel in, and one that is empty.
    sizes = [1000, PART_BYTES, 3 * PART_BYTES + 7, 0, PART_BYTES - 1000, *[50_000] * 20, 1]
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    [call] = await held(served, client, 1, flags=flags)
    call.reply_parts(pieces, sum(sizes))
    whole, parts = await rest_of(client, 1)
    assert whole == b"".join(pieces)
    assert parts == 1 if not flags else parts > sum(sizes) // PART_BYTES
    await served.until(lambda: not served.session.long)


async def test_other_answers_pass_a_long_reply(served: Rig, client: Client) -> None:
    long, short = await held(served, client, 1, 2)
    long.reply(LONG)
    kind, call_id, first = await client.next()
    assert (kind, call_id) == (pb.PART, 1)
    short.reply(b"short")
    between = [first]
    while (item := await client.next()) != [pb.REPLY, 2, b"short"]:
        assert item[:2] == [pb.PART, 1]
        between.append(item[2])
    rest, count = await rest_of(client, 1)
    assert b"".join(between) + rest == LONG
    assert count > 5  # it had hardly begun
    assert len(first) <= PART_BYTES == client.hello["part_bytes"]


async def test_who_does_not_ask_for_parts_gets_one_piece(served: Rig, client: Client) -> None:
    # A client of the time before them would not know what they are.
    [call] = await held(served, client, 1, flags=pb.NO_FLAG)
    call.reply(LONG)
    assert await client.next() == [pb.REPLY, 1, LONG]


async def test_a_reply_of_one_part_is_a_reply(served: Rig, client: Client) -> None:
    first, second = await held(served, client, 1, 2)
    first.reply(bytes(PART_BYTES))
    assert await rest_of(client, 1) == (bytes(PART_BYTES), 1)
    second.reply(bytes(PART_BYTES + 1))
    assert await rest_of(client, 2) == (bytes(PART_BYTES + 1), 2)


async def test_long_replies_come_one_after_another(served: Rig, client: Client) -> None:
    for call in await held(served, client, 1, 2, 3):
        call.reply(LONG)
    for call_id in (1, 2, 3):
        assert (await rest_of(client, call_id))[0] == LONG
    assert served.sessions.queued_bytes == 0


async def test_a_cancelled_long_reply_stops(served: Rig, client: Client) -> None:
    first, second = await held(served, client, 1, 2)
    first.reply(LONG)
    second.reply(LONG)
    assert (await client.next())[:2] == [pb.PART, 1]
    await client.send([pb.CANCEL, 1])
    await served.until(lambda: 1 not in served.session.long)
    received = 1
    while (item := await client.next())[1] == 1:
        assert item[0] == pb.PART
        received += 1
    assert received < len(LONG) // PART_BYTES
    rest, _ = await rest_of(client, 2)
    assert item[2] + rest == LONG


async def test_long_replies_to_a_client_that_does_not_read_are_bounded(
    served: Rig, client: Client
) -> None:
    first, second, third = await held(served, client, 1, 2, 3)
    first.reply(bytes(REPLIES_BYTES_MAX - 1000))
    second.reply(bytes(PART_BYTES * 2))
    third.reply(b"short")
    ends = {}
    while len(ends) < 2:
        item = await client.next()
        if item[:2] != [pb.PART, 1]:
            ends[item[1]] = item
    assert ends[3] == [pb.REPLY, 3, b"short"]
    assert ends[2][:3] == [pb.END, 2, Code.RESOURCE_EXHAUSTED]
    assert "too many reply bytes" in ends[2][3]


async def test_a_half_closed_session_ends_behind_its_long_replies(
    served: Rig, client: Client
) -> None:
    [call] = await held(served, client, 1)
    call.reply(LONG)
    await client.stream.done_writing()
    assert (await rest_of(client, 1))[0] == LONG
    assert await client.next() is grpc.aio.EOF


async def test_a_session_that_breaks_gives_the_room_back(served: Rig, client: Client) -> None:
    [call] = await held(served, client, 1)
    call.reply(LONG)
    await client.next()
    assert served.sessions.queued_bytes > 0
    client.stream.cancel()
    await served.until(lambda: not served.sessions.sessions)
    assert served.sessions.queued_bytes == 0


# our client


def answer(size_bytes: int) -> bytes:
    kv = kv_pb2.KeyValue(key=b"k", value=bytes(size_bytes))
    return rpc_pb2.RangeResponse(kvs=[kv], count=1).SerializeToString()


@pytest.mark.parametrize("cut", [True, False])
async def test_our_client_takes_long_replies(
    served: Rig, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    if not cut:  # a server of the time before
        read = client_session.read_hello

        def without_parts(items: list[Any]) -> dict[str, Any]:
            hello = read(items)
            del hello["part_bytes"]
            return hello

        monkeypatch.setattr(client_session, "read_hello", without_parts)
    async with AsyncClient([served.endpoint], transport="session") as client:
        waiting = asyncio.create_task(client.get(b"k", timeout_s=30))
        await served.until(lambda: served.kv.calls)
        call = served.kv.calls[0][2]
        assert bool(call._flags & pb.PARTS) is cut
        call.reply(answer(len(LONG)))
        kv = await waiting
        assert kv is not None
        assert kv.value == bytes(len(LONG))


async def test_our_client_forgets_the_parts_of_a_call_that_it_gives_up(served: Rig) -> None:
    async with AsyncClient([served.endpoint], transport="session") as client:
        waiting = asyncio.create_task(client.get(b"k", timeout_s=30))
        await served.until(lambda: served.kv.calls)
        session: Any = client._transport.link().session
        served.kv.calls[0][2].reply(answer(100 << 20 >> 1))
        await served.until(lambda: session._parts)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert session._parts == {}
        await served.until(lambda: not served.session.long)
        # And the session goes on.
        again = asyncio.create_task(client.get(b"k", timeout_s=30))
        await served.until(lambda: len(served.kv.calls) == 2)
        served.kv.calls[1][2].reply(answer(5))
        kv = await again
        assert kv is not None
        assert kv.value == bytes(5)
