"""Which event loop a command runs on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop where it is installed, None for asyncio's own loop.

    KVSTORE_LOOP=asyncio in the environment asks for asyncio's; both are tested.
    """
    if os.environ.get("KVSTORE_LOOP") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
