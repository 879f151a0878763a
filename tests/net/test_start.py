"""Agents that start together, from exec on: all join, and what that costs the registry."""

from __future__ import annotations

import re
from urllib.request import urlopen

import pytest

from tests.net.namespaces import missing
from tests.net.overlay import Overlay

pytestmark = [
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
HOSTS = 8
CALLS_MAX = 6
"""Listing, two leases, the claim, the watch; and one more for whoever lost a race four times."""


def operations(overlay: Overlay) -> float:
    """Return how many calls the member has got, as it counts them itself; renewals are not."""
    url = f"http://{overlay.members.endpoints[0]}/metrics"
    page = overlay.rig.hosts[0].namespace.within(lambda: urlopen(url).read().decode())
    line = r'^kvstore_session_operations_total\{grpc_method="(\w+)".*\} ([0-9.e+]+)$'
    counts = re.findall(line, page, re.MULTILINE)
    assert counts, page
    # A slow machine may need more than the 10 s after which an agent renews.
    return sum(float(count) for method, count in counts if method != "LeaseKeepAlive")


def test_hosts_that_start_together_cost_the_registry_few_calls_each() -> None:
    # Flannel asks once for each lease there is: a boot of N hosts is N^2 calls.
    with Overlay(HOSTS) as overlay:
        # What `ctl init` adds is inside the bound.
        assert operations(overlay) <= HOSTS * CALLS_MAX
        subnets = {agent.subnet for agent in overlay.agents}
    assert len(subnets) == HOSTS
