"""Takes away everything that containers of an instance have on this host."""

from __future__ import annotations

import asyncio

from netplane.agent.containers import devices, published
from netplane.agent.containers.errors import CniError
from netplane.agent.containers.records import Store
from netplane.cni import plugin


async def clear(instance: str, store: Store) -> int:
    """Remove devices, table and file; return how many objects there were. Raises CniError.

    What nftables has matters only where ports are published: it may be missing on this host.
    """
    removed = await asyncio.to_thread(devices.clear, instance)
    tables, problem = await published.clear(instance)
    if problem and any(record.ports for record in store.records.values()):
        raise CniError(plugin.KERNEL, "cannot take published ports back", problem)
    store.records.clear()
    store.path.unlink(missing_ok=True)
    return removed + tables
