"""The key index: every key's revisions in memory, keys in order; no values and no storage here.

A key's history is one bytes object and never a Python container, since a million small containers
cost more memory than the keys themselves:

    fresh      the 17-byte revision key of its only put (created there, version 1)
    otherwise  16 bytes head (create revision and version of the newest life, zeros when deleted),
               then one 17-byte record per change, oldest first

A record is the revision key itself; a deletion has `t` in the place of `_`. A long history is a
bytearray that grows in place, else a hot key would cost its whole history on every put.

Live and deleted keys are kept in two sorted lists of blocks with counts (`SortedList`), so that
count, limit and paging at the current revision do not walk the range.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Final

from sortedcontainers import SortedList

from kvstore.mvcc.revision import pack_main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_RECORD: Final = 17
_HEAD: Final = 16
_TOMBSTONE: Final = 0x74
_LONG_BYTES: Final = _HEAD + 24 * _RECORD
"""Longer histories grow in place; below, a copy is cheaper than a bytearray's 100 bytes."""

_head: Final = struct.Struct(">QQ")
_pack_head: Final = _head.pack
_pack_head_into: Final = _head.pack_into
_unpack_head: Final = _head.unpack_from
_DELETED: Final = bytes(_HEAD)

History = bytes | bytearray


class Index:
    """Revisions of every key that has any, and the keys in order.

    A range is `key` inclusive to `end` exclusive; an empty `end` is no end.
    """

    def __init__(self) -> None:
        self.histories: dict[bytes, History] = {}

        self.live: SortedList[bytes] = SortedList()
        """Keys whose newest change is a put."""

        self.deleted: SortedList[bytes] = SortedList()
        """Keys whose newest change is a deletion that is not purged yet."""

    # changes

    def put(self, key: bytes, main: int, revision_key: bytes) -> tuple[int, int]:
        """Add a put; return the key's create revision and version after it."""
        histories = self.histories
        history = histories.get(key)
        if history is None:
            histories[key] = revision_key
            self.live.add(key)
            return main, 1
        length = len(history)
        if length == _RECORD:
            created = int.from_bytes(history[:8], "big")
            histories[key] = _pack_head(created, 2) + history + revision_key
            return created, 2
        created, version = _unpack_head(history)
        if version:
            version += 1
        else:
            created = main
            version = 1
            self.deleted.remove(key)
            self.live.add(key)
        if length < _LONG_BYTES:
            histories[key] = _pack_head(created, version) + history[_HEAD:] + revision_key
        else:
            if type(history) is bytes:
                histories[key] = history = bytearray(history)
            _pack_head_into(history, 0, created, version)
            history += revision_key  # in place, the dictionary holds the same bytearray
        return created, version

    def delete(self, key: bytes, revision_key: bytes) -> None:
        """Add a deletion of a live key; `revision_key` is that of a put, without the mark."""
        self.live.remove(key)
        self._add_tombstone(key, revision_key)

    def delete_range(self, key: bytes, end: bytes) -> list[bytes]:
        """Move the live keys of a range to the deleted ones and return them in order.

        The caller adds each one's tombstone with `bury` right after. One cut of the sorted list
        costs far less than as many removals.
        """
        live = self.live
        first = live.bisect_left(key)
        last = live.bisect_left(end) if end else len(live)
        if first >= last:
            return []
        keys = list(live.islice(first, last))
        if len(keys) > 8:
            del live[first:last]
        else:
            for doomed in keys:
                live.remove(doomed)
        return keys

    def bury(self, key: bytes, revision_key: bytes) -> None:
        """Add the tombstone of a key that `delete_range` returned."""
        self._add_tombstone(key, revision_key)

    def _add_tombstone(self, key: bytes, revision_key: bytes) -> None:
        mark = revision_key[:8] + b"t" + revision_key[9:]
        extend(self.histories, key, _DELETED, mark)
        self.deleted.add(key)

    # reads

    def current(self, key: bytes) -> bytes | None:
        """Return the revision key of the key's value now, None when it has none."""
        history = self.histories.get(key)
        if history is None:
            return None
        if len(history) == _RECORD:
            return history  # type: ignore[return-value]  # a fresh history is bytes
        if history[-9] == _TOMBSTONE:
            return None
        return bytes(history[-_RECORD:])

    def at(self, key: bytes, revision: int) -> bytes | None:
        """Return the revision key of the key's value at a revision, None when it had none."""
        history = self.histories.get(key)
        if history is None:
            return None
        position = _newest_at(history, revision)
        if position < 0 or history[position + 8] == _TOMBSTONE:
            return None
        return bytes(history[position : position + _RECORD])

    def newest_record(self, key: bytes, revision: int) -> bytes | None:
        """Return the 17-byte record of the key's last change up to a revision.

        A deletion's record has `t` in place of `_`. None when there is no such change.
        """
        history = self.histories.get(key)
        if history is None:
            return None
        position = _newest_at(history, revision)
        return None if position < 0 else bytes(history[position : position + _RECORD])

    def count(self, key: bytes, end: bytes) -> int:
        """Return the number of live keys in a range, without walking it."""
        return _between(self.live, key, end)

    def span(self, key: bytes, end: bytes) -> int:
        """Return the number of keys in a range, deleted ones included: what a walk would visit."""
        return _between(self.live, key, end) + _between(self.deleted, key, end)

    def keys(self, key: bytes, end: bytes, limit: int | None = None) -> list[bytes]:
        """Return the live keys of a range in order, at most `limit`."""
        found = self.live.irange(key, end or None, inclusive=(True, False))
        return list(found if limit is None else islice(found, limit))

    def last_keys(self, key: bytes, end: bytes, limit: int) -> list[bytes]:
        """Return the last `limit` live keys of a range, greatest first."""
        found = self.live.irange(key, end or None, inclusive=(True, False), reverse=True)
        return list(islice(found, limit))

    def all_keys(self, key: bytes, end: bytes, limit: int) -> list[bytes]:
        """Return up to `limit` keys of a range in order, deleted ones included."""
        live = self.keys(key, end, limit)
        if not self.deleted:
            return live
        deleted = list(
            islice(self.deleted.irange(key, end or None, inclusive=(True, False)), limit)
        )
        # Both runs are sorted, which is the case that sort merges in linear time.
        return sorted(live + deleted)[:limit]

    # compaction

    def obsolete(self, key: bytes, revision: int, limit: int) -> tuple[list[bytes], bool]:
        """Forget a key's changes that a compaction at `revision` makes unreadable.

        Kept is the newest change up to the revision, unless it is a deletion before it; all later
        ones are kept. At most `limit` are forgotten, oldest first, so that a long history is cut
        in several calls.

        Returns:
            The keys under which they are stored (tombstones with their mark), and whether more
            of this key are left.
        """
        history = self.histories.get(key)
        if history is None:
            return [], False
        start = 0 if len(history) == _RECORD else _HEAD
        position = _newest_at(history, revision)
        if position < 0:
            return [], False
        if history[position + 8] == _TOMBSTONE and history[position : position + 8] < pack_main(
            revision
        ):
            position += _RECORD
        count = (position - start) // _RECORD
        more = count > limit
        cut = start + min(count, limit) * _RECORD
        if cut == start:
            return [], False
        stored = [
            _stored_key(bytes(history[at : at + _RECORD])) for at in range(start, cut, _RECORD)
        ]
        self._cut(key, history, cut)
        return stored, more

    def _cut(self, key: bytes, history: History, cut: int) -> None:
        if cut == len(history):
            # Only a deletion ends a history, so the key is among the deleted.
            del self.histories[key]
            self.deleted.remove(key)
            return
        if type(history) is bytearray and len(history) - cut + _HEAD > _LONG_BYTES:
            del history[_HEAD:cut]
            return
        version = _unpack_head(history)[1]
        if version == 1 and len(history) - cut == _RECORD:
            self.histories[key] = bytes(history[cut:])
        else:
            self.histories[key] = bytes(history[:_HEAD] + history[cut:])

    # rebuild

    def load(self, histories: dict[bytes, History], gone: set[bytes]) -> None:
        """Replace everything by histories built elsewhere (`kvstore.mvcc.rebuild`).

        `gone` are the keys whose newest change is a deletion.
        """
        self.histories = histories
        live: Iterable[bytes] = histories
        if gone:
            live = (key for key in histories if key not in gone)
        self.live = SortedList(live)
        self.deleted = SortedList(gone)

    def records(self, key: bytes) -> Iterator[bytes]:
        """Yield the key's records, oldest first; for tests and checks."""
        history = bytes(self.histories.get(key, b""))
        for at in range(0 if len(history) == _RECORD else _HEAD, len(history), _RECORD):
            yield history[at : at + _RECORD]


def extend(histories: dict[bytes, History], key: bytes, head: bytes, record: bytes) -> None:
    """Add a record to a key's history and set its head; the general and slower form of `put`."""
    history = histories.get(key)
    if history is None:
        histories[key] = head + record
    elif len(history) == _RECORD:
        histories[key] = head + history + record
    elif len(history) < _LONG_BYTES:
        histories[key] = head + history[_HEAD:] + record
    else:
        if type(history) is bytes:
            histories[key] = history = bytearray(history)
        history[:_HEAD] = head  # type: ignore[index]
        history += record  # in place, the dictionary holds the same bytearray


def _between(keys: SortedList[bytes], start: bytes, end: bytes) -> int:
    last: int = keys.bisect_left(end) if end else len(keys)
    first: int = keys.bisect_left(start)
    return max(0, last - first)


def _stored_key(record: bytes) -> bytes:
    return record if record[8] != _TOMBSTONE else record[:8] + b"_" + record[9:] + b"t"


def _newest_at(history: History, revision: int) -> int:
    """Return the offset of the newest record up to a revision, -1 when there is none."""
    main = pack_main(revision)
    last = len(history) - _RECORD
    if history[last : last + 8] <= main:
        return last
    if last == 0:
        return -1
    count = bisect_right(
        range((last - _HEAD) // _RECORD),
        main,
        key=lambda n: bytes(history[_HEAD + n * _RECORD : _HEAD + n * _RECORD + 8]),
    )
    return _HEAD + (count - 1) * _RECORD if count else -1
