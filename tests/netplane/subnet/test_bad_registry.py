"""A registry that lost its memory, is another one, is down, or takes no writes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvstore import embed
from kvstore.client import AsyncClient, methods
from netplane.subnet.clock import LoopClock
from netplane.subnet.manager import Standing
from netplane.subnet.registry import (
    Attempt,
    Grant,
    Head,
    Listing,
    Outcome,
    RefusedError,
)
from netplane.subnet.regress import Guard
from tests.netplane.subnet.conftest import Network, running, subnet_of
from tests.netplane.subnet.stores import vxlan
from tests.netplane.subnet.wrapped import Wrapped, view_where


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


async def test_a_wiped_registry_that_has_caught_up_is_noticed(tmp_path: Path) -> None:
    # The same cluster id, a higher revision, and so few peers missing that they may have left.
    with embed(fsync=False) as member:
        port = int(member.endpoint.rpartition(":")[2])
        client = AsyncClient([member.endpoint], timeout_s=2)
        there = Network(client, "/n")
        await there.configure()
        await there.join(2)
        manager, view = await there.join(1, clock=LoopClock(), life_ttl_s=3)
    guard = Guard(None)
    guard.judge(view, 0.0)
    with embed(tmp_path / "new", fsync=False, port=port) as member:
        async with AsyncClient([member.endpoint]) as writer:
            await Network(writer, "/n").configure()
            while (await writer.put(b"/elsewhere", b"")).revision <= view.revision:
                pass
    async with client, running(manager):
        with embed(tmp_path / "new", fsync=False, port=port):
            empty = await view_where(manager, view, lambda seen: not seen.peers)

    assert empty.cluster_id == view.cluster_id
    assert empty.revision > view.revision
    verdict = guard.judge(empty, 1.0)
    assert set(verdict.peers) == set(view.peers)
    assert "has lost our own lease" in verdict.regressed


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


@contextlib.asynccontextmanager
async def full(network: Network) -> AsyncIterator[None]:
    """Let the store have no space meanwhile: it takes deletes and renewals only."""
    alarm = methods.ALARM.request
    fields = {"memberID": 0, "alarm": "NOSPACE"}
    await network.client.call(methods.ALARM, alarm(action="ACTIVATE", **fields), write=True)
    try:
        yield
    finally:
        await network.client.call(methods.ALARM, alarm(action="DEACTIVATE", **fields), write=True)


async def test_an_agent_that_starts_on_a_full_registry_goes_by_its_lease(network: Network) -> None:
    first, view = await network.join(1)
    second, _ = await network.join(2)
    session = first.registered.alive["host1"]
    async with full(network):
        manager, again = await network.join(1, previous_session=session)
        assert subnet_of(again) == subnet_of(view)
        assert [str(peer.public_ip) for peer in again.peers.values()] == ["192.0.2.2"]
        status = manager.status()
        assert status.standing is Standing.HELD
        assert "space exceeded" in status.problem
        assert "our host record and sign of life are not written" in status.problem
        async with running(manager):
            await second.drain()  # deletes are what a full store takes
            await view_where(manager, again, lambda seen: not seen.peers)
            assert manager.status().problem
    network.clock.advance(1)
    async with running(manager), network.changes(network.layout.host("host1")) as feed:
        await anext(feed)  # there is room again
    assert manager.status().standing is Standing.HELD


@pytest.mark.parametrize("what", ["nothing", "another address", "another MAC"])
async def test_what_a_full_registry_has_is_ours_only_as_we_would_write_it(
    network: Network, what: str
) -> None:
    if what != "nothing":
        await network.join(1, ip="192.0.2.9" if what == "another address" else "")
        await network.die(1)
    manager = network.manager(1)
    await manager.open()
    async with full(network):
        with pytest.raises(RefusedError, match="space exceeded"):
            await manager.acquire(vxlan(2 if what == "another MAC" else 1))
    assert manager.status().standing is Standing.NONE
