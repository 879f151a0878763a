"""Which watched ranges contain a key: exact keys in a dict, ranges in a tree; no watchers here.

Ranges are half-open, `start` inclusive to `end` exclusive. Each distinct range is held once,
however many watchers share it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import Generic, TypeVar

T = TypeVar("T")


class Matcher(Generic[T]):
    """Distinct ranges, each with one item of the caller's."""

    def __init__(self) -> None:
        self._exact: dict[bytes, T] = {}
        self._ranges: dict[tuple[bytes, bytes | None], T] = {}
        self._tree: _Node[T] | None = None

        self._open: list[bytes] = []
        """Starts of the ranges without an end, in order: those up to a key all contain it."""

        self._priority = 0

    def __len__(self) -> int:
        return len(self._exact) + len(self._ranges)

    def get(self, start: bytes, end: bytes | None) -> T | None:
        """Return the item of exactly this range; `end` as for `add`."""
        return self._exact.get(start) if end == b"" else self._ranges.get((start, end))

    def add(self, start: bytes, end: bytes | None, item: T) -> None:
        """Add a range that is not there yet.

        Args:
            start: First key.
            end: Key after the last; empty for the single key `start`, None for no end.
            item: What `match` returns for keys in it.
        """
        assert self.get(start, end) is None
        if end == b"":
            self._exact[start] = item
            return
        self._ranges[start, end] = item
        if end is None:
            insort(self._open, start)
            return
        assert start < end
        # A fixed sequence of well-spread numbers (golden-ratio steps) and not drawn ones: the
        # simulator must see the same tree again.
        self._priority = (self._priority + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = (self._priority ^ (self._priority >> 31)) * 0xBF58476D1CE4E5B9
        self._tree = _insert(self._tree, _Node(start, end, item, mixed & 0xFFFFFFFFFFFFFFFF))

    def remove(self, start: bytes, end: bytes | None) -> None:
        """Remove a range that is there."""
        if end == b"":
            del self._exact[start]
            return
        del self._ranges[start, end]
        if end is None:
            del self._open[bisect_right(self._open, start) - 1]
        else:
            self._tree = _remove(self._tree, start, end)

    def match(self, key: bytes) -> list[T]:
        """Return the items of all ranges that contain `key`: O(log n) each, in no set order."""
        item = self._exact.get(key)
        found = [] if item is None else [item]
        if not self._ranges:
            return found
        if self._open:
            ranges = self._ranges
            for start in self._open[: bisect_right(self._open, key)]:
                found.append(ranges[start, None])  # noqa: PERF401 - extend builds a generator
        node = self._tree
        if node is None:
            return found
        stack: list[_Node[T]] = []
        while True:
            # Nothing in a subtree that ends before the key can contain it.
            if node is not None and node.end_max > key:
                if node.start <= key:
                    if node.end > key:
                        found.append(node.item)
                    if node.right is not None:
                        stack.append(node.right)
                node = node.left
            elif stack:
                node = stack.pop()
            else:
                return found


class _Node(Generic[T]):
    """A range in a treap: ordered by (start, end), heap-ordered by priority."""

    __slots__ = ("end", "end_max", "item", "left", "priority", "right", "start")

    def __init__(self, start: bytes, end: bytes, item: T, priority: int) -> None:
        self.start = start
        self.end = end
        self.item = item
        self.priority = priority
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None

        self.end_max = end
        """Greatest end in this subtree."""

    def update(self) -> None:
        """Recompute `end_max` after a child has changed."""
        end_max = self.end
        if self.left is not None and self.left.end_max > end_max:
            end_max = self.left.end_max
        if self.right is not None and self.right.end_max > end_max:
            end_max = self.right.end_max
        self.end_max = end_max


def _insert(tree: _Node[T] | None, node: _Node[T]) -> _Node[T]:
    if tree is None:
        return node
    if node.priority > tree.priority:
        node.left, node.right = _split(tree, node.start, node.end)
        node.update()
        return node
    if (node.start, node.end) < (tree.start, tree.end):
        tree.left = _insert(tree.left, node)
    else:
        tree.right = _insert(tree.right, node)
    tree.update()
    return tree


def _split(
    tree: _Node[T] | None, start: bytes, end: bytes
) -> tuple[_Node[T] | None, _Node[T] | None]:
    """Part a tree into what is before and what is after a range that it does not hold."""
    if tree is None:
        return None, None
    if (tree.start, tree.end) < (start, end):
        tree.right, after = _split(tree.right, start, end)
        tree.update()
        return tree, after
    before, tree.left = _split(tree.left, start, end)
    tree.update()
    return before, tree


def _remove(tree: _Node[T] | None, start: bytes, end: bytes) -> _Node[T] | None:
    assert tree is not None
    if tree.start == start and tree.end == end:
        return _merge(tree.left, tree.right)
    if (start, end) < (tree.start, tree.end):
        tree.left = _remove(tree.left, start, end)
    else:
        tree.right = _remove(tree.right, start, end)
    tree.update()
    return tree


def _merge(left: _Node[T] | None, right: _Node[T] | None) -> _Node[T] | None:
    """Join two trees of which the left one is wholly before the right one."""
    if left is None or right is None:
        return left or right
    if left.priority > right.priority:
        left.right = _merge(left.right, right)
        left.update()
        return left
    right.left = _merge(left, right.left)
    right.update()
    return right
