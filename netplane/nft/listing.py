"""What nft says of a table, in a form that can be compared: pure.

What is there is compared with what the same nft and kernel showed when it had just been written:
versions differ in how they show the same rule.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from netplane.nft.rules import VTEPS

VOLATILE = {"handle", "packets", "bytes"}
"""What differs between two tables that say the same."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One table."""

    objects: tuple[str, ...]
    """Table, chains, sets, rules and so on, in nft's order, without what is volatile."""
    vteps: frozenset[str]
    handles: tuple[int, ...]
    """Of all of them but the table, in the order of `objects`."""

    @property
    def is_untouched(self) -> bool:
        """Tell whether nothing was added to or taken from the table since it was made at once.

        Handles number what is made in a table and are never used again.
        """
        return sorted(self.handles) == list(range(1, len(self.handles) + 1))


def read(answer: dict[str, Any]) -> Listing:
    """Return the listing that an answer of nft to `list table` holds."""
    objects, handles = [], []
    vteps: frozenset[str] = frozenset()
    for entry in answer["nftables"]:
        for kind, found in entry.items():
            if kind == "metainfo":
                continue
            if kind != "table":
                handles.append(int(found.get("handle", 0)))
            if kind == "set" and found["name"] == VTEPS:
                vteps = frozenset(map(_element, found.pop("elem", ())))
            objects.append(json.dumps({kind: _steady(found)}, sort_keys=True))
    return Listing(tuple(objects), vteps, tuple(handles))


def differences(
    wanted: tuple[str, ...], vteps: frozenset[str], found: Listing | None, table: str
) -> list[str]:
    """Say in words what is missing from a table, left over in it, or in another order."""
    if found is None:
        return [f"table ip {table} is missing"]
    there, meant = Counter(found.objects), Counter(wanted)
    missing = Counter(map(_words, (meant - there).elements()))
    extra = Counter(map(_words, (there - meant).elements()))
    other = missing & extra
    told = [f"{words} is another" for words in other.elements()]
    told += [f"{words} is missing" for words in (missing - other).elements()]
    told += [f"{words} is left over" for words in (extra - other).elements()]
    if not told and wanted != found.objects:
        told.append(f"the rules of table ip {table} are in another order")
    told += [f"host {item} is missing from set {VTEPS}" for item in sorted(vteps - found.vteps)]
    told += [f"host {item} is left over in set {VTEPS}" for item in sorted(found.vteps - vteps)]
    return told


def _element(item: Any) -> str:
    # One with a comment or the like is an object: nothing that we have written.
    return item if isinstance(item, str) else json.dumps(item, sort_keys=True)


def _steady(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _steady(value) for key, value in item.items() if key not in VOLATILE}
    if isinstance(item, list):
        return [_steady(value) for value in item]
    return item


def _words(item: str) -> str:
    """Name an object: a rule by its comment, or else by all that it says."""
    [(kind, found)] = json.loads(item).items()
    if kind == "rule":
        said = f'"{found["comment"]}"' if "comment" in found else json.dumps(found.get("expr"))
        return f"rule {said} of chain {found['chain']}"
    return f"{kind} {found['name']}"
