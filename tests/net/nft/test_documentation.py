"""The table that docs/netplane.md shows is the one that agents write."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from netplane.nft.firewall import Firewall
from netplane.nft.rules import Rules
from tests.net.kernel.hosts import Host

pytestmark = [pytest.mark.net, pytest.mark.root]
PAGE = Path(__file__).parents[3] / "docs" / "netplane.md"


async def test_the_table_of_the_page_is_the_one_that_is_written(host: Host) -> None:
    rules = Rules(
        table="netplane",
        network=IPv4Network("10.5.0.0/16"),
        subnet=IPv4Network("10.5.42.0/24"),
        vxlan_port=8472,
        vni=1,
        masquerade=True,
    )
    hosts = frozenset({IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")})
    with contextlib.closing(Firewall("netplane", namespace=host.path)) as firewall:
        await firewall.apply(rules, hosts)
    listed = host.run("nft", "list", "table", "ip", "netplane")
    assert (
        f"```console\n# nft list table ip netplane\n{listed.expandtabs(4)}```" in PAGE.read_text()
    )
