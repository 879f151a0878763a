"""Which subnet a host may claim, from all that is registered: the rules of identity, pure.

A host is known by its id; its address may change, and so may the process that speaks for it:

- Our id with another session that lives: refused, two machines have one id. Not so the session
  that this host had before (a killed agent's sign of life stays for a while).
- Our address with another id: refused while that host lives, else its subnet is taken over.
- Our address on a lease without a host record: Flannel's, or a reservation for us: adopted.
- Else what we had before, if nobody has it; else any.

A network of both families gives each host a subnet of each. One that its subnet of one family does
not fit any more, or that has none yet, keeps the other: its containers have addresses of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network

from netplane.subnet.config import NetworkConfig, Range
from netplane.subnet.errors import (
    ConfigError,
    IdentityError,
    SubnetMisfitError,
    SubnetTakenError,
)
from netplane.subnet.family import VERSION6, Address, Pair, Subnet
from netplane.subnet.lease import Lease, address_problem, addresses, public
from netplane.subnet.records import HostRecord, Registered


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are."""

    host_id: str
    public_ip: Address
    session: str
    """Drawn at this start, never used before."""
    boot_id: str
    previous_session: str = ""
    """Of the last start on this host, from its state file."""
    public_ip6: IPv6Address | None = None
    """Beside an IPv4 one."""

    def within(self, config: NetworkConfig) -> Identity:
        """Return who we are in a network: with the addresses of its families, and no others.

        Raises ConfigError where we lack one, or where nobody could use it.
        """
        found = []
        for given in config.ranges:
            version = given.network.version
            address = next((one for one in self.addresses if one.version == version), None)
            if address is None:
                raise ConfigError(
                    f"the network has {given.prefix}Network {given.network}, and this host no "
                    f"IPv{version} address that others reach it by: give its interface one, or "
                    f"name one with --public-ip{'v6' if version == VERSION6 else ''} or --iface"
                )
            reason = address_problem(address, given)
            if reason:
                # The others would quarantine our lease, and we would wait for them in vain.
                raise ConfigError(
                    f"our {reason}: name another address with --public-ip"
                    f"{'v6' if version == VERSION6 else ''} or --iface, or take "
                    f"{'an' if given.prefix else 'a'} {given.prefix}Network that no host uses, "
                    "with `netplane ctl init --force`"
                )
            found.append(address)
        second = found[1] if len(found) > 1 else None
        assert second is None or isinstance(second, IPv6Address)
        return replace(self, public_ip=found[0], public_ip6=second)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return the addresses of both families."""
        return addresses(self.public_ip, self.public_ip6)


@dataclass(frozen=True, slots=True)
class Wish:
    """What we would like to have."""

    previous: Subnet | None = None
    """The subnet that this host had, from its state file or subnet.env."""
    keep: bool = False
    """Containers use `previous`: that or none."""
    previous6: IPv6Network | None = None
    """As `previous`, beside an IPv4 one."""

    @classmethod
    def of(cls, pair: Pair | None, *, keep: bool = False) -> Wish:
        """Return the wish for the subnets of both families."""
        return cls(keep=keep) if pair is None else cls(pair.first, keep, pair.second)

    @property
    def pair(self) -> Pair | None:
        """Return the subnets of both families; None: there was none."""
        return None if self.previous is None else Pair(self.previous, self.previous6)


@dataclass(frozen=True, slots=True)
class Claim:
    """What to write."""

    subnet: Subnet | None
    """None: any that is free."""
    replaces: int = 0
    """Revision that wrote the lease which we take over; 0: there must be none."""
    expires: bool = True
    """Whether the lease ends when it is not renewed: a reservation stays one."""
    drops: tuple[Lease, ...] = ()
    """Leases of ours that do not fit any more."""
    ends: HostRecord | None = None
    """The record of the dead host whose subnet we take over."""
    why: str = ""
    """For the log, where it is not what one would expect."""
    subnet6: IPv6Network | None = None
    """In a network of both families; None there: any that is free."""


def plan(registered: Registered, config: NetworkConfig, who: Identity, wish: Wish) -> Claim:
    """Return what to claim.

    Raises ConfigError, IdentityError, SubnetTakenError or SubnetMisfitError.
    """
    who = who.within(config)
    _check_session(registered, who)
    _check_address(registered, who)
    claim = _chosen(registered, config, who, wish)
    mine = _lease_of(registered, who)
    if mine is not None and not claim.drops and not _is_exactly(config, claim, mine.pair):
        # A reservation stays, unless it is what we want under another key.
        wanted = claim.subnet
        if mine.expires or (wanted is not None and mine.subnet.overlaps(wanted)):
            return replace(claim, drops=(mine,))
    return claim


def is_free(registered: Registered, subnet: Subnet) -> bool:
    """Tell whether no lease touches a subnet, also not one that cannot be read."""
    return not any(other.overlaps(subnet) for other in registered.taken(subnet.version))


def _lease_of(registered: Registered, who: Identity) -> Lease | None:
    """Return the lease that our host record speaks of, if it is still ours."""
    record = registered.hosts.get(who.host_id)
    lease = None if record is None else registered.at(record.pair)
    if record is None or lease is None:
        return None
    is_ours = not {*who.addresses, *record.addresses}.isdisjoint(lease.addresses)
    return lease if is_ours else None


def _chosen(registered: Registered, config: NetworkConfig, who: Identity, wish: Wish) -> Claim:
    if wish.keep and wish.pair is not None:
        return _kept(registered, config, who, wish.pair)
    mine = _lease_of(registered, who)
    if mine is not None:
        claim = _fitting(registered, config, mine)
        return _completed(registered, config, claim, wish)
    for lease in sorted(registered.leases.values(), key=lambda lease: lease.create_revision):
        if set(who.addresses).isdisjoint(lease.addresses):
            continue
        if not _is_live_elsewhere(registered, who, registered.holder(lease.pair)):
            return _adopted(registered, config, lease)
    record = registered.hosts.get(who.host_id)
    on_record = None if record is None else record.pair
    before = [pair for pair in (on_record, wish.pair) if pair is not None]
    subnets = [_usable(registered, given, before) for given in config.ranges]
    return Claim(subnets[0], subnet6=_ipv6(subnets[1]) if len(subnets) > 1 else None)


def _completed(registered: Registered, config: NetworkConfig, claim: Claim, wish: Wish) -> Claim:
    """Fill in what we had of a family that the network gets back, if nobody has it by now."""
    before = [] if wish.pair is None else [wish.pair]
    if claim.subnet is None:
        claim = replace(claim, subnet=_usable(registered, config.first, before))
    if claim.subnet6 is None and config.second is not None:
        claim = replace(claim, subnet6=_ipv6(_usable(registered, config.second, before)))
    return claim


def _usable(registered: Registered, given: Range, before: Iterable[Pair]) -> Subnet | None:
    """Return the first of our subnets of before that fits and that nobody has."""
    for pair in before:
        subnet = pair.of(given.network.version)
        if subnet is not None and not given.misfit(subnet) and is_free(registered, subnet):
            return subnet
    return None


def _ipv6(subnet: Subnet | None) -> IPv6Network | None:
    assert subnet is None or isinstance(subnet, IPv6Network)
    return subnet


def _check_session(registered: Registered, who: Identity) -> None:
    session = registered.alive.get(who.host_id)
    if session is None or session in (who.session, who.previous_session):
        return
    record = registered.hosts.get(who.host_id)
    if (
        record is not None
        and (record.session, record.boot_id, record.public_ip)
        == (session, who.boot_id, who.public_ip)
        and who.boot_id
    ):
        return  # the same boot of the same machine, which has lost its state file
    address = record.public_ip if record is not None else "an unknown address"
    raise IdentityError(
        f"an agent with our host id {who.host_id!r} runs already, at {address}: a cloned "
        "machine-id, or --state-dir? On the clone remove the state directory, and "
        "/etc/machine-id before systemd-machine-id-setup (or give it a --host-id). If this host "
        "was just reinstalled or rebooted, that entry ends within 30 s",
        other=who.host_id,
    )


def _check_address(registered: Registered, who: Identity) -> None:
    for host_id, record in registered.hosts.items():
        if host_id == who.host_id or host_id not in registered.alive:
            continue
        for address in who.addresses:
            if address in record.addresses:
                raise IdentityError(
                    f"{public(address)} is used by the host {host_id!r}, which runs now with "
                    f"subnet {record.pair}: give this host its own with --public-ip or --iface "
                    "(hosts behind one NAT have the same address)",
                    other=host_id,
                )


def _kept(registered: Registered, config: NetworkConfig, who: Identity, pair: Pair) -> Claim:
    """Claim the subnets that our containers use, or say why they cannot be had."""
    kv = registered.kvs.get(registered.layout.lease(*pair))
    reserved = kv is not None and kv.lease_id == 0
    claim, reason = _parts(config, pair, reserved=reserved)
    before = registered.had_before(pair)
    if before is not None:
        raise SubnetTakenError(pair, registered.owner_text(before))
    if kv is None:
        mine = _lease_of(registered, who)
        for key, other in registered.subnets.items():
            if other.overlaps(pair) and (mine is None or key != mine.key):
                raise SubnetTakenError(pair, registered.owner_text(other))
        if reason:
            raise SubnetMisfitError(pair, reason)
        return claim
    lease, holder = registered.at(pair), registered.holder(pair)
    is_ours = holder is not None and holder.host_id == who.host_id
    ours = set(who.addresses)
    if holder is not None and is_ours:
        ours.update(holder.addresses)
    # A value that cannot be read says of nobody that it is his; the host record does.
    is_foreign = not is_ours if lease is None else ours.isdisjoint(lease.addresses)
    if is_foreign or _is_live_elsewhere(registered, who, holder):
        raise SubnetTakenError(pair, registered.owner_text(pair))
    if reason:
        raise SubnetMisfitError(pair, reason)
    claim = replace(claim, expires=not reserved, ends=None if is_ours else holder)
    if _is_exactly(config, claim, pair):
        return replace(claim, replaces=kv.mod_revision)
    if lease is None:
        raise SubnetMisfitError(pair, "its lease cannot be read, and must get another key")
    return replace(claim, drops=(lease,))


def _is_exactly(config: NetworkConfig, claim: Claim, pair: Pair) -> bool:
    """Tell whether a pair is all that is claimed: in a claim None is any subnet, not none."""
    return (claim.subnet, claim.subnet6) == pair and len(pair.all()) == len(config.ranges)


def _parts(
    config: NetworkConfig, pair: Pair, *, reserved: bool, before: Pair | None = None
) -> tuple[Claim, str]:
    """Return the claim to what fits of a pair, and why something that it has does not fit.

    Nothing fits of what somebody else has from `before`.

    What it lacks is no reason: a network that has got a second family is no worse for containers
    that have addresses of the first.
    """
    subnets: list[Subnet | None] = []
    reasons = []
    for given in config.ranges:
        subnet = pair.of(given.network.version)
        reason = "" if subnet is None else given.misfit(subnet, reserved=reserved)
        theirs = None if before is None else before.of(given.network.version)
        if subnet is not None and theirs is not None and theirs.overlaps(subnet):
            reason = f"another host had {theirs} before"
        subnets.append(None if reason else subnet)
        reasons.append(reason)
    if subnets[0] is None and not reasons[0]:
        reasons.append(f"it has no subnet of {config.first.prefix}Network {config.network}")
    second = _ipv6(subnets[1]) if len(subnets) > 1 else None
    return Claim(subnets[0], subnet6=second), next(filter(None, reasons), "")


def _is_live_elsewhere(registered: Registered, who: Identity, holder: HostRecord | None) -> bool:
    return (
        holder is not None and holder.host_id != who.host_id and holder.host_id in registered.alive
    )


def _fitting(
    registered: Registered, config: NetworkConfig, mine: Lease, ends: HostRecord | None = None
) -> Claim:
    before = registered.had_before(mine.pair)
    claim, reason = _parts(config, mine.pair, reserved=not mine.expires, before=before)
    if _is_exactly(config, claim, mine.pair):
        return replace(claim, replaces=mine.mod_revision, expires=mine.expires, ends=ends)
    reason = reason or config.misfit(mine.pair, reserved=not mine.expires)
    why = f"subnet {mine.pair} is given back: {reason}"
    if claim.subnet is None:
        return replace(claim, drops=(mine,), ends=ends, why=why)
    why += f"; {claim.subnet} is kept"
    return replace(claim, expires=mine.expires, drops=(mine,), ends=ends, why=why)


def _adopted(registered: Registered, config: NetworkConfig, lease: Lease) -> Claim:
    host = registered.holder(lease.pair)
    claim = _fitting(registered, config, lease, ends=host)
    if claim.why:
        return claim
    if host is not None:
        why = f"taken over from host {host.host_id!r}, which had our address and is gone"
    elif lease.expires:
        why = "adopted: a lease of Flannel with our address"
    else:
        why = "reserved for our address"
    return replace(claim, why=f"subnet {lease.pair} is {why}")
