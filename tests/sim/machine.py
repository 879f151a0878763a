"""The replicated state machine of the core-level simulator: lists of unique values under keys.

Knows nothing of Raft. What the real store will be later: apply in order, image, restore.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.sim.linear import PUT, Value

_HEADER = struct.Struct("<BHI")
_WRITE = struct.Struct("<HBI")

Write = tuple[int, int, int]
"""Key, PUT or APPEND, value."""

Origin = tuple[int, int, int]
"""Member that took the writes, its incarnation, the sequence number of the first."""


def encode(origin: Origin, writes: Iterable[Write]) -> bytes:
    """Pack a batch of writes into the data of one entry."""
    return _HEADER.pack(*origin) + b"".join([_WRITE.pack(*write) for write in writes])


@functools.lru_cache(maxsize=4096)
def decode(data: bytes) -> tuple[Origin, tuple[Write, ...]]:
    """Undo `encode`. Every member decodes the same entry at about the same time."""
    origin = _HEADER.unpack_from(data)
    return origin, tuple(_WRITE.iter_unpack(data[_HEADER.size :]))  # type: ignore[arg-type,return-value]


@dataclass(slots=True)
class Image:
    """A machine at one index: what a durable store holds and a snapshot carries."""

    index: int = 0
    term: int = 0
    configuration: Any = None
    digest: int = 0
    lists: dict[int, Value] = field(default_factory=dict)


class Machine:
    """The live state of one process."""

    __slots__ = ("configuration", "digest", "index", "lists", "term")

    def __init__(self, image: Image) -> None:
        self.restore(image)

    def restore(self, image: Image) -> None:
        """Become the image."""
        self.index = image.index
        self.term = image.term
        self.configuration = image.configuration
        self.digest = image.digest
        self.lists = dict(image.lists)

    def image(self) -> Image:
        """Copy the whole state."""
        return Image(self.index, self.term, self.configuration, self.digest, dict(self.lists))

    def apply(self, writes: Iterable[Write]) -> list[Value]:
        """Apply one entry's writes; the caller moves `index` and `term`."""
        lists = self.lists
        results = []
        digest = self.digest
        for key, kind, value in writes:
            before = lists.get(key, ())
            if kind == PUT:
                lists[key] = (value,)
                results.append(before)
            else:
                lists[key] = after = (*before, value)
                results.append(after)
            # Order matters in it, so it tells two histories apart, not only two states.
            digest = (digest * 1_000_003 + key * 65_537 + value) & 0xFFFF_FFFF_FFFF
        self.digest = digest
        return results
