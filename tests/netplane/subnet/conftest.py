"""A registry on each kind of server there is, and hosts that register there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

import pytest

from kvstore import embed
from kvstore.client import AsyncClient
from netplane.subnet.etcd import EtcdRegistry
from netplane.subnet.lease import View
from netplane.subnet.manager import SubnetManager
from netplane.subnet.plan import Identity, Wish
from netplane.subnet.records import Layout
from netplane.subnet.registry import Registry
from tests.netplane.subnet.stores import address6, vxlan, vxlan6
from tests.servers import Etcd

CONFIG = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
_numbers = itertools.count(1)


class ManualClock:
    """Time that moves only when a test says so."""

    def __init__(self) -> None:
        self._now_s = 1_000.0
        self._timers: list[tuple[float, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        if timeout_s <= 0:
            return
        timer = asyncio.get_running_loop().create_future()
        self._timers.append((self._now_s + timeout_s, timer))
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({waiting, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            timer.cancel()

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
        due = [timer for at_s, timer in self._timers if at_s <= self._now_s]
        self._timers = [one for one in self._timers if one[0] > self._now_s]
        for timer in due:
            if not timer.done():
                timer.set_result(None)


class Network:
    """One overlay network in a registry, and the hosts in it."""

    def __init__(self, client: AsyncClient, prefix: str) -> None:
        self.client = client
        self.layout = Layout(prefix)
        self.registry = EtcdRegistry(client)
        self.clock = ManualClock()
        self._sessions = itertools.count(1)

    async def configure(self, **changes: Any) -> None:
        await self.client.put(self.layout.config, json.dumps(CONFIG | changes).encode())

    def manager(
        self, number: int, *, ip: str = "", host_id: str = "", wish: Wish | None = None,
        registry: Registry | None = None, previous_session: str = "", boot_id: str = "boot",
        **options: Any,
    ) -> SubnetManager:  # fmt: skip
        """Return the manager of a new process on a host."""
        session = f"session {next(self._sessions)}"
        who = Identity(
            host_id or f"host{number}", IPv4Address(ip or f"192.0.2.{number}"), session,
            boot_id, previous_session, address6(number),
        )  # fmt: skip
        options = {"clock": self.clock, "draw": Random(number)} | options
        return SubnetManager(registry or self.registry, self.layout, who, wish, **options)

    async def join(self, number: int, **others: Any) -> tuple[SubnetManager, View]:
        """Return a host's manager that has a subnet."""
        manager = self.manager(number, **others)
        config = await manager.open()
        data = vxlan6(number) if config.network.version == 6 else vxlan(number)
        return manager, await manager.acquire(data, vxlan6(number))

    async def value(self, key: bytes) -> bytes | None:
        kv = await self.client.get(key)
        return None if kv is None else kv.value

    async def lease_of(self, key: bytes) -> int:
        kv = await self.client.get(key)
        assert kv is not None, key
        return kv.lease

    async def die(self, number: int) -> None:
        """Let a host's sign of life end, as it does 30 s after its agent."""
        await self.client.lease_revoke(await self.lease_of(self.layout.life(f"host{number}")))

    @contextlib.asynccontextmanager
    async def changes(self, key: bytes) -> AsyncIterator[Any]:
        """Watch a key from now on: `await anext(...)` is its next batch of events."""
        async with self.client.watch(key) as watcher:
            yield watcher


@contextlib.asynccontextmanager
async def running(manager: SubnetManager) -> AsyncIterator[None]:
    """Let a manager run meanwhile; what it fails of fails the test."""
    task = asyncio.create_task(manager.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def subnet_of(view: View) -> IPv4Network:
    assert view.own is not None
    return view.own.subnet


@pytest.fixture(
    scope="session",
    params=["kvstore", pytest.param("etcd", marks=pytest.mark.etcd)],
)
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "kvstore":
        with embed(fsync=False) as member:
            yield member.endpoint
        return
    reason = Etcd.missing()
    if reason is not None:
        pytest.skip(reason)
    with Etcd(1) as cluster:
        yield cluster.endpoints[0]


@pytest.fixture
async def network(endpoint: str) -> AsyncIterator[Network]:
    """A configured network without hosts."""
    async with AsyncClient([endpoint]) as client:
        made = Network(client, f"/t{next(_numbers)}/network")
        await made.configure()
        yield made
