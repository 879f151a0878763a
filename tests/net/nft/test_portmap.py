"""Published ports, by packets: from other hosts, from this one, between containers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from netplane.netlink import conntrack
from netplane.netlink.connection import Connection
from netplane.netlink.namespace import inside
from netplane.nft.monitor import NETLINK_NETFILTER
from netplane.nft.portmap import PortMapping, Portmaps, PortTakenError
from tests.cluster.faults.namespaces import missing
from tests.net.kernel.hosts import Host

pytestmark = [pytest.mark.net, pytest.mark.root]

SUBNET = IPv4Network("10.128.1.0/24")
FIRST, SECOND = IPv4Address("10.128.1.2"), IPv4Address("10.128.1.3")
PATIENCE_S = 20.0


class Scene:
    """A host with two containers on a bridge, and a client on a cable outside."""

    def __init__(self) -> None:
        self.host, self.client = Host(1), Host(2)
        self.containers = {FIRST: Host(3), SECOND: Host(4)}
        self.host.join(self.client)
        self.host.sysctl("ipv4/ip_forward", "1")
        self.host.do(
            "ip link add np-br type bridge", f"ip addr add {SUBNET[1]}/24 dev np-br",
            "ip link set np-br up",
        )  # fmt: skip
        self.host.sysctl("ipv4/conf/np-br/route_localnet", "1")
        for number, (address, container) in enumerate(self.containers.items()):
            self.host.do(
                f"ip link add port{number} type veth peer name eth0 netns {container.path}",
                f"ip link set port{number} master np-br up",
                f"ip link set port{number} type bridge_slave hairpin on",
            )
            container.do(
                f"ip addr add {address}/24 dev eth0", "ip link set eth0 up",
                f"ip route add default via {SUBNET[1]}",
            )  # fmt: skip

    def close(self) -> None:
        for host in (self.host, self.client, *self.containers.values()):
            host.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.closing(Scene()) as made:
        yield made


@pytest.fixture
def portmaps(scene: Scene) -> Iterator[Portmaps]:
    made = Portmaps("netplane_ports", subnet=SUBNET, bridge="np-br", namespace=scene.host.path)
    with contextlib.closing(made):
        yield made


def opened(host: Host, kind: int, address: str = "", port: int = 0) -> socket.socket:
    made = inside(host.path, lambda: socket.socket(socket.AF_INET, kind))
    made.settimeout(PATIENCE_S)
    made.bind((address, port))
    return made


def reaches(sender: Host, address: str, port: int, listener: socket.socket) -> str:
    """Connect, and return whom the container takes the sender for; empty: nobody answers."""
    with opened(sender, socket.SOCK_STREAM) as client:
        try:
            client.connect((address, port))
        except ConnectionRefusedError:
            return ""
        accepted, peer = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert client.recv(10) == b"hello"
        return str(peer[0])


async def test_a_published_port_leads_to_the_container_from_everywhere(
    scene: Scene, portmaps: Portmaps
) -> None:
    first = scene.containers[FIRST]
    with opened(first, socket.SOCK_STREAM, port=80) as listener:
        listener.listen()
        assert reaches(scene.client, "10.77.0.1", 8080, listener) == ""
        await portmaps.publish("one", [PortMapping("tcp", 8080, FIRST, 80)])
        assert await portmaps.read() == []
        # Who comes from outside is seen as who it is.
        assert reaches(scene.client, "10.77.0.1", 8080, listener) == "10.77.0.2"
        assert reaches(scene.host, "10.77.0.1", 8080, listener) == "10.77.0.1"
        assert reaches(scene.host, "127.0.0.1", 8080, listener) == str(SUBNET[1])
        # From containers, the answer has to come back by the host.
        for container in (scene.containers[SECOND], first):
            assert reaches(container, "10.77.0.1", 8080, listener) == str(SUBNET[1])
        await portmaps.withdraw("one")
        assert reaches(scene.client, "10.77.0.1", 8080, listener) == ""


async def test_ports_on_one_address_and_ports_in_a_row(scene: Scene, portmaps: Portmaps) -> None:
    scene.host.do("ip addr add 10.77.0.9/16 dev eth0")
    first, second = scene.containers.values()
    with (
        opened(first, socket.SOCK_STREAM, port=7005) as row,
        opened(second, socket.SOCK_STREAM, port=7005) as single,
    ):
        row.listen()
        single.listen()
        here, there = IPv4Address("10.77.0.1"), IPv4Address("10.77.0.9")
        rows = [PortMapping("tcp", port, FIRST, port, here) for port in range(7000, 7010)]
        await portmaps.publish("one", rows)
        await portmaps.publish("two", [PortMapping("tcp", 7005, SECOND, 7005, there)])
        assert await portmaps.read() == []
        assert reaches(scene.client, "10.77.0.1", 7005, row) == "10.77.0.2"
        assert reaches(scene.client, "10.77.0.9", 7005, single) == "10.77.0.2"
        with pytest.raises(PortTakenError, match="for container one"):
            await portmaps.publish("three", [PortMapping("tcp", 7009, SECOND, 1)])
        # A row that loses one in the middle is two.
        await portmaps.publish("one", rows[:5] + rows[6:])
        assert reaches(scene.client, "10.77.0.1", 7005, row) == ""
        assert await portmaps.read() == []


async def test_a_thousand_ports_are_as_they_should_be(portmaps: Portmaps) -> None:
    many = {
        f"c{number}": [
            PortMapping("tcp", 10000 + number, FIRST, 80),
            PortMapping("udp", 10000 + number, FIRST, 10000 + number),
        ]
        for number in range(500)
    }
    await portmaps.restore(many)
    assert await portmaps.read() == []
    await portmaps.withdraw("c250")
    assert await portmaps.read() == []


@pytest.mark.parametrize("ports", [1, 2])
async def test_a_flow_of_udp_goes_by_the_new_map_at_once(
    scene: Scene, portmaps: Portmaps, ports: int
) -> None:
    # Without forgetting, it would go on to where its first packet went for as long as it lasts.
    first, second = scene.containers.values()
    with (
        opened(first, socket.SOCK_DGRAM, port=53) as old,
        opened(second, socket.SOCK_DGRAM, port=53) as new,
        opened(scene.host, socket.SOCK_DGRAM, "10.77.0.1", 5353) as before,
        opened(scene.client, socket.SOCK_DGRAM) as client,
    ):

        def send(text: bytes, receiver: socket.socket) -> None:
            client.sendto(text, ("10.77.0.1", 5353))
            assert receiver.recv(10) == text

        others = [PortMapping("udp", 5400 + one, FIRST, 54) for one in range(1, ports)]
        # What makes the kernel track at all; with nothing of ours yet, to the host itself.
        await portmaps.restore({})
        send(b"host", before)
        await portmaps.publish("one", [PortMapping("udp", 5353, FIRST, 53), *others])
        send(b"first", old)
        await portmaps.withdraw("one")
        send(b"host", before)
        await portmaps.publish("two", [PortMapping("udp", 5353, SECOND, 53), *others])
        send(b"second", new)


async def test_only_flows_that_are_asked_for_are_told_and_forgotten(
    scene: Scene, portmaps: Portmaps
) -> None:
    await portmaps.restore({})  # lets the kernel track
    async with Connection(scene.host.path, protocol=NETLINK_NETFILTER) as connection:

        async def seen(port: int = 0) -> list[int]:
            found = await connection.dump(conntrack.dump_flows(17, port))
            flows = [conntrack.flow(message.body) for message in found]
            return sorted(flow.destination_port for flow in flows if flow is not None)

        with (
            opened(scene.host, socket.SOCK_DGRAM, "10.77.0.1", 5353) as receiver,
            opened(scene.client, socket.SOCK_DGRAM) as client,
        ):
            for port in (5354, 5355, 5353):
                client.sendto(b"x", ("10.77.0.1", port))
            receiver.recv(10)
        assert await seen() == [5353, 5354, 5355]
        assert await seen(5354) == [5354]
        asked = conntrack.dump_flows(17)
        assert await conntrack.forget(connection, asked, lambda flow: flow[2] == 5354) == 1
        assert await seen() == [5353, 5355]
        assert await conntrack.forget(connection, asked, lambda flow: flow[2] == 5354) == 0


async def test_containers_do_not_reach_the_hosts_loopback(scene: Scene, portmaps: Portmaps) -> None:
    # route_localnet alone would let them.
    first = scene.containers[FIRST]
    first.do("ip addr del 127.0.0.1/8 dev lo", f"ip route add 127.0.0.0/8 via {SUBNET[1]}")
    first.sysctl("ipv4/conf/eth0/route_localnet", "1")
    with (
        opened(scene.host, socket.SOCK_DGRAM, "127.0.0.1", 9000) as secret,
        opened(scene.host, socket.SOCK_DGRAM, "10.128.1.1", 9001) as after,
        opened(first, socket.SOCK_DGRAM, str(FIRST)) as client,
    ):

        def send(text: bytes) -> None:
            client.sendto(text, ("127.0.0.1", 9000))
            client.sendto(b"after", ("10.128.1.1", 9001))
            assert after.recv(10) == b"after"

        send(b"open")
        assert secret.recv(10) == b"open"
        await portmaps.restore({})
        send(b"shut")
        secret.setblocking(False)
        with pytest.raises(BlockingIOError):
            secret.recv(10)
