"""The registry over `kvstore.client`, and so over kvstore or any etcd from 3.4 on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from kvstore.client import (
    AsyncClient,
    AvailabilityError,
    KvError,
    LeaseNotFoundError,
    NoSpaceError,
    Op,
    PermissionDeniedError,
    Txn,
    Watcher,
    compare,
    errors,
    methods,
    prefix_end,
)
from netplane.subnet.registry import (
    Absent,
    Attempt,
    Change,
    Changes,
    CompactedError,
    Condition,
    Grant,
    Head,
    KeyValue,
    LeaseGoneError,
    Listing,
    Outcome,
    OutcomeUnknownError,
    Put,
    RefusedError,
    RegistryError,
    UnavailableError,
    Write,
)

if TYPE_CHECKING:
    from kvstore.client.txn import Comparison


class EtcdRegistry:
    """`Registry` on a client, which stays its owner's to close."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    @property
    def resumptions(self) -> int:
        """As `Registry.resumptions`."""
        return self._client.statistics().watch_resumptions

    async def list(self, prefix: bytes) -> Listing:
        """As `Registry.list`, in one Range."""
        # By message: the client's own results leave out the cluster id.
        request = methods.RANGE.request(key=prefix, range_end=prefix_end(prefix))
        with _translated:
            response = await self._client.call(methods.RANGE, request, write=False)
        return _listing(response.header, response)

    async def attempt(self, attempts: tuple[Attempt, ...], otherwise: bytes) -> Outcome:
        """As `Registry.attempt`: each attempt is nested in the failure of the one before."""
        operation = Op.get(otherwise, prefix=True)
        txn = Txn()
        for attempt in reversed(attempts):
            txn = (
                Txn()
                .when(*(_comparison(condition) for condition in attempt.conditions))
                .then(*(_operation(write) for write in attempt.writes))
                .otherwise(operation)
            )
            operation = Op.txn(txn)
        with _translated:
            response = await self._client.call(methods.TXN, txn.message, write=True)
        header = response.header
        for position in range(len(attempts)):
            if response.succeeded:
                return Outcome(position, _head(header), None)
            last = response.responses[0]
            if last.WhichOneof("response") == "response_range":
                return Outcome(None, _head(header), _listing(header, last.response_range))
            response = last.response_txn
        raise AssertionError("a transaction without an attempt")

    def watch(self, prefix: bytes, start_revision: int) -> EtcdFeed:
        """As `Registry.watch`; lost connections are the client's to resume."""
        return EtcdFeed(self._client.watch(prefix, prefix=True, start_revision=start_revision))

    async def grant(self, ttl_s: int) -> Grant:
        """As `Registry.grant`."""
        request = methods.LEASE_GRANT.request(TTL=ttl_s)
        with _translated:
            response = await self._client.call(methods.LEASE_GRANT, request, write=True)
        return Grant(response.ID, response.TTL, _head(response.header))

    async def renew(self, lease_id: int) -> Grant:
        """As `Registry.renew`."""
        with _translated:
            response = await self._client.keep_alive_response(lease_id)
        return Grant(lease_id, max(response.TTL, 0), _head(response.header))

    async def revoke(self, lease_id: int) -> None:
        """As `Registry.revoke`."""
        with _translated, contextlib.suppress(LeaseNotFoundError):
            await self._client.lease_revoke(lease_id)


class EtcdFeed:
    """`Feed` on a watcher of the client."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._ready: deque[Changes] = deque()

    async def next(self) -> Changes:
        """As `Feed.next`."""
        while not self._ready:
            with _translated:
                # The message itself: the client's own events would be made for each first.
                response = await self._watcher.next_response()
            if response is None:
                raise UnavailableError("the watch was closed")
            self._ready.extend(_revisions(response))
        return self._ready.popleft()

    async def close(self) -> None:
        """As `Feed.close`."""
        await self._watcher.aclose()


class _Translated:
    """Turns the client's errors into the port's."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, KvError):
            raise _of(error) from error


_translated = _Translated()


def _of(error: KvError) -> RegistryError:
    match error:
        case errors.CompactedError():
            return CompactedError(str(error))
        case LeaseNotFoundError():
            return LeaseGoneError(str(error))
        case errors.OutcomeUnknownError():
            return OutcomeUnknownError(str(error))
        case NoSpaceError():
            return RefusedError(str(error))
        case AvailabilityError():
            return UnavailableError(str(error))
        case PermissionDeniedError():
            text = "the user of --etcd-username has to read and write all that is below"
            return RefusedError(f"{error}: {text} --etcd-prefix")
    return RefusedError(str(error))


def _comparison(condition: Condition) -> Comparison:
    if isinstance(condition, Absent):
        return compare(condition.prefix, prefix=True).version == 0
    return compare(condition.key).mod_revision == condition.mod_revision


def _operation(write: Write) -> Op:
    if isinstance(write, Put):
        return Op.put(write.key, write.value, lease=write.lease_id)
    return Op.delete(write.key)


def _head(header: Any) -> Head:
    return Head(header.cluster_id, header.revision)


def _kv(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _revisions(response: Any) -> Iterator[Changes]:
    """Cut a watch response into revisions; a server may put many into one."""
    found = response.events
    if not found:
        yield Changes(response.header.revision, ())
    elif len(found) == 1:  # as a rule
        yield Changes(found[0].kv.mod_revision, (_change(found[0]),))
    else:
        for revision, group in groupby(found, lambda event: event.kv.mod_revision):
            yield Changes(revision, tuple(map(_change, group)))


def _change(event: Any) -> Change:
    kv = event.kv
    return Change(kv.key, None if event.type == event.DELETE else _kv(kv))


def _listing(header: Any, response: Any) -> Listing:
    return Listing(_head(header), tuple(_kv(kv) for kv in response.kvs))
