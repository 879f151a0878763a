"""Keeps bridge and ports of the containers as they were made: hears of changes, and has a timer."""

from __future__ import annotations

import asyncio
import logging
import time

from netplane.agent.board import Board
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.service import Containers
from netplane.netlink.heals import Heals
from netplane.netlink.monitor import (
    Change,
    LinkChange,
    Monitor,
    ObjectChange,
    Overrun,
    SettingsChange,
)
from netplane.netlink.objects import Identity

log = logging.getLogger("netplane.containers")

SETTLE_S = 0.005
"""What comes at once is one round."""

RETRY_S = 1.0
NOBODY = -1
"""No socket: what we wrote ourselves is told too, and known by what it says."""


class Keeper:
    """One for the containers of an agent.

    Args:
        containers: what is kept.
        board: where it says what is wrong.
        interval_s: how often the kernel is read though it told no change.
    """

    def __init__(self, containers: Containers, board: Board, interval_s: float) -> None:
        self._containers = containers
        self._board = board
        self._interval_s = interval_s
        self._wake = asyncio.Event()
        self._heals = Heals()
        self._key = Identity("containers", containers.bridge_name)

    def wake(self) -> None:
        """Have a look soon: the network is another one."""
        self._wake.set()

    async def run(self, monitor: Monitor) -> None:
        """Keep until cancelled, which takes nothing away."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(monitor))
            tasks.create_task(self._keep())

    async def _listen(self, monitor: Monitor) -> None:
        while True:
            if any(map(self._matters, await monitor.read(self._containers.names, NOBODY))):
                self._wake.set()
            await asyncio.sleep(0)  # in a storm the next read has something at once

    def _matters(self, change: Change) -> bool:
        match change:
            case Overrun():
                return True
            case LinkChange(link, removed, _):
                return self._containers.is_link_drift(link, removed=removed)
            case ObjectChange(item, removed, _):
                return self._containers.is_item_drift(item, removed=removed)
            case SettingsChange():
                return self._containers.is_settings_drift()

    async def _keep(self) -> None:
        while True:
            problem = await self._round()
            said = problem or self._contest() or self._containers.left()
            self._board.note("containers", said)
            wait_s = RETRY_S if problem else self._interval_s
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                pass  # then the timer has a look
            # Two that both insist would keep each other and the kernel busy for ever.
            await asyncio.sleep(self._heals.due_s(time.monotonic()) or 0)
            self._wake.clear()

    async def _round(self) -> str:
        """Put right what is wrong; return why that fails, or an empty text."""
        try:
            healed = await self._containers.keep()
        except CniError as error:
            return str(error)
        now = time.monotonic()
        if healed:
            log.warning("put right: %s", ", ".join(healed))
            self._heals.note(self._key, now)
        self._heals.forget(now)
        return ""

    def _contest(self) -> str:
        if self._heals.due_s(time.monotonic()) is None:
            return ""
        return (
            f"somebody keeps changing {self._containers.bridge_name} or its ports, changed"
            f" {self._heals.count(self._key)} times in a minute: it is put right every"
            f" {Heals.PAUSE_S:g} s only"
        )
