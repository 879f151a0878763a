"""The real registry with something around it, and other help for tests of the manager."""

from __future__ import annotations

import asyncio
from typing import Any

from netplane.subnet.lease import View
from netplane.subnet.manager import SubnetManager
from netplane.subnet.registry import (
    Attempt,
    Feed,
    Grant,
    Listing,
    Outcome,
    Registry,
)


class Wrapped:
    """The real registry, with its calls counted, and what a test does around them."""

    def __init__(self, inner: Registry) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self.renewed = asyncio.Event()

    @property
    def resumptions(self) -> int:
        return self.inner.resumptions

    async def list(self, prefix: bytes) -> Listing:
        self.calls.append("list")
        return await self.inner.list(prefix)

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        self.calls.append("attempt")
        return await self.inner.attempt(attempts, otherwise)

    def watch(self, prefix: bytes, start_revision: int) -> Feed:
        self.calls.append("watch")
        return self.inner.watch(prefix, start_revision)

    async def grant(self, ttl_s: int) -> Grant:
        self.calls.append(f"grant {ttl_s}")
        return await self.inner.grant(ttl_s)

    async def renew(self, lease_id: int) -> Grant:
        self.calls.append("renew")
        grant = await self.inner.renew(lease_id)
        self.renewed.set()
        return grant

    async def revoke(self, lease_id: int) -> None:
        self.calls.append("revoke")
        await self.inner.revoke(lease_id)


async def view_where(manager: SubnetManager, view: View, condition: Any) -> View:
    """Wait for a view that meets a condition."""
    while not condition(view):
        view = await manager.next_view(view)
    return view
