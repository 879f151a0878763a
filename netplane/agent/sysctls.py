"""Keeps settings of the kernel as desired, and knows what they were before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from netplane.agent.report import Failure, PassLog
from netplane.netlink import sysctl
from netplane.netlink.objects import Sysctl


class Sysctls:
    """The settings that a reconciler keeps.

    Args:
        link: settings of this one go with it, so there is nothing to set back.
        namespace: a path; None is the one we are in.
        previous: as an earlier one had them at its end.
    """

    def __init__(self, link: str, namespace: str | None, previous: Mapping[str, str]) -> None:
        self.previous = dict(previous)
        """What each setting was before we first changed it."""
        self._link = link
        self._namespace = namespace
        self._right: set[Sysctl] = set()
        """What was right at the end of the last pass."""

    def keep(self, desired: Sequence[Sysctl], done: PassLog, *, remove: bool) -> None:
        """Write what is wrong; with `remove` set back what is not desired any more."""
        # Each is read when those before it are written: they may have changed it.
        for item, value in chain.from_iterable(self.wrong([item]) for item in desired):
            if done.must_wait(item):
                continue
            if value is None:
                done.failed.append(Failure(item, "there is no such setting"))
                continue
            if not self._write(item, done):
                continue
            if f"/{self._link}/" not in item.name:
                self.previous.setdefault(item.name, value)
            done.written.append(item)
            if item in self._right:
                done.note_heal(item)
        self._right = set(desired)

        kept = {item.name for item in desired}
        # The other way round: forwarding, which is last to come, is the first to go.
        for name, value in reversed(list(self.previous.items())):
            item = Sysctl(name, value)
            if not remove or name in kept:
                continue
            if name not in sysctl.read([name], self._namespace):
                del self.previous[name]  # its link is gone, and it with that
            elif self._write(item, done):
                del self.previous[name]
                done.removed.append(item)

    def wrong(self, desired: Sequence[Sysctl]) -> list[tuple[Sysctl, str | None]]:
        """Return those that are not as desired, with what they are."""
        found = sysctl.read([item.name for item in desired], self._namespace)
        return [
            (item, found.get(item.name))
            for item in desired
            if not item.is_met_by(found.get(item.name))
        ]

    def _write(self, item: Sysctl, done: PassLog) -> bool:
        try:
            sysctl.write(item.name, item.value, self._namespace)
        except OSError as error:
            done.failed.append(Failure(item, error.strerror or str(error)))
            return False
        return True
