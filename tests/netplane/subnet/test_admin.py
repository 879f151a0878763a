"""What an operator does by hand: the network's configuration, reservations."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from netplane.subnet.admin import Written, init_network, release, reserve
from netplane.subnet.errors import ConfigError, SubnetError
from netplane.subnet.family import Pair
from netplane.subnet.lease import encode_value
from netplane.subnet.registry import Attempt, Outcome, OutcomeUnknownError
from tests.netplane.subnet.conftest import Network, subnet_of
from tests.netplane.subnet.wrapped import Wrapped

VXLAN = b'{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan"}}'
SMALLER = b'{"Network":"10.7.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}'
FROM_FIRST = b'{"Network":"10.7.0.0/16","SubnetMin":"10.7.0.0","Backend":{"Type":"vxlan"}}'
ELSEWHERE = b'{"Network":"10.8.0.0/16","Backend":{"Type":"vxlan"}}'
OTHER_VNI = b'{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan","VNI":9}}'
SUBNET = IPv4Network("10.5.33.0/24")
ADDRESS = IPv4Address("192.0.2.1")


@pytest.fixture
async def empty(network: Network) -> Network:
    await network.client.delete(network.layout.config)
    return network


async def is_refused(network: Network, value: bytes, words: str) -> None:
    """Assert that a configuration is not written over VXLAN, for a reason, but with force."""
    with pytest.raises(ConfigError, match=words):
        await init_network(network.registry, network.layout, value)
    assert await network.value(network.layout.config) == VXLAN

    forced = await init_network(network.registry, network.layout, value, force=True)
    assert forced is Written.REPLACED


async def test_init_writes_where_there_is_nothing(empty: Network) -> None:
    written = await init_network(empty.registry, empty.layout, VXLAN)

    assert written is Written.CREATED
    assert await empty.value(empty.layout.config) == VXLAN  # byte for byte
    again = await init_network(empty.registry, empty.layout, VXLAN)
    assert again is Written.SAME


@pytest.mark.parametrize("force", [False, True])
async def test_init_refuses_what_no_agent_could_use(empty: Network, force: bool) -> None:
    with pytest.raises(ConfigError, match="Network is missing"):
        await init_network(empty.registry, empty.layout, b"{}", force=force)

    assert await empty.value(empty.layout.config) is None


@pytest.mark.parametrize("value", [SMALLER, ELSEWHERE, OTHER_VNI])
async def test_init_replaces_what_nobody_goes_by(empty: Network, value: bytes) -> None:
    await init_network(empty.registry, empty.layout, VXLAN)

    assert await init_network(empty.registry, empty.layout, value) is Written.REPLACED
    assert await empty.value(empty.layout.config) == value


@pytest.mark.parametrize(("value", "words"), [(ELSEWHERE, "Network"), (OTHER_VNI, "Backend")])
async def test_init_does_not_change_network_or_backend_under_hosts(
    empty: Network, value: bytes, words: str
) -> None:
    await init_network(empty.registry, empty.layout, VXLAN)
    await empty.join(1)

    await is_refused(empty, value, f"1 leases go by .* and {words} cannot change")


async def test_init_changes_the_rest_under_hosts(empty: Network) -> None:
    await init_network(empty.registry, empty.layout, VXLAN)
    await empty.join(1)

    assert await init_network(empty.registry, empty.layout, FROM_FIRST) is Written.REPLACED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (b'"SubnetLen":26', "SubnetLen is 26"),
        (b'"SubnetMin":"10.7.250.0"', "SubnetMin is 10.7.250.0, SubnetMax 10.7.255.0"),
        (b'"SubnetMax":"10.7.1.0"', "SubnetMin is 10.7.1.0, SubnetMax 10.7.1.0"),
    ],
)
async def test_init_takes_no_subnet_of_a_host_away(
    empty: Network, change: bytes, words: str
) -> None:
    # When it starts anew, it would be given another one, under its containers.
    await init_network(empty.registry, empty.layout, VXLAN)
    _, view = await empty.join(1)
    assert IPv4Network("10.7.1.0/24") < subnet_of(view) < IPv4Network("10.7.250.0/24")
    value = VXLAN.replace(b",", b"," + change + b",", 1)

    loser = f"host 'host1', PublicIP 192.0.2.1 has {subnet_of(view)}"
    await is_refused(empty, value, rf"would lose their subnets: {loser} \({words}\): drain")


async def test_init_names_a_few_hosts_that_would_lose_theirs(empty: Network) -> None:
    await init_network(empty.registry, empty.layout, VXLAN)
    for number in range(1, 6):
        await empty.join(number)

    with pytest.raises(ConfigError, match="would lose") as refused:
        await init_network(empty.registry, empty.layout, SMALLER)

    assert str(refused.value).count("SubnetLen is 26") == 3
    assert ", and 2 more: drain them first" in str(refused.value)


async def test_init_minds_no_lease_that_does_not_fit_today(empty: Network) -> None:
    await init_network(empty.registry, empty.layout, VXLAN)
    await empty.client.put(empty.layout.lease(SUBNET), encode_value(ADDRESS, "vxlan"))

    assert await init_network(empty.registry, empty.layout, SMALLER) is Written.REPLACED


async def test_init_replaces_what_cannot_be_read(empty: Network) -> None:
    await empty.client.put(empty.layout.config, b"junk")
    await empty.client.put(empty.layout.lease(SUBNET), encode_value(ADDRESS, "vxlan"))

    assert await init_network(empty.registry, empty.layout, VXLAN) is Written.REPLACED


async def test_init_does_not_overwrite_what_comes_in_between(empty: Network) -> None:
    class Busy(Wrapped):
        async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
            if not self.calls.count("attempt"):
                await empty.client.put(empty.layout.config, OTHER_VNI)
                await empty.client.put(empty.layout.lease(SUBNET), b"x")
            return await super().attempt(attempts, otherwise)

    with pytest.raises(ConfigError, match="Backend cannot change"):
        await init_network(Busy(empty.registry), empty.layout, VXLAN)
    assert await empty.value(empty.layout.config) == OTHER_VNI


async def test_an_unknown_outcome_is_looked_at(empty: Network) -> None:
    class Unsure(Wrapped):
        async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
            await super().attempt(attempts, otherwise)
            raise OutcomeUnknownError("no answer")

    registry = Unsure(empty.registry)
    assert await init_network(registry, empty.layout, VXLAN) is Written.SAME
    assert registry.calls.count("attempt") == 1


async def test_a_reserved_subnet_is_its_hosts_whenever_it_comes(network: Network) -> None:
    await reserve(network.registry, network.layout, Pair(SUBNET), ADDRESS)
    assert await network.lease_of(network.layout.lease(SUBNET)) == 0
    await reserve(network.registry, network.layout, Pair(SUBNET), ADDRESS)  # again is no harm

    _, view = await network.join(1)

    assert subnet_of(view) == SUBNET


async def test_a_running_hosts_lease_becomes_a_reservation(network: Network) -> None:
    _, view = await network.join(1)
    key = network.layout.lease(subnet_of(view))
    value = await network.value(key)

    await reserve(network.registry, network.layout, Pair(subnet_of(view)), ADDRESS)

    assert (await network.value(key), await network.lease_of(key)) == (value, 0)


@pytest.mark.parametrize("runs", [True, False])
async def test_a_host_that_has_a_subnet_gets_no_second_one(network: Network, runs: bool) -> None:
    if runs:
        _, view = await network.join(1)
        has = subnet_of(view)
    else:
        has = IPv4Network("10.5.34.0/24")
        await reserve(network.registry, network.layout, Pair(has), ADDRESS)
    before = (await network.registry.list(network.layout.everything)).kvs

    with pytest.raises(SubnetError, match=f"192.0.2.1 has {has}, and a host has one"):
        await reserve(network.registry, network.layout, Pair(SUBNET), ADDRESS)

    assert (await network.registry.list(network.layout.everything)).kvs == before


@pytest.mark.parametrize(
    ("subnet", "words"),
    [
        ("10.5.33.0/24", r"belongs to PublicIP 192\.0\.2\.9"),
        ("10.5.32.0/24", r"belongs to PublicIP 192\.0\.2\.9"),
        ("10.5.34.0/25", "SubnetLen is 24"),
        ("10.6.0.0/24", "outside of Network"),
    ],
)
async def test_what_others_have_or_does_not_fit_cannot_be_reserved(
    network: Network, subnet: str, words: str
) -> None:
    other = encode_value(IPv4Address("192.0.2.9"), "vxlan")
    for taken in ("10.5.33.0/24", "10.5.32.128/25"):
        await network.client.put(network.layout.lease(IPv4Network(taken)), other)
    before = (await network.registry.list(network.layout.everything)).kvs

    with pytest.raises(SubnetError, match=words):
        await reserve(network.registry, network.layout, Pair(IPv4Network(subnet)), ADDRESS)

    assert (await network.registry.list(network.layout.everything)).kvs == before


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "10.5.9.9"])
async def test_nothing_is_reserved_for_who_cannot_be_a_host(network: Network, address: str) -> None:
    with pytest.raises(SubnetError, match=f"cannot be reserved: PublicIP {address} is "):
        await reserve(network.registry, network.layout, Pair(SUBNET), IPv4Address(address))

    assert await network.value(network.layout.lease(SUBNET)) is None


async def test_release_gives_a_dead_hosts_subnet_back(network: Network) -> None:
    _, view = await network.join(1)
    subnet = subnet_of(view)

    with pytest.raises(SubnetError, match="'host1' runs and uses"):
        await release(network.registry, network.layout, subnet)
    assert await network.value(network.layout.lease(subnet)) is not None

    await network.die(1)
    await release(network.registry, network.layout, subnet)
    left = await network.registry.list(network.layout.everything)
    assert [kv.key for kv in left.kvs] == [network.layout.config]

    with pytest.raises(SubnetError, match="no lease of"):
        await release(network.registry, network.layout, subnet)


async def test_release_deletes_a_reservation_and_junk(network: Network) -> None:
    await reserve(network.registry, network.layout, Pair(SUBNET), ADDRESS)
    await release(network.registry, network.layout, SUBNET)
    await network.client.put(network.layout.lease(SUBNET), b"junk")
    await release(network.registry, network.layout, SUBNET)

    assert await network.value(network.layout.lease(SUBNET)) is None
