"""How an agent's process collects garbage: seldom, and never what came with its start."""

from __future__ import annotations

import gc

THRESHOLDS = (50_000, 20, 100)
"""Above the objects that a thousand peers take at once."""


def hold() -> None:
    """Call before imports. Nearly all that they make stays: to look for garbage is in vain."""
    gc.disable()


def settle() -> None:
    """Call once, after all imports.

    A collection of everything takes some 40 ms, and 1,000 peers that are programmed at once call
    for one or two: as long as the writing itself. Here it would find some 500 objects of 34,000.
    """
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
