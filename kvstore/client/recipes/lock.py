"""Locks: one holder at a time, or many readers. How a place is taken and lost is in `place`.

No lock made of leases protects what lies outside the store: its holder can be paused past the end
of its lease. Hand `token` to the resource and let it refuse smaller ones; inside the store put
`lock.held` into the transaction (docs/consistency.md, "Leases and locks").
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from kvstore.client.recipes.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.client.aio import AsyncClient
    from kvstore.client.lease import Lease


class Lock(Place):
    """A lock, fair by the order in which it was asked for. Made by `AsyncClient.lock`.

    The key is `NAME/LEASE` with the lease's id in hexadecimal, as of the Go client's `Mutex`.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: bytes,
        *,
        ttl_s: int,
        timeout_s: float | None,
        cancel_on_lost: bool,
        on_lost: Callable[[Lease], None] | None,
    ) -> None:
        super().__init__(
            client,
            key_of=lambda lease_id: b"%s/%s" % (name, f"{lease_id:x}".encode()),
            behind=name + b"/",
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            cancel_on_lost=cancel_on_lost,
            on_lost=on_lost,
        )
        self.name = name


class ReadWriteLock:
    """Many readers or one writer, fair by the order of asking. Made by `read_write_lock`.

        async with client.read_write_lock(b"table").read(): ...
        async with client.read_write_lock(b"table").write(): ...

    A reader waits for the writers before it, a writer for everybody. The keys are
    `NAME/read/NANOSECONDS` and `NAME/write/NANOSECONDS`, as of the Go client's `RWMutex`.
    """

    def __init__(
        self,
        client: AsyncClient,
        name: bytes,
        *,
        ttl_s: int,
        timeout_s: float | None,
        cancel_on_lost: bool,
        on_lost: Callable[[Lease], None] | None,
    ) -> None:
        self._client = client
        self.name = name
        self._make = partial(
            Place,
            client,
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            cancel_on_lost=cancel_on_lost,
            on_lost=on_lost,
        )

    def read(self) -> Place:
        """Return a place among the readers; it is held by `async with` or `acquire`."""
        return self._make(
            key_of=partial(unique_key, self.name + b"/read"), behind=self.name + b"/write/"
        )

    def write(self) -> Place:
        """Return a place as the writer; it is held by `async with` or `acquire`."""
        return self._make(
            key_of=partial(unique_key, self.name + b"/write"), behind=self.name + b"/"
        )


def unique_key(stem: bytes, lease_id: int) -> bytes:  # noqa: ARG001 all key makers take it
    """Return a key that nobody else has, most likely; `Place` looks whether that is so."""
    return b"%s/%d" % (stem, time.time_ns())
