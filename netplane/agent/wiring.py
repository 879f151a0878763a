"""The real halves behind the agent's ports: `kvstore.client` and the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

from kvstore.client import AsyncClient, Tls
from netplane.agent.containers.cleaning import clear
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.names import bridge_name
from netplane.agent.containers.records import Store
from netplane.agent.dataplane import RealDataplane
from netplane.agent.desired import occupant, occupied_text
from netplane.agent.errors import AgentError, SettingsError
from netplane.agent.firewall import Wanted
from netplane.agent.halves import DualDataplane
from netplane.agent.interface import ExternalInterface, read_host
from netplane.agent.interface import choose as choose_interface
from netplane.agent.lock import LinkLock, RoutesLock
from netplane.agent.ports import (
    Dataplane,
    Occupant,
    Standing,
    Who,
)
from netplane.agent.settings import Registry, Settings, containers_path
from netplane.agent.state import read_boot_id
from netplane.backend import Backend, BackendError, External, choose
from netplane.backend.host_gw import HostGwBackend
from netplane.backend.udp import with_key
from netplane.netlink.connection import Connection, NetlinkError, NetlinkLostError
from netplane.netlink.kernel import Kernel
from netplane.nft import library
from netplane.subnet.config import NetworkConfig
from netplane.subnet.etcd import EtcdRegistry
from netplane.subnet.family import VERSION6, Address, Subnet
from netplane.subnet.lease import View
from netplane.subnet.manager import Standing as ManagerStanding
from netplane.subnet.manager import SubnetManager
from netplane.subnet.plan import Identity, Wish
from netplane.subnet.records import Layout
from netplane.subnet.registry import Head


def make_client(registry: Registry) -> AsyncClient:
    """Make the client that the flags describe. Raises SettingsError."""
    files = (registry.ca_file, registry.cert_file, registry.key_file)
    try:
        return AsyncClient(
            registry.endpoints,
            user=registry.user,
            password=registry.password,
            tls=Tls(*files) if any(files) else None,
            # Some calls and one watch: a session around them would only add to each event.
            transport="unary",
        )
    except ValueError as error:
        raise SettingsError(str(error), "correct --etcd-endpoints") from error
    except OSError as error:
        raise SettingsError(
            f"cannot use {error.filename}: {error.strerror}",
            "correct --etcd-cafile, --etcd-certfile and --etcd-keyfile",
        ) from error


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
        # While nobody waits: the first route comes after the first command of nft.
        library.load()

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
            yield RealSubnets(manager, client, who.host_id)

    def dataplane(
        self,
        settings: Settings,
        config: NetworkConfig,
        external: ExternalInterface,
        macs: tuple[str, str],
        sysctls: Mapping[str, str],
    ) -> Dataplane:
        """As `Parts.dataplane`."""
        mac, mac6 = macs
        if config.second is None:
            return self._half(settings, config, external, mac, sysctls)
        first, second = config.halves
        return DualDataplane(
            self._half(settings, first, external, mac, _of_family(sysctls, "ipv4/")),
            self._half(settings, second, external, mac6, _of_family(sysctls, "ipv6/")),
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
            devices=tuple(filter(None, (bridge_name(settings.instance), backend.scope.link))),
        )
        return RealDataplane(backend, firewall, settings, sysctls)

    def _lock(self, backend: Backend, config: NetworkConfig) -> None:
        """Keep other agents of this host away from what this one keeps."""
        link = backend.scope.link
        if link and link not in self._links:
            self._links[link] = LinkLock(link)
        if config.network not in self._routes:
            self._routes[config.network] = RoutesLock(config.network, self._routes)

    async def occupants(self, config: NetworkConfig, macs: tuple[str, str]) -> list[Occupant]:
        """As `Parts.occupants`."""
        try:
            wanted = choose.vxlan(config)
            async with Connection() as connection:
                kernel = Kernel(connection)
                if config.backend_type in choose.BY_PROCESS:
                    return await _running_flannel(kernel, config)
                if wanted is None:
                    return []
                links = await kernel.vxlan_links()
        except (BackendError, NetlinkError, NetlinkLostError):
            return []  # `dataplane` and the first round tell of it
        there = []
        for one in config.ranges:
            is_ipv6 = one.network.version == VERSION6
            link = wanted.link6 if is_ipv6 else wanted.link
            address_bytes = len(one.network.network_address.packed)
            found = occupant(links, link, wanted.vni, wanted.port, address_bytes)
            if found is not None:
                flannels = wanted.flannels_link6 if is_ipv6 else wanted.flannels_link
                mac = bytes.fromhex(macs[one is config.second].replace(":", ""))
                text = occupied_text(found, link, mac)
                there.append(
                    Occupant(
                        found.name,
                        found.mac.hex(":"),
                        found.name == flannels,
                        text,
                        one is config.second,
                    )
                )
        return there

    async def macs(self, config: NetworkConfig) -> tuple[str, str]:
        """As `Parts.macs`."""
        try:
            wanted = choose.vxlan(config)
            if wanted is None:
                return "", ""
            async with Connection() as connection:
                links = await Kernel(connection).vxlan_links()
        except (BackendError, NetlinkError, NetlinkLostError):
            return "", ""  # as above
        # Of our names, but with another VNI or of another kind they are somebody else's.
        found = {
            link.name: link.mac.hex(":")
            for link in links
            if link.vxlan is not None and link.vxlan.vni == wanted.vni
        }
        mac, mac6 = found.get(wanted.link, ""), found.get(wanted.link6, "")
        return (mac6, "") if config.network.version == VERSION6 else (mac, mac6)

    async def external(self, settings: Settings, kept: Sequence[Address] = ()) -> ExternalInterface:
        """As `Parts.external`."""
        return choose_interface(await read_host(), settings.iface, settings.iface_regex, kept)

    async def clear_containers(self, settings: Settings) -> int:
        """As `Parts.clear_containers`."""
        path = containers_path(settings.run_dir, settings.instance)
        store = Store(path, read_boot_id())
        try:
            await asyncio.to_thread(store.load)
            return await clear(settings.instance, store)
        except (CniError, OSError) as error:
            raise AgentError(str(error), "correct that and repeat") from error


async def _running_flannel(kernel: Kernel, config: NetworkConfig) -> list[Occupant]:
    """Find the device of a flanneld that runs with its backend udp: it goes with that process.

    So there is nothing to adopt, whoever asks for it; the lease is ours by our address.
    """
    for link in await kernel.links():
        if link.kind != "tun" or not link.name.startswith("flannel"):
            continue
        for found in await kernel.addresses(socket.AF_INET, link.index, link.name):
            address = IPv4Address(found.address)
            if address in config.network:
                text = (
                    f"flanneld runs here: device {link.name} has the address {address}"
                    " of this network; stop flanneld, which takes"
                    " that away. The subnet stays this host's"
                )
                return [Occupant(link.name, "", is_flannels=False, problem=text)]
    return []


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

    def __init__(self, manager: SubnetManager, client: AsyncClient, host_id: str) -> None:
        self._manager = manager
        self._client = client
        self._host_id = host_id
        self.changed = manager.changed
        self.open = manager.open
        self.drain = manager.drain
        self.move = manager.move

    async def acquire(
        self, backend_data: object, backend_data6: object = None, *, keep: bool = False
    ) -> View:
        """As `Subnets.acquire`."""
        data = self._with_key(backend_data)
        return await self._manager.acquire(data, backend_data6, keep=keep)

    def describe(self, backend_data: object) -> None:
        """As `Subnets.describe`."""
        self._manager.describe(self._with_key(backend_data))

    def _with_key(self, data: object) -> object:
        registered = self._manager.registered
        record = registered.hosts.get(self._host_id)
        lease = None if record is None else registered.at(record.pair)
        if record is None or lease is None or record.public_ip != lease.public_ip:
            return data  # somebody else may have our subnet by now
        return with_key(data, lease)

    async def run(self, on_view: Callable[[View], None]) -> None:
        """As `Subnets.run`."""
        self._manager.on_view = on_view
        await self._manager.run()

    async def lose(self, address: Address) -> None:
        """As `Subnets.lose`."""
        await self._client.lose_address(str(address))

    def config_text(self) -> str:
        """As `Subnets.config_text`."""
        return self._manager.config_value.decode()

    def head(self) -> Head:
        """As `Subnets.head`."""
        return self._manager.registered.head

    def standing(self) -> Standing:
        """As `Subnets.standing`."""
        status = self._manager.status()
        missing = ""
        if status.standing is not ManagerStanding.HELD:
            missing = status.detail or f"our lease is {status.standing.value}"
        return Standing(missing, status.problem, status.config)
