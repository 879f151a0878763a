"""A host that Flannel made, and an agent that goes on with what is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv6Network
from typing import Any

import pytest

from netplane.agent.ask import ask
from netplane.subnet.family import Subnet
from tests.net.handmade import mac_of, make_device, make_overlay, subnet_of
from tests.net.namespaces import missing
from tests.net.overlay import DUAL, HOST_GW, NETWORK, AgentProcess, HostMembers, until
from tests.net.packets import Flow, ping_all
from tests.net.rig import Host, Rig
from tests.net.routed import address_of, refused

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
PREFIX = "/coreos.com/network"


class FlannelHosts:
    """Two hosts with Flannel's device, objects and leases; Flannel itself has ended."""

    config = NETWORK
    mtu = 1450

    def __init__(self, rig: Rig, members: HostMembers) -> None:
        self.members = members
        self.hosts = rig.hosts
        self.kvctl("put", f"{PREFIX}/config", self.config)
        self.make()
        for host in self.hosts:
            host.add_container(subnet_of(host), mtu=self.mtu, subnet6=self.subnet6_of(host))
            lease = json.loads(self.kvctl("-w", "json", "lease", "grant", "86400"))["ID"]
            self.kvctl("put", f"--lease={int(lease):x}", self.key(host), self.value(host))

    def subnet6_of(self, host: Host) -> IPv6Network | None:
        """Return the IPv6 subnet of a host, in networks that have it."""

    def subnets_of(self, host: Host) -> dict[int, Subnet | None]:
        """Return the subnets of a host, by family."""
        return {4: subnet_of(host), 6: self.subnet6_of(host)}

    def make(self) -> None:
        """Make what Flannel makes, and on the first host what a peer has left."""
        make_overlay(self.hosts, device="flannel.1")
        self.hosts[0].namespace.ip(
            "neigh add 10.5.99.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
            "route add 10.5.99.0/24 via 10.5.99.0 dev flannel.1 onlink",
        )
        self.hosts[0].namespace.bridge(
            "fdb add 02:00:00:00:00:99 dev flannel.1 dst 10.77.0.99 self permanent"
        )

    def kvctl(self, *arguments: str) -> str:
        return self.hosts[0].namespace.run(
            sys.executable, "-m", "kvstore.cli.kvctl",
            f"--endpoints={self.members.endpoints[0]}", *arguments,
        )  # fmt: skip

    def key(self, host: Host) -> str:
        return f"{PREFIX}/subnets/{str(subnet_of(host)).replace('/', '-')}"

    def value(self, host: Host) -> str:
        """What Flannel writes."""
        return (
            f'{{"PublicIP":"{host.address}","PublicIPv6":null,"BackendType":"vxlan",'
            f'"BackendData":{{"VNI":1,"VtepMAC":"{mac_of(host)}"}}}}'
        )

    def registered(self, host: Host) -> str:
        return self.kvctl("get", "--print-value-only", self.key(host)).strip()

    def agent(self, number: int, *flags: str) -> AgentProcess:
        made = AgentProcess(self.hosts[number], self.members.endpoints, self.members.folder, *flags)
        made.start()
        return made


class BothFamilies(FlannelHosts):
    """The same in a network of both families, as far as the registry shows it."""

    config = DUAL

    def subnet6_of(self, host: Host) -> IPv6Network:
        """As `FlannelHosts.subnet6_of`."""
        return IPv6Network(f"fd00:5:0:{host.number + 1:x}::/64")

    def key(self, host: Host) -> str:
        """As `FlannelHosts.key`."""
        return f"{super().key(host)}&{str(self.subnet6_of(host)).replace('/', '-')}"

    def value(self, host: Host) -> str:
        """What Flannel writes."""
        return super().value(host).replace("null", f'"{host.address6}"')


class DualHosts(BothFamilies):
    """Two hosts with Flannel's devices of both families."""

    def mac6_of(self, host: Host) -> str:
        """Return the MAC of a host's device for IPv6: Flannel draws each by itself."""
        return f"02:06:00:00:00:{host.number + 1:02x}"

    def make(self) -> None:
        """As `FlannelHosts.make`, for both families."""
        super().make()
        self.make_devices6()
        self.make_peers6()

    def make_devices6(self) -> None:
        """Make the devices of IPv6."""
        for host in self.hosts:
            host.namespace.sysctl("ipv6.conf.all.forwarding", "1")
            host.namespace.ip(
                f"link add flannel-v6.1 address {self.mac6_of(host)} mtu 1400 type vxlan id 1"
                f" dev eth0 local {host.address6} dstport 8472 nolearning",
                f"addr add {self.subnet6_of(host)[0]}/128 dev flannel-v6.1 nodad",
                "link set flannel-v6.1 up",
            )

    def make_peers6(self) -> None:
        """Make the way to each other, and on the first host what a peer has left."""
        one, two = self.hosts
        for host, other, address in (
            (one, two, two.address6), (two, one, one.address6), (one, None, "fd77::99"),
        ):  # fmt: skip
            # The last is what a peer has left.
            subnet = IPv6Network("fd00:5:0:99::/64") if other is None else self.subnet6_of(other)
            mac = "02:06:00:00:00:99" if other is None else self.mac6_of(other)
            host.namespace.ip(
                f"neigh add {subnet[0]} lladdr {mac} dev flannel-v6.1 nud permanent",
                f"route add {subnet} via {subnet[0]} dev flannel-v6.1 onlink",
            )
            host.namespace.bridge(f"fdb add {mac} dev flannel-v6.1 dst {address} self permanent")

    def value(self, host: Host) -> str:
        """What Flannel writes."""
        return (
            super().value(host).removesuffix("}")
            + f',"BackendV6Data":{{"VNI":1,"VtepMAC":"{self.mac6_of(host)}"}}}}'
        )


class HostGwHosts(FlannelHosts):
    """Two hosts with Flannel's routes of its backend host-gw."""

    config = HOST_GW
    mtu = 1500

    def make(self) -> None:
        """As `FlannelHosts.make`. Flannel names no route protocol, as who types `ip route`."""
        for host in self.hosts:
            host.namespace.sysctl("ipv4.ip_forward", "1")
        make_routes(self)

    def value(self, host: Host) -> str:
        """What Flannel writes."""
        return f'{{"PublicIP":"{host.address}","PublicIPv6":null,"BackendType":"host-gw"}}'


class DualHostGwHosts(BothFamilies, HostGwHosts):
    """The same of both families."""

    config = DUAL.replace("vxlan", "host-gw")

    def make(self) -> None:
        """As `HostGwHosts.make`."""
        super().make()
        for host in self.hosts:
            host.namespace.sysctl("ipv6.conf.all.forwarding", "1")
        make_routes(self, 6)


class DirectHosts(DualHosts):
    """Two hosts with Flannel's devices of both families, and DirectRouting: none is needed."""

    config = DUAL.replace('"Type"', '"DirectRouting":true,"Type"')

    def make(self) -> None:
        """As `FlannelHosts.make`."""
        for host in self.hosts:
            make_device(host, subnet_of(host), mac_of(host), device="flannel.1")
        self.make_devices6()
        for version in (4, 6):
            make_routes(self, version)


STALE = {4: ("10.5.99.0/24", "10.77.0.99"), 6: ("fd00:5:0:99::/64", "fd77::99")}
"""A route that a departed peer has left, and its gateway."""
OTHERS = {
    4: {"10.5.128.0/17": "", "10.6.0.0/24": "", "10.5.98.0/24": "static"},
    6: {"fd00:5:0:8000::/49": "", "fd00:6::/64": "", "fd00:5:0:98::/64": "static"},
}
"""Routes that are not Flannel's, and their protocols; `ip` leaves out boot."""
LINK_ROUTES = {4: {"10.77.0.0/16": "kernel"}, 6: {"fd77::/64": "kernel", "fe80::/64": "kernel"}}


def make_routes(flannel: FlannelHosts, version: int = 4) -> None:
    """Make Flannel's routes to hosts on the link, and on the first host others beside them."""
    one, two = flannel.hosts
    stale, gateway = STALE[version]
    one.namespace.ip(
        f"route add {flannel.subnets_of(two)[version]} via {address_of(two, version)} dev eth0",
        f"route add {stale} via {gateway} dev eth0",
        *(
            f"route add {subnet} via {gateway} dev eth0 {protocol and f'proto {protocol}'}"
            for subnet, protocol in OTHERS[version].items()
        ),
    )
    two.namespace.ip(
        f"route add {flannel.subnets_of(one)[version]} via {address_of(one, version)} dev eth0"
    )


def direct_routes(host: Host, version: int = 4) -> dict[str, str]:
    """Return the protocol of each route over the interface, by destination."""
    found = host.namespace.json("ip", f"-{version}", "-j", "route", "show", "dev", "eth0")
    return {one["dst"]: one.get("protocol", "") for one in found if one["dst"] != "default"}


def routes_are_taken_over(flannel: FlannelHosts, version: int = 4) -> None:
    """Assert that Flannel's routes are ours, those of departed peers gone, and others not."""
    one, two = flannel.hosts
    assert direct_routes(two, version) == {
        **LINK_ROUTES[version], str(flannel.subnets_of(one)[version]): "181",
    }  # fmt: skip
    assert direct_routes(one, version) == {
        **LINK_ROUTES[version], **OTHERS[version], str(flannel.subnets_of(two)[version]): "181",
    }  # fmt: skip


@pytest.fixture
def flannel() -> Iterator[FlannelHosts]:
    with Rig(2) as rig, HostMembers(rig.hosts[:1]) as members:
        yield FlannelHosts(rig, members)


def link(host: Host, name: str) -> dict[str, Any] | None:
    links = host.namespace.json("ip", "-j", "link")
    return next((found for found in links if found["ifname"] == name), None)


def taken_over(flannel: FlannelHosts) -> list[AgentProcess]:
    """Start an agent on every host, which may cost no packet, and end it."""
    here, there = (host.containers[0] for host in flannel.hosts)
    ends = [
        (one, other, address)
        for one, other in ((here, there), (there, here))
        for address in (other.address, other.address6)
        if address
    ]
    # What was made a moment ago asks for neighbours, and may lose the first packets by that.
    until(
        lambda: None not in ping_all([(one, address) for one, _, address in ends]),
        20, "each answers the other",
    )  # fmt: skip
    flows = [Flow(one, other, address=address) for one, other, address in ends]
    until(lambda: all(flow.received > 500 for flow in flows), 20, "packets arrive")
    agents = []
    try:
        for number in range(2):
            agents.append(flannel.agent(number, "--adopt-flannel"))
            agents[-1].wait_ready()
            mark = flows[0].sent
            until(lambda mark=mark: flows[0].sent > mark + 500, 20, "packets are sent")
        losses = [flow.stop() for flow in flows]
    finally:
        for agent in agents:
            agent.kill()
    assert [loss.missing for loss in losses] == [()] * len(flows)
    return agents


def test_what_flannel_has_is_taken_over_without_a_lost_packet(flannel: FlannelHosts) -> None:
    before = [link(host, "flannel.1") for host in flannel.hosts]
    agents = taken_over(flannel)
    for host, agent, was in zip(flannel.hosts, agents, before, strict=True):
        now = link(host, "np.1")
        assert now is not None
        assert was is not None
        assert (now["ifindex"], now["address"]) == (was["ifindex"], mac_of(host))
        assert link(host, "flannel.1") is None
        assert agent.subnet == subnet_of(host)
        # What the other host goes by is byte for byte as it was.
        assert flannel.registered(host) == flannel.value(host)
        [other] = [one for one in flannel.hosts if one is not host]
        routes = host.namespace.json("ip", "-j", "route", "show", "dev", "np.1")
        assert [(route["dst"], route["protocol"]) for route in routes] == [
            (str(subnet_of(other)), "181")
        ]
        neighbours = host.namespace.json("ip", "-j", "neigh", "show", "dev", "np.1")
        assert [found["lladdr"] for found in neighbours] == [mac_of(other)]
        entries = host.namespace.json("bridge", "-j", "fdb", "show", "dev", "np.1")
        assert [found["mac"] for found in entries if "dst" in found] == [mac_of(other)]


@pytest.fixture
def dual() -> Iterator[DualHosts]:
    with Rig(2, ipv6=True) as rig, HostMembers(rig.hosts[:1]) as members:
        yield DualHosts(rig, members)


def test_what_flannel_has_of_both_families_is_taken_over_without_a_lost_packet(
    dual: DualHosts,
) -> None:
    before = [link(host, "flannel-v6.1") for host in dual.hosts]
    agents = taken_over(dual)
    for host, agent, was in zip(dual.hosts, agents, before, strict=True):
        assert link(host, "flannel.1") is None
        assert link(host, "flannel-v6.1") is None
        now = link(host, "np6.1")
        assert now is not None
        assert was is not None
        assert (now["ifindex"], now["address"]) == (was["ifindex"], dual.mac6_of(host))
        # Another MTU is set, and costs no packet either.
        assert (was["mtu"], now["mtu"]) == (1400, 1430)
        assert tuple(agent.subnets) == (subnet_of(host), dual.subnet6_of(host))
        assert dual.registered(host) == dual.value(host)
        [other] = [one for one in dual.hosts if one is not host]
        routes = host.namespace.json("ip", "-6", "-j", "route", "show", "proto", "181")
        assert [(one["dst"], one["dev"]) for one in routes] == [
            (str(dual.subnet6_of(other)), "np6.1")
        ]
        neighbours = host.namespace.json("ip", "-6", "-j", "neigh", "show", "dev", "np6.1")
        permanent = [one["lladdr"] for one in neighbours if "PERMANENT" in one["state"]]
        assert permanent == [dual.mac6_of(other)]
        entries = host.namespace.json("bridge", "-j", "fdb", "show", "dev", "np6.1")
        assert [one["mac"] for one in entries if "dst" in one] == [dual.mac6_of(other)]
        # What the kernel has made for the device, and not Flannel, stays.
        local = host.namespace.run("ip", "-6", "addr", "show", "dev", "np6.1", "scope", "link")
        assert "fe80::" in local


def test_the_mac_of_a_second_device_outlives_the_agent(dual: DualHosts) -> None:
    agent = dual.agent(0, "--adopt-flannel")
    agent.wait_ready()
    agent.kill()
    host = dual.hosts[0]
    host.namespace.ip("link del np6.1")
    agent.start()
    try:
        agent.wait_ready()
        found = link(host, "np6.1")
        assert found is not None
        assert found["address"] == dual.mac6_of(host)
        assert "np6.1" in agent.ctl("check")
    finally:
        agent.kill()
    assert dual.registered(host) == dual.value(host)


def test_of_two_devices_the_one_that_is_not_flannels_is_named(dual: DualHosts) -> None:
    host = dual.hosts[0]
    host.namespace.ip(
        "link set flannel-v6.1 down", "link set flannel-v6.1 name other0", "link set other0 up"
    )
    agent = dual.agent(0, "--adopt-flannel")
    try:
        until(lambda: b"other0" in readiness(agent), 30, "the device is named")
    finally:
        agent.kill()
    # Not the first either: the lease would tell the MAC of a device that is not there.
    assert link(host, "np.1") is None
    assert dual.registered(host) == dual.value(host)


@pytest.fixture
def routed() -> Iterator[HostGwHosts]:
    with Rig(2) as rig, HostMembers(rig.hosts[:1]) as members:
        yield HostGwHosts(rig, members)


def test_routes_of_flannel_are_taken_over_without_a_lost_packet(routed: HostGwHosts) -> None:
    one, two = routed.hosts
    agents = taken_over(routed)
    assert [agent.subnet for agent in agents] == [subnet_of(one), subnet_of(two)]
    assert [routed.registered(host) for host in routed.hosts] == list(
        map(routed.value, routed.hosts)
    )
    routes_are_taken_over(routed)


@pytest.mark.parametrize("kind", [DualHostGwHosts, DirectHosts])
def test_routes_of_flannel_of_both_families_are_taken_over_without_a_lost_packet(
    kind: type[BothFamilies],
) -> None:
    with Rig(2, ipv6=True) as rig, HostMembers(rig.hosts[:1]) as members:
        flannel = kind(rig, members)
        agents = taken_over(flannel)
        for host, agent in zip(flannel.hosts, agents, strict=True):
            assert agent.subnets.all() == (subnet_of(host), flannel.subnet6_of(host))
            assert flannel.registered(host) == flannel.value(host)
        for version in (4, 6):
            routes_are_taken_over(flannel, version)


def test_without_the_flag_flannels_routes_of_ipv6_stay_and_the_flag_is_named() -> None:
    with Rig(2, ipv6=True) as rig, HostMembers(rig.hosts[:1]) as members:
        flannel = DualHostGwHosts(rig, members)
        one, two = flannel.hosts
        before = direct_routes(one, 6)
        agent = flannel.agent(0)
        route = f"route {flannel.subnet6_of(two)} via {two.address6} dev eth0"
        try:
            until(lambda: b"2 objects" in readiness(agent), 30, "both routes are told of")
            named = refused(agent)
        finally:
            agent.kill()
        assert "give --adopt-flannel" in named[route]
        assert direct_routes(one, 6) == before


def test_without_the_flag_flannels_routes_stay_and_the_flag_is_named(routed: HostGwHosts) -> None:
    before = direct_routes(routed.hosts[0])
    agent = routed.agent(0)
    try:
        until(lambda: b"kernel-refused" in readiness(agent), 30, "the route is named")
        said = readiness(agent)
    finally:
        agent.kill()
    assert f"route {subnet_of(routed.hosts[1])} via 10.77.0.2 dev eth0: ".encode() in said
    assert b"a route that is not ours is in its place" in said
    assert b"give --adopt-flannel" in said
    assert direct_routes(routed.hosts[0]) == before


def test_without_the_flag_flannels_host_is_left_alone_and_the_flag_is_named(
    flannel: FlannelHosts,
) -> None:
    here, there = (host.containers[0] for host in flannel.hosts)
    flow = Flow(here, there)
    agent = flannel.agent(0)
    try:
        until(lambda: b"flannel.1" in readiness(agent), 30, "the device is named")
        said = readiness(agent)
    finally:
        agent.kill()
    assert b"kernel: device flannel.1 has VNI 1 and port 8472 already" in said
    assert b"stop flanneld and give --adopt-flannel" in said
    assert link(flannel.hosts[0], "np.1") is None
    assert flannel.registered(flannel.hosts[0]) == flannel.value(flannel.hosts[0])
    assert flow.stop().missing == ()


def readiness(agent: AgentProcess) -> bytes:
    try:
        return ask(agent.socket, "GET", "/readyz").body
    except OSError:
        return b""
