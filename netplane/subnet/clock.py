"""Time as an input, so that a test can own it."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Clock(Protocol):
    """Time as the subnet manager needs it."""

    def now_s(self) -> float:
        """Seconds since an arbitrary point; never goes back."""

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        """Return when the event is set, or after so many seconds."""


class LoopClock:
    """The running event loop's own clock."""

    def now_s(self) -> float:
        """As `Clock.now_s`."""
        return asyncio.get_running_loop().time()

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        """As `Clock.wait`."""
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return
