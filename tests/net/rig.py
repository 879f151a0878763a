"""Simulated hosts on one underlay, with containers behind them; knows nothing of netplane.

underlay namespace:  bridge hub, 10.77.0.254
    |            |            |
eth0 of host 1   host 2       host 3       10.77.0.1, .2, .3; default route over the hub
br0  (gateway)   br0          br0          first address of the host's subnet
 |    |           |    |       |    |
eth0 of containers, each a namespace of its own
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Self

from netplane.netlink.blocking import Blocking
from netplane.netlink.namespace import inside
from netplane.subnet.family import VERSION6, Subnet
from tests.net.namespaces import Namespace

UNDERLAY = "10.77"
UNDERLAY6 = "fd77"


class Container:
    """A namespace behind a host, with one address of each of the host's subnets."""

    def __init__(self, host: Host, namespace: Namespace, address: str, address6: str = "") -> None:
        self.host = host
        self.namespace = namespace
        self.address = address
        """Of the first subnet."""
        self.address6 = address6
        """Of the second; empty: there is none."""


class Host:
    """A simulated machine. Forwarding is off: whoever needs it turns it on."""

    def __init__(self, rig: Rig, number: int) -> None:
        self.number = number
        self.name = f"host-{number}"
        # 250 to a /24 of addresses: a hundred hosts need no more, a thousand would fit.
        self.address = f"{UNDERLAY}.{number // 250}.{number % 250 + 1}"
        self.address6 = f"{UNDERLAY6}::{number + 1:x}"
        self.authority = self.address if rig.ipv4 else f"[{self.address6}]"
        """Of what it serves, as URLs have it."""
        self.port = f"port{number}"
        self.namespace = rig.stack.enter_context(Namespace(self.name))
        self.containers: list[Container] = []
        self._rig = rig
        self.namespace.sysctl("ipv4.ip_forward", "0")
        self.namespace.sysctl("ipv6.conf.all.forwarding", "0")
        self.plug(self.address)

    def plug(self, address: str, name: str = "eth0") -> None:
        """Put in a card that is connected to the underlay."""
        self._rig.underlay.ip(
            f"link add {self.port} type veth peer name {name} netns {self.namespace.pid}",
            f"link set {self.port} master hub up",
        )
        self.namespace.ip(f"link set {name} up")
        settle(self._rig.underlay, self.port, "hub")
        if self._rig.ipv4:
            self.namespace.ip(
                f"addr add {address}/16 dev {name}",
                f"route add default via {UNDERLAY}.255.254",
            )
        if self._rig.ipv6:
            self.plug6(self.address6, name)

    def plug6(self, address: str, name: str = "eth0") -> None:
        """Give a card an IPv6 address, and a default route of IPv6."""
        self.namespace.ip(
            f"addr add {address}/64 dev {name} nodad",
            f"route add default via {UNDERLAY6}::ffff",
        )
        settle(self.namespace, addresses=[IPv6Address(address)])

    def unplug(self) -> None:
        """Take the card out: the interface is gone."""
        self._rig.underlay.ip(f"link del {self.port}")

    def add_container(
        self, subnet: Subnet, mtu: int = 1500, subnet6: IPv6Network | None = None
    ) -> Container:
        """Put one more container behind the host, on a bridge made for the first of them."""
        subnets = [subnet] if subnet6 is None else [subnet, subnet6]
        gateways = [one.network_address + 1 for one in subnets]
        if not self.containers:
            self.namespace.ip(
                "link add br0 type bridge",
                *(
                    f"addr add {gateway}/{one.prefixlen} dev br0{_nodad(one)}"
                    for one, gateway in zip(subnets, gateways, strict=True)
                ),
                f"link set br0 mtu {mtu} up",
            )
        number = len(self.containers) + 1
        namespace = self._rig.stack.enter_context(Namespace(f"{self.name}-c{number}"))
        addresses = [gateway + number for gateway in gateways]
        self.namespace.ip(
            f"link add veth{number} mtu {mtu} type veth "
            f"peer name eth0 mtu {mtu} netns {namespace.pid}",
            f"link set veth{number} master br0 up",
        )
        namespace.ip(
            *(
                f"addr add {address}/{one.prefixlen} dev eth0{_nodad(one)}"
                for one, address in zip(subnets, addresses, strict=True)
            ),
            "link set eth0 up",
            *(f"route add default via {gateway}" for gateway in gateways),
        )
        settle(self.namespace, f"veth{number}", "br0")
        container = Container(self, namespace, *map(str, addresses))
        settle(namespace, addresses=addresses)
        self.containers.append(container)
        return container

    def cut(self) -> None:
        """Cut the cable: the interface stays, what it sends goes nowhere."""
        self._rig.underlay.ip(f"link set {self.port} down")

    def heal(self) -> None:
        """Mend the cable."""
        self._rig.underlay.ip(f"link set {self.port} up")
        settle(self._rig.underlay, self.port)


def settle(
    namespace: Namespace, *links: str, addresses: Iterable[IPv4Address | IPv6Address] = ()
) -> None:
    """Wait until packets pass links, and come to addresses: later than `ip` returns."""

    def wait() -> None:
        with Blocking() as kernel:
            kernel.await_use(links, addresses)

    inside(namespace.path, wait)


def _nodad(subnet: Subnet) -> str:
    # An address of IPv6 is of no use before nobody else is found to have it.
    return " nodad" if subnet.version == VERSION6 else ""


class Rig:
    """Some hosts; everything goes at the end of the `with`, or of this process.

    They have addresses of IPv4, of IPv6, or of both families.
    """

    def __init__(self, hosts: int, *, ipv6: bool = False, ipv4: bool = True) -> None:
        self.ipv4, self.ipv6 = ipv4, ipv6
        self.stack = ExitStack()
        self._count = hosts
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        with self.stack:
            self.underlay = self.stack.enter_context(Namespace("underlay"))
            self.underlay.ip(
                "link add hub type bridge",
                f"addr add {UNDERLAY}.255.254/16 dev hub",
                *([f"addr add {UNDERLAY6}::ffff/64 dev hub nodad"] if self.ipv6 else []),
                "link set hub up",
            )
            for number in range(self._count):
                self.hosts.append(Host(self, number))
            # All is made: what was entered stays until our own end.
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    @property
    def containers(self) -> list[Container]:
        """All of them, by host."""
        return [container for host in self.hosts for container in host.containers]
