"""A set that goes from version to version, each of which can still be read; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

T = TypeVar("T")


class SetVersion(AbstractSet[T]):
    """One version of a set; nobody changes it.

    All versions share one set, which the newest has: of thousands of members few are others from
    one to the next, and to copy the rest takes longer than to write these into the kernel. Whoever
    still asks an older one gets an answer, in as much time as the set has members.
    """

    __slots__ = ("_came", "_gone", "_members", "_next")

    def __init__(self, members: Iterable[T] = ()) -> None:
        self._members = set(members)
        self._next: SetVersion[T] | None = None
        self._came: AbstractSet[T] = frozenset()
        """In the next, not in this one."""
        self._gone: AbstractSet[T] = frozenset()
        """In this one, not in the next."""

    def next(self, came: AbstractSet[T], gone: AbstractSet[T]) -> SetVersion[T]:
        """Return the version after this one, the newest.

        Args:
            came: none of it is in this one.
            gone: all of it is.
        """
        assert self._next is None, "there is a newer version"
        following = self._next = SetVersion()
        following._members, self._members = self._members, following._members
        following._members.difference_update(gone)
        following._members.update(came)
        self._came, self._gone = came, gone
        return following

    def whole(self) -> AbstractSet[T]:
        """Return the members, to be looked at before there is a newer version."""
        if self._next is None:
            return self._members
        # Back from the newest.
        version: SetVersion[T] = self
        steps = []
        while version._next is not None:
            steps.append((version._came, version._gone))
            version = version._next
        members = set(version.whole())
        for came, gone in reversed(steps):
            members -= came
            members |= gone
        return members

    def __contains__(self, member: object) -> bool:
        return member in (self._members if self._next is None else self.whole())

    def __iter__(self) -> Iterator[T]:
        return iter(self.whole())

    def __len__(self) -> int:
        return len(self.whole())

    @classmethod
    def _from_iterable(cls, members: Iterable[Any]) -> Any:
        return frozenset(members)
