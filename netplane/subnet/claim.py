"""What is ours in the registry: written in one transaction, compared with what is there."""

from __future__ import annotations

import contextlib
import logging
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from netplane.subnet.allocate import choose, exhausted
from netplane.subnet.clock import Clock
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import ConfigError, ContentionError
from netplane.subnet.held import HeldLease
from netplane.subnet.lease import encode_value
from netplane.subnet.plan import Claim, Identity, Wish, plan
from netplane.subnet.records import HostRecord, Registered, life_value
from netplane.subnet.registry import (
    Absent,
    Attempt,
    Condition,
    Delete,
    KeyValue,
    LeaseGoneError,
    OutcomeUnknownError,
    Put,
    Registry,
    RegistryError,
    Unchanged,
    Write,
)

_CANDIDATES = 4
# Tried in one transaction, so that hosts which start together need one call each.
_TRIES = 10

_log = logging.getLogger("netplane.subnet")


class Claimer:
    """Writes the lease of our subnet, our host record and our sign of life."""

    def __init__(
        self,
        registry: Registry,
        registered: Registered,
        who: Identity,
        *,
        clock: Clock,
        draw: random.Random,
        lease_ttl_s: int,
        life_ttl_s: int,
    ) -> None:
        self._registry = registry
        self._registered = registered
        self._layout = registered.layout
        self._who = who
        self._draw = draw
        self.lease = HeldLease(registry, clock, lease_ttl_s)
        self.life = HeldLease(registry, clock, life_ttl_s)
        self.subnet: IPv4Network | None = None
        """What we have, or had and want back."""
        self.public_ip = who.public_ip
        """What our lease says, as far as we have written it."""
        self.config_value = b""
        """The configuration that we go by since we have a subnet; b"": none yet."""
        self._backend_data: object = None
        self._value = b""

    def config(self) -> NetworkConfig:
        """Return the configuration: what is registered, or since `claim` what was then.

        Raises ConfigError.
        """
        return parse_config(self._config_value())

    def _config_value(self) -> bytes:
        if self.config_value:
            return self.config_value
        kv = self._registered.kvs.get(self._layout.config)
        if kv is None:
            raise ConfigError(
                f"there is no network configuration at {self._layout.config.decode()}; write "
                "one with `netplane ctl init --network 10.5.0.0/16`"
            )
        return kv.value

    def describe(self, backend_data: object) -> None:
        """Say how peers reach us: the JSON of BackendData; the next claim writes it."""
        if backend_data != self._backend_data:
            self._backend_data = backend_data
            self._value = b""  # as for `move`

    def move(self, public_ip: IPv4Address) -> None:
        """Say that we are at another address; the next claim writes it."""
        if public_ip != self._who.public_ip:
            self._who = replace(self._who, public_ip=public_ip)
            self._value = b""  # what is registered is not what it should be

    def is_in_order(self) -> bool:
        """Tell whether the registry says of us what it should."""
        if self.subnet is None or not (self.lease.lease_id and self.life.lease_id):
            return False
        kvs, layout, who = self._registered.kvs, self._layout, self._who
        record = self._registered.hosts.get(who.host_id)
        lease, life = kvs.get(layout.lease(self.subnet)), kvs.get(layout.life(who.host_id))
        return (
            record is not None
            and (record.session, record.subnet) == (who.session, self.subnet)
            and lease is not None
            and lease.value == self._value
            and lease.lease_id in (0, self.lease.lease_id)
            and life is not None
            and life.lease_id == self.life.lease_id
        )

    async def claim(self, wish: Wish) -> None:
        """Write all that is ours, or raise a SubnetError and have written nothing."""
        for _ in range(_TRIES):
            config_value = self._config_value()
            config = parse_config(config_value)
            claim = plan(self._registered, config, self._who, wish)
            if claim.why:
                _log.info("%s", claim.why)
            subnets = [claim.subnet] if claim.subnet is not None else self._free(config)
            self._value = encode_value(self._who.public_ip, config.backend_type, self._backend_data)
            record = self._registered.kvs.get(self._layout.host(self._who.host_id))
            await self.lease.obtain(reuse=0 if record is None else record.lease_id)
            await self.life.obtain()
            if await self._try(tuple(self._attempt(claim, subnet) for subnet in subnets)):
                # From here on a changed configuration is reported, and not applied by halves.
                self.config_value = config_value
                self.public_ip = self._who.public_ip
                return
        raise ContentionError(
            f"others changed what we were about to write, {_TRIES} times; trying again"
        )

    def go_on(self, wish: Wish) -> bool:
        """Go by our lease as it is registered, where nothing can be written; False: none is ours.

        Ours is what we would write to the byte: then the others reach us.

        Raises SubnetError, as `claim`.
        """
        config_value = self._config_value()
        config = parse_config(config_value)
        claim = plan(self._registered, config, self._who, wish)
        value = encode_value(self._who.public_ip, config.backend_type, self._backend_data)
        if claim.subnet is None or claim.drops:
            return False
        kv = self._registered.kvs.get(self._layout.lease(claim.subnet))
        if kv is None or kv.value != value:
            return False
        self.subnet, self.config_value, self._value = claim.subnet, config_value, value
        return True

    async def give_back(self) -> None:
        """End our leases: what hangs on them goes, what others wrote there meanwhile stays."""
        await self.lease.give_back()
        await self.life.give_back()

    async def give_up(self) -> None:
        """As `give_back`, after a failure that is the one to report."""
        with contextlib.suppress(RegistryError):  # then they end by themselves
            await self.give_back()

    async def _try(self, attempts: tuple[Attempt, ...]) -> bool:
        """Tell whether we have what we wanted; if not, what is registered is known anew."""
        everything, registered = self._layout.everything, self._registered
        try:
            outcome = await self._registry.attempt(attempts, everything)
        except OutcomeUnknownError:
            # Every attempt compares our host record: one that comes late, after another has
            # changed it, comes to nothing.
            registered.load(await self._registry.list(everything))
        except LeaseGoneError:
            self.lease.lease_id = self.life.lease_id = 0
            registered.load(await self._registry.list(everything))
        else:
            if outcome.won is not None:
                self._note(attempts[outcome.won], outcome.head.revision)
            else:
                assert outcome.listing is not None
                registered.load(outcome.listing)
        record = registered.hosts.get(self._who.host_id)
        if record is None or record.session != self._who.session:
            return False
        self.subnet = record.subnet
        return self.is_in_order()

    def _free(self, config: NetworkConfig) -> list[IPv4Network]:
        registered = self._registered
        found = choose(config, registered.subnets.values(), self._draw, _CANDIDATES)
        if not found:
            leases = sorted(registered.leases.values(), key=lambda lease: lease.create_revision)
            raise exhausted(config, leases, registered.live_subnets())
        return found

    def _attempt(self, claim: Claim, subnet: IPv4Network) -> Attempt:
        layout, who, registered = self._layout, self._who, self._registered
        lease_key, host_key, life_key = (
            layout.lease(subnet), layout.host(who.host_id), layout.life(who.host_id),
        )  # fmt: skip
        record = HostRecord(who.host_id, subnet, who.public_ip, who.session, who.boot_id)
        conditions: list[Condition] = [
            Unchanged(key, registered.mod_revision(key)) for key in (host_key, life_key)
        ]
        writes: list[Write] = [
            Put(lease_key, self._value, self.lease.lease_id if claim.expires else 0),
            Put(host_key, record.encode(), self.lease.lease_id),
            Put(life_key, life_value(who.session), self.life.lease_id),
        ]
        if claim.replaces:
            conditions.append(Unchanged(lease_key, claim.replaces))
        else:
            # By prefix: also no key of this subnet that has an IPv6 part. Subnets of one length
            # cannot overlap otherwise, so all that claim must go by the same configuration.
            conditions.append(Absent(lease_key))
            conditions.append(Unchanged(layout.config, registered.mod_revision(layout.config)))
        for lease in claim.drops:
            conditions.append(Unchanged(lease.key, lease.mod_revision))
            writes.append(Delete(lease.key))
        if claim.ends is not None:
            other = claim.ends
            conditions.append(Unchanged(layout.host(other.host_id), other.mod_revision))
            conditions.append(Unchanged(layout.life(other.host_id), 0))
            writes.append(Delete(layout.host(other.host_id)))
        return Attempt(tuple(conditions), tuple(writes))

    def _note(self, attempt: Attempt, revision: int) -> None:
        """Take over what we wrote, before the watch brings it."""
        for write in attempt.writes:
            if isinstance(write, Put):
                known = self._registered.kvs.get(write.key)
                created = revision if known is None else known.create_revision
                self._registered.put(
                    KeyValue(write.key, write.value, created, revision, write.lease_id)
                )
            else:
                self._registered.drop(write.key)
