"""Real members that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore.pb import rpc_pb2
from tests.server.raw import Raw
from tests.servers import Kvstore


@pytest.fixture(scope="session")
def member() -> Iterator[Kvstore]:
    """One member; tests use keys of their own and leave no alarm behind."""
    with Kvstore(1) as cluster:
        yield cluster


@pytest.fixture
def raw(member: Kvstore) -> Iterator[Raw]:
    """A connection to the one member."""
    with Raw(member.endpoints[0]) as connection:
        yield connection


@pytest.fixture(scope="session")
def trio() -> Iterator[Kvstore]:
    """Three members that stay up."""
    with Kvstore(3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def lonely() -> Iterator[Kvstore]:
    """Three members of which only the first runs: it has no leader and gets none."""
    # Shorter times: requests wait for five seconds and two election timeouts.
    flags = ("--heartbeat-interval", "50", "--election-timeout", "500")
    with Kvstore(3, flags=flags) as cluster:
        with Raw(cluster.endpoints[0]) as connection:
            # What needs no leader later must have data to show.
            connection.call("Put", rpc_pb2.PutRequest(key=b"before", value=b"1"))
            connection.call("LeaseGrant", rpc_pb2.LeaseGrantRequest(ID=77, TTL=1000))
        cluster.kill(1)
        cluster.kill(2)
        cluster.wait_leaderless(0)
        yield cluster
