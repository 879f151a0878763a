"""The agent of one host: start order, and what happens when registry, kernel or operator speak.

The rules that everything here serves:

- nothing is written to the kernel before a complete view is known, and a registry that is down
  takes nothing away;
- whoever ends us, routes and lease stay: only `drain` gives them back;
- what is missing is on the board in words, and the agent goes on trying.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from netplane.agent import subnet_env
from netplane.agent.board import Board
from netplane.agent.doubt import Doubt
from netplane.agent.errors import AgentError, SettingsError
from netplane.agent.interface import ExternalInterface
from netplane.agent.lock import InstanceLock
from netplane.agent.metrics import Counts
from netplane.agent.moves import InterfaceWatch
from netplane.agent.notify import notify
from netplane.agent.ports import (
    Dataplane,
    FirewallLook,
    FirewallReport,
    Parts,
    Peers,
    Report,
    Subnets,
)
from netplane.agent.remembered import describe, left, reached_by, remembered_config
from netplane.agent.settings import Settings
from netplane.agent.spread import spread
from netplane.agent.state import StateKeeper, load, read_machine_id
from netplane.agent.tasks import end
from netplane.agent.telling import tell_firewall, tell_key, tell_round
from netplane.backend.vxlan import random_mac, second_mac
from netplane.netlink.objects import Sysctl
from netplane.subnet.config import NetworkConfig
from netplane.subnet.errors import ConfigError, SubnetError
from netplane.subnet.family import Pair
from netplane.subnet.lease import Lease, View
from netplane.subnet.registry import RegistryError, UnavailableError
from netplane.subnet.regress import Guard, Known

log = logging.getLogger("netplane.agent")

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0
RETRY_DOWN_MAX_S = 1.0
"""While the registry cannot be reached: each try knocks for seconds anyway, and whoever waits is to
go on soon after it is back."""

OCCUPIED_RETRY_S = 1.0
TIDY_S = 5.0
"""By then is done what a change of the network brings beside kernel objects: changes that come
meanwhile share it, and none waits for it."""

PATIENCE_S = 5.0
"""How long the registry may keep silent at the start before what is remembered is programmed."""


class Agent:
    """Runs once; `run` returns when `stop` was called or the host was drained."""

    def __init__(self, settings: Settings, parts: Parts, *, patience_s: float = PATIENCE_S) -> None:
        self.settings = settings
        self.board = Board()
        # The last that is missing may come by itself, without another view.
        self.board.on_missing = self._tell_systemd
        self.on_subnets: Callable[[], None] = lambda: None
        """Called when what containers go by, our subnets and the MTU, has become another."""
        self.has_containers: Callable[[], bool] = lambda: False
        """Tells whether there are any that have addresses of our subnet."""
        # Not by `miss`, which would log a warning of what is as it should be.
        self.board.missing["starting"] = "the agent has only just begun"
        self.counts = Counts()
        self.report = Report()
        """Of the newest round that the kernel's half did."""
        self.firewall = FirewallReport()
        """The newest."""
        self.external: ExternalInterface | None = None
        self.own: Lease | None = None
        self.peers: Peers = {}
        """What the kernel was told to have."""
        self.view: View | None = None
        self.view_at_s = 0.0
        self._lease_sure_until_s: float | None = None
        self.keeper: StateKeeper
        self._parts = parts
        self._patience_s = patience_s
        self._guard: Guard
        self._doubt: Doubt
        self._subnets: Subnets
        self._interface: InterfaceWatch
        self._config: NetworkConfig
        self._lease_data: object = None
        """What our lease says of how we are reached."""
        self._dataplane: Dataplane | None = None
        self._healing: asyncio.Task[None] | None = None
        self._for_containers: tuple[Pair, int] | None = None
        """What `on_subnets` was called for."""
        self._news = asyncio.Event()
        """A view came, or the one that we have is to be judged again."""
        self._untidy = asyncio.Event()
        """The kernel has a view that files and systemd have not been told of."""
        self._stopped = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_drained = False
        self._subnet_file = subnet_env.SubnetFile(settings.subnet_file)

    def stop(self) -> None:
        """End the agent, not the network."""
        self._stopped.set()

    @property
    def mtu(self) -> int:
        """What containers may send in one packet; 0: not known yet."""
        return 0 if self._dataplane is None else self._dataplane.mtu

    @property
    def kept_sysctls(self) -> Sequence[Sysctl]:
        """Settings that are kept for the network; none before the first view."""
        return () if self._dataplane is None else self._dataplane.kept_sysctls

    @property
    def is_drained(self) -> bool:
        """Whether lease and kernel state were given back, for good."""
        return self._is_drained

    def lease_age_s(self) -> float | None:
        """Return for how long it is not known whether our lease is ours; None: it never was."""
        until_s = self._lease_sure_until_s
        return None if until_s is None else max(0.0, time.monotonic() - until_s)

    def accept_view(self) -> bool:
        """Believe the registry as it is now; False when it has not told anything yet."""
        if self.view is None:
            if "registry-regressed" not in self.board.missing:
                return False
            self._doubt.accept()
            return True
        self._guard.accept()
        self._news.set()
        return True

    async def drain(self) -> None:
        """Give lease and kernel state back and stop.

        The lease first: the others then stop to send here before we stop to take.

        Raises:
            AgentError: Nothing was given back for good.
        """
        if self._dataplane is None or self.view is None:
            raise AgentError(
                "the agent has not joined the network yet", "`netplane ctl status` tells why"
            )
        try:
            await self._subnets.drain()
        except RegistryError as error:
            problem, remedy = str(error), "put that right, and repeat it"
            if isinstance(error, UnavailableError):
                # Its own text may warn of repeating it, which is safe here.
                problem = (
                    f"the registry {', '.join(self.settings.registry.endpoints)} does not answer"
                )
                remedy = "repeat it when `netplane ctl status` has no note `registry`"
            raise AgentError(
                f"{problem}: nothing was given back for good, the agent goes on", remedy
            ) from error
        self._is_drained = True
        self.stop()
        await self._ended.wait()

    async def _give_kernel_back(self) -> None:
        assert self._dataplane is not None
        await self._dataplane.clear()
        self.settings.subnet_file.unlink(missing_ok=True)
        self.keeper.change(
            own=None,
            left="",
            peers=(),
            cluster_id=0,
            revision=0,
            doubt="",
            config="",
            sysctls={},
            firewall=False,
        )
        log.info("drained: lease and kernel state are given back")

    async def run(self, serving: contextlib.AbstractAsyncContextManager[None]) -> None:
        """Run until stopped; `serving` is entered under the lock, and left last.

        Raises:
            AgentError: What the operator must change.
        """
        with contextlib.closing(InstanceLock(self.settings.lock_file).acquire()):
            await self._remember()
            async with serving:
                try:
                    await self._work_until_stopped()
                finally:
                    notify("STOPPING=1")
                    self._ended.set()

    async def _remember(self) -> None:
        state, complaint = await asyncio.to_thread(load, self.settings.state_file)
        self.board.note("state-file", complaint)
        self.keeper = StateKeeper(
            self.settings.state_file,
            state,
            on_problem=lambda problem: self.board.note("state-file", problem or complaint),
        )
        self.keeper.change(
            host_id=(
                self.settings.host_id or state.host_id or read_machine_id() or secrets.token_hex(16)
            ),
        )
        # On disk before others hear of it: it is what they know us by.
        if not await self.keeper.save():
            raise SettingsError(
                self.keeper.problem, "free space there, or choose another --state-dir"
            )

    async def _work_until_stopped(self) -> None:
        keeping = asyncio.create_task(self.keeper.run())
        tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._stopped.wait())]
        try:
            await asyncio.wait([*tasks, keeping], return_when=asyncio.FIRST_COMPLETED)
            await end(*tasks)
            if self._is_drained:
                await self._give_kernel_back()
        finally:
            # Last, as all the others may change what it writes.
            try:
                await end(*tasks, keeping)
            finally:
                if self._dataplane is not None:
                    self._dataplane.close()

    async def _work(self) -> None:
        """Join the network and follow it; ends only by cancellation or an error."""
        settings, state = self.settings, self.keeper.state
        before = () if state.own is None else state.own.addresses
        external = self.external = await self._parts.external(settings, before)
        self._interface = InterfaceWatch(
            lambda kept: self._parts.external(settings, kept.ips), external, self._news.set
        )
        remembered = {lease.subnet: lease for lease in state.peers}
        known = Known(state.cluster_id, state.revision, remembered, state.own, state.doubt)
        self._guard = Guard(known if state.cluster_id else None, settings.removal_grace_s)
        self._doubt = Doubt(self._guard.known, settings.removal_grace_s)
        who = describe(settings, state, external)
        async with (
            self._parts.subnets(settings, who) as self._subnets,
            asyncio.TaskGroup() as group,
        ):
            self.board.miss("no-view", "the registry has not told yet who the other hosts are")
            self.board.miss("starting", "")
            join = group.create_task(self._join(external))
            await asyncio.wait({join}, timeout=self._patience_s)
            if not join.done():
                await self._program_what_is_remembered(external, group)
            config, view = await join
            await self._go_on_with(config, external)
            self.keeper.change(session=who.session, config=self._subnets.config_text())
            self._see(view)
            group.create_task(self._subnets.run(self._see))
            group.create_task(self._watch_standing())
            group.create_task(self._interface.run())
            group.create_task(self._tidy_up())
            try:
                await self._follow(group)
            finally:
                self._note_view()

    async def _join(self, external: ExternalInterface) -> tuple[NetworkConfig, View]:
        """Get configuration, lease and the first view, however long that takes."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                config = await self._subnets.open()
                if self._is_held_off(config, external):
                    await self._doubt.wait(RETRY_MAX_S)
                    continue
                if not await self._make_way(config):
                    await asyncio.sleep(OCCUPIED_RETRY_S)
                    continue
                # Writes nothing: only what it would say to the others is needed here.
                dataplane = self._make_dataplane(config, external)
                data = dataplane.lease_data()
                view = await self._subnets.acquire(
                    data, dataplane.lease_data6(), keep=self.has_containers()
                )
                self._lease_data = data
            except (SubnetError, RegistryError, AgentError) as error:
                programmed = remembered_config(self.keeper.state)
                if isinstance(error, AgentError) and programmed is None:
                    raise
                text = str(error)
                if programmed is not None and isinstance(error, ConfigError | AgentError):
                    text += f" (programmed here is {self.keeper.state.config})"
                self.board.miss("no-lease", text)
                self.board.miss("registry-regressed", self._doubt.reason(self._subnets.head()))
                is_down = isinstance(error, UnavailableError)
                delay_s = min(delay_s, RETRY_DOWN_MAX_S if is_down else RETRY_MAX_S)
                # A hundred agents that wait for one registry should not all come at once.
                await asyncio.sleep(spread(delay_s))
                delay_s *= 2
            else:
                self.board.miss("no-lease", "")
                # Another one, if it was changed meanwhile: then what we told of us is of the old.
                if view.config == config:
                    return config, view

    def _is_held_off(self, config: NetworkConfig, external: ExternalInterface) -> bool:
        """Tell whether a network has to wait, being another one and the registry in doubt."""
        reason = self._doubt.reason(self._subnets.head())
        before = remembered_config(self.keeper.state)
        if not reason or before is None:
            return False
        try:
            programmed = self._make_dataplane(before, external).scopes
        except AgentError:
            return False  # there is no way to keep it
        if self._make_dataplane(config, external).scopes == programmed or not self._doubt.holds():
            return False
        self.board.miss("no-lease", "")
        self.board.miss(
            "registry-regressed",
            f"{reason}. Its network is another, {self._subnets.config_text()}: what is programmed"
            f" stays, which is {self.keeper.state.config}; to go on with that of the registry, see"
            " `netplane ctl accept-view`",
        )
        return True

    async def _make_way(self, config: NetworkConfig) -> bool:
        """Tell whether the network's VNI and port are free here, or Flannel's to be taken over.

        Before the lease is claimed, as that tells the others which MAC is behind our address.
        """
        found = await self._parts.occupants(config, self.keeper.state.macs)
        adopted = [one for one in found if one.is_flannels and self.settings.adopt_flannel]
        in_the_way = [one.problem for one in found if one not in adopted]
        if self._dataplane is None:
            self.board.miss("kernel", "; ".join(in_the_way))
        if in_the_way:
            return False
        for one in adopted:
            log.info("taking over device %s of Flannel and its MAC %s", one.name, one.mac)
            self.keeper.change(**{"vtep_mac6" if one.is_second else "vtep_mac": one.mac})
        await self._know_macs(config)
        await self.keeper.save()
        return True

    async def _know_macs(self, config: NetworkConfig) -> None:
        """Remember MACs for our devices: peers have those of devices that are there already."""
        if self.keeper.state.vtep_mac:
            return
        found, found6 = await self._parts.macs(config)
        state = self.keeper.state
        if not state.vtep_mac:
            mac = found or random_mac()
            other6 = "" if found6 == second_mac(mac) else found6
            self.keeper.change(vtep_mac=mac, vtep_mac6=state.vtep_mac6 or other6)

    async def _go_on_with(self, config: NetworkConfig, external: ExternalInterface) -> None:
        """Have the kernel's half of this network, and take away that of another one before it."""
        is_running = self._dataplane is not None
        if is_running and config == self._config:
            return
        before = remembered_config(self.keeper.state)
        if not is_running and before is not None:
            try:
                self._adopt(before, external)
            except AgentError as error:
                log.warning("what was programmed before cannot be taken away: %s", error)
        if self._dataplane is not None:
            await self._halt()
            scopes = self._make_dataplane(config, external).scopes
            if self._dataplane.scopes != scopes:
                log.warning("the network is another one than before: what was programmed goes")
                # But not what it has of a family that is as before.
                await self._dataplane.clear(scopes)
                # It tells of hosts of the other network.
                self._guard = Guard(None, self.settings.removal_grace_s)
            self._dataplane.close()
        self._adopt(config, external)

    async def _program_what_is_remembered(
        self, external: ExternalInterface, group: asyncio.TaskGroup
    ) -> None:
        """Give containers their network back while the registry is down: add, never remove."""
        state = self.keeper.state
        config = remembered_config(state)
        if state.own is None or config is None:
            return
        log.warning(
            "the registry keeps silent: programming what is remembered of revision %d, %d peers",
            state.revision, len(state.peers),
        )  # fmt: skip
        self.own = state.own
        await self._know_macs(config)
        dataplane = self._adopt(config, external)
        peers = {lease.subnet: lease for lease in state.peers}
        await self._program(dataplane, state.own, peers, group, remove=False)

    def _adopt(self, config: NetworkConfig, external: ExternalInterface) -> Dataplane:
        self._config = config
        self._dataplane = self._make_dataplane(config, external)
        self._dataplane.on_report = self._take_report
        self._dataplane.on_firewall = self._take_firewall
        return self._dataplane

    def _make_dataplane(self, config: NetworkConfig, external: ExternalInterface) -> Dataplane:
        state = self.keeper.state
        return self._parts.dataplane(self.settings, config, external, state.macs, state.sysctls)

    async def _halt(self) -> None:
        """Stop healing, which would put back what is about to go."""
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.wait({self._healing})
            self._healing = None

    def _see(self, view: View) -> None:
        self.view = view
        self.view_at_s = time.monotonic()
        self._news.set()

    async def _watch_standing(self) -> None:
        while True:
            missing, problem, config = self._subnets.standing()
            self.board.miss("no-subnet", missing)
            # The network goes on without a registry, and with the configuration that it has, so
            # these are no reasons not to be ready.
            self.board.note("registry", problem)
            self.board.note("config", config)
            if not missing and not problem:
                self._lease_sure_until_s = math.inf
            elif self._lease_sure_until_s == math.inf:
                self._lease_sure_until_s = time.monotonic()
            await self._subnets.changed()

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Program every view; those that come meanwhile are one."""
        wait_s: float | None = None
        while True:
            if wait_s is None:
                await self._news.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._news.wait()
            self._news.clear()
            await self._follow_interface()
            view = self.view
            assert view is not None
            wait_s = await self._program_view(view, group)

    async def _follow_interface(self) -> None:
        """Go on over the interface as it is now; subnet, MAC and peers stay."""
        before, found, old = self.external, self._interface.external, self._dataplane
        if found is before or found == before:
            return
        assert before is not None
        assert old is not None
        try:
            self._adopt(self._config, found)
        except AgentError as error:
            log.warning(
                "the interface to the other hosts has changed, which is of no use: %s", error
            )
            self._interface.external = before
            return
        log.warning(
            "the interface to the other hosts is %s, %s, MTU %d now; it was %s, %s, MTU %d",
            found.name, found.addresses(), found.mtu,
            before.name, before.addresses(), before.mtu,
        )  # fmt: skip
        await self._halt()
        if found.name != before.name:
            await old.leave()
        old.close()
        self.external = found
        for address in set(before.ips) - set(found.ips):
            # The registry's answers would go there until its silence is noticed.
            await self._subnets.lose(address)
        told = reached_by(self.settings, found)
        if self.settings.public_ip is None or told != reached_by(self.settings, before):
            self._subnets.move(*told)

    async def _program_view(self, view: View, group: asyncio.TaskGroup) -> float | None:
        assert self._dataplane is not None
        # Without one (it was taken from us, or wiped) our containers keep what they have.
        before, self.own = self.own, view.own or self.own or self.keeper.state.own
        assert self.own is not None
        verdict = self._guard.judge(view, time.monotonic())
        junk = len(view.quarantined)
        self.board.note(
            "quarantined", f"{junk} keys of the registry are of no use; see status" if junk else ""
        )
        await self._program(self._dataplane, self.own, verdict.peers, group, remove=True)
        if self.own is not before:
            tell_key(self.own, self._dataplane.lease_data(), self.board)
        if "no-view" in self.board.missing:
            # Ready means programmed and remembered.
            self._note_view()
            await self.keeper.save()
        self._untidy.set()
        self.board.miss("registry-regressed", verdict.regressed)
        self.board.miss("no-view", "")
        return max(0.0, verdict.until_s - time.monotonic()) if verdict.held else None

    async def _tidy_up(self) -> None:
        """Tell files and systemd of what was programmed, some time after it."""
        while True:
            await self._untidy.wait()
            await asyncio.sleep(spread(TIDY_S))
            self._untidy.clear()
            self._note_view()
            if self.board.is_ready:
                self._tell_systemd()
            await self._keep_subnet_file()
            if "subnet-file" in self.board.missing:
                self._untidy.set()
                await asyncio.sleep(RETRY_MAX_S)

    def _note_view(self) -> None:
        """Have what is programmed remembered; it is written soon."""
        saved = self._guard.saved
        if saved is None:
            return
        own = saved.own or self.own
        self.keeper.change(
            own=own,
            left=left(self.keeper.state, own),
            peers=tuple(saved.peers.values()),
            cluster_id=saved.cluster_id,
            revision=saved.revision,
            doubt=saved.doubt,
        )

    def _tell_systemd(self) -> None:
        if not self.board.is_ready:
            # One line: each is an assignment.
            notify("STATUS=" + self.board.text().partition("\n")[0])
            return
        assert self.own is not None
        notify("READY=1", f"STATUS={self.own.subnet}, {len(self.peers)} peers")

    async def _program(
        self,
        dataplane: Dataplane,
        own: Lease,
        peers: Peers,
        group: asyncio.TaskGroup,
        *,
        remove: bool,
    ) -> None:
        self.peers = peers
        await dataplane.apply(own, peers, remove=remove)
        containers = own.pair, dataplane.mtu
        if containers != self._for_containers:
            self._for_containers = containers
            self.on_subnets()
        log.debug("programmed %d peers", len(peers))
        if self._healing is None:
            # Not before: there would be nothing yet to heal towards.
            self._healing = group.create_task(dataplane.run())
            await self._keep_subnet_file()

    async def _keep_subnet_file(self) -> None:
        assert self.own is not None
        text = subnet_env.render(
            self._config.networks, self.own.pair, self.mtu, ip_masq=self.settings.ip_masq
        )
        self.board.miss("subnet-file", await self._subnet_file.keep(text))

    def _take_report(self, report: Report) -> None:
        self.report = report
        if report.in_doubt:
            self._interface.doubt()
        tell_round(report, self.board, self.counts)
        assert self._dataplane is not None
        self.keeper.change(sysctls=dict(self._dataplane.sysctls))
        data = self._dataplane.lease_data()
        if self.view is not None and data != self._lease_data:
            self._lease_data = data
            self._subnets.describe(data)
        tell_key(self.own, data, self.board)

    def _take_firewall(self, report: FirewallReport) -> None:
        self.firewall = report
        tell_firewall(report, self.board, self.counts, masquerades=self.settings.ip_masq)
        if not (report.problem or self.keeper.state.firewall or self._is_drained):
            self.keeper.change(firewall=True)

    async def look_at_firewall(self) -> FirewallLook | None:
        """Read the firewall, and change nothing; None: nothing is programmed yet."""
        if self._dataplane is None or self._healing is None:
            return None
        return await self._dataplane.look()

    async def dropped(self) -> int | None:
        """Return how many overlay packets of unknown hosts were dropped; None: not known."""
        if self._dataplane is None or self._healing is None:
            return None
        return await self._dataplane.dropped()

    async def counters(self) -> dict[str, Any] | None:
        """Return what the process that moves packets has done; None: there is none, or silence."""
        return None if self._dataplane is None else await self._dataplane.counters()
