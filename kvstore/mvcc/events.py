"""What a change looks like to a watcher; matching watchers is `kvstore.mvcc.watch`'s matter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from kvstore.mvcc import keyvalue, revision

if TYPE_CHECKING:
    from collections.abc import Callable

PUT: Final = 0
DELETE: Final = 1


class Event(NamedTuple):
    """One change of one key."""

    kind: int
    """`PUT` or `DELETE`, the numbers of `mvccpb.Event.EventType`."""

    key: bytes

    kv: bytes
    """KeyValue bytes; of a deletion only key and mod_revision."""

    revision: int
    """Main revision, equal to the mod_revision in `kv`."""


# A NamedTuple's own constructor is a Python function; this is one C call, once per put.
new_event: Final[Callable[[tuple[int, bytes, bytes, int]], Event]] = partial(tuple.__new__, Event)

Revision = tuple[int, list[Event]]
"""A main revision and its events in the order of their sub revisions."""


def event_of(revision_key: bytes, record: bytes) -> Event:
    """Return the event that a stored record stands for."""
    main = revision.main_of(revision_key)
    key = keyvalue.key_of(record)
    if revision.is_tombstone(revision_key):
        return Event(DELETE, key, keyvalue.encode_deleted(key, main), main)
    return Event(PUT, key, record, main)
