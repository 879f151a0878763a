"""Planted bugs of the client library."""

from __future__ import annotations

import asyncio
from typing import Any

from kvstore.client import KvError, OutcomeUnknownError, UnreachableError
from kvstore.client import transport as client_transport
from kvstore.client.errors import ReadFailedError, error_from_rpc
from kvstore.client.lease import LeaseKeeper
from kvstore.client.transport import Transport
from kvstore.client.watch import Watcher as ClientWatcher
from kvstore.pb import rpc_pb2
from tests.sim.full.planted.bug import FullBug


def repeats_what_is_open(self: Transport, failure: KvError, *, write: bool) -> KvError:
    """Call a write that was sent and not answered "not applied", so that it is sent again."""
    if isinstance(failure, OutcomeUnknownError):
        return UnreachableError(failure.text)
    return failure


def repeats_calls(error: Any, *, write: bool) -> KvError:
    """Do the same for calls outside of sessions."""
    failure = error_from_rpc(error, write=write)
    return UnreachableError(failure.text) if isinstance(failure, OutcomeUnknownError) else failure


async def resumes_late(self: ClientWatcher) -> None:
    """Resume a watch one revision behind where it stopped."""
    if self._registrations:
        self._next_revision += 1
    await real_register(self)


real_register = ClientWatcher._register


async def sends_without_answer(self: LeaseKeeper, stream: Any) -> None:
    """Renew while the last renewal is not answered, and take its answer for the new one's."""
    while self._leases:
        for lease in self._leases.values():
            lease.asked_at_s = asyncio.get_running_loop().time()
            try:
                await stream.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease.lease_id))
            except asyncio.InvalidStateError as error:
                raise ReadFailedError("the keep-alive stream broke") from error
        await asyncio.sleep(min(lease.ttl_s for lease in self._leases.values()) / 3)


sends_without_answer.__name__ = "_send"  # by which the loop knows that its failure is waited for


BUGS = (
    FullBug(
        "a write of unknown outcome is repeated",
        "client",
        "writes retried after an error that leaves them open",
        (
            (Transport, "_unless_closed", repeats_what_is_open),
            (client_transport, "error_from_rpc", repeats_calls),
        ),
        "client",
        60_000,
    ),
    FullBug(
        "a watch resumes one revision too late",
        "client",
        "client libraries that resume behind the header's revision",
        ((ClientWatcher, "_register", resumes_late),),
        "client",
        60_000,
    ),
    FullBug(
        "a keepalive's answer is taken for the next one's",
        "client",
        "etcd's Go client: a lease's life counted from the answer, not from the renewal",
        ((LeaseKeeper, "_send", sends_without_answer),),
        "keepalive",
        120_000,
        seeds=(1_000, 2_000, 3_000, 4_000, 5_000),
    ),
)
