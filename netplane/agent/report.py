"""What a pass over the kernel's objects did, for logs, metrics and whoever asks."""

from __future__ import annotations

import errno
import ipaddress
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netplane.netlink.connection import NETLINK_ROUTE
from netplane.netlink.heals import Heals
from netplane.netlink.kernel import UNKNOWN, Refusal
from netplane.netlink.namespace import inside
from netplane.netlink.objects import Identity, KernelObject, Route, identity
from netplane.udp.sockets import sockets_of

LINES_MAX = 5
"""Of one kind in the log, in one pass."""

log = logging.getLogger(__name__)


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
    """Who changed it last, see `writer_name`; empty if the kernel does not say."""


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

    def __init__(self, cause: str, heals: Heals) -> None:
        self.cause = cause
        self.fights: list[str] = []
        """Of objects that are contested from now on, for the log."""
        self.lost = False
        """An answer is: what became of a write is not known."""
        self._heals = heals
        self.written: list[KernelObject] = []
        self.removed: list[KernelObject] = []
        self.healed: list[KernelObject] = []
        self.failed: list[Failure] = []
        self.contested: dict[Identity, Contest] = {}
        """One of each, though what is in its place is to be removed first."""
        self.started = time.perf_counter()

    def report(self) -> Report:
        """Return it, with the time it took until now."""
        return Report(
            self.cause,
            tuple(self.written),
            tuple(self.removed),
            tuple(self.healed),
            tuple(self.failed),
            tuple(self.contested.values()),
            (time.perf_counter() - self.started) * 1000,
        )

    def must_wait(self, item: KernelObject) -> bool:
        """Tell whether an object has to wait because somebody else keeps changing it."""
        key = identity(item)
        if not self._heals.held(key, time.monotonic()):
            return False
        self.contested[key] = Contest(
            item, self._heals.count(key), self._heals.writers.get(key, "")
        )
        return True

    def note_heal(self, item: KernelObject) -> None:
        """Count that an object which was right had to be put right."""
        self.healed.append(item)
        key = identity(item)
        if self._heals.note(key, time.monotonic()):
            self.fights.append(
                f"{item} was changed {self._heals.count(key)} times within a minute, last by"
                f" {self._heals.writers.get(key) or 'a writer that the kernel does not name'}; from"
                f" now on it is put right every {self._heals.PAUSE_S:g} s only. Find who writes it"
                " and tell it to leave that alone"
            )

    def note_refusal(self, refusal: Refusal, rival: Route | None = None) -> None:
        """Note what the kernel refused to write, and the route of others that is why."""
        item, text = refusal.change.item, refusal.text
        self.lost = self.lost or refusal.code in UNKNOWN
        if isinstance(item, Route) and (rival is not None or refusal.code == errno.EEXIST):
            covers = rival is not None and rival.prefix_len < item.prefix_len
            text += f"; a route that is not ours is in its {'way' if covers else 'place'}: "
            text += f"{rival}; " if rival is not None else ""
            text += "remove it, or give --adopt-flannel if Flannel has made it"
        if refusal.code == errno.ENETUNREACH and isinstance(item, Route) and item.gateway:
            gateway = ipaddress.ip_address(item.gateway)
            text += f"; make a route that says where it is: ip route add {gateway} dev {item.link}"
        if refusal.code == errno.EPERM:
            # Root of a container may be anything but this.
            text += "; the agent needs the capability CAP_NET_ADMIN, so give it to its container"
        self.failed.append(Failure(item, text))


def warn(texts: Sequence[str]) -> None:
    """Log what operators should know; of a thousand routes that share one trouble, a few."""
    for text in texts[:LINES_MAX]:
        log.warning("%s", text)
    if len(texts) > LINES_MAX:
        log.warning("... and %d more like these", len(texts) - LINES_MAX)


def writer_name(port: int, namespace: str | None) -> str:
    """Return who has a netlink port in a namespace; "" for none.

    By custom a process's first one is its id, though as its own PID namespace has it: the process
    that we know by this id is named only if it holds the very socket.
    """
    if not port:
        return ""
    try:
        held = {inode for _, inode in sockets_of(port)}
        if not held.isdisjoint(inside(namespace, lambda: _inodes(port))):
            return f"process {port} ({Path(f'/proc/{port}/comm').read_text().strip()})"
    except OSError:
        pass  # it has ended, or is not ours to see
    return f"netlink port id {port}"


def _inodes(port: int) -> list[int]:
    """Return the sockets with a port in this thread's network namespace."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()
    rows = (line.split() for line in lines[1:])
    return [
        int(inode)
        for _, protocol, has, *_, inode in rows
        if (protocol, has) == (str(NETLINK_ROUTE), str(port))
    ]
