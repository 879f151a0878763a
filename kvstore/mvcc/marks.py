"""The marks in table `meta` that say how far the stored data goes; no other tables here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgpack

if TYPE_CHECKING:
    from kvstore.ports import Change, Table, View

META_TABLE: Final[Table] = "meta"
_APPLIED: Final = b"applied"
_CONFIGURATION: Final = b"configuration"
_SCHEDULED: Final = b"compact/scheduled"
_FINISHED: Final = b"compact/finished"


@dataclass(frozen=True, slots=True)
class AppliedMark:
    """The log position that the stored data corresponds to."""

    index: int
    term: int

    configuration: bytes = b""
    """Membership in force at that position, encoded by the node; opaque here."""


class Marks:
    """The marks as last written into the store's buffer."""

    def __init__(self, applied: AppliedMark, scheduled: int, finished: int) -> None:
        self.applied = applied

        self.scheduled = scheduled
        """Revision of the last compaction accepted, -1 before the first."""

        self.finished = finished
        """Revision of the last compaction whose records are all removed. At most `scheduled`."""

    @classmethod
    def load(cls, view: View) -> Marks:
        """Read the marks; an empty store has those of index 0, term 0."""
        return cls(cls.applied_in(view), _number(view, _SCHEDULED), _number(view, _FINISHED))

    @staticmethod
    def applied_in(view: View) -> AppliedMark:
        """Return the applied mark stored in a view or backend."""
        stored = view.get(META_TABLE, _APPLIED)
        if stored is None:
            return AppliedMark(0, 0)
        index, term = msgpack.unpackb(stored)
        return AppliedMark(index, term, view.get(META_TABLE, _CONFIGURATION) or b"")

    def advance(self, applied: AppliedMark) -> list[Change]:
        """Move the applied mark; return what to write."""
        assert applied.index >= self.applied.index, "the applied index never goes back"
        changes: list[Change] = [
            (META_TABLE, _APPLIED, msgpack.packb((applied.index, applied.term)))
        ]
        if applied.configuration != self.applied.configuration:
            changes.append((META_TABLE, _CONFIGURATION, applied.configuration))
        self.applied = applied
        return changes

    def schedule(self, revision: int) -> Change:
        """Note an accepted compaction; return what to write."""
        self.scheduled = revision
        return META_TABLE, _SCHEDULED, b"%d" % revision

    def finish(self, revision: int) -> Change:
        """Note a completed purge; return what to write."""
        self.finished = revision
        return META_TABLE, _FINISHED, b"%d" % revision


def _number(view: View, key: bytes) -> int:
    stored = view.get(META_TABLE, key)
    return -1 if stored is None else int(stored)
