"""Writes leases of hosts that do not exist, from inside a namespace: `Writer` starts this program.

A process, as gRPC's threads and sockets belong to the namespace in which they begin. A line of
JSON on standard input is a command, a line on standard output its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, NamedTuple, Self

from kvstore.client import AsyncClient, Op, OutcomeUnknownError
from tests.net.handmade import flannel_value
from tests.net.namespaces import Namespace

PREFIX = "/coreos.com/network/subnets/"
TTL_S = 86_400
TOGETHER = 100
"""Writes in one transaction; etcd takes up to 128."""


class Peer(NamedTuple):
    """A host that is only registered."""

    subnet: IPv4Network
    address: str
    mac: str

    @property
    def key(self) -> str:
        """The key of its lease."""
        return f"{PREFIX}{self.subnet.network_address}-{self.subnet.prefixlen}"

    @property
    def value(self) -> str:
        """The value, as Flannel writes it."""
        return flannel_value(self.address, self.mac)

    def moved(self) -> Peer:
        """Return it with another MAC and address on the same subnet."""
        return Peer(self.subnet, str(IPv4Address(self.address) + 65536), "06" + self.mac[2:])


def peers(count: int, network: IPv4Network) -> list[Peer]:
    """Return that many, of the last /24 subnets of a network; agents are told to draw others."""
    found = []
    end = int(network.broadcast_address) + 1
    for number in range(1, count + 1):
        mac = f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"
        address = str(IPv4Address("172.16.0.0") + number)
        found.append(Peer(IPv4Network((end - 256 * number, 24)), address, mac))
    return found


class Write(NamedTuple):
    """One write of a schedule: without a value the key goes."""

    key: str
    value: str | None


class Writer:
    """A client of the registry in a namespace. Use it in a `with`."""

    def __init__(self, namespace: Namespace, endpoints: Sequence[str]) -> None:
        self._namespace = namespace
        self._endpoints = endpoints
        self._stack = ExitStack()
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._namespace.command(sys.executable, "-m", "tests.net.writer", *self._endpoints),
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def put(self, some: Iterable[Peer]) -> None:
        """Register peers, with a lease of a day."""
        self._ask(put=[(peer.key, peer.value) for peer in some])

    def delete(self, some: Iterable[Peer]) -> None:
        """Take peers away."""
        self._ask(put=[(peer.key, None) for peer in some])

    def compact(self) -> None:
        """Forget all history."""
        self._ask(compact=True)

    def schedule(self, writes: Sequence[Write], every_s: float) -> list[tuple[float, float]]:
        """Write one after the other, evenly; return when each began and ended (monotonic clock)."""
        found: list[tuple[float, float]] = self._ask(schedule=writes, every_s=every_s)
        return found

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise AssertionError("the writer failed; its standard error tells more")
        return json.loads(answer)


async def _serve(endpoints: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncClient(endpoints, timeout_s=30) as client:
        lease = await client.lease_grant(TTL_S)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command = json.loads(line)
            answer: Any = None
            if "schedule" in command:
                answer = await _write_evenly(
                    client, lease.lease_id, command["schedule"], command["every_s"]
                )
            elif "compact" in command:
                await client.compact((await client.range(b"x")).revision)
            else:
                await _write_together(client, lease.lease_id, command["put"])
            print(json.dumps(answer), flush=True)  # noqa: T201 - its output


def _operation(key: str, value: str | None, lease_id: int) -> Op:
    if value is None:
        return Op.delete(key.encode())
    return Op.put(key.encode(), value.encode(), lease=lease_id)


async def _write_together(client: AsyncClient, lease_id: int, writes: list[Any]) -> None:
    for start in range(0, len(writes), TOGETHER):
        operations = [_operation(*each, lease_id) for each in writes[start : start + TOGETHER]]
        done = False
        while not done:
            # A member may die under it; to put and delete the same once more is no harm.
            with contextlib.suppress(OutcomeUnknownError):
                await client.txn().then(*operations).commit()
                done = True


async def _write_evenly(
    client: AsyncClient, lease_id: int, writes: list[Any], every_s: float
) -> list[tuple[float, float]]:
    begun_s = time.monotonic()

    async def write(number: int, key: str, value: str | None) -> tuple[float, float]:
        # By the clock, not behind the one before: who is late must not get a slower schedule.
        await asyncio.sleep(begun_s + number * every_s - time.monotonic())
        sent_s = time.monotonic()
        if value is None:
            await client.delete(key.encode())
        else:
            await client.put(key.encode(), value.encode(), lease=lease_id)
        return sent_s, time.monotonic()

    return await asyncio.gather(*(write(number, *each) for number, each in enumerate(writes, 1)))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))
