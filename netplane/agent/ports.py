"""What the agent needs of the registry's half and of the kernel's half, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from netplane.agent.board import Board
from netplane.agent.interface import ExternalInterface
from netplane.agent.settings import Settings
from netplane.subnet.config import NetworkConfig
from netplane.subnet.lease import Lease, View

Peers = Mapping[IPv4Network, Lease]


class TryLaterError(Exception):
    """The registry does not give what we asked for now; it may, later.

    `code` is the reason's name in /readyz; the text tells what helps.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Wanted:
    """What we bring when we ask for a subnet."""

    public_ip: IPv4Address
    backend_type: str
    backend_data: object
    previous: IPv4Network | None
    """The subnet that our containers have addresses of."""


class Subnets(Protocol):
    """The registry's half, for one host."""

    async def config(self) -> NetworkConfig:
        """Return the network's configuration. Raises TryLaterError."""

    async def acquire(self, config: NetworkConfig, wanted: Wanted) -> Lease:
        """Return our lease, the old one where it can be had. Raises TryLaterError."""

    def views(self) -> AsyncIterator[View]:
        """Yield the whole view after every change, the newest; outages are waited out within."""

    async def keep(self) -> None:
        """Keep lease and liveness until cancelled, which gives nothing back."""

    async def drain(self) -> None:
        """Give the lease back. Raises TryLaterError, and then nothing was given back."""

    def describe(self, config: NetworkConfig) -> str:
        """Return the configuration as a text that `recall` reads."""

    def recall(self, text: str) -> NetworkConfig:
        """Read such a text. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one round of comparing and programming did."""

    healed: Counter[str] = field(default_factory=Counter)
    """Objects written, by kind."""
    failed: tuple[tuple[str, str], ...] = ()
    """Objects of peers that the kernel refused, and its words."""
    broken: str = ""
    """Why nothing works: our own device or address is missing."""
    milliseconds: float = 0.0


class Dataplane(Protocol):
    """The kernel's half, for one network."""

    mtu: int
    """What containers may send in one packet."""
    backend_type: str
    on_report: Callable[[Report], None]
    """Called after every round, those of `run` too."""

    def lease_data(self) -> object:
        """Return what our lease tells the others about us."""

    async def apply(self, own: Lease, peers: Peers, *, remove: bool) -> None:
        """Make the kernel have this; `remove` lets what it has beyond that go."""

    async def run(self) -> None:
        """Heal until cancelled, which takes nothing away."""

    async def clear(self) -> None:
        """Take away everything that is ours."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to make of a view."""

    peers: Peers
    """What the kernel should have."""
    regressed: str = ""
    """Why the registry is not believed when it says that peers are gone."""
    wait_s: float | None = None
    """When to judge the same view again."""


class Guard(Protocol):
    """Keeps a registry that lost its memory from taking the network down."""

    def judge(self, view: View, now_s: float) -> Verdict:
        """Return what to do with a view, at a monotonic time."""

    def accept(self) -> None:
        """Believe the registry as it is now."""


class Parts(Protocol):
    """Makes both halves; what tests replace."""

    def subnets(
        self, settings: Settings, board: Board, host_id: str, session: str, boot_id: str
    ) -> AbstractAsyncContextManager[Subnets]:
        """Connect to the registry; lazily, so that one that is down is no error yet.

        Troubles while it runs (registry silent, subnet taken by another) go to the board.
        """

    def dataplane(
        self, settings: Settings, config: NetworkConfig, external: ExternalInterface, mac: str
    ) -> Dataplane:
        """Prepare the kernel's half; writes nothing yet. Raises AgentError for what it lacks."""

    def guard(self, settings: Settings, cluster_id: int, revision: int, peers: Peers) -> Guard:
        """Make the guard from what is remembered."""

    async def external(self, settings: Settings) -> ExternalInterface:
        """Find the interface to the other hosts. Raises InterfaceError."""
