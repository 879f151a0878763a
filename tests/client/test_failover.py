"""What the client does when members die, freeze or are cut off, against real clusters."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    ClosedError,
    KvError,
    LeaseLostError,
    NoLeaderError,
    Op,
    OutcomeUnknownError,
    ReadFailedError,
    UnreachableError,
)
from kvstore.client.session import OPEN_PATH
from tests.client.h2_server import Server, listening
from tests.client.proxy import Proxy
from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client import WatchBatch, Watcher
    from tests.servers import Cluster


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event announces: the progress of other tasks' counters."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def outcome(call) -> KvError | None:
    try:
        await call
    except KvError as error:
        return error
    return None


async def test_the_client_goes_on_after_each_member_in_turn_is_killed(three: Cluster) -> None:
    async with AsyncClient(three.endpoints, timeout_s=10) as client:
        await client.put(b"k", b"0")
        for index in range(3):
            three.kill(index)
            # A write that meets the dead connection has an open outcome only when it was sent:
            # reads are repeated, so the next write finds a member that serves.
            before = await client.get(b"k")
            assert before is not None
            assert before.value == b"%d" % index
            await client.put(b"k", b"%d" % (index + 1))
            three.restart(index)


@pytest.mark.slow
async def test_no_acknowledged_write_is_lost_and_no_refused_one_appears(three: Cluster) -> None:
    """20 writers of unique keys while the leader is killed and comes back."""
    acknowledged: set[bytes] = set()
    refused: set[bytes] = set()
    is_over = False

    async with AsyncClient(three.endpoints, timeout_s=5) as client:

        async def write(writer: int) -> None:
            number = 0
            while not is_over:
                key = b"w/%d/%d" % (writer, number)
                error = await outcome(client.put(key, b""))
                if error is None:
                    acknowledged.add(key)
                elif not error.may_have_applied:
                    refused.add(key)
                number += 1

        writers = [asyncio.create_task(write(number)) for number in range(20)]
        leader = three.leader()
        await eventually(lambda: len(acknowledged) >= 500)
        three.kill(leader)
        count = len(acknowledged)
        await eventually(lambda: len(acknowledged) >= count + 500)
        await asyncio.to_thread(three.restart, leader)
        is_over = True
        await asyncio.gather(*writers)

        stored = {kv.key async for kv in client.get_range(b"w/", prefix=True, keys_only=True)}

    assert acknowledged <= stored
    assert not refused & stored


async def test_a_watch_has_no_gap_and_no_repeat_while_its_members_die(three: Cluster) -> None:
    total = 600
    seen: list[WatchBatch] = []
    written: list[int] = []

    async with (
        AsyncClient(three.endpoints, timeout_s=10) as watching,
        AsyncClient(three.endpoints[::-1], timeout_s=10) as writing,
        watching.watch(b"n/", prefix=True) as watcher,
    ):

        async def write() -> None:
            for number in range(total):
                # Two keys in one revision, so that a torn revision shows. The guard makes the
                # repetition safe after an open outcome.
                while True:
                    txn = writing.txn().then(
                        Op.put(b"n/a", b"%d" % number), Op.put(b"n/b", b"%d" % number)
                    )
                    error = await outcome(txn.commit())
                    if error is None:
                        break
                    assert isinstance(error, AvailabilityError)
                written.append(number)

        async def read() -> None:
            async for batch in watcher:
                seen.append(batch)
                if batch.events[0].value == b"%d" % (total - 1):
                    return

        async def disturb() -> None:
            for number, index in enumerate((0, 1, 0)):
                goal = (number + 1) * total // 5
                await eventually(lambda goal=goal: len(written) >= goal)
                await asyncio.to_thread(three.kill, index)
                await asyncio.to_thread(three.restart, index)

        async with asyncio.timeout(60):
            await asyncio.gather(write(), read(), disturb())

        assert watcher.resumptions >= 2
        history = [
            batch
            for revision in [seen[0].revision]
            for batch in await replay(watching, revision, seen[-1].revision)
        ]

    # Everything, once, in order, whole: the same as a fresh reading of the history.
    assert [batch.revision for batch in seen] == [batch.revision for batch in history]
    assert seen == history
    for batch in seen:
        assert [event.key for event in batch.events] == [b"n/a", b"n/b"]
    values = [int(batch.events[0].value) for batch in seen]
    assert sorted(set(values)) == list(range(total))
    assert values == sorted(values)


async def replay(client: AsyncClient, first: int, last: int) -> list[WatchBatch]:
    batches: list[WatchBatch] = []
    async with client.watch(b"n/", prefix=True, start_revision=first) as watcher:
        async for batch in watcher:
            batches.append(batch)
            if batch.revision == last:
                break
    return batches


async def next_batch(watcher: Watcher) -> WatchBatch:
    return await asyncio.wait_for(anext(watcher), 20)


async def test_a_watch_resumes_before_its_first_event_without_a_gap(server: Cluster) -> None:
    # The change is made between the break and the resumption; the watch had seen nothing yet.
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as client,
        AsyncClient(server.endpoints) as writer,
        client.watch(b"resume/first") as watcher,
    ):
        proxy.hold_answers()
        put = await writer.put(b"resume/first", b"in between")
        await proxy.cut()

        batch = await next_batch(watcher)

        assert batch.revision == put.revision
        assert watcher.resumptions == 1


async def test_a_watch_resumes_while_nobody_reads_and_loses_nothing(server: Cluster) -> None:
    # Some came before the break, some while it lasts, some after: what was not read is handed on
    # though the revisions are compacted before anybody reads.
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as client,
        AsyncClient(server.endpoints) as writer,
        client.watch(b"resume/unread") as watcher,
        client.watch(b"resume/unread") as witness,
    ):
        before = [await writer.put(b"resume/unread", b"%d" % number) for number in range(5)]
        for put in before:  # the same connection: what one has, the other has
            assert (await next_batch(witness)).revision == put.revision
        await proxy.cut()
        await eventually(lambda: watcher.resumptions == 1)
        await writer.compact(before[-1].revision)
        after = [await writer.put(b"resume/unread", b"%d" % number) for number in range(5)]

        read = [(await next_batch(watcher)).revision for _ in (*before, *after)]

        assert read == [put.revision for put in (*before, *after)]
        assert watcher.resumptions == 1


async def test_a_watch_that_cannot_resume_says_so(server: Cluster) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint]) as client,
        client.watch(b"k", resume_timeout_s=0.3) as watcher,
    ):
        await proxy.refuse()
        with pytest.raises(AvailabilityError):
            await next_batch(watcher)


async def test_a_write_cut_off_after_it_was_sent_has_an_open_outcome(server: Cluster) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        # A second endpoint is there, and must not be tried: the write may have been applied.
        AsyncClient([proxy.endpoint, server.endpoints[0]]) as client,
        AsyncClient(server.endpoints) as other,
    ):
        first = await client.put(b"cut", b"1")
        async with other.watch(b"cut", start_revision=first.revision + 1) as watcher:
            proxy.hold_answers()
            writing = asyncio.create_task(outcome(client.put(b"cut", b"2")))
            batch = await next_batch(watcher)  # it has been applied
            await proxy.cut()

            error = await writing

            assert isinstance(error, OutcomeUnknownError)
            assert error.may_have_applied
            kv = await client.get(b"cut")  # by the second endpoint
            assert kv is not None
            assert (kv.value, kv.mod_revision) == (b"2", batch.revision)


@pytest.mark.parametrize("kind", ["txn", "delete", "lease_grant", "compact"])
async def test_every_kind_of_write_has_an_open_outcome_when_no_answer_comes(
    server: Cluster, kind: str
) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint, server.endpoints[0]]) as client,
    ):
        revision = (await client.put(b"silent", b"")).revision
        calls = {
            "txn": lambda: client.txn().then(Op.put(b"silent", b"1")).commit(timeout_s=0.3),
            "delete": lambda: client.delete(b"silent", timeout_s=0.3),
            "lease_grant": lambda: client.lease_grant(10, timeout_s=0.3),
            # Below what is compacted already at the latest the second time: nobody is disturbed.
            "compact": lambda: client.compact(max(revision - 10_000, 1), timeout_s=0.3),
        }
        proxy.hold_answers()

        assert isinstance(await outcome(calls[kind]()), OutcomeUnknownError)


async def test_a_read_cut_off_is_asked_again_elsewhere(server: Cluster) -> None:
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint, server.endpoints[0]]) as client,
    ):
        await client.put(b"read", b"v")
        proxy.hold_answers()
        reading = asyncio.create_task(client.get(b"read"))
        counting = asyncio.create_task(client.txn().then(Op.get(b"read")).commit())
        await asyncio.wait_for(proxy.requests_seen.wait(), 10)
        await proxy.cut()

        kv = await reading
        assert kv is not None
        assert kv.value == b"v"
        assert (await counting).succeeded


async def test_a_read_without_an_answer_fails_in_its_time(server: Cluster) -> None:
    async with Proxy(server.endpoints[0]) as proxy, AsyncClient([proxy.endpoint]) as client:
        await client.put(b"read", b"v")
        proxy.hold_answers()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        error = await outcome(client.get(b"read", timeout_s=0.3))
        assert isinstance(error, ReadFailedError)
        assert loop.time() - begun_s < 3


async def test_a_write_to_a_dead_endpoint_was_never_sent(server: Cluster) -> None:
    dead = "127.0.0.1:1"
    async with AsyncClient([dead], timeout_s=0.3) as client:
        error = await outcome(client.put(b"k", b""))
        assert isinstance(error, UnreachableError)
        assert not error.may_have_applied
    # With a living one behind it, nobody notices.
    async with AsyncClient([dead, server.endpoints[0]]) as client:
        await client.put(b"dead/first", b"v")
        async with client.watch(b"dead/first"), client.lease(10):
            pass


async def test_an_endpoint_that_answers_nothing_costs_its_share_only(server: Cluster) -> None:
    # A port that accepts and never speaks: no HTTP/2 settings arrive.
    async with (
        Proxy(server.endpoints[0]) as proxy,
        AsyncClient([proxy.endpoint, server.endpoints[0]], connect_timeout_s=0.3) as client,
    ):
        proxy.hold_answers()
        await client.put(b"silent/first", b"v")


async def test_what_a_server_said_is_told_rather_than_that_the_time_is_over() -> None:
    def prepare(server: Server) -> None:
        def request(stream: int) -> None:
            if server.headers[stream][":path"] == OPEN_PATH:
                # The second time it does not even say that it offers no sessions.
                if stream == 1:
                    server.refuse(stream, ("grpc-status", "12"))
            else:
                server.refuse(
                    stream, ("grpc-status", "14"), ("grpc-message", "etcdserver: no leader")
                )

        server.on_request = request

    async with listening() as listener:
        listener.prepare = prepare
        endpoint = f"127.0.0.1:{listener.port}"
        async with AsyncClient([endpoint], timeout_s=0.5, connect_timeout_s=5) as client:
            assert isinstance(await outcome(client.put(b"k", b"v")), NoLeaderError)
        [server] = listener.connections
        assert [headers[":path"] for headers in server.headers.values()].count(OPEN_PATH) == 2


async def test_a_member_without_a_leader_refuses_and_nothing_was_written(three: Cluster) -> None:
    async with AsyncClient(three.endpoints, timeout_s=10) as client:
        await client.put(b"k", b"v")
        three.kill(0)
        three.kill(1)
        # The survivor may believe in the dead leader until its election timeout; what it takes
        # meanwhile has an open outcome. Afterwards it refuses.
        async with asyncio.timeout(60), AsyncClient(three.endpoints[2:], timeout_s=5) as last:
            while not isinstance(error := await outcome(last.put(b"k", b"?")), NoLeaderError):
                assert isinstance(error, OutcomeUnknownError)
            assert isinstance(await outcome(last.put(b"refused", b"")), NoLeaderError)
            assert isinstance(await outcome(last.get(b"k")), NoLeaderError)
            kv = await last.get(b"k", serializable=True)
            assert kv is not None
            assert (await last.status()).leader_id == 0
        await asyncio.to_thread(three.heal)
        assert await client.get(b"refused") is None


@pytest.mark.slow
async def test_a_watch_leaves_a_member_that_lost_its_leader(three: Cluster) -> None:
    # The member lives and keeps the connection; only the hasleader metadata makes it say so.
    leader = three.leader()
    watched = (leader + 1) % 3
    third = 3 - leader - watched
    endpoints = [three.endpoints[watched], three.endpoints[leader]]
    async with AsyncClient(endpoints, timeout_s=20) as client, client.watch(b"k") as watcher:
        three.pause(leader)
        three.kill(third)
        await eventually(lambda: watcher._last_failure is not None)
        assert "no leader" in watcher._last_failure.text
        three.resume(leader)
        put = await client.put(b"k", b"v")
        assert (await next_batch(watcher)).revision == put.revision


@pytest.mark.slow
async def test_a_lease_survives_the_death_of_the_member_it_is_renewed_at(three: Cluster) -> None:
    async with AsyncClient(three.endpoints, timeout_s=10) as client:
        async with client.lease(4) as lease:
            await client.put(b"leased", b"", lease=lease.lease_id)
            three.kill(0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lease.wait_lost(), 1.25 * lease.ttl_s)
            assert await client.get(b"leased") is not None
        assert await client.get(b"leased") is None


async def test_a_keep_alive_leaves_a_member_that_is_frozen(three: Cluster) -> None:
    # Its connection stands, so nothing but the silence tells; else every renewal waits there.
    leader = three.leader()
    frozen = (leader + 1) % 3
    endpoints = [three.endpoints[frozen], three.endpoints[leader]]
    async with AsyncClient(endpoints, timeout_s=10) as client:
        grant = await client.lease_grant(60)
        three.pause(frozen)
        try:
            renewal = client.lease_keep_alive_once(grant.lease_id, timeout_s=1)
            assert isinstance(await outcome(renewal), ReadFailedError)
            assert await client.lease_keep_alive_once(grant.lease_id) is not None
        finally:
            three.resume(frozen)


async def test_a_lease_is_lost_when_the_cluster_is_gone(server: Cluster) -> None:
    async with Proxy(server.endpoints[0]) as proxy, AsyncClient([proxy.endpoint]) as client:
        lease = await client.lease(2).start()
        await proxy.refuse()
        await asyncio.wait_for(lease.wait_lost(), 10)
        with pytest.raises(LeaseLostError, match="not renewed"):
            await lease.revoke()


async def test_closing_fails_the_calls_under_way(server: Cluster) -> None:
    async with Proxy(server.endpoints[0]) as proxy:
        client = AsyncClient([proxy.endpoint])
        await client.put(b"close", b"")
        proxy.hold_answers()
        reading = asyncio.create_task(outcome(client.get(b"close")))
        await asyncio.wait_for(proxy.requests_seen.wait(), 10)

        await client.close()

        assert isinstance(await asyncio.wait_for(reading, 5), ClosedError)
        with pytest.raises(ClosedError):
            await client.put(b"close", b"")


async def test_every_endpoint_that_was_tried_is_named_with_what_it_said() -> None:
    async with listening() as refusing:

        def refuse(server: Server) -> None:
            words = ("grpc-status", "14"), ("grpc-message", "etcdserver: no leader")
            server.on_request = lambda stream: server.refuse(stream, *words)

        refusing.prepare = refuse
        [one, other] = (f"127.0.0.1:{port}" for port in free_ports(2))
        endpoints = [one, f"127.0.0.1:{refusing.port}", other]
        async with AsyncClient(endpoints, timeout_s=1, transport="unary") as client:
            for _ in range(2):
                with pytest.raises(AvailabilityError) as caught:
                    await client.get(b"k")
                text = str(caught.value)
                assert text.count("etcdserver: no leader") == 1, text
                assert [text.count(f"{each}: no connection: ") for each in (one, other)] == [1, 1]
                # An endpoint that a call was made for is alone with its word.
                with pytest.raises(UnreachableError) as alone:
                    await client.status(one, timeout_s=0.2)
                assert other not in str(alone.value)


async def test_many_calls_that_wait_for_a_refused_connection_fail_alike() -> None:
    # They share each attempt to connect. The first to hear of a refusal begins the next attempt,
    # and the others once took that one's result, which is not there yet: InvalidStateError.
    [port] = free_ports(1)
    async with AsyncClient([f"127.0.0.1:{port}"], timeout_s=0.3) as client:
        failures = await asyncio.gather(*(outcome(client.put(b"k", b"v")) for _ in range(50)))
    assert {type(failure) for failure in failures} == {UnreachableError}
