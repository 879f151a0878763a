"""Subnets of IPv6, alone and beside IPv4, in a real registry: claimed, kept, given to others."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from netplane.subnet.admin import release, reserve
from netplane.subnet.errors import ConfigError, ExhaustedError, SubnetError
from netplane.subnet.family import Pair
from netplane.subnet.lease import View, encode_value, parse_name
from netplane.subnet.manager import Standing
from netplane.subnet.plan import Wish
from netplane.subnet.registry import Attempt, Outcome
from tests.netplane.subnet.conftest import Network, running
from tests.netplane.subnet.stores import DUAL, ONLY_IPV6, address6, pair, six, vxlan, vxlan6
from tests.netplane.subnet.wrapped import Wrapped, view_where


def pair_of(view: View) -> Pair:
    assert view.own is not None
    return view.own.pair


def six_of(view: View) -> IPv6Network:
    second = pair_of(view).second
    assert second is not None
    return second


async def test_a_host_gets_a_subnet_of_each_family_and_says_so_as_flannel_does(
    network: Network,
) -> None:
    await network.configure(**DUAL)

    _, view = await network.join(1)

    first, second = pair_of(view)
    assert second is not None
    key = network.layout.lease(first, second)
    assert key.decode().endswith(
        f"/network/subnets/{first.network_address}-24&{second.network_address}-64"
    )
    assert await network.value(key) == (
        b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
        b'"BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"},'
        b'"BackendV6Data":{"VNI":1,"VtepMAC":"0e:06:00:00:00:01"}}'
    )
    record = json.loads(await network.value(network.layout.host("host1")) or b"")
    assert (record["Subnet"], record["IPv6Subnet"]) == (str(first), str(second))
    assert (record["PublicIP"], record["PublicIPv6"]) == ("192.0.2.1", "2001:db8::1")
    # All of it ends with the lease.
    lease = await network.lease_of(key)
    assert await network.lease_of(network.layout.mark(second)) == lease
    assert await network.lease_of(network.layout.host("host1")) == lease


async def test_hosts_without_ipv4_get_a_subnet_each(network: Network) -> None:
    # Flannel's second host finds PublicIP 0.0.0.0 on the first one's lease, and takes it.
    await network.configure(**ONLY_IPV6)

    views = [(await network.join(number))[1] for number in (1, 2, 3)]

    subnets = [pair_of(view).first for view in views]
    assert len(set(subnets)) == 3
    key = network.layout.lease(subnets[0])
    assert key.decode().endswith(f"/subnets/0.0.0.0-0&{subnets[0].network_address}-64")
    assert await network.value(key) == (
        b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
        b'"BackendV6Data":{"VNI":1,"VtepMAC":"0e:06:00:00:00:01"}}'
    )
    assert {str(lease.public_ip) for lease in views[2].peers.values()} == {
        "2001:db8::1", "2001:db8::2",
    }  # fmt: skip
    # A new process at the same address has the same subnet.
    _, again = await network.join(2, previous_session="session 2")
    assert pair_of(again).first == subnets[1]


@pytest.mark.parametrize(
    "config",
    [
        {"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/120", "IPv6SubnetLen": 124},
        {"Network": "10.5.0.0/24", "SubnetLen": 28, "IPv6Network": "fd00:5::/48"},
    ],
    ids=["few of IPv6", "few of IPv4"],
)
async def test_of_hosts_that_start_together_no_two_share_a_subnet_of_either_family(
    network: Network, config: dict[str, object]
) -> None:
    # A lease's key begins with its IPv4 subnet: by it two hosts with one of IPv6 do not meet.
    await network.configure(EnableIPv6=True, **config)
    managers = [network.manager(number) for number in range(1, 16)]
    for manager in managers:
        await manager.open()

    views = await asyncio.gather(
        *(
            manager.acquire(vxlan(number), vxlan6(number))
            for number, manager in enumerate(managers, 1)
        )
    )

    assert len({pair_of(view).first for view in views}) == 15
    assert len({six_of(view) for view in views}) == 15
    with pytest.raises(ExhaustedError) as caught:
        await network.join(16)
    assert caught.value.capacity == 15


async def test_a_network_gets_and_loses_ipv6_and_hosts_keep_their_ipv4_subnets(
    network: Network,
) -> None:
    _, before = await network.join(1, boot_id="boot")
    await network.join(2)
    first = pair_of(before).first
    plain = network.layout.lease(first)
    lease = await network.lease_of(plain)

    await network.configure(**DUAL)
    _, during = await network.join(1)

    assert pair_of(during).first == first
    assert await network.value(plain) is None
    key = network.layout.lease(*pair_of(during))
    assert await network.lease_of(key) == lease

    await network.configure()
    _, after = await network.join(1)

    assert pair_of(after) == Pair(first)
    assert await network.value(key) is None
    assert await network.value(plain) is not None

    # Containers still have addresses of what it had before.
    await network.configure(**DUAL)
    _, again = await network.join(1, boot_id="boot", wish=Wish.of(pair_of(during)))
    assert pair_of(again) == pair_of(during)


async def test_a_network_loses_ipv4_and_gets_it_back_unless_it_is_anothers(
    network: Network,
) -> None:
    async def become(wish: Pair | None, **config: object) -> Pair:
        await network.configure(**config)
        _, view = await network.join(1, wish=Wish.of(wish))
        await network.die(1)
        return pair_of(view)

    before = await become(None, **DUAL)
    assert await become(before, **ONLY_IPV6) == Pair(before.second or before.first)
    assert await become(before, **DUAL) == before

    await become(before, **ONLY_IPV6)
    await network.configure(**DUAL)
    await network.join(2, wish=Wish.of(Pair(before.first)))
    after = await become(before, **DUAL)
    assert after.second == before.second
    assert after.first != before.first


async def test_a_host_without_an_ipv6_address_is_told_what_it_lacks(network: Network) -> None:
    await network.configure(**DUAL)
    manager = network.manager(1)
    manager.move(IPv4Address("192.0.2.1"))
    await manager.open()

    with pytest.raises(ConfigError, match=r"no IPv6 address that others reach it by.*public-ipv6"):
        await manager.acquire(vxlan(1), vxlan6(1))
    assert await network.value(network.layout.host("host1")) is None


async def test_a_host_that_moves_over_ipv6_keeps_its_subnets_and_its_key(network: Network) -> None:
    await network.configure(**DUAL)
    manager, view = await network.join(1)
    mine, key = pair_of(view), network.layout.lease(*pair_of(view))
    async with running(manager):
        manager.move(IPv4Address("192.0.2.1"), IPv6Address("2001:db8::77"))
        while view.own is None or str(view.own.public_ip6) != "2001:db8::77":
            view = await manager.next_view(view)
            assert not view.quarantined

    assert pair_of(view) == mine
    assert b'"PublicIPv6":"2001:db8::77"' in (await network.value(key) or b"")
    assert str(manager.registered.hosts["host1"].public_ip6) == "2001:db8::77"


async def test_what_others_do_to_our_key_is_put_back_in_both_families(network: Network) -> None:
    await network.configure(**DUAL)
    manager, view = await network.join(1)
    key = network.layout.lease(*pair_of(view))
    value = await network.value(key)
    async with network.changes(key) as changes, running(manager):
        await network.client.delete(key)
        batch = await anext(changes)
        while not batch.events or batch.events[-1].kind == "DELETE":
            batch = await anext(changes)

    assert await network.value(key) == value
    assert manager.status().subnet6 == six_of(view)


async def test_a_reservation_of_both_families_is_taken_by_its_host_and_released(
    network: Network,
) -> None:
    await network.configure(**DUAL)
    address = IPv4Address("192.0.2.1")
    await reserve(network.registry, network.layout, pair(33), address, address6(1))

    manager, view = await network.join(1)

    key = network.layout.lease(*pair(33))
    assert pair_of(view) == pair(33)
    assert await network.lease_of(key) == 0
    # It stays when the host is gone, until it is released, by whichever of its subnets.
    await manager.drain()
    await release(network.registry, network.layout, six(33))
    left = await network.registry.list(network.layout.everything)
    assert [kv.key for kv in left.kvs] == [network.layout.config]


@pytest.mark.parametrize(
    ("wanted", "addresses", "words"),
    [
        (Pair(pair(33).first), ("192.0.2.1",), "no subnet of IPv6Network"),
        (pair(33), ("192.0.2.1",), "needs an address of IPv4 and IPv6"),
        (Pair(pair(33).first, six(9)), ("192.0.2.1", "2001:db8::1"), "it belongs to host 'host9'"),
        (pair(33), ("192.0.2.1", "fe80::1"), "of one link only"),
        (Pair(pair(33).first, six(0)), ("192.0.2.1", "2001:db8::1"), ""),
        (Pair(pair(33).first, IPv6Network("fd01::/64")), ("192.0.2.1", "2001:db8::1"), "outside"),
    ],
)
async def test_what_cannot_be_reserved_of_both_families_is_refused(
    network: Network, wanted: Pair, addresses: tuple[str, ...], words: str
) -> None:
    await network.configure(**DUAL)
    await network.client.put(
        network.layout.lease(*pair(9)),
        encode_value(IPv4Address("192.0.2.9"), "vxlan", vxlan(9), address6(9), vxlan6(9)),
    )
    await network.join(9)
    public_ip, *rest = addresses
    public_ip6 = IPv6Address(rest[0]) if rest else None
    asked = reserve(network.registry, network.layout, wanted, IPv4Address(public_ip), public_ip6)
    if not words:
        await asked  # outside of SubnetMin and SubnetMax is what a reservation is good for
        return
    with pytest.raises(SubnetError, match=words):
        await asked
    assert IPv4Network("10.5.33.0/24") not in {
        pair_.first for pair_ in (await _registered(network)).values()
    }


async def _registered(network: Network) -> dict[bytes, Pair]:
    manager = network.manager(99)
    await manager.open()
    return manager.registered.subnets


async def test_a_reservation_and_a_claim_at_the_same_time_do_not_share_an_ipv6_subnet(
    network: Network,
) -> None:
    # The host has looked before the operator writes, and has chosen the same one.
    few = DUAL | {"IPv6Network": "fd00:5::/124", "IPv6SubnetLen": 126}  # 3 subnets
    await network.configure(**few)
    manager = network.manager(1)
    await manager.open()
    theirs = [Pair(pair(40 + n).first, IPv6Network(f"fd00:5::{4 * n:x}/126")) for n in (1, 2)]
    for number, one in enumerate(theirs, 50):
        address = IPv4Address(f"192.0.2.{number}")
        await reserve(network.registry, network.layout, one, address, address6(number))

    view = await manager.acquire(vxlan(1), vxlan6(1))

    assert six_of(view) == IPv6Network("fd00:5::c/126")


FLANNELS = encode_value(IPv4Address("192.0.2.200"), "vxlan", vxlan(200), address6(200), vxlan6(200))


class Overtaken(Wrapped):
    """A host of Flannel's takes an IPv6 subnet a moment before we do; it writes no mark."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.registry)
        self.network = network
        self.wanted: Pair | None = None
        """What we were about to take when that happened."""

    @property
    def theirs(self) -> Pair:
        assert self.wanted is not None
        return Pair(pair(200).first, self.wanted.second)

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        layout = self.network.layout
        if self.wanted is None:
            lease = attempts[0].writes[0]
            self.wanted = parse_name(lease.key.removeprefix(layout.subnets))
            await self.network.client.put(layout.lease(*self.theirs), FLANNELS)
        return await super().attempt(attempts, otherwise)


async def test_a_host_that_flannel_was_quicker_than_takes_another_ipv6_subnet(
    network: Network,
) -> None:
    await network.configure(**DUAL)
    registry = Overtaken(network)

    _, view = await network.join(1, registry=registry)

    assert registry.wanted is not None
    mine = pair_of(view)
    assert mine.first == registry.wanted.first
    assert mine.second != registry.wanted.second
    assert view.quarantined == {}
    assert [lease.pair for lease in view.peers.values()] == [registry.theirs]
    # What was ours for a moment is nobody's: the others agree with us.
    _, other = await network.join(2)
    assert {lease.pair for lease in other.peers.values()} == {mine, registry.theirs}
    assert other.quarantined == {}


async def test_an_ipv6_subnet_that_flannel_took_while_ours_was_lost_is_not_stolen(
    network: Network,
) -> None:
    await network.configure(**DUAL)
    registry = Overtaken(network)
    registry.wanted = pair(0)  # not at the first claim
    manager, view = await network.join(1, registry=registry)
    mine = pair_of(view)
    async with running(manager):
        registry.wanted = None
        await network.client.delete(network.layout.lease(*mine))
        assert await manager.next_standing(Standing.HELD) is Standing.TAKEN
        assert "PublicIP 192.0.2.200" in manager.status().detail
        assert registry.theirs.second == mine.second
        # That our lease is registered makes it no better, as theirs is the older.
        for _ in range(2):  # at the second, what follows the first renewal is over
            registry.renewed.clear()
            network.clock.advance(11)
            await registry.renewed.wait()
        view = await view_where(manager, view, lambda view: view.quarantined)
        assert manager.status().standing is Standing.TAKEN
        _, other = await network.join(2)
        assert [lease.pair for lease in other.peers.values()] == [registry.theirs]
        assert "which is older" in other.quarantined[network.layout.lease(*mine)]

        await network.client.delete(network.layout.lease(*registry.theirs))
        await view_where(manager, view, lambda view: not view.quarantined)
        network.clock.advance(1)
        assert await manager.next_standing(Standing.TAKEN) is Standing.HELD


async def test_an_agent_that_starts_with_the_younger_lease_keeps_its_other_subnet(
    network: Network,
) -> None:
    await network.configure(**DUAL)
    _, view = await network.join(1)
    mine, layout = pair_of(view), network.layout
    value, lease = (
        await network.value(layout.lease(*mine)),
        await network.lease_of(layout.lease(*mine)),
    )
    assert value is not None
    await network.client.delete(layout.lease(*mine))
    theirs = Pair(pair(200).first, mine.second)
    await network.client.put(layout.lease(*theirs), FLANNELS)
    await network.client.put(layout.lease(*mine), value, lease=lease)
    await network.die(1)

    _, view = await network.join(1, wish=Wish.of(mine))

    assert pair_of(view).first == mine.first
    assert pair_of(view).second != mine.second
    assert await network.value(layout.lease(*mine)) is None
    assert [lease.pair for lease in view.peers.values()] == [theirs]
