"""`python -m bench.netlink`: peers into the kernel and read back; pyroute2 and `ip -batch` beside.

Needs root, iproute2 and pyroute2 (of the extra `dev`). Everything happens in a network namespace
of its own that ends with the program. A peer is a route, a neighbour and a forwarding entry; every
way starts from none and is checked to have made all. Processes that it starts count, as in life.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from pyroute2 import IPRoute

from netplane.agent.memory import settle
from netplane.agent.reconcile import Reconciler
from netplane.backend import External
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.netlink.connection import Connection
from netplane.netlink.kernel import Kernel
from netplane.netlink.objects import FdbEntry, KernelObject, Neighbour, Route
from netplane.subnet.lease import Lease

NETWORK = IPv4Network("10.128.0.0/9")
PEERS_MAX = 2**15 - 2
SUBNET = IPv4Network("10.128.1.0/24")
LINK = "np.1"
INSIDE = "NETPLANE_BENCH_INSIDE"

Objects = frozenset[KernelObject]


def peers(count: int) -> dict[IPv4Network, Lease]:
    """Return leases of that many hosts."""
    found = {}
    for number in range(2, count + 2):
        subnet = IPv4Network((int(NETWORK.network_address) + number * 256, 24))
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        address = IPv4Address("192.168.0.0") + number
        found[subnet] = Lease(subnet, address, "vxlan", {"VNI": 1, "VtepMAC": mac})
    return found


def text(packed: bytes) -> str:
    return str(IPv4Address(packed))


def ip_batches(objects: Objects) -> tuple[str, str]:
    """Return what `ip` and `bridge` are fed with."""
    neighbours, routes, entries = [], [], []
    for item in objects:
        if isinstance(item, Neighbour):
            neighbours.append(
                f"neigh replace {text(item.address)} lladdr {item.mac.hex(':')} dev {LINK}"
                f" nud permanent protocol {item.protocol}"
            )
        elif isinstance(item, FdbEntry):
            entries.append(
                f"fdb replace {item.mac.hex(':')} dev {LINK} dst {text(item.destination)}"
                " self permanent"
            )
        elif isinstance(item, Route):
            routes.append(
                f"route add {text(item.destination)}/{item.prefix_len} via {text(item.gateway)}"
                f" dev {LINK} onlink proto {item.protocol}"
            )
    return "\n".join([*neighbours, *routes, ""]), "\n".join([*entries, ""])


def write_with_ip(objects: Objects) -> None:
    links, entries = ip_batches(objects)
    run("bridge", "-batch", "-", feed=entries)
    run("ip", "-batch", "-", feed=links)


def read_with_ip() -> int:
    texts = [
        run("ip", "-j", "route", "show", "proto", "181"),
        run("ip", "-j", "neigh", "show", "dev", LINK, "nud", "permanent"),
        run("bridge", "-j", "fdb", "show", "dev", LINK),
    ]
    return sum(len(json.loads(text)) for text in texts)


def write_with_pyroute2(objects: Objects) -> None:
    """One by one, as its documentation has it."""
    with IPRoute() as kernel:
        [index] = kernel.link_lookup(ifname=LINK)
        for item in objects:
            if isinstance(item, Neighbour):
                kernel.neigh(
                    "replace", dst=text(item.address), lladdr=item.mac.hex(":"), ifindex=index,
                    state=0x80, protocol=item.protocol,
                )  # fmt: skip
            elif isinstance(item, FdbEntry):
                kernel.fdb(
                    "replace", dst=text(item.destination), lladdr=item.mac.hex(":"),
                    ifindex=index, state=0x80, flags=0x2,
                )  # fmt: skip
        for item in objects:
            if isinstance(item, Route):
                kernel.route(
                    "add", dst=f"{text(item.destination)}/{item.prefix_len}", oif=index,
                    gateway=text(item.gateway), proto=item.protocol, flags=["onlink"],
                )  # fmt: skip


def read_with_pyroute2() -> int:
    with IPRoute() as kernel:
        [index] = kernel.link_lookup(ifname=LINK)
        routes = sum(1 for item in kernel.get_routes(family=2, table=254) if item["proto"] == 181)
        neighbours = sum(
            1 for item in kernel.get_neighbours(family=2, ifindex=index) if item["state"] & 0x80
        )
        return routes + neighbours + len(list(kernel.fdb("dump", ifindex=index)))


async def read_with_ours() -> int:
    async with Connection() as connection:
        kernel = Kernel(connection)
        link = await kernel.link(LINK)
        assert link is not None
        return (
            len(await kernel.neighbours(2, link.index, LINK))
            + len(await kernel.fdb(link.index, LINK))
            + len(await kernel.routes(2, {link.index: LINK}))
        )


def run(*command: str, feed: str | None = None) -> str:
    return subprocess.run(
        command, input=feed, capture_output=True, text=True, check=True
    ).stdout  # a failure names the command


async def timed(action: Callable[[], Awaitable[object]]) -> float:
    start = time.perf_counter()
    await action()
    return (time.perf_counter() - start) * 1000


def new_backend() -> VxlanBackend:
    return VxlanBackend(
        VxlanConfig(),
        network=NETWORK,
        external=External("eth0", IPv4Interface("192.168.0.1/16"), 1500),
        mac="02:00:00:00:00:01",
    )


async def write_with_ours(leases: dict[IPv4Network, Lease]) -> None:
    """From leases to acknowledgements, as an agent that starts: the plan and reading count."""
    backend = new_backend()
    async with Reconciler(backend.scope) as reconciler:
        report = await reconciler.apply(backend.plan(SUBNET, leases).objects)
    assert not report.failed, report.failed


async def measure(count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return milliseconds of writing and reading, by way."""
    leases = peers(count)
    wanted = new_backend().plan(SUBNET, leases).objects
    ways: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
        "netplane": (lambda: write_with_ours(leases), read_with_ours),
        "ip and bridge -batch": (
            lambda: asyncio.to_thread(write_with_ip, wanted),
            lambda: asyncio.to_thread(read_with_ip),
        ),
        "pyroute2": (
            lambda: asyncio.to_thread(write_with_pyroute2, wanted),
            lambda: asyncio.to_thread(read_with_pyroute2),
        ),
    }
    figures: dict[str, dict[str, list[float]]] = {name: {"write": [], "read": []} for name in ways}
    for _ in range(rounds):
        for name, (writing, reading) in ways.items():
            await write_with_ours({})
            assert await read_with_ours() == 0
            figures[name]["write"].append(await timed(writing))
            assert await read_with_ours() == 3 * count, name
            figures[name]["read"].append(await timed(reading))
    return figures


def go_inside(parser: argparse.ArgumentParser, module: str) -> None:
    """Start this program anew in a namespace that ends with it, unless we are there."""
    if os.environ.get(INSIDE) != "1":
        if os.geteuid() != 0:
            parser.error("namespaces need root")
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", "--", *command])
    for line in (
        "ip link set lo up",
        "ip link add eth0 type veth peer name far",
        "ip addr add 192.168.0.1/16 dev eth0",
        "ip link set eth0 up",
        "ip link set far up",
    ):
        run(*line.split())
    settle()


def asked(module: str, text: str, name: str, default: int, least: int) -> argparse.Namespace:
    """Read --peers, --json and one more number, and go on in a namespace of our own."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=text)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true", help="print all figures instead of a table")
    arguments = parser.parse_args()
    if not 1 <= arguments.peers <= PEERS_MAX or getattr(arguments, name) < least:
        parser.error(f"--peers is from 1 to {PEERS_MAX}, --{name} at least {least}")
    go_inside(parser, module)
    return arguments


def main() -> None:
    arguments = asked("bench.netlink", __doc__, "rounds", 5, 1)
    figures = asyncio.run(measure(arguments.peers, arguments.rounds))
    if arguments.json:
        print(json.dumps({"peers": arguments.peers, "milliseconds": figures}))
        return
    print(f"{arguments.peers} peers, {3 * arguments.peers} objects; median (lowest) of", end=" ")
    print(f"{arguments.rounds} rounds, ms")
    for name, kinds in figures.items():
        cells = "   ".join(
            f"{kind} {statistics.median(values):7.1f} ({min(values):.1f})"
            for kind, values in kinds.items()
        )
        print(f"{name:22}{cells}")


if __name__ == "__main__":
    main()
