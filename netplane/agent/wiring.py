"""The real halves behind the agent's ports: `kvstore.client` and the kernel."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from kvstore.client import AsyncClient, Tls
from netplane.agent import report as kernel
from netplane.agent.containers.cleaning import clear
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.records import Store
from netplane.agent.desired import occupant, occupied_text
from netplane.agent.errors import AgentError, SettingsError
from netplane.agent.firewall import HostFirewall, Wanted
from netplane.agent.halves import DualDataplane
from netplane.agent.interface import ExternalInterface, read_host
from netplane.agent.interface import choose as choose_interface
from netplane.agent.lock import LinkLock, RoutesLock
from netplane.agent.ports import (
    Dataplane,
    FirewallLook,
    FirewallReport,
    Occupant,
    Peers,
    Report,
    Standing,
    Who,
)
from netplane.agent.reconcile import Reconciler
from netplane.agent.settings import Registry, Settings, containers_path
from netplane.agent.state import read_boot_id
from netplane.agent.udp import ProcessKeeper, key_of_running
from netplane.backend import Backend, BackendError, External, choose
from netplane.backend.host_gw import HostGwBackend
from netplane.backend.udp import SealedUdpBackend, UdpBackend
from netplane.backend.vxlan import second_mac
from netplane.netlink.connection import Connection, NetlinkError, NetlinkLostError
from netplane.netlink.kernel import Kernel
from netplane.netlink.objects import KernelObject, Sysctl, Uplink, VxlanLink
from netplane.subnet.config import NetworkConfig
from netplane.subnet.etcd import EtcdRegistry
from netplane.subnet.family import VERSION6, Address, Subnet
from netplane.subnet.lease import Lease, View
from netplane.subnet.manager import Standing as ManagerStanding
from netplane.subnet.manager import SubnetManager
from netplane.subnet.plan import Identity, Wish
from netplane.subnet.records import Layout
from netplane.udp.control import Config
from netplane.udp.path import FOREIGN


def make_client(registry: Registry) -> AsyncClient:
    """Make the client that the flags describe. Raises SettingsError."""
    files = (registry.ca_file, registry.cert_file, registry.key_file)
    try:
        return AsyncClient(
            registry.endpoints,
            user=registry.user,
            password=registry.password,
            tls=Tls(*files) if any(files) else None,
        )
    except ValueError as error:
        raise SettingsError(str(error), "correct --etcd-endpoints") from error
    except OSError as error:
        raise SettingsError(
            f"cannot read {error.filename}: {error.strerror}",
            "correct --etcd-cafile, --etcd-certfile and --etcd-keyfile",
        ) from error


TELL_S = 2.0
"""After this, rounds without trouble are told of, many at once: counts and pages can wait, and each
costs as much as a third of the round."""

_CORRECT = "correct the configuration with `netplane ctl init --force`"


def check_backend(config: NetworkConfig) -> None:
    """Raise SettingsError for a backend that is not offered, or wrong values."""
    try:
        choose.check(config)
    except BackendError as error:
        raise SettingsError(str(error), _CORRECT) from error


class RealParts:
    """`Parts` of a real host."""

    def __init__(self) -> None:
        self._links: dict[str, LinkLock] = {}
        """Of the devices that this process keeps; held until it ends."""
        self._routes: dict[Subnet, RoutesLock] = {}
        """The same of networks."""

    @contextlib.asynccontextmanager
    async def subnets(self, settings: Settings, who: Who) -> AsyncIterator[RealSubnets]:
        """As `Parts.subnets`."""
        layout = Layout(settings.registry.prefix)
        async with make_client(settings.registry) as client:
            manager = SubnetManager(
                EtcdRegistry(client),
                layout,
                Identity(
                    who.host_id,
                    who.public_ip,
                    who.session,
                    who.boot_id,
                    who.previous_session,
                    who.public_ip6,
                ),
                Wish.of(who.previous),
                known=who.known,
            )
            yield RealSubnets(manager)

    def dataplane(
        self,
        settings: Settings,
        config: NetworkConfig,
        external: ExternalInterface,
        mac: str,
        sysctls: Mapping[str, str],
    ) -> Dataplane:
        """As `Parts.dataplane`."""
        if config.second is None:
            return self._half(settings, config, external, mac, sysctls)
        first, second = config.halves
        return DualDataplane(
            self._half(settings, first, external, mac, _of_family(sysctls, "ipv4/")),
            self._half(settings, second, external, second_mac(mac), _of_family(sysctls, "ipv6/")),
        )

    def _half(
        self,
        settings: Settings,
        config: NetworkConfig,
        external: ExternalInterface,
        mac: str,
        sysctls: Mapping[str, str],
    ) -> RealDataplane:
        """Return what keeps a network of one family."""
        version = config.network.version
        address = external.of(version)
        if address is None:
            raise SettingsError(
                f"interface {external.name} has no IPv{version} address that other hosts could"
                f" use, and packets for {config.network} leave with one",
                "give it one, or name another with --iface",
            )
        try:
            backend = choose.make(
                config,
                external=External(external.name, address, external.mtu),
                mac=mac,
                adopts_flannel=settings.adopt_flannel,
                blackhole=settings.ip_blackhole_route,
            )
        except BackendError as error:
            raise SettingsError(str(error), _CORRECT) from error
        _check_public_ip(backend, settings, address, external.name)
        self._lock(backend, config)
        vxlan = choose.vxlan(config)
        firewall = Wanted(
            settings.table,
            config.network,
            0 if vxlan is None else vxlan.port,
            0 if vxlan is None else vxlan.vni,
            masquerade=settings.ip_masq,
            fully_random=not settings.ip_masq_fully_random_disable,
            forward_rules=settings.iptables_forward_rules,
        )
        return RealDataplane(backend, firewall, settings, sysctls)

    def _lock(self, backend: Backend, config: NetworkConfig) -> None:
        """Keep other agents of this host away from what this one keeps."""
        link = backend.scope.link
        if link and link not in self._links:
            self._links[link] = LinkLock(link)
        if config.network not in self._routes:
            self._routes[config.network] = RoutesLock(config.network, self._routes)

    async def occupant(self, config: NetworkConfig) -> Occupant | None:
        """As `Parts.occupant`."""
        try:
            wanted = choose.vxlan(config)
            if wanted is None:
                return None
            async with Connection() as connection:
                links = await Kernel(connection).vxlan_links()
        except (BackendError, NetlinkError, NetlinkLostError):
            return None  # `dataplane` and the first round tell of it
        for one in config.ranges:
            is_ipv6 = one.network.version == VERSION6
            link = wanted.link6 if is_ipv6 else wanted.link
            address_bytes = len(one.network.network_address.packed)
            found = occupant(links, link, wanted.vni, wanted.port, address_bytes)
            if found is not None:
                flannels = wanted.flannels_link6 if is_ipv6 else wanted.flannels_link
                text = occupied_text(found)
                return Occupant(found.name, found.mac.hex(":"), found.name == flannels, text)
        return None

    async def external(self, settings: Settings) -> ExternalInterface:
        """As `Parts.external`."""
        return choose_interface(await read_host(), settings.iface, settings.iface_regex)

    async def clear_containers(self, settings: Settings) -> int:
        """As `Parts.clear_containers`."""
        path = containers_path(settings.run_dir, settings.instance)
        store = Store(path, read_boot_id())
        try:
            await asyncio.to_thread(store.load)
            return await clear(settings.instance, store)
        except (CniError, OSError) as error:
            raise AgentError(str(error), "correct that and repeat") from error


def _of_family(sysctls: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name: value for name, value in sysctls.items() if name.startswith(prefix)}


def _check_public_ip(
    backend: Backend, settings: Settings, external: IPv4Interface | IPv6Interface, name: str
) -> None:
    address = external.ip
    is_ipv6 = address.version == VERSION6
    public = settings.public_ipv6 if is_ipv6 else settings.public_ip
    if backend.type == HostGwBackend.type and public not in (None, address):
        raise SettingsError(
            f"--public-ip{'v6' if is_ipv6 else ''} {public} is not the address of {name},"
            f" {address}:"
            " the others have no way around it, as host-gw has them send to a neighbour",
            "leave it out, and choose the interface with --iface",
        )


class RealSubnets:
    """`Subnets` on a manager."""

    def __init__(self, manager: SubnetManager) -> None:
        self._manager = manager
        self.changed = manager.changed
        self.open = manager.open
        self.acquire = manager.acquire
        self.drain = manager.drain
        self.move = manager.move
        self.describe = manager.describe

    async def run(self, on_view: Callable[[View], None]) -> None:
        """As `Subnets.run`."""
        self._manager.on_view = on_view
        await self._manager.run()

    def config_text(self) -> str:
        """As `Subnets.config_text`."""
        return self._manager.config_value.decode()

    def standing(self) -> Standing:
        """As `Subnets.standing`."""
        status = self._manager.status()
        missing = ""
        if status.standing is not ManagerStanding.HELD:
            missing = status.detail or f"our lease is {status.standing.value}"
        return Standing(missing, status.problem, status.config)


class RealDataplane:
    """`Dataplane` of one family on a reconciler, which opens its sockets when first needed."""

    def __init__(
        self,
        backend: Backend,
        firewall: Wanted,
        settings: Settings,
        sysctls: Mapping[str, str],
    ) -> None:
        self.mtu = backend.mtu
        self.scope = backend.scope
        self.on_report: Callable[[Report], None] = lambda _: None
        self.on_firewall: Callable[[FirewallReport], None] = lambda _: None
        self._backend = backend
        self._settings = settings
        self._wanted = firewall
        self._wall: HostFirewall | None = None
        self._vteps: frozenset[Address] = frozenset()
        self._before = dict(sysctls)
        self._made: Reconciler | None = None
        self._refused: dict[str, str] = {}
        self._report = Report()
        """The newest of the kernel's objects."""
        self._process: ProcessKeeper | None = None
        """That moves packets; None: the kernel does."""
        self._restarts = 0
        self._untold: list[kernel.Report] = []
        """Of rounds without any trouble; see `TELL_S`."""
        self._telling: asyncio.TimerHandle | None = None
        self._is_quiet = False
        """Nothing was out of the ordinary in the last round."""

    @property
    def sysctls(self) -> dict[str, str]:
        """As `Dataplane.sysctls`."""
        return self._before if self._made is None else self._made.previous_sysctls

    def lease_data(self) -> object:
        """As `Dataplane.lease_data`."""
        if not isinstance(self._backend, SealedUdpBackend):
            return self._backend.lease_data()
        process = self._process
        key = key_of_running(self._settings.udp_socket) if process is None else process.key
        return {"PublicKey": key}

    def lease_data6(self) -> object:
        """As `Dataplane.lease_data6`: there is one family only."""
        return None

    async def apply(self, own: Lease, peers: Peers, *, remove: bool) -> None:
        """As `Dataplane.apply`."""
        plan = self._backend.plan(own.subnet, peers)
        self._refused = plan.refused
        if plan.told is not None:
            # Before routes lead to its device, which it makes.
            keeper, config = self._keeper(), self._process_config(str(own.subnet))
            await keeper.apply(config, plan.told, remove=remove)
        wall, before = self._firewall(), self._vteps
        either = before | plan.vteps
        self._vteps = plan.vteps if remove else either
        # Who comes may send as soon as they are told of us, and who goes is still sent answers.
        await wall.apply(own.subnet, either)
        await self._reconciler().apply(plan.objects, remove=remove, step=plan.step)
        await wall.apply(own.subnet, self._vteps)
        await wall.place()

    async def run(self) -> None:
        """As `Dataplane.run`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconciler().run())
            tasks.create_task(self._firewall().run())
            if self._process is not None:
                tasks.create_task(self._process.run())

    async def look(self) -> FirewallLook:
        """As `Dataplane.look`."""
        return await self._firewall().look()

    async def dropped(self) -> int | None:
        """As `Dataplane.dropped`."""
        if self._process is None:
            return await self._firewall().dropped()
        told = await self._process.counters()
        return None if told is None else sum(told["dropped"].get(name, 0) for name in FOREIGN)

    async def counters(self) -> dict[str, Any] | None:
        """As `Dataplane.counters`."""
        return None if self._process is None else await self._process.counters()

    async def clear(self) -> None:
        """As `Dataplane.clear`."""
        self._refused = {}
        self._vteps = frozenset()
        await self._reconciler().clear()
        await self._firewall().clear()
        if isinstance(self._backend, UdpBackend):
            await self._keeper().clear()

    def close(self) -> None:
        """As `Dataplane.close`."""
        if self._made is not None:
            self._made.close()
        if self._wall is not None:
            self._wall.close()
        if self._process is not None:
            self._process.close()
        self._tell()

    def _firewall(self) -> HostFirewall:
        if self._wall is None:
            self._wall = HostFirewall(
                self._wanted,
                self._settings.firewall_interval_s,
                self._take_firewall,
            )
        return self._wall

    def _keeper(self) -> ProcessKeeper:
        if self._process is None:
            path = self._settings.udp_socket
            self._process = ProcessKeeper(self._process_config(""), path, self._take_process)
        return self._process

    def _process_config(self, subnet: str) -> Config:
        backend = self._backend
        assert isinstance(backend, UdpBackend)
        sealed = isinstance(backend, SealedUdpBackend)
        return Config(backend.link, backend.mtu, backend.address, backend.port, subnet, sealed)

    def _reconciler(self) -> Reconciler:
        if self._made is None:
            self._made = Reconciler(
                self._backend.scope,
                interval_s=self._settings.heal_interval_s,
                on_report=self._take,
                previous_sysctls=self._before,
            )
        return self._made

    def _take_firewall(self, report: FirewallReport) -> None:
        self.on_firewall(report)

    def _take(self, report: kernel.Report) -> None:
        self._untold.append(report)
        was_quiet = self._is_quiet
        self._is_quiet = report.cause == "desired" and not (
            report.failed or report.healed or report.contested or self._refused
        )
        if not (was_quiet and self._is_quiet):
            self._tell()
        elif self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_S, self._tell)

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        untold, self._untold = self._untold, []
        for report in untold:
            self.on_report(self._told(report))

    def _told(self, report: kernel.Report) -> Report:
        broken = [
            str(failure)
            for failure in report.failed
            if failure.item is None or isinstance(failure.item, _HOSTS_OWN)
        ]
        self._report = Report(
            _kinds((*report.written, *report.removed)),
            _kinds(report.healed),
            (
                *self._refused.items(),
                *(
                    (str(failure.item), failure.text)
                    for failure in report.failed
                    if failure.item is not None and not isinstance(failure.item, _HOSTS_OWN)
                ),
            ),
            "; ".join(broken),
            "; ".join(
                f"{contest.item} was changed {contest.heals} times in a minute by "
                f"{contest.writer or 'somebody'}"
                for contest in report.contested
            ),
            bool(broken) or report.cause in {"link", "address", "overrun"},
            report.milliseconds,
        )
        return self._with_process(self._report)

    def _take_process(self) -> None:
        """Tell what became of the process since a round; the objects are as they were then."""
        assert self._process is not None
        restarts, self._restarts = self._restarts, self._process.restarts
        healed = Counter(process=self._restarts - restarts)
        told = replace(self._report, written=Counter(), healed=+healed, milliseconds=0.0)
        self.on_report(self._with_process(told))

    def _with_process(self, report: Report) -> Report:
        trouble = "" if self._process is None else self._process.trouble
        return replace(report, broken="; ".join(filter(None, (trouble, report.broken))))


_HOSTS_OWN = VxlanLink | Sysctl | Uplink
"""Without one of these no peer is reached."""


def _kinds(items: Iterable[KernelObject]) -> Counter[str]:
    return Counter(type(item).__name__.lower() for item in items)
