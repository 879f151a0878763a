"""Whether another network than the programmed one may be gone on with.

Not at once where the registry seems to have lost its memory: it may be a wrong one, or an older
copy with an older configuration, and to go on with that would take every peer away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from netplane.subnet.registry import Head
from netplane.subnet.regress import Known, step_back


class Doubt:
    """One for the start of an agent.

    Args:
        known: what was gone by before; None: nothing.
        grace_s: for how long another network is held off, from the first time it is seen.
    """

    def __init__(self, known: Known | None, grace_s: float) -> None:
        self._known = known
        self._grace_s = grace_s
        self._until_s: float | None = None
        self._accepted = asyncio.Event()

    def reason(self, head: Head) -> str:
        """Say by what the registry betrays that it is not the one that was known; or "" ."""
        if self._known is None or not head.cluster_id or self._accepted.is_set():
            return ""
        return step_back(self._known, head.cluster_id, head.revision) or self._known.doubt

    def holds(self) -> bool:
        """Tell whether another network has still to wait."""
        if self._until_s is None:
            self._until_s = time.monotonic() + self._grace_s
        return not self._accepted.is_set() and time.monotonic() < self._until_s

    async def wait(self, longest_s: float) -> None:
        """Wait until it is accepted, the time is over or it is worth another look."""
        assert self._until_s is not None
        left_s = max(0.0, self._until_s - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left_s, longest_s)):
                await self._accepted.wait()

    def accept(self) -> None:
        """Believe the registry."""
        self._accepted.set()
