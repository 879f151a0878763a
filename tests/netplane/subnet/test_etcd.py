"""The registry port on real servers: what the manager relies upon."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kvstore.client import AsyncClient
from netplane.subnet.etcd import EtcdRegistry
from netplane.subnet.registry import (
    Absent,
    Attempt,
    Change,
    Changes,
    CompactedError,
    Delete,
    LeaseGoneError,
    Put,
    RefusedError,
    UnavailableError,
    Unchanged,
)
from tests.servers import Etcd

if TYPE_CHECKING:
    from tests.netplane.subnet.conftest import Network


async def test_a_listing_has_keys_revisions_leases_and_who_answered(network: Network) -> None:
    registry, prefix = network.registry, network.layout.everything
    lease = await network.client.lease_grant(60)
    put = await network.client.put(prefix + b"a", b"1", lease=lease.lease_id)

    listing = await registry.list(prefix)

    [kv] = [kv for kv in listing.kvs if kv.key == prefix + b"a"]
    assert kv == (prefix + b"a", b"1", put.revision, put.revision, lease.lease_id)
    assert listing.head.revision >= put.revision
    assert listing.head.cluster_id != 0


async def test_the_first_attempt_whose_conditions_hold_is_done_and_no_other(
    network: Network,
) -> None:
    registry, prefix = network.registry, network.layout.everything
    put = await network.client.put(prefix + b"x-24&v6", b"0")

    def attempt(name: bytes, *conditions: Absent | Unchanged) -> Attempt:
        return Attempt(conditions, (Put(prefix + name, b"new"),))

    outcome = await registry.attempt(
        (
            attempt(b"a", Absent(prefix + b"x-24")),  # by prefix
            attempt(b"b", Unchanged(prefix + b"x-24&v6", put.revision - 1)),
            attempt(b"c", Unchanged(prefix + b"x-24&v6", put.revision), Absent(prefix + b"y")),
            attempt(b"d"),
        ),
        prefix,
    )

    assert (outcome.won, outcome.listing) == (2, None)
    written = [await network.value(prefix + name) for name in (b"a", b"b", b"c", b"d")]
    assert written == [None, None, b"new", None]


async def test_who_loses_all_attempts_sees_what_is_there(network: Network) -> None:
    registry, prefix = network.registry, network.layout.everything
    await network.client.put(prefix + b"x", b"0")
    never = Attempt((Unchanged(prefix + b"x", 0),), (Delete(prefix + b"x"),))

    outcome = await registry.attempt((never, never), prefix)

    assert outcome.won is None
    assert outcome.listing == await registry.list(prefix)


async def test_a_watch_brings_every_revision_from_the_one_asked_for(network: Network) -> None:
    prefix = network.layout.everything
    head = (await network.registry.list(prefix)).head
    first = await network.client.put(prefix + b"a", b"1")
    second = await network.client.delete(prefix + b"a")

    feed = network.registry.watch(prefix, head.revision + 1)
    batches = [await feed.next(), await feed.next()]
    await feed.close()

    assert batches == [
        Changes(
            first.revision,
            (Change(prefix + b"a", (prefix + b"a", b"1", first.revision, first.revision, 0)),),
        ),
        Changes(second.revision, (Change(prefix + b"a", None),)),
    ]


async def test_a_watch_of_compacted_history_says_so(network: Network) -> None:
    prefix = network.layout.everything
    put = await network.client.put(prefix + b"a", b"1")
    await network.client.put(prefix + b"a", b"2")
    await network.client.compact(put.revision + 1)

    feed = network.registry.watch(prefix, put.revision)
    with pytest.raises(CompactedError):
        await feed.next()
    await feed.close()


async def test_a_lease_lives_until_it_is_revoked(network: Network) -> None:
    registry, key = network.registry, network.layout.everything + b"a"
    grant = await registry.grant(60)
    await registry.attempt((Attempt((), (Put(key, b"1", grant.lease_id),)),), key)
    renewed = await registry.renew(grant.lease_id)
    assert (renewed.lease_id, renewed.ttl_s) == (grant.lease_id, 60)
    assert renewed.head.cluster_id == grant.head.cluster_id

    await registry.revoke(grant.lease_id)
    await registry.revoke(grant.lease_id)  # no error

    assert await network.value(key) is None
    assert (await registry.renew(grant.lease_id)).ttl_s == 0
    with pytest.raises(LeaseGoneError):
        await registry.attempt((Attempt((), (Put(key, b"1", grant.lease_id),)),), key)


async def test_errors_are_those_of_the_port(network: Network) -> None:
    with pytest.raises(RefusedError):
        await network.registry.attempt((Attempt((), (Put(b"", b"1"),)),), b"a")
    async with AsyncClient(["127.0.0.1:1"], timeout_s=0.2) as client:
        with pytest.raises(UnavailableError):
            await EtcdRegistry(client).list(b"a")


@pytest.fixture
def etcd_with_a_reader() -> Iterator[str]:
    """An etcd that asks who one is; `reader` may only read."""
    reason = Etcd.missing() or (None if shutil.which("etcdctl") else "no etcdctl (etcd-client)")
    if reason is not None:
        pytest.skip(reason)
    with Etcd(1) as cluster:
        for line in (
            "user add root:secret",
            "user grant-role root root",
            "role add reader",
            "role grant-permission reader read /net/ --prefix=true",
            "user add reader:secret",
            "user grant-role reader reader",
            "auth enable",
        ):
            subprocess.run(
                ["etcdctl", "--endpoints", cluster.endpoints[0], *line.split()],
                env=os.environ | {"ETCDCTL_API": "3"}, check=True, capture_output=True,
            )  # fmt: skip
        yield cluster.endpoints[0]


@pytest.mark.etcd
async def test_who_may_not_write_is_told_which_right_it_takes(etcd_with_a_reader: str) -> None:
    async with AsyncClient([etcd_with_a_reader], user="reader", password="secret") as client:
        registry = EtcdRegistry(client)
        assert (await registry.list(b"/net/")).kvs == ()
        with pytest.raises(RefusedError, match=r"permission denied: .* read and write all"):
            await registry.attempt((Attempt((), (Put(b"/net/a", b"1"),)),), b"/net/")
