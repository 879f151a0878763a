"""The synchronous facade: the same calls without asyncio."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING

import pytest

from kvstore.client import (
    AsyncClient,
    Client,
    ClosedError,
    LeaseLostError,
    Op,
    RequestError,
    UnreachableError,
    compare,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Cluster


@pytest.fixture
def blocking(server: Cluster) -> Iterator[Client]:
    with Client(server.endpoints) as client:
        yield client


def test_keys_ranges_and_transactions(blocking: Client, prefix: bytes) -> None:
    for number in range(5):
        blocking.put(prefix + b"%d" % number, b"v")
    kv = blocking.get(prefix + b"0")
    assert kv is not None
    assert kv.value == b"v"
    pages = blocking.get_range(prefix, prefix=True, page_size=2)
    assert len(list(pages)) == 5
    assert pages.revision >= kv.mod_revision
    answer = (
        blocking.txn()
        .when(compare(prefix + b"0").value == b"v")
        .then(Op.delete(prefix, prefix=True))
        .otherwise(Op.get(prefix))
        .commit()
    )
    assert answer.succeeded
    assert blocking.range(prefix, prefix=True, count_only=True).count == 0
    with pytest.raises(RequestError, match="key is not provided"):
        blocking.put(b"", b"")


def test_a_watch_in_another_thread_ends_when_closed(blocking: Client, prefix: bytes) -> None:
    seen: list[bytes] = []
    half = threading.Event()
    watcher = blocking.watch(prefix, prefix=True)

    def read_all() -> None:
        for batch in watcher:
            seen.extend(event.value for event in batch.events)
            if len(seen) == 3:
                half.set()

    reader = threading.Thread(target=read_all)
    reader.start()
    for number in range(3):
        blocking.put(prefix, b"%d" % number)
    assert half.wait(10)
    watcher.close()
    reader.join(10)

    assert not reader.is_alive()
    assert seen == [b"0", b"1", b"2"]


def test_waiting_for_a_change_with_a_limit(blocking: Client, prefix: bytes) -> None:
    with blocking.watch(prefix) as watcher:
        assert watcher.next(0.05) is None
        put = blocking.put(prefix, b"")
        batch = watcher.next(10)
        assert batch is not None
        assert batch.revision == put.revision
        assert watcher.next_revision == put.revision + 1


def test_a_lease(blocking: Client, prefix: bytes) -> None:
    lost = threading.Event()
    with blocking.lease(60) as lease:
        blocking.put(prefix, b"", lease=lease.lease_id)
        lease.check()
    assert blocking.get(prefix) is None

    lease = blocking.lease(2, on_lost=lambda _: lost.set()).start()
    blocking.lease_revoke(lease.lease_id)
    assert lost.wait(10)
    assert lease.is_lost
    with pytest.raises(LeaseLostError):
        lease.revoke()


def test_errors_and_use_after_close(server: Cluster) -> None:
    with Client(["127.0.0.1:1"], timeout_s=0.2) as unreachable, pytest.raises(UnreachableError):
        unreachable.get(b"k")
    client = Client(server.endpoints)
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.get(b"k")


def test_many_threads_share_one_client(blocking: Client, prefix: bytes) -> None:
    revisions: list[int] = []

    def write() -> None:
        revisions.extend(blocking.put(prefix, b"").revision for _ in range(50))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(revisions)) == 400


def test_the_facade_has_every_method() -> None:
    # A method added to AsyncClient must not be forgotten here.
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert names(AsyncClient) - names(Client) == {
        "call",
        "is_closed",
        "keep_alive_response",  # for tools that show the protocol
    }
    for name in ("put", "watch", "lease", "get_range"):
        ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__


def test_calls_after_a_close_tell_its_reason(server: Cluster, prefix: bytes) -> None:
    # Whoever closes a client under its users, as an embedded member that fails does, can say why.
    with Client(server.endpoints) as client:
        client.put(prefix, b"")
        with client.watch(prefix) as watcher:
            client.close("the power is out")
            assert watcher.next(timeout_s=1) is None
        for call in (client.get, client.delete):
            with pytest.raises(ClosedError, match="closed: the power is out"):
                call(prefix)
        client.close("another reason")
        with pytest.raises(ClosedError, match="the power is out"):
            client.get(prefix)
