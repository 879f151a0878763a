"""What nft says of a table, in a form that can be compared: pure.

What is there is compared with what the same nft and kernel showed when it had just been written:
versions differ in how they show the same rule. Text and not JSON, which leaves out some of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

HANDLE = re.compile(r" # handle (\d+)$")
ELEMENTS = "elements = {"


@dataclass(frozen=True, slots=True)
class Listing:
    """One table."""

    lines: tuple[str, ...]
    """What it says, without members; each line after the block that it stands in."""
    members: Mapping[str, frozenset[str]]
    """Of sets and maps, in nft's words."""
    handles: tuple[int, ...] = ()
    """Of all that has one but the table, in the order of the lines."""

    def is_untouched(self, made: int, unseen: int = 0) -> bool:
        """Tell whether nothing came or went since the table was made in one transaction.

        Handles number what is made in a table and are never used again.

        Args:
            made: how many of those that are seen here it made.
            unseen: how many others, as sets that stand in a rule.
        """
        return len(self.handles) == made and max(self.handles, default=0) == made + unseen


def read(text: str) -> Listing:
    """Return the listing that an answer of nft to `list table` holds, with handles, stateless."""
    lines: list[str] = []
    handles: list[int] = []
    members: dict[str, frozenset[str]] = {}
    blocks: list[str] = []
    rows = iter(text.splitlines())
    for row in rows:
        numbered = HANDLE.search(row)
        line = row[: numbered.start() if numbered else None].strip()
        if numbered:
            handles.append(int(numbered[1]))
        if line.startswith(ELEMENTS) and blocks:
            while not line.endswith("}") and (more := next(rows, None)) is not None:
                line += more.strip()
            found = line.removeprefix(ELEMENTS).removesuffix("}").split(",")
            # Names of sets are unique in a table.
            members[blocks[-1].split()[-1]] = frozenset(" ".join(one.split()) for one in found)
        elif line == "}" and blocks:
            blocks.pop()
        elif line:
            lines.append(": ".join((*blocks[1:], line.removesuffix("{").strip())))
            if line.endswith("{"):
                blocks.append(line.removesuffix("{").strip())
    return Listing(tuple(lines), members, tuple(handles[1:]))


def differences(wanted: Listing, found: Listing) -> list[str]:
    """Say in words what is missing, left over or in another order."""
    there, meant = Counter(found.lines), Counter(wanted.lines)
    told = [f"{line} is missing" for line in (meant - there).elements()]
    told += [f"{line} is left over" for line in (there - meant).elements()]
    if not told and wanted.lines != found.lines:
        told.append("the rules are in another order")
    for name, members in wanted.members.items():
        present = found.members.get(name, frozenset())
        told += [f"{name}: {item} is missing" for item in sorted(members - present)]
        told += [f"{name}: {item} is left over" for item in sorted(present - members)]
    return told
