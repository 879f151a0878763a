"""Flannel's device becomes ours, whatever state it is found in."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pytest

from netplane.agent.reconcile import Reconciler
from netplane.backend.vxlan import VxlanBackend, VxlanConfig
from netplane.netlink.connection import Connection
from netplane.netlink.decode import Outcome
from netplane.netlink.messages import Request
from tests.net.kernel.hosts import Host, assert_serves, clean, peers

pytestmark = [pytest.mark.net, pytest.mark.root]


def backend(host: Host, config: VxlanConfig | None = None) -> VxlanBackend:
    return host.backend(config=config, subnet_len=24, adopts_flannel=True)


def make_flannel(host: Host, name: str = "flannel.1") -> None:
    """Its device with what it has for peers 2 and 9."""
    zero = host.subnet.network_address
    host.do(
        f"ip link add {name} address {host.mac} mtu 1450 type vxlan id 1 dev eth0"
        f" local {host.address.ip} dstport 8472 nolearning",
        f"ip addr add {zero}/32 dev {name}",
        f"ip link set {name} up",
    )
    for lease in peers(2, 9).values():
        gateway = lease.subnet.network_address
        mac = lease.backend_data["VtepMAC"]  # type: ignore[index]
        host.do(
            f"ip neigh add {gateway} lladdr {mac} dev {name} nud permanent",
            f"bridge fdb add {mac} dev {name} dst {lease.public_ip} self permanent",
            f"ip route add {lease.subnet} via {gateway} dev {name} onlink",
        )


async def adopt(host: Host) -> Reconciler:
    made = Reconciler(backend(host).scope, namespace=host.path)
    clean(await made.apply(backend(host).plan(host.subnet, peers(2, 3)).objects))
    return made


async def test_the_device_stays_and_what_departed_peers_left_on_it_goes(host: Host) -> None:
    make_flannel(host)
    before = host.indices()["flannel.1"]
    here = await adopt(host)
    here.close()
    assert host.indices()["np.1"] == before
    assert "flannel.1" not in host.indices()
    assert_serves(host, 2, 3)


async def test_who_was_killed_right_after_the_renaming_goes_on(host: Host) -> None:
    make_flannel(host, "np.1")
    before = host.indices()["np.1"]
    (await adopt(host)).close()
    assert host.indices()["np.1"] == before
    assert_serves(host, 2, 3)


async def test_direct_routes_become_ours_too_where_the_network_has_them(host: Host) -> None:
    make_flannel(host)
    for number in (2, 9):
        host.do(
            f"ip route del 10.128.{number}.0/24",
            f"ip route add 10.128.{number}.0/24 via 10.77.0.{number} dev eth0",
        )
    direct = backend(host, VxlanConfig(direct_routing=True))
    plan = direct.plan(host.subnet, peers(2, 3)).objects
    async with Reconciler(direct.scope, namespace=host.path) as here:
        clean(await here.apply(plan))
    assert host.routes() == {
        "10.128.2.0/24": ("10.77.0.2", "eth0"), "10.128.3.0/24": ("10.77.0.3", "eth0"),
    }  # fmt: skip
    assert "10.128.9.0/24" not in host.run("ip", "route")
    assert backend(host).scope.adopts_routes == 0


async def test_what_comes_later_from_others_is_theirs(host: Host) -> None:
    make_flannel(host)
    here = await adopt(host)
    host.do("ip route add 10.128.77.0/24 dev np.1 proto static")
    async with here:
        clean(await here.apply(backend(host).plan(host.subnet, peers(2)).objects))
        clean(await here._pass("timer", read=True))
    assert "10.128.77.0/24" in host.run("ip", "route", "show", "dev", "np.1")


async def test_a_view_that_may_be_old_adopts_and_takes_nothing_away(host: Host) -> None:
    make_flannel(host)
    async with Reconciler(backend(host).scope, namespace=host.path) as here:
        plan = backend(host).plan(host.subnet, peers(2)).objects
        clean(await here.apply(plan, remove=False))
        assert "proto 181" in host.run("ip", "route", "show", "10.128.2.0/24")
        assert host.run("ip", "route", "show", "10.128.9.0/24")
        clean(await here.apply(plan))
    assert_serves(host, 2)


async def test_a_kernel_that_renames_no_device_that_is_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Linux before 6.2; this one would do it.
    make_flannel(host)
    before = host.indices()["flannel.1"]
    perform, tries = Connection.perform, []

    async def refuses_at_first(self: Connection, requests: Iterable[Request]) -> list[Outcome]:
        asked = list(requests)
        tries.append(len(asked))
        if len(tries) == 1:
            return [Outcome(errno.EBUSY, "Device or resource busy")]
        return await perform(self, asked)

    monkeypatch.setattr(Connection, "perform", refuses_at_first)
    (await adopt(host)).close()
    assert tries[:2] == [1, 3]
    assert host.indices()["np.1"] == before
    assert_serves(host, 2, 3)
