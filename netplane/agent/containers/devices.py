"""Bridge and pairs of devices in the kernel. Everything here blocks, and is called from threads.

The kernel itself says whose a port is: its name is drawn from the attachment, so that it can be
removed without any memory, and its alias tells address and attachment, so that memory can be made
anew.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from netplane.agent.containers.addresses import gateway
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.names import (
    PORT_PREFIX,
    alias_of,
    bridge_name,
    mac_of,
    outer_mac,
    port_name,
    read_alias,
)
from netplane.agent.containers.records import Key, Record
from netplane.backend import forwarding_over
from netplane.cni import plugin
from netplane.netlink import containers as requests
from netplane.netlink import messages, sysctl
from netplane.netlink.blocking import Blocking
from netplane.netlink.connection import NetlinkError, NetlinkLostError
from netplane.netlink.decode import Link, NetlinkFormatError
from netplane.netlink.kernel import GONE
from netplane.netlink.messages import IPV6_BYTES
from netplane.netlink.namespace import inside
from netplane.netlink.objects import Address, Route
from netplane.subnet.family import VERSION4, VERSION6, Interface

log = logging.getLogger("netplane.containers")

AF_UNSPEC = 0
FAULTS = (NetlinkError, NetlinkLostError, NetlinkFormatError, OSError)
"""How the kernel, or asking it, fails."""

LINK_LOCAL = b"\xfe\x80"


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Let faults be errors of a call, which say what could not be done."""
    try:
        yield
    except FAULTS as error:
        raise CniError(plugin.KERNEL, what, str(error)) from error


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge as it should be."""

    name: str
    mtu: int
    gateways: frozenset[Interface]
    """Of our subnet, and of an earlier one that containers still have addresses of."""
    mac: bytes
    localnet: bool = False
    """Whether 127.0.0.1 of the host may lead to containers."""
    lost: frozenset[Interface] = frozenset()
    """What it had of a family that the network has no more."""

    @property
    def addresses(self) -> frozenset[Address]:
        """The gateways as the kernel has them."""
        return frozenset(item_of(self.name, one) for one in self.gateways)

    @property
    def has_ipv4(self) -> bool:
        """Whether there is IPv4 for containers."""
        return any(one.version == VERSION4 for one in self.gateways)

    @property
    def has_ipv6(self) -> bool:
        """Whether there is IPv6 for containers; else that of the bridge is nobody's concern."""
        return any(one.version == VERSION6 for one in self.gateways)

    @property
    def link_local(self) -> Address:
        """The address that the kernel gives it for the link (RFC 4291, appendix A)."""
        first, rest = self.mac[0] ^ 2, self.mac[1:]
        packed = LINK_LOCAL + bytes(6) + bytes([first]) + rest[:2] + b"\xff\xfe" + rest[2:]
        return Address(self.name, packed, 64)

    def missing(self, found: AbstractSet[Address]) -> set[Address]:
        """Return what it lacks of addresses, given those that it has.

        Of link-local ones any will do: without one the kernel asks for no neighbour on behalf of
        others.
        """
        lacks = set(self.addresses - found)
        if self.has_ipv6 and not any(map(is_link_local, found)):
            lacks.add(self.link_local)
        return lacks

    def surplus(self, found: AbstractSet[Address]) -> set[Address]:
        """Return what is too much of the addresses that it has."""
        lost = {item_of(self.name, one) for one in self.lost}
        return {
            one
            for one in found - self.addresses
            if not is_link_local(one)
            and (len(one.address) < IPV6_BYTES or self.has_ipv6 or one in lost)
        }


def is_link_local(item: Address) -> bool:
    """Tell whether an address is of IPv6, for its link alone."""
    return len(item.address) == IPV6_BYTES and item.address.startswith(LINK_LOCAL)


def item_of(link: str, address: Interface) -> Address:
    """Return an address as the kernel has it."""
    return Address(link, address.ip.packed, address.network.prefixlen)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a container is to get."""

    key: Key
    link: str
    addresses: tuple[Interface, ...]
    mac: bytes

    @property
    def link_mac(self) -> bytes:
        """Of the host's end."""
        return outer_mac(self.addresses[0].ip)


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of an attachment."""

    bridge: int
    """Its index."""
    defaults: tuple[Interface, ...]
    """The addresses of families that have their default route here: of the first interface."""


def attach(bridge: Bridge, wanted: Attachment, namespace: int) -> Made:
    """Give a container its interface, all or nothing.

    Args:
        bridge: made or put right before, if need be.
        wanted: what it gets.
        namespace: a descriptor of the container's.

    Raises:
        CniError: What the kernel refused.
    """
    pair = requests.Veth(wanted.link, wanted.link_mac, wanted.key.ifname, wanted.mac, bridge.mtu)
    with failing(f"cannot make the interface {pair.peer}"), Blocking() as host:
        index = keep_bridge(host, bridge)
        _make_pair(host, pair, index, namespace)
        try:
            host.do(requests.set_port(pair.name, alias_of(wanted.key, wanted.addresses)))
            defaults = inside(f"/proc/self/fd/{namespace}", lambda: _furnish(wanted))
            gateways = (gateway(one.network).ip for one in wanted.addresses)
            host.await_use((pair.name, bridge.name), gateways)
        except BaseException:
            host.perform(requests.remove_link(pair.name))
            raise
        return Made(index, defaults)


def _make_pair(host: Blocking, pair: requests.Veth, bridge: int, namespace: int) -> None:
    make = requests.make_veth(pair, bridge, namespace)
    [ended] = host.perform(make)
    if ended.code == errno.EEXIST and host.link(pair.name) is not None:
        # Left by an attempt that nobody knows of any more.
        host.do(requests.remove_link(pair.name))
        [ended] = host.perform(make)
    if ended.code == errno.EEXIST:
        raise CniError(plugin.IN_USE, f"the container has an interface {pair.peer} already")
    if ended.code:
        raise NetlinkError(ended.code, ended.text)


def _furnish(wanted: Attachment) -> tuple[Interface, ...]:
    name = wanted.key.ifname
    # Who has another MAC for the address in memory hears of this one when the link comes up.
    sysctl.write(f"ipv4/conf/{name}/arp_notify", "1")
    if any(one.version == VERSION6 for one in wanted.addresses):
        allow_ipv6(name)
        sysctl.write(f"ipv6/conf/{name}/ndisc_notify", "1")
        # Nobody else has what it gives itself for the link, and it need not wait to find that out.
        sysctl.write(f"ipv6/conf/{name}/accept_dad", "0")
    with Blocking() as container:
        link = container.link(name)
        if link is None:
            raise NetlinkLostError(f"{name} went away at once")
        container.do(
            *(messages.add(item_of(name, one), link.index) for one in wanted.addresses),
            messages.take_link(link.index, up=True),
        )
        routes = [messages.add(_default_route(name, one), link.index) for one in wanted.addresses]
        outcomes = container.perform(*routes)
        container.await_use([name], (one.ip for one in wanted.addresses))
    for ended in outcomes:
        if ended.code not in {0, errno.EEXIST}:
            raise NetlinkError(ended.code, ended.text)
    pairs = zip(wanted.addresses, outcomes, strict=True)
    return tuple(one for one, ended in pairs if not ended.code)


def _default_route(link: str, address: Interface) -> Route:
    via = gateway(address.network).ip.packed
    return Route(link, bytes(len(via)), 0, via)


def allow_ipv6(link: str) -> None:
    """Have IPv6 on a link, also where that is off by default, and no word of routers heard there.

    Any container can send such, and would be the way of all others.
    """
    for setting in (f"ipv6/conf/{link}/disable_ipv6", f"ipv6/conf/{link}/accept_ra"):
        if sysctl.read([setting]).get(setting) != "0":
            sysctl.write(setting, "0")


def detach(link: str) -> None:
    """Take a container's interface away, wherever it is by now; that it is gone is no failure.

    Raises:
        CniError: The kernel refused.
    """
    with failing(f"cannot remove {link}"), Blocking() as host:
        _remove(host, link)


def _remove(host: Blocking, link: str) -> bool:
    [ended] = host.perform(requests.remove_link(link))
    if ended.code and ended.code not in GONE:
        raise NetlinkError(ended.code, ended.text)
    return not ended.code


def is_there(link: str) -> bool:
    """Tell whether a link is there. Raises CniError."""
    with failing(f"cannot look for {link}"), Blocking() as host:
        return host.link(link) is not None


def keep_bridge(host: Blocking, wanted: Bridge) -> int:
    """Have the bridge as it should be, and return its index.

    Raises:
        CniError: Something else has its name.
        NetlinkError, NetlinkLostError: As always.
    """
    link = host.link(wanted.name)
    if link is None:
        [ended] = host.perform(requests.make_bridge(wanted.name, wanted.mac, wanted.mtu))
        # Another call may just have made it.
        if ended.code not in {0, errno.EEXIST}:
            raise NetlinkError(ended.code, ended.text)
        link = host.link(wanted.name)
        if link is None:
            raise NetlinkLostError(f"{wanted.name} went away at once")
    if link.kind != "bridge":
        text = f"it is somebody else's {link.kind or 'hardware'} interface; rename it"
        raise CniError(plugin.KERNEL, f"{wanted.name} is no bridge", text)
    if not is_right(link, wanted):
        host.do(requests.set_link(link.index, wanted.mac, wanted.mtu))
    if wanted.has_ipv6:
        allow_ipv6(wanted.name)
    if not forwards(wanted):
        forwarding = forwarding_over(wanted.name)
        sysctl.write(forwarding.name, forwarding.value)
    found = _addresses(host, link)
    changes = [messages.add(one, link.index) for one in wanted.missing(found)]
    changes += [messages.remove(one, link.index) for one in wanted.surplus(found)]
    for ended in host.perform(*changes):
        if ended.code and ended.code not in {errno.EEXIST, *GONE}:
            raise NetlinkError(ended.code, ended.text)
    if wanted.localnet:
        allow_localnet(wanted.name)
    return link.index


def _addresses(host: Blocking, link: Link) -> set[Address]:
    return set(host.addresses(AF_UNSPEC, link.index, link.name))


def allow_localnet(bridge: str, *, allowed: bool = True) -> None:
    """Let 127.0.0.1 of the host lead to containers; the table of published ports guards it.

    Or let it not, where that table is about to go. Raises CniError.
    """
    name, value = f"ipv4/conf/{bridge}/route_localnet", str(int(allowed))
    with failing(f"cannot set {name}"):
        if sysctl.read([name]).get(name, value) != value:
            sysctl.write(name, value)


def forwards(wanted: Bridge) -> bool:
    """Tell whether packets of containers go on from the bridge, if it is there. Raises OSError."""
    name, value, _ = forwarding_over(wanted.name)
    return not wanted.has_ipv4 or sysctl.read([name]).get(name, value) == value


def is_right(link: Link, wanted: Bridge) -> bool:
    """Tell whether the bridge itself is as it should be."""
    return (link.up, link.mac, link.mtu) == (True, wanted.mac, wanted.mtu)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a look at all attachments found."""

    index: int
    """Of the bridge."""
    healed: tuple[str, ...] = ()
    """What was put right, in words."""
    ended: tuple[Key, ...] = ()
    """Attachments that the kernel has no devices of any more."""


def keep(wanted: Bridge, records: Mapping[Key, Record]) -> Kept:
    """Put bridge and ports right. Raises CniError.

    A pair that is gone is gone with its container, or for it: nothing can bring it back.
    """
    healed = []
    with failing(f"cannot keep {wanted.name}"), Blocking() as host:
        before = host.link(wanted.name)
        there = set() if before is None else _addresses(host, before)
        if not forwards(wanted):
            healed.append(str(forwarding_over(wanted.name)))
        index = keep_bridge(host, wanted)
        if before is None or not is_right(before, wanted):
            healed.append(f"link {wanted.name}")
        healed += map(str, wanted.missing(there))
        links = {link.name: link for link in host.links()}
    ended = [record.key for record in records.values() if record.link not in links]
    with failing(f"cannot keep the ports of {wanted.name}"), Blocking() as host:
        for record in records.values():
            link = links.get(record.link)
            if link is None or (link.master == index and link.up and link.hairpin):
                continue
            # The container may end at any time, and its pair with it.
            port = requests.make_port(link.index, index)
            alias = alias_of(record.key, record.addresses)
            outcomes = host.perform(port, requests.set_port(link.name, alias))
            if not any(outcome.code for outcome in outcomes):
                healed.append(f"port {link.name}")
    return Kept(index, tuple(healed), tuple(ended))


def remembered(instance: str) -> list[Record]:
    """Return the attachments that the kernel itself tells of. Raises CniError."""
    with failing("cannot read the containers' devices"), Blocking() as host:
        return list(_remembered(instance, host.links()))


def _remembered(instance: str, links: Sequence[Link]) -> Iterator[Record]:
    bridge = bridge_name(instance)
    index = next((link.index for link in links if link.name == bridge), 0)
    for link in links:
        told = read_alias(link.alias) if link.name.startswith(PORT_PREFIX) else None
        if told is None:
            continue
        addresses, key = told
        # By its name it is known for sure; where that does not tell, by the bridge that it is on.
        if key is None and index and link.master == index:
            key = Key("unknown", link.name, "unknown")
        elif key is None or port_name(instance, key) != link.name:
            continue
        yield Record(key, addresses, link.name, mac_of(addresses[0].ip).hex(":"))


def clear(instance: str) -> int:
    """Take bridge and ports of an instance away; return how many devices. Raises CniError."""
    with failing("cannot remove the containers' devices"), Blocking() as host:
        links = host.links()
        names = [one.link for one in _remembered(instance, links)]
        bridge = bridge_name(instance)
        names += [link.name for link in links if (link.name, link.kind) == (bridge, "bridge")]
        return sum(_remove(host, name) for name in names)
