"""`python -m bench.lease_change`: the agent's CPU when one lease of a thousand changes.

Needs root. From the watch's event to the kernel's acknowledgement: what is registered, the view,
the guard's verdict, the plan and the writing, and the look at the notifications of it. A change is
another PublicIP and another MAC of one host, a host that goes, or one that comes. Counted is the
CPU of the process (user and system), with the kernel's work for our messages. Not in it: receiving
the event (gRPC) and the state file, which is written at most once a second.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import chain

from bench.netlink import NETWORK, SUBNET, asked, new_backend, peers
from netplane.agent.reconcile import Reconciler
from netplane.subnet.config import parse_config
from netplane.subnet.family import Pair
from netplane.subnet.lease import Lease, encode_value
from netplane.subnet.records import Layout, Registered
from netplane.subnet.registry import Change, Head, KeyValue, Listing
from netplane.subnet.regress import Guard
from netplane.subnet.view import Local, ViewBuilder

LAYOUT = Layout()
ADDRESS = IPv4Address("192.168.0.1")
CONFIG = json.dumps({"Network": str(NETWORK), "Backend": {"Type": "vxlan"}}).encode()


@dataclass
class Store:
    """Leases with their revisions."""

    leases: dict[IPv4Network, Lease]
    revision: int = 1

    def kv(self, lease: Lease) -> KeyValue:
        value = encode_value(lease.public_ip, "vxlan", lease.backend_data)
        return KeyValue(LAYOUT.lease(lease.subnet), value, 1, self.revision, 7)

    def registered(self) -> Registered:
        kvs = [self.kv(lease) for lease in self.leases.values()]
        kvs.append(KeyValue(LAYOUT.config, CONFIG, 1, 1, 0))
        found = Registered(LAYOUT)
        found.load(Listing(Head(1, self.revision), tuple(kvs)))
        return found

    def changes(self, count: int) -> Iterator[tuple[str, Change]]:
        """Change one host after the other: moved, gone, come back."""
        hosts = list(self.leases.values())
        for number in range(count):
            self.revision += 1
            lease = hosts[number // 3 * 7 % len(hosts)]
            kind = ("moved", "gone", "come")[number % 3]
            if kind == "gone":
                yield kind, Change(LAYOUT.lease(lease.subnet), None)
                continue
            turn = self.revision
            mac = f"02:01:{turn >> 24 & 255:02x}:{turn >> 16 & 255:02x}:{turn >> 8 & 255:02x}"
            data = {"VNI": 1, "VtepMAC": f"{mac}:{turn & 255:02x}"}
            moved = Lease(lease.subnet, lease.public_ip, "vxlan", data)
            yield kind, Change(LAYOUT.lease(lease.subnet), self.kv(moved))


async def measure(count: int, changes: int) -> dict[str, list[float]]:
    """Return milliseconds of CPU of each change, by kind."""
    store = Store(peers(count))
    registered = store.registered()
    backend = new_backend()
    local = Local(ADDRESS, pair=Pair(SUBNET), mac=backend.mac)
    builder = ViewBuilder(parse_config(CONFIG), local)
    builder.config_value = CONFIG
    guard = Guard(None)
    found: dict[str, list[float]] = {"moved": [], "gone": [], "come": []}

    async with Reconciler(backend.scope, interval_s=3600) as reconciler:

        async def follow() -> None:
            verdict = guard.judge(builder.build(registered), time.monotonic())
            plan = backend.plan(SUBNET, verdict.peers)
            assert not plan.refused
            report = await reconciler.apply(plan.objects, step=plan.step)
            assert not report.failed, report.failed

        await follow()
        async with asyncio.TaskGroup() as group:
            healing = group.create_task(reconciler.run())
            for kind, change in store.changes(changes):
                # What the one before is still to cause is its own.
                begun = time.process_time()
                registered.apply(store.revision, [change])
                await follow()
                await asyncio.sleep(0)
                found[kind].append(1000 * (time.process_time() - begun))
            healing.cancel()
    return found


def main() -> None:
    arguments = asked("bench.lease_change", __doc__, "changes", 600, 3)
    found = asyncio.run(measure(arguments.peers, arguments.changes))
    if arguments.json:
        print(json.dumps({"peers": arguments.peers, "cpu_milliseconds": found}))
        return
    print(f"{arguments.peers} peers, {arguments.changes} changes; CPU of one, ms")
    print(f"{'':8}{'median':>8}{'mean':>8}{'p99':>8}")
    for name, values in {**found, "all": [*chain(*found.values())]}.items():
        p99 = statistics.quantiles(values, n=100)[98]
        print(f"{name:8}{statistics.median(values):8.2f}{statistics.fmean(values):8.2f}{p99:8.2f}")


if __name__ == "__main__":
    main()
