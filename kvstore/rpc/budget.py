"""An allowance that comes back with time; nothing of protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Budget:
    """An allowance that comes back with time: for what is normal seldom and an attack often."""

    __slots__ = ("_burst", "_per_s", "_since_s", "_used")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._used = 0.0
        self._since_s = 0.0

    def spend(self, loop: asyncio.AbstractEventLoop, amount: int = 1) -> bool:
        """Use so much of it; False when not as much is left.

        Looks at the clock only at the first use and when the burst is used up.
        """
        if self._used + amount > self._burst:
            now = loop.time()
            self._used = max(0.0, self._used - (now - self._since_s) * self._per_s)
            self._since_s = now
            if self._used + amount > self._burst:
                return False
        elif not self._used:
            self._since_s = loop.time()  # nothing comes back for the time before the first use
        self._used += amount
        return True
