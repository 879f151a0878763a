"""Plain puts of a client: gathered into items of many, each with its own honest outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.apply.errors import NoSpace
from kvstore.client import AsyncClient, KvError, NoSpaceError, OutcomeUnknownError, UnreachableError
from kvstore.client.session_frames import MALFORMED, TURN_ITEMS, turns, without
from kvstore.pb import rpc_pb2
from kvstore.pb import session_pb2 as pb
from kvstore.server.services import session as server_session
from tests.client.conftest import class_of
from tests.server.session_rig import PutLog, Rig, rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.servers import Cluster


@pytest.fixture
async def served() -> AsyncIterator[Rig]:
    async with rig() as ours:
        yield ours


@pytest.fixture
def log(served: Rig) -> PutLog:
    return PutLog(served.sessions)


def connect(served: Rig, **options: Any) -> AsyncClient:
    return AsyncClient([served.endpoint], transport="session", **options)


async def warm(served: Rig, log: PutLog, client: AsyncClient) -> None:
    """Open the session: the put that finds none goes as a call of its own."""
    first = asyncio.create_task(client.put(b"warm", b"up"))
    await served.until(lambda: served.kv.calls)
    reply = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=1))
    served.kv.calls[0][2].reply(reply.SerializeToString())
    assert (await first).revision == 1
    assert not log.runs


def put(client: AsyncClient, number: int) -> asyncio.Task[Any]:
    return asyncio.create_task(outcome(client.put(b"%d" % number, b"value")))


async def outcome(call: Any) -> Any:
    try:
        return await call
    except KvError as error:
        return error


async def test_what_is_put_together_is_one_item_and_each_learns_its_revision(
    served: Rig, log: PutLog
) -> None:
    async with connect(served) as client:
        await warm(served, log, client)
        tasks = [put(client, number) for number in range(300)]
        await served.until(lambda: log.runs)
        [(ops, _, run)] = log.runs
        assert [rpc_pb2.PutRequest.FromString(op[1]).key for op in ops] == [
            b"%d" % number for number in range(300)
        ]
        run.done(run.ids, [(10 + number, None) for number in range(300)])
        results = await asyncio.gather(*tasks)
        assert [(result.revision, result.previous) for result in results] == [
            (10 + number, None) for number in range(300)
        ]


async def test_other_operations_keep_their_place(served: Rig, log: PutLog) -> None:
    # An item takes more puts only while nothing is behind it: a token, for example.
    async with connect(served) as client:
        await warm(served, log, client)
        tasks = [put(client, 1), put(client, 2)]
        reading = asyncio.create_task(outcome(client.get(b"k", timeout_s=0.5)))
        tasks += [put(client, 3)]
        await served.until(lambda: len(log.runs) == 2)
        assert [len(run.ids) for _, _, run in log.runs] == [2, 1]
        for _, _, run in log.runs:
            run.done(
                run.ids, [(9, None)] * len(run.ids) if len(run.ids) == 1 else [(7, None), (8, None)]
            )
        assert [result.revision for result in await asyncio.gather(*tasks)] == [7, 8, 9]
        await reading


async def test_what_comes_behind_a_frame_or_a_token_begins_an_item(
    served: Rig, log: PutLog
) -> None:
    # Added to the item before, it would have left already, or go with the token before.
    async with connect(served) as client:
        await warm(served, log, client)
        tasks = [put(client, 1)]
        await served.until(lambda: log.runs)
        tasks.append(put(client, 2))
        await asyncio.sleep(0)
        session = client._transport.link().session
        assert session is not None
        session.set_metadata({"token": "fresh"})
        tasks.append(put(client, 3))
        await served.until(lambda: len(log.runs) == 3)
        for number, (_, _, run) in enumerate(log.runs):
            run.done(run.ids, [(5 + number, None)])
        assert [result.revision for result in await asyncio.gather(*tasks)] == [5, 6, 7]


async def test_each_gets_the_error_that_is_its_own(served: Rig, log: PutLog) -> None:
    async with connect(served) as client:
        await warm(served, log, client)
        tasks = [put(client, number) for number in range(3)]
        await served.until(lambda: log.runs)
        [(_, _, run)] = log.runs
        run.done(run.ids, [(5, None), NoSpace(), (6, None)])
        first, second, third = await asyncio.gather(*tasks)
        assert (first.revision, third.revision) == (5, 6)
        assert isinstance(second, NoSpaceError)


async def test_a_put_whose_task_is_cancelled_is_given_up(served: Rig, log: PutLog) -> None:
    async with connect(served) as client:
        await warm(served, log, client)
        tasks = [put(client, number) for number in range(3)]
        await served.until(lambda: log.runs)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await served.until(lambda: len(served.session.puts) == 2)
        [(_, _, run)] = log.runs
        run.done(run.ids, [(5, None), (6, None), (7, None)])
        assert [(await tasks[each]).revision for each in (0, 2)] == [5, 7]
        assert not client._transport.link().session._calls  # type: ignore[union-attr]


async def test_without_an_answer_in_time_the_outcome_is_open(served: Rig, log: PutLog) -> None:
    async with connect(served, timeout_s=0.2) as client:
        await warm(served, log, client)
        tasks = [put(client, number) for number in range(2)]
        for task in tasks:
            assert isinstance(await task, OutcomeUnknownError)
        await served.until(lambda: not served.session.puts)


async def test_what_the_window_has_no_room_for_waits_and_never_left_when_its_time_ends(
    served: Rig, log: PutLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_session, "OPERATIONS_MAX", 2)
    async with connect(served, timeout_s=0.3) as client:
        await warm(served, log, client)
        tasks = [put(client, number) for number in range(3)]
        await served.until(lambda: log.runs)
        outcomes = await asyncio.gather(*tasks)
        assert [type(each) for each in outcomes] == [
            OutcomeUnknownError, OutcomeUnknownError, UnreachableError,
        ]  # fmt: skip
        assert len(log.runs) == len(served.kv.calls) == 1


async def test_a_server_that_takes_no_such_items_gets_calls(served: Rig) -> None:
    async with connect(served) as client:
        tasks = [put(client, number) for number in range(2)]
        await served.until(lambda: len(served.kv.calls) == 2)
        more = [put(client, number) for number in range(2)]
        await served.until(lambda: len(served.kv.calls) == 4)
        for task in (*tasks, *more):
            task.cancel()
        await asyncio.wait({*tasks, *more})


# frames


def revisions(found: list[list[tuple[Any, ...]]]) -> Iterator[tuple[int, int]]:
    for turn in found:
        for kind, *fields in turn:
            if kind == pb.WRITTEN:
                call_id, revision, count = fields
                for number in range(count):
                    yield call_id + number, revision + number


@pytest.mark.parametrize("before", [0, 1, TURN_ITEMS - 1, TURN_ITEMS, TURN_ITEMS + 1])
@pytest.mark.parametrize("count", [1, TURN_ITEMS - 1, TURN_ITEMS, TURN_ITEMS + 1, 1000])
def test_a_turn_takes_so_many_answers_whatever_their_items(before: int, count: int) -> None:
    other = [(pb.REPLY, number, b"") for number in range(before)]
    found = turns((1, *other, (pb.WRITTEN, 500, 7, count), (pb.GOAWAY,)), 8192)
    answers = [sum(item[3] if item[0] == pb.WRITTEN else 1 for item in turn) for turn in found]
    assert answers[:-1] == [TURN_ITEMS] * (len(answers) - 1)
    assert 0 < answers[-1] <= TURN_ITEMS
    assert list(revisions(found)) == [(500 + number, 7 + number) for number in range(count)]
    assert [item for turn in found for item in turn if item[0] != pb.WRITTEN] == [
        *other, (pb.GOAWAY,),
    ]  # fmt: skip


def test_a_frame_without_items_is_a_turn_without_any() -> None:
    assert turns((1,), 10) == [[]]


@pytest.mark.parametrize(
    "item",
    [
        (pb.WRITTEN, 1, 1, 8193),
        (pb.WRITTEN, 1, 1, 0),
        (pb.WRITTEN, 1, 1, -1),
        (pb.WRITTEN, 1, 1, "all"),
        (pb.WRITTEN, 1, 1),
        (pb.WRITTEN, "1", 1, 10),
        (),
    ],
)
async def test_an_item_that_makes_no_sense_ends_the_session(
    served: Rig, log: PutLog, item: Any
) -> None:
    async with connect(served) as client:
        await warm(served, log, client)
        task = put(client, 1)
        await served.until(lambda: log.runs)
        served.session.push(item)
        assert isinstance(await task, OutcomeUnknownError)


@pytest.mark.parametrize("items", [(1, 5), (1, None), 5, None])
def test_what_is_no_list_of_items_is_malformed(items: Any) -> None:
    with pytest.raises(MALFORMED):
        turns(items, 10)


def test_what_is_late_before_it_left_is_taken_out_of_its_item() -> None:
    item = (pb.PUTS, 10, 5000, 0, [b"a", b"b", b"c", b"d", b"e"])
    assert without(item, {10, 12, 14}) == [
        (pb.PUTS, 11, 5000, 0, [b"b"]), (pb.PUTS, 13, 5000, 0, [b"d"]),
    ]  # fmt: skip
    assert without(item, {9, 12, 15}) == [
        (pb.PUTS, 10, 5000, 0, [b"a", b"b"]), (pb.PUTS, 13, 5000, 0, [b"d", b"e"]),
    ]  # fmt: skip
    assert without(item, set(range(10, 15))) == []


# real members


@pytest.mark.cluster
async def test_on_real_members_every_put_is_at_the_revision_it_was_told() -> None:
    # Through a follower too, which forwards them, and with others' operations in between.
    with class_of("kvstore")(3) as cluster:
        await check_revisions(cluster)


async def check_revisions(cluster: Cluster) -> None:
    clients = [AsyncClient([endpoint], transport="session") for endpoint in cluster.endpoints]
    told: dict[bytes, int] = {}

    async def work(client: AsyncClient, name: bytes) -> None:
        for number in range(40):
            key = b"%s-%d" % (name, number)
            told[key] = (await client.put(key, b"value of " + key)).revision
            if not number % 10:
                await client.put(key + b"-empty", b"")
                await client.put(b"shared", key, prev_kv=True)

    try:
        await asyncio.gather(
            *(
                work(client, b"%d-%d" % (which, task))
                for which, client in enumerate(clients)
                for task in range(20)
            )
        )
        found = [kv async for kv in clients[0].get_range(b"", prefix=True)]
    finally:
        for client in clients:
            await client.close()
    stored = {kv.key: kv.mod_revision for kv in found if kv.key in told}
    assert stored == told
    assert all(kv.value == b"value of " + kv.key for kv in found if kv.key in told)
