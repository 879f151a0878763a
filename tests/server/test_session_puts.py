"""Items of many puts: proposed together, answered together, and never otherwise than one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kvstore.apply.errors import NoSpace
from kvstore.apply.ops import PUT
from kvstore.pb import rpc_pb2
from kvstore.pb import session_pb2 as pb
from kvstore.server.errors import TimedOutError
from kvstore.server.proposals import Run
from kvstore.server.services import session
from kvstore.server.services.session_puts import PUTS_MAX
from tests.server.session_rig import SIZE_MAX, Client, PutLog, Rig, rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOO_MANY = [pb.END, 8, "etcdserver: too many requests"]


class Served:
    """A rig whose door stands open."""

    def __init__(self, ours: Rig) -> None:
        self.rig = ours
        self.log = PutLog(ours.sessions)

    async def run(self, number: int = 0) -> Run:
        """Return a run that has come or is coming."""
        await self.rig.until(lambda: len(self.log.runs) > number)
        return self.log.runs[number][2]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with rig() as ours:
        yield Served(ours)


@pytest.fixture
async def client(served: Served) -> Client:
    return await served.rig.open()


def put(key: str = "k", value: bytes = b"v", **fields: Any) -> bytes:
    return rpc_pb2.PutRequest(key=key.encode(), value=value, **fields).SerializeToString()


def puts(first_id: int, count: int, timeout_ms: int = 0) -> list[Any]:
    return [pb.PUTS, first_id, timeout_ms, 0, [put(f"k{n}") for n in range(count)]]


def done(first: int, count: int) -> list[Any]:
    """Results of puts that made successive revisions."""
    return [(revision, None) for revision in range(first, first + count)]


async def test_they_are_proposed_in_one_go_and_answered_by_one_item(
    served: Served, client: Client
) -> None:
    await client.send(puts(1, 3))
    run = await served.run()
    [(ops, size_bytes, _)] = served.log.runs
    assert ops == [(PUT, put(f"k{n}")) for n in range(3)]
    assert size_bytes == served.rig.session.unanswered_bytes == sum(len(op[1]) for op in ops)
    run.done(run.ids, done(5, 3))
    assert await client.next() == [pb.WRITTEN, 1, 5, 3]
    assert served.rig.session.unanswered_bytes == 0
    assert not served.rig.session.puts


async def test_their_order_among_other_items_is_kept(served: Served, client: Client) -> None:
    await client.send(client.call(1, "Echo"), puts(2, 2), client.call(4, "Echo"), puts(5, 1))
    assert [(await client.next())[1] for _ in range(2)] == [1, 4]
    assert [list(run.ids) for _, _, run in served.log.runs] == [[2, 3], [5]]


async def test_a_run_that_the_log_has_cut_is_answered_in_parts(
    served: Served, client: Client
) -> None:
    await client.send(puts(1, 5))
    run = await served.run()
    run.done(run.ids[:2], done(5, 2))
    assert await client.next() == [pb.WRITTEN, 1, 5, 2]
    run.done(run.ids[2:], TimedOutError())
    ends = [await client.next() for _ in range(3)]
    assert [end[:3] for end in ends] == [[pb.END, call_id, 14] for call_id in (3, 4, 5)]


async def test_one_that_was_refused_has_an_end_of_its_own(served: Served, client: Client) -> None:
    # It made no revision: what the others made follows from their results, not from their places.
    await client.send(puts(1, 4))
    run = await served.run()
    run.done(run.ids, [(5, None), NoSpace(), (6, None), (7, None)])
    assert await client.next() == [pb.WRITTEN, 1, 5, 1]
    assert await client.next() == [pb.END, 2, 8, "etcdserver: mvcc: database space exceeded"]
    assert await client.next() == [pb.WRITTEN, 3, 6, 1]
    assert await client.next() == [pb.WRITTEN, 4, 7, 1]


async def test_those_given_up_are_not_answered_and_the_others_keep_their_revisions(
    served: Served, client: Client
) -> None:
    await client.send(puts(1, 6), [pb.CANCEL, 1], [pb.CANCEL, 4], [pb.CANCEL, 4], [pb.CANCEL, 6])
    run = await served.run()
    await served.rig.until(lambda: len(served.rig.session.puts) == 3)
    run.done(run.ids, done(5, 6))
    assert await client.next() == [pb.WRITTEN, 2, 6, 2]
    assert await client.next() == [pb.WRITTEN, 5, 9, 1]
    await client.send(client.call(7, "Echo"))
    assert await client.next() == [pb.REPLY, 7, b""]
    assert served.rig.session.unanswered_bytes == 0


async def test_a_deadline_ends_them(served: Served, client: Client) -> None:
    await client.send(puts(1, 2, timeout_ms=30), puts(3, 1, timeout_ms=60_000), puts(4, 1))
    assert await client.next() == [pb.END, 1, 4, "context deadline exceeded"]
    assert await client.next() == [pb.END, 2, 4, "context deadline exceeded"]
    for number, first in enumerate((5, 7, 8)):
        run = await served.run(number)
        run.done(run.ids, done(first, len(run.ids)))
    assert await client.next() == [pb.WRITTEN, 3, 7, 1]
    assert await client.next() == [pb.WRITTEN, 4, 8, 1]
    assert served.rig.session.unanswered_bytes == 0


async def test_what_is_kept_for_deadlines_goes_with_the_puts(
    served: Served, client: Client
) -> None:
    # Timeouts may be days: a session must not keep a note of every put until then.
    for first_id in range(1, 41, 2):
        await client.send(puts(first_id, 2, timeout_ms=80_000_000))
    for number in range(20):
        run = await served.run(number)
        if number < 19:
            run.done(run.ids, done(5, 2))
    await served.rig.until(lambda: len(served.rig.session._put_ends) == 1)


async def test_a_full_queue_refuses_all_of_them(served: Served, client: Client) -> None:
    served.log.is_full = True
    await client.send(puts(1, 2))
    assert [await client.next() for _ in range(2)] == [
        [TOO_MANY[0], call_id, *TOO_MANY[1:]] for call_id in (1, 2)
    ]
    assert served.rig.session.unanswered_bytes == 0


@pytest.mark.parametrize(
    "odd",
    [
        put(value=b""),
        put(prev_kv=True),
        put(lease=7),
        put(key=""),
        put(value=bytes(SIZE_MAX)),
        b"nonsense",
    ],
    ids=["no value", "prev_kv", "lease", "no key", "long", "nonsense"],
)
async def test_what_a_handler_may_refuse_goes_to_the_handler(
    served: Served, client: Client, odd: bytes
) -> None:
    await client.send([pb.PUTS, 1, 0, 0, [put("a"), odd, put("c")]])
    await served.rig.until(lambda: len(served.rig.kv.calls) == 3)
    assert served.rig.kv.seen() == [("Put", put("a")), ("Put", odd), ("Put", put("c"))]
    assert not served.log.runs
    served.rig.kv.calls[1][2].reply(b"answer")
    assert await client.next() == [pb.REPLY, 2, b"answer"]


async def test_a_member_that_does_not_serve_leaves_them_to_its_guards(
    served: Served, client: Client
) -> None:
    served.log.is_serving = False
    await client.send(puts(1, 2))
    await served.rig.until(lambda: len(served.rig.kv.calls) == 2)


async def test_at_the_quota_the_handler_raises_the_alarm(served: Served, client: Client) -> None:
    served.log.size_bytes = (1 << 20) - 100
    await client.send(puts(1, 2))
    await served.rig.until(lambda: len(served.rig.kv.calls) == 2)


async def test_the_window_holds_for_them_too(
    served: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OPERATIONS_MAX", 5)
    await client.send(puts(1, 4), puts(5, 2))
    # One more fits, and nobody can say which one of an item: so each is judged for itself.
    assert await client.next() == [TOO_MANY[0], 6, *TOO_MANY[1:]]
    await served.rig.until(lambda: len(served.rig.kv.calls) == 1)
    await client.send(client.call(7, "Echo"))
    assert await client.next() == [TOO_MANY[0], 7, *TOO_MANY[1:]]


async def test_a_frame_of_many_does_not_hold_the_loop(served: Served, client: Client) -> None:
    # The largest item is what a turn takes; what is behind it waits for the next.
    count = PUTS_MAX
    await client.send(*(puts(first_id, count) for first_id in (1, 1 + count, 1 + 2 * count)))
    await served.rig.until(lambda: len(served.log.a_turn_later) == 3)
    assert served.log.a_turn_later == [1, 2, 3]


async def test_the_hello_offers_them_where_there_is_a_door(served: Served) -> None:
    assert (await served.rig.open()).hello["puts"] == PUTS_MAX
    async with rig() as other:
        client = await other.open()
        assert "puts" not in client.hello
        await client.send(puts(1, 1))
        assert await client.status() == ("INVALID_ARGUMENT", "session: no puts were offered")


@pytest.mark.parametrize(
    "item",
    [
        [pb.PUTS],
        [pb.PUTS, 1, 0, 0],
        [pb.PUTS, 1, 0, 0, []],
        [pb.PUTS, 1, 0, 0, b"bytes"],
        [pb.PUTS, 1, 0, 0, [put(), "text"]],
        [pb.PUTS, 1, 0, 0, [put(), 5]],
        [pb.PUTS, 1, 0, "flags", [put()]],
        [pb.PUTS, 1, "soon", 0, [put()]],
        [pb.PUTS, 0, 0, 0, [put()]],
        [pb.PUTS, "1", 0, 0, [put()]],
        [pb.PUTS, 1, 0, 0, [put()] * (PUTS_MAX + 1)],
        [pb.PUTS, 1, 0, 0, [put()], 0],
        [pb.WRITTEN, 1, 1, 1],
    ],
)
async def test_a_malformed_item_ends_the_session(client: Client, item: list[Any]) -> None:
    await client.send(item)
    code, text = await client.status()
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("session: ")


async def test_ids_go_on_behind_the_last_of_an_item(served: Served, client: Client) -> None:
    await client.send(puts(1, 3), client.call(3, "Echo"))
    assert await client.status() == ("INVALID_ARGUMENT", "session: ids must ascend: 3 after 3")
    run = await served.run()
    run.done(run.ids, done(5, 3))  # nobody is there any more


async def test_a_client_that_closes_its_half_gets_their_answers(
    served: Served, client: Client
) -> None:
    await client.send(puts(1, 2))
    run = await served.run()
    await client.stream.done_writing()
    run.done(run.ids, done(5, 2))
    assert await client.next() == [pb.WRITTEN, 1, 5, 2]
    assert await client.status() == ("OK", "")
