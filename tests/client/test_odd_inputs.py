"""What programs do by mistake: each is told what is wrong and what to do, and nothing hangs."""

from __future__ import annotations

import asyncio
import inspect
import math
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from kvstore.client import (
    AsyncClient,
    Client,
    ClosedError,
    KvError,
    LeaseLostError,
    Op,
    OutcomeUnknownError,
    PipelineError,
    UnreachableError,
    WrongLoopError,
)
from kvstore.client.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.servers import Cluster

PATIENCE_S = 10.0
"""Far below what a hang takes, far above what an answer does."""

NO_TIME = [0, 0.0, -1, -math.inf]
NO_NUMBER: list[Any] = [math.nan, math.inf, 1e300, "5", None, True, b"1"]

Act = "Callable[[AsyncClient], Awaitable[object]]"


async def first_key(client: AsyncClient, **given: Any) -> object:
    return await anext(aiter(client.get_range(b"k", prefix=True, **given)))


async def first_batch(client: AsyncClient) -> object:
    return await anext(client.watch(b"k"))


WITH_TIMEOUT: dict[str, Callable[..., Awaitable[object]]] = {
    "put": lambda client, s: client.put(b"k", b"v", timeout_s=s),
    "get": lambda client, s: client.get(b"k", timeout_s=s),
    "range": lambda client, s: client.range(b"k", prefix=True, timeout_s=s),
    "get_range": lambda client, s: first_key(client, timeout_s=s),
    "delete": lambda client, s: client.delete(b"k", timeout_s=s),
    "txn": lambda client, s: client.txn().then(Op.put(b"k", b"v")).commit(timeout_s=s),
    "pipeline": lambda client, s: client.pipeline().then(Op.put(b"k", b"v")).commit(timeout_s=s),
    "lease_grant": lambda client, s: client.lease_grant(60, timeout_s=s),
    "lease_keep_alive_once": lambda client, s: client.lease_keep_alive_once(1, timeout_s=s),
    "status": lambda client, s: client.status(timeout_s=s),
    "member_list": lambda client, s: client.member_list(timeout_s=s),
}
WITHOUT_TIMEOUT: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "watch start": lambda client: client.watch(b"k").start(),
    "watch iteration": first_batch,
    "lease": lambda client: client.lease(60).start(),
    "status of one": lambda client: client.status(client.endpoints[0]),
}
ACTS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    **{
        name: (lambda client, act=act: act(client, None))  # type: ignore[misc]
        for name, act in WITH_TIMEOUT.items()
    },
    **WITHOUT_TIMEOUT,
}


async def outcome(act: Awaitable[object]) -> BaseException | None:
    """Return what an act raises, if it ends in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            await act
    except (KvError, ValueError) as error:
        return error
    return None


# endpoints


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "localhost", "localhost:", ":2379", "127.0.0.1:x", "127.0.0.1:0"),
        *("127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:2379/path", "http://", "https://h"),
        *("ftp://h:1", "unix:///tmp/x:1", "user@host:2379", "two words:2379", "::1:2379"),
        *("h:1,g:2", "h:1\n", "[::1]", "h\0:1", "hôte:1", "127.0.0.1:\u0661"),
        *(None, 2379, b"127.0.0.1:2379", ("127.0.0.1", 2379)),
    ],
)
def test_a_wrong_endpoint_is_refused_with_the_right_form(text: Any) -> None:
    if text == "h:1\n":
        assert Endpoint.parse(text).target == "h:1"  # a line of a file
        return
    for kind in (AsyncClient, Client):
        with pytest.raises(ValueError, match=r"host:port|http or https|127\.0\.0\.1:2379"):
            kind([text])


@pytest.mark.parametrize("text", ["h:1", "http://h:1", "https://h-1.x_y:65535/", "[::1]:2379"])
def test_what_endpoints_may_look_like(text: str) -> None:
    assert Endpoint.parse(text).target in text


@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_endpoints_must_be_a_list_with_something_in_it(kind: Any) -> None:
    for endpoints in ([], (), "127.0.0.1:2379"):
        with pytest.raises(ValueError, match="a list with at least one host:port"):
            kind(endpoints)


async def test_a_wrong_endpoint_of_one_call(client: AsyncClient) -> None:
    error = await outcome(client.status("nowhere"))
    assert isinstance(error, ValueError)
    assert "host:port" in str(error)


# timeouts


@pytest.mark.parametrize("name", ["timeout_s", "connect_timeout_s"])
@pytest.mark.parametrize("value", [*NO_TIME, *NO_NUMBER], ids=repr)
def test_a_client_needs_a_positive_timeout(name: str, value: Any) -> None:
    for kind in (AsyncClient, Client):
        with pytest.raises(ValueError, match=f"{name} must be"):
            kind(["127.0.0.1:2379"], **{name: value})


@pytest.mark.parametrize("value", NO_TIME, ids=repr)
async def test_a_call_without_time_is_not_made(client: AsyncClient, value: float) -> None:
    # A program that counts down a deadline comes to this, and must learn that nothing happened.
    await client.put(b"k", b"before")
    for name, act in WITH_TIMEOUT.items():
        error = await outcome(act(client, value))
        assert isinstance(error, UnreachableError), name
        assert "no time left to send" in str(error)
    kv = await client.get(b"k")
    assert kv is not None
    assert kv.value == b"before"


@pytest.mark.parametrize("value", [v for v in NO_NUMBER if v is not None], ids=repr)
async def test_a_timeout_that_is_no_time_is_refused(client: AsyncClient, value: Any) -> None:
    for name, act in WITH_TIMEOUT.items():
        error = await outcome(act(client, value))
        assert isinstance(error, ValueError), name
        assert "timeout_s must be a number of seconds" in str(error)
    with pytest.raises(ValueError, match="resume_timeout_s must be"):
        client.watch(b"k", resume_timeout_s=value)
    # The connection and its session have not suffered.
    await client.put(b"k", b"after")


def test_a_long_timeout_is_taken(server: Cluster) -> None:
    with Client(server.endpoints, timeout_s=1e9) as client:
        client.put(b"k", b"v", timeout_s=1e9)
        assert len(client.pipeline().then(Op.get(b"k")).commit(timeout_s=1e9)) == 1
        with client.watch(b"k") as watcher:
            for no_time in (0, -1):
                assert watcher.next(no_time) is None
            for value in (math.nan, math.inf):
                with pytest.raises(ValueError, match="timeout_s must be"):
                    watcher.next(value)


# closed clients


@pytest.mark.parametrize("used", [False, True])
async def test_a_closed_client_says_so(server: Cluster, used: bool) -> None:
    client = AsyncClient(server.endpoints)
    if used:
        await client.put(b"k", b"v")
    await client.close()
    await client.close()
    for name, act in ACTS.items():
        error = await outcome(act(client))
        assert isinstance(error, ClosedError), name
        assert "the client is closed (make a new client)" in str(error)


def test_a_closed_synchronous_client_says_so(server: Cluster) -> None:
    client = Client(server.endpoints)
    client.put(b"k", b"v")
    pages, txn = client.get_range(b"k", prefix=True), client.txn()
    pipeline = client.pipeline().then(Op.get(b"k"))
    watcher, lease = client.watch(b"k"), client.lease(60).start()
    client.close()
    acts: dict[str, Callable[[], object]] = {
        "put": lambda: client.put(b"k", b"v"),
        "get_range": lambda: client.get_range(b"k"),
        "page": lambda: next(iter(pages)),
        "txn": txn.commit,
        "pipeline": pipeline.commit,
        "watch": lambda: client.watch(b"k"),
        "next": lambda: next(watcher),
        "progress": watcher.request_progress,
        "lease": lambda: client.lease(60),
        "revoke": lease.revoke,
        "status": client.status,
    }
    for name, act in acts.items():
        with pytest.raises(ClosedError) as caught:
            act()
        assert "make a new client" in str(caught.value), name
    watcher.close()  # as at the end of a `with` around it
    client.close()
    with pytest.raises(LeaseLostError, match="the client was closed"):
        lease.check()


async def test_a_closed_watch_says_so(client: AsyncClient) -> None:
    watcher = client.watch(b"k")
    await watcher.aclose()
    error = await outcome(watcher.start())
    assert isinstance(error, ClosedError)
    assert [batch async for batch in watcher] == []

    async with client.watch(b"k") as watcher:
        pass
    assert [batch async for batch in watcher] == []


async def test_closing_a_watch_wakes_who_waits_for_its_registration(dead: str) -> None:
    # It returned as if the watch stood.
    async with AsyncClient([dead], timeout_s=PATIENCE_S) as client:
        watcher = client.watch(b"k")
        waiting = asyncio.create_task(outcome(watcher.start()))
        await asyncio.sleep(0)  # it has begun
        await watcher.aclose()
        assert isinstance(await waiting, ClosedError)


async def test_closing_wakes_who_waits_for_the_loss_of_a_lease(server: Cluster) -> None:
    told: list[object] = []
    client = AsyncClient(server.endpoints)
    lease = await client.lease(60, on_lost=told.append).start()
    waiting = asyncio.create_task(lease.wait_lost())
    await client.close()
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    assert lease.is_lost
    assert told == []  # the program knows: it has closed the client


def test_closing_under_the_calls_of_other_threads_ends_them_all(server: Cluster) -> None:
    # A call that came between the last turn of the loop and its end waited for ever.
    for _ in range(5):
        client = Client(server.endpoints)
        client.put(b"k", b"v")
        ends: list[BaseException] = []
        running = threading.Barrier(9)

        given = (client, running, ends)
        threads = [threading.Thread(target=_write_on, args=given, daemon=True) for _ in range(7)]
        threads.append(threading.Thread(target=_wait_on, args=given, daemon=True))
        for thread in threads:
            thread.start()
        running.wait()
        client.close()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert len(ends) == 8
        kinds = (ClosedError, OutcomeUnknownError, LeaseLostError)
        assert all(isinstance(error, kinds) for error in ends), ends


def test_closing_ends_a_call_that_waits_to_try_again() -> None:
    # Its timer was on the loop that ended.
    client = Client(["127.0.0.1:1"], timeout_s=60)
    link: Any = client._client._transport.link()
    ends: list[BaseException] = []
    calling = threading.Thread(target=_get_on, args=(client, ends), daemon=True)
    calling.start()
    ends_at = time.monotonic() + PATIENCE_S
    # Refused once, it pauses most of the time.
    while link._connecting is None or not link._connecting.done():
        assert time.monotonic() < ends_at
        time.sleep(0.001)  # nothing to await: another thread's call
    client.close()
    calling.join(PATIENCE_S)
    assert not calling.is_alive()
    assert isinstance(ends[0], ClosedError)


def _get_on(client: Client, ends: list[BaseException]) -> None:
    try:
        client.get(b"k")
    except KvError as error:
        ends.append(error)


def _write_on(client: Client, running: threading.Barrier, ends: list[BaseException]) -> None:
    running.wait()
    try:
        while True:
            client.put(b"k", b"v")
    except KvError as error:
        ends.append(error)


def _wait_on(client: Client, running: threading.Barrier, ends: list[BaseException]) -> None:
    lease = client.lease(60).start()
    running.wait()
    try:
        lease.wait_lost()
        lease.check()
    except KvError as error:
        ends.append(error)


# dead endpoints


@pytest.fixture(params=["refused", "silent"])
def dead(request: pytest.FixtureRequest) -> Iterator[str]:
    """An endpoint that takes no connection, or takes it and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("mode", ["session", "unary"])
async def test_every_act_on_a_dead_endpoint_ends_in_time(dead: str, mode: Any) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncClient([dead], timeout_s=0.3, transport=mode) as client:
        started_s = loop.time()
        ends = await asyncio.gather(*(outcome(act(client)) for act in ACTS.values()))
        assert loop.time() - started_s < PATIENCE_S / 2
        for name, error in zip(ACTS, ends, strict=True):
            if name == "pipeline":
                assert isinstance(error, PipelineError)
                error = error.first  # noqa: PLW2901 (what is looked at)
            assert isinstance(error, UnreachableError), (name, error)
            assert "check the endpoints" in str(error)


def test_a_synchronous_client_of_a_dead_endpoint(dead: str) -> None:
    with Client([dead], timeout_s=0.3) as client:
        for act in (
            lambda: client.get(b"k"),
            lambda: client.watch(b"k"),
            lambda: client.lease(60).start(),
        ):
            with pytest.raises(UnreachableError):
                act()


async def test_a_dead_endpoint_in_front_costs_its_connect_timeout(
    server: Cluster, dead: str
) -> None:
    async with AsyncClient([dead, *server.endpoints], connect_timeout_s=0.3) as client:
        await client.put(b"k", b"v")
        async with client.watch(b"k"), client.lease(60):
            assert len(await client.pipeline().then(Op.get(b"k")).commit()) == 1


# another event loop


def elsewhere(act: Callable[[], Awaitable[object]]) -> Awaitable[BaseException | None]:
    """Return what an act raises on another event loop, in another thread."""

    async def run() -> BaseException | None:
        return await outcome(act())

    return asyncio.to_thread(lambda: asyncio.run(run()))


async def test_a_call_from_another_event_loop_is_refused(client: AsyncClient) -> None:
    # Its answer would arrive on the first loop, and nobody on the second would wake.
    await client.put(b"k", b"v")
    lease = await client.lease(60).start()
    async with client.watch(b"k") as watcher:
        acts = {
            **{name: (lambda act=act: act(client)) for name, act in ACTS.items()},  # type: ignore[misc]
            "next": lambda: anext(watcher),
            "aclose": watcher.aclose,
            "wait_lost": lease.wait_lost,
            "revoke": lease.revoke,
            "close": client.close,
        }
        for name, act in acts.items():
            error = await elsewhere(act)
            assert isinstance(error, WrongLoopError), (name, error)
            assert "an AsyncClient for each event loop" in str(error)
        # And nothing was harmed.
        put = await client.put(b"k", b"again")
        assert (await anext(watcher)).revision == put.revision
    await lease.revoke()


async def test_the_first_loop_that_uses_a_client_has_it(server: Cluster) -> None:
    # Made outside of any loop, as a global of a module.
    client = await asyncio.to_thread(AsyncClient, server.endpoints)
    async with client:
        await client.put(b"k", b"v")


def test_a_callback_may_not_wait_for_its_own_thread(server: Cluster) -> None:
    ends: list[BaseException] = []
    told = threading.Event()

    def lost(_: object) -> None:
        try:
            client.get(b"k")
        except KvError as error:
            ends.append(error)
        told.set()

    with Client(server.endpoints) as client:
        lease = client.lease(60, on_lost=lost).start()
        client.lease_revoke(lease.lease_id)
        # Noticed at the next renewal, unless it is lost before.
        lease._loop.run(_lose(lease._lease))
        assert told.wait(PATIENCE_S)
    assert isinstance(ends[0], WrongLoopError)


async def _lose(lease: Any) -> None:
    lease.lose("for the test")


# cancelled calls


async def test_cancelled_calls_leave_the_client_whole(server: Cluster, transport: str) -> None:
    # More than a session takes at a time: what is given up must give its place back.
    count = 9_000 if transport == "session" else 200
    async with AsyncClient(server.endpoints, timeout_s=60) as client:
        await client.put(b"k", b"v")
        server.pause(0)
        try:
            calls = [asyncio.create_task(_drive(client.get(b"k"))) for _ in range(count)]
            calls += [asyncio.create_task(_drive(act(client))) for act in ACTS.values()]
            done, _ = await asyncio.wait(calls, timeout=0.3)
            for call in calls:
                call.cancel()
            async with asyncio.timeout(PATIENCE_S):
                ends = await asyncio.gather(*calls, return_exceptions=True)
            assert not done
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        finally:
            server.resume(0)
        # Of a key of its own: the cancelled writes may yet arrive.
        async with asyncio.timeout(60):
            await client.put(b"whole", b"after")
            assert (await client.range(b"whole")).kvs[0].value == b"after"
            assert len(await client.pipeline().then(Op.get(b"whole")).commit()) == 1
            async with client.watch(b"whole") as watcher, client.lease(60):
                put = await client.put(b"whole", b"seen")
                assert (await anext(watcher)).revision == put.revision


async def _drive(act: Awaitable[object]) -> object:
    return await act


def test_every_method_with_a_timeout_is_tried_here() -> None:
    # Those left out are calls like these, by the same way.
    taking = {
        name
        for name, method in inspect.getmembers(AsyncClient, inspect.isfunction)
        if "timeout_s" in inspect.signature(method).parameters and not name.startswith("_")
    }
    rest = {
        *("call", "compact", "hash_kv", "alarm_list", "alarm_disarm", "move_leader"),
        *("lease_revoke", "lease_list", "lease_time_to_live", "keep_alive_response"),
        *("member_add", "member_remove", "member_update", "member_promote", "sync_endpoints"),
        # Recipes, made of calls like these.
        *("lock", "read_write_lock", "double_barrier", "stm"),
    }
    assert taking - rest == set(WITH_TIMEOUT) - {"txn", "pipeline"}
