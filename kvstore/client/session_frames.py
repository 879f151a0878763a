"""Frames of a session (docs/session.md) taken apart, and items before they leave; no state."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from kvstore.pb import session_pb2

FORMAT: Final = 1

MALFORMED = (ValueError, TypeError, LookupError, msgpack.UnpackException)
"""What taking apart something that is no frame raises. The session then ends as if it broke."""

TURN_ITEMS: Final = 128
"""Answers taken in one turn of the loop: those who got theirs send their next operations while the
rest is taken, so client and server work at the same time."""

_CALL = session_pb2.CALL
_PIPELINE = session_pb2.PIPELINE
_PUTS = session_pb2.PUTS
_WRITTEN = session_pb2.WRITTEN

_HELLO_NUMBERS = ("frame_bytes", "operations", "bytes")
_HELLO_NUMBERS_LATER = ("part_bytes", "puts")
"""Those that servers of earlier releases leave out."""


def read_hello(items: list[Any]) -> dict[str, Any]:
    """Return what the server's first frame says. Raises one of `MALFORMED`."""
    if items[0] != FORMAT:
        raise ValueError(f"sessions of format {items[0]}")
    kind, hello = items[1]
    paths = all(type(path) is str for path in hello["methods"])
    numbers = all(type(hello[name]) is int for name in _HELLO_NUMBERS)
    later = all(type(hello.get(name, 0)) is int for name in _HELLO_NUMBERS_LATER)
    if kind != session_pb2.HELLO or not (paths and numbers and later):
        raise ValueError("it makes no sense")
    found: dict[str, Any] = hello
    return found


def turns(items: tuple[Any, ...], operations_max: int) -> list[list[tuple[Any, ...]]]:
    """Cut the items of a frame into those of one turn of the loop each, at least one turn.

    Raises one of `MALFORMED`, also when more puts are done than `operations_max`.
    """
    turn: list[tuple[Any, ...]] = []
    found, size = [turn], 0
    for item in items[1:]:
        if size == TURN_ITEMS:
            found.append(turn := [])
            size = 0
        if item[0] != _WRITTEN:
            turn.append(item)
            size += 1
            continue
        _, call_id, revision, count = item
        if not 0 < count <= operations_max:
            raise ValueError("more puts are done than there can be")
        while size + count > TURN_ITEMS:
            part = TURN_ITEMS - size
            turn.append((_WRITTEN, call_id, revision, part))
            found.append(turn := [])
            size, call_id, revision, count = 0, call_id + part, revision + part, count - part
        turn.append((_WRITTEN, call_id, revision, count))
        size += count
    return found


def without(item: tuple[Any, ...], ids: set[int]) -> list[tuple[Any, ...]]:
    """Return what is left of an item without these operations, of which none was sent."""
    kind = item[0]
    if kind != _PUTS:
        # A pipeline's operations are late together.
        return [] if kind in {_CALL, _PIPELINE} and item[1] in ids else [item]
    _, first_id, left_ms, flags, payloads = item
    rest: list[tuple[Any, ...]] = []
    for call_id, payload in enumerate(payloads, first_id):
        if call_id in ids:
            continue
        if rest and rest[-1][1] + len(rest[-1][4]) == call_id:
            rest[-1][4].append(payload)
        else:
            rest.append((_PUTS, call_id, left_ms, flags, [payload]))
    return rest
