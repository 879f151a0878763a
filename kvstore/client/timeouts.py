"""Checking the seconds that callers give; waits for nothing."""

from __future__ import annotations

import math
from typing import Final

SECONDS_MAX: Final = 1_000_000_000
"""Thirty years: what every clock, timer and wire format on the way can still count."""


def checked_s(name: str, value: float) -> float:
    """Return a number of seconds, which may be 0 or negative: a deadline that has passed.

    Raises ValueError for what is no such number, naming the argument.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number of seconds, not {value!r}")  # noqa: TRY004
    if math.isnan(value) or value > SECONDS_MAX:
        raise ValueError(
            f"{name} must be a number of seconds up to {SECONDS_MAX}, not {value}; to wait very "
            "long, pass a large number such as 86400"
        )
    return value


def positive_s(name: str, value: float) -> float:
    """As `checked_s`, for what must leave some time."""
    if checked_s(name, value) <= 0:
        raise ValueError(f"{name} must be positive, not {value}")
    return value
