"""How a host comes by its subnet, in a real registry: fresh, again, from others, or not at all."""

from __future__ import annotations

import asyncio
import json
import logging
from ipaddress import IPv4Address, IPv4Network

import pytest

from netplane.subnet.errors import (
    ConfigError,
    ExhaustedError,
    IdentityError,
    SubnetTakenError,
)
from netplane.subnet.lease import encode_value
from netplane.subnet.plan import Wish
from netplane.subnet.registry import (
    Attempt,
    Grant,
    Outcome,
    OutcomeUnknownError,
    UnavailableError,
)
from tests.netplane.subnet.conftest import Network, running, subnet_of
from tests.netplane.subnet.stores import vxlan
from tests.netplane.subnet.wrapped import Wrapped


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


@pytest.mark.parametrize("refused", [[], [86_400], [30]])
async def test_both_leases_are_asked_for_at_once_and_what_came_of_one_is_kept(
    network: Network, refused: list[int]
) -> None:
    both, refusals = asyncio.Event(), list(refused)

    class Slow(Wrapped):
        async def grant(self, ttl_s: int) -> Grant:
            self.calls.append(f"grant {ttl_s}")
            if len(self.calls) == 3:
                both.set()
            async with asyncio.timeout(20):
                await both.wait()
            if ttl_s in refusals:
                refusals.remove(ttl_s)
                raise UnavailableError("not now")
            return await self.inner.grant(ttl_s)

    registry = Slow(network.registry)
    manager = network.manager(1, registry=registry)
    await manager.open()
    if refused:
        with pytest.raises(UnavailableError, match="not now"):
            await manager.acquire(vxlan(1))
    await manager.acquire(vxlan(1))
    assert registry.calls[1:3] == ["grant 86400", "grant 30"]
    assert registry.calls[3:] == [*(f"grant {ttl_s}" for ttl_s in refused), "attempt"]


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


async def test_a_host_whose_network_was_made_another_takes_what_fits_it(network: Network) -> None:
    # Its containers are lost to the others either way.
    manager = network.manager(1, wish=Wish(IPv4Network("10.99.1.0/24")))
    await manager.open()
    view = await manager.acquire(vxlan(1), keep=True)
    assert subnet_of(view) != IPv4Network("10.99.1.0/24")


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
