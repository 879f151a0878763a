"""What an operator changes by hand: the network's configuration, reservations. Used by `ctl`."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from ipaddress import IPv6Address

from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import ConfigError, ContentionError, SubnetError
from netplane.subnet.family import VERSION6, Address, Pair, Subnet
from netplane.subnet.lease import address_problem, addresses, encode_value
from netplane.subnet.plan import is_free
from netplane.subnet.records import Layout, Registered
from netplane.subnet.registry import (
    Absent,
    Attempt,
    Condition,
    Delete,
    OutcomeUnknownError,
    Put,
    Registry,
    Unchanged,
)

_TRIES = 10

NAMED_MAX = 3
"""Hosts that a refusal names."""


class Written(enum.Enum):
    """What `init_network` did."""

    CREATED = "created"
    SAME = "unchanged"
    REPLACED = "replaced"


async def init_network(
    registry: Registry, layout: Layout, value: bytes, *, force: bool = False
) -> Written:
    """Write the network's configuration where there is none.

    One that is there is replaced as long as no host has a lease, or when neither Network nor
    Backend changes and all leases fit (agents read the rest at their next start), or with `force`.

    Args:
        registry: Where.
        layout: Below which prefix.
        value: JSON, kept byte for byte.
        force: Replace it in any case: hosts with leases keep what they have until they restart,
            and until then do not reach those that have started anew.

    Raises:
        ConfigError: `value` cannot be used, or would cut running hosts off. Nothing was written.
        RegistryError: As the registry says.
    """
    wanted = parse_config(value)
    for _ in range(_TRIES):
        registered = await _listed(registry, layout)
        kv = registered.kvs.get(layout.config)
        if kv is not None and kv.value == value:
            return Written.SAME
        if kv is not None and registered.subnets and not force:
            _check_replacement(kv.value, wanted, registered)
        revision = registered.mod_revision(layout.config)
        attempt = Attempt((Unchanged(layout.config, revision),), (Put(layout.config, value),))
        if await _done(registry, layout, attempt):
            return Written.CREATED if kv is None else Written.REPLACED
    raise ContentionError("others change the network's configuration at the same time")


def _check_replacement(value: bytes, wanted: NetworkConfig, registered: Registered) -> None:
    try:
        current = parse_config(value)
    except ConfigError:
        return  # no agent can have started with it
    names = [
        name
        for name, same in (
            *_changes(current, wanted),
            (
                "Backend",
                (current.backend_type, current.backend) == (wanted.backend_type, wanted.backend),
            ),
        )
        if not same
    ]
    if names:
        problem = f"{' and '.join(names)} cannot change under running hosts"
    elif losers := list(_losers(current, wanted, registered)):
        more = f", and {len(losers) - NAMED_MAX} more" if len(losers) > NAMED_MAX else ""
        problem = f"hosts would lose their subnets: {', '.join(losers[:NAMED_MAX])}{more}"
    else:
        return
    raise ConfigError(
        f"{len(registered.subnets)} leases go by the present configuration ({value.decode()}), and "
        f"{problem}: drain them first (`netplane ctl drain`), or repeat it with --force"
    )


def _losers(current: NetworkConfig, wanted: NetworkConfig, registered: Registered) -> Iterator[str]:
    """Name the hosts whose subnets fit now, and would not when their agents start anew."""
    for key, pair in registered.subnets.items():
        reserved = registered.kvs[key].lease_id == 0
        reason = wanted.misfit(pair, reserved=reserved)
        if reason and not current.misfit(pair, reserved=reserved):
            yield f"{registered.owner_text(pair)} has {pair} ({reason})"


def _changes(current: NetworkConfig, wanted: NetworkConfig) -> Iterator[tuple[str, bool]]:
    for name, version in (("Network", 4), ("IPv6Network", VERSION6)):
        yield name, current.networks.of(version) == wanted.networks.of(version)


async def reserve(
    registry: Registry,
    layout: Layout,
    pair: Pair,
    public_ip: Address,
    public_ip6: IPv6Address | None = None,
) -> bool:
    """Keep subnets for a host: its lease does not end, whether the host runs now or starts later.

    Args:
        registry: Where.
        layout: Below which prefix.
        pair: A subnet of each family that the network has.
        public_ip: The host's address, of the first subnet's family.
        public_ip6: Its address of the second's.

    Returns:
        Whether the host had the lease of a Flannel host until now: what runs there writes such a
        one over the reservation.

    Raises:
        SubnetError: Another address has one of them, the host has others, they do not fit the
            configuration, or no host can have that address. Nothing was written.
        RegistryError: As the registry says.
    """
    key = layout.lease(*pair)
    for _ in range(_TRIES):
        registered = await _listed(registry, layout)
        config = _config(registered)
        reason = config.misfit(pair, reserved=True) or _misaddressed(config, public_ip, public_ip6)
        if reason:
            raise SubnetError(f"subnet {pair} cannot be reserved: {reason}")
        if has := _of_host(registered, pair, addresses(public_ip, public_ip6)):
            raise SubnetError(
                f"subnet {pair} cannot be reserved: {public_ip} has {has}, and a host has one: "
                "give that back first (`netplane ctl drain` there, or `netplane ctl release`)"
            )
        kv, lease = registered.kvs.get(key), registered.at(pair)
        is_flannels = lease is not None and lease.expires and registered.holder(pair) is None
        if kv is None and all(is_free(registered, subnet) for subnet in pair.all()):
            # Its owner writes the rest when it starts.
            value = encode_value(public_ip, config.backend_type, public_ip6=public_ip6)
            conditions: list[Condition] = [Absent(layout.lease(pair.first))]
            writes = [Put(key, value)]
            if pair.second is not None:
                mark = layout.mark(pair.second)
                conditions.append(Unchanged(mark, registered.mod_revision(mark)))
                writes.append(Put(mark, b""))
            attempt = Attempt(tuple(conditions), tuple(writes))
        elif kv is not None and lease is not None and public_ip in lease.addresses:
            attempt = Attempt((Unchanged(key, kv.mod_revision),), (Put(key, kv.value),))
        else:
            others = (one for one in registered.subnets.values() if one.overlaps(pair))
            owner = registered.owner_text(next(others, pair))
            raise SubnetError(f"subnet {pair} cannot be reserved: it belongs to {owner}")
        if await _done(registry, layout, attempt):
            return is_flannels
    raise ContentionError(f"others change subnet {pair} at the same time")


def _of_host(registered: Registered, pair: Pair, found: tuple[Address, ...]) -> Pair | None:
    """Return what a host at one of these addresses has other than `pair`."""
    for one in registered.subnets.values():
        lease = None if one == pair else registered.at(one)
        if lease is not None and not set(found).isdisjoint(lease.addresses):
            return one
    return None


def _misaddressed(config: NetworkConfig, public_ip: Address, public_ip6: IPv6Address | None) -> str:
    """Say why no host of the network can have these addresses; "" when one can."""
    found = addresses(public_ip, public_ip6)
    versions = [address.version for address in found]
    wanted = [given.network.version for given in config.ranges]
    if versions != wanted:
        return f"the host needs an address of {' and '.join(f'IPv{one}' for one in wanted)}"
    reasons = map(address_problem, found, config.ranges)
    return next(filter(None, reasons), "")


async def release(registry: Registry, layout: Layout, subnet: Subnet) -> None:
    """Delete the lease or reservation of a host that does not run.

    Raises:
        SubnetError: There is none, or its host runs (it would write it anew: drain it). Nothing
            was written.
        RegistryError: As the registry says.
    """
    for _ in range(_TRIES):
        registered = await _listed(registry, layout)
        pair = _found(registered, subnet)
        key = layout.lease(*pair)
        kv, host = registered.kvs[key], registered.holder(pair)
        conditions = [Unchanged(key, kv.mod_revision)]
        deletions = [Delete(key)]
        if pair.second is not None:
            deletions.append(Delete(layout.mark(pair.second)))
        if host is not None:
            if host.host_id in registered.alive:
                raise SubnetError(
                    f"the host {host.host_id!r} runs and uses {pair}: drain it with `netplane "
                    "ctl drain` there"
                )
            conditions.append(Unchanged(layout.host(host.host_id), host.mod_revision))
            conditions.append(Unchanged(layout.life(host.host_id), 0))
            deletions.append(Delete(layout.host(host.host_id)))
        if await _done(registry, layout, Attempt(tuple(conditions), tuple(deletions))):
            return
    raise ContentionError(f"others change subnet {subnet} at the same time")


def _found(registered: Registered, subnet: Subnet) -> Pair:
    """Return what a lease has that has this subnet. Raises SubnetError."""
    for pair in registered.subnets.values():
        if subnet in pair.all():
            return pair
    raise SubnetError(f"there is no lease of {subnet}; see `netplane ctl leases`")


async def _listed(registry: Registry, layout: Layout) -> Registered:
    registered = Registered(layout)
    registered.load(await registry.list(layout.everything))
    return registered


def _config(registered: Registered) -> NetworkConfig:
    kv = registered.kvs.get(registered.layout.config)
    if kv is None:
        raise ConfigError("there is no network configuration: `netplane ctl init` comes first")
    return parse_config(kv.value)


async def _done(registry: Registry, layout: Layout, attempt: Attempt) -> bool:
    """Do it; False when something has changed, or may have."""
    try:
        outcome = await registry.attempt((attempt,), layout.config)
    except OutcomeUnknownError:
        return False  # the next listing shows what came of it
    return outcome.won is not None
