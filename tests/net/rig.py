"""Simulated hosts on one underlay, with containers behind them; knows nothing of netplane.

underlay namespace:  bridge hub, 10.77.0.254
    |            |            |
eth0 of host 1   host 2       host 3       10.77.0.1, .2, .3; default route over the hub
br0  (gateway)   br0          br0          first address of the host's subnet
 |    |           |    |       |    |
eth0 of containers, each a namespace of its own
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import Self

from tests.net.namespaces import Namespace

UNDERLAY = "10.77"


class Container:
    """A namespace behind a host, with one address of the host's subnet."""

    def __init__(self, host: Host, namespace: Namespace, address: str) -> None:
        self.host = host
        self.namespace = namespace
        self.address = address


class Host:
    """A simulated machine. Forwarding is off: whoever needs it turns it on."""

    def __init__(self, rig: Rig, number: int) -> None:
        self.number = number
        self.name = f"host-{number}"
        # 250 to a /24 of addresses: a hundred hosts need no more, a thousand would fit.
        self.address = f"{UNDERLAY}.{number // 250}.{number % 250 + 1}"
        self.port = f"port{number}"
        self.namespace = rig.stack.enter_context(Namespace(self.name))
        self.containers: list[Container] = []
        self._rig = rig
        self.plug(self.address)
        self.namespace.sysctl("ipv4.ip_forward", "0")

    def plug(self, address: str) -> None:
        """Put in a card that is connected to the underlay."""
        self._rig.underlay.ip(
            f"link add {self.port} type veth peer name eth0 netns {self.namespace.pid}",
            f"link set {self.port} master hub up",
        )
        self.namespace.ip(
            f"addr add {address}/16 dev eth0",
            "link set eth0 up",
            f"route add default via {UNDERLAY}.255.254",
        )

    def unplug(self) -> None:
        """Take the card out: the interface is gone."""
        self._rig.underlay.ip(f"link del {self.port}")

    def add_container(self, subnet: IPv4Network, mtu: int = 1500) -> Container:
        """Put one more container behind the host, on a bridge made for the first of them."""
        gateway = subnet.network_address + 1
        if not self.containers:
            self.namespace.ip(
                "link add br0 type bridge",
                f"addr add {gateway}/{subnet.prefixlen} dev br0",
                f"link set br0 mtu {mtu} up",
            )
        number = len(self.containers) + 1
        namespace = self._rig.stack.enter_context(Namespace(f"{self.name}-c{number}"))
        address = gateway + number
        self.namespace.ip(
            f"link add veth{number} mtu {mtu} type veth "
            f"peer name eth0 mtu {mtu} netns {namespace.pid}",
            f"link set veth{number} master br0 up",
        )
        namespace.ip(
            f"addr add {address}/{subnet.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {gateway}",
        )
        container = Container(self, namespace, str(address))
        self.containers.append(container)
        return container

    def cut(self) -> None:
        """Cut the cable: the interface stays, what it sends goes nowhere."""
        self._rig.underlay.ip(f"link set {self.port} down")

    def heal(self) -> None:
        """Mend the cable."""
        self._rig.underlay.ip(f"link set {self.port} up")


class Rig:
    """Some hosts; everything goes at the end of the `with`, or of this process."""

    def __init__(self, hosts: int) -> None:
        self.stack = ExitStack()
        self._count = hosts
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        with self.stack:
            self.underlay = self.stack.enter_context(Namespace("underlay"))
            self.underlay.ip(
                "link add hub type bridge",
                f"addr add {UNDERLAY}.255.254/16 dev hub",
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
