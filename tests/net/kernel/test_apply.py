"""Desired objects become the kernel's, as `ip`, `bridge` and packets see them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Literal

import pytest

from netplane.agent.reconcile import Reconciler
from netplane.backend import External
from netplane.backend.host_gw import HostGwBackend
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.netlink import messages
from netplane.netlink.connection import SEND_MAX, Connection, NetlinkError
from netplane.netlink.decode import Outcome
from netplane.netlink.kernel import Change, Kernel
from netplane.netlink.objects import KernelObject, Route
from tests.net.kernel.hosts import (
    NETWORK,
    Host,
    arrives,
    assert_serves,
    clean,
    kinds,
    lease,
    peers,
)
from tests.net.namespaces import CommandError

pytestmark = [pytest.mark.net, pytest.mark.root]


async def test_peers_are_reached_through_the_device(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    async with one.reconciler() as here, two.reconciler() as there:
        clean(await here.apply(one.plan(peers(2, 3)).objects))
        clean(await there.apply(two.plan(peers(1, 3)).objects))

    assert_serves(one, 2, 3)
    assert_serves(two, 1, 3)
    assert arrives(one, two)
    assert arrives(two, one)
    assert [one.sysctl(name) for name in ("ipv4/ip_forward", "ipv4/conf/np.1/rp_filter")] == [
        "1", "2",
    ]  # fmt: skip
    link = one.link()
    assert link is not None
    assert (link["mtu"], link["address"]) == (1450, one.mac)
    assert {"UP", "LOWER_UP"} <= set(link["flags"])
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["link"], data["learning"]) == (
        1, 8472, "10.77.0.1", "eth0", False,
    )  # fmt: skip


async def test_a_peer_that_leaves_takes_its_objects_along(host: Host) -> None:
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2, 3, 4)).objects))
        report = clean(await here.apply(host.plan(peers(2, 4)).objects))
    assert kinds(report.removed) == {"FdbEntry": 1, "Neighbour": 1, "Route": 1}
    assert report.written == report.healed == ()
    assert_serves(host, 2, 4)


async def test_a_peer_with_a_new_address_and_mac_is_never_without_a_path(host: Host) -> None:
    changed = replace(
        lease(9),
        subnet=lease(2).subnet,
        backend_data={"VNI": 1, "VtepMAC": "02:00:00:00:99:99"},
    )
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2)).objects))
        report = clean(await here.apply(host.plan({changed.subnet: changed}).objects))
    # The route is untouched, the neighbour is replaced; only the old entry for the old MAC goes.
    assert kinds(report.written) == {"FdbEntry": 1, "Neighbour": 1}
    assert kinds(report.removed) == {"FdbEntry": 1}
    assert host.neighbours() == {"10.128.2.0": "02:00:00:00:99:99"}
    assert host.fdb() == {"02:00:00:00:99:99": "10.77.0.9"}


async def test_what_departed_peers_left_is_swept_at_the_start(host: Host) -> None:
    async with host.reconciler() as earlier:
        clean(await earlier.apply(host.plan(peers(2, 3, 4)).objects))
    made = host.link()
    async with host.reconciler() as here:
        report = clean(await here.apply(host.plan(peers(3)).objects))
    assert kinds(report.removed) == {"FdbEntry": 2, "Neighbour": 2, "Route": 2}
    assert report.written == report.healed == ()
    assert_serves(host, 3)
    assert host.link() == made


async def test_a_view_that_may_be_old_takes_nothing_away(host: Host) -> None:
    # After a reboot with the registry down: what is remembered is added, all else stays.
    async with host.reconciler() as earlier:
        clean(await earlier.apply(host.plan(peers(2, 3)).objects))
    async with host.reconciler() as here:
        report = clean(await here.apply(host.plan(peers(4)).objects, remove=False))
        assert report.removed == ()
        assert_serves(host, 2, 3, 4)
        clean(await here.apply(host.plan(peers(4)).objects))
        assert_serves(host, 4)


async def test_nothing_is_written_before_the_first_view(host: Host) -> None:
    async with host.reconciler() as earlier:
        clean(await earlier.apply(host.plan(peers(2)).objects))
    host.run("ip", "link", "set", "np.1", "down")
    before = host.run("ip", "-d", "link"), host.run("ip", "route"), host.run("ip", "neigh")
    async with host.reconciler(interval_s=0.01) as here:
        task = asyncio.create_task(here.run())
        # Links change and the timer runs out: with a view, each would be a reason.
        host.run("ip", "link", "set", "np.1", "mtu", "1400")
        host.run("ip", "link", "set", "np.1", "mtu", "1450")
        await asyncio.sleep(0.1)  # there is no event that tells that nothing happens
        assert (
            host.run("ip", "-d", "link"), host.run("ip", "route"), host.run("ip", "neigh")
        ) == before  # fmt: skip
        clean(await here.apply(host.plan(peers(2)).objects))
        assert_serves(host, 2)
        task.cancel()


async def test_foreign_objects_are_left_alone(host: Host) -> None:
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2, 3)).objects))
        host.do(
            "ip route add 10.128.50.0/24 via 10.77.0.2 proto static",
            "ip route add 10.128.51.0/24 dev np.1 proto static",
            "ip route add 192.0.2.0/24 via 10.77.0.2 proto 181",
            "ip route add 10.128.52.0/24 dev np.1 proto 181 table 9",
            "ip neigh add 10.128.50.9 lladdr 02:11:11:11:11:11 dev np.1",
            "ip addr add 198.51.100.1/32 dev np.1",
            "ip link add vx9 type vxlan id 9 dev eth0 dstport 8472",
            "bridge fdb add 02:22:22:22:22:22 dev vx9 dst 10.77.0.9",
        )

        def all_of_it() -> list[str]:
            commands = [
                "ip route show table all", "ip neigh", "bridge fdb show dev vx9",
                "ip -4 addr show dev np.1", "ip -d link show vx9",
            ]  # fmt: skip
            return [host.run(*command.split()) for command in commands]

        before = all_of_it()
        async with host.reconciler() as again:  # reads everything and sweeps
            clean(await again.apply(host.plan(peers(2, 3)).objects))
        assert all_of_it() == before


async def test_a_foreign_route_in_a_peers_place_is_named_and_delays_no_other(host: Host) -> None:
    host.run("ip", "route", "add", "10.128.3.0/24", "via", "10.77.0.2", "proto", "static")
    async with host.reconciler() as here:
        report = await here.apply(host.plan(peers(2, 3, 4)).objects)
        [failure] = report.failed
        assert str(failure).startswith("route 10.128.3.0/24 via 10.128.3.0 dev np.1 onlink: ")
        assert (
            "a route that is not ours is in its place: route 10.128.3.0/24 via 10.77.0.2 dev eth0;"
            " remove it, or give --adopt-flannel"
        ) in failure.text
        assert set(host.routes()) == {"10.128.2.0/24", "10.128.4.0/24"}
        # Also for who looks again: it was there first.
        [failure] = (await here._pass("timer", read=True)).failed
        assert "10.128.3.0/24 via 10.77.0.2 dev eth0 proto static" in host.run("ip", "route")
        assert "10.128.3.0/24 via 10.77.0.2 dev eth0 proto static" in host.run("ip", "route")
        # Once it is gone the next pass succeeds; nothing remembers the failure.
        host.run("ip", "route", "del", "10.128.3.0/24")
        clean(await here.apply(host.plan(peers(2, 3, 4)).objects))
        assert_serves(host, 2, 3, 4)


async def test_on_a_link_of_lone_addresses_routes_say_who_is_a_neighbour(host: Host) -> None:
    host.do("ip addr del 10.77.0.1/16 dev eth0", "ip addr add 10.77.0.1/32 dev eth0")
    host.run("ip", "route", "add", "10.77.0.2", "dev", "eth0")
    made = HostGwBackend(
        network=NETWORK,
        subnet_len=24,
        external=External("eth0", IPv4Interface("10.77.0.1/32"), 1500),
    )
    neighbours = {
        subnet: replace(peer, backend_type="host-gw") for subnet, peer in peers(2, 3).items()
    }
    plan = made.plan(host.subnet, neighbours)
    assert plan.refused == {}
    async with Reconciler(made.scope, namespace=host.path) as here:
        report = await here.apply(plan.objects)
        [failure] = report.failed
        assert str(failure).startswith("route 10.128.3.0/24 via 10.77.0.3 dev eth0: ")
        assert "ip route add 10.77.0.3 dev eth0" in failure.text
        assert host.routes() == {"10.128.2.0/24": ("10.77.0.2", "eth0")}
        host.run("ip", "route", "add", "10.77.0.3", "dev", "eth0")
        clean(await here.apply(plan.objects))
    assert set(host.routes()) == {"10.128.2.0/24", "10.128.3.0/24"}


async def test_two_networks_on_one_host_leave_each_other_alone(host: Host) -> None:
    # They share the external interface and the protocol number, on links and in networks apart.
    direct = VxlanConfig(direct_routing=True)
    other = VxlanBackend(
        replace(direct, vni=2),
        network=IPv4Network("10.99.0.0/16"),
        external=External("eth0", host.address, 1500),
        mac="02:00:00:00:00:99",
    )
    far = replace(lease(7), subnet=IPv4Network("10.99.7.0/24"), public_ip=IPv4Address("192.0.2.7"))
    near = replace(lease(8), subnet=IPv4Network("10.99.8.0/24"))
    far = replace(far, backend_data={"VNI": 2, "VtepMAC": "02:00:00:00:00:07"})
    plan = other.plan(IPv4Network("10.99.1.0/24"), {far.subnet: far, near.subnet: near})
    async with host.reconciler() as here, Reconciler(other.scope, namespace=host.path) as there:
        clean(await there.apply(plan.objects))
        clean(await here.apply(host.plan(peers(2, 3), config=direct).objects))
    both = {
        "10.128.2.0/24": ("10.77.0.2", "eth0"),
        "10.128.3.0/24": ("10.77.0.3", "eth0"),
        "10.99.7.0/24": ("10.99.7.0", "np.2"),
        "10.99.8.0/24": ("10.77.0.8", "eth0"),
    }
    assert host.routes() == both
    async with host.reconciler() as here, Reconciler(other.scope, namespace=host.path) as there:
        assert clean(await there.apply(plan.objects)).removed == ()
        assert clean(await here.apply(host.plan(peers(2, 3), config=direct).objects)).removed == ()
        assert host.routes() == both
        clean(await here.clear())
    assert set(host.routes()) == {"10.99.7.0/24", "10.99.8.0/24"}
    assert host.link("np.1") is None
    assert host.link("np.2") is not None


async def test_a_blackhole_gives_way_to_the_bridge_and_goes_with_the_subnet(host: Host) -> None:
    def plan(number: int) -> frozenset[KernelObject]:
        made = VxlanBackend(
            VxlanConfig(),
            network=NETWORK,
            external=External("eth0", host.address, 1500),
            mac=host.mac,
            blackhole=True,
        )
        return made.plan(lease(number).subnet, {}).objects

    def blackholes() -> set[str]:
        return {item["dst"] for item in host.json("ip", "-j", "route", "show", "type", "blackhole")}

    host.run("ip", "route", "add", "blackhole", "10.128.77.0/24")  # of somebody else
    async with host.reconciler() as reconciler:
        clean(await reconciler.apply(plan(1)))
        assert blackholes() == {"10.128.1.0/24", "10.128.77.0/24"}
        with pytest.raises(CommandError, match="Invalid argument"):
            host.run("ip", "route", "get", "10.128.1.9")
        # The containers' bridge comes later, as always.
        host.do("ip link add br0 type bridge", "ip addr add 10.128.1.1/24 dev br0")
        host.run("ip", "link", "set", "br0", "up")
        assert "dev br0" in host.run("ip", "route", "get", "10.128.1.9")
    async with host.reconciler() as later:
        # An agent that has another subnet now leaves nothing of the old one.
        clean(await later.apply(plan(2)))
        assert blackholes() == {"10.128.2.0/24", "10.128.77.0/24"}
        clean(await later.clear())
    assert blackholes() == {"10.128.77.0/24"}


async def test_peers_on_the_same_link_need_no_tunnel(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    far = replace(lease(3), public_ip=lease(3).public_ip + 2**16)
    plan = one.plan({**peers(2), far.subnet: far}, config=VxlanConfig(direct_routing=True))
    async with one.reconciler() as here:
        clean(await here.apply(plan.objects))
        assert one.routes() == {
            "10.128.2.0/24": ("10.77.0.2", "eth0"), "10.128.3.0/24": ("10.128.3.0", "np.1"),
        }  # fmt: skip
        assert list(one.fdb().values()) == [str(far.public_ip)]
        # Without the option: the same route moves to the device, and the old one is gone.
        clean(await here.apply(one.plan({**peers(2), far.subnet: far}).objects))
        assert one.routes() == {
            "10.128.2.0/24": ("10.128.2.0", "np.1"), "10.128.3.0/24": ("10.128.3.0", "np.1"),
        }  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        "type vxlan id 7 dev eth0 local 10.77.0.1 dstport 8472 nolearning",
        "type vxlan id 1 dev eth0 local 10.77.0.1 dstport 4789 nolearning",
        "type vxlan id 1 dev eth0 local 10.77.0.9 dstport 8472 nolearning",
        "type vxlan id 1 dev lo local 10.77.0.1 dstport 8472 nolearning",
        "type vxlan id 1 dev eth0 local 10.77.0.1 dstport 8472 learning",
        "type vxlan id 1 dev eth0 local 10.77.0.1 dstport 8472 nolearning gbp",
        "type vxlan id 1 dev eth0 local 10.77.0.1 dstport 8472 nolearning remote 10.77.0.7",
    ],
)
async def test_a_device_that_differs_is_made_anew_and_filled(host: Host, make: str) -> None:
    host.run("ip", "link", "add", "np.1", *make.split())
    before = host.link()
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2, 3)).objects))
    after = host.link()
    assert before is not None
    assert after is not None
    assert after["ifindex"] != before["ifindex"]
    assert_serves(host, 2, 3)


async def test_a_device_that_differs_in_what_can_be_set_is_kept(host: Host) -> None:
    host.do(
        "ip link add np.1 address 02:99:99:99:99:99 mtu 1300"
        " type vxlan id 1 dev eth0 local 10.77.0.1 dstport 8472 nolearning"
    )
    before = host.link()
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2)).objects))
    after = host.link()
    assert before is not None
    assert after is not None
    assert after["ifindex"] == before["ifindex"]
    assert (after["mtu"], after["address"]) == (1450, host.mac)
    assert_serves(host, 2)


async def test_another_mtu_is_set_without_the_kernel_forgetting_the_neighbours(host: Host) -> None:
    # It does when a device is given a MAC, were it the same.
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2, 3)).objects))
    host.do("ip link set np.1 mtu 1300")
    async with host.reconciler() as here:
        report = clean(await here.apply(host.plan(peers(2, 3)).objects))
    assert [type(item).__name__ for item in report.written] == ["VxlanLink"]
    assert_serves(host, 2, 3)


async def test_a_foreign_device_with_our_vni_is_refused_and_named(host: Host) -> None:
    host.do("ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472")
    before = host.run("ip", "-d", "link")
    async with host.reconciler() as here:
        [failure] = (await here.apply(host.plan(peers(2)).objects)).failed
    assert "flannel.1 has VNI 1 and port 8472 already" in failure.text
    assert host.run("ip", "-d", "link") == before


async def test_a_foreign_interface_with_our_name_is_refused_and_named(host: Host) -> None:
    host.run("ip", "link", "add", "np.1", "type", "bridge")
    async with host.reconciler() as here:
        [failure] = (await here.apply(host.plan(peers(2)).objects)).failed
    assert failure.text == "np.1 is somebody else's bridge interface; rename it"
    assert (host.link() or {})["linkinfo"]["info_kind"] == "bridge"


async def test_a_missing_external_interface_is_named(host: Host) -> None:
    host.run("ip", "link", "set", "eth0", "down")
    host.run("ip", "link", "set", "eth0", "name", "eth9")
    async with host.reconciler() as here:
        [failure] = (await here.apply(host.plan(peers(2)).objects)).failed
        assert failure.text == "there is no interface eth0"
        host.run("ip", "link", "set", "eth9", "name", "eth0")
        clean(await here.apply(host.plan(peers(2)).objects))
    assert_serves(host, 2)


async def test_clearing_leaves_the_host_as_it_was(host: Host) -> None:
    def all_of_it() -> list[object]:
        return [
            host.indices(),
            [(item["dst"], item["dev"]) for item in host.json("ip", "-j", "route")],
            host.neighbours("eth0"),
            host.addresses("eth0"),
        ]

    host.sysctl("ipv4/ip_forward", "0")
    before = all_of_it()
    async with host.reconciler() as here:
        clean(
            await here.apply(
                host.plan(peers(2, 3), config=VxlanConfig(direct_routing=True)).objects
            )
        )
        assert host.sysctl("ipv4/ip_forward") == "1"
        previous = here.previous_sysctls
        assert previous == {"ipv4/ip_forward": "0"}  # others followed by themselves
    # Another process, that knows from the state file what there was.
    async with host.reconciler(previous_sysctls=previous) as later:
        clean(await later.apply(host.plan(peers(2, 3)).objects))
        clean(await later.clear())
    assert all_of_it() == before
    assert host.sysctl("ipv4/ip_forward") == "0"


async def test_packets_go_on_from_links_that_are_not_to_forward(host: Host) -> None:
    # It is on, so it is not changed, and changes no link; those that are made are not to either.
    wanted = {"ip_forward": "1", "conf/default/forwarding": "0", "conf/eth0/forwarding": "0"}
    for name, value in wanted.items():
        host.sysctl(f"ipv4/{name}", value)
    async with host.reconciler() as here:
        direct = VxlanConfig(direct_routing=True)
        clean(await here.apply(host.plan(peers(2, 3), config=direct).objects))
        for link in ("np.1", "eth0"):
            assert host.sysctl(f"ipv4/conf/{link}/forwarding") == "1"
        clean(await here.apply(host.plan(peers(2, 3)).objects))
        assert {name: host.sysctl(f"ipv4/{name}") for name in wanted} == wanted


async def test_who_is_cancelled_while_writing_looks_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not known then which writes took effect; a route that did would be in the way.
    plan = host.plan(peers(*range(2, 502))).objects
    send, sent = Connection._chunk, []

    async def cancel_the_eighth(
        connection: Connection, requests: Sequence[messages.Request]
    ) -> list[Outcome]:
        outcomes = await send(connection, requests)
        sent.append(len(requests))
        if len(sent) == 8:
            task.cancel()
        return outcomes

    async with host.reconciler() as here:
        clean(await here.apply(host.plan({}).objects))
        monkeypatch.setattr(Connection, "_chunk", cancel_the_eighth)
        task = asyncio.create_task(here.apply(plan))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0 < len(host.routes()) < 500
        clean(await here.apply(plan))
        assert_serves(host, *range(2, 502))


@pytest.mark.parametrize("moves", [False, True])
async def test_no_packet_goes_another_way_before_the_gate_is_set(host: Host, moves: bool) -> None:
    # An agent that starts has the firewall let hosts in meanwhile. Two peers are new, one is gone,
    # and one may have moved to another host, which would answer though nobody has let it in yet.
    one = replace(lease(2), public_ip=lease(9 if moves else 2).public_ip)
    async with host.reconciler() as here:
        clean(await here.apply(host.plan(peers(2, 5)).objects))
    routes, entries = host.routes(), host.fdb()
    plan = host.plan(peers(3, 4) | {one.subnet: one}).objects
    gate = Gate()
    async with host.reconciler() as here:
        task = asyncio.create_task(here.apply(plan, gate=gate))
        async with asyncio.timeout(10):
            await gate.is_reached.wait()
        assert len(host.neighbours()) == 4  # those of new peers, too
        assert host.routes() == routes
        assert entries.items() <= host.fdb().items()
        gate.set()
        clean(await task)
    assert len(host.routes()) == 3
    assert str(one.public_ip) in host.fdb().values()


async def test_what_nobody_wants_stays_until_the_gate_is_set(host: Host) -> None:
    plan, gate = host.plan(peers(2)).objects, Gate()
    async with host.reconciler() as here:
        clean(await here.apply(plan))
    host.do("bridge fdb add 02:00:00:00:00:77 dev np.1 dst 10.77.0.7")
    async with host.reconciler() as here:
        task = asyncio.create_task(here.apply(plan, gate=gate))
        async with asyncio.timeout(10):
            await gate.is_reached.wait()
        assert "02:00:00:00:00:77" in host.fdb()
        gate.set()
        clean(await task)
    assert_serves(host, 2)


class Gate(asyncio.Event):
    """Tells that somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.is_reached.set()
        return await super().wait()


async def test_1000_peers_are_applied_and_read_back(host: Host) -> None:
    numbers = range(2, 1002)
    plan = host.plan(peers(*numbers))
    assert plan.refused == {}
    async with host.reconciler() as here:
        clean(await here.apply(plan.objects))
        assert (len(host.routes()), len(host.neighbours()), len(host.fdb())) == (1000,) * 3
        async with host.reconciler() as again:
            report = clean(await again.apply(plan.objects))
        assert report.written == report.removed == ()
        clean(await here.apply(host.plan(peers(2)).objects))
    assert_serves(host, 2)


async def test_every_answer_belongs_to_its_request(host: Host) -> None:
    # More than one send, and every seventh fails: each failure is that of its own object.
    async with host.reconciler() as here:
        clean(await here.apply(host.plan({}).objects))
    link = host.link()
    assert link is not None
    async with Connection(host.path) as connection:
        changes = [
            Change(
                Route(
                    "np.1",
                    bytes([10, 200, number >> 8, number & 255]),
                    # Host bits below the prefix length: the kernel refuses these.
                    24 if number % 7 == 1 else 32,
                    bytes([10, 128, 1, 1]),
                    onlink=True,
                )
            )
            for number in range(1, 2 * SEND_MAX + 1)
        ]
        refusals = await Kernel(connection).write(changes, {"np.1": link["ifindex"]})
    assert [refusal.change for refusal in refusals] == changes[::7]
    assert {refusal.code for refusal in refusals} == {errno.EINVAL}
    assert {refusal.text for refusal in refusals} == {
        "Invalid prefix for given prefix length (EINVAL)"
    }
    assert len(host.routes()) == len(changes) - len(refusals)


async def test_a_dump_that_the_kernel_refuses_says_why(host: Host) -> None:
    async with Connection(host.path) as connection:
        request = messages.dump_routes(2)
        wrong = request._replace(body=request.body[:4] + b"\x00\x00\x07" + request.body[7:])
        with pytest.raises(NetlinkError, match="Invalid") as caught:
            await connection.dump(wrong)
        assert caught.value.code == errno.EINVAL
        # And the connection goes on.
        assert await Kernel(connection).routes(2, {}) == []
