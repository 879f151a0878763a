"""Watches the system's clock for jumps; nothing in a member is timed by it, but people are."""

from __future__ import annotations

import logging
import os

from kvstore.ports import Clock

log = logging.getLogger("kvstore.clock")

JUMP_NS = 1_000_000_000
"""Time services slew smaller errors and step larger ones."""

BEHIND_S = 60.0

ADVICE = (
    "elections, leases and timeouts do not depend on it, but the validity of certificates and the "
    "times in logs do; have a time service keep it"
)


class WallClock:
    """Compares the date with the monotonic clock; call `check` every second or so."""

    def __init__(self, clock: Clock) -> None:
        """Take the difference of now as right."""
        self._clock = clock
        self._offset_ns = clock.wall_ns() - clock.monotonic_ns()

    def check(self) -> float:
        """Log a jump since the last call and return its seconds, 0.0 if there was none."""
        offset_ns = self._clock.wall_ns() - self._clock.monotonic_ns()
        jump_ns = offset_ns - self._offset_ns
        self._offset_ns = offset_ns  # a slow drift never adds up to a jump
        if abs(jump_ns) < JUMP_NS:
            return 0.0
        jump_s = jump_ns / 1e9
        log.warning("the system clock jumped by %+.1f s, or the machine slept: %s", jump_s, ADVICE)
        return jump_s


def check_against(path: str, clock: Clock) -> float:
    """Log when the clock is behind the time a file was written, and return by how many seconds."""
    if not os.path.exists(path):
        return 0.0
    behind_s = os.path.getmtime(path) - clock.wall_ns() / 1e9
    if behind_s < BEHIND_S:
        return 0.0
    log.warning(
        "the system clock is %.0f s behind this member's last start; it jumped back, or it was "
        "wrong then: %s", behind_s, ADVICE,
    )  # fmt: skip
    return behind_s
