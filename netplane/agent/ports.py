"""What the agent needs of the connection to the registry and of the kernel's half, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, NamedTuple, Protocol

from netplane.agent.interface import ExternalInterface
from netplane.agent.settings import Settings
from netplane.netlink.objects import Sysctl
from netplane.subnet.config import NetworkConfig
from netplane.subnet.family import Address, Pair, Subnet
from netplane.subnet.lease import Lease, View
from netplane.subnet.registry import Head

Peers = Mapping[Subnet, Lease]


@dataclass(frozen=True, slots=True)
class Who:
    """What we say about ourselves when we ask for a subnet."""

    host_id: str
    public_ip: Address
    session: str
    previous_session: str
    """Of the last agent here, whose sign of life may still be there."""
    boot_id: str
    previous: Pair | None
    """What our containers have addresses of."""
    known: tuple[Lease, ...]
    """Peers of the remembered view."""
    public_ip6: IPv6Address | None = None
    """Beside an IPv4 one; it counts where the network has IPv6."""


class Standing(NamedTuple):
    """How things stand with the registry; all texts are empty when all is well."""

    missing: str
    """Why we do not have our subnet any more."""
    problem: str
    """Why the registry cannot be used at the moment."""
    config: str = ""
    """Why the registered configuration is not the one that we go by."""


class Occupant(NamedTuple):
    """Somebody else's device that has the network's VNI and port on this host."""

    name: str
    mac: str
    is_flannels: bool
    """By its name."""
    problem: str
    """In words, with the remedy."""
    is_second: bool = False
    """In the place of the device for IPv6 beside IPv4."""


class Subnets(Protocol):
    """The registry's half, for one host."""

    async def open(self) -> NetworkConfig:
        """Return the network's configuration. Raises SubnetError, RegistryError."""

    def config_text(self) -> str:
        """Return that configuration as the registry has it."""

    def head(self) -> Head:
        """Return which registry it is and how far it is, as last heard; zeros: nothing yet."""

    async def acquire(
        self, backend_data: object, backend_data6: object = None, *, keep: bool = False
    ) -> View:
        """Claim our subnet and return the first view. Raises SubnetError, RegistryError.

        `keep`: containers use that of before, and no other will do while the network has it.
        """

    async def run(self, on_view: Callable[[View], None]) -> None:
        """Keep lease and view until cancelled, which gives nothing back.

        `on_view` is called with every view that is another than the one before.
        """

    def move(self, public_ip: Address, public_ip6: IPv6Address | None = None) -> None:
        """Tell the others, as soon as the registry can be used, that we are at other addresses."""

    def describe(self, backend_data: object) -> None:
        """Tell the others, as soon as the registry can be used, how we are reached now."""

    async def lose(self, address: Address) -> None:
        """Give up what goes to the registry from an address that this host no longer has."""

    async def drain(self) -> None:
        """Give the lease back, for good. Raises RegistryError."""

    def standing(self) -> Standing:
        """Say how things stand."""

    async def changed(self) -> None:
        """Wait until they may stand otherwise."""


@dataclass(frozen=True, slots=True)
class Report:
    """What rounds of comparing and programming did, and how things are after the last."""

    written: Counter[str] = field(default_factory=Counter)
    """Objects written or removed, by kind."""
    healed: Counter[str] = field(default_factory=Counter)
    """Of these: those that were right before."""
    failed: tuple[tuple[str, str], ...] = ()
    """Objects of peers that the kernel or we refused, and why."""
    broken: str = ""
    """Why nothing works: our own device or address is missing."""
    contested: str = ""
    """What somebody else keeps changing, and who."""
    in_doubt: bool = False
    """Whether the interface to the other hosts may be another by now."""
    milliseconds: tuple[float, ...] = ()
    """What each round took."""
    found: Counter[str] = field(default_factory=Counter)
    """Drift, by kind: healed, or left waiting as contested; what waited before counts no more."""


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """What one look at the firewall did, and how it is after it."""

    written: Counter[str] = field(default_factory=Counter)
    """Objects of nftables written or removed, by kind."""
    healed: Counter[str] = field(default_factory=Counter)
    """How often something that was right before had to be put right, by kind."""
    problem: str = ""
    """Why our table is not as it should be."""
    contested: str = ""
    """That somebody else keeps changing it, and who."""
    forward: str = ""
    """What drops forwarded packets in tables of others, or keeps us from seeing to that."""
    vteps: int = 0
    """Hosts whose packets are let in."""
    found: Counter[str] = field(default_factory=Counter)
    """As `Report.found`."""


@dataclass(frozen=True, slots=True)
class FirewallLook:
    """How the firewall is, read from the kernel."""

    wrong: tuple[str, ...]
    """What is missing, left over or other than it should be."""
    accepted_in: tuple[str, ...]
    """Chains of others with our two rules."""
    drops: tuple[str, ...]
    """Chains of others that drop, and what helps."""
    unseen: tuple[str, ...]
    """What could not be read, and why."""
    unsure: tuple[str, ...] = ()
    """What cannot be told of chains of others."""


class Dataplane(Protocol):
    """The kernel's half, for one network. Touches the kernel from the first `apply` on."""

    mtu: int
    """What containers may send in one packet."""
    on_report: Callable[[Report], None]
    """Called after every round, those of `run` too."""
    on_firewall: Callable[[FirewallReport], None]
    """The same for the firewall, by itself."""

    @property
    def scopes(self) -> frozenset[Hashable]:
        """What in the kernel is its own, by family: one with the same goes on with it."""

    @property
    def sysctls(self) -> dict[str, str]:
        """Settings that we changed, as they were before: to be remembered."""

    @property
    def kept_sysctls(self) -> Sequence[Sysctl]:
        """Settings that are kept, also those that were right before and those of our own device."""

    def lease_data(self) -> object:
        """Return what our lease tells the others about us."""

    def lease_data6(self) -> object:
        """Return the same for IPv6 beside IPv4."""

    async def apply(self, own: Lease, peers: Peers, *, remove: bool) -> None:
        """Make the kernel have this; `remove` lets what it has beyond that go."""

    async def run(self) -> None:
        """Heal until cancelled, which takes nothing away."""

    async def look(self) -> FirewallLook:
        """Read the firewall, and change nothing."""

    async def dropped(self) -> int | None:
        """Return how many packets of unknown hosts our table has dropped since it was made."""

    async def counters(self) -> dict[str, Any] | None:
        """Return what the process that moves packets has done; None: there is none, or silence."""

    async def leave(self) -> None:
        """Take away what nobody would look for, once another interface leads to the other hosts."""

    async def clear(self, kept: frozenset[Hashable] = frozenset()) -> None:
        """Take away everything that is ours, and set settings back; not so of scopes to keep."""

    def close(self) -> None:
        """Give sockets back; the kernel stays as it is."""


class Parts(Protocol):
    """Makes both halves; what tests replace."""

    def subnets(self, settings: Settings, who: Who) -> AbstractAsyncContextManager[Subnets]:
        """Connect to the registry; lazily, so that one that is down is no error yet."""

    def dataplane(
        self,
        settings: Settings,
        config: NetworkConfig,
        external: ExternalInterface,
        macs: tuple[str, str],
        sysctls: Mapping[str, str],
    ) -> Dataplane:
        """Prepare the kernel's half, and keep other agents of this host away from its device.

        `macs` are of the devices for the network's families.

        Raises AgentError for a configuration it cannot serve, or a device that another has.
        """

    async def occupants(self, config: NetworkConfig, macs: tuple[str, str]) -> list[Occupant]:
        """Find out who else has the network's VNI and port, one for each family at most."""

    async def macs(self, config: NetworkConfig) -> tuple[str, str]:
        """Return those of our devices as they are in the kernel, by family; "": there is none."""

    async def external(self, settings: Settings, kept: Sequence[Address] = ()) -> ExternalInterface:
        """Find the interface to the other hosts. Raises InterfaceError.

        Addresses in `kept` go before others that it has.
        """

    async def clear_containers(self, settings: Settings) -> int:
        """Take away what containers have here, without an agent; return how many objects.

        Raises AgentError.
        """
