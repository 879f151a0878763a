"""Ranges with every option, whole or in slices; reads the index and the buffer, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from kvstore.mvcc import keyvalue
from kvstore.mvcc.check import check_range
from kvstore.mvcc.errors import Compacted, FutureRevision
from kvstore.mvcc.results import RangeResult
from kvstore.mvcc.revision import pack_main

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from kvstore.mvcc.buffer import WriteBuffer
    from kvstore.mvcc.index import Index
    from kvstore.pb import rpc_pb2

SLICE_KEYS: Final = 500
SLICE_BYTES: Final = 1 << 20
"""A slice ends at either bound: a millisecond or two of the loop."""

_FROM_KEY: Final = b"\x00"
_KEY: Final = 0
_NONE: Final = 0
_DESCEND: Final = 2

_SORT_VALUE: Final[dict[int, Callable[[bytes], int | bytes]]] = {
    0: keyvalue.key_of,
    1: lambda record: keyvalue.decode(record).version,
    2: lambda record: keyvalue.decode(record).create_revision,
    3: lambda record: keyvalue.decode(record).mod_revision,
    4: lambda record: keyvalue.decode(record).value,
}


class Readable(Protocol):
    """What a range needs of the store."""

    index: Index
    buffer: WriteBuffer
    revision: int
    compacted: int


def resolve(store: Readable, revision: int) -> int:
    """Return the revision to read for the one asked; zero and below mean the current.

    Raises:
        FutureRevision, Compacted: It cannot be read.
    """
    if revision > store.revision:
        raise FutureRevision(revision, store.revision)
    if revision <= 0:
        return store.revision
    if revision < store.compacted:
        raise Compacted(revision, store.compacted)
    return revision


def read(store: Readable, request: rpc_pb2.RangeRequest) -> RangeResult:
    """Answer a range at once.

    Raises:
        KeyNotProvided, InvalidSort, FutureRevision, Compacted: As named.
    """
    check_range(request)
    if request.range_end:
        slices = RangeSlices(store, request)
        kvs: list[bytes] = []
        for part in slices:
            kvs += part
        return RangeResult(kvs, slices.count, slices.revision, more=slices.more)
    asked = request.revision
    if asked == 0:
        revision_key = store.index.current(request.key)
    else:
        asked = resolve(store, asked)
        revision_key = store.index.at(request.key, asked)
    if revision_key is None:
        return RangeResult([], 0, store.revision)
    if request.count_only:
        return RangeResult([], 1, store.revision)
    record = store.buffer.record(revision_key)
    keep = _filter(request)
    if keep is not None and not keep(record):
        return RangeResult([], 1, store.revision)
    if request.keys_only:
        record = keyvalue.without_value(record)
    return RangeResult([record], 1, store.revision)


class RangeSlices:
    """A range at a pinned revision, a slice at a time, so that others run in between.

    Iterate to get lists of KeyValue bytes (some may be empty: work went on but there is nothing to
    hand out yet). After the end `count` and `more` are valid. Close it when abandoned; the store
    holds back the purge of compacted revisions until then.

    Raises:
        KeyNotProvided, InvalidSort, FutureRevision, Compacted: From the constructor.
    """

    def __init__(
        self,
        store: Readable,
        request: rpc_pb2.RangeRequest,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        check_range(request)
        self._store = store
        self._request = request
        self._on_close = on_close
        self._pinned = resolve(store, request.revision)

        self.revision = store.revision
        """The store's revision at the start: the header's revision."""

        self.count = 0
        self.more = False
        end = request.range_end
        self._key: bytes = request.key
        self._end: bytes = b"" if end == _FROM_KEY else end or self._key + b"\x00"
        # The count at the current revision costs nothing now and much once the store moves on.
        self._known_count = (
            store.index.count(self._key, self._end) if self._pinned == store.revision else None
        )
        self._steps = self._run()

    def __iter__(self) -> Iterator[list[bytes]]:
        return self

    def __next__(self) -> list[bytes]:
        try:
            return next(self._steps)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop; more calls do nothing."""
        self._steps.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def _run(self) -> Generator[list[bytes], None, None]:
        request = self._request
        if request.count_only:
            self.count = yield from self._counted()
            return
        limit = max(0, request.limit)
        keep = _filter(request)
        order, target = request.sort_order, request.sort_target
        if target == _KEY and order == _DESCEND and keep is None and self._is_newest():
            yield from self._run_backwards(limit)
            return
        if target == _KEY and order != _DESCEND:
            yield from self._run_in_order(limit, keep)
            return
        # An order other than the keys': everything is read before anything is handed out. With a
        # target but no order etcd has cut to limit + 1 keys before it sorts, and so do we.
        cut_first = order == _NONE and keep is None and limit > 0
        found: list[bytes] = []
        for part in self._records(limit + 1 if cut_first else None):
            found += part if keep is None else [record for record in part if keep(record)]
            yield []
        found.sort(key=_SORT_VALUE[target], reverse=order == _DESCEND)
        if limit and len(found) > limit:
            self.more = True
            del found[limit:]
        self.count = yield from self._counted()
        yield from self._handed_out(found)

    def _run_in_order(
        self, limit: int, keep: Callable[[bytes], bool] | None
    ) -> Generator[list[bytes], None, None]:
        left = limit
        matched = 0
        for part in self._records(limit + 1 if limit and keep is None else None):
            found = part if keep is None else [record for record in part if keep(record)]
            matched += len(found)
            if limit and len(found) > left:
                self.more = True
                yield from self._handed_out(found[:left])
                break
            left -= len(found)
            yield from self._handed_out(found)
        else:
            if keep is None and self._known_count is None:
                self._known_count = matched
        self.count = yield from self._counted()

    def _run_backwards(self, limit: int) -> Generator[list[bytes], None, None]:
        self.count = yield from self._counted()
        store = self._store
        size = self.count if not limit else min(limit, self.count)
        self.more = size < self.count
        # The keys alone, at once: a slice of the sorted list, no walk.
        keys = store.index.last_keys(self._key, self._end, size)
        for first in range(0, size, SLICE_KEYS):
            found = []
            for key in keys[first : first + SLICE_KEYS]:
                revision_key = store.index.at(key, self._pinned)
                assert revision_key is not None
                found.append(store.buffer.record(revision_key))
            yield from self._handed_out(found)

    def _handed_out(self, records: list[bytes]) -> Generator[list[bytes], None, None]:
        if self._request.keys_only:
            records = [keyvalue.without_value(record) for record in records]
        if len(records) <= SLICE_KEYS:
            yield records
            return
        for first in range(0, len(records), SLICE_KEYS):
            yield records[first : first + SLICE_KEYS]

    def _is_newest(self) -> bool:
        return self._pinned == self._store.revision

    def _records(self, limit: int | None) -> Iterator[list[bytes]]:
        """Yield the records of the range at the pinned revision in key order, in slices."""
        store = self._store
        key, pinned = self._key, self._pinned
        left = limit
        while left is None or left > 0:
            step = SLICE_KEYS
            index = store.index
            find: Callable[[bytes], bytes | None]
            if self._is_newest():
                step = SLICE_KEYS if left is None else min(SLICE_KEYS, left)
                keys = index.keys(key, self._end, step)
                find = index.current
            else:
                keys = index.all_keys(key, self._end, step)
                find = _finder(index, pinned)
            found: list[bytes] = []
            size_bytes = 0
            walked = 0
            for name in keys:
                revision_key = find(name)
                walked += 1
                if revision_key is None:
                    continue
                record = store.buffer.record(revision_key)
                found.append(record)
                size_bytes += len(record)
                if size_bytes > SLICE_BYTES or len(found) == left:
                    break
            if left is not None:
                left -= len(found)
            yield found
            if walked == len(keys) and walked < step:
                return
            key = keys[walked - 1] + b"\x00"

    def _counted(self) -> Generator[list[bytes], None, int]:
        """Return the number of keys at the pinned revision, yielding between slices of work."""
        if self._known_count is not None:
            return self._known_count
        store = self._store
        if store.revision - self._pinned < store.index.span(self._key, self._end):
            return (yield from self._counted_back())
        count = 0
        key, pinned = self._key, self._pinned
        while True:
            keys = store.index.all_keys(key, self._end, 4 * SLICE_KEYS)
            at = store.index.at
            count += sum(at(name, pinned) is not None for name in keys)
            if len(keys) < 4 * SLICE_KEYS:
                return count
            key = keys[-1] + b"\x00"
            yield []

    def _counted_back(self) -> Generator[list[bytes], None, int]:
        """Count now and undo the changes since the pinned revision: cheap for recent revisions."""
        store = self._store
        newest, pinned = store.revision, self._pinned
        start, end = self._key, self._end
        at = store.index.at
        count = store.index.count(start, end)
        seen: set[bytes] = set()
        changes = store.buffer.scan(pack_main(pinned + 1), pack_main(newest + 1))
        for number, (_, record) in enumerate(changes):
            key = keyvalue.key_of(record)
            if key >= start and (not end or key < end) and key not in seen:
                seen.add(key)
                count += (at(key, pinned) is not None) - (at(key, newest) is not None)
            if number % (2 * SLICE_KEYS) == 2 * SLICE_KEYS - 1:
                yield []
        return count


def _finder(index: Index, revision: int) -> Callable[[bytes], bytes | None]:
    at = index.at
    return lambda key: at(key, revision)


def _filter(request: rpc_pb2.RangeRequest) -> Callable[[bytes], bool] | None:
    """Return the test for the revision bounds of a request, None when it has none."""
    mod_min, mod_max = request.min_mod_revision, request.max_mod_revision
    created_min, created_max = request.min_create_revision, request.max_create_revision
    if not (mod_min or mod_max or created_min or created_max):
        return None

    def keep(record: bytes) -> bool:
        fields = keyvalue.decode(record)
        return not (
            (mod_min and fields.mod_revision < mod_min)
            or (mod_max and fields.mod_revision > mod_max)
            or (created_min and fields.create_revision < created_min)
            or (created_max and fields.create_revision > created_max)
        )

    return keep


def weight(store: Readable, request: rpc_pb2.RangeRequest) -> int:
    """Return a bound of the keys that a range must look at."""
    end = request.range_end
    if not end:
        return 1
    end = b"" if end == _FROM_KEY else end
    span = store.index.span(request.key, end)
    if request.revision <= 0 or request.revision == store.revision:
        if request.count_only:
            return 1
        if request.limit > 0 and request.sort_order == _NONE and _filter(request) is None:
            return min(span, request.limit + 1)
    return span
