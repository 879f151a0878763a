"""WatchResponse messages from parts that watchers share; no watchers and no store here.

A message is `head + tag + rest`: the header (shared by revision), the watch id (kept by the
watcher) and everything else (shared by all watchers with the same range and options). Fields stay
in ascending order, so the bytes are what protobuf itself would emit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from kvstore.mvcc import keyvalue
from kvstore.mvcc.events import DELETE
from kvstore.mvcc.keyvalue import varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvstore.mvcc.events import Event

Previous: TypeAlias = "Callable[[Event], bytes | None]"
"""Returns the KeyValue bytes that an event replaced; `Store.prev_kv`."""

NOPUT: Final = 1
NODELETE: Final = 2
PREV_KV: Final = 4
FRAGMENT: Final = 8
"""Bits of a watcher's options: those on which the shared bytes depend."""

CREATED: Final = b"\x18\x01"
CANCELED: Final = b"\x20\x01"
_MORE_FRAGMENTS: Final = b"\x38\x01"

BATCH_BYTES_MAX: Final = 512 * 1024
"""Events of several revisions share a response up to this; one revision is never split for it.
Python's gRPC clients receive 4 MiB at most unless told otherwise."""

_OVERHEAD_BYTES: Final = 80
"""Bound of what a response holds beside its events: header 44, watch id 11, flags."""


class WatchEvent:
    """An event on its way to watchers; its encodings are made once, when first needed."""

    __slots__ = ("_event", "_plain", "_with_previous", "deleted", "revision")

    def __init__(self, event: Event) -> None:
        self._event = event
        self.revision = event.revision
        self.deleted = event.kind == DELETE
        self._plain: bytes | None = None
        self._with_previous: bytes | None = None

    def encoded(self) -> bytes:
        """Return the event as an element of WatchResponse.events, without prev_kv."""
        plain = self._plain
        if plain is None:
            self._plain = plain = _event(self._event, b"")
        return plain

    def encoded_with(self, previous: Previous) -> bytes:
        """Return the event with prev_kv: the key's value one revision earlier, if it had one."""
        encoded = self._with_previous
        if encoded is None:
            event = self._event
            record = None
            # etcd gives none to a put that created the key, which after a deletion within the
            # same transaction is not the same as "the key did not exist before".
            if self.deleted or keyvalue.decode(event.kv).create_revision != event.revision:
                record = previous(event)
            if record is None:
                encoded = self.encoded()
            else:
                encoded = _event(event, b"\x1a" + varint(len(record)) + record)
            self._with_previous = encoded
        return encoded


class Piece(NamedTuple):
    """Events that go out in one response, or in its fragments, for all watchers of one kind."""

    last: int
    """Revision of the last event; the piece holds whole revisions only."""

    events: int
    """How many they are."""

    rests: list[bytes]
    """What follows head and tag in each message; several when it is fragmented."""


def head(header: bytes) -> bytes:
    """Return the header field; `header` is an encoded ResponseHeader of at most 127 bytes."""
    return bytes((0x0A, len(header))) + header


def tag(watch_id: int) -> bytes:
    """Return the watch_id field."""
    return b"\x10" + varint(watch_id) if watch_id else b""


def compacted(revision: int) -> bytes:
    """Return what ends a watcher that needs a compacted revision."""
    return CANCELED + b"\x28" + varint(revision)


def refused(reason: str) -> bytes:
    """Return what tells that a watcher was not created."""
    text = reason.encode()
    return CREATED + CANCELED + b"\x32" + varint(len(text)) + text


def pack(
    events: Iterable[WatchEvent],
    options: int,
    previous: Previous,
    fragment_bytes: int,
) -> list[Piece]:
    """Encode events for watchers with these options; none when the filters leave none.

    Args:
        events: In order; several of one revision stand together.
        options: Bits of the watchers' options.
        previous: Asked for prev_kv.
        fragment_bytes: Size at which a response is split for watchers that asked for it.
    """
    pieces: list[Piece] = []
    parts: list[bytes] = []
    parts_bytes = 0
    settled = 0  # parts of revisions before `last`; only there may the response end
    settled_bytes = 0
    settled_last = 0
    last = 0
    for event in events:
        if options & (NODELETE if event.deleted else NOPUT):
            continue
        encoded = event.encoded_with(previous) if options & PREV_KV else event.encoded()
        if event.revision != last:
            settled, settled_bytes, settled_last = len(parts), parts_bytes, last
            last = event.revision
        parts.append(encoded)
        parts_bytes += len(encoded)
        if parts_bytes > BATCH_BYTES_MAX and settled:
            # What is settled goes alone, and the revision that made it too large begins the next.
            rests = _rests(parts[:settled], options, fragment_bytes)
            pieces.append(Piece(settled_last, settled, rests))
            del parts[:settled]
            parts_bytes -= settled_bytes
            settled = 0
    if parts:
        pieces.append(Piece(last, len(parts), _rests(parts, options, fragment_bytes)))
    return pieces


def _rests(parts: list[bytes], options: int, fragment_bytes: int) -> list[bytes]:
    """Return the messages' ends: one, or the fragments for watchers that want them."""
    size_bytes = _OVERHEAD_BYTES + sum(map(len, parts)) if options & FRAGMENT else 0
    if size_bytes < fragment_bytes:
        return [b"".join(parts)]
    rests = []
    begin = 0
    size_bytes = _OVERHEAD_BYTES
    for position, part in enumerate(parts):
        size_bytes += len(part)
        if size_bytes >= fragment_bytes and position > begin:
            rests.append(_MORE_FRAGMENTS + b"".join(parts[begin:position]))
            begin = position
            size_bytes = _OVERHEAD_BYTES + len(part)
    rests.append(b"".join(parts[begin:]))
    return rests


def _event(event: Event, previous_field: bytes) -> bytes:
    # Event.type is left out for a put, as it is zero.
    kind = b"\x08\x01\x12" if event.kind == DELETE else b"\x12"
    length = varint(len(event.kv))
    inner = len(kind) + len(length) + len(event.kv) + len(previous_field)
    return b"".join((b"\x5a", varint(inner), kind, length, event.kv, previous_field))
