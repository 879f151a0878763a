"""Servers and clients for the client's tests.

Every test runs on each kind of server there is, and on ours over both transports.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient, Client
from tests.servers import SERVERS, Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KINDS = [
    pytest.param("etcd", marks=pytest.mark.etcd),
    pytest.param("kvstore", marks=pytest.mark.cluster),
    pytest.param("kvstore-unary", marks=pytest.mark.cluster),
]
TRANSPORTS = {"etcd": "auto", "kvstore": "session", "kvstore-unary": "unary"}
"""What clients use unless a test says otherwise. Not "auto" on ours: it would hide a fallback."""

_numbers = itertools.count(1)


def class_of(kind: str) -> type[Cluster]:
    found = SERVERS[kind.partition("-")[0]]
    reason = found.missing()
    if reason is not None:
        pytest.skip(reason)
    return found


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the clients of this test take the transport that its kind of server stands for."""
    callspec = getattr(request.node, "callspec", None)
    kinds = [] if callspec is None else callspec.params.values()
    chosen = next((TRANSPORTS[kind] for kind in kinds if kind in TRANSPORTS), "auto")
    for client in (AsyncClient, Client):
        monkeypatch.setitem(client.__init__.__kwdefaults__, "transport", chosen)
    return chosen


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One member, shared by all tests: use keys below `prefix`."""
    with class_of(request.param)(1) as cluster:
        yield cluster


@pytest.fixture(params=KINDS)
def fresh_server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One member of the test's own, for what changes the whole store."""
    with class_of(request.param)(1) as cluster:
        yield cluster


@pytest.fixture(
    scope="session",
    params=[
        # The quick suite takes our own server; etcd's elections and restarts take longer.
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.slow]),
        pytest.param("kvstore", marks=pytest.mark.cluster),
        pytest.param("kvstore-unary", marks=[pytest.mark.cluster, pytest.mark.slow]),
    ],
)
def three_members(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with class_of(request.param)(3) as cluster:
        yield cluster


@pytest.fixture
def three(three_members: Cluster) -> Iterator[Cluster]:
    """Three members whose processes a test may kill or freeze; all run again for the next one."""
    yield three_members
    three_members.heal()


@pytest.fixture
async def client(server: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.endpoints) as client:
        yield client


@pytest.fixture
def prefix() -> bytes:
    """A folder of keys that no other test uses."""
    return b"t%d/" % next(_numbers)
