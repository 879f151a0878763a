"""One host in a namespace of its own, and an ear of nftables in it that is none of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.faults.namespaces import missing
from tests.net.kernel.hosts import Host


@pytest.fixture
def host() -> Iterator[Host]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    made = Host(1)
    yield made
    made.close()
