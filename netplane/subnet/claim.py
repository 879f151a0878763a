"""What is ours in the registry: written in one transaction, compared with what is there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from itertools import zip_longest

from netplane.subnet.allocate import choose, exhausted
from netplane.subnet.clock import Clock
from netplane.subnet.config import NetworkConfig, Range, parse_config
from netplane.subnet.errors import ConfigError, ContentionError
from netplane.subnet.family import Address, Pair, Subnet, is_same
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
_TURNS_TO_ASK = 3
"""Of the loop, until a call that begins now is on its way."""

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
        self.pair: Pair | None = None
        """What we have, or had and want back."""
        self.addresses: tuple[Address, IPv6Address | None] = who.public_ip, who.public_ip6
        """What our lease says, as far as we have written it."""
        self.coming: tuple[Address, IPv6Address | None] | None = None
        """What a write under way makes it say: the watch may bring that before the answer comes."""
        self.config_value = b""
        """The configuration that we go by since we have a subnet; b"": none yet."""
        self._data: tuple[object, object] = (None, None)
        self._value = b""
        self._is_disputed = False
        """Somebody may have had our IPv6 subnet before us."""
        self._keys: tuple[Pair, bytes, bytes] | None = None
        """Of our lease and our sign of life, with what they were made for."""

    @property
    def subnet(self) -> Subnet | None:
        """The first of what we have."""
        return None if self.pair is None else self.pair.first

    def config(self) -> NetworkConfig:
        """Return the configuration: what is registered, or since `claim` what was then.

        Raises ConfigError.
        """
        return parse_config(self.current_config())

    def outlook(self) -> tuple[bytes, tuple[Address, IPv6Address | None]]:
        """Return by which configuration and with which addresses we would claim now.

        Raises ConfigError.
        """
        who = self._who.within(self.config())
        return self.current_config(), (who.public_ip, who.public_ip6)

    def current_config(self) -> bytes:
        """Return the text of `config`. Raises ConfigError when there is none."""
        if self.config_value:
            return self.config_value
        kv = self._registered.kvs.get(self._layout.config)
        if kv is None:
            raise ConfigError(
                f"there is no network configuration at {self._layout.config.decode()}; write "
                "one with `netplane ctl init --network 10.5.0.0/16`"
            )
        return kv.value

    def describe(self, backend_data: object, backend_data6: object = None) -> None:
        """Say how peers reach us: BackendData and BackendV6Data; the next claim writes it."""
        if self._data != (backend_data, backend_data6):
            self._data = backend_data, backend_data6
            self._value = b""  # as for `move`

    def move(self, public_ip: Address, public_ip6: IPv6Address | None = None) -> None:
        """Say that we are at other addresses; the next claim writes them."""
        if (public_ip, public_ip6) != (self._who.public_ip, self._who.public_ip6):
            self._who = replace(self._who, public_ip=public_ip, public_ip6=public_ip6)
            self._value = b""  # what is registered is not what it should be

    def is_in_order(self) -> bool:
        """Tell whether the registry says of us what it should."""
        if self.pair is None or not (self.lease.lease_id and self.life.lease_id):
            return False
        if self._is_disputed:
            return False
        kvs, layout, who = self._registered.kvs, self._layout, self._who
        if self._keys is None or self._keys[0] is not self.pair:
            # Asked after every change, of which nearly none is ours.
            self._keys = self.pair, layout.lease(*self.pair), layout.life(who.host_id)
        record = self._registered.hosts.get(who.host_id)
        lease, life = kvs.get(self._keys[1]), kvs.get(self._keys[2])
        return (
            record is not None
            and record.session == who.session
            and is_same(record.subnet, self.pair.first)
            and record.subnet6 == self.pair.second
            and lease is not None
            and lease.value == self._value
            and lease.lease_id in (0, self.lease.lease_id)
            and life is not None
            and life.lease_id == self.life.lease_id
        )

    async def claim(self, wish: Wish, meanwhile: Callable[[], object] | None = None) -> None:
        """Write all that is ours, or raise a SubnetError and have written nothing.

        Args:
            wish: What we would like to have.
            meanwhile: Work for the time that the registry takes to write down our leases.
        """
        for _ in range(_TRIES):
            config_value = self.current_config()
            config = parse_config(config_value)
            claim = plan(self._registered, config, self._who, wish)
            if claim.why:
                _log.info("%s", claim.why)
            pairs = self._candidates(config, claim)
            who = self._who.within(config)
            self._value = self._encode(config, who)
            record = self._registered.kvs.get(self._layout.host(self._who.host_id))
            await self._obtain_leases(0 if record is None else record.lease_id, meanwhile)
            meanwhile = None
            self._is_disputed = False
            self.coming = who.public_ip, who.public_ip6
            try:
                if await self._try(
                    tuple(self._attempt(claim, who, pair) for pair in pairs)
                ) and await self._is_alone(claim):
                    # From here on a changed configuration is reported, and not applied by halves.
                    self.config_value = config_value
                    self.addresses = self.coming
                    return
            finally:
                self.coming = None
        raise ContentionError(
            f"others changed what we were about to write, {_TRIES} times; trying again"
        )

    async def _obtain_leases(self, reuse: int, meanwhile: Callable[[], object] | None) -> None:
        # Side by side: each waits until the registry has written it down. When one fails, the other
        # is still ours to use or to give back.
        refusals = await asyncio.gather(
            _refusal(self.lease.obtain(reuse)), _refusal(self.life.obtain()), _soon(meanwhile)
        )
        for refusal in filter(None, refusals):
            raise refusal

    async def _is_alone(self, claim: Claim) -> bool:
        """Tell whether nobody has what we have just got, from before us.

        Whoever claims after us is the younger, and the one to go. But a host of Flannel's that was
        quicker shows up only now: it writes no mark that our attempt could have met.
        """
        if claim.replaces or self.pair is None or self.pair.second is None:
            return True
        self._is_disputed = True  # until it is known that it is not, whatever becomes of the asking
        self._registered.load(await self._registry.list(self._layout.everything))
        self._is_disputed = self._registered.had_before(self.pair) is not None
        return not self._is_disputed

    def want_back(self, pair: Pair) -> None:
        """Have nothing, and want what somebody else has by now as soon as it is free."""
        self.config_value, self.addresses = self.outlook()
        self.pair = pair

    def go_on(self, wish: Wish) -> bool:
        """Go by our lease as it is registered, where nothing can be written; False: none is ours.

        Ours is what we would write to the byte: then the others reach us.

        Raises SubnetError, as `claim`.
        """
        config_value = self.current_config()
        config = parse_config(config_value)
        claim = plan(self._registered, config, self._who, wish)
        who = self._who.within(config)
        value = self._encode(config, who)
        if claim.subnet is None or claim.drops:
            return False
        pair = Pair(claim.subnet, claim.subnet6)
        kv = self._registered.kvs.get(self._layout.lease(*pair))
        if kv is None or kv.value != value:
            return False
        self.pair, self.config_value, self._value = pair, config_value, value
        self.addresses = who.public_ip, who.public_ip6
        return True

    def _encode(self, config: NetworkConfig, who: Identity) -> bytes:
        data, data6 = self._data
        if config.second is None:
            data6 = None
        return encode_value(who.public_ip, config.backend_type, data, who.public_ip6, data6)

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
        self.pair = record.pair
        return self.is_in_order()

    def _candidates(self, config: NetworkConfig, claim: Claim) -> list[Pair]:
        """Return what to try to get: one pair of subnets, or several where any will do."""
        first = self._candidates_of(config.first, claim.subnet)
        if config.second is None:
            return [Pair(subnet) for subnet in first]
        second = self._candidates_of(config.second, claim.subnet6)
        pairs = []
        # Where there are fewer of one family, each of these may go with each of the others.
        for one, other in zip_longest(first, second):
            subnet6 = other or second[-1]
            assert isinstance(subnet6, IPv6Network)
            pairs.append(Pair(one or first[-1], subnet6))
        return pairs

    def _candidates_of(self, given: Range, wanted: Subnet | None) -> list[Subnet]:
        if wanted is not None:
            return [wanted]
        registered = self._registered
        found = choose(given, registered.taken(given.network.version), self._draw, _CANDIDATES)
        if not found:
            leases = sorted(registered.leases.values(), key=lambda lease: lease.create_revision)
            raise exhausted(given, leases, registered.live_subnets())
        return found

    def _attempt(self, claim: Claim, who: Identity, pair: Pair) -> Attempt:
        layout, registered = self._layout, self._registered
        lease_key, host_key, life_key = (
            layout.lease(*pair), layout.host(who.host_id), layout.life(who.host_id),
        )  # fmt: skip
        record = HostRecord(
            who.host_id, pair.first, who.public_ip, who.session, who.boot_id,
            subnet6=pair.second, public_ip6=who.public_ip6,
        )  # fmt: skip
        lease_id = self.lease.lease_id if claim.expires else 0
        conditions: list[Condition] = [
            Unchanged(key, registered.mod_revision(key)) for key in (host_key, life_key)
        ]
        writes: list[Write] = [
            Put(lease_key, self._value, lease_id),
            Put(host_key, record.encode(), self.lease.lease_id),
            Put(life_key, life_value(who.session), self.life.lease_id),
        ]
        if claim.replaces:
            conditions.append(Unchanged(lease_key, claim.replaces))
        else:
            conditions += _unclaimed(registered, claim, pair)
            if pair.second is not None:
                writes.append(Put(layout.mark(pair.second), b"", lease_id))
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


async def _soon(work: Callable[[], object] | None) -> None:
    """Do work once what others begin now is under way."""
    if work is not None:
        for _ in range(_TURNS_TO_ASK):
            await asyncio.sleep(0)
        work()


async def _refusal(call: Awaitable[None]) -> RegistryError | None:
    try:
        await call
    except RegistryError as error:
        return error
    return None


def _unclaimed(registered: Registered, claim: Claim, pair: Pair) -> list[Condition]:
    """Return what must hold so that nobody else has any of these subnets.

    Subnets of one length overlap only if they are the same, so all must go by one configuration.
    """
    layout = registered.layout
    conditions: list[Condition] = [Unchanged(layout.config, registered.mod_revision(layout.config))]
    if any(lease.subnet.overlaps(pair.first) for lease in claim.drops):
        # We have it, under another key that is not to change either: nobody else gets it.
        conditions.append(Unchanged(layout.lease(*pair), 0))
    else:
        # By prefix: also no key of this subnet that has an IPv6 part, or another one.
        conditions.append(Absent(layout.lease(pair.first)))
    if pair.second is not None:
        mark = layout.mark(pair.second)
        conditions.append(Unchanged(mark, registered.mod_revision(mark)))
    return conditions
