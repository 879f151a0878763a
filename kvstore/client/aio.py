"""The asynchronous client: keys, transactions, watches and leases; how calls travel is `transport`.

async with AsyncClient(["127.0.0.1:2379"]) as client:
    await client.put(b"greeting", b"hello")
    print((await client.get(b"greeting")).value)
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from kvstore.client.counters import Statistics, statistics
from kvstore.client.errors import CompactedError
from kvstore.client.keys import range_of
from kvstore.client.lease import Lease, LeaseKeeper
from kvstore.client.leasing import LeaseCalls
from kvstore.client.maintenance import MaintenanceCalls
from kvstore.client.membership import MembershipCalls
from kvstore.client.methods import DELETE_RANGE, PUT, RANGE, TXN, Method, Request, Response
from kvstore.client.namespace import Namespace
from kvstore.client.pages import Pages
from kvstore.client.pipeline import Pipeline
from kvstore.client.plain import plain_put
from kvstore.client.recipes.calls import PAGE_SIZE_DEFAULT, RecipeCalls
from kvstore.client.telemetry import Traced
from kvstore.client.transport import CONNECT_TIMEOUT_S, Mode, Transport
from kvstore.client.txn import Txn
from kvstore.client.types import (
    DeleteResult,
    KeyValue,
    PutResult,
    RangeResult,
    SortOrder,
    SortTarget,
    TxnResult,
    delete_result,
    key_value,
    put_result,
    range_result,
    txn_result,
    written,
)
from kvstore.client.watch import Watcher
from kvstore.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType

    from kvstore.client.carrier import Carrier
    from kvstore.client.endpoint import Tls

_Watchers: TypeAlias = "weakref.WeakSet[Watcher]"


class AsyncClient(LeaseCalls, MaintenanceCalls, MembershipCalls, RecipeCalls):
    """A client of one cluster, for use on one asyncio event loop.

    Works with kvstore and with etcd 3.4 or newer. All methods may be called concurrently. Each
    takes `timeout_s`, the seconds for the whole call with its retries; None is the client's own.

    Calls go to the first endpoint; when that fails, the client moves on to the next and stays
    there. A call is repeated by itself only when that is safe: reads always, writes only when they
    certainly were not applied. Cancelling the task that awaits a write leaves its outcome open.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        user: str | None = None,
        password: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = 5.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        transport: Mode = "auto",
        tracer_provider: object | None = None,
    ) -> None:
        """Remember where the cluster is; connections are made at first use.

        Args:
            endpoints: Members' client addresses in order of preference: `host:port`,
                `http://host:port` or `https://host:port`.
            user: Name to log in with. None for clusters without authentication.
            password: Its password.
            tls: Certificate files. Endpoints without a scheme are then https.
            timeout_s: Seconds a call may take, retries included, where it does not say itself.
                A call's own may be 0 or less, as of a deadline that has passed: UnreachableError.
            connect_timeout_s: Seconds of these that one endpoint may take to connect before the
                next is tried: what a host that drops packets costs.
            transport: How calls travel: "session" is one stream for all of them, many to a frame,
                which kvstore offers; "unary" is a gRPC call each, as every etcd takes them;
                "auto" uses sessions where they are offered. Results and errors are the same.
            tracer_provider: An OpenTelemetry `TracerProvider`: each call becomes a span. Needs
                the package opentelemetry-api. None traces nothing and costs nothing.

        Raises:
            ValueError: An endpoint or another argument cannot be used.
            OSError: A file of `tls` cannot be read or used.
        """
        carrier: Carrier = Transport(
            endpoints,
            user=user,
            password=password,
            tls=tls,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            mode=transport,
        )
        if tracer_provider is not None:
            carrier = Traced(carrier, tracer_provider)
        self._begin(carrier, LeaseKeeper(carrier))

    def _begin(
        self, transport: Carrier, keeper: LeaseKeeper, parents: tuple[_Watchers, ...] = ()
    ) -> None:
        self._transport = transport
        self._keeper = keeper
        self._endpoint_sync: asyncio.Task[None] | None = None
        self._watchers: _Watchers = weakref.WeakSet()
        self._all_watchers = (self._watchers, *parents)

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return self._transport.is_closed

    @property
    def is_in_session(self) -> bool:
        """Whether calls travel in a session now; before the first call they do not."""
        return self._transport.link().session is not None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, because: str = "") -> None:
        """Close watches and connections. Leases are no longer renewed, and end by themselves.

        Calls under way and later ones raise ClosedError (OutcomeUnknownError where a write was
        sent), with the reason `because` in their text.
        """
        if self.is_closed:
            return
        self._transport.enter()
        await self._close_own()
        await self._keeper.close()
        await self._transport.close(because)

    async def _close_own(self) -> None:
        if self._endpoint_sync is not None:
            self._endpoint_sync.cancel()
            await asyncio.wait({self._endpoint_sync})
        await asyncio.gather(*(watcher.aclose() for watcher in list(self._watchers)))

    async def lose_address(self, address: str) -> int:
        """Give up the connections that come from an address which this host no longer has.

        For who is told when an address goes; by itself the client notices after some 15 s without
        an answer. Calls under way end as with any lost connection, watches go on over the next.

        Args:
            address: In numbers, as ``192.0.2.1``.

        Returns:
            How many connections were given up.
        """
        return self._transport.lose_address(address)

    def statistics(self) -> Statistics:
        """Return what the client has done so far, its namespaces included, as plain numbers."""
        return statistics(self._transport.counters, leases_kept=self._keeper.leases_kept)

    def namespace(self, prefix: bytes) -> AsyncClient:
        """Return a client of the keys that start with ``prefix``, as if they were all there are.

            app = client.namespace(b"app/")
            await app.put(b"limit", b"10")          # stores app/limit
            async with app.lock(b"jobs"): ...       # locks app/jobs

        It has every method: keys get the prefix on the way out and lose it on the way back, ranges
        end where it ends. Leases, members and compaction are the whole cluster's. It lives on this
        client's connections: to close it closes its watches only.

        Args:
            prefix: 1 byte or more. It separates by name, not by permission.
        """
        return _NamespaceClient(
            Namespace(self._transport, prefix),
            self._keeper,
            self._all_watchers,
            self.sync_endpoints,
        )

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        write: bool,
        endpoint: str | None = None,
        timeout_s: float | None = None,
    ) -> Response:
        """Make a call with the API's own messages, for what the other methods do not cover.

        Args:
            method: One of `kvstore.client.methods`.
            request: Its request message.
            write: Whether it can change something; a write with an open outcome is not repeated.
            endpoint: Ask this member only. None for whichever serves.
            timeout_s: Seconds for the whole call, retries included.
        """
        return await self._transport.call(
            method, request, write=write, endpoint=endpoint, timeout_s=timeout_s
        )

    async def put(
        self,
        key: bytes,
        value: bytes,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout_s: float | None = None,
    ) -> PutResult:
        """Store ``value`` under ``key`` and wait until a majority holds it on disk.

        Args:
            key: 1 byte or more. Keys order by their raw bytes. Key and value together are bounded
                by the size of a request, 1.5 MiB unless the server's --max-request-bytes differs.
            value: 0 bytes or more.
            lease: Lease that deletes the key when it ends. 0 means no lease, and detaches the key
                from the one it had.
            prev_kv: Also return what the put replaced.
            ignore_value: Keep the key's value (pass b"") and change only its lease.
            ignore_lease: Keep the key's lease (pass 0) and change only its value.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Returns:
            The store revision this write made (one per transaction), and with ``prev_kv`` what
            it replaced, or ``None`` if the key was absent.

        Raises:
            LeaseNotFoundError: ``lease`` has ended. Nothing was written.
            KeyNotFoundError: ``ignore_value`` or ``ignore_lease`` on an absent key. Nothing was
                written.
            RequestTooLargeError: Nothing was written.
            NoSpaceError: The store has reached its quota. Nothing was written.
            NoLeaderError, UnreachableError: No leader, or no endpoint, within ``timeout_s``.
                Nothing was written; safe to retry.
            OutcomeUnknownError: The connection broke, or the time ended, after sending. The write
                may or may not be in the log; compare ``mod_revision`` before repeating it.

        Source: etcd v3 KV.Put (proto/rpc.proto).
        """
        is_plain = not (lease or prev_kv or ignore_value or ignore_lease) and timeout_s is None
        payload = plain_put(key, value) if is_plain else None
        sent = self._transport.begin_put(payload) if payload is not None else None
        if payload is not None and sent is not None:
            try:
                answer = await sent[0]
            except asyncio.CancelledError:
                sent[1].cancel(sent[2])
                raise
            if type(answer) is int:
                return written(answer)
            return put_result(await self._transport.end_put(sent, answer, payload))
        request = pb.PutRequest(
            key=key,
            value=value,
            lease=lease,
            prev_kv=prev_kv,
            ignore_value=ignore_value,
            ignore_lease=ignore_lease,
        )
        return put_result(await self._transport.call(PUT, request, write=True, timeout_s=timeout_s))

    async def get(
        self,
        key: bytes,
        *,
        revision: int = 0,
        serializable: bool = False,
        timeout_s: float | None = None,
    ) -> KeyValue | None:
        """Return what is stored under ``key``, or None when it is absent.

        Args:
            key: 1 byte or more.
            revision: Read the store as of this revision; 0 is now.
            serializable: Take the answer of one member without asking the others. Faster, served
                even without a leader, and possibly older than what was written before.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Returns:
            The key at that revision. Without ``serializable`` and ``revision`` it includes every
            write that was acknowledged before the call, by whichever client.

        Raises:
            CompactedError, FutureRevisionError: ``revision`` cannot be read.
            ReadFailedError, NoLeaderError, UnreachableError: No answer within ``timeout_s``,
                after retries on every endpoint.

        Source: etcd v3 KV.Range (proto/rpc.proto).
        """
        request = pb.RangeRequest(key=key, revision=revision, serializable=serializable)
        response = await self._range(request, timeout_s)
        return key_value(response.kvs[0]) if response.kvs else None

    async def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        revision: int = 0,
        limit: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        sort_target: SortTarget = "key",
        sort_order: SortOrder = "none",
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout_s: float | None = None,
    ) -> RangeResult:
        """Return the keys of a range in one answer. For ranges without a bound use `get_range`.

        Args:
            key: First key; with ``prefix``, what the keys start with (b"" is every key).
            range_end: First key after the range; b"" for ``key`` alone, ``TO_THE_END`` for all
                keys from ``key`` on.
            prefix: All keys that start with ``key``. Excludes ``range_end``.
            revision: Read the store as of this revision; 0 is now.
            limit: Return at most so many keys; 0 is all.
            serializable: As for `get`.
            keys_only: Leave the values out.
            count_only: Return only the count.
            sort_target: What to order by.
            sort_order: "none" is ascending by key.
            min_mod_revision: Drop keys last changed before it; 0 drops none. So on for the other
                three; ``count`` is not affected by any of them.
            max_mod_revision: Drop keys last changed after it.
            min_create_revision: Drop keys created before it.
            max_create_revision: Drop keys created after it.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Raises:
            As `get`.

        Source: etcd v3 KV.Range (proto/rpc.proto).
        """
        first, end = range_of(key, range_end, prefix=prefix)
        request = pb.RangeRequest(
            key=first,
            range_end=end,
            limit=limit,
            revision=revision,
            sort_order=sort_order.upper(),
            sort_target=sort_target.upper(),
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return range_result(await self._range(request, timeout_s))

    def get_range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        revision: int = 0,
        page_size: int = PAGE_SIZE_DEFAULT,
        serializable: bool = False,
        keys_only: bool = False,
        timeout_s: float | None = None,
    ) -> Pages:
        """Iterate over the keys of a range, in key order, all at one revision.

            async for kv in client.get_range(b"service/", prefix=True): ...

        The keys are fetched by pages while the iteration goes on, so the range may be of any size.
        The first page fixes the revision, `Pages.revision`; a watch from the revision after it
        sees everything that comes later, without gap or repeat.

        Args:
            key: First key; with ``prefix``, what the keys start with (b"" is every key).
            range_end: As for `range`.
            prefix: All keys that start with ``key``. Excludes ``range_end``.
            revision: Read the store as of this revision; 0 is now.
            page_size: Keys in one answer, 1 or more.
            serializable: As for `get`.
            keys_only: Leave the values out.
            timeout_s: Seconds for each page, retries included; None is the client's.

        Raises (from the iteration):
            CompactedError: The revision was compacted away before the last page: begin again.
            And as `get`.
        """
        first, end = range_of(key, range_end, prefix=prefix)
        request = pb.RangeRequest(
            key=first,
            range_end=end,
            revision=revision,
            limit=page_size,
            serializable=serializable,
            keys_only=keys_only,
        )
        return Pages(lambda page: self._range(page, timeout_s), request)

    async def _range(self, request: pb.RangeRequest, timeout_s: float | None) -> pb.RangeResponse:
        try:
            return await self._transport.call(
                RANGE,
                request,
                write=False,
                timeout_s=timeout_s,
                require_leader=not request.serializable,
            )
        except CompactedError as error:
            error.requested = request.revision
            raise

    async def delete(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        prev_kv: bool = False,
        timeout_s: float | None = None,
    ) -> DeleteResult:
        """Delete a key or a range, in one revision, and wait until a majority holds that.

        Args:
            key: First key; with ``prefix``, what the keys start with (b"" is every key!).
            range_end: As for `range`.
            prefix: All keys that start with ``key``. Excludes ``range_end``.
            prev_kv: Also return what was deleted.
            timeout_s: Seconds for the whole call, retries included; None is the client's.

        Returns:
            How many keys were deleted; 0 is no error and makes no revision.

        Raises:
            NoLeaderError, UnreachableError: Nothing was deleted; safe to retry.
            OutcomeUnknownError: As for `put`.

        Source: etcd v3 KV.DeleteRange (proto/rpc.proto).
        """
        first, end = range_of(key, range_end, prefix=prefix)
        request = pb.DeleteRangeRequest(key=first, range_end=end, prev_kv=prev_kv)
        return delete_result(
            await self._transport.call(DELETE_RANGE, request, write=True, timeout_s=timeout_s)
        )

    def txn(self) -> Txn:
        """Begin a transaction: add `when`, `then`, `otherwise`, and `await` its `commit()`."""
        return Txn(self._commit)

    async def _commit(self, txn: Txn, timeout_s: float | None) -> TxnResult:
        return txn_result(
            await self._transport.call(TXN, txn.message, write=txn.is_write, timeout_s=timeout_s)
        )

    def pipeline(self) -> Pipeline:
        """Begin a pipeline: add operations with `then`, and `await` its `commit()`.

        Many operations in one go, which take effect in the order they were added. Over a session
        the writes of a group also share one entry of the log.
        """
        return Pipeline(self._transport.pipeline)

    def watch(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        prefix: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        puts: bool = True,
        deletes: bool = True,
        resume_timeout_s: float | None = None,
    ) -> Watcher:
        """Watch a key or a range: every change once, in order, whole revisions at a time.

            async with client.watch(b"service/", prefix=True) as watcher:
                async for batch in watcher:
                    for event in batch.events: ...

        When the connection or the member is lost, the watch goes on at another endpoint from the
        first revision not yet received: no change is missed or repeated.

        Args:
            key: First key; with ``prefix``, what the keys start with (b"" is every key).
            range_end: As for `range`.
            prefix: All keys that start with ``key``. Excludes ``range_end``.
            start_revision: First revision to hear of; 0 for whatever comes after registration.
            prev_kv: Give each event the key as it was before, unless that was compacted.
            progress_notify: Let the server send a batch without events now and then (etcd: every
                10 minutes) when nothing happens; its revision says how far the watch has got.
            puts: Hear of puts.
            deletes: Hear of deletes.
            resume_timeout_s: Seconds without any server after which the iteration raises; None
                tries for ever.

        Raises (from the iteration, or on entering `async with`):
            CompactedError: The revisions from ``start_revision``, or from the point of
                resumption, are gone: read the current state and watch from there.
            PermissionDeniedError: The user may not read the range.
            RequestError: The range is empty.
            UnreachableError, NoLeaderError: No endpoint registered the watch within the
                client's timeout.

        Source: etcd v3 Watch.Watch (proto/rpc.proto).
        """
        first, end = range_of(key, range_end, prefix=prefix)
        filters = []
        if not puts:
            filters.append(pb.WatchCreateRequest.NOPUT)
        if not deletes:
            filters.append(pb.WatchCreateRequest.NODELETE)
        request = pb.WatchCreateRequest(
            key=first,
            range_end=end,
            start_revision=start_revision,
            progress_notify=progress_notify,
            prev_kv=prev_kv,
            filters=filters,
        )
        watcher = Watcher(self._transport, request, resume_timeout_s=resume_timeout_s)
        for watchers in self._all_watchers:  # whoever of them is closed closes the watch
            watchers.add(watcher)
        return watcher

    def lease(
        self,
        ttl_s: int,
        *,
        lease_id: int = 0,
        on_lost: Callable[[Lease], None] | None = None,
        cancel_on_lost: bool = False,
    ) -> Lease:
        """Return a lease for use in `async with`: granted, kept alive, and revoked at the end.

        Args:
            ttl_s: Seconds to live without a renewal, 1 to 9,000,000,000. The server raises small
                values to its minimum (etcd: 2 s by default).
            lease_id: Identifier to ask for; 0 lets the server choose.
            on_lost: Called once, on the event loop, when the lease has ended or may have.
            cancel_on_lost: Also cancel the body of the `async with`, which then raises
                `LeaseLostError`: for work that must stop with the lease.

        Raises (on entry):
            LeaseExistsError: ``lease_id`` is taken.
            NoLeaderError, UnreachableError: Nothing was granted; safe to retry.
            OutcomeUnknownError: A lease may have been granted; it ends by itself.

        Source: etcd v3 Lease.LeaseGrant, LeaseKeepAlive, LeaseRevoke (proto/rpc.proto).
        """
        return Lease(
            self._keeper,
            ttl_s=ttl_s,
            lease_id=lease_id,
            on_lost=on_lost,
            cancel_on_lost=cancel_on_lost,
        )


class _NamespaceClient(AsyncClient):
    """A client on the connections of another; see `AsyncClient.namespace`."""

    def __init__(
        self,
        transport: Carrier,
        keeper: LeaseKeeper,
        parents: tuple[_Watchers, ...],
        sync_endpoints: Callable[..., Coroutine[Any, Any, tuple[str, ...]]],
    ) -> None:
        self._begin(transport, keeper, parents)
        self._sync_endpoints = sync_endpoints

    async def sync_endpoints(
        self, *, every_s: float | None = None, timeout_s: float | None = None
    ) -> tuple[str, ...]:
        """As `AsyncClient.sync_endpoints`, for the client that has the connections."""
        return await self._sync_endpoints(every_s=every_s, timeout_s=timeout_s)

    async def close(self, because: str = "") -> None:
        """Close its watches, and those of namespaces within it; `because` changes nothing."""
        await self._close_own()
