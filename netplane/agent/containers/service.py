"""The verbs of CNI, and the keeping of what they made: which call does what, in which order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from netplane.agent.containers import addresses, compare, devices, names
from netplane.agent.containers.call import (
    Call,
    Wishes,
    earlier,
    previous,
    valid_attachments,
    wishes,
)
from netplane.agent.containers.cleaning import clear
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.published import Published
from netplane.agent.containers.records import Key, Record, Store, decode_key
from netplane.agent.containers.result import Attached, behind, render
from netplane.agent.desired import Item
from netplane.cni import plugin
from netplane.netlink.decode import Link
from netplane.netlink.namespace import is_network
from netplane.netlink.objects import Address
from netplane.subnet import family
from netplane.subnet.jsontext import loads

log = logging.getLogger("netplane.containers")

THREADS = 16
"""The kernel makes one device after the other, but many that go can wait for it side by side."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Situation:
    """What the network of this host is at the moment."""

    subnets: tuple[family.Subnet, ...]
    """One of each family that the network has; none: not known yet."""
    mtu: int
    taken: str = ""
    """Why they are not ours any more."""

    def must_allow(self) -> tuple[family.Subnet, ...]:
        """Return the subnets that containers get addresses of. Raises CniError."""
        if not self.subnets or not self.mtu:
            why = self.taken or "netplane ctl status"
            raise CniError(plugin.TRY_LATER, "the agent has no subnet for containers yet", why)
        if self.taken:
            raise CniError(plugin.TRY_LATER, "this host's subnet belongs to another", self.taken)
        return self.subnets


@dataclass(slots=True)
class _Turn:
    """For who has an attachment in hand, or waits for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Containers:
    """The containers of one instance on this host.

    Args:
        instance: of the agent.
        store: what is remembered of them; `start` reads it.
        situation: tells what the network is at the moment.
        published: keeps the ports that containers have of the host.
        tombstones: the folder where the plugin leaves calls of DEL while there is no agent.
    """

    def __init__(
        self,
        instance: str,
        store: Store,
        situation: Callable[[], Situation],
        published: Published,
        tombstones: Path,
    ) -> None:
        self.store = store
        self.bridge_name = names.bridge_name(instance)
        self._instance = instance
        self._situation = situation
        self._published = published
        self._tombstones = tombstones
        self._promised: dict[family.Address, Key] = {}
        """Addresses of calls that are not done yet."""
        self._leaving: set[str] = set()
        """Ports that we are removing."""
        self._turns: dict[Key, _Turn] = {}
        self._burying = asyncio.Lock()
        self.names: dict[int, str] = {}
        """The bridge, by its index, as it was in the last round; always the same object."""
        self._networks: set[family.Subnet] = set()
        """All that the bridge may have an address of."""
        self._keeping = asyncio.Lock()
        self._kept_for: tuple[tuple[family.Subnet, ...], int] = ((), 0)
        """The subnets and the MTU that the last whole round went by."""
        self._published_for: tuple[family.Subnet, ...] = ()
        self._wanted: devices.Bridge | None = None
        """The bridge as the last round made it."""
        self._threads = ThreadPoolExecutor(THREADS, "netplane-cni")
        self.on_less: Callable[[], None] = lambda: None
        """Called when `left` has less to tell."""

    async def start(self) -> str:
        """Learn what there is of earlier agents; return a complaint when a memory is of no use."""
        complaint = await self._in_thread(self.store.load)
        # The file may be lost, or older than the last call; the kernel tells no lies.
        for record in await self._in_thread(devices.remembered, self._instance):
            if record.key not in self.store.records:
                self.store.put(record)
        records = self.store.records.values()
        self._networks.update(one.network for record in records for one in record.addresses)
        self._published.remember(records)
        return complaint

    def close(self) -> None:
        """Give the threads back; containers stay."""
        self._threads.shutdown(wait=False)

    async def clear(self) -> None:
        """Take everything away: the subnet is given back. Raises CniError."""
        await clear(self._instance, self.store)

    async def perform(self, call: Call, namespace: int) -> Mapping[str, Any] | None:
        """Do what a call asks for, and return what it results in, if anything.

        Args:
            call: what is asked for.
            namespace: a descriptor of the container's, -1 for none.

        Raises:
            CniError: It cannot be done, and nothing is left of the attempt.
        """
        await self._bury()
        if call.command in {"ADD", "CHECK"} and self._is_another():
            # Also since the last agent: what that had made may not fit.
            await self.keep()
        match call.command:
            case "ADD":
                return await self._add(call, namespace)
            case "DEL":
                await self.delete(call.key)
            case "CHECK":
                await self._check(call, namespace)
            case "GC":
                await self._collect(call)
            case "STATUS":
                self._status()
        return None

    async def _add(self, call: Call, namespace: int) -> Mapping[str, Any]:
        _must_have(call, namespace)
        wanted, before = wishes(call), earlier(call)
        async with self._turn(call.key):
            await self._must_be_new(call.key)
            situation = self._situation()
            chosen = self._choose(call.key, wanted, situation.must_allow())
            self._promised |= dict.fromkeys((one.ip for one in chosen), call.key)
            try:
                made = await self._attach(call, namespace, wanted, chosen, situation.mtu)
                return behind(before, made)
            finally:
                for one in chosen:
                    del self._promised[one.ip]

    async def _must_be_new(self, key: Key) -> None:
        record = self.store.records.get(key)
        if record is None:
            return
        if await self._in_thread(devices.is_there, record.link):
            there = ", ".join(map(str, record.addresses))
            raise CniError(plugin.IN_USE, f"{key} has an address already", there)
        await self._forget(record)  # of a container of the same name that is gone

    def _choose(
        self, key: Key, wanted: Wishes, subnets: tuple[family.Subnet, ...]
    ) -> tuple[family.Interface, ...]:
        used = {
            one.ip: record.key for record in self.store.records.values() for one in record.addresses
        } | self._promised
        by_version = {subnet.version: subnet for subnet in subnets}
        for address in wanted.addresses:
            # Of a family that the network has not, it is in no subnet of it either.
            subnet = by_version.get(address.version, subnets[0])
            objection = addresses.objection(subnet, used, address)
            if objection:
                raise CniError(plugin.IN_USE, f"{key} cannot have its address", objection)
        asked = {address.version: address for address in wanted.addresses}
        return tuple(
            addresses.within(subnet, asked.get(subnet.version) or self._next(subnet, used))
            for subnet in subnets
        )

    def _next(self, subnet: family.Subnet, used: Mapping[family.Address, Key]) -> family.Address:
        found = addresses.choose(subnet, used, self.store.last.get(subnet.version))
        if found is None:
            text = f"{addresses.capacity(subnet)} in {subnet}; `netplane ctl status` tells of hosts"
            raise CniError(plugin.EXHAUSTED, "all addresses of this host are in use", text)
        self.store.last[subnet.version] = found
        return found

    async def _attach(
        self, call: Call, namespace: int, wanted: Wishes,
        chosen: tuple[family.Interface, ...], mtu: int,
    ) -> Mapping[str, Any]:  # fmt: skip
        mac = bytes.fromhex(wanted.mac.replace(":", "")) or names.mac_of(chosen[0].ip)
        link = names.port_name(self._instance, call.key)
        attachment = devices.Attachment(call.key, link, chosen, mac)
        bridge = self._bridge(mtu, *chosen)
        ports = self.store.unpublished(call.key, wanted.ports)
        record = Record(call.key, chosen, link, mac.hex(":"), ports)
        try:
            made = await self._in_thread(devices.attach, bridge, attachment, namespace)
            self._know(bridge, made.bridge)
            if record.ports:
                await self._published.publish(record)
                if record.of(family.VERSION4) is not None:
                    await self._in_thread(devices.allow_localnet, bridge.name)
            self.store.put(record)
            await self.store.save()
        except BaseException:
            await self._undo(record)
            raise
        attached = Attached(
            bridge.name, bridge.mac.hex(":"), link, attachment.link_mac.hex(":"),
            call.ifname, record.mac, call.netns, mtu, chosen, made.defaults,
        )  # fmt: skip
        return render(attached, call.version, call.config.get("dns"))

    async def _undo(self, record: Record) -> None:
        # Also when we are being cancelled: what is left would keep an address.
        try:
            await asyncio.shield(self._forget(record))
        except CniError as error:
            log.warning("what a failed call has left stays until the next one: %s", error)

    async def delete(self, key: Key) -> None:
        """Take an attachment away; that there is none is no failure. Raises CniError."""
        async with self._turn(key):
            record = self.store.records.get(key)
            link = names.port_name(self._instance, key)
            if record is None:
                await self._in_thread(devices.detach, link)
            else:
                await self._forget(record)

    async def _forget(self, record: Record) -> None:
        await self._published.withdraw(record.key)
        self._leaving.add(record.link)
        try:
            await self._in_thread(devices.detach, record.link)
            self.store.remove(record.key)
        finally:
            self._leaving.discard(record.link)
        if any(one.network not in self._situation().subnets for one in record.addresses):
            self.on_less()
        await self.store.save()

    async def _check(self, call: Call, namespace: int) -> None:
        _must_have(call, namespace)
        before = previous(call)
        record = self.store.records.get(call.key)
        if record is None:
            raise CniError(plugin.UNKNOWN, f"{call.key} is not known here")
        bridge = self._bridge(self._situation().mtu)
        found = await self._in_thread(compare.differences, bridge, record, before, namespace)
        if record.ports:
            found += await self._published.differences()
        found += [
            f"{one}, with all routes of its family: the network has no IPv{one.version} any more"
            for one in self._lost(record)
        ]
        found += [
            f"prevResult has not its address {one}"
            for one in record.addresses
            if one not in before.addresses
        ]
        if found:
            raise CniError(plugin.DIFFERS, f"{call.key} is not as it was made", "; ".join(found))

    async def _collect(self, call: Call) -> None:
        valid = valid_attachments(call)
        problems = []
        for key in [key for key in self.store.records if key.network == call.network]:
            if key in valid:
                continue
            try:
                await self.delete(key)
                log.info("%s is taken away: its runtime does not know it any more", key)
            except CniError as error:
                problems.append(str(error))
        if problems:
            text = "; ".join(problems)
            raise CniError(plugin.KERNEL, "not all that is not in use could be removed", text)

    def _status(self) -> None:
        try:
            subnets = self._situation().must_allow()
        except CniError as error:
            code = plugin.LIMITED if self._situation().taken else plugin.NOT_AVAILABLE
            raise CniError(code, error.message, error.details) from error
        used = [one.ip for record in self.store.records.values() for one in record.addresses]
        if any(sum(one in each for one in used) >= addresses.capacity(each) for each in subnets):
            raise CniError(plugin.NOT_AVAILABLE, "all addresses of this host are in use")

    # keeping

    async def keep(self) -> tuple[str, ...]:
        """Put right what others changed, forget what is gone; return what was put right.

        A host whose containers are made otherwise gets no bridge of ours. Raises CniError.
        """
        async with self._keeping:
            return await self._keep()

    async def _keep(self) -> tuple[str, ...]:
        await self._bury()
        situation = self._situation()
        if not situation.subnets or not situation.mtu:
            return ()
        if situation.subnets != self._published_for:
            await self._publish_anew(situation.subnets)
        records = dict(self.store.records)
        if not records and not await self._in_thread(devices.is_there, self.bridge_name):
            self._kept_for = situation.subnets, situation.mtu
            return ()
        bridge = self._bridge(situation.mtu)
        kept = await self._in_thread(devices.keep, bridge, records)
        self._know(bridge, kept.index)
        self._kept_for = situation.subnets, situation.mtu
        for key in kept.ended:
            async with self._turn(key):
                record = self.store.records.get(key)
                # A call may have made it anew meanwhile.
                if record is records[key]:
                    log.info("%s has ended, its address is free", key)
                    await self._forget(record)
        return kept.healed

    def _is_another(self) -> bool:
        """Tell whether the network is another one than the last round went by."""
        now = self._situation()
        return bool(now.subnets and now.mtu) and (now.subnets, now.mtu) != self._kept_for

    async def _publish_anew(self, subnets: tuple[family.Subnet, ...]) -> None:
        if all(subnet.version != family.VERSION4 for subnet in subnets):
            # Before the table goes that keeps containers away from it.
            await self._in_thread(lambda: devices.allow_localnet(self.bridge_name, allowed=False))
        await self._published.restore(self.store.records.values(), subnets)
        # Not with every round: a call that is not done yet has ports that no record tells of.
        self._published_for = subnets

    def _lost(self, record: Record) -> tuple[family.Interface, ...]:
        """Return the addresses of a container that are of no family of the network any more."""
        versions = {subnet.version for subnet in self._situation().subnets}
        return tuple(one for one in record.addresses if versions and one.version not in versions)

    def left(self) -> str:
        """Say which containers have addresses that are not this host's any more; empty: none."""
        records, subnets = self.store.records.values(), self._situation().subnets
        lost = [one for each in records for one in self._lost(each)]
        if lost:
            return (
                f"the network has no IPv{lost[0].version} any more: addresses of it that containers"
                f" still have ({len(lost)}) lead nowhere; make these anew"
            )
        old = [one for each in records for one in each.addresses if one.network not in subnets]
        if old and subnets:
            return (
                f"{old[0].network} is not this host's any more: others do not reach the containers"
                f" that have addresses of it ({len(old)}); make these anew"
            )
        return ""

    def _know(self, bridge: devices.Bridge, index: int) -> None:
        self._wanted = bridge
        self.names.clear()
        self.names[index] = bridge.name

    def is_link_drift(self, link: Link, *, removed: bool) -> bool:
        """Tell whether a change of a link calls for a round; our own doings do not."""
        index = next(iter(self.names), 0)
        if link.name == self.bridge_name:
            wanted = self._wanted
            right = wanted is not None and devices.is_right(link, wanted)
            return removed or link.index != index or not right
        kept = {record.link for record in self.store.records.values()} - self._leaving
        if link.name not in kept:
            return False
        # What a bridge tells of its ports by itself has no kind, and nothing of this either.
        bent = bool(link.kind) and not link.hairpin
        return removed or not link.up or link.master != index or bent

    def is_item_drift(self, item: Item, *, removed: bool) -> bool:
        """Tell whether a change on the bridge calls for a round."""
        wanted = self._wanted
        if wanted is None or not isinstance(item, Address):
            return False
        if removed:
            return item in wanted.addresses or (wanted.has_ipv6 and devices.is_link_local(item))
        return bool(wanted.surplus({item}))

    def is_settings_drift(self) -> bool:
        """Tell whether the settings of the bridge call for a round."""
        return self._wanted is not None and not devices.forwards(self._wanted)

    def _bridge(self, mtu: int, *more: family.Interface) -> devices.Bridge:
        """Return the bridge as it should be, with what is to be attached."""
        records, subnets = self.store.records.values(), self._situation().subnets
        there = [one for record in records for one in record.addresses]
        networks = {one.network for one in (*there, *more)} | set(subnets)
        self._networks |= networks
        versions: set[int] = {subnet.version for subnet in subnets or networks}
        return devices.Bridge(
            self.bridge_name,
            mtu,
            frozenset(addresses.gateway(one) for one in networks if one.version in versions),
            names.bridge_mac(self._instance),
            localnet=family.VERSION4 in versions
            and any(record.ports and record.of(family.VERSION4) for record in records),
            lost=frozenset(
                addresses.gateway(one) for one in self._networks if one.version not in versions
            ),
        )

    async def _bury(self) -> None:
        """Do what the plugin was asked for when there was no agent."""
        if not self._tombstones.is_dir():
            return
        async with self._burying:
            for path in await self._in_thread(_files, self._tombstones):
                # What fails here is tried again with the next call or round.
                try:
                    key = _buried(path)
                    if key is None:
                        log.warning("%s is no call that the plugin left, and is deleted", path)
                    else:
                        await self.delete(key)
                        log.info("%s is taken away: it went while there was no agent", key)
                    path.unlink(missing_ok=True)
                except (CniError, OSError) as error:
                    log.warning("%s waits from when there was no agent: %s", path, error)

    @contextlib.asynccontextmanager
    async def _turn(self, key: Key) -> AsyncIterator[None]:
        """One call at a time for each attachment."""
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    async def _in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _must_have(call: Call, namespace: int) -> None:
    if namespace < 0:
        raise CniError(plugin.ENVIRONMENT, "the call has no namespace")
    if not is_network(namespace):
        raise CniError(plugin.ENVIRONMENT, f"{call.netns} is no network namespace")


def _files(folder: Path) -> list[Path]:
    # A name that ends so is not whole yet.
    with contextlib.suppress(FileNotFoundError):
        return [
            Path(one.path)
            for one in os.scandir(folder)
            if one.is_file(follow_symlinks=False) and not one.name.endswith(".new")
        ]
    return []


def _buried(path: Path) -> Key | None:
    """Return which attachment is to go; None: the plugin writes no such file. Raises OSError."""
    try:
        return decode_key(loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        return None
