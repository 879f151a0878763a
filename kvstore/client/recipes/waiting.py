"""Waiting, as all recipes do it: for a key to go, through outages, while a lease lives."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, TypeVar

from kvstore.client.errors import (
    CompactedError,
    NoLeaderError,
    OutcomeUnknownError,
    OverloadedError,
    ReadFailedError,
    UnreachableError,
)
from kvstore.client.types import KeyValue, RangeResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from kvstore.client.aio import AsyncClient
    from kvstore.client.lease import Lease
    from kvstore.client.types import TxnResult

Result = TypeVar("Result")

_PASSES = (NoLeaderError, UnreachableError, ReadFailedError, OverloadedError, OutcomeUnknownError)
_PAUSE_S = 0.1


async def persist(call: Callable[[], Awaitable[Result]]) -> Result:
    """Make an idempotent call again and again until the cluster answers it.

    Bounded by the caller only: by its timeout, or by the life of its lease (`unless_lost`).
    """
    while True:
        try:
            return await call()
        except _PASSES:
            await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 jitter


async def unless_lost(lease: Lease, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, or raise LeaseLostError as soon as the lease is lost."""
    working = asyncio.create_task(work)
    losing = asyncio.create_task(lease.wait_lost())
    try:
        await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        lease.check()
        return working.result()
    finally:
        for task in (working, losing):
            task.cancel()
        await asyncio.gather(working, losing, return_exceptions=True)


async def wait_changed(
    client: AsyncClient,
    key: bytes,
    revision: int,
    *,
    prefix: bool = False,
    puts: bool = True,
    deletes: bool = True,
) -> None:
    """Return when a key has changed at or after a revision, or may have: then look again."""
    try:
        async with client.watch(
            key, prefix=prefix, start_revision=revision, puts=puts, deletes=deletes
        ) as watcher:
            async for batch in watcher:
                if batch.events:
                    return
    except CompactedError:
        return  # what happened is forgotten; the present is not


def found(result: TxnResult, position: int = 0) -> tuple[KeyValue, ...]:
    """Return what a transaction's operation, a range, has found."""
    answer = result.responses[position]
    assert isinstance(answer, RangeResult)
    return answer.kvs
