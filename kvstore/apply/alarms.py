"""The replicated alarms, stored in table `meta`; what they forbid is the applier's matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.ports import View

NONE: Final[int] = rpc_pb2.NONE
NOSPACE: Final[int] = rpc_pb2.NOSPACE
CORRUPT: Final[int] = rpc_pb2.CORRUPT

Alarm = tuple[int, int]
"""Alarm type and member id, so that they sort by type."""

_TABLE: Final = "meta"
_PREFIX: Final = b"alarm/"
_PREFIX_END: Final = b"alarm0"


class Alarms:
    """Active alarms, the same on every member.

    Args:
        write: Puts a record into the store's write buffer: table, key, value or None to delete.
    """

    def __init__(self, write: Callable[[str, bytes, bytes | None], None]) -> None:
        self.active: set[Alarm] = set()
        self.nospace = False
        self.corrupt = False
        self._write = write

    def restore(self, view: View) -> None:
        """Replace everything by what is stored in `view`."""
        self.active = set()
        for key, _ in view.scan(_TABLE, _PREFIX, _PREFIX_END):
            alarm, member = key[len(_PREFIX) :].split(b"/")
            self.active.add((int(alarm), int(member, 16)))
        self._refresh()

    def activate(self, alarm: int, member: int) -> list[Alarm]:
        """Raise an alarm; return it, also when it was active already. NONE does nothing."""
        if alarm == NONE:
            return []
        if (alarm, member) not in self.active:
            self.active.add((alarm, member))
            self._write(_TABLE, _key(alarm, member), b"")
            self._refresh()
        return [(alarm, member)]

    def deactivate(self, alarm: int, member: int) -> list[Alarm]:
        """Clear alarms and return those that were active.

        Args:
            alarm: Type to clear; NONE covers every type.
            member: Member whose alarm to clear; 0 covers every member.
        """
        cleared = [
            active
            for active in sorted(self.active)
            if alarm in (NONE, active[0]) and member in (0, active[1])
        ]
        for active in cleared:
            self.active.remove(active)
            self._write(_TABLE, _key(*active), None)
        self._refresh()
        return cleared

    def get(self, alarm: int) -> list[Alarm]:
        """Return the active alarms of a type in order; NONE covers every type."""
        return sorted(active for active in self.active if alarm in (NONE, active[0]))

    def _refresh(self) -> None:
        self.nospace = any(alarm == NOSPACE for alarm, _ in self.active)
        self.corrupt = any(alarm == CORRUPT for alarm, _ in self.active)


def _key(alarm: int, member: int) -> bytes:
    return b"%s%d/%016x" % (_PREFIX, alarm, member)
