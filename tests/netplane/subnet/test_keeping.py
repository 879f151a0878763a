"""How a host keeps its subnet and follows the others, in a real registry, and gives it back."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from netplane.subnet.lease import encode_value
from netplane.subnet.manager import Standing
from netplane.subnet.plan import Wish
from netplane.subnet.registry import (
    Attempt,
    Grant,
    Listing,
    Outcome,
    UnavailableError,
)
from tests.netplane.subnet.conftest import Network, running, subnet_of
from tests.netplane.subnet.stores import vxlan
from tests.netplane.subnet.wrapped import Wrapped, view_where


async def test_views_follow_the_other_hosts(network: Network) -> None:
    manager, view = await network.join(1)
    assert view.peers == {}
    async with running(manager):
        second, _ = await network.join(2)
        view = await manager.next_view(view)
        [peer] = view.peers.values()
        assert (str(peer.public_ip), peer.backend_data) == ("192.0.2.2", vxlan(2))

        await second.drain()
        view = await manager.next_view(view)
        assert view.peers == {}


async def test_signs_of_life_never_change_the_peers(network: Network) -> None:
    manager, view = await network.join(1)
    await network.join(2)
    async with running(manager):
        view = await view_where(manager, view, lambda view: view.peers)
        await network.die(2)
        third, listed = await network.join(3)
        later = await manager.next_view(view)

    # The next view is that of the third host; there was none without the second.
    assert {str(lease.public_ip) for lease in later.peers.values()} == {"192.0.2.2", "192.0.2.3"}
    assert "host2" not in manager.registered.alive
    # Nor does a host leave it out that comes later, and lists everything.
    assert {str(lease.public_ip) for lease in listed.peers.values()} == {"192.0.2.1", "192.0.2.2"}
    assert "host2" not in third.registered.alive


async def test_leases_are_renewed_well_before_they_end(network: Network) -> None:
    registry = Wrapped(network.registry)
    manager, _ = await network.join(1, registry=registry)
    assert manager.status().lease_left_s == 86_400

    async def renewals(count: int) -> None:
        while registry.calls.count("renew") < count:
            registry.renewed.clear()
            await registry.renewed.wait()

    async with running(manager):
        network.clock.advance(10)
        await renewals(1)  # the sign of life
        assert manager.status().lease_left_s == 86_390
        network.clock.advance(3_600)
        await renewals(3)  # both
        network.clock.advance(10)
        await renewals(4)  # so that the one before has ended
        assert manager.status().lease_left_s == 86_390


@pytest.mark.parametrize("which", ["lease", "host", "life"])
async def test_what_is_ours_is_put_back_when_it_is_gone(network: Network, which: str) -> None:
    manager, view = await network.join(1)
    key = {
        "lease": network.layout.lease(subnet_of(view)),
        "host": network.layout.host("host1"),
        "life": network.layout.life("host1"),
    }[which]
    before = await network.value(key)
    async with running(manager), network.changes(key) as feed:
        await network.client.delete(key)
        assert (await anext(feed)).events[0].kind == "DELETE"
        [event] = (await anext(feed)).events

    assert (event.kind, event.value) == ("PUT", before)
    assert manager.status().standing is Standing.HELD


async def test_leases_that_ended_are_granted_again(network: Network) -> None:
    manager, view = await network.join(1)
    key = network.layout.lease(subnet_of(view))
    async with running(manager), network.changes(key) as feed:
        await network.client.lease_revoke(await network.lease_of(key))
        assert (await anext(feed)).events[0].kind == "DELETE"
        [event] = (await anext(feed)).events
    assert event.kind == "PUT"
    assert event.kv.lease != 0


async def test_a_subnet_that_was_taken_is_not_stolen_and_its_owner_is_named(
    network: Network,
) -> None:
    manager, view = await network.join(1)
    key = network.layout.lease(subnet_of(view))
    theirs = encode_value(IPv4Address("192.0.2.99"), "vxlan", vxlan(99))
    async with running(manager):
        await network.client.put(key, theirs)
        assert await manager.next_standing(Standing.HELD) is Standing.TAKEN
        view = await view_where(manager, view, lambda view: view.own is None)
        assert "PublicIP 192.0.2.99" in manager.status().detail
        assert "PublicIP 192.0.2.99" in view.quarantined[key]
        assert view.peers == {}
        assert await network.value(key) == theirs

        # When they go, the containers' subnet is ours again.
        await network.client.delete(key)
        await view_where(manager, view, lambda view: key not in view.quarantined)
        network.clock.advance(1)
        assert await manager.next_standing(Standing.TAKEN) is Standing.HELD
    assert await network.value(key) == encode_value(IPv4Address("192.0.2.1"), "vxlan", vxlan(1))


async def test_a_host_that_starts_with_containers_waits_for_their_subnet(
    network: Network,
) -> None:
    _, before = await network.join(1)
    _, other = await network.join(2)
    await network.die(1)
    subnet, key = subnet_of(before), network.layout.lease(subnet_of(before))
    theirs = encode_value(IPv4Address("192.0.2.99"), "vxlan", vxlan(99))
    await network.client.put(key, theirs)
    manager = network.manager(1, wish=Wish(subnet))
    await manager.open()
    view = await manager.acquire(vxlan(1), keep=True)

    assert manager.status().standing is Standing.TAKEN
    assert "PublicIP 192.0.2.99" in manager.status().detail
    # The others are as they are: its containers still reach them.
    assert (view.own, list(view.peers)) == (None, [subnet_of(other)])
    assert await network.value(key) == theirs
    async with running(manager):
        await network.client.delete(key)
        await view_where(manager, view, lambda view: key not in view.quarantined)
        network.clock.advance(1)
        assert await manager.next_standing(Standing.TAKEN) is Standing.HELD
    assert manager.status().subnet == subnet


async def test_an_agent_that_was_superseded_writes_no_more(network: Network) -> None:
    # Cut off for longer than its sign of life, and meanwhile a machine with its id was let in.
    old, _ = await network.join(1)
    await network.die(1)
    new, view = await network.join(1, ip="192.0.2.77", boot_id="another")

    async with running(old):
        assert await old.next_standing(Standing.HELD) is Standing.REFUSED
        assert "cloned machine-id" in old.status().detail
    assert await network.value(network.layout.life("host1")) == (
        b'{"Session":"' + new.registered.alive["host1"].encode() + b'"}'
    )
    assert subnet_of(view) in {lease.subnet for lease in new.registered.leases.values()}


async def test_a_key_made_a_reservation_stays_one(network: Network) -> None:
    # Flannel's documented way: the same value, put again without a lease.
    manager, view = await network.join(1)
    key = network.layout.lease(subnet_of(view))
    value = await network.value(key)
    assert value is not None
    async with running(manager):
        await network.client.put(key, value)
        view = await manager.next_view(view)
        assert view.own is not None
        assert not view.own.expires
        # Something else that makes it write all that is ours.
        async with network.changes(network.layout.host("host1")) as feed:
            await network.client.delete(network.layout.host("host1"))
            await anext(feed)
            await anext(feed)
    assert await network.lease_of(key) == 0


async def test_a_configuration_that_changes_is_reported_and_not_applied(network: Network) -> None:
    manager, view = await network.join(1)
    async with running(manager):
        await network.configure(SubnetLen=26)
        view = await manager.next_view(view)

    assert "has changed" in view.quarantined[network.layout.config]
    assert view.config.subnet_len == 24


async def test_a_member_that_answers_no_more_is_not_watched_any_longer(network: Network) -> None:
    # A frozen process keeps its connections, so the watch alone would wait for ever.
    class Frozen(Wrapped):
        listed = asyncio.Event()

        async def renew(self, lease_id: int) -> Grant:
            raise UnavailableError("keep-alive: no answer in time")

        async def list(self, prefix: bytes) -> Listing:
            self.listed.set()
            return await super().list(prefix)

    registry = Frozen(network.registry)
    manager, _ = await network.join(1, registry=registry)
    registry.listed.clear()
    async with running(manager):
        network.clock.advance(11)
        async with asyncio.timeout(10):
            await registry.listed.wait()


async def test_a_compacted_watch_lists_again_and_misses_nothing(network: Network) -> None:
    manager, view = await network.join(1)
    second, _ = await network.join(2)
    await second.drain()
    third, _ = await network.join(3)
    await network.client.compact(third.registered.head.revision + 1)

    async with running(manager):
        view = await view_where(manager, view, lambda view: view.peers)
        assert [str(peer.public_ip) for peer in view.peers.values()] == ["192.0.2.3"]
        await network.join(4)
        await manager.next_view(view)  # and it follows again


async def test_drain_gives_back_what_is_ours_and_it_stays_so(network: Network) -> None:
    registry = Wrapped(network.registry)
    manager, view = await network.join(1, registry=registry)
    async with running(manager):
        await manager.drain()
        left = await network.registry.list(network.layout.everything)
        assert [kv.key for kv in left.kvs] == [network.layout.config]
        registry.calls.clear()
        network.clock.advance(4_000)
        second, _ = await network.join(2)
        await view_where(manager, view, lambda view: view.peers)

    assert manager.status().standing is Standing.DRAINED
    assert "attempt" not in registry.calls
    assert list(second.registered.hosts) == ["host2"]


@pytest.mark.parametrize("how", ["refused", "cancelled"])
async def test_a_drain_that_failed_leaves_the_host_as_it_was(network: Network, how: str) -> None:
    # Else nobody renews the lease any more, and a day later the routes to us are gone.
    class Deaf(Wrapped):
        is_deaf = True
        asked = asyncio.Event()

        async def revoke(self, lease_id: int) -> None:
            self.asked.set()
            if self.is_deaf and how == "refused":
                raise UnavailableError("no endpoint answers")
            if self.is_deaf:
                await asyncio.Event().wait()
            await super().revoke(lease_id)

    registry = Deaf(network.registry)
    manager, _ = await network.join(1, registry=registry)
    async with running(manager):
        draining = asyncio.create_task(manager.drain())
        await registry.asked.wait()
        if how == "cancelled":
            draining.cancel()
        with pytest.raises((UnavailableError, asyncio.CancelledError)):
            await draining
        assert manager.status().standing is Standing.HELD
        registry.renewed.clear()
        network.clock.advance(11)
        async with asyncio.timeout(10):
            await registry.renewed.wait()  # and its sign of life goes on

        registry.is_deaf = False
        await manager.drain()
    left = await network.registry.list(network.layout.everything)
    assert [kv.key for kv in left.kvs] == [network.layout.config]


async def test_a_host_that_moves_keeps_its_subnet_and_its_key(network: Network) -> None:
    manager, view = await network.join(1)
    other, seen = await network.join(2)
    lease = await network.lease_of(network.layout.lease(subnet_of(view)))
    async with running(manager), running(other):
        manager.move(IPv4Address("192.0.2.77"))
        while view.own is None or str(view.own.public_ip) != "192.0.2.77":
            view = await manager.next_view(view)
            # At no time is it anybody else's.
            assert view.own is not None
            assert not view.quarantined
        await view_where(
            other,
            seen,
            lambda seen: [str(one.public_ip) for one in seen.peers.values()] == ["192.0.2.77"],
        )
    assert view.own.mod_revision > view.own.create_revision
    assert await network.lease_of(network.layout.lease(subnet_of(view))) == lease
    record = manager.registered.hosts["host1"]
    assert (str(record.public_ip), record.subnet) == ("192.0.2.77", subnet_of(view))


async def test_a_host_that_is_reached_otherwise_says_so_in_its_lease(network: Network) -> None:
    manager, view = await network.join(1)
    other, seen = await network.join(2)
    async with running(manager), running(other):
        manager.describe({"VNI": 1, "VtepMAC": "02:00:00:00:00:99"})
        await view_where(
            other,
            seen,
            lambda seen: (
                [one.backend_data for one in seen.peers.values()]
                == [{"VNI": 1, "VtepMAC": "02:00:00:00:00:99"}]
            ),
        )
    assert manager.status().subnet == subnet_of(view)


async def test_a_host_knows_its_lease_by_a_watch_that_is_quicker_than_the_answer(
    network: Network,
) -> None:
    class Late(Wrapped):
        is_late = False
        heard = asyncio.Event()

        async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
            outcome = await super().attempt(attempts, otherwise)
            if self.is_late:
                await self.heard.wait()
            return outcome

    registry = Late(network.registry)
    manager, view = await network.join(1, registry=registry)
    registry.is_late = True
    async with running(manager), asyncio.timeout(10):
        manager.move(IPv4Address("192.0.2.77"))
        view = await manager.next_view(view)
        assert str(view.own and view.own.public_ip) == "192.0.2.77"
        assert not view.quarantined
        registry.heard.set()


async def test_a_host_does_not_move_to_the_address_of_another(network: Network) -> None:
    manager, view = await network.join(1)
    await network.join(2)
    before = await network.value(network.layout.lease(subnet_of(view)))
    async with running(manager):
        await view_where(manager, view, lambda seen: seen.peers)
        manager.move(IPv4Address("192.0.2.2"))
        assert await manager.next_standing(Standing.HELD) is Standing.REFUSED
    assert "is used by the host 'host2'" in manager.status().detail
    assert await network.value(network.layout.lease(subnet_of(view))) == before
