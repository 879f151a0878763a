"""Finds out when the interface to the other hosts has become another; changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from netplane.agent.errors import InterfaceError
from netplane.agent.interface import ExternalInterface

log = logging.getLogger("netplane.agent")

SETTLE_S = 0.5
"""An address that is renewed, or an interface that is made anew, is gone for a moment only."""


class InterfaceWatch:
    """Looks for the interface anew whenever there is doubt about the one that we know.

    Args:
        look: chooses it as at the start, told what it was until now. Raises InterfaceError.
        external: the one that was chosen.
        on_move: called when `external` has become another.
    """

    def __init__(
        self,
        look: Callable[[ExternalInterface], Awaitable[ExternalInterface]],
        external: ExternalInterface,
        on_move: Callable[[], None],
    ) -> None:
        self.external = external
        """As it was seen last."""
        self._look = look
        self._on_move = on_move
        self._doubt = asyncio.Event()

    def doubt(self) -> None:
        """Say that it may be another by now."""
        self._doubt.set()

    async def run(self) -> None:
        """Look when there is doubt, until cancelled."""
        said = ""
        while True:
            await self._doubt.wait()
            await asyncio.sleep(SETTLE_S)
            self._doubt.clear()
            try:
                found = await self._look(self.external)
            except InterfaceError as error:
                # Until there is one again we stay with the old: what it lacks is on the board.
                if str(error) != said:
                    log.warning("%s", error)
                    said = str(error)
                continue
            said = ""
            # One that was made anew has another index; who uses that looks it up himself.
            if replace(found, index=0) != replace(self.external, index=0):
                self.external = found
                self._on_move()
