"""Servers and clients for the client's tests; every test runs on each kind of server there is."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient
from tests.servers import SERVERS, Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KINDS = [
    pytest.param("etcd", marks=pytest.mark.etcd),
    pytest.param("kvstore", marks=pytest.mark.cluster),
]
_numbers = itertools.count(1)


def skip_unless_there(kind: str) -> None:
    reason = SERVERS[kind].missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One member, shared by all tests: use keys below `prefix`."""
    skip_unless_there(request.param)
    with SERVERS[request.param](1) as cluster:
        yield cluster


@pytest.fixture(params=KINDS)
def fresh_server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One member of the test's own, for what changes the whole store."""
    skip_unless_there(request.param)
    with SERVERS[request.param](1) as cluster:
        yield cluster


@pytest.fixture(
    scope="session",
    params=[
        # The quick suite takes our own server; etcd's elections and restarts take longer.
        pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.slow]),
        pytest.param("kvstore", marks=pytest.mark.cluster),
    ],
)
def three_members(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    skip_unless_there(request.param)
    with SERVERS[request.param](3) as cluster:
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
