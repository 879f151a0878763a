"""Servers for kvctl's tests."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Cluster

KINDS = [
    pytest.param("etcd", marks=pytest.mark.etcd),
    pytest.param("kvstore", marks=pytest.mark.cluster),
]


@pytest.fixture(scope="session", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One member, shared by all tests."""
    reason = SERVERS[request.param].missing()
    if reason is not None:
        pytest.skip(reason)
    with SERVERS[request.param](1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcdctl() -> str:
    """The real etcdctl."""
    path = shutil.which("etcdctl")
    if path is None:
        pytest.skip("etcdctl is not installed (Debian package etcd-client)")
    return path
