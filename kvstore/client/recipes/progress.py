"""Whether a server's progress marks, asked for by hand, can be relied on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.client.aio import AsyncClient

_FIXED = {(3, 4): 25, (3, 5): 8}
# etcd answered a request for progress past events that were still on their way, up to these patch
# releases (etcd issue 15220).


async def has_true_marks(client: AsyncClient) -> bool:
    """Tell whether a mark at a revision says that no event up to it is still to come."""
    return is_fixed((await client.status()).version)


def is_fixed(version: str) -> bool:
    """Tell it from the version a server gives, such as 3.5.9; False when that cannot be read."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None:
        return False
    major, minor, patch = map(int, numbers.groups())
    return (major, minor) > (3, 5) or patch >= _FIXED.get((major, minor), patch + 1)
