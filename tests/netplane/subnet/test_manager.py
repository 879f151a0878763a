"""A host's subnet in a real registry: claimed, kept through everything, given back."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from kvstore import embed
from kvstore.client import AsyncClient
from netplane.subnet.clock import LoopClock
from netplane.subnet.errors import (
    ConfigError,
    ExhaustedError,
    IdentityError,
    SubnetTakenError,
)
from netplane.subnet.lease import View, encode_value
from netplane.subnet.manager import Standing, SubnetManager
from netplane.subnet.plan import Wish
from netplane.subnet.registry import (
    Attempt,
    Feed,
    Grant,
    Head,
    Listing,
    Outcome,
    OutcomeUnknownError,
    Registry,
)
from netplane.subnet.regress import Guard
from tests.netplane.subnet.conftest import Network, running, subnet_of
from tests.netplane.subnet.stores import vxlan


class Wrapped:
    """The real registry, with its calls counted, and what a test does around them."""

    def __init__(self, inner: Registry) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self.renewed = asyncio.Event()

    @property
    def resumptions(self) -> int:
        return self.inner.resumptions

    async def list(self, prefix: bytes) -> Listing:
        self.calls.append("list")
        return await self.inner.list(prefix)

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        self.calls.append("attempt")
        return await self.inner.attempt(attempts, otherwise)

    def watch(self, prefix: bytes, start_revision: int) -> Feed:
        self.calls.append("watch")
        return self.inner.watch(prefix, start_revision)

    async def grant(self, ttl_s: int) -> Grant:
        self.calls.append(f"grant {ttl_s}")
        return await self.inner.grant(ttl_s)

    async def renew(self, lease_id: int) -> Grant:
        self.calls.append("renew")
        grant = await self.inner.renew(lease_id)
        self.renewed.set()
        return grant

    async def revoke(self, lease_id: int) -> None:
        self.calls.append("revoke")
        await self.inner.revoke(lease_id)


async def view_where(manager: SubnetManager, view: View, condition: Any) -> View:
    """Wait for a view that meets a condition."""
    while not condition(view):
        view = await manager.next_view(view)
    return view


# starting


async def test_a_host_gets_a_subnet_and_says_so_as_flannel_does(network: Network) -> None:
    _, view = await network.join(1)

    subnet = subnet_of(view)
    key = network.layout.lease(subnet)
    assert key.decode().endswith(f"/network/subnets/{subnet.network_address}-24")
    assert await network.value(key) == (
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":'
        b'{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}'
    )
    lease = await network.client.lease_time_to_live(await network.lease_of(key))
    assert lease.granted_ttl_s == 86_400
    # The host record hangs on the same lease; the sign of life on one of 30 s.
    host_key, life_key = network.layout.host("host1"), network.layout.life("host1")
    assert await network.lease_of(host_key) == lease.lease_id
    life = await network.client.lease_time_to_live(await network.lease_of(life_key))
    assert life.granted_ttl_s == 30
    record = await network.client.get(host_key)
    written = await network.client.get(key)
    assert record is not None
    assert written is not None
    assert record.mod_revision == written.mod_revision  # one transaction
    assert json.loads(record.value)["Subnet"] == str(subnet)


async def test_a_start_costs_five_calls(network: Network) -> None:
    registry = Wrapped(network.registry)
    manager, view = await network.join(1, registry=registry)
    async with running(manager):
        await network.join(2)
        await manager.next_view(view)

    assert registry.calls == ["list", "grant 86400", "grant 30", "attempt", "watch"]


async def test_hosts_that_start_together_share_nothing_and_need_six_calls_at_most(
    network: Network,
) -> None:
    registries = [Wrapped(network.registry) for _ in range(60)]
    managers = [
        network.manager(number, registry=registry) for number, registry in enumerate(registries, 1)
    ]
    # All have listed before one of them writes: every choice is made without the others.
    for manager in managers:
        await manager.open()

    views = await asyncio.gather(
        *(manager.acquire(vxlan(number)) for number, manager in enumerate(managers, 1))
    )

    assert len({subnet_of(view) for view in views}) == 60
    # And one more for the watch.
    assert max(len(registry.calls) for registry in registries) <= 5
    # Several subnets are tried in one transaction, so that hardly anybody needs a second one.
    assert sum(registry.calls.count("attempt") for registry in registries) <= 63
    listing = await network.registry.list(network.layout.subnets)
    assert len(listing.kvs) == 60


async def test_the_last_subnets_are_found_by_those_who_lose_every_race(network: Network) -> None:
    await network.configure(Network="10.5.0.0/20", SubnetLen=24)  # 15 subnets
    managers = [network.manager(number) for number in range(1, 16)]
    for manager in managers:
        await manager.open()

    views = await asyncio.gather(
        *(manager.acquire(vxlan(number)) for number, manager in enumerate(managers, 1))
    )
    assert len({subnet_of(view) for view in views}) == 15

    await network.die(3)
    with pytest.raises(ExhaustedError, match="15 leases, 0 of them reservations") as caught:
        await network.join(16)
    assert caught.value.capacity == 15
    assert "of 192.0.2.3 (revision" in str(caught.value)
    # Nothing of the sixteenth is left.
    assert await network.value(network.layout.host("host16")) is None


async def test_a_missing_configuration_is_an_error_with_the_remedy(network: Network) -> None:
    await network.client.delete(network.layout.config)

    with pytest.raises(ConfigError, match="netplane ctl init"):
        await network.join(1)


async def test_a_configuration_that_changes_in_between_is_read_again(network: Network) -> None:
    # Subnets of two lengths may overlap, so both would have to go by one configuration.
    manager = network.manager(1)
    assert (await manager.open()).subnet_len == 24
    await network.configure(SubnetLen=26)

    view = await manager.acquire(vxlan(1))

    assert subnet_of(view).prefixlen == 26
    assert view.config.subnet_len == 26


@pytest.mark.parametrize("is_applied", [True, False])
async def test_an_attempt_with_unknown_outcome_ends_in_one_subnet(
    network: Network, is_applied: bool
) -> None:
    class Unsure(Wrapped):
        async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
            first = "attempt" not in self.calls
            if is_applied or not first:
                outcome = await super().attempt(attempts, otherwise)
            self.calls.append("attempt")
            if first:
                raise OutcomeUnknownError("no answer")
            return outcome

    _, view = await network.join(1, registry=Unsure(network.registry))

    [kv] = (await network.registry.list(network.layout.subnets)).kvs
    assert kv.key == network.layout.lease(subnet_of(view))


async def test_an_attempt_that_comes_late_comes_to_nothing(network: Network) -> None:
    late: list[tuple[Attempt, ...]] = []

    class Late(Wrapped):
        async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
            if not late:
                late.append(attempts)
                raise OutcomeUnknownError("no answer")
            return await super().attempt(attempts, otherwise)

    _, view = await network.join(1, registry=Late(network.registry))

    assert (await network.registry.attempt(late[0], network.layout.everything)).won is None
    [kv] = (await network.registry.list(network.layout.subnets)).kvs
    assert kv.key == network.layout.lease(subnet_of(view))


# restarting


async def test_a_restarted_host_has_its_subnet_and_its_lease(network: Network) -> None:
    first, view = await network.join(1)
    subnet = subnet_of(view)
    lease = await network.lease_of(network.layout.lease(subnet))
    session = first.registered.alive["host1"]

    _, again = await network.join(1, previous_session=session)

    assert subnet_of(again) == subnet
    # Not a new lease of a day at each start of an agent that crashes every second.
    assert await network.lease_of(network.layout.lease(subnet)) == lease


async def test_a_host_whose_lease_has_ended_gets_its_subnet_again(network: Network) -> None:
    _, view = await network.join(1)
    await network.client.lease_revoke(await network.lease_of(network.layout.lease(subnet_of(view))))
    await network.die(1)

    _, again = await network.join(1, wish=Wish(subnet_of(view)))

    assert subnet_of(again) == subnet_of(view)


async def test_a_host_with_a_new_address_has_its_subnet(network: Network) -> None:
    _, view = await network.join(1)
    await network.die(1)

    _, again = await network.join(1, ip="192.0.2.77")

    assert subnet_of(again) == subnet_of(view)
    assert len((await network.registry.list(network.layout.subnets)).kvs) == 1
    assert again.own is not None
    assert again.own.public_ip == IPv4Address("192.0.2.77")


async def test_a_host_whose_containers_subnet_was_taken_writes_nothing(network: Network) -> None:
    _, view = await network.join(1)
    before = (await network.registry.list(network.layout.everything)).head

    with pytest.raises(SubnetTakenError, match=r"host 'host1', PublicIP 192\.0\.2\.1"):
        await network.join(2, wish=Wish(subnet_of(view), keep=True))

    assert (await network.registry.list(network.layout.everything)).head == before


# identity


async def test_a_cloned_id_is_refused_while_the_other_lives(network: Network) -> None:
    _, view = await network.join(1)

    with pytest.raises(IdentityError, match="cloned machine-id"):
        await network.join(2, host_id="host1", boot_id="another")

    await network.die(1)
    _, taken = await network.join(2, host_id="host1", boot_id="another")
    assert subnet_of(taken) == subnet_of(view)


async def test_an_address_in_use_is_refused_while_the_other_lives(network: Network) -> None:
    _, view = await network.join(1)

    with pytest.raises(IdentityError, match="used by the host 'host1'"):
        await network.join(2, ip="192.0.2.1")

    await network.die(1)
    manager, taken = await network.join(2, ip="192.0.2.1")
    assert subnet_of(taken) == subnet_of(view)
    assert list(manager.registered.hosts) == ["host2"]
    assert await network.value(network.layout.host("host1")) is None


async def test_a_host_that_comes_to_life_at_the_last_moment_is_not_taken_over(
    network: Network,
) -> None:
    first, view = await network.join(1)
    await network.die(1)
    registry = Wrapped(network.registry)
    second = network.manager(2, ip="192.0.2.1", registry=registry)
    await second.open()
    # The first one's agent is started again, between the other's listing and its transaction.
    await network.join(1, previous_session=first.registered.alive["host1"])

    with pytest.raises(IdentityError, match="used by the host 'host1'"):
        await second.acquire(vxlan(2))

    record = await network.value(network.layout.host("host1"))
    assert record is not None
    assert json.loads(record)["Subnet"] == str(subnet_of(view))
    assert registry.calls.count("revoke") == 2  # of the leases that it had been granted


@pytest.mark.parametrize("which", ["lease", "host", "life", "own host", "own life"])
async def test_each_key_that_a_take_over_goes_by_is_compared(network: Network, which: str) -> None:
    _, view = await network.join(1)
    await network.die(1)
    registry = Wrapped(network.registry)
    second = network.manager(2, ip="192.0.2.1", registry=registry)
    await second.open()
    layout = network.layout
    key = {
        "lease": layout.lease(subnet_of(view)),
        "host": layout.host("host1"),
        "life": layout.life("host1"),
        "own host": layout.host("host2"),
        "own life": layout.life("host2"),
    }[which]
    # Nothing but this one key changes, between the listing and the transaction.
    await network.client.put(key, await network.value(key) or b'{"Session":"x"}')

    if which.endswith("life"):
        with pytest.raises(IdentityError):
            await second.acquire(vxlan(2))
        assert await network.value(layout.host("host1")) is not None
    else:
        await second.acquire(vxlan(2))
        assert registry.calls.count("attempt") == 2


async def test_a_lease_that_is_given_back_is_compared(network: Network) -> None:
    _, view = await network.join(1)
    await network.die(1)
    await network.configure(SubnetLen=26)
    registry = Wrapped(network.registry)
    manager = network.manager(1, registry=registry)
    await manager.open()
    # Another host's lease by now.
    key = network.layout.lease(subnet_of(view))
    theirs = encode_value(IPv4Address("192.0.2.9"), "vxlan", vxlan(9))
    await network.client.put(key, theirs)

    new = await manager.acquire(vxlan(1))

    assert subnet_of(new).prefixlen == 26
    assert await network.value(key) == theirs


async def test_flannels_lease_is_adopted_by_compare_and_swap(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "netplane.subnet")
    flannel = encode_value(IPv4Address("192.0.2.1"), "vxlan", vxlan(9))
    key = network.layout.lease(IPv4Network("10.5.33.0/24"))
    lease = await network.client.lease_grant(86_400)
    await network.client.put(key, flannel, lease=lease.lease_id)
    manager = network.manager(1)
    await manager.open()
    # Flannel renews it in between.
    await network.client.put(key, flannel, lease=lease.lease_id)

    view = await manager.acquire(vxlan(1))

    assert subnet_of(view) == IPv4Network("10.5.33.0/24")
    assert await network.value(key) == encode_value(IPv4Address("192.0.2.1"), "vxlan", vxlan(1))
    assert "subnet 10.5.33.0/24 is adopted: a lease of Flannel with our address" in caplog.text


async def test_a_reservation_stays_one(network: Network) -> None:
    # In Flannel it becomes a lease of a day at its owner's first start.
    key = network.layout.lease(IPv4Network("10.5.33.0/24"))
    await network.client.put(key, encode_value(IPv4Address("192.0.2.1"), "vxlan"))

    manager, view = await network.join(1)
    assert view.own is not None
    assert (view.own.subnet, view.own.expires) == (IPv4Network("10.5.33.0/24"), False)
    assert await network.lease_of(key) == 0

    await manager.drain()
    assert await network.value(key) is not None
    _, again = await network.join(1)
    assert subnet_of(again) == view.own.subnet
    assert await network.lease_of(key) == 0


# running


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
        await network.join(3)
        later = await manager.next_view(view)

    # The next view is that of the third host; there was none without the second.
    assert {str(lease.public_ip) for lease in later.peers.values()} == {"192.0.2.2", "192.0.2.3"}
    assert "host2" not in manager.registered.alive


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


async def test_a_wiped_registry_gets_our_lease_back(network: Network) -> None:
    manager, view = await network.join(1)
    subnet = subnet_of(view)
    async with running(manager), network.changes(network.layout.lease(subnet)) as feed:
        await network.client.delete(network.layout.everything, prefix=True)
        assert (await anext(feed)).events[0].kind == "DELETE"
        assert (await anext(feed)).events[0].kind == "PUT"

    # Also without the configuration: the one read at the start stays in use.
    assert "is gone" in manager._publish().quarantined[network.layout.config]


@pytest.mark.parametrize("token", ["etcd-cluster", "other"])
async def test_another_store_at_the_same_address_is_noticed(token: str) -> None:
    # With the same token even its cluster id is the same: it was wiped, or restored.
    with embed(fsync=False) as member:
        port = int(member.endpoint.rpartition(":")[2])
        client = AsyncClient([member.endpoint], timeout_s=2)
        there = Network(client, "/n")
        await there.configure()
        await there.join(2)
        manager, view = await there.join(1, clock=LoopClock(), life_ttl_s=3)
        guard = Guard(None)
        guard.judge(view, 0.0)
        known = set(view.peers)
        assert len(known) == 1
    # Its last member is gone, and another one listens where it was.
    async with client, running(manager):
        with embed(fsync=False, port=port, initial_cluster_token=token):
            empty = await view_where(manager, view, lambda seen: not seen.peers)
            verdict = guard.judge(empty, 1.0)
            back = await view_where(manager, empty, lambda seen: seen.own is not None)
            assert await there.value(there.layout.lease(subnet_of(view))) is not None

    assert subnet_of(back) == subnet_of(view)
    assert set(verdict.peers) == known
    assert ("another cluster" in verdict.regressed) == (token == "other")


@pytest.mark.parametrize("sign", ["cluster", "revision", "resumption", "nothing"])
async def test_a_sign_of_another_history_leads_to_a_listing_and_a_view(
    network: Network, sign: str
) -> None:
    class Restored(Wrapped):
        moved = 0

        @property
        def resumptions(self) -> int:
            return self.inner.resumptions + self.moved

        async def renew(self, lease_id: int) -> Grant:
            grant = await super().renew(lease_id)
            cluster_id, revision = grant.head
            head = {
                "cluster": Head(cluster_id + 1, revision),
                "revision": Head(cluster_id, 1),
            }.get(sign, grant.head)
            self.moved = int(sign == "resumption")
            return grant._replace(head=head)

        async def list(self, prefix: bytes) -> Listing:
            listing = await super().list(prefix)
            if self.calls.count("list") == 1:
                return listing
            # The same keys and values, by a store that has counted less far.
            return listing._replace(head=Head(listing.head.cluster_id, 1))

    registry = Restored(network.registry)
    manager, view = await network.join(1, registry=registry)
    async with running(manager):
        network.clock.advance(10)
        if sign == "nothing":
            await registry.renewed.wait()
            await network.join(2)
            await manager.next_view(view)
            assert registry.calls.count("list") == 1
        else:
            # The guard against a step back lives on views: there is one, with the same peers.
            assert (await manager.next_view(view)).revision == 1


async def test_a_claim_that_meets_another_history_ends_the_watch(network: Network) -> None:
    class Swapped(Wrapped):
        async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
            if self.calls.count("attempt") != 1:
                return await super().attempt(attempts, otherwise)
            self.calls.append("attempt")
            listing = await self.inner.list(otherwise)
            head = Head(listing.head.cluster_id + 1, listing.head.revision)
            return Outcome(None, head, listing._replace(head=head))

    registry = Swapped(network.registry)
    manager, view = await network.join(1, registry=registry)
    async with running(manager):
        await network.client.delete(network.layout.host("host1"))
        other = await view_where(manager, view, lambda seen: seen.cluster_id == view.cluster_id + 1)
        await view_where(manager, other, lambda seen: seen.cluster_id == view.cluster_id)
    assert registry.calls.count("list") >= 2


async def test_a_registry_restored_from_an_older_copy_is_noticed(tmp_path: Path) -> None:
    now, before = tmp_path / "now", tmp_path / "before"
    with embed(now, fsync=False) as member:
        port = int(member.endpoint.rpartition(":")[2])
        client = AsyncClient([member.endpoint], timeout_s=2)
        there = Network(client, "/n")
        await there.configure()
        # Its leases are in the copy: nothing of ours is missing there.
        manager, view = await there.join(1, clock=LoopClock(), life_ttl_s=3)
    shutil.copytree(now, before)
    guard = Guard(None)
    async with client, running(manager):
        with embed(now, fsync=False, port=port):
            await there.join(2)
            view = await view_where(manager, view, lambda seen: seen.peers)
            guard.judge(view, 0.0)
        with embed(before, fsync=False, port=port):
            view = await view_where(manager, view, lambda seen: not seen.peers)

    verdict = guard.judge(view, 1.0)
    assert len(verdict.peers) == 1
    assert "went back from revision" in verdict.regressed


async def test_a_registry_that_is_down_changes_nothing_and_is_reported() -> None:
    with embed(fsync=False) as member:
        client = AsyncClient([member.endpoint], timeout_s=0.2)
        there = Network(client, "/n")
        await there.configure()
        manager, view = await there.join(1)
    async with client, running(manager):
        there.clock.advance(10)
        while not manager.status().problem:
            await manager.changed()

    assert manager.status().standing is Standing.HELD
    assert manager._view is view
