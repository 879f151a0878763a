"""An agent's world, made up: registry and kernel do as a test says and note what is done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from pathlib import Path
from typing import Any

from netplane.agent.agent import Agent
from netplane.agent.ask import Answer, ask
from netplane.agent.errors import InterfaceError, SettingsError
from netplane.agent.interface import ExternalInterface
from netplane.agent.pages import serving
from netplane.agent.ports import (
    FirewallLook,
    FirewallReport,
    Occupant,
    Peers,
    Report,
    Standing,
    Who,
)
from netplane.agent.settings import Settings
from netplane.agent.state import State, encode
from netplane.netlink.objects import Sysctl
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.family import Address
from netplane.subnet.lease import Lease, View
from netplane.subnet.registry import Head

CONFIG_TEXT = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
CONFIG = parse_config(CONFIG_TEXT.encode())
EXTERNAL = ExternalInterface(2, "eth0", 1500, IPv4Interface("192.0.2.1/24"))


def lease(number: int) -> Lease:
    return Lease(
        IPv4Network(f"10.5.{number}.0/24"),
        IPv4Address(f"192.0.2.{number}"),
        "vxlan",
        {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"},
    )


OWN = lease(1)
KEPT = (Sysctl("ipv4/conf/np.1/rp_filter", "2"), Sysctl("ipv4/ip_forward", "1"))


def peers(*numbers: int) -> dict[IPv4Network, Lease]:
    return {lease(number).subnet: lease(number) for number in numbers}


def view(*numbers: int, revision: int = 10) -> View:
    return View(7, revision, OWN, peers(*numbers), {}, CONFIG)


@dataclass
class World:
    """Everything around one agent, and what the agent did to it, in order."""

    settings: Settings
    counters: dict[str, Any] | None = None
    happened: list[str] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    registry_is_up: asyncio.Event = field(default_factory=asyncio.Event)
    views: asyncio.Queue[View] = field(default_factory=asyncio.Queue)
    refusals: list[Exception] = field(default_factory=list)
    standing: Standing = field(default_factory=lambda: Standing("", ""))
    stood: asyncio.Event = field(default_factory=asyncio.Event)
    config: NetworkConfig = CONFIG
    head: Head = field(default_factory=lambda: Head(7, 10))
    occupied: list[Occupant] = field(default_factory=list)
    found_macs: tuple[str, str] = ("", "")
    """Of our devices, in the kernel."""
    who: list[Who] = field(default_factory=list)
    data: list[object] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    wall: FirewallReport = field(default_factory=FirewallReport)
    look: FirewallLook = field(default_factory=lambda: FirewallLook((), (), (), ()))
    dropped: int | None = None
    no_interface: InterfaceError | None = None
    no_dataplane: SettingsError | None = None
    containers: int = 0
    interface: ExternalInterface = EXTERNAL
    """What is found from now on."""
    looks: list[str] = field(default_factory=list)
    """For the interface, at each time by whom."""
    externals: list[ExternalInterface] = field(default_factory=list)
    """What each half of the kernel was made for."""

    def note(self, text: str) -> None:
        self.happened.append(text)
        self.told.set()

    def stand(self, *texts: str) -> None:
        """How things stand from now on."""
        self.standing = Standing(*texts)
        self.stood.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when something happened that makes the condition true."""
        async with asyncio.timeout(10):
            while not condition():
                self.told.clear()
                await self.told.wait()

    async def until_last(self, text: str) -> None:
        await self.until(lambda: self.happened[-1:] == [text])

    async def until_ready(self, agent: Agent) -> None:
        await self.until(lambda: agent.board.is_ready)

    # the agent's parts
    @contextlib.asynccontextmanager
    async def subnets(self, settings: Settings, who: Who) -> AsyncIterator[FakeSubnets]:
        self.who.append(who)
        self.told.set()
        try:
            yield FakeSubnets(self)
        finally:
            self.note("disconnected")

    def dataplane(
        self,
        settings: Settings,
        config: NetworkConfig,
        external: ExternalInterface,
        macs: tuple[str, str],
        sysctls: Mapping[str, str],
    ) -> FakeDataplane:
        if self.no_dataplane is not None:
            raise self.no_dataplane
        self.externals.append(external)
        return FakeDataplane(self, config, macs, sysctls)

    async def occupants(self, config: NetworkConfig, macs: tuple[str, str]) -> list[Occupant]:
        return self.occupied

    async def macs(self, config: NetworkConfig) -> tuple[str, str]:
        return self.found_macs

    async def external(self, settings: Settings, kept: Sequence[Address] = ()) -> ExternalInterface:
        self.looks.append(settings.instance)
        self.told.set()
        if self.no_interface is not None:
            raise self.no_interface
        return self.interface

    async def clear_containers(self, settings: Settings) -> int:
        self.note("containers cleared")
        return self.containers


class FakeSubnets:
    def __init__(self, world: World) -> None:
        self.world = world

    async def open(self) -> NetworkConfig:
        await self.world.registry_is_up.wait()
        if self.world.refusals:
            raise self.world.refusals.pop()
        return self.world.config

    async def changed(self) -> None:
        await self.world.stood.wait()
        self.world.stood.clear()

    def config_text(self) -> str:
        return CONFIG_TEXT

    def head(self) -> Head:
        return self.world.head

    async def acquire(
        self, backend_data: object, backend_data6: object = None, *, keep: bool = False
    ) -> View:
        self.world.data.append(backend_data)
        self.world.note("lease of before" if keep else "lease")
        return await self.world.views.get()

    async def run(self, on_view: Callable[[View], None]) -> None:
        while True:
            on_view(await self.world.views.get())

    def move(self, public_ip: Address, public_ip6: IPv6Address | None = None) -> None:
        self.world.note(f"moved to {public_ip}")

    async def lose(self, address: Address) -> None:
        self.world.note(f"lost {address}")

    async def drain(self) -> None:
        if self.world.refusals:
            raise self.world.refusals.pop()
        self.world.note("lease given back")

    def standing(self) -> Standing:
        return self.world.standing


class FakeDataplane:
    mtu = 1450

    def __init__(
        self, world: World, config: NetworkConfig, macs: tuple[str, str], sysctls: Mapping[str, str]
    ) -> None:
        self.world = world
        self.scopes = frozenset[Hashable]((one.network, config.vni) for one in config.ranges)
        self.mac, self.mac6 = macs
        self.sysctls = dict(sysctls)
        self.kept_sysctls: tuple[Sysctl, ...] = ()
        self.on_report: Callable[[Report], None] = lambda report: None
        self.on_firewall: Callable[[FirewallReport], None] = lambda report: None

    def lease_data6(self) -> object:
        return None

    def lease_data(self) -> object:
        return {"VNI": 1, "VtepMAC": self.mac}

    async def apply(self, own: Lease, wanted: Peers, *, remove: bool) -> None:
        self.sysctls.setdefault("ipv4/ip_forward", "0")
        self.kept_sysctls = KEPT
        names = ",".join(str(subnet) for subnet in sorted(wanted)) or "nobody"
        self.on_report(self.world.report)
        self.on_firewall(self.world.wall)
        self.world.note(f"{'set' if remove else 'add'} {names}")

    async def run(self) -> None:
        self.world.note("healing")
        try:
            await asyncio.Event().wait()
        finally:
            self.world.note("healing ended")

    async def look(self) -> FirewallLook:
        return self.world.look

    async def dropped(self) -> int | None:
        return self.world.dropped

    async def counters(self) -> dict[str, Any] | None:
        return self.world.counters

    async def leave(self) -> None:
        self.world.note("left")

    async def clear(self, kept: frozenset[Hashable] = frozenset()) -> None:
        if self.scopes <= kept:
            return
        self.sysctls.clear()
        self.on_report(self.world.report)
        self.on_firewall(self.world.wall)
        self.world.note("cleared")

    def close(self) -> None:
        pass


def make_world(folder: Path) -> World:
    """Return one whose files are in a folder."""
    return World(
        Settings(
            subnet_file=folder / "subnet.env",
            state_dir=folder / "lib",
            run_dir=folder / "run",
            host_id="host-1",
        )
    )


@contextlib.asynccontextmanager
async def running(world: World, patience_s: float = 60.0) -> AsyncIterator[Agent]:
    """Run an agent; at the end it is stopped as by SIGTERM."""
    agent = Agent(world.settings, world, patience_s=patience_s)
    agent.board.on_change = world.told.set
    task = asyncio.create_task(agent.run(serving(agent)))
    task.add_done_callback(lambda _: world.told.set())
    try:
        yield agent
    finally:
        agent.stop()
        await task


async def call(world: World, method: str, target: str) -> Answer:
    return await asyncio.to_thread(ask, world.settings.socket, method, target)


def remember(world: World, *numbers: int) -> None:
    world.settings.state_dir.mkdir(parents=True)
    state = State(
        "host-1", "nonce", "02:00:00:00:00:aa", 7, 9, CONFIG_TEXT, OWN,
        tuple(peers(*numbers).values()),
    )  # fmt: skip
    world.settings.state_file.write_text(encode(state))
