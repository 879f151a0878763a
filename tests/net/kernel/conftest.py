"""Two hosts on one cable; only the first is ours to work on, the second answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.kernel.hosts import Host
from tests.net.namespaces import missing


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    pair = Host(1), Host(2)
    pair[0].join(pair[1])
    yield pair
    for host in pair:
        host.close()


@pytest.fixture
def host(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]
