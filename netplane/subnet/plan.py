"""Which subnet a host may claim, from all that is registered: the rules of identity, pure.

A host is known by its id; its address may change, and so may the process that speaks for it:

- Our id with another session that lives: refused, two machines have one id. Not so the session
  that this host had before (a killed agent's sign of life stays for a while).
- Our address with another id: refused while that host lives, else its subnet is taken over.
- Our address on a lease without a host record: Flannel's, or a reservation for us: adopted.
- Else what we had before, if nobody has it; else any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network

from netplane.subnet.config import NetworkConfig
from netplane.subnet.errors import (
    ConfigError,
    IdentityError,
    SubnetMisfitError,
    SubnetTakenError,
)
from netplane.subnet.family import Address, Subnet
from netplane.subnet.lease import Lease, address_problem
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


@dataclass(frozen=True, slots=True)
class Wish:
    """What we would like to have."""

    previous: Subnet | None = None
    """The subnet that this host had, from its state file or subnet.env."""
    keep: bool = False
    """Containers use `previous`: that or none."""
    previous6: IPv6Network | None = None
    """As `previous`, beside an IPv4 one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What to write."""

    subnet: IPv4Network | None
    """None: any that is free."""
    replaces: int = 0
    """Revision that wrote the lease of `subnet` which we take over; 0: there must be none."""
    expires: bool = True
    """Whether the lease ends when it is not renewed: a reservation stays one."""
    drops: tuple[Lease, ...] = ()
    """Leases of ours that do not fit any more."""
    ends: HostRecord | None = None
    """The record of the dead host whose subnet we take over."""
    why: str = ""
    """For the log, where it is not what one would expect."""


def plan(registered: Registered, config: NetworkConfig, who: Identity, wish: Wish) -> Claim:
    """Return what to claim.

    Raises ConfigError, IdentityError, SubnetTakenError or SubnetMisfitError.
    """
    reason = address_problem(who.public_ip, config.network)
    if reason:
        # The others would quarantine our lease, and we would wait for them in vain.
        raise ConfigError(
            f"our {reason}: name another address with --public-ip or --iface, or take a Network "
            "that no host uses, with `netplane ctl init --force`"
        )
    _check_session(registered, who)
    _check_address(registered, who)
    claim = _chosen(registered, config, who, wish)
    record = registered.hosts.get(who.host_id)
    if record is not None and record.subnet != claim.subnet and not claim.drops:
        mine = _lease_of(registered, record, who)
        if mine is not None and mine.expires:
            return replace(claim, drops=(mine,))
    return claim


def is_free(registered: Registered, subnet: IPv4Network) -> bool:
    """Tell whether no lease touches a subnet, also not one that cannot be read."""
    return not any(other.overlaps(subnet) for other in registered.subnets.values())


def _lease_of(registered: Registered, record: HostRecord, who: Identity) -> Lease | None:
    """Return the lease that our host record speaks of, if it is still ours."""
    lease = registered.at(record.subnet)
    if lease is None or lease.public_ip not in (who.public_ip, record.public_ip):
        return None
    return lease


def _chosen(registered: Registered, config: NetworkConfig, who: Identity, wish: Wish) -> Claim:
    record = registered.hosts.get(who.host_id)
    if wish.keep and wish.previous is not None:
        return _kept(registered, config, who, wish.previous)
    if record is not None:
        mine = _lease_of(registered, record, who)
        if mine is not None:
            return _fitting(config, mine)
    for lease in sorted(registered.leases.values(), key=lambda lease: lease.create_revision):
        if lease.public_ip != who.public_ip:
            continue
        if not _is_live_elsewhere(registered, who, registered.holder(lease.subnet)):
            return _adopted(registered, config, lease)
    for wanted in (record.subnet if record is not None else None, wish.previous):
        if wanted is not None and not config.misfit(wanted) and is_free(registered, wanted):
            return Claim(wanted)
    return Claim(None)


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
        if (
            host_id != who.host_id
            and record.public_ip == who.public_ip
            and host_id in registered.alive
        ):
            raise IdentityError(
                f"PublicIP {who.public_ip} is used by the host {host_id!r}, which runs now with "
                f"subnet {record.subnet}: give this host its own with --public-ip or --iface "
                "(hosts behind one NAT have the same address)",
                other=host_id,
            )


def _kept(
    registered: Registered, config: NetworkConfig, who: Identity, subnet: IPv4Network
) -> Claim:
    """Claim the subnet that our containers use, or say why it cannot be had."""
    kv = registered.kvs.get(registered.layout.lease(subnet))
    reserved = kv is not None and kv.lease_id == 0
    reason = config.misfit(subnet, reserved=reserved)
    if kv is None:
        for other in registered.subnets.values():
            if other.overlaps(subnet):
                raise SubnetTakenError(subnet, registered.owner_text(other))
        if reason:
            raise SubnetMisfitError(subnet, reason)
        return Claim(subnet)
    lease, holder = registered.at(subnet), registered.holder(subnet)
    is_ours = holder is not None and holder.host_id == who.host_id
    addresses = [who.public_ip]
    if holder is not None and is_ours:
        addresses.append(holder.public_ip)
    # A value that cannot be read says of nobody that it is his; the host record does.
    is_foreign = not is_ours if lease is None else lease.public_ip not in addresses
    if is_foreign or _is_live_elsewhere(registered, who, holder):
        raise SubnetTakenError(subnet, registered.owner_text(subnet))
    if reason:
        raise SubnetMisfitError(subnet, reason)
    ends = None if is_ours else holder
    return Claim(subnet, kv.mod_revision, not reserved, ends=ends)


def _is_live_elsewhere(registered: Registered, who: Identity, holder: HostRecord | None) -> bool:
    return (
        holder is not None and holder.host_id != who.host_id and holder.host_id in registered.alive
    )


def _fitting(config: NetworkConfig, mine: Lease, ends: HostRecord | None = None) -> Claim:
    reason = config.misfit(mine.subnet, reserved=not mine.expires)
    if reason:
        why = f"subnet {mine.subnet} is given back: {reason}"
        return Claim(None, drops=(mine,), ends=ends, why=why)
    return Claim(mine.subnet, mine.mod_revision, mine.expires, ends=ends)


def _adopted(registered: Registered, config: NetworkConfig, lease: Lease) -> Claim:
    host = registered.holder(lease.subnet)
    claim = _fitting(config, lease, ends=host)
    if claim.why:
        return claim
    if host is not None:
        why = f"taken over from host {host.host_id!r}, which had our address and is gone"
    elif lease.expires:
        why = "adopted: a lease of Flannel with our address"
    else:
        why = "reserved for our address"
    return replace(claim, why=f"subnet {lease.subnet} is {why}")
