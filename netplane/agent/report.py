"""What a pass over the kernel's objects did, for logs, metrics and whoever asks."""

from __future__ import annotations

import time
from dataclasses import dataclass

from netplane.netlink.objects import KernelObject


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be done."""

    item: KernelObject | None
    """None: reading what is there failed."""
    text: str
    """The kernel's, or ours where it is we who refuse."""

    def __str__(self) -> str:
        return f"{self.item}: {self.text}" if self.item is not None else self.text


@dataclass(frozen=True, slots=True)
class Contest:
    """An object that somebody else keeps changing; it is put right every 10 s only."""

    item: KernelObject
    heals: int
    """In the last minute."""
    writer: str
    """Who changed it last, as `port 4711 (ip)`; empty if the kernel does not say."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one pass did."""

    cause: str
    """`desired`, a kind of change, `overrun`, `timer` or `retry`."""
    written: tuple[KernelObject, ...]
    removed: tuple[KernelObject, ...]
    healed: tuple[KernelObject, ...]
    """Those of the above that were right before and that somebody had changed."""
    failed: tuple[Failure, ...]
    contested: tuple[Contest, ...]
    """Those that wait; see `Contest`."""
    milliseconds: float


class PassLog:
    """What one pass has done so far."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        self.written: list[KernelObject] = []
        self.removed: list[KernelObject] = []
        self.healed: list[KernelObject] = []
        self.failed: list[Failure] = []
        self.contested: list[Contest] = []
        self.started = time.perf_counter()

    def report(self) -> Report:
        """Return it, with the time it took until now."""
        return Report(
            self.cause,
            tuple(self.written),
            tuple(self.removed),
            tuple(self.healed),
            tuple(self.failed),
            tuple(self.contested),
            (time.perf_counter() - self.started) * 1000,
        )
