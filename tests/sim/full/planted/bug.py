"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Patch = tuple[Any, str, Any]
"""Where, which name, and what stands there during the hunt."""


@dataclass(frozen=True)
class FullBug:
    """One bug and what finding it may cost."""

    name: str
    layer: str
    imitates: str
    patches: tuple[Patch, ...]
    profile: str
    budget: int
    """Events within which a hunt must succeed."""

    off: frozenset[str] = frozenset()
    run_events: int = 2_500
    liveness: bool = False
    """Shows only when faults end: something does not come about any more."""

    slow: bool = False
    seeds: tuple[int, ...] = field(default=(1_000, 2_000))
    """First seeds of unrelated hunts."""
