"""The subnet of this host: claimed, kept, given back; and the views of everybody's.

Two tasks: one follows the registry by a listing and a watch, the other is the only one that
writes. What we wrote is compared with what is registered after every change and put back when it
is gone; what others have is never taken.

    manager = SubnetManager(EtcdRegistry(client), Layout(), identity, wish)
    config = await manager.open()
    view = await manager.acquire({"VNI": config.vni, "VtepMAC": mac})
    task = asyncio.create_task(manager.run())
    while True:
        ...                                     # use the view
        view = await manager.next_view(view)
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network

from netplane.subnet.claim import Claimer
from netplane.subnet.clock import Clock, LoopClock
from netplane.subnet.config import NetworkConfig, parse_config
from netplane.subnet.errors import (
    IdentityError,
    SubnetError,
    SubnetMisfitError,
    SubnetTakenError,
)
from netplane.subnet.family import Address, Subnet
from netplane.subnet.lease import Lease, View
from netplane.subnet.plan import Identity, Wish
from netplane.subnet.records import Layout, Registered
from netplane.subnet.registry import (
    CompactedError,
    Grant,
    RefusedError,
    Registry,
    RegistryError,
    UnavailableError,
)
from netplane.subnet.view import Local, ViewBuilder

LEASE_TTL_S = 86_400
LIFE_TTL_S = 30
_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 10.0
_CLAIM_PAUSE_S = 1.0
# Who fights with us over our own keys is answered no faster.

_log = logging.getLogger("netplane.subnet")


class Standing(enum.Enum):
    """What we have."""

    NONE = "none"
    HELD = "held"
    TAKEN = "taken"
    """Our subnet belongs to another host now; see `Status.detail`."""
    REFUSED = "refused"
    """Another live host has our id or our address."""
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class Status:
    """How things stand, in words and numbers."""

    standing: Standing
    detail: str
    """Why `standing` is not HELD."""
    problem: str
    """Why the registry cannot be used at the moment; "" when it can."""
    config: str
    """Why the registered configuration is not the one that we go by; "" when it is."""
    subnet: Subnet | None
    lease_left_s: float
    """Until the subnet's lease ends, if it is not renewed."""
    revision: int
    subnet6: IPv6Network | None = None
    """Beside an IPv4 one."""


class SubnetManager:
    """One host's side of the registry."""

    def __init__(
        self,
        registry: Registry,
        layout: Layout,
        who: Identity,
        wish: Wish | None = None,
        *,
        clock: Clock | None = None,
        draw: random.Random | None = None,
        known: Iterable[Lease] = (),
        lease_ttl_s: int = LEASE_TTL_S,
        life_ttl_s: int = LIFE_TTL_S,
    ) -> None:
        """Begin; calls nothing.

        Args:
            registry: Where leases are kept.
            layout: Below which prefix.
            who: This host.
            wish: Its subnet of before.
            clock: The event loop's unless a test brings another.
            draw: Picks subnets.
            known: Peers of the saved view: their last good values.
            lease_ttl_s: Life of the subnet's lease without renewal.
            life_ttl_s: Life of the sign that this agent runs.
        """
        self._registry = registry
        self._everything = layout.everything
        self._config_key = layout.config
        self._wish = wish or Wish()
        self._clock = clock or LoopClock()
        self._known = tuple(known)
        self._registered = Registered(layout)
        self._claimer = Claimer(
            registry,
            self._registered,
            who,
            clock=self._clock,
            draw=draw or random.SystemRandom(),
            lease_ttl_s=lease_ttl_s,
            life_ttl_s=life_ttl_s,
        )
        self._builder: ViewBuilder | None = None
        self._standing = Standing.NONE
        self._detail = ""
        self._problems: dict[str, str] = {}
        self._view: View | None = None
        self.on_view: Callable[[View], None] = lambda _: None
        """Called with every new view at once; `next_view` tells a task of it a turn later."""
        self._news = asyncio.Event()
        """Of the status."""
        self._fresh = asyncio.Event()
        """A view came; cleared by who waits for one."""
        self._attention = asyncio.Event()
        self._stale = asyncio.Event()
        self._resumptions = 0
        self._claim_after_s = 0.0
        self._writing = asyncio.Lock()

    # what the agent calls

    async def open(self) -> NetworkConfig:
        """List what is registered and return the configuration. Raises ConfigError."""
        listing = await self._registry.list(self._everything)
        _log.debug("listed %d keys at revision %d", len(listing.kvs), listing.head.revision)
        self._registered.load(listing)
        return self._claimer.config()

    async def acquire(
        self, backend_data: object = None, backend_data6: object = None, *, keep: bool = False
    ) -> View:
        """Claim this host's subnet and return the first view.

        Args:
            backend_data: JSON that peers need to reach us, such as {"VNI": 1, "VtepMAC": "..."}.
            backend_data6: The same over IPv6, in a network of both families.
            keep: Whether containers use the subnet of before, if the network still has it: while
                another host has it, the view is one without a lease of ours.

        Raises:
            SubnetError: See `netplane.subnet.errors`; nothing of ours is left in the registry.
            RegistryError: Try again.
        """
        claimer = self._claimer
        claimer.describe(backend_data, backend_data6)
        macs = _mac(backend_data), _mac(backend_data6)
        try:
            outlook = claimer.outlook()
            builder = self._new_builder(*outlook, *macs)
            # All the others are looked at while the registry writes down what is ours.
            standing = await self._claim_first(keep, lambda: builder.build(self._registered))
        except SubnetError:
            await claimer.give_up()
            raise
        except RefusedError as error:
            # A full store, or a user that may only read, is no reason to cut our containers off.
            if not claimer.go_on(self._wish):
                raise
            self._note("keep", _unwritten(error))
            standing = Standing.HELD, ""
        self._stand(*standing)
        found = claimer.config_value, claimer.addresses
        self._builder = builder if found == outlook else self._new_builder(*found, *macs)
        return self._publish()

    async def _claim_first(
        self, keep: bool, meanwhile: Callable[[], object]
    ) -> tuple[Standing, str]:
        claimer, wish = self._claimer, self._wish
        if keep and wish.pair is not None:
            try:
                await claimer.claim(replace(wish, keep=True), meanwhile)
            except SubnetTakenError as error:
                claimer.want_back(wish.pair)
                return Standing.TAKEN, str(error)
            except SubnetMisfitError:
                pass  # the network was made another: what was started anew goes by that
            else:
                return Standing.HELD, ""
        await claimer.claim(wish, meanwhile)
        return Standing.HELD, ""

    def _new_builder(
        self,
        config_value: bytes,
        addresses: tuple[Address, IPv6Address | None],
        mac: str,
        mac6: str,
    ) -> ViewBuilder:
        local = Local(*addresses, mac=mac, mac6=mac6)
        builder = ViewBuilder(parse_config(config_value), local, self._known)
        builder.config_value = config_value
        return builder

    async def run(self) -> None:
        """Follow the registry and keep what is ours, until cancelled. The registry may be down."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._keep())

    async def next_view(self, seen: View) -> View:
        """Return the newest view; wait while it is still `seen`. What came between is left out."""
        while self._view is seen:
            self._fresh.clear()
            await self._fresh.wait()
        assert self._view is not None
        return self._view

    async def next_standing(self, seen: Standing) -> Standing:
        """Return how we stand; wait while it is still as `seen`."""
        while self._standing is seen:
            await self.changed()
        return self._standing

    async def changed(self) -> None:
        """Return when the status becomes another."""
        await self._news.wait()

    async def drain(self) -> None:
        """Give the subnet back, for good. A reservation stays one.

        Raises:
            RegistryError: The registry cannot be asked. We go on as before, and what was given
                back already is claimed anew.
        """
        async with self._writing:
            before = self._standing, self._detail
            # First, or the end of our own keys would look like somebody else's work.
            self._stand(Standing.DRAINED, "the host was drained")
            try:
                await self._claimer.give_back()
            except BaseException:  # cancelled, too: who asked has lost patience
                self._stand(*before)
                self._attention.set()
                raise

    def move(self, public_ip: Address, public_ip6: IPv6Address | None = None) -> None:
        """Be reached at other addresses from now on: our lease is changed in place."""
        self._claimer.move(public_ip, public_ip6)
        self._attention.set()

    def describe(self, backend_data: object) -> None:
        """Have this as BackendData from now on: our lease is changed in place."""
        self._claimer.describe(backend_data)
        self._attention.set()

    def status(self) -> Status:
        """Say how things stand."""
        return Status(
            self._standing,
            self._detail,
            "; ".join(sorted({problem for problem in self._problems.values() if problem})),
            "" if self._view is None else self._view.quarantined.get(self._config_key, ""),
            self._claimer.subnet,
            self._claimer.lease.left_s(),
            self._registered.head.revision,
            None if self._claimer.pair is None else self._claimer.pair.second,
        )

    @property
    def registered(self) -> Registered:
        """All that is registered, to look at."""
        return self._registered

    @property
    def config_value(self) -> bytes:
        """The configuration: what is registered, or since we have a subnet what was then.

        Raises ConfigError when there is none.
        """
        return self._claimer.current_config()

    # what is registered

    def _publish(self, *, always: bool = False) -> View:
        assert self._builder is not None
        # As registered: until a move is written, the lease with the old address is ours.
        local, claimer = self._builder.local, self._claimer
        local.pair = claimer.pair
        local.public_ip, local.public_ip6 = claimer.addresses
        local.coming = claimer.coming
        old, new = self._view, self._builder.build(self._registered)
        if old is not None and not always and _content(old) == _content(new):
            return old
        self._view = new
        self._fresh.set()
        self.on_view(new)
        if old is None or old.quarantined != new.quarantined:
            self._wake()  # what is said of the configuration may be another
        return new

    def _wake(self) -> None:
        event, self._news = self._news, asyncio.Event()
        event.set()

    async def _follow(self) -> None:
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                await self._watch_until_stale()
                self._resumptions = self._registry.resumptions
                self._registered.load(await self._registry.list(self._everything))
                self._publish(always=True)
                self._attention.set()
                self._note("watch", "")
                pause_s = _RETRY_FIRST_S
            except RegistryError as error:
                self._note("watch", str(error))
                # The next turn lists again, whatever it was.
                self._stale.set()
                await self._clock.wait(asyncio.Event(), pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def _watch_until_stale(self) -> None:
        if self._stale.is_set():
            self._stale.clear()
            return
        watching = asyncio.create_task(self._watch())
        stale = asyncio.create_task(self._stale.wait())
        try:
            await asyncio.wait({watching, stale}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            stale.cancel()
            await asyncio.wait({watching, stale})
        self._stale.clear()
        if not watching.cancelled():
            with contextlib.suppress(CompactedError):  # what a listing is for
                watching.result()

    async def _watch(self) -> None:
        registered = self._registered
        history = registered.history
        feed = self._registry.watch(self._everything, registered.head.revision + 1)
        try:
            while True:
                batch = await feed.next()
                if history != registered.history:
                    return
                registered.apply(batch.revision, batch.changes)
                if batch.changes:
                    self._publish()
                    if not self._claimer.is_in_order():
                        self._attention.set()
        finally:
            await feed.close()

    # what is ours

    async def _keep(self) -> None:
        pause_s = _RETRY_FIRST_S
        while True:
            self._attention.clear()
            try:
                async with self._writing:
                    await self._tend()
            except RegistryError as error:
                self._note(
                    "keep", _unwritten(error) if isinstance(error, RefusedError) else str(error)
                )
                if isinstance(error, UnavailableError):
                    # The member that the watch hangs on may be frozen: nothing else would tell.
                    self._stale.set()
                await self._clock.wait(asyncio.Event(), pause_s)
                pause_s = min(2 * pause_s, _RETRY_MAX_S)
            else:
                self._note("keep", "")
                pause_s = _RETRY_FIRST_S
                await self._clock.wait(self._attention, self._idle_s())

    def _idle_s(self) -> float:
        """Return for how long there is nothing to do if nothing happens."""
        if self._standing is Standing.DRAINED:
            return _RETRY_MAX_S
        now_s = self._clock.now_s()
        due = [held.due_s for held in (self._claimer.lease, self._claimer.life) if held.lease_id]
        if not self._claimer.is_in_order():
            due.append(max(self._claim_after_s, now_s + _CLAIM_PAUSE_S))
        return max(0.0, min(due) - now_s)

    async def _tend(self) -> None:
        if self._standing is Standing.DRAINED:
            return
        for held in (self._claimer.life, self._claimer.lease):
            if held.is_due():
                self._check_history(await held.renew())
        if self._claimer.is_in_order():
            self._stand(Standing.HELD)
        elif self._clock.now_s() >= self._claim_after_s:
            self._claim_after_s = self._clock.now_s() + _CLAIM_PAUSE_S
            await self._put_back()

    async def _put_back(self) -> None:
        history = self._registered.history
        try:
            await self._claimer.claim(Wish.of(self._claimer.pair, keep=True))
        except SubnetTakenError as error:
            self._stand(Standing.TAKEN, str(error))
        except IdentityError as error:
            self._stand(Standing.REFUSED, str(error))
        except SubnetError as error:
            self._stand(Standing.NONE, str(error))
        else:
            self._stand(Standing.HELD)
        finally:
            if self._registered.history != history:
                self._stale.set()  # the watch is of another history
            self._publish()

    def _check_history(self, grant: Grant) -> None:
        """List again where the watch may have gone on in another store, or in an older one.

        A member that lags behind causes a listing, too; it shows that nothing is wrong.
        """
        head = self._registered.head
        if (
            grant.head.cluster_id != head.cluster_id
            or grant.head.revision < head.revision
            or self._registry.resumptions != self._resumptions
        ):
            self._stale.set()

    def _stand(self, standing: Standing, detail: str = "") -> None:
        if (standing, detail) != (self._standing, self._detail):
            level = logging.INFO if standing is Standing.HELD else logging.WARNING
            _log.log(level, "subnet %s: %s %s", self._claimer.subnet, standing.value, detail)
        self._standing, self._detail = standing, detail
        self._wake()

    def _note(self, task: str, problem: str) -> None:
        if problem == self._problems.get(task, ""):
            return
        self._problems[task] = problem
        if problem:
            _log.warning("registry: %s", problem)
        self._wake()


def _unwritten(error: RefusedError) -> str:
    return (
        f"{error}; our lease is used as it is registered, our host record and sign of life are not "
        "written"
    )


def _mac(data: object) -> str:
    return str(data.get("VtepMAC", "")).lower() if isinstance(data, dict) else ""


def _content(view: View) -> tuple[object, ...]:
    """Return what makes a view another one: not how far the registry has counted."""
    # Peers that are the same are one object: see `ViewBuilder`.
    return (view.cluster_id, view.own, id(view.peers), view.quarantined, view.config)
