"""When to do what can wait, so that not all agents do it at one moment."""

from __future__ import annotations

import random


def spread(limit_s: float) -> float:
    """Return a pause of at least half of a limit, and at most all of it.

    Agents hear of a change together. Those on one machine that all put off for as long what follows
    it stand in each other's way then, and in that of the next change.
    """
    return limit_s * random.uniform(0.5, 1)  # noqa: S311 (no secret)
