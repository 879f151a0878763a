"""One etcd lease of ours: granted, and renewed well before its end."""

from __future__ import annotations

from netplane.subnet.clock import Clock
from netplane.subnet.registry import Grant, Registry

_RENEWALS = 3
_RENEWAL_MAX_S = 3600.0
# A lease of a day is renewed every hour, so that it survives a registry that is down for 23.


class HeldLease:
    """A lease, or the wish for one: `lease_id` 0 is none."""

    def __init__(self, registry: Registry, clock: Clock, ttl_s: int) -> None:
        self._registry = registry
        self._clock = clock
        self._ttl_s = ttl_s
        self.lease_id = 0
        self.due_s = 0.0
        """When to renew it."""
        self.ends_s = 0.0
        """When it ends if it is not renewed any more, at the earliest."""

    async def obtain(self, reuse: int = 0) -> None:
        """Have a lease: `reuse`, one of an earlier process, if it lives yet, else a new one."""
        if self.lease_id:
            return
        asked_s = self._clock.now_s()
        if reuse:
            grant = await self._registry.renew(reuse)
            if grant.ttl_s >= self._ttl_s:
                self._take(grant, asked_s)
                return
        self._take(await self._registry.grant(self._ttl_s), asked_s)

    async def renew(self) -> Grant:
        """Renew it. If it has ended, there is none from now on."""
        asked_s = self._clock.now_s()
        grant = await self._registry.renew(self.lease_id)
        if grant.ttl_s:
            self._take(grant, asked_s)
        else:
            self.lease_id = 0
        return grant

    async def give_back(self) -> None:
        """End it, and with it its keys."""
        if self.lease_id:
            await self._registry.revoke(self.lease_id)
            self.lease_id = 0

    def is_due(self) -> bool:
        """Tell whether it is time to renew it."""
        return self.lease_id != 0 and self._clock.now_s() >= self.due_s

    def left_s(self) -> float:
        """Return how long it lives yet if it is not renewed."""
        return max(0.0, self.ends_s - self._clock.now_s()) if self.lease_id else 0.0

    def _take(self, grant: Grant, asked_s: float) -> None:
        # Counted from the asking: the registry began to count somewhere between.
        self.lease_id = grant.lease_id
        self.due_s = asked_s + min(grant.ttl_s / _RENEWALS, _RENEWAL_MAX_S)
        self.ends_s = asked_s + grant.ttl_s
