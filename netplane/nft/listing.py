"""What nft says of a table, in a form that can be compared: pure.

What is there is compared with what the same nft and kernel showed when it had just been written:
versions differ in how they show the same rule.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOLATILE = {"handle", "packets", "bytes"}
"""What differs between two tables that say the same."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One table."""

    objects: tuple[str, ...]
    """Table, chains, sets, rules and so on, in nft's order, without what is volatile."""
    members: Mapping[str, frozenset[str]]
    """Of sets and maps, in nft's words."""
    handles: tuple[int, ...] = ()
    """Of all objects but the table, in their order."""

    def is_untouched(self, made: int) -> bool:
        """Tell whether nothing came or went since the table was made, with `made` objects in it.

        Handles number what is made in a table and are never used again.
        """
        return sorted(self.handles) == list(range(1, made + 1))


def read(answer: dict[str, Any]) -> Listing:
    """Return the listing that an answer of nft to `list table` holds."""
    objects, handles, members = [], [], {}
    for entry in answer["nftables"]:
        for kind, found in entry.items():
            if kind == "metainfo":
                continue
            if kind != "table":
                handles.append(int(found.get("handle", 0)))
            if kind in {"set", "map"}:
                members[found["name"]] = frozenset(map(_member, found.get("elem", ())))
            objects.append(json.dumps({kind: _steady(found)}, sort_keys=True))
    return Listing(tuple(objects), members, tuple(handles))


def differences(wanted: Listing, found: Listing) -> list[str]:
    """Say in words what is missing, left over, another or in another order."""
    there, meant = Counter(found.objects), Counter(wanted.objects)
    missing = Counter(map(_words, (meant - there).elements()))
    extra = Counter(map(_words, (there - meant).elements()))
    other = missing & extra
    told = [f"{words} is another" for words in other.elements()]
    told += [f"{words} is missing" for words in (missing - other).elements()]
    told += [f"{words} is left over" for words in (extra - other).elements()]
    if not told and wanted.objects != found.objects:
        told.append("rules are in another order")
    for name, members in wanted.members.items():
        present = found.members.get(name, frozenset())
        told += [f"{item} is missing from {name}" for item in sorted(members - present)]
        told += [f"{item} is left over in {name}" for item in sorted(present - members)]
    return told


def _member(item: Any) -> str:
    """Return a member of a set as it is written; one with a comment or the like as something else.

    We write none like that, so its form does not matter.
    """
    match item:
        case str() | int():
            return str(item)
        case [key, value]:
            return f"{_member(key)} : {_member(value)}"
        case {"concat": parts}:
            return " . ".join(map(_member, parts))
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case _:
            return json.dumps(item, sort_keys=True)


def _steady(item: Any) -> Any:
    if isinstance(item, dict):
        return {
            key: _steady(value) for key, value in item.items() if key not in VOLATILE | {"elem"}
        }
    if isinstance(item, list):
        return [_steady(value) for value in item]
    return item


def _words(item: str) -> str:
    """Name an object: a rule by its comment, or else by all that it says."""
    [(kind, found)] = json.loads(item).items()
    if kind == "rule":
        said = f'"{found["comment"]}"' if "comment" in found else json.dumps(found.get("expr"))
        return f"rule {said} of chain {found['chain']}"
    return f"{kind} {found.get('name', '')}"
