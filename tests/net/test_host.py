"""What the agent reads of its host's interfaces, against pyroute2 in the same kernel."""

from __future__ import annotations

import asyncio
import sys
from ipaddress import ip_interface
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from netplane.agent.interface import IFF_LOOPBACK, Address, DefaultRoute, Host, Link, read_host
from tests.net.namespaces import Namespace, missing, run
from tests.net.overlay import until

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
UNICAST, MAIN = 1, 254
ENDS = (("far", 0), ("far", 1), ("far", 2), ("wan", 0), ("wan", 1), ("tun", 0))


def ours(namespace: Namespace) -> Host:
    return namespace.within(lambda: asyncio.run(read_host()))


def theirs(namespace: Namespace) -> Host:
    return namespace.within(lambda: asyncio.run(_read_with_pyroute2()))


async def _read_with_pyroute2() -> Host:
    async with AsyncIPRoute() as kernel:
        links = [found async for found in await kernel.get_links()]
        addresses = [
            found
            for family in (AF_INET, AF_INET6)
            async for found in await kernel.get_addr(family=family)
        ]
        routes, routes6 = [
            [found async for found in await kernel.get_routes(family=family, table=MAIN)]
            for family in (AF_INET, AF_INET6)
        ]

    def addresses_of(index: int) -> tuple[Address, ...]:
        return tuple(
            Address(
                ip_interface((found.get("local") or found.get("address"), found["prefixlen"])),
                found["scope"],
                found.get("flags") or 0,
            )
            for found in addresses
            if found["index"] == index
        )

    def hops(route: Any) -> list[int]:
        several = route.get("multipath")
        return [hop["oif"] for hop in several] if several else [route.get("oif")]

    def defaults(routes: list[Any]) -> tuple[DefaultRoute, ...]:
        return tuple(
            DefaultRoute(index, found.get("priority") or 0)
            for found in routes
            if found["dst_len"] == 0 and found["type"] == UNICAST
            for index in hops(found)
        )

    return Host(
        tuple(
            Link(
                found["index"],
                found.get("ifname"),
                found.get("mtu"),
                found["flags"],
                addresses_of(found["index"]),
                found.get(("linkinfo", "kind")) or "",
            )
            for found in links
        ),
        defaults(routes),
        defaults(routes6),
    )


def test_a_host_of_every_kind_of_address_and_route_is_read_as_pyroute2_reads_it() -> None:
    with Namespace("many") as namespace:
        namespace.ip(
            "link add wan0 type veth peer name far0",
            "link add wan1 mtu 9000 type veth peer name far1",
            "link add tun0 type veth peer name far2",
            # The kernel's own IPv6 addresses come and lose their flags when it likes.
            *(
                f"link set {end}{number} {change}"
                for end, number in ENDS
                for change in ("addrgenmode none", "up")
            ),
            "addr add 192.0.2.10/24 dev wan0",
            "addr add 192.0.2.11/24 dev wan0",  # secondary
            "addr add 192.0.2.12/24 dev wan0 valid_lft 600 preferred_lft 0",  # deprecated
            "addr add 203.0.113.5/32 dev wan0 scope link noprefixroute",  # a flag above 8 bits
            "addr add 198.51.100.7/24 dev wan1",
            "addr add 10.9.0.1 peer 10.9.0.2/32 dev tun0",  # ours is not the one that names it
            "addr add fd00:1::5/64 dev wan0 nodad",
            "addr add fd00:1::6/128 dev wan0 nodad valid_lft 600 preferred_lft 0",
            "addr add fd00:9::1 peer fd00:9::2/128 dev tun0 nodad",
            "route add ::/0 via fd00:1::1 dev wan0 onlink metric 20",
            "route add ::/0 metric 30 nexthop via fd00:1::2 dev wan0 onlink"
            " nexthop via fd00:9::2 dev tun0 onlink",
            "route add unreachable ::/0 metric 90",
            "route add default via 192.0.2.1",
            "route add default via 198.51.100.1 metric 50",
            "route add default metric 70 nexthop via 192.0.2.2 nexthop via 198.51.100.2",
            "route add unreachable default metric 90",
            "route add 10.20.0.0/16 via 192.0.2.1",
            "route add default via 192.0.2.1 table 100",
        )
        # Some time after it is up the kernel finds that a link runs.
        until(
            lambda: all("LOWER_UP" in link["flags"] and link["operstate"] == "UP"
                        for link in namespace.json("ip", "-j", "link") if link["ifname"] != "lo"),
            10, "all links run",
        )  # fmt: skip
        found = ours(namespace)
        assert found == theirs(namespace)
    # Not two wrong readings that agree:
    by_name = {link.name: link for link in found.links}
    assert by_name.keys() == {"lo", "wan0", "wan1", "tun0", "far0", "far1", "far2"}
    assert by_name["wan1"].mtu == 9000
    assert str(by_name["tun0"].best_address()) == "10.9.0.1/32"
    assert len(by_name["wan0"].addresses) == 6
    assert sorted(route.metric for route in found.default_routes) == [0, 50, 70, 70]
    assert sorted(route.metric for route in found.default_routes6) == [20, 30, 30]


def test_a_host_that_never_had_a_route_is_no_error() -> None:
    # The kernel makes its tables with the first address, and says ENOENT before: so a namespace of
    # its own, whose loopback was never up.
    code = "import asyncio, netplane.agent.interface as i; print(asyncio.run(i.read_host()))"
    said = run("unshare", "--net", "--", sys.executable, "-c", code)
    lo = Link(1, "lo", 65536, IFF_LOOPBACK)
    assert said == f"{Host((lo,))}\n"
